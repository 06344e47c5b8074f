"""Links lead to files that exist, and to headings that are there."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import (
    AROUND,
    MADE_WITH_THE_SITE,
    PAGES,
    ROOT,
    anchors,
    inline_code,
    links,
)


@pytest.mark.parametrize("page", [*PAGES, *AROUND])
def test_the_links_resolve(page) -> None:
    for path, anchor in links(page):
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if found in MADE_WITH_THE_SITE:
            continue
        assert found.exists(), f"{page} links to {path}"
        assert found.is_relative_to(ROOT), f"{page} links to {path}, out of the repository"
        if anchor and found.suffix == ".md":
            known = anchors(found.relative_to(ROOT).as_posix())
            assert anchor in known, f"{page} links to {path}#{anchor}"


def written_by_the_page() -> tuple[str, ...]:
    """The files of an operator that isn't in the package."""
    names = ("csrc/cpu/ops/{}.cpp", "csrc/cuda/ops/{}.cpp", "tests/ops/test_{}.py")
    rooms = ("vgg_fast/ops/{}.py", "vgg_fast/triton/{}.py")
    made = (name.format("avg_pool2x2") for name in (*names, *rooms))
    return (*made, "csrc/cpu/algorithms/average.inl")


@pytest.mark.parametrize("page", [*PAGES, *AROUND])
def test_the_files_that_are_named_exist(page) -> None:
    named = re.compile(r"(?:vgg_fast|csrc|tests|benchmarks|docs|examples)/[\w./]*\w")
    for name in filter(named.fullmatch, inline_code(page)):
        if page == "docs/contributing/new-operator.md" and name in written_by_the_page():
            continue
        is_made = name.startswith("examples/out") or ROOT / name in MADE_WITH_THE_SITE
        assert is_made or (ROOT / name).exists(), f"{page} names {name}"
