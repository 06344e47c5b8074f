"""Runs the rewriting of ``torch.compile(backend="vgg_fast")``, and compares with fp64.

Most tests rewrite Dynamo's graph and run it as it is: Inductor and a C++ compiler would take a
minute for what takes them a second.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.numerics import relative_error
from vgg_fast.fusing import rewrite


class Recorder:
    """A backend: rewrites the graph, counts this package's operators, and runs it as it is."""

    def __init__(self, compiler=None) -> None:
        self.compiler = compiler
        self.counts: Counter[str] = Counter()
        self.groups: list[rewrite.Group] = []
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.groups += rewrite.rewrite(graph.graph)
        graph.graph.lint()
        graph.recompile()
        for inner in rewrite.graphs_in(graph.graph):
            inner.owning_module.recompile()
            names = [str(node.target) for node in inner.nodes]
            self.counts.update(n.split(".")[1] for n in names if n.startswith("vgg_fast."))
        self.graphs.append(graph)
        return graph.forward if self.compiler is None else self.compiler(graph, inputs)

    def calls(self, name: str) -> int:
        """How often the graphs call a method or function of this name."""
        return sum(
            str(getattr(node.target, "__name__", node.target)) == name
            for graph in self.graphs
            for node in graph.graph.nodes
        )


def run(
    model: nn.Module, input: Tensor, tolerance: float = 1e-4, compiler=None, **options
) -> Recorder:
    """Compile, and compare results, strides and gradients with the model's own, in fp64.

    They are to be within ``tolerance`` of what fp64 gives, and where the model's own lose more
    digits than that, no further off than a few times those.
    """
    recorder = Recorder(compiler)
    compiled = torch.compile(model, backend=recorder, **options)
    model.zero_grad()
    exact = copy.deepcopy(model).double()
    plain = copy.deepcopy(model)
    input = input.detach()
    leaves = [input.clone().requires_grad_(torch.is_grad_enabled()) for _ in range(3)]
    found, eager = outputs_of(compiled(leaves[0])), outputs_of(plain(leaves[1]))
    expected = outputs_of(exact(leaves[2].double()))
    for a, b, c in zip(found, eager, expected, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert a.requires_grad == b.requires_grad
        assert relative_error(a, c) < tolerance + 4 * relative_error(b, c)
    if not torch.is_grad_enabled():
        return recorder
    if not any(output.requires_grad for output in found):
        return recorder
    for outputs in (found, eager, expected):
        sum(wave(o) for o in outputs if o.requires_grad).backward()
    triples = [("input", *leaves)]
    parameters = (m.parameters() for m in (model, plain, exact))
    triples += zip(dict(model.named_parameters()), *parameters, strict=True)
    for name, a, b, c in triples:
        if c.grad is None:
            assert a.grad is None, name
        elif c.grad.norm() > 1e-6:  # a bias before a batch norm in training mode has none
            bound = tolerance + 4 * relative_error(b.grad, c.grad)
            assert relative_error(a.grad, c.grad) < bound, name
    for (name, a), b in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    return recorder


def outputs_of(result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def wave(tensor: Tensor) -> Tensor:
    """A loss in which every element has a weight of its own."""
    steps = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
    return (tensor * steps.cos().to(tensor.dtype)).sum()


def image(*shape: int) -> Tensor:
    shape = shape or (2, 3, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ran_in(model: nn.Module) -> nn.Module:
    """With statistics and scales that a batch norm could have after training."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


class Calls(nn.Module):
    """A function of (model, input) with three convolutions and a batch norm to call."""

    def __init__(self, function, **options) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3, padding=1, **options)
        self.more = nn.Conv2d(4, 4, 3, padding=1, **options)
        self.wide = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(4)
        ran_in(self)

    def forward(self, input: Tensor):
        return self.function(self, input)


def norm_forward(m, x):
    return F.max_pool2d(F.relu(m.norm(m.conv(x))), 2)
