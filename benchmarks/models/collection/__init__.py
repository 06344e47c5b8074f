"""All cases, by name."""

from __future__ import annotations

from benchmarks.models.case import Case
from benchmarks.models.collection import (
    classifiers,
    explanations,
    patterns,
    perceptual,
    restoration,
    segmentation,
    text,
)

CASES: dict[str, Case] = {
    case.name: case
    for part in (
        classifiers,
        perceptual,
        segmentation,
        restoration,
        text,
        explanations,
        patterns,
    )
    for case in part.CASES
}
