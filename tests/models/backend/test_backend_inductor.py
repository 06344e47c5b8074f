"""torch.compile(backend="vgg_fast") the whole way: Inductor, its options, its caches, the name."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

import vgg_fast
from tests.support.numerics import relative_error
from tests.support.rewritten import image, ran_in, wave
from vgg_fast.fusing import dynamo, rewrite

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# ----------------------------------------------------------------------------------------- Inductor


def inductor_counts(monkeypatch) -> Counter[str]:
    """What the backend's pass replaces from now on."""
    counts: Counter[str] = Counter()

    def count(graph):
        groups = rewrite.rewrite(graph)
        counts.update(group.operator for group in groups if group.operator is not None)
        return groups

    monkeypatch.setattr(dynamo, "rewrite", count)
    return counts


def small() -> nn.Module:
    return ran_in(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        )
    )  # fmt: skip


def test_inductor_trains(monkeypatch) -> None:
    counts = inductor_counts(monkeypatch)
    model = small()
    exact = copy.deepcopy(model).double()
    compiled = torch.compile(model, backend=dynamo.backend, fullgraph=True)
    found, expected = compiled(image()), exact(image().double())
    assert counts == {"conv3x3": 1, "conv3x3_relu": 1}
    assert found.stride() == expected.stride()
    assert relative_error(found, expected) < 1e-4
    wave(found).backward()
    wave(expected).backward()
    for a, b in zip(model.parameters(), exact.parameters(), strict=True):
        assert b.grad.norm() < 1e-6 or relative_error(a.grad, b.grad) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "reduce-overhead"},
        {"options": {"freezing": True}},
        {"mode": "lite"},
    ],
    ids=["mode", "options", "lite"],
)
def test_inductor_takes_modes_and_options(monkeypatch, options) -> None:
    counts = inductor_counts(monkeypatch)
    model = small().eval()
    with torch.no_grad():
        compiled = torch.compile(model, backend=dynamo.backend, **options)
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-5)
    assert counts == {"conv3x3_relu_pool": 1, "conv3x3_relu": 1}


def test_an_unknown_option_is_refused() -> None:
    compiled = torch.compile(small(), backend=dynamo.backend, options={"no_such_option": 1})
    with pytest.raises(Exception, match="no_such_option"):
        compiled(image())


def test_the_pass_serves_inductors_own_backend(monkeypatch) -> None:
    counts = inductor_counts(monkeypatch)
    seen = []
    passes = dynamo.Pass(lambda graph: seen.append(graph))
    model = small().eval()
    compiled = torch.compile(model, options={"pre_grad_custom_pass": passes})
    with torch.no_grad():
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-5)
    assert counts["conv3x3_relu"] == 1 and seen


# ------------------------------------------------------------------------------- name and cache key


def test_the_cache_key_holds_version_and_source(monkeypatch) -> None:
    from torch._inductor.codecache import FxGraphHashDetails
    from torch._inductor.custom_graph_pass import CustomGraphPass

    key = dynamo.Pass().uuid()
    assert key == dynamo.Pass().uuid() and vgg_fast.__version__ in str(key)
    with torch._inductor.config.patch(pre_grad_custom_pass=dynamo.Pass()):
        details = FxGraphHashDetails(None, [], {}, [])
    assert key in (details.pre_grad_custom_pass, *(details.pre_grad_custom_pass or ()))

    class Other(CustomGraphPass):
        def __call__(self, graph):
            pass

        def uuid(self):
            return "other"

    assert dynamo.Pass(Other()).uuid() not in (None, key)
    assert dynamo.Pass(lambda graph: None).uuid() is None  # nothing would tell two of them apart
    dynamo._source.cache_clear()
    monkeypatch.setattr(dynamo, "version", lambda name: "another")
    assert dynamo.Pass().uuid() != key
    dynamo._source.cache_clear()


def test_the_name_needs_no_import() -> None:
    program = (
        "import torch, sys; from torch._dynamo.backends.registry import lookup_backend;"
        "assert 'vgg_fast' in torch._dynamo.list_backends(); assert 'vgg_fast' not in sys.modules;"
        "assert lookup_backend('vgg_fast').__module__ == 'vgg_fast.fusing.dynamo'"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
