"""``python -m vgg_fast.export``: every format, loaded as another program would load it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_fast.train.config import TrainingError
from vgg_fast.trained import network
from vgg_fast.trained.export import replaced
from vgg_fast.trained.formats import FORMATS, require

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
needs_safetensors = pytest.mark.skipif(
    importlib.util.find_spec("safetensors") is None, reason="needs safetensors"
)


def expected(trained: Any, images: torch.Tensor) -> torch.Tensor:
    return network.load(trained.folder, "cpu", fused=False).scores(images)


def described(trained: Any) -> dict[str, Any]:
    return network.load(trained.folder, "cpu").input.as_plain_values()


def test_torchscript_needs_torch_alone(call: Any, run_in: Path, trained: Any) -> None:
    code, out, err = call("export", run_in, "--to", "torchscript")
    assert code == 0 and err == ""
    assert "loaded again, its scores differ by 0.0e+00 of the largest at most, and may by" in out
    images = torch.randn(3, 1, 32, 32)
    torch.save((images, expected(trained, images)), "batch.pt")
    program = """
import sys, torch
sys.modules["vgg_fast"] = None
extra = {"input": ""}
program = torch.jit.load("run/network.torchscript", _extra_files=extra)
images, scores = torch.load("batch.pt")
torch.testing.assert_close(program(images), scores, rtol=1e-4, atol=1e-4)
print(extra["input"].decode())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == described(trained)


def test_fused_torchscript_has_the_operators(call: Any, run_in: Path, trained: Any) -> None:
    code, _, err = call("export", run_in, "--to", "torchscript", "--fused", "--output", "f.pt")
    assert code == 0, err
    program = torch.jit.load("f.pt")
    assert "vgg_fast" in str(program.inlined_graph)
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(program(images), expected(trained, images), rtol=1e-4, atol=1e-4)


