"""Where the site sends a link that leads out of docs/."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest

from tests.support.pages import DOCS

pytest.importorskip("sphinx", reason="the site's extra [docs] isn't installed")


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "target", "leads_to"),
    [
        ("index", "../examples/README.md", "blob/main/examples/README.md"),
        ("index", "../examples/cpp", "tree/main/examples/cpp"),
        ("reference/index", "../../setup.py", "blob/main/setup.py"),
        ("index", "../README.md#train", "blob/main/README.md#train"),
        ("changelog", "LICENSE", "blob/main/LICENSE"),
    ],
)
def test_files_outside_are_in_the_repository(conf, page, target, leads_to) -> None:
    assert found(conf, page, target) == f"{conf.REPOSITORY}/{leads_to}"


def test_the_report_is_a_file_of_the_site(conf) -> None:
    assert found(conf, "index", "report.html") == "report.html"
    assert found(conf, "contributing/measuring", "../report.html") == "../report.html"


@pytest.mark.parametrize("target", ["limits.md", "reference/index.md", "no-such-page.md", "#start"])
def test_pages_and_what_is_missing_are_left_to_sphinx(conf, target) -> None:
    assert found(conf, "index", target) is None


def found(conf: ModuleType, page: str, target: str) -> str | None:
    environment = SimpleNamespace(doc2path=lambda name: str(DOCS / f"{name}.md"))
    node = {"refdoc": page, "reftarget": target, "refdomain": None}
    return conf._outside(SimpleNamespace(env=environment), node)
