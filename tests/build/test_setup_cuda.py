"""Where setup_cuda.py finds the CUDA toolkit, and when the build makes ``_C_cuda``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import setup_cuda
from setup_cuda import CudaError, compiler_version, decide, find_toolkit

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  --list-gpu-arch) printf 'compute_80\\ncompute_90\\n' ;;
  --dryrun) echo '#$ _HERE_={folder}/bin'; echo '#$ TOP={folder}/bin/..' ;;
esac
"""
CSRC = Path(__file__).parents[2] / "csrc"
A100, H100, B200 = (8, 0), (9, 0), (10, 0)


def make_toolkit(folder: Path, version: str = "13.0") -> Path:
    """A toolkit whose nvcc only answers questions."""
    write_program(folder / "bin" / "nvcc", NVCC.format(version=version, folder=folder))
    return folder


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch) -> None:
    """A machine with a shell and no CUDA, whatever the real one has."""
    for name in ("CUDA_HOME", "CUDA_PATH", "VGG_FAST_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    really = setup_cuda.Path
    monkeypatch.setattr(
        setup_cuda,
        "Path",
        lambda name: really(tmp_path / "nowhere" if str(name).startswith("/usr/local") else name),
    )


@pytest.fixture
def toolkit(tmp_path) -> Path:
    return make_toolkit(tmp_path / "cuda")


# ------------------------------------------------------------------------------------- the toolkit


def test_no_toolkit() -> None:
    assert find_toolkit() is None


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_the_environment_names_the_toolkit(toolkit, monkeypatch, variable) -> None:
    monkeypatch.setenv(variable, str(toolkit))
    assert find_toolkit() == toolkit


def test_a_folder_without_a_compiler_is_passed_over(toolkit, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    monkeypatch.setenv("CUDA_PATH", str(toolkit))
    assert find_toolkit() == toolkit


def test_a_wrapper_on_path_leads_to_the_toolkit_itself(toolkit, tmp_path) -> None:
    write_program(tmp_path / "path" / "nvcc", f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    assert find_toolkit() == toolkit


def test_a_dry_run_that_names_only_the_compilers_folder_is_enough(toolkit, tmp_path) -> None:
    dry_run = f"#!/bin/sh\necho '#$ _HERE_={toolkit}/bin'\n"
    write_program(tmp_path / "path" / "nvcc", dry_run)
    assert find_toolkit() == toolkit


def test_a_link_on_path_leads_to_the_toolkit_itself(toolkit, tmp_path) -> None:
    write_program(toolkit / "bin" / "nvcc", "#!/bin/sh\nexit 1\n")
    (tmp_path / "path" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    assert find_toolkit() == toolkit


def test_compiler_version(toolkit) -> None:
    assert compiler_version(toolkit) == (13, 0)


@pytest.mark.parametrize("program", ["#!/bin/sh\nexit 1\n", "#!/nowhere\n"])
def test_a_compiler_that_does_not_run_has_no_version(toolkit, program) -> None:
    write_program(toolkit / "bin" / "nvcc", program)
    assert compiler_version(toolkit) is None


# ------------------------------------------------------------------------------------ the decision


def test_a_gpu_and_a_compiler_are_enough(toolkit) -> None:
    decision = decide(toolkit, "13.2", lambda: {H100, A100})
    assert decision.build and decision.architectures == "8.0;9.0a"
    assert str(toolkit) in decision.reason


def test_a_gpu_newer_than_the_compiler_gets_ptx(toolkit) -> None:
    assert decide(toolkit, "13.2", lambda: {B200}).architectures == "9.0+PTX"


def test_without_a_gpu_nothing_is_built(toolkit) -> None:
    decision = decide(toolkit, "13.2", set)
    assert not decision.build and not decision.architectures
    assert decision.reason == "no GPU here, and TORCH_CUDA_ARCH_LIST isn't set"


def test_a_list_of_architectures_asks_for_the_build(toolkit, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;8.6")
    decision = decide(toolkit, "13.2", set)
    assert decision.build and decision.architectures == "7.5;8.6"


def test_1_builds_without_a_gpu(toolkit, monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_CUDA", "1")
    decision = decide(toolkit, "13.2", set)
    assert decision.build and decision.architectures == setup_cuda.DEFAULT_ARCHITECTURES


def test_0_builds_nothing_and_asks_no_gpu(toolkit, monkeypatch) -> None:
    monkeypatch.setenv("VGG_FAST_CUDA", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    decision = decide(toolkit, "13.2", lambda: pytest.fail("a GPU was asked for"))
    assert not decision.build and decision.reason == "VGG_FAST_CUDA=0"


@pytest.mark.parametrize("wish", ["yes", "2", "true"])
def test_another_wish_is_refused(toolkit, monkeypatch, wish) -> None:
    monkeypatch.setenv("VGG_FAST_CUDA", wish)
    with pytest.raises(CudaError, match=f"VGG_FAST_CUDA='{wish}' means nothing: set it to 0 or 1"):
        decide(toolkit, "13.2", set)


def no_toolkit(folder: Path) -> None:
    return None


def broken_toolkit(folder: Path) -> Path:
    write_program(folder / "bin" / "nvcc", "#!/bin/sh\nexit 1\n")
    return folder


@pytest.mark.parametrize(
    ("make", "torch_cuda", "obstacle"),
    [
        (no_toolkit, "13.2", "no CUDA compiler was found"),
        (broken_toolkit, "13.2", "nvcc doesn't run"),
        (make_toolkit, None, "the torch of this build has no CUDA"),
        (make_toolkit, "12.9", "nvcc is of CUDA 13.0 .* and torch of CUDA 12.9"),
    ],
)
def test_an_obstacle(tmp_path, monkeypatch, make, torch_cuda, obstacle) -> None:
    found = make(tmp_path / "toolkit")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    decision = decide(found, torch_cuda, set)
    assert not decision.build
    assert re.search(obstacle, decision.reason)

    monkeypatch.setenv("VGG_FAST_CUDA", "1")
    with pytest.raises(CudaError, match=f"VGG_FAST_CUDA=1, but .*{obstacle}") as error:
        decide(found, torch_cuda, set)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("or set VGG_FAST_CUDA=0")


def test_another_minor_version_is_no_obstacle(toolkit) -> None:
    assert decide(toolkit, "13.9", lambda: {A100}).build


def test_no_two_sources_compile_into_one_object() -> None:
    """An object is called as its source, without the suffix."""
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".cu")]
    objects = [path.with_suffix(".o") for path in sources]
    assert len(set(objects)) == len(objects) > 30
