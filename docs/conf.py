"""The documentation site: `make docs` builds it from these Markdown files."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# What isn't written by hand: the report of the benchmarks, and what a program prints.
GENERATED = ROOT / "build" / "docs-generated"
EXTRA = GENERATED / "extra"  # goes into the site as it is
EXTRA.mkdir(parents=True, exist_ok=True)
REPOSITORY = "https://github.com/vgg-fast/vgg_fast"
BRANCH = "main"

sys.path.insert(0, str(ROOT))  # benchmarks, which nobody installs

project = "vgg_fast"
author = "vgg_fast contributors"
copyright = author
release = version = version_of("vgg_fast")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_static"]

myst_heading_anchors = 4  # as GitHub makes them
myst_links_external_new_tab = False

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
add_module_names = False

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"vgg_fast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = [str(EXTRA)]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": BRANCH,
    "source_directory": "docs/",
}

# The repository isn't public yet, and what is in it is checked by tests/docs.
linkcheck_ignore = [rf"{REPOSITORY}.*", r"http://(localhost|127\.0\.0\.1).*", r".*report\.html.*"]
linkcheck_timeout = 30
linkcheck_workers = 4


def generate(app: Sphinx) -> None:
    """Write what the pages show of the programs and of the records."""
    os.environ["COLUMNS"] = "80"  # how wide the programs print
    for name, program in _programs().items():
        _write(GENERATED / f"{name}-help.txt", _help(program))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*?## (.*)", makefile, re.MULTILINE)
    lines = (f"make {name:16}  {does}" for name, does in targets)
    _write(GENERATED / "make-help.txt", "\n".join(lines) + "\n")
    if app.builder.format == "html":
        from benchmarks import page  # here: only the site needs what it draws with

        _write(EXTRA / "report.html", page.of(ROOT / "benchmarks" / "results"))


def _programs() -> dict[str, Callable[[list[str]], Any]]:
    from vgg_fast import info
    from vgg_fast.train import program
    from vgg_fast.trained import demo, evaluate, export, predict

    trained = {"evaluate": evaluate, "predict": predict, "export": export, "demo": demo}
    of_trained = {name: module.main for name, module in trained.items()}
    return {"info": info.main, "train": program.main, **of_trained}


def _help(program: Callable[[list[str]], Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        program(["--help"])
    # A program's description comes in lines as long as its paragraphs.
    lines = [textwrap.fill(x, 80) if "│" not in x else x for x in printed.getvalue().splitlines()]
    if len(lines) < 5:
        raise RuntimeError(f"{program.__module__} printed no help")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    # What is the same keeps its date: Sphinx reads a page again when what it includes is newer.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def link_into_the_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files and folders that aren't pages lead to the repository, or to the report.

    In the Markdown they are relative, so that they work in a checkout and on GitHub too.
    """
    for node in [
        *doctree.findall(addnodes.pending_xref),
        *doctree.findall(addnodes.download_reference),
    ]:
        if node.get("reftype") == "myst":
            uri = _outside(app, node)
            if uri is not None:
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri))


def end_blocks_of_code(app: Sphinx, doctree: nodes.document) -> None:
    """Without the empty line that a doctest of Python's ends with, so that a fence doesn't."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext().rstrip()
        if len(block.children) == 1 and block.rawsource == block.astext():
            block.rawsource = text  # Sphinx highlights what both have in common
            block.children[0].parent = None
            block.children[:] = [nodes.Text(text)]
            block.children[0].parent = block


def _outside(app: Sphinx, node: Any) -> str | None:
    """Where a link leads that doesn't lead to a page; None if it does."""
    page = Path(app.env.doc2path(node["refdoc"]))
    target, _, anchor = node["reftarget"].partition("#")
    if node.get("refdomain") == "doc":  # a page's name: the path without its ending
        target, anchor = f"{target}.md", node.get("reftargetid") or ""
        found = Path(os.path.normpath(DOCS / target))
    elif not target:
        return None
    else:
        found = Path(os.path.normpath(page.parent / target))
    if found == DOCS / "report.html":
        return os.path.relpath(found, page.parent)
    if not found.exists() and page == DOCS / "changelog.md":
        found = Path(os.path.normpath(ROOT / target))  # the file that it includes lies there
    if found.suffix == ".md" and found.is_relative_to(DOCS):
        return None
    if not found.exists() or not found.is_relative_to(ROOT):
        return None  # Sphinx says so
    kind = "tree" if found.is_dir() else "blob"
    path = found.relative_to(ROOT).as_posix()
    return f"{REPOSITORY}/{kind}/{BRANCH}/{path}" + (f"#{anchor}" if anchor else "")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", generate)
    # Before Sphinx collects the files that pages offer for download.
    app.connect("doctree-read", link_into_the_repository, priority=100)
    app.connect("doctree-read", end_blocks_of_code)
    return {"parallel_read_safe": True}
