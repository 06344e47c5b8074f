"""What is built, what this machine can run, and which kernel each layer gets.

``python -m vgg_fast.info`` prints it as tables, ``python -m vgg_fast.info --json`` as JSON: paste
either into a bug report. ``--plan N C H W K`` shows how the CPU kernels compute one convolution,
``--gpu sm_90`` what every layer of the seed network gets on such a GPU, which needn't be here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from vgg_fast import _extension, backends, cpu
from vgg_fast.dispatch import choices, registry
from vgg_fast.layers import Conv3x3ReLUPool
from vgg_fast.models import PRESETS, VGG

KERNELS = {"cpp": "C++", choices.HOPPER: "C++, sm_90a", "triton": "Triton", "reference": "PyTorch"}

ENVIRONMENT = {
    "VGG_FAST_BACKEND": "the backend: auto, cpp, triton or reference (PyTorch; cuDNN on a GPU)",
    "VGG_FAST_CPU": "the CPU instruction set: amx, avx512, avx2 or generic",
    "VGG_FAST_ALGORITHM": "the CPU algorithm: " + ", ".join(cpu.ALGORITHMS),
    "VGG_FAST_WORKSPACE": "MiB that a call on the CPU may take beside its tensors",
    "VGG_FAST_WEIGHT_CACHE": "MiB of transformed weights that the CPU kernels keep; 0: none",
    "VGG_FAST_GPU": "the CUDA C++ kernels: sm_80, or sm_90a for Hopper's own, in bf16 and fp16",
    "VGG_FAST_AUTOTUNE": "seconds that a process tunes Triton kernels at most, 20; 0: never",
    "VGG_FAST_CHOICES": "a file of rows that stand before those of choices.json",
    "VGG_FAST_CUDA": "build: 0 or 1, never or always build the CUDA C++ kernels",
    "TORCH_CUDA_ARCH_LIST": "build: the GPUs to compile for",
    "CUDA_HOME": "build: the CUDA toolkit",
    "CUDA_VISIBLE_DEVICES": "the GPUs that this process sees",
    "OMP_NUM_THREADS": "CPU threads",
    "TRITON_INTERPRET": "1 runs the Triton kernels on CPU tensors, slowly",
}


@dataclass
class Options:
    """What is built, what this machine can run, and which kernel each layer gets."""

    json: bool = False
    """Print JSON instead of tables."""

    plan: tuple[int, int, int, int, int] | None = None
    """Only print how the CPU kernels compute a convolution of N images of C channels and H × W
    pixels to K channels: N C H W K."""

    gpu: Literal["sm_80", "sm_90"] | None = None
    """Only print which backend and which of Triton's tiles the seed network's layers get on a GPU
    of compute capability 9.0, or on another from 8.0 on. "C++, sm_90a" are the CUDA C++ kernels
    with Hopper's own. VGG_FAST_BACKEND forces one: triton, cpp (VGG_FAST_GPU says which of the
    two), or reference, which is cuDNN there."""

    batch: int = 256
    """Of the table for a GPU."""

    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    """Of the plan, float32 if not given, or of the table for a GPU, bfloat16 if not given."""

    threads: int | None = None
    """Of the plan; as many as torch uses if not given."""


def collect() -> dict[str, Any]:
    """Everything that this module reports, as plain values that JSON can hold."""
    return {
        "versions": _versions(),
        "built": _built(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "backend": backends.get(),
        "layers": _layers(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def _versions() -> dict[str, str | None]:
    packages = ("vgg_fast", "torch", "torchvision", "triton", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _built() -> dict[str, Any]:
    facts: dict[str, Any] = {"_C": _extension.LIBRARY.name}
    problem = _extension.cuda_library_problem()
    facts["_C_cuda"] = problem or _extension.CUDA_LIBRARY.name
    try:
        from vgg_fast import _bindings
    except ImportError as error:
        return {**facts, "_bindings": f"doesn't load: {error}"}
    return {**facts, **_bindings.build_facts()}


def _cpu() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    try:
        from vgg_fast import _bindings

        facts["instruction sets"] = _bindings.cpu_instruction_sets()
        facts["chosen"] = _bindings.cpu_instruction_set()
        facts["frozen weights"] = cpu.frozen_weights()
    except (ImportError, RuntimeError) as error:
        facts["chosen"] = f"none: {error}"
    return facts


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "compute capability": f"{properties.major}.{properties.minor}",
                "memory, GiB": round(properties.total_memory / 2**30, 1),
            }
        )
    return gpus


def _layers() -> list[dict[str, Any]]:
    """The kernel of each fused layer of the seed network, forward and backward."""
    keys = ["CPU"] + ["CUDA"] * torch.cuda.is_available()
    rows: list[dict[str, Any]] = []
    for name, operator, channels, outputs, size in _seed_layers():
        row: dict[str, Any] = {"layer": name, "operator": operator}
        row["shape"] = f"{channels}→{outputs} at {size}²"
        row["kernels"] = {key: _kernels(operator, key, channels, outputs, size) for key in keys}
        plans = cpu.plan(1, channels, size, size, outputs)
        row["cpu algorithms"] = {work: plan["algorithm"] for work, plan in plans.items()}
        rows.append(row)
    return rows


def _seed_layers() -> Iterator[tuple[str, str, int, int, int]]:
    """Name, operator, input channels, output channels and side of each fused layer."""
    options = PRESETS["seed"]
    size = options["image_size"]
    for name, layer in VGG(**options, device="meta").named_modules():
        operator = _operator_of(layer)
        if operator is None:
            continue
        yield name, operator, layer.in_channels, layer.out_channels, size
        if isinstance(layer, Conv3x3ReLUPool):
            size //= 2


def on_gpu(family: str, batch: int, dtype: torch.dtype) -> list[dict[str, str]]:
    """The backend and the tile of each layer of the seed network on a GPU of ``family``.

    A forced backend is everyone's; "auto" asks the table, as if the C++ kernels were built. fp32 is
    multiplied as torch's switches say. Each row says how its backend and tile were found.
    """
    from vgg_fast.dispatch import tiles

    kind = tiles.kind(dtype, tiles.precision(dtype))
    rows = []
    for layer, operator, c, k, size in _seed_layers():
        first = c <= 3 and kind != "float64"
        for work in ("forward", "backward"):
            name = operator if work == "forward" else f"{operator}_backward"
            backend, origin = backends.get(), "forced"
            if backend == "auto":
                shape = choices.Layer(name, kind, batch, c, size, size, k)
                choice = choices.for_layer(shape, family)
                backend, origin = (choice.backend, choice.origin) if choice else ("reference", "")
            kernels = {
                "forward": ("direct",) if first else ("fprop",),
                "backward": ("direct_wgrad",) if first else ("dgrad", "wgrad"),
            }[work]
            for kernel in kernels:
                channels = (k, c) if kernel == "dgrad" else (c, k)
                pool = operator.endswith("pool") and kernel in ("fprop", "direct", "direct_wgrad")
                call = tiles.Call(kernel, kind, batch, size, size, *channels, pool)
                row = tiles.find(tiles.shipped(), family, call)
                rows.append(
                    {
                        "layer": layer,
                        "shape": f"{c}→{k} at {size}²",
                        "kernel": kernel,
                        "backend": _label(backend, "CUDA"),
                        "backend's origin": origin,
                        "Triton's tile": str(row.tile) if row else "",
                        "tile's origin": row.origin if row else "",
                    }
                )
    return rows


def _operator_of(layer: torch.nn.Module) -> str | None:
    names = {"Conv3x3ReLU": "conv3x3_relu", "Conv3x3ReLUPool": "conv3x3_relu_pool"}
    return names.get(type(layer).__name__)


def _kernels(operator: str, key: str, channels: int, outputs: int, size: int) -> dict[str, str]:
    image = torch.empty(1, channels, size, size, device="meta")
    weight = torch.empty(outputs, channels, 3, 3, device="meta")
    return {
        "forward": _kernel(operator, key, image, weight),
        "backward": _kernel(f"{operator}_backward", key, image, image, weight),
    }


def _kernel(operator: str, key: str, *args: Any) -> str:
    try:
        return _label(registry.kernel_for(operator, key, *args)[0], key)
    except RuntimeError as error:
        return f"none: {error}"


def _label(backend: str, key: str) -> str:
    """What computes, for people."""
    return "cuDNN" if (backend, key) == ("reference", "CUDA") else KERNELS[backend]


def _print_tables(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(title: str, rows: dict[str, Any]) -> None:
        table = Table(title=title, show_header=False, title_justify="left", min_width=60)
        for name, value in rows.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            table.add_row(name, "-" if value in (None, "", []) else text)
        console.print(table, markup=False)

    show("Versions", facts["versions"])
    show("Built", facts["built"])
    show("CPU", facts["cpu"])
    if not facts["gpus"]:
        show("GPU", {"none": "torch sees no GPU"})
    for index, gpu in enumerate(facts["gpus"]):
        show(f"GPU {index}", gpu)

    keys = list(facts["layers"][0]["kernels"])
    title = f"Seed network, one image, backend {facts['backend']!r}"
    table = Table(title=title, title_justify="left")
    for column in ["layer", "shape", *keys, *facts["layers"][0]["cpu algorithms"]]:
        table.add_column(column)
    for row in facts["layers"]:
        kernels = [" / ".join(dict.fromkeys(row["kernels"][key].values())) for key in keys]
        algorithms = row["cpu algorithms"].values()
        table.add_row(row["layer"], row["shape"], *kernels, *algorithms)
    table.caption = "How the C++ kernels compute on the CPU: the last three columns."
    console.print(table, markup=False)
    show(
        "Environment",
        {
            f"{name}={'' if value is None else value}": ENVIRONMENT[name]
            for name, value in facts["environment"].items()
        },
    )


def _print_plan(plans: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *plans)
    facts = {fact: None for plan in plans.values() for fact in plan}  # in order, each once
    for fact in facts:
        table.add_row(fact, *(str(plan.get(fact, "")) for plan in plans.values()))
    Console().print(table)


def _print_rows(rows: list[dict[str, str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    origins = [name for name in rows[0] if name.endswith("origin")]
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        if column not in origins:
            table.add_column(column)
    for row in rows:
        table.add_row(*(value for name, value in row.items() if name not in origins))
    console = Console()
    console.print(table, markup=False)
    for origin in origins:
        for text in dict.fromkeys(row[origin] for row in rows):
            console.print(f"{origin}: {text}", markup=False)


def main(arguments: list[str] | None = None) -> None:
    """The command ``python -m vgg_fast.info``."""
    import tyro

    options = tyro.cli(Options, prog="python -m vgg_fast.info", args=arguments)
    if options.gpu is not None:
        table = on_gpu(options.gpu, options.batch, getattr(torch, options.dtype or "bfloat16"))
        facts: dict[str, Any] = {"gpu": table}
    elif options.plan is not None:
        try:
            dtype = getattr(torch, options.dtype or "float32")
            plans = cpu.plan(*options.plan, dtype=dtype, threads=options.threads)
        except ValueError as error:
            raise SystemExit(f"python -m vgg_fast.info: {error}") from error
        facts = {"plan": plans}
    else:
        facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif options.gpu is not None:
        title = f"Seed network on {options.gpu}, {options.batch} images, backend {backends.get()!r}"
        _print_rows(facts["gpu"], title)
    elif options.plan is not None:
        _print_plan(facts["plan"])
    else:
        _print_tables(facts)


if __name__ == "__main__":
    main()
