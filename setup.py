"""Builds the compiled parts of vgg_fast; the metadata is in pyproject.toml.

    vgg_fast._C         schemas and CPU kernels, on PyTorch's stable ABI: always
    vgg_fast._C_cuda    CUDA kernels, on the stable ABI: where setup_cuda.py finds them wanted
    vgg_fast._bindings  introspection only, without torch, on Python's stable ABI: always

None of them belongs to one version of Python or torch. Beside a folder vgg_fast_cuda, which
packaging/wheel_cuda.sh makes, only the CUDA kernels are built, as vgg_fast_cuda._C_cuda.

Environment:
    VGG_FAST_CUDA=0|1     never build _C_cuda, or always
    TORCH_CUDA_ARCH_LIST  the GPUs to build it for (default: this machine's)
    VGG_FAST_ONLY_CUDA=1  build nothing but _C_cuda, beside a process with VGG_FAST_CUDA=0
    VGG_FAST_PYBIND11=1   make _bindings with pybind11, for this Python alone
    VGG_FAST_WERROR=1     a compiler's warning is an error (developers' builds)
    VGG_FAST_TRAP_HANGS=1 Hopper's kernels fail instead of hanging (developers' builds)
    MAX_JOBS              compilers that run at once
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # a build backend leaves this folder out
import setup_cuda  # noqa: E402

OLDEST_TORCH = "2.11"  # the operators are built on its stable ABI
TOOLKIT = setup_cuda.find_toolkit()
if TOOLKIT is not None:
    os.environ["CUDA_HOME"] = str(TOOLKIT)

USES_PYBIND11 = os.environ.get("VGG_FAST_PYBIND11") == "1"

try:
    if USES_PYBIND11:
        import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError as error:
    raise SystemExit(
        f"vgg_fast: {error.name} is missing, and the build needs it. Install what the build needs "
        f"(pip install 'torch>={OLDEST_TORCH}' 'setuptools>=77' ninja{' pybind11' * USES_PYBIND11})"
        ", or drop --no-build-isolation"
    ) from error

PACKAGE = "vgg_fast_cuda" if (ROOT / "vgg_fast_cuda").is_dir() else "vgg_fast"
OLDEST_PYTHON = (3, 10)  # whose stable ABI _bindings uses
TORCH_TARGET = "0x{:02x}{:02x}{:012x}".format(*map(int, OLDEST_TORCH.split(".")), 0)
WERROR = os.environ.get("VGG_FAST_WERROR") == "1"
# For `make sanitize`: the process that loads such a library must preload libasan.
SANITIZERS = ["-fsanitize=address,undefined"] * (os.environ.get("VGG_FAST_SANITIZE") == "1")
CXX_FLAGS = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", *["-Werror"] * WERROR]
# At -O3 one instrumented file of kernels takes eight minutes to compile.
CXX_FLAGS += (
    [*SANITIZERS, "-fno-sanitize-recover=all", "-O1", "-g1"] if SANITIZERS else ["-O3", "-g0"]
)
# For tests/support/amx_emulated.py, the folder of an ordinary build's objects: a library in which
# plain functions stand in for matrix tiles takes all but a few files from there.
EMULATES_AMX = os.environ.get("VGG_FAST_EMULATE_AMX", "")
KNOWS_AMX = ("isa/features.cpp", "isa/kernels.cpp", "isa/kernels_amx.cpp", "plan/plan.cpp")
if EMULATES_AMX:
    vectors = os.environ.get("VGG_FAST_EMULATE_AMX_VECTORS", "")
    CXX_FLAGS += ["-DVGG_FAST_AMX_EMULATION", f"-I{ROOT}"]
    CXX_FLAGS += ["-DVGG_FAST_AMX_EMULATION_AVX512"] * (vectors == "avx512")
# The host compiler sees the device code too, and knows no #pragma unroll.
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-fvisibility=hidden,-Wall,-Wno-unknown-pragmas"]
NVCC_FLAGS += ["-Werror=all-warnings"] * WERROR
NVCC_FLAGS += ["-DVGG_FAST_TRAP_HANGS"] * (os.environ.get("VGG_FAST_TRAP_HANGS") == "1")
# torch switches these conversions off for its own headers' sake; the kernels convert 16-bit zeros.
NVCC_FLAGS += ["-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"]


def sources(*patterns: str) -> list[str]:
    """Files of ``csrc``, relative to this folder, in an order that never changes."""
    found = {path for pattern in patterns for path in (ROOT / "csrc").glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)


INCLUDE = f"-I{ROOT / 'csrc'}"  # files include each other by their path below csrc
OLDEST_GLIBC = ["-include", str(ROOT / "csrc" / "oldest_glibc.h")] * (sys.platform == "linux")
HEADERS = sources("**/*.h", "**/*.inl", "**/*.cuh")


def system(*folders: str) -> list[str]:
    """Include ``folders`` as system headers: their warnings aren't ours to fix."""
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def operators_cpu() -> Extension:
    stable = [INCLUDE, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *system(*include_paths())]
    files, objects = sources("library.cpp", "cpu/**/*.cpp"), []
    if EMULATES_AMX:
        shared = [file for file in files if not file.endswith(KNOWS_AMX)]
        objects = [str(Path(EMULATES_AMX, file).with_suffix(".o")) for file in shared]
        files = [file for file in files if file not in shared]
    return Extension(
        "vgg_fast._C",
        files,
        extra_objects=objects,
        depends=HEADERS,
        language="c++",
        py_limited_api=True,
        extra_compile_args={"cxx": [*CXX_FLAGS, *OLDEST_GLIBC, *stable]},
        extra_link_args=SANITIZERS,
        library_dirs=library_paths(),
        libraries=["c10", "torch", "torch_cpu"],
    )


