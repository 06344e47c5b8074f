"""The reference has every public name, and none that doesn't exist."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import vgg_fast
from tests.support.pages import DOCS

PUBLIC = ("backends", "cpu", "features", "functional", "layers", "models")
PAGES = sorted((DOCS / "reference").glob("*.md"))
DOCUMENTED = {
    name
    for page in PAGES
    for name in re.findall(
        r"^\.\. auto(?:function|class|data):: (\S+)$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}


def found(name: str) -> object:
    """What a dotted name means."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def names() -> list[str]:
    top = [name for name in vgg_fast.__all__ if name not in (*PUBLIC, "__version__")]
    below = [f"{room}.{name}" for room in PUBLIC for name in getattr(vgg_fast, room).__all__]
    return [*(f"vgg_fast.{name}" for name in [*top, *below])]


@pytest.mark.parametrize("name", names())
def test_every_public_name_is_in_the_reference(name) -> None:
    # One of the package itself may be documented there alone, and one of a room as the package's.
    short = f"vgg_fast.{name.rpartition('.')[2]}"
    assert name in DOCUMENTED or (short in DOCUMENTED and found(short) is found(name))


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_what_the_reference_has_exists_and_has_a_docstring(name) -> None:
    thing = found(name)
    assert "._" not in name
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing)
