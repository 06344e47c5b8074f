"""The page of HTML that has everything of the records."""

from __future__ import annotations

import html.parser
import re

import pytest

from benchmarks import page as one_page
from benchmarks import report
from tests.support.records import MODELS, models_record, record
from tests.support.report import PAGES, page_of, put


class Page(html.parser.HTMLParser):
    """What a page asks for from elsewhere, its words, and whether its elements are closed."""

    EMPTY = ("meta", "br", "path", "use", "rect", "image", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.asked.append(f"{tag} {name}={value}")
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_has_everything_and_needs_nothing_else(root) -> None:
    first = record()
    first["rows"][0]["title"] = "A <b>bold</b> & title"
    put(root, "a.json", first)
    put(root, "b.json", record(cpu="Another CPU"))
    put(root, "models-a.json", models_record(MODELS))
    text = page_of(root)
    page = Page()
    page.feed(text)
    assert page.open == [] and page.asked == []
    assert "url(http" not in text and "@import" not in text
    assert text.count("<svg") == 15 and "currentColor" in text and "prefers-color-scheme" in text
    assert "A <b>bold</b> & title" in page.words
    for found in first["rows"]:
        assert found["command"] in page.words
    for words in (
        "Invented CPU",
        "Another CPU",
        "Roofline",
        "pip install ncnn",
        "25 %",
        "lpips.raises",
    ):
        assert words in page.words
    assert "Not measured yet" in page.words  # of GPUs
    ids = re.findall(r' id="(m\d[^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert page_of(root) == text


def test_growth_is_drawn_where_it_was_measured(root) -> None:
    put(root, "a.json", record())
    page = page_of(root)
    assert "Time against batch size" in page and "Time against image side" not in page


def test_the_report_writes_the_page_where_one_asks_and_nowhere_else(root, tmp_path) -> None:
    put(root, "a.json", record())
    report.main(["--root", str(root)])
    assert not list(root.rglob("*.html"))
    report.main(["--root", str(root), "--check", "--page", str(tmp_path / "one.html")])
    assert (tmp_path / "one.html").read_text(encoding="utf-8") == page_of(root)


def test_a_stale_table_ends_a_check_before_the_page(root, tmp_path) -> None:
    put(root, "a.json", record())
    with pytest.raises(SystemExit, match="not what the records say"):
        report.main(["--root", str(root), "--check", "--page", str(tmp_path / "one.html")])
    assert not (tmp_path / "one.html").exists()
    folder = root / "docs" / "performance"
    assert (folder / "networks.md").read_text(encoding="utf-8") == PAGES["networks"]


def test_a_page_that_cannot_be_written_is_named(root, tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"nowhere/one\.html can't be written \(No such file"):
        report.main(["--root", str(root), "--page", str(tmp_path / "nowhere" / "one.html")])


def test_a_file_that_is_no_record_ends_the_page(root) -> None:
    put(root, "models-bad.json", {"options": {}})
    with pytest.raises(SystemExit, match=r"models-bad\.json isn't a record of benchmarks\.models "):
        one_page.of(root / "benchmarks" / "results")