def operators_cuda(architectures: str) -> Extension:
    stable = [INCLUDE, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-DUSE_CUDA"]
    generated = setup_cuda.write_instances(ROOT / "build" / "instances")
    instances = [str(path.relative_to(ROOT)) for path in generated]
    version = ".".join(map(str, setup_cuda.compiler_version(TOOLKIT)))
    stable += macros(CUDA=version, CUDA_ARCHITECTURES=architectures)
    stable += ["-DVGG_FAST_HOPPER"] * ("9.0a" in architectures)
    includes = system(*include_paths(), str(TOOLKIT / "include"))
    # Linked statically, the CUDA runtime needn't be of the minor version that torch brings. A wheel
    # takes torch's: the static one needs the glibc of the machine that builds.
    static = next(TOOLKIT.glob("**/libcudart_static.a"), None) if PACKAGE == "vgg_fast" else None
    runtime = [str(static), "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"]
    return Extension(
        f"{PACKAGE}._C_cuda",
        [*sources("cuda/**/*.cu", "cuda/**/*.cpp"), *instances],
        depends=HEADERS,
        language="c++",
        py_limited_api=True,
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *OLDEST_GLIBC, *stable, *includes],
            "nvcc": [*NVCC_FLAGS, *stable, *includes],
        },
        library_dirs=[*library_paths(), str(TOOLKIT / "lib64")],
        libraries=["c10", "torch", "torch_cpu", "torch_cuda"] + ["cudart"] * (static is None),
        extra_link_args=runtime if static else [],
    )


