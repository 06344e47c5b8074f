"""Loads the compiled operator libraries, or says in one message why it can't.

``_C`` (schemas and CPU kernels) must be there; ``_C_cuda`` (CUDA C++ kernels) may be, in this
package or in one of its own, ``vgg_fast_cuda``: without it, or when it doesn't load, GPUs are
served by Triton, and :func:`cuda_library_problem` says why.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
LIBRARY = PACKAGE / "_C.abi3.so"
CUDA_LIBRARY = PACKAGE / "_C_cuda.abi3.so"
CUDA_PACKAGE = "vgg_fast_cuda"  # distributions of it are named vgg_fast_cuda12, vgg_fast_cuda13
OLDEST_TORCH = (2, 11)

# What _C must define; each has a backward too.
OPERATORS = ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool", "max_pool2x2")

_library: ctypes.CDLL | None = None
_cuda_problem = "it isn't loaded yet"


def load() -> None:
    """Load ``_C``, and ``_C_cuda`` where it is built. A second call does nothing.

    Raises:
        ImportError: torch is too old, or ``_C`` is missing, doesn't load, or was built from other
            sources; the message says what was found and which command fixes it.
    """
    global _library, _cuda_problem
    if _library is not None:
        return
    _check_torch()
    if not LIBRARY.is_file():
        raise ImportError(_explain("it isn't there"))
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        raise ImportError(_explain(f"it doesn't load: {error}")) from error
    missing = [name for name in _operators() if not hasattr(torch.ops.vgg_fast, name)]
    if missing:
        raise ImportError(
            _explain(f"it was built from other sources, and lacks {', '.join(missing)}")
        )
    _cuda_problem = _load_cuda()
    _library = ctypes.CDLL(str(LIBRARY))


def forget_weight(address: int) -> None:
    """Free the transformed copies of the weight whose ``data_ptr()`` this is."""
    if _library is not None:
        _library.vgg_fast_forget_weight(ctypes.c_void_p(address))


def cuda_library_problem() -> str:
    """Why the CUDA C++ kernels aren't there, in one line; empty if they are."""
    return _cuda_problem


def cuda_library() -> Path | None:
    """The CUDA C++ kernels: this package's own, or those of vgg_fast_cuda; None without either."""
    if CUDA_LIBRARY.is_file():
        return CUDA_LIBRARY
    installed = importlib.util.find_spec(CUDA_PACKAGE)  # doesn't import it
    folders = installed.submodule_search_locations if installed is not None else None
    files = [Path(folder) / CUDA_LIBRARY.name for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def cuda_facts() -> dict[str, str]:
    """CUDA's version and the GPUs that the CUDA C++ kernels were built for; {} without them."""
    library = None if _cuda_problem else cuda_library()
    if library is None:
        return {}
    functions = ctypes.CDLL(str(library))
    facts = {}
    for name in ("cuda_version", "cuda_architectures"):
        function = getattr(functions, f"vgg_fast_{name}")
        function.restype = ctypes.c_char_p
        facts[name.replace("_", " ")] = function().decode()
    return facts


def has_sm90_kernels() -> bool:
    """Whether the CUDA C++ kernels are there, and built with Hopper's own instructions."""
    return "9.0a" in cuda_facts().get("cuda architectures", "")


def _load_cuda() -> str:
    library = cuda_library()
    if library is None:
        return (
            f"{CUDA_LIBRARY.name} isn't built, and {CUDA_PACKAGE} isn't installed; "
            f"VGG_FAST_CUDA=1 {_command()} builds it"
        )
    if library != CUDA_LIBRARY and (problem := _other_version(library)):
        return problem
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        # Whatever happens here, CPU tensors have their kernels, and CUDA tensors have Triton's.
        reason = str(error).splitlines()[0]
        return f"{library.name} is built, but doesn't load: {reason}"
    return ""


def _other_version(library: Path) -> str:
    """What is wrong if ``library`` belongs to another version, whose schemas may differ."""
    told = re.search(r'^__version__ = "(.+)"', (library.parent / "__init__.py").read_text(), re.M)
    theirs = told[1] if told else "unknown"
    try:
        ours = importlib.metadata.version("vgg_fast")
    except importlib.metadata.PackageNotFoundError:
        return ""  # a source tree that isn't installed
    if theirs == ours:
        return ""
    return (
        f"{CUDA_PACKAGE} {theirs} ({library.parent}) isn't used, because this is vgg_fast {ours}, "
        "and both must be of one version"
    )


def _check_torch() -> None:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version and (int(version[1]), int(version[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(
            f"vgg_fast needs torch {oldest} or newer, but this is torch {torch.__version__} "
            f"({Path(torch.__file__).parent}); fix it with: "
            f"{sys.executable} -m pip install --upgrade 'torch>={oldest}' torchvision"
        )


def _operators() -> list[str]:
    operators = [name + suffix for name in OPERATORS for suffix in ("", "_backward")]
    return [*operators, "to_nchw", "cpu_settings", "kept_cpu_weights"]


def _explain(problem: str) -> str:
    found = sorted(path.name for path in PACKAGE.glob("_*.so"))
    return (
        f"vgg_fast can't use its operator library: {problem}\n"
        f"  looked for  {LIBRARY}\n"
        f"  found       {', '.join(found) or 'no compiled file'} in {PACKAGE}\n"
        f"  built with  {_built_with()}\n"
        f"  running     torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}\n"
        f"  fix it      {_command()}"
    )


def _built_with() -> str:
    try:
        from vgg_fast import _bindings
    except ImportError:
        return "unknown (vgg_fast._bindings doesn't load either)"
    facts = _bindings.build_facts()
    return f"torch {facts['torch']} for torch {facts['torch_target']} or newer"


def _command() -> str:
    """The command that rebuilds the libraries."""
    checkout = PACKAGE.parent
    folder = str(checkout) if (checkout / "setup.py").is_file() else "<checkout of vgg_fast>"
    return f"{sys.executable} -m pip install --no-build-isolation -e {folder}"
