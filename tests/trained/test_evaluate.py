"""``python -m vgg_fast.evaluate``."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vgg_fast.train.data import CLASSES
from vgg_fast.trained.evaluate import PICTURES, RESULTS, Answers, per_class


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULTS).read_text("utf-8"))


def test_the_whole_program(call: Any, run_in: Path, trained: Any) -> None:
    code, out, err = call("evaluate", run_in)
    assert code == 0, err
    found = results(run_in)
    assert found["accuracy"] == trained.row["test_accuracy"]
    assert found["loss"] == pytest.approx(trained.row["test_loss"], rel=1e-5)
    assert f"accuracy {found['accuracy']:.4f}" in out and "as in the run" in out
    assert all(name in out for name in CLASSES) and "precision" in out and "\x1b" not in out
    assert list(found["classes"]) == list(CLASSES)
    assert sum(map(sum, found["confusion"])) == found["images"] == 500
    right = sum(found["confusion"][i][i] for i in range(10))
    assert right == round(found["accuracy"] * 500)
    sure = [mistake["probability"] for mistake in found["mistakes"]]
    assert sure == sorted(sure, reverse=True) and len(sure) == min(36, 500 - right)
    assert all(mistake["true"] != mistake["predicted"] for mistake in found["mistakes"])
    for name in PICTURES:
        with Image.open(run_in / name) as picture:
            picture.verify()


def test_into_another_folder_on_plain_layers(
    call: Any, run_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Any
) -> None:
    for drawing in ("confusion_matrix", "samples"):  # the test above draws them
        monkeypatch.setattr(f"vgg_fast.train.plots.{drawing}", lambda *_, **__: None)
    before = sorted(run_in.iterdir())
    options = ("--no-fused", "--batch-size", "7", "--output-dir", "a/b")
    code, out, err = call("evaluate", run_in / "checkpoint.pt", *options)
    assert code == 0, err
    assert "plain" in out and sorted(run_in.iterdir()) == before
    assert results(tmp_path / "a/b")["accuracy"] == pytest.approx(trained.row["test_accuracy"])


def test_results_are_saved_though_nobody_reads_the_table(
    call: Any, run_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawing in ("confusion_matrix", "samples"):
        monkeypatch.setattr(f"vgg_fast.train.plots.{drawing}", lambda *_, **__: None)

    def lost(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("vgg_fast.trained.evaluate.Console.print", lost)
    monkeypatch.setattr("vgg_fast.train.output.give_up", lambda: None)  # it's the tests' own output
    code, _, err = call("evaluate", run_in)
    assert code == 128 + signal.SIGPIPE and err.count("\n") == 1 and "Broken pipe" in err
    assert results(run_in)["images"] == 500


def test_precision_recall_and_f1() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [2, 4, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    rows = per_class(confusion, ("a", "b", "c", "d"))
    assert rows["a"] == {"precision": 0.5, "recall": 0.75, "f1": 0.6, "images": 4}
    assert rows["b"] == {
        "precision": 0.8,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(8 / 11),
        "images": 6,
    }
    assert rows["c"] == {"precision": None, "recall": 0.0, "f1": 0.0, "images": 1}
    assert rows["d"] == {"precision": None, "recall": None, "f1": None, "images": 0}


def test_the_surest_mistakes_come_first() -> None:
    labels, predictions = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 0])
    sure = torch.tensor([0.99, 0.6, 0.5, 0.9, 0.7])
    found = Answers(0.0, labels, predictions, sure, torch.zeros(2, 2))
    assert found.mistakes(5).tolist() == [3, 4, 1] and found.mistakes(2).tolist() == [3, 4]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--dataset", "synthetic"], "(0, 1, 2, ..., 10 in all) aren't the network's (T-shirt"),
            (["--dataset", "nothing"], "there is no data set 'nothing'"),
            (["--data-root", "nowhere"], "nowhere lacks"),
            (["--batch-size", "0"], "--batch-size must be at least 1"),
            (["--output-dir", "file/folder"], "can't be written (Not a directory)"),
        ],
    )
    def test_one_sentence(
        self, call: Any, run_in: Path, tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        (tmp_path / "file").write_text("earlier")
        before = sorted(run_in.iterdir())
        code, _, err = call("evaluate", run_in, *arguments)
        assert code == 1 and words in err and err.count("\n") == 1
        assert sorted(run_in.iterdir()) == before
        assert (tmp_path / "file").read_text() == "earlier"
