"""explain(): what fuse() and the torch.compile backend make of a model, and why not of the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vgg_fast.fusing.convert import FusionReport, fuse
from vgg_fast.fusing.rewrite import Group, find, graphs_in
from vgg_fast.fusing.spellings import convolution

__all__ = ["CompiledLayer", "Explanation", "explain"]


@dataclass(frozen=True)
class CompiledLayer:
    """A convolution in one of the graphs that ``torch.compile`` makes of a model.

    Attributes:
        name: of its layer, or the line that calls it.
        operator: what becomes of it; None if it stays torch's.
        why: the reason that it stays, or that no more layers go with it. Completes "it ...".
    """

    name: str
    operator: str | None
    why: str | None


@dataclass
class Explanation:
    """What :func:`explain` found.

    Attributes:
        fused: the report of ``vgg_fast.fuse``; None if what is explained isn't an ``nn.Module``.
        compiled: every convolution that ``torch.compile(model, backend="vgg_fast")`` sees, in the
            order of the graphs.
        graphs: how many graphs that makes of the model.
        breaks: why it is more than one.
        there: how many operators of this package the model calls by itself.
    """

    fused: FusionReport | None
    compiled: list[CompiledLayer] = field(default_factory=list)
    graphs: int = 0
    breaks: list[str] = field(default_factory=list)
    there: int = 0

    def __str__(self) -> str:
        lines = []
        if self.fused is not None:
            changed, left = self.fused.changed, self.fused.left
            lines += [f"vgg_fast.fuse(model): {len(changed)} replaced, {len(left)} left"]
            lines += _table([*changed, *((name, f"left: it {why}") for name, why in left)])
        replaced = sum(layer.operator is not None for layer in self.compiled)
        lines += [
            f'torch.compile(model, backend="vgg_fast"): {replaced} of {len(self.compiled)} '
            f"convolutions replaced, in {self.graphs} graph{'' if self.graphs == 1 else 's'}"
        ]
        lines += _table(
            [
                (layer.name, layer.operator or "left", f"it {layer.why}" if layer.why else "")
                for layer in self.compiled
            ]
        )
        if self.there:
            lines += [f"  The model calls {self.there} operators of vgg_fast by itself."]
        lines += [f"  Graph break: {reason}" for reason in self.breaks]
        return "\n".join(lines)


def explain(model: Callable[..., Any], *inputs: Any, **kwargs: Any) -> Explanation:
    """What this package replaces in a model, what it leaves, and why: by both ways to use it.

    The model runs once, as it is, in the grad mode and under the autocast that the caller has set;
    its buffers and the random numbers are put back. Nothing is compiled, but what ``torch.compile``
    has compiled in this process is forgotten, as by ``torch._dynamo.explain``.

    Args:
        model: an ``nn.Module``, or a function, for which there is no ``fuse``.
        inputs: its arguments.
        kwargs: its keyword arguments.

    Raises:
        TypeError: the model was already made into TorchScript. What the model itself raises is
            raised again.

    >>> print(vgg_fast.explain(torchvision.models.resnet18().eval(), torch.rand(1, 3, 224, 224)))
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    report = fuse(model, return_report=True)[1] if isinstance(model, nn.Module) else None
    explanation = Explanation(report)
    names: dict[int, str] = {}
    if isinstance(model, nn.Module):
        names = {id(parameter): name for name, parameter in model.named_parameters()}

    def backend(graph: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        explanation.graphs += 1
        for inner in graphs_in(graph.graph):
            explanation.there += sum(
                str(node.target).startswith("vgg_fast.") for node in inner.nodes
            )
        groups = [group for inner in graphs_in(graph.graph) for group in find(inner)]
        found = [(group, _weight(group)) for group in groups]
        inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        first = True

        def call(*arguments: Any) -> Any:
            nonlocal first
            if first:  # the very Parameters come only now
                given = dict(zip((node.name for node in inputs), arguments, strict=True))
                for group, weight in found:
                    name = names.get(id(given.get(weight)), "").rpartition(".")[0]
                    explanation.compiled.append(_layer(group, name))
                first = False
            return graph.forward(*arguments)

        return call

    counted = torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
    before = dict(counted)
    try:
        with _undone(model):
            torch.compile(model, backend=backend)(*inputs, **kwargs)
    finally:
        torch._dynamo.reset()
    explanation.breaks = [
        " ".join(reason.partition("Hint:")[0].split())
        for reason, n in counted.items()
        if n > before.get(reason, 0)
    ]
    return explanation


def _weight(group: Group) -> str:
    """The name of the placeholder that is the convolution's weight."""
    call = convolution(group.convolution)
    assert call is not None
    return call.weight.name if isinstance(call.weight, Node) else ""


def _layer(group: Group, name: str) -> CompiledLayer:
    operator = group.operator
    if operator is not None and group.batch_norm is not None:
        operator += ", batch norm folded"
    return CompiledLayer(name or _place(group.convolution), operator, group.why)


def _place(node: Node) -> str:
    """The layer's name as Dynamo knows it, or the line of the model that calls it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack and "conv" in str(stack[-1][1]).lower():
        name = re.sub(r"^L\['\w+'\]\.?", "", str(stack[-1][0]))
        if name:
            return name
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return "{}:{}".format(*lines[-1]) if lines else node.name


@contextmanager
def _undone(model: Any) -> Iterator[None]:
    """Run a model once without a trace: its buffers and the random numbers as before."""
    tensors: list[Tensor] = list(model.buffers()) if isinstance(model, nn.Module) else []
    kept = [tensor.detach().clone() for tensor in tensors]
    devices = {t.device for t in tensors} | (
        {p.device for p in model.parameters()} if isinstance(model, nn.Module) else set()
    )
    with torch.random.fork_rng([device.index for device in devices if device.type == "cuda"]):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    if not torch.equal(tensor, before):
                        tensor.copy_(before)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return [f"  {line}".rstrip() for line in lines]
