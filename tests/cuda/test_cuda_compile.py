"""csrc/cuda compiles for A100- and H100-class GPUs without a warning or a spill, links, and loads.

Needs no GPU, only nvcc.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

import setup_cuda
import vgg_fast
from tests.support.cuda_toolkit import build_once, cuobjdump, toolkit
from tests.support.instruction_count import functions_of, main_loops, times_the_bytes
from vgg_fast import _extension

CSRC = Path(__file__).parents[2] / "csrc"
FOLDERS = {path.name: path for path in (CSRC / "cuda").glob("*/*.cu")}
INSTANCES = setup_cuda.instances()
SOURCES = sorted([*FOLDERS, *INSTANCES])
ARCHITECTURES = ("80", "90a")

pytestmark = pytest.mark.skipif(toolkit() is None, reason="no CUDA compiler (nvcc) was found")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture."""

    name: str
    architecture: str
    stack: int  # bytes of local memory a thread
    spilled: int  # bytes, stores and loads together
    registers: int


def compile_source(source: str, to: Path, *flags: str) -> None:
    """Compile to the object file ``to``, and leave what ptxas reports beside it."""
    command = [str(toolkit() / "bin" / "nvcc"), "-std=c++20", "-O3", "-Werror=all-warnings"]
    # The host compiler sees the device code too, and knows no #pragma unroll.
    host = "-fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas"
    command += ["-Xptxas=-v", f"-Xcompiler={host}", "--threads=2"]
    for architecture in ARCHITECTURES:
        command.append(f"-gencode=arch=compute_{architecture},code=sm_{architecture}")
    if source in INSTANCES:
        path = to.with_name(source)
        path.write_text(INSTANCES[source])
    else:
        path = FOLDERS[source]
    command += [*flags, f"-I{CSRC}", "-c", str(path), "-o", str(to)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report_of(source, to.parent).write_text(run.stderr)


def report_of(source: str, folder: Path) -> Path:
    return folder / f"{source}.report"


def read_report(report: str) -> list[Kernel]:
    kernels = []
    for entry in report.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for 'sm_(\w+)'", entry).groups()
        # Its own properties; those of a function that it calls may stand before or after them.
        numbers = re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        total = {what: sum(int(n) for n, kind in numbers if kind == what) for _, what in numbers}
        kernels.append(
            Kernel(
                name,
                architecture,
                total["stack frame"],
                total["spill stores"] + total["spill loads"],
                int(registers[1]),
            )
        )
    return kernels


@pytest.fixture
def object_of(tmp_path_factory) -> Callable[[str], Path]:
    def compiled(source: str) -> Path:
        return build_once(tmp_path_factory, f"{source}.o", lambda to: compile_source(source, to))

    return compiled


@pytest.fixture
def kernels_of(object_of) -> Callable[[str], list[Kernel]]:
    def kernels(source: str) -> list[Kernel]:
        return read_report(report_of(source, object_of(source).parent).read_text())

    return kernels


@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_spills_or_uses_local_memory(kernels_of, source):
    kernels = kernels_of(source)
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    wasteful = [kernel for kernel in kernels if kernel.stack or kernel.spilled]
    assert not wasteful, wasteful


@pytest.mark.parametrize("source", SOURCES)
def test_the_blocks_fit_a_multiprocessor(kernels_of, source):
    for kernel in kernels_of(source):
        # The matrix products keep a tile in registers; the others hide latency with more warps.
        threads = 512
        products = "igemm_fprop|igemm_wgrad|hopper|hopper_halo"
        first_layer = "few_channels_(dgrad|wgrad|([dw]grad_)?product)"
        if re.search(rf"({products}|{first_layer})_k", kernel.name):
            threads = 256
        assert threads * kernel.registers <= 64 * 1024, kernel


# What a matrix product is made of: architectures, the kernel's name, instructions. LDSM transposes
# 16-bit elements and no others.
TENSOR_CORES = [
    (("80", "90a"), "few_channels_product_kernel", {"HMMA"}),
    (("80", "90a"), "few_channels_wgrad_product_kernel", {"HMMA", "LDGSTS"}),
    (("80", "90a"), "few_channels_dgrad_product_kernel", {"HMMA"}),
    (("80", "90a"), "igemm_fprop_kernel", {"HMMA", "LDGSTS", "LDSM"}),
    (("80", "90a"), "igemm_wgrad_kernelI.*(half|bfloat16)", {"HMMA", "LDGSTS", "LDSM"}),
    (("80", "90a"), "igemm_wgrad_kernelI.*Tf32", {"HMMA", "LDGSTS"}),
    (("90a",), "hopper_(halo_)?kernel", {"HGMMA", "UTMALDG", "SYNCS", "USETMAXREG"}),
]


def instructions_of(object_file: Path, architecture: str) -> dict[str, list[str]]:
    """Of each kernel the instructions' names, with their modifiers, in order."""
    return {
        name: re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", body)
        for name, body in functions_of(object_file, architecture).items()
    }


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize(
    "source", [s for s in SOURCES if re.search(r"_(bf16|fp16|tf32)\.cu|few_channels", s)]
)
def test_products_run_on_tensor_cores(object_of, source):
    checked = set()
    for architecture in ARCHITECTURES:
        for name, instructions in instructions_of(object_of(source), architecture).items():
            found = {instruction.split(".")[0] for instruction in instructions}
            for architectures, kernel, expected in TENSOR_CORES:
                if architecture not in architectures or not re.search(kernel, name):
                    continue
                assert expected <= found, (name, expected - found)
                assert not found & {"LDL", "STL"}, f"{name} uses local memory"
                checked.add(name)
    assert checked, f"{source} has no matrix product"


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pooling_has_a_windows_four_loads_in_flight(object_of, architecture):
    checked = 0
    for name, found in instructions_of(object_of("max_pool2x2_kernels.cu"), architecture).items():
        if "max_pool2x2_kernelI" not in name:  # the template's; the file's name is in all of them
            continue
        loads = [i for i, instruction in enumerate(found) if re.match(r"LDG\.\S*128", instruction)]
        assert len(loads) >= 4, name
        between = found[loads[0] + 1 : loads[3]]
        assert len(between) < 16 and "BRA" not in between, (name, between)
        checked += 1
    assert checked == 4


# What the first layer's weight gradient reads of a window of 64 channels, beside 4 pixels of the
# image: elements, and bytes of argmax.
READS = {
    "few_channels_linear.cu": (4 * 64, 0),
    "few_channels_relu.cu": (4 * 2 * 64, 0),
    "few_channels_relu_pool.cu": (2 * 64, 64),
}

# Kernel, element, its size, the windows that a turn of its main loop takes, and how many times the
# bytes' time its instructions may take to issue, for one input channel and for three.
FIRST_WGRADS = [
    ("few_channels_linear.cu", "wgrad_product", "13__nv_bfloat16", 2, 4, (0.7, 0.95)),
    ("few_channels_relu.cu", "wgrad_product", "13__nv_bfloat16", 2, 4, (0.42, 0.52)),
    ("few_channels_relu_pool.cu", "wgrad_product", "13__nv_bfloat16", 2, 4, (1.2, 1.5)),
    ("few_channels_relu_pool.cu", "wgrad_product", "6__half", 2, 4, (1.2, 1.5)),
    ("few_channels_linear.cu", "wgrad", "f", 4, 2, (0.92, 1.6)),
    ("few_channels_relu.cu", "wgrad", "f", 4, 2, (0.6, 0.97)),
    ("few_channels_relu_pool.cu", "wgrad", "f", 4, 2, (1.42, 2.6)),  # 1.6 of it multiply-adds
]


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize(
    ("source", "kernel", "element", "size", "windows", "most"), FIRST_WGRADS, ids=str
)
def test_the_first_layers_weight_gradient_issues_little_for_its_bytes(
    object_of, source, kernel, element, size, windows, most
):
    loops = main_loops(object_of(source), "90a")
    elements, argmax = READS[source]
    for channels, times in zip((1, 3), most, strict=True):
        pattern = rf"few_channels_{kernel}_kernelI.*E\dE{element}Li{channels}ELb0E"  # no slope
        (loop,) = (loop for name, loop in loops.items() if re.search(pattern, name))
        read = size * (elements + 4 * channels) + argmax
        assert times_the_bytes(len(loop) / windows, read) <= times
        assert not any(name.startswith(("LDL", "STL")) for name in loop)


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize("source", READS)
def test_the_first_layers_gradient_is_copied_ahead_in_one_go(object_of, source):
    elements, argmax = READS[source]
    pieces = elements // 64 + (argmax > 0)  # of 8 channels, in a lane
    checked = 0
    for name, loop in main_loops(object_of(source), "90a").items():
        if "wgrad_product_kernelI" not in name or "ELb1E" in name:
            continue  # a leaky ReLU's differs by what it multiplies
        copies = [i for i, instruction in enumerate(loop) if instruction.startswith("LDGSTS")]
        assert len(copies) == pieces, name
        waits = [i for i, instruction in enumerate(loop) if instruction.startswith("DEPBAR")]
        assert len(waits) == 1 and copies[-1] < waits[0], name
        assert not {"BRA", "WARPSYNC"} & {*loop[copies[0] : copies[-1]]}, name
        checked += 1
    assert checked == 4  # bf16 and fp16, of one channel and of three


# The first layer's data gradient on the tensor cores. Of a window of 64 channels: the elements that
# it reads beside the 4 pixels of the input's gradient that it writes, and bytes of argmax or bits;
# how many times the bytes' time its instructions may take to issue, for one input channel and for
# three. Then a lane's loads of 16 bytes for 8 windows, or for either row of their pixels.
FIRST_DGRAD_PRODUCTS = [
    ("few_channels_linear.cu", "Gradient", 4 * 64, 0, (0.25, 0.36), 4),
    ("few_channels_relu.cu", "Gradient", 4 * 2 * 64, 0, (0.19, 0.25), 8),
    ("few_channels_relu.cu", "MaskedGradient", 4 * 64, 4 * 8, (0.54, 0.62), 4),
    ("few_channels_relu_pool.cu", "Gradient", 2 * 64, 64, (0.48, 0.62), 4),
    ("few_channels_relu_pool.cu", "MaskedGradient", 64, 3 * 8, (1.1, 1.35), 2),
]


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize(
    ("source", "gradient", "elements", "more", "most", "expected"), FIRST_DGRAD_PRODUCTS, ids=str
)
def test_the_first_layers_data_gradient_issues_little_for_its_bytes(
    object_of, source, gradient, elements, more, most, expected
):
    # A barrier ends each row of a tile's windows, of which a warp has 16.
    loops = main_loops(object_of(source), "90a", around="BAR")
    for element in ("13__nv_bfloat16", "6__half"):
        for channels, times in zip((1, 3), most, strict=True):
            pattern = rf"dgrad_product_kernelI.*E\dE{element}NS0_\d+{gradient}I.*Li{channels}E"
            (loop,) = (loop for name, loop in loops.items() if re.search(pattern, name))
            moved = 2 * (elements + 4 * channels) + more
            assert times_the_bytes(len(loop) / 16, moved) <= times
            rows = 2 if "pool" not in source else 1
            products = [i for i, name in enumerate(loop) if name.startswith("HMMA")]
            assert len(products) == 2 * (16 if channels == 1 else 32)
            loads = [i for i, name in enumerate(loop) if re.match(r"LDG\.\S*128", name)]
            assert len(loads) == 2 * rows * expected
            # Those of the next 8 windows are out before these 8 windows' last product.
            assert sum(i < products[len(products) // 2 - 1] for i in loads) == rows * expected
            assert not any(name.startswith(("LDL", "STL")) for name in loop)


# The same by fused multiply-adds: the loads of a lane for a channel of 16 pixels, or of the 9
# windows that they are in; and the most instructions for 32 channels, of 1 and of 3 input channels.
FIRST_DGRADS = [
    ("few_channels_linear.cu", "Gradient", 16, (240, 330)),
    ("few_channels_relu.cu", "Gradient", 16 * 2, (400, 500)),
    ("few_channels_relu.cu", "MaskedGradient", 16 * 2, (590, 680)),
    ("few_channels_relu_pool.cu", "Gradient", 9 * 3, (370, 465)),
    ("few_channels_relu_pool.cu", "MaskedGradient", 9 * 4, (525, 620)),
]


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize(("source", "gradient", "expected", "most"), FIRST_DGRADS, ids=str)
def test_the_first_layers_data_gradient_loads_everything_and_then_multiplies(
    object_of, source, gradient, expected, most
):
    loops = main_loops(object_of(source), "90a")
    for channels, instructions in zip((1, 3), most, strict=True):
        pattern = rf"few_channels_dgrad_kernelI.*bfloat16NS0_\d+{gradient}I.*Li{channels}ELb0E"
        (loop,) = (loop for name, loop in loops.items() if re.search(pattern, name))
        loads = [i for i, instruction in enumerate(loop) if instruction.startswith("LDG")]
        products = [i for i, instruction in enumerate(loop) if instruction.startswith("FFMA")]
        assert len(loads) == expected and len(products) == 36 * channels
        assert loads[-1] < products[0]
        assert len(loop) <= instructions


@pytest.mark.parametrize("source", [s for s in SOURCES if s.startswith("hopper_")])
def test_the_compiler_keeps_wgmma_asynchronous(object_of, source):
    report = report_of(source, object_of(source).parent).read_text()
    for complaint in ("serialized", "setmaxnreg", "Potential Performance Loss"):
        assert complaint not in report


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize("source", [s for s in SOURCES if s.startswith("hopper_")])
def test_clusters_share_loads_and_fence_nothing_in_their_loop(object_of, source):
    clusters = 0
    for name, found in instructions_of(object_of(source), "90a").items():
        of_cluster = re.search("Hopper(Fprop|Halo|Wgrad).*Li2EE", name) is not None
        assert ("UTMALDG.4D.MULTICAST" in found) == of_cluster, name
        assert found.count("UCGABAR_WAIT") == 2 * of_cluster, name  # at the start and at the end
        assert found.count("MEMBAR.ALL.GPU") == 2 * of_cluster, name
        clusters += of_cluster
    assert clusters > 0


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
@pytest.mark.parametrize("source", [s for s in SOURCES if s.startswith("hopper_fprop")])
def test_hopper_s_tiles_are_pooled_and_turned_round_without_shuffles(object_of, source):
    checked = 0
    for name, found in instructions_of(object_of(source), "90a").items():
        pools = "EpilogueE2" in name
        pieces = 4 if pools else 8  # of 16 windows, which may have an argmax, or of 32 pixels
        stores = sum(instruction.startswith("STSM") for instruction in found)
        assert stores == 2 * pieces, name
        # Of a group's origin, for each line that a thread stores: its place, and what is left.
        lines = 0 if "HopperHalo" in name else pieces if pools else 2 * pieces
        most = 3 * lines + ("_bits" in source) * 2 * lines
        assert sum(instruction.startswith("SHFL") for instruction in found) <= most, name
        checked += 1
    assert checked == (12 if "_bits" in source else 18)


@pytest.mark.skipif(cuobjdump() is None, reason="needs cuobjdump, which triton's package has too")
def test_only_a_debug_build_traps_a_hang(object_of, tmp_path):
    source = "hopper_fprop_bf16.cu"
    debug = tmp_path / "debug.o"
    compile_source(source, debug, "-DVGG_FAST_TRAP_HANGS")
    for object_file, traps in ((object_of(source), False), (debug, True)):
        for name, found in instructions_of(object_file, "90a").items():
            assert ("BPT.TRAP" in found) == traps, name


def test_the_report_reader_sees_a_spill():
    report = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z1kPf\n"
        "    40 bytes stack frame, 36 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 0 barriers, 40 bytes cumulative stack size\n"
    )
    assert read_report(report) == [Kernel("_Z1kPf", "80", stack=40, spilled=64, registers=32)]


LOAD = """
import sys, torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
assert not torch.cuda.is_available()
for name in ("conv3x3", "conv3x3_relu", "conv3x3_relu_pool", "max_pool2x2"):
    for operator in (name, name + "_backward"):
        found = torch._C._dispatch_has_kernel_for_dispatch_key("vgg_fast::" + operator, "CUDA")
        assert found, operator
for name in ("relu_masked", "relu_pool_masked", "relu_and_pool_masked",
             "dgrad", "relu_dgrad", "relu_pool_dgrad", "relu_and_pool_dgrad"):
    operator = "vgg_fast::_cuda_conv3x3_" + name
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA"), operator
"""


def assert_loads_without_gpu(library: Path) -> None:
    schemas = next(Path(vgg_fast.__file__).parent.glob("_C.*so"))
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(schemas), str(library)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA to link to")
def test_the_library_links_and_loads_without_a_gpu(object_of, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    includes = [f"-isystem{folder}" for folder in [*include_paths(), str(toolkit() / "include")]]
    library = tmp_path / "_C_cuda.so"
    objects = [*map(object_of, SOURCES)]
    for source in sorted((CSRC / "cuda").glob("*/*.cpp")):
        objects.append(tmp_path / f"{source.name}.o")
        subprocess.run(
            [compiler, "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
             "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", "-DVGG_FAST_HOPPER",
             f"-I{CSRC}", *includes, "-c", str(source), "-o", str(objects[-1])],
            check=True,
        )  # fmt: skip
    runtime = next(toolkit().glob("**/libcudart_static.a"))
    subprocess.run(
        [compiler, "-shared", "-o", str(library), *map(str, objects),
         *[f"-L{folder}" for folder in library_paths()], "-lc10", "-ltorch", "-ltorch_cpu",
         "-ltorch_cuda", str(runtime), "-ldl", "-lrt", "-lpthread", "-Wl,--no-undefined",
         "-Wl,--exclude-libs,ALL", f"-Wl,-rpath-link,{Path(torch.__file__).parent / 'lib'}",
         "-Wl,--allow-shlib-undefined"],
        check=True,
    )  # fmt: skip
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True)
    assert "libcuda.so" not in needed.stdout, "a machine without a GPU driver can't load it"
    assert_loads_without_gpu(library)


BUILT = _extension.cuda_library()


@pytest.mark.skipif(BUILT is None, reason="built without CUDA: VGG_FAST_CUDA=1 builds _C_cuda")
def test_the_installed_library_loads_without_a_gpu():
    assert_loads_without_gpu(BUILT)
