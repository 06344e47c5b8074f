"""Every page is in the site's table of contents, once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from tests.support.pages import OF_THE_SITE, fences, text


def entries() -> Counter[str]:
    found: Counter[str] = Counter()
    for page in OF_THE_SITE:
        folder = PurePosixPath(page).parent
        for name, listed in fences(page):
            if name == "{toctree}":
                names = [line for line in listed.splitlines() if line and not line.startswith(":")]
                found.update(f"{folder / entry}.md" for entry in names)
    return found


def test_every_page_is_listed_once_and_exists() -> None:
    assert entries() == Counter(set(OF_THE_SITE) - {"docs/index.md"})


def test_every_page_has_one_title() -> None:
    for page in set(OF_THE_SITE) - {"docs/changelog.md"}:  # it includes another file's
        outside = re.sub(r"^(`{3,}).*?^\1$", "", text(page), flags=re.MULTILINE | re.DOTALL)
        titles = re.findall(r"^# .+$", outside, re.MULTILINE)
        assert len(titles) == 1 and text(page).startswith(titles[0]), page
