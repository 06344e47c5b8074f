"""The backend of ``torch.compile(model, backend="vgg_fast")``.

It puts this package's operators into the graph that Dynamo finds (``rewrite.py``), for inference
and training, and hands the graph to Inductor. The entry point in pyproject.toml makes the name
known, so nothing needs to be imported.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, GraphModule

from vgg_fast.fusing.rewrite import rewrite

__all__ = ["Pass", "backend"]

_OPTION = "pre_grad_custom_pass"


def backend(
    graph: GraphModule,
    example_inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile by Inductor what Dynamo found, with this package's operators in it.

    ``torch.compile`` calls it.

    Args:
        graph: of a part of the model.
        example_inputs: of that part.
        mode: one of Inductor's, as for ``torch.compile``.
        options: Inductor's, as for ``torch.compile``. A pass of one's own in
            ``pre_grad_custom_pass`` runs before this package's.

    Raises:
        RuntimeError: Inductor knows no such mode or option.

    >>> compiled = torch.compile(model, backend="vgg_fast", mode="reduce-overhead")
    """
    from torch._inductor import config

    compiler = torch._TorchCompileInductorWrapper(mode, options, None)
    first = compiler.config.get(_OPTION, config.pre_grad_custom_pass)
    # Where Inductor is asked to leave a graph as it is before differentiation, by mode="lite".
    if not compiler.config.get("use_pre_grad_passes", True):
        rewrite(graph.graph)
        graph.recompile()
    return compiler(graph, example_inputs, config_patches={_OPTION: Pass(first)})


class Pass(CustomGraphPass):
    """The rewriting as a pass of Inductor's, for a ``torch.compile`` with another backend.

    >>> torch.compile(model, options={"pre_grad_custom_pass": vgg_fast.fusing.dynamo.Pass()})

    Args:
        first: passes that run before, as Inductor's option takes them.
    """

    def __init__(self, first: Any = None) -> None:
        if first is None:
            first = ()
        self.first = tuple(first) if isinstance(first, (list, tuple)) else (first,)

    def __call__(self, graph: Graph) -> None:
        """Rewrite ``graph`` in place."""
        for run in self.first:
            run(graph)
        rewrite(graph)

    def uuid(self) -> Any | None:
        """What Inductor's caches know compiled programs by: all that decides about results.

        That is this package's version and its Python source, formulas of gradients included. None,
        so that nothing is cached, if one of the passes before has none.
        """
        before = [run.uuid() if isinstance(run, CustomGraphPass) else None for run in self.first]
        return None if None in before else (*before, _source())


@functools.cache
def _source() -> str:
    try:
        known = version("vgg_fast")
    except PackageNotFoundError:
        known = "unknown"
    found = hashlib.sha256(known.encode())
    package = Path(__file__).parents[1]
    for path in sorted([*package.glob("fusing/*.py"), *package.glob("ops/*.py")]):
        found.update(path.read_bytes())
    return f"vgg_fast {known} {found.hexdigest()}"
