"""The Python blocks of README.md and of every page run, each by itself, and say what is true."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import pytest
import torch

import vgg_fast
from tests.support.pages import PAGES, blocks, text

BLOCKS = {
    f"{page}-{number}": (page, code)
    for page in PAGES
    for number, code in enumerate(blocks("python", page), 1)
}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """What an example may set, put back."""
    backend, settings, threads = (
        vgg_fast.backends.get(),
        vgg_fast.cpu.get(),
        torch.get_num_threads(),
    )
    yield
    if vgg_fast.backends.get() != backend:
        vgg_fast.backends.set(backend)
    vgg_fast.cpu.set(*settings)
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(("page", "code"), BLOCKS.values(), ids=BLOCKS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_the_examples_run(page, code) -> None:
    if ">>>" not in code:
        exec(compile(code, page, "exec"), {"__name__": "example"})
        return
    example = doctest.DocTestParser().get_doctest(code, {"__name__": "example"}, page, page, 0)
    assert len(example.examples) > 1
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_readme_has_examples() -> None:
    assert len(blocks("python", "README.md")) >= 3


@pytest.mark.parametrize("page", PAGES)
def test_no_example_hides_from_the_test(page) -> None:
    # In a list a fence is indented, and others than "python" are not run.
    assert " ```python" not in text(page)
    assert blocks("pycon", page) == blocks("python3", page) == []
    assert page == "docs/contributing/new-operator.md" or blocks("py", page) == []
