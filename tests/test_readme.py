"""What README.md claims: its code runs, and its commands, options, files and variables exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vgg_fast import info

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[-1])
def test_the_code_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_code_was_found():
    assert len(PYTHON) >= 4


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", COMMANDS, re.MULTILINE))
    assert {"train", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


def test_every_option_of_the_training_program_exists():
    run = [sys.executable, "-m", "vgg_fast.train", "--help"]
    described = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    training = README[README.index("## Training") : README.index("## Which kernel runs")]
    for option in set(re.findall(r"--[a-z][a-z-]+", training)) - {"--help"}:
        assert option in described, option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link


def test_every_variable_of_the_package_is_explained():
    named = set(re.findall(r"`(VGG_FAST_\w+?)(?:=\w+)?`", README))
    assert named == {name for name in info.ENVIRONMENT if name.startswith("VGG_FAST_")}


def test_the_tables_are_those_of_the_records():
    run = [sys.executable, "-m", "benchmarks.report", "--check"]
    printed = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=False)
    assert printed.returncode == 0, printed.stderr
