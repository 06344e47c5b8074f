"""What is built, what this machine can run, and which kernel each layer gets.

``python -m vgg_fast.info`` prints it as tables, ``python -m vgg_fast.info --json`` as JSON: paste
either into a bug report. ``--plan N C H W K`` shows how the CPU kernels compute one convolution,
``--gpu sm_90`` what every layer of the seed network gets on such a GPU, in this machine or not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vgg_fast import _extension, backends, cpu
from vgg_fast.dispatch import architectures, choices, environment, policy, route, tiles
from vgg_fast.layers.groups import Group, group
from vgg_fast.models import SEED_ARCH, VGG

KERNELS = {"cpp": "C++", choices.HOPPER: "C++, sm_90a", "triton": "Triton", "reference": "PyTorch"}
DTYPES = ("float32", "bfloat16", "float16", "float64")
SIDE = 224  # of the seed network's images


def collect() -> dict[str, Any]:
    """Everything that this module reports, as plain values that JSON can hold."""
    return {
        "versions": _versions(),
        "built": _built(),
        "cpu": _cpu(),
        "gpus": _gpus(),
        "backend": backends.get(),
        "layers": _layers(),
        "environment": environment.values(),
    }


def _versions() -> dict[str, str | None]:
    packages = ("torch", "torchvision", "triton", "numpy")
    return {
        "vgg_fast": _version("vgg_fast") or "unknown",  # a source tree that isn't installed
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
    facts["_C_cuda"] = problem or str(_extension.cuda_library())
    facts |= _extension.cuda_facts()
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
        "waiting": _waiting(),
    }
    try:
        from vgg_fast import _bindings

        facts["instruction sets"] = _bindings.cpu_instruction_sets()
        facts["chosen"] = _bindings.cpu_instruction_set()
        facts["frozen weights"] = cpu.frozen_weights()
    except (ImportError, RuntimeError) as error:
        facts["chosen"] = f"none: {error}"
    return facts


def _waiting() -> str:
    """How threads wait for each other; what that means beside other programs."""
    if "OpenMP" not in torch.__config__.parallel_info():
        return "not by OpenMP"
    return environment.waiting() or (
        "by spinning, which is fastest where nothing else runs; where other programs share the "
        "cores, a step can take many times as long: set OMP_WAIT_POLICY=passive there"
    )


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
                "C++ kernels": architectures.why_not(index) or _built_for(),
            }
        )
    return gpus


def _built_for() -> str:
    """What the CUDA C++ kernels hold code for."""
    listed = _extension.cuda_facts().get("cuda architectures")
    return f"built for {listed}" if listed else "not there"


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
    side = SIDE
    for name, block in VGG(SEED_ARCH, image_size=SIDE, device="meta").named_children():
        if not isinstance(block, nn.Sequential):
            continue
        index = {layer: key for key, layer in block.named_children()}
        for found in group(block):
            assert isinstance(found, Group)  # these blocks have nothing else
            conv = found.conv
            layer = f"{name}.{index[conv]}"
            yield layer, found.operator, conv.in_channels, conv.out_channels, side
            side //= 2 if found.operator.endswith("pool") else 1


def on_gpu(family: str, batch: int, dtype: torch.dtype) -> list[dict[str, str]]:
    """The backend and the tile of each layer of the seed network on a GPU of ``family``.

    A forced backend is everyone's; "auto" asks the table, as if the C++ kernels were built. fp32 is
    multiplied as torch's switches say. Each row says how its backend and tile were found.
    """
    arithmetic = policy.arithmetic(dtype)
    rows = []
    for name, operator, c, k, side in _seed_layers():
        for work in (operator, f"{operator}_backward"):
            layer = choices.Layer(work, arithmetic, batch, c, side, side, k)
            backend, origin = route.planned(layer, family)
            for call in tiles.calls_of(*layer):
                row = tiles.find(tiles.shipped(), family, call)
                rows.append(
                    {
                        "layer": name,
                        "shape": f"{c}→{k} at {side}²",
                        "kernel": call.kernel,
                        "backend": _label(backend, "CUDA"),
                        "backend's origin": origin,
                        "Triton's tile": str(row.tile) if row else "",
                        "tile's origin": row.origin if row else "",
                    }
                )
    return rows


def _kernels(operator: str, key: str, channels: int, outputs: int, size: int) -> dict[str, str]:
    image = torch.empty(1, channels, size, size, device="meta")
    weight = torch.empty(outputs, channels, 3, 3, device="meta")
    return {
        "forward": _kernel(operator, key, image, weight),
        "backward": _kernel(f"{operator}_backward", key, image, image, weight),
    }


def _kernel(operator: str, key: str, *args: Any) -> str:
    try:
        return _label(route.kernel_for(operator, key, *args)[0], key)
    except RuntimeError as error:
        return f"none: {error}"


def _label(backend: str, key: str) -> str:
    """What computes, for people."""
    return "cuDNN" if (backend, key) == ("reference", "CUDA") else KERNELS[backend]


# --------------------------------------------------------------------------------------- printing


def _print_table(title: str, rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Columns as wide as their widest cell, below a title."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    print(title, *lines, *([caption] if caption else []), sep="\n", end="\n\n")


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    rows = []
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        rows.append(("  " + name, "-" if value in (None, "", []) else text))
    _print_table(title, rows)


def _print_everything(facts: dict[str, Any]) -> None:
    _print_facts("Versions", facts["versions"])
    _print_facts("Built", facts["built"])
    _print_facts("CPU", facts["cpu"])
    if not facts["gpus"]:
        _print_facts("GPU", {"none": "torch sees no GPU"})
    for index, gpu in enumerate(facts["gpus"]):
        _print_facts(f"GPU {index}", gpu)

    keys = list(facts["layers"][0]["kernels"])
    rows = [["  layer", "shape", *keys, *facts["layers"][0]["cpu algorithms"]]]
    for row in facts["layers"]:
        kernels = [" / ".join(dict.fromkeys(row["kernels"][key].values())) for key in keys]
        algorithms = row["cpu algorithms"].values()
        rows.append([f"  {row['layer']}", row["shape"], *kernels, *algorithms])
    _print_table(
        f"Seed network, one image, backend {facts['backend']!r}",
        rows,
        "  How the C++ kernels compute on the CPU: the last three columns.",
    )
    _print_facts(
        "Environment",
        {
            f"{name}={'' if value is None else value}": environment.VARIABLES[name]
            for name, value in facts["environment"].items()
        },
    )


def _print_plan(title: str, plans: dict[str, dict[str, Any]]) -> None:
    facts = {fact: None for plan in plans.values() for fact in plan}  # in order, each once
    rows = [["", *plans]]
    rows += [[f"  {fact}", *(str(plan.get(fact, "")) for plan in plans.values())] for fact in facts]
    _print_table(title, rows)


def _print_rows(title: str, rows: list[dict[str, str]]) -> None:
    origins = [name for name in rows[0] if name.endswith("origin")]
    columns = [name for name in rows[0] if name not in origins]
    _print_table(title, [columns, *([row[name] for name in columns] for row in rows)])
    for origin in origins:
        for text in dict.fromkeys(row[origin] for row in rows):
            print(f"{origin}: {text}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command; those of this process if ``arguments`` is None."""
    parser = argparse.ArgumentParser(
        prog="python -m vgg_fast.info",
        description="What is built, what this machine can run, and which kernel each layer gets.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--plan",
        type=int,
        nargs=5,
        metavar=("N", "C", "H", "W", "K"),
        help="only print how the CPU kernels compute a convolution of N images of C channels and "
        "H x W pixels into K channels",
    )
    parser.add_argument(
        "--gpu",
        choices=("sm_80", "sm_90"),
        help="only print which backend and which Triton tile each layer of the seed network gets "
        "on a GPU: sm_90 is compute capability 9.0, sm_80 any other from 8.0 on. 'C++, sm_90a' is "
        "the CUDA C++ kernels with Hopper's own instructions. VGG_FAST_BACKEND forces a "
        "backend: triton, cpp (VGG_FAST_GPU says which kernels), or reference, which is cuDNN "
        "there",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=256,
        help="images, for the table of a GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="for the plan (default: float32), or for the table of a GPU (default: bfloat16)",
    )
    parser.add_argument("--threads", type=int, help="for the plan (default: as many as torch uses)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``python -m vgg_fast.info``."""
    options = parse(arguments)
    if options.gpu is not None:
        dtype = getattr(torch, options.dtype or "bfloat16")
        facts: dict[str, Any] = {"gpu": on_gpu(options.gpu, options.batch, dtype)}
    elif options.plan is not None:
        dtype = getattr(torch, options.dtype or "float32")
        try:
            n, c, h, w, k = options.plan
            facts = {"plan": cpu.plan(n, c, h, w, k, dtype, options.threads)}
        except ValueError as error:
            raise SystemExit(f"python -m vgg_fast.info: {error}") from error
    else:
        facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif options.gpu is not None:
        title = f"Seed network on {options.gpu}, {options.batch} images, backend {backends.get()!r}"
        _print_rows(title, facts["gpu"])
    elif options.plan is not None:
        shape = "N {}, C {}, H {}, W {}, K {}".format(*options.plan)
        _print_plan(f"Convolution of {shape}", facts["plan"])
    else:
        _print_everything(facts)


if __name__ == "__main__":
    main()
