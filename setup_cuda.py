"""Where the CUDA toolkit is, and whether ``vgg_fast._C_cuda`` is built, for which GPUs.

No torch is imported here: torch reads CUDA_HOME when ``torch.utils.cpp_extension`` is imported, and
takes the folder above the ``nvcc`` on PATH if it isn't set, which is wrong for a wrapper script.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# What VGG_FAST_CUDA=1 builds on a machine without a GPU: A100-class, and H100 and H200.
DEFAULT_ARCHITECTURES = "8.0;9.0a"


class CudaError(RuntimeError):
    """VGG_FAST_CUDA=1 asked for a CUDA build that can't be made; the message says why."""


@dataclass(frozen=True)
class Decision:
    """Whether to build ``_C_cuda``, why, and what TORCH_CUDA_ARCH_LIST must be."""

    build: bool
    reason: str
    architectures: str = ""


def find_toolkit() -> Path | None:
    """The folder whose ``bin/nvcc`` is the compiler itself, or None."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _toolkit_of_nvcc()]
    candidates += ["/usr/local/cuda", *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    return next((Path(c) for c in candidates if c and (Path(c) / "bin" / "nvcc").is_file()), None)


def _toolkit_of_nvcc() -> str | None:
    # The nvcc on PATH may be a wrapper anywhere; a dry run prints where the compiler really is.
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry_run = _output([nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull])
    for variable, to_toolkit in (("TOP", "."), ("_HERE_", "..")):
        match = re.search(rf"^#\$ {variable}=(.+)$", dry_run, re.MULTILINE)
        if match:
            return os.path.realpath(os.path.join(match[1].strip(), to_toolkit))
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def compiler_version(toolkit: Path) -> tuple[int, int] | None:
    """(major, minor) of the toolkit's nvcc, or None if it doesn't run."""
    match = re.search(r"release (\d+)\.(\d+)", _output([toolkit / "bin" / "nvcc", "--version"]))
    return (int(match[1]), int(match[2])) if match else None


def decide(
    toolkit: Path | None, torch_cuda: str | None, gpus: Callable[[], Iterable[tuple[int, int]]]
) -> Decision:
    """Build ``_C_cuda``?

    Args:
        toolkit: what :func:`find_toolkit` found.
        torch_cuda: ``torch.version.cuda``.
        gpus: gives the compute capabilities of this machine's GPUs.

    Raises:
        CudaError: VGG_FAST_CUDA=1 and it can't be built; or VGG_FAST_CUDA is neither 0 nor 1.
    """
    wish = os.environ.get("VGG_FAST_CUDA", "").strip()
    if wish not in ("", "0", "1"):
        raise CudaError(f"VGG_FAST_CUDA={wish!r} means nothing: set it to 0 or 1, or unset it")
    if wish == "0":
        return Decision(False, "VGG_FAST_CUDA=0")
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    wanted = listed or _architectures_of(toolkit, gpus) or (DEFAULT_ARCHITECTURES if wish else "")
    if not wanted:
        return Decision(False, "no GPU here, and TORCH_CUDA_ARCH_LIST isn't set")
    obstacle = _obstacle(toolkit, torch_cuda)
    if obstacle and wish == "1":
        raise CudaError(f"VGG_FAST_CUDA=1, but {obstacle}; or set VGG_FAST_CUDA=0")
    if obstacle:
        return Decision(False, obstacle)
    return Decision(True, f"{toolkit}, architectures {wanted}", wanted)


def _obstacle(toolkit: Path | None, torch_cuda: str | None) -> str:
    if toolkit is None:
        return "no CUDA compiler was found: install the CUDA toolkit, or point CUDA_HOME to it"
    version = compiler_version(toolkit)
    if version is None:
        return f"{toolkit / 'bin' / 'nvcc'} doesn't run"
    if torch_cuda is None:
        return "the torch of this build has no CUDA: install a torch that has"
    # PyTorch refuses another major version; a minor one makes no difference to the stable ABI.
    if version[0] != int(torch_cuda.split(".")[0]):
        return (
            f"nvcc is of CUDA {version[0]}.{version[1]} ({toolkit}) and torch of CUDA "
            f"{torch_cuda}, and the major versions must be the same: point CUDA_HOME to a CUDA "
            f"{torch_cuda.split('.')[0]} toolkit"
        )
    return ""


def _architectures_of(toolkit: Path | None, gpus: Callable[[], Iterable[tuple[int, int]]]) -> str:
    if toolkit is None:
        return ""
    known = [
        int(sm)
        for sm in re.findall(
            r"compute_(\d+)\b", _output([toolkit / "bin" / "nvcc", "--list-gpu-arch"])
        )
    ]
    architectures = set()
    for major, minor in gpus():
        if not known or 10 * major + minor <= max(known):
            # From 9.0 on, "a" unlocks the instructions of that very GPU (wgmma and its successors).
            architectures.add(f"{major}.{minor}{'a' if major >= 9 else ''}")
        else:  # newer than the compiler: the driver translates PTX
            newest = max(known)
            architectures.add(f"{newest // 10}.{newest % 10}+PTX")
    return ";".join(sorted(architectures))


def _output(command: list) -> str:
    """Everything that ``command`` prints; nothing if it can't run."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout + run.stderr