def bindings() -> Extension:
    facts = macros(
        COMPILER=compiler(),
        FLAGS=" ".join(CXX_FLAGS),
        TORCH=torch.__version__,
        TORCH_TARGET=OLDEST_TORCH,
    )
    flags = [*CXX_FLAGS, *OLDEST_GLIBC, INCLUDE, *facts]
    flags += system(pybind11.get_include()) if USES_PYBIND11 else []
    return Extension(
        "vgg_fast._bindings",
        sources(
            "bindings/introspection.cpp",
            "bindings/pybind11.cpp" if USES_PYBIND11 else "bindings/limited_api.cpp",
            "cpu/isa/features.cpp",
            "cpu/plan/cost.cpp",
            "cpu/plan/plan.cpp",
            "cpu/plan/tiling.cpp",
        ),
        depends=HEADERS,
        language="c++",
        py_limited_api=not USES_PYBIND11,
        extra_compile_args={"cxx": flags},
        extra_link_args=SANITIZERS,
    )


def macros(**facts: str) -> list[str]:
    """What a library tells of its build."""
    return [f'-DVGG_FAST_BUILD_{name}="{value}"' for name, value in facts.items()]


def compiler() -> str:
    """The first line of the C++ compiler's --version; SystemExit if there is none."""
    command = shlex.split(os.environ.get("CXX") or "c++")
    try:
        run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"vgg_fast: no C++ compiler ({' '.join(command)} doesn't run): install one, on Debian "
            "and Ubuntu with apt-get install g++, or name it in CXX"
        ) from error
    return run.stdout.splitlines()[0].replace('"', "")


def check_python_headers() -> None:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise SystemExit(
            f"vgg_fast: {header} is missing, and the build needs it: install Python's headers, on "
            "Debian and Ubuntu with apt-get install python3-dev"
        )


def gpus() -> set[tuple[int, int]]:
    return {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}


class Build(BuildExtension):
    """Keeps the object files, so that an edit recompiles what it touches and no more."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable installation would compile in a folder that is thrown away.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.build_temp = str(ROOT / "build" / f"objects-{tag}")

    def build_extension(self, extension: Extension) -> None:
        # bindings and operators compile some files with different flags: a folder for each.
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, extension.name)
        os.makedirs(self.build_temp, exist_ok=True)
        for_gpus = os.environ.get("TORCH_CUDA_ARCH_LIST", "") if "cuda" in extension.name else ""
        print(
            f"vgg_fast: compiling {extension.name}, {len(extension.sources)} files"
            + (f" for {for_gpus}: a minute on two cores" if for_gpus else ""),
            file=sys.stderr,
        )
        os.environ["NINJA_STATUS"] = f"{extension.name}: %f of %t compiled, %e s: "
        try:
            super().build_extension(extension)
        finally:
            self.build_temp = shared

    def copy_extensions_to_source(self) -> None:
        # Python prefers a file of its own version to one of the stable ABI, however old it is.
        if any(extension.name == "vgg_fast._bindings" for extension in self.extensions):
            for stale in (ROOT / "vgg_fast").glob("_bindings*.so"):
                stale.unlink()
        super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """A wheel of files on the stable ABIs fits every Python from the oldest on."""

    def finalize_options(self) -> None:
        if not USES_PYBIND11:
            self.py_limited_api = "cp{}{}".format(*OLDEST_PYTHON)
        super().finalize_options()


def extensions() -> list[Extension]:
    if platform.system() == "Windows":
        raise SystemExit("vgg_fast: Windows isn't supported; WSL is")
    check_python_headers()
    try:
        decision = setup_cuda.decide(TOOLKIT, torch.version.cuda, gpus)
    except setup_cuda.CudaError as error:
        raise SystemExit(f"vgg_fast: {error}") from error
    built = "built" if decision.build else "not built"
    print(f"vgg_fast: CUDA kernels are {built} ({decision.reason})", file=sys.stderr)
    only_cuda = PACKAGE == "vgg_fast_cuda" or os.environ.get("VGG_FAST_ONLY_CUDA") == "1"
    found = [] if only_cuda else [operators_cpu(), bindings()]
    if decision.build:
        os.environ["TORCH_CUDA_ARCH_LIST"] = decision.architectures
        found.append(operators_cuda(decision.architectures))
    return found


if __name__ == "__main__":  # as a build backend runs it, too
    setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
