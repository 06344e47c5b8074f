"""python -m vgg_fast.info: what it prints is what the process uses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vgg_fast
from vgg_fast import _bindings, _extension, backends, cpu, info
from vgg_fast.dispatch import choices, environment, route
from vgg_fast.layers import Conv3x3


@pytest.fixture
def facts() -> dict:
    return info.collect()


def test_every_value_survives_json(facts):
    assert json.loads(json.dumps(facts)) == facts


def test_the_versions_are_those_that_run(facts):
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["vgg_fast"] == vgg_fast.__version__


def test_the_build_is_described(facts):
    built = facts["built"]
    assert built["_C"] == "_C.abi3.so"
    assert "-O3" in built["flags"] and built["compiler"] and built["torch_target"] == "2.11"
    cuda = _extension.cuda_library_problem() or str(_extension.cuda_library())
    assert built["_C_cuda"] == cuda


def test_the_instruction_set_is_one_that_the_processor_has(facts):
    assert facts["cpu"]["chosen"] in facts["cpu"]["instruction sets"]
    assert facts["cpu"]["instruction sets"] == _bindings.cpu_instruction_sets()
    assert facts["cpu"]["threads"] == torch.get_num_threads()


def test_every_fused_layer_of_the_seed_network_is_listed(facts):
    net = vgg_fast.seed_vgg(device="meta")
    convolutions = [name for name, layer in net.named_modules() if isinstance(layer, Conv3x3)]
    assert [row["layer"] for row in facts["layers"]] == convolutions
    assert facts["layers"][0]["shape"] == "1→64 at 224²"
    assert facts["layers"][-1]["shape"] == "512→512 at 14²"
    assert all(row["kernels"]["CPU"]["forward"] == "C++" for row in facts["layers"])
    assert facts["layers"][0]["cpu algorithms"]["forward"] == "direct"
    assert facts["layers"][1]["cpu algorithms"]["forward"] == "winograd4"


def test_a_forced_backend_shows(facts):
    with backends.use("reference"):
        row = info.collect()["layers"][0]
    assert row["kernels"]["CPU"] == {"forward": "PyTorch", "backward": "PyTorch"}


def test_a_backend_that_can_t_run_says_why():
    with backends.use("triton"):
        row = info.collect()["layers"][0]
    assert row["kernels"]["CPU"]["forward"].startswith("none: vgg_fast::conv3x3_relu_pool:")


@pytest.fixture
def a_gpu(monkeypatch):
    """torch sees a Hopper GPU, that nothing is launched on."""
    properties = SimpleNamespace(name="Invented GPU", major=9, minor=0, total_memory=2**37)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    choices.family.cache_clear()
    yield
    choices.family.cache_clear()


def test_on_a_gpu_the_layers_choices_are_printed(a_gpu, capsys, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setitem(route._native, ("conv3x3_relu_pool", "CUDA"), lambda *args: None)
    info.main([])
    printed = capsys.readouterr().out
    assert "Invented GPU" in printed and "CUDA" in printed
    layers = info.collect()["layers"]
    assert layers[0]["kernels"]["CUDA"]["forward"] == "C++"
    assert layers[1]["kernels"]["CUDA"] == {"forward": "Triton", "backward": "Triton"}
    with backends.use("reference"):
        assert info.collect()["layers"][1]["kernels"]["CUDA"]["forward"] == "cuDNN"
    with backends.use("cpp"):
        refused = info.collect()["layers"][2]["kernels"]["CUDA"]["forward"]
    assert refused.startswith("none: vgg_fast::conv3x3_relu: no C++ kernel is built for CUDA")


@pytest.mark.parametrize(("backend", "name"), [("cpp", "C++"), ("reference", "cuDNN")])
def test_the_table_for_a_gpu_shows_what_was_forced(backend: str, name: str, capsys):
    with backends.use(backend):
        info.main(["--gpu", "sm_90"])
    printed = capsys.readouterr().out
    assert f"backend '{backend}'" in printed and name in printed and "Triton " not in printed


def test_asking_changes_nothing():
    """No Python comes between the dispatcher and the C++ kernels, which a profiler would see."""
    code = """
import sys, torch
from vgg_fast import info
from vgg_fast.functional import conv3x3
image, weight = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3)

def frames():
    seen = []
    sys.setprofile(lambda frame, event, argument: seen.append(event == "call"))
    with torch.no_grad():
        conv3x3(image, weight)
    sys.setprofile(None)
    return sum(seen)

frames()
before = frames()
info.collect()
print(before, frames())
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert printed[0] == printed[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vgg_fast.info", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_tables():
    printed = run()
    assert printed.returncode == 0, printed.stderr
    for title in ("Versions", "Built", "CPU", "GPU", "Seed network", "Environment"):
        assert title in printed.stdout


def test_the_command_prints_json():
    printed = run("--json")
    assert json.loads(printed.stdout)["backend"] == "auto"


def test_the_command_prints_a_plan():
    printed = run("--plan", "16", "64", "112", "112", "128")
    assert printed.returncode == 0, printed.stderr
    for word in ("forward", "input gradient", "weight gradient", "winograd4", "workspace"):
        assert word in printed.stdout


def test_a_plan_without_images_is_refused_in_one_sentence():
    printed = run("--plan", "0", "64", "112", "112", "128")
    assert printed.returncode == 1
    assert printed.stderr == (
        "python -m vgg_fast.info: a plan needs sizes and threads of at least 1, but got "
        "(0, 64, 112, 112, 128), 2\n"
    ).replace("), 2", f"), {torch.get_num_threads()}")


def test_the_command_prints_every_environment_variable():
    printed = run().stdout
    for name, meaning in environment.VARIABLES.items():
        assert f"{name}=" in printed and meaning in printed


def test_every_variable_that_is_read_is_listed_and_python_reads_them_in_one_place():
    package = Path(vgg_fast.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        # torchrun and others speak to the programs by variables of theirs.
        is_program = file.relative_to(package).parts[0] in ("train", "trained")
        reads = re.search(r'"VGG_FAST_' if is_program else r"os\.(environ|getenv)", text)
        assert not reads or file == Path(environment.__file__), file
    sources = package.parent / "csrc"
    for file in [*sources.rglob("*.cpp"), *sources.rglob("*.h"), *sources.rglob("*.cuh")]:
        named = set(re.findall(r'"(VGG_FAST_[A-Z_]+)"', file.read_text(encoding="utf-8")))
        assert named <= set(environment.VARIABLES), file


def test_the_algorithms_are_those_of_the_cpu_kernels():
    meaning = environment.VARIABLES["VGG_FAST_ALGORITHM"]
    assert meaning == f"the CPU algorithm: {', '.join(cpu.ALGORITHMS[:-1])} or {cpu.ALGORITHMS[-1]}"


def test_the_command_needs_torch_alone():
    code = (
        "import sys\n"
        "extra = ('matplotlib', 'numpy', 'rich', 'torchvision', 'tyro')\n"
        "sys.modules.update(dict.fromkeys(extra))\n"
        "from vgg_fast import info\n"
        "info.main([])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert "Seed network" in printed.stdout


def test_the_help_says_what_it_is_for():
    printed = run("--help")
    assert printed.returncode == 0
    assert "which kernel each layer gets" in printed.stdout and "--json" in printed.stdout


def test_how_threads_wait_is_said(monkeypatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert "set OMP_WAIT_POLICY=passive" in info.collect()["cpu"]["waiting"]
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert info.collect()["cpu"]["waiting"] == "OMP_WAIT_POLICY=passive"
