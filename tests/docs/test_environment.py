"""The table of environment variables has all of them, and no page knows others."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import AROUND, PAGES, cells, text
from vgg_fast.dispatch import environment


def test_every_environment_variable_is_in_the_table_and_no_other() -> None:
    named = [name for name, *_ in cells("docs/guide/environment.md", "| variable |")]
    assert named == list(environment.VARIABLES)


@pytest.mark.parametrize("page", [*PAGES, *AROUND])
def test_no_page_mentions_another(page) -> None:
    mentioned = set(re.findall(r"\bVGG_FAST_[A-Z_]+\b", text(page)))
    assert mentioned <= set(environment.VARIABLES)