# ----------------------------------------------------------------------------------- instantiations

ELEMENTS = {
    "bf16": "__nv_bfloat16",
    "fp16": "__half",
    "fp32": "float",
    "fp64": "double",
    "tf32": "Tf32",
}
EPILOGUES = ("kLinear", "kRelu", "kReluPool")
RELUS = EPILOGUES[1:]  # which may pack bits
# Kernel: the folder of its template, and the elements that it multiplies.
FPROPS = {"igemm_fprop": ("sm80", tuple(ELEMENTS)), "hopper_fprop": ("sm90", ("bf16", "fp16"))}
WGRADS = {"igemm_wgrad": ("sm80", tuple(ELEMENTS)), "hopper_wgrad": ("sm90", ("bf16", "fp16"))}


def instances() -> dict[str, str]:
    """File names and texts of the kernels' instantiations: one for each element type, and
    one more for those that pack bits, which compilers work on side by side."""
    files = {}
    for kernel, (folder, elements) in FPROPS.items():
        for element in elements:
            for packing, suffix, epilogues in (("", "", EPILOGUES), (", true", "_bits", RELUS)):
                name = ELEMENTS[element]
                types = [f"<Epilogue::{epilogue}, {name}{packing}>" for epilogue in epilogues]
                arguments = (
                    "(const DenseConvolution&, const EpilogueArguments&, const Results&, "
                    "cudaStream_t)"
                )
                lines = [f"template cudaError_t {kernel}{type}{arguments};" for type in types]
                file = f"{kernel}_{element}{suffix}.cu"
                files[file] = _instance(f"{folder}/{kernel}.cuh", lines)
    for kernel, (folder, elements) in WGRADS.items():
        for element in elements:
            type = f"<{ELEMENTS[element]}>"
            arguments = "const void*, void*, const int64_t (&)[4], void*, cudaStream_t"
            lines = [
                f"template cudaError_t {kernel}{type}(const DenseConvolution&, {arguments});",
                f"template int64_t {kernel}_workspace{type}(const DenseConvolution&);",
            ]
            files[f"{kernel}_{element}.cu"] = _instance(f"{folder}/{kernel}.cuh", lines)
    return files


def write_instances(folder: Path) -> list[Path]:
    """Write :func:`instances` into ``folder``; a file that is as it should be stays untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in instances().items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    return [folder / name for name in instances()]


def _instance(template: str, lines: list[str]) -> str:
    body = "\n".join(lines)
    return (
        f'#include "cuda/{template}"\n\nnamespace vgg_fast::cuda {{\n\n{body}\n\n'
        "}  // namespace vgg_fast::cuda\n"
    )