@needs_safetensors
def test_safetensors_has_torchvisions_keys(call: Any, run_in: Path, trained: Any) -> None:
    from safetensors import safe_open

    code, _, err = call("export", run_in, "--to", "safetensors")
    assert code == 0, err
    with safe_open(run_in / "network.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["input"]) == described(trained)
    own = trained.state["model"]
    pairs = {"features.0": "0.0", "features.2": "0.2", "features.5": "1.0"}
    pairs |= {"classifier.0": "3", "classifier.3": "6", "classifier.6": "9"}
    named = {
        f"{to}.{part}": f"{of}.{part}" for to, of in pairs.items() for part in ("weight", "bias")
    }
    assert set(weights) == set(named)
    for name, of in named.items():
        assert torch.equal(weights[name], own[of])


@needs_onnx
@pytest.mark.parametrize("batch", ["any", "4"])
def test_onnx(call: Any, run_in: Path, trained: Any, batch: str) -> None:
    import onnxruntime

    code, out, err = call("export", run_in, "--to", "onnx", "--batch-size", batch)
    assert code == 0, err
    assert "loaded again" in out
    assert [f.name for f in run_in.iterdir() if "onnx" in f.name] == ["network.onnx"]
    session = onnxruntime.InferenceSession(run_in / "network.onnx")
    assert session.get_inputs()[0].shape[1:] == [1, 32, 32]
    assert json.loads(session.get_modelmeta().custom_metadata_map["input"]) == described(trained)
    for count in (1, 4, 9) if batch == "any" else (4,):
        images = torch.randn(count, 1, 32, 32)
        (scores,) = session.run(["scores"], {"images": images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(scores), expected(trained, images), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_aoti(call: Any, run_in: Path, trained: Any) -> None:
    code, out, err = call("export", run_in, "--to", "aoti", "--output", "n.pt2")
    assert code == 0, err
    assert "loaded again" in out
    program = torch._inductor.aoti_load_package("n.pt2")
    assert json.loads(program.get_metadata()["input"]) == described(trained)
    for count in (1, 6):
        images = torch.randn(count, 1, 32, 32)
        torch.testing.assert_close(program(images), expected(trained, images), rtol=1e-4, atol=1e-4)


class TestNothingIsLost:
    def test_a_program_that_computes_something_else(
        self, call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (run_in / "network.torchscript").write_text("earlier")
        before = sorted(run_in.iterdir())
        work = FORMATS["torchscript"]

        for change, words in (
            (lambda scores: scores * 1.001, "scores differ by 1.0e-03 of the largest"),
            (lambda scores: scores * float("nan"), "scores differ by nan of the largest"),
            (lambda scores: scores[:, 1:], "gives (1, 9) scores, and the network (1, 10)"),
        ):

            def read(path: Path, trained: Any, change: Any = change) -> Any:
                program = work.read(path, trained)
                assert program is not None
                return lambda images: change(program(images))

            monkeypatch.setitem(FORMATS, "torchscript", work._replace(read=read))
            code, _, err = call("export", run_in, "--to", "torchscript")
            assert code == 1 and words in err and err.count("\n") == 1
            assert (run_in / "network.torchscript").read_text() == "earlier"
            assert sorted(run_in.iterdir()) == before

    def test_an_exporter_that_fails(
        self, call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(*_: Any) -> None:
            raise ValueError("no such operator\nmore")

        work = FORMATS["torchscript"]._replace(write=write)
        monkeypatch.setitem(FORMATS, "torchscript", work)
        before = sorted(run_in.iterdir())
        code, _, err = call("export", run_in, "--to", "torchscript")
        assert code == 1 and err.endswith("can't be exported to torchscript: no such operator\n")
        assert sorted(run_in.iterdir()) == before

    def test_what_was_interrupted(self, tmp_path: Path) -> None:
        (tmp_path / "n.onnx").write_text("earlier")
        with pytest.raises(KeyboardInterrupt), replaced(tmp_path / "n.onnx", "onnx") as path:
            path.write_text("half")
            raise KeyboardInterrupt
        assert (tmp_path / "n.onnx").read_text() == "earlier"
        assert [f.name for f in tmp_path.iterdir()] == ["n.onnx"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["onnx", "--fused"], "--fused isn't for --to onnx"),
            (["safetensors", "--fused"], "--fused isn't for --to safetensors"),
            (["torchscript", "--batch-size", "3"], "takes any number of images: leave out --batch"),
            (["onnx", "--batch-size", "0"], "--batch-size must be any, or at least 1"),
            (["torchscript", "--output", "file/n"], "file/n can't be written (File exists)"),
            (["torchscript", "--output", "run"], "run can't be written (Is a directory)"),
        ],
    )
    def test_one_sentence(
        self, call: Any, run_in: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        (tmp_path / "file").write_text("earlier")
        before = sorted(tmp_path.rglob("*"))
        code, _, err = call("export", run_in, "--to", *arguments)
        assert code == 1 and words in err and err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("package", ["onnx", "onnxscript", "safetensors"])
    def test_a_package_that_is_missing(
        self, call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        to = "safetensors" if package == "safetensors" else "onnx"
        for name in FORMATS[to].packages:
            monkeypatch.setitem(sys.modules, name, None if name == package else sys)
        code, _, err = call("export", run_in, "--to", to)
        assert code == 1 and err == (
            f"python -m vgg_fast.export: {package} isn't installed, and --to {to} needs it: "
            f"pip install {' '.join(FORMATS[to].packages)}\n"
        )

    def test_without_onnxruntime_it_says_that_nothing_was_checked(
        self, call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        work = FORMATS["onnx"]._replace(packages=(), write=lambda t, b, path: path.write_text("x"))
        monkeypatch.setitem(FORMATS, "onnx", work)
        code, out, _ = call("export", run_in, "--to", "onnx")
        assert code == 0 and "onnxruntime isn't installed, so what the file computes is unch" in out

    def test_a_package_of_a_package(self) -> None:
        require(("json",), "this")
        with pytest.raises(TrainingError, match=r"^nowhere_at_all isn't installed, and this needs"):
            require(("nowhere_at_all.part",), "this")
