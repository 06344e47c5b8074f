"""The package's metadata: one version, known classifiers, workflows and forms that are true."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import vgg_fast

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Source"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.name


def test_the_installed_version_is_pyprojects() -> None:
    try:
        installed = importlib.metadata.version("vgg_fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vgg_fast isn't installed: it runs from a source tree")
    assert installed == vgg_fast.__version__ == PROJECT["version"]


def test_no_other_file_sets_the_version() -> None:
    sources = [*ROOT.glob("*.py"), *(ROOT / "vgg_fast").rglob("*.py"), ROOT / "docs" / "conf.py"]
    for path in filter(Path.exists, sources):
        assert f'"{PROJECT["version"]}"' not in path.read_text(encoding="utf-8"), path


def test_the_citation_agrees() -> None:
    citation = read(ROOT / "CITATION.cff")
    required = {"cff-version", "message", "title", "authors"}  # by the format's schema 1.2.0
    assert required <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == REPOSITORY
    assert citation["authors"] == PROJECT["authors"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    versions = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (Unreleased|\d{4}-\d\d-\d\d)", heading)
        for heading in headings
        if heading != "[Unreleased]"
    ]
    assert all(versions), headings
    assert versions[0][1] == PROJECT["version"]
    assert all(version[2] != "Unreleased" for version in versions[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for version in versions:
        assert f"[{version[1]}]: {REPOSITORY}/releases/tag/v{version[1]}\n" in text


def test_the_classifiers_are_known() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["classifiers"]) <= known


def python_versions() -> list[str]:
    prefix = "Programming Language :: Python :: 3."
    return [f"3.{c.removeprefix(prefix)}" for c in PROJECT["classifiers"] if c.startswith(prefix)]


def test_the_classifiers_are_true() -> None:
    classifiers = PROJECT["classifiers"]
    assert len(classifiers) == len(set(classifiers))
    versions = python_versions()
    assert PROJECT["requires-python"] == f">={versions[0]}"
    first = int(versions[0].partition(".")[2])
    assert versions == [f"3.{first + i}" for i in range(len(versions))]
    assert "Typing :: Typed" in classifiers and (ROOT / "vgg_fast" / "py.typed").exists()
    # A license expression (PEP 639) stands for the classifiers, and setuptools refuses both.
    assert not any(classifier.startswith("License") for classifier in classifiers)


def test_the_links_are_the_repositorys() -> None:
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == PROJECT["urls"].keys()
    for url in PROJECT["urls"].values():
        assert url.startswith(REPOSITORY)
        _, _, file = url.partition("/main/")
        assert (ROOT / file).exists(), url


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_only_makes_targets_that_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", makefile, re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    lines = [line for step in steps(read(path)) for line in step.get("run", "").splitlines()]
    assert lines
    for line in lines:
        command = re.fullmatch(r"make ([a-z-]+)(?: [A-Z]+=(?:\S+|\"[^\"]*\"))*", line)
        assert command is not None, f"{path.name} runs {line}: leave it to a target of make"
        assert command[1] in targets, f"{path.name} makes {command[1]}, which the Makefile lacks"


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_is_complete_and_may_write_nothing(path: Path) -> None:
    workflow = read(path)
    assert {"name", "permissions", "jobs"} <= workflow.keys()
    assert workflow.keys() & {"on", True}  # YAML 1.1 reads on as true
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] <= 120
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_the_workflows_cover_lint_tests_documentation_and_wheels() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"tests", "docs", "wheels"}
    made = {
        step["run"].split()[1] for path in WORKFLOWS for step in steps(read(path)) if "run" in step
    }
    assert {"lint", "test", "docs", "linkcheck", "wheel", "try-wheel"} <= made


def test_the_tests_run_on_the_oldest_and_the_newest_python() -> None:
    tests = read(ROOT / ".github" / "workflows" / "tests.yml")
    versions = tests["jobs"]["tests"]["strategy"]["matrix"]["python-version"]
    known = python_versions()
    assert set(versions) <= set(known)
    assert (versions[0], versions[-1]) == (known[0], known[-1])


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_an_issue_form_is_one_that_github_shows(path: Path) -> None:
    form = read(path)
    assert form["name"] and form["description"] and form["body"]
    names = [field.get("id") for field in form["body"] if field["type"] != "markdown"]
    assert all(names) and len(names) == len(set(names))
    for field in form["body"]:
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        if field["type"] == "markdown":
            assert field["attributes"]["value"]
            continue
        assert isinstance(field["attributes"]["label"], str)
        assert field.get("validations", {"required": True}) == {"required": True}
        if field["type"] == "dropdown":  # yes and no without quotes are booleans, and refused
            assert all(isinstance(option, str) for option in field["attributes"]["options"])


def test_a_bug_report_asks_for_what_is_needed() -> None:
    required = {
        field["id"]: field["attributes"]["label"]
        for field in read(FORMS[0])["body"]
        if field.get("validations", {}).get("required")
    }
    assert {"snippet", "expected", "actual", "info"} <= required.keys()
    assert "`python -m vgg_fast.info`" in required["info"]


def test_reports_in_private_go_to_the_repository() -> None:
    private = f"{REPOSITORY}/security/advisories/new"
    config = read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")
    assert private in [link["url"] for link in config["contact_links"]]
    assert all(link.keys() == {"name", "url", "about"} for link in config["contact_links"])
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md"):
        assert private in (ROOT / name).read_text(encoding="utf-8")
