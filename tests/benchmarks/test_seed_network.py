"""python -m benchmarks.seed_network: the record of a training, its table and its picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import pictures, seed_network
from benchmarks.record import SEED_NETWORK, newest, newest_seed_networks
from vgg_fast.train import program
from vgg_fast.train.folder import METRICS
from vgg_fast.train.tracking import TENSORBOARD

SMALL = ("--preset", "seed", "--width", "0.03", "--image-size", "32", "--classifier-width", "8")
TINY = (*SMALL, "--dataset", "synthetic", "--epochs", "2", "--batch-size", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("seed") / "run"
    assert program.main([*TINY, "--tensorboard", "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def record(run: Path, tmp_path: Path) -> dict:
    path = seed_network.main([str(run), "--output", str(tmp_path)])
    assert path.name.startswith(SEED_NETWORK) and path.parent == tmp_path
    return json.loads(path.read_text())


def test_it_has_the_epochs_and_the_losses_between_them(run: Path, record: dict) -> None:
    metrics = json.loads((run / METRICS).read_text())
    for name in ("history", "result", "parameters"):
        assert record[name] == metrics[name]
    assert record["losses"][-1]["step"] == metrics["history"][-1]["step"]
    assert len(record["losses"]) <= seed_network.MOST_POINTS
    # Every step is in one of the means; the points here stand for as many steps each, or nearly.
    mean = sum(point["loss"] for point in record["losses"]) / len(record["losses"])
    trained = sum(row["train_loss"] for row in metrics["history"]) / 2
    assert mean == pytest.approx(trained, rel=0.05)
    assert str(run) not in json.dumps(record)


def test_the_table_and_the_picture_show_them(record: dict, tmp_path: Path) -> None:
    assert newest(tmp_path) == ([], [])
    (found,) = newest_seed_networks(tmp_path)
    text = "\n".join(seed_network.measured([found]))
    for row in record["history"]:
        assert f"| epoch {row['epoch']} | {row['train_loss']:.3f} |" in text
    assert f"**{100 * record['result']['test_accuracy']:.2f} %** of" in text
    figure = pictures.of_a_training(found)["seed-network"]
    trained, tested = figure.axes[0].get_lines()
    assert list(trained.get_ydata()) == [point["loss"] for point in record["losses"]]
    assert list(tested.get_ydata()) == [row["test_loss"] for row in record["history"]]


def test_without_a_record_it_says_so() -> None:
    assert list(seed_network.measured([])) == ["not measured yet."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"result": None}, "hasn't come to its end"),
        ({"config": {"preset": "fast"}}, 'has the preset "fast"'),
        (None, "can't be read"),
    ],
)
def test_other_runs_are_refused(tmp_path: Path, change: dict | None, message: str) -> None:
    if change is not None:
        metrics = {"config": {"preset": "seed"}, "result": {}, **change}
        kept = {name: value for name, value in metrics.items() if value is not None}
        (tmp_path / METRICS).write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match=message):
        seed_network.main([str(tmp_path)])


def test_a_run_without_losses_between_the_epochs_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / TENSORBOARD)
    with pytest.raises(SystemExit, match="train with --tensorboard"):
        seed_network.main([str(copy)])
