"""report.html: one file, with everything that metrics.json says of a run."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import shlex
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import tyro
from matplotlib.image import imread
from rich.console import Console

from tests.train.test_train import SAMPLE, TINY, Run, metrics, run
from tests.train.test_watching import cut_at
from vgg_fast.train import charts, data, report
from vgg_fast.train.config import resolved
from vgg_fast.train.loop import SAMPLES, Training
from vgg_fast.train.options import Config
from vgg_fast.train.progress import Progressing
from vgg_fast.train.rows import ROW

__all__ = ["run"]

VOID = {"meta", "img", "br"}
LINKS = {"src", "href", "xlink:href", "data", "action", "srcset", "poster"}


class Page(HTMLParser):
    """What stands in a page; fails where a tag is left open, or closed twice."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.wholes: list[str] = []
        self.blocks: dict[str, list[str]] = {}
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in LINKS]
        if tag == "td":
            self.wholes.append(dict(attributes).get("title") or "")
        if tag not in VOID:
            self.open.append(tag)
            self.blocks.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, words: str) -> None:
        for tag in set(self.open):
            self.blocks[tag][-1] += words


def trained(**options: Any) -> Training:
    """A run without steps, as the report sees it."""
    common = dict(preset="fast", arch="1x8", width=1, image_size=28, classifier_width=16,
                  device="cpu", batch_size=50)  # fmt: skip
    return Training(resolved(Config(**{**common, **options})), data.load(root=SAMPLE))


def row(epoch: int, **more: float) -> dict[str, Any]:
    values = dict.fromkeys(ROW, 0.5 / epoch)
    return {**values, "epoch": epoch, "step": 10 * epoch, **more}


def test_everything_is_in_the_file(run: Run) -> None:
    code, _, err = run("--fused", "--epochs", "2", "--output-dir", "run")
    assert code == 0, err
    page = Page(Path("run", report.NAME))
    last = metrics("run")["history"][-1]
    for name, value in last.items():
        assert str(value) in page.wholes, name
    shown = page.blocks["td"]
    assert f"{last['test_loss']:.4f}" in shown and f"{last['test_accuracy']:.4f}" in shown
    assert f"{100 * last['test_accuracy']:.2f} %" in page.blocks["dd"]
    assert f"{metrics('run')['parameters']:,}" in page.blocks["dd"]
    assert metrics("run")["cpu"]["name"] in " ".join(shown)
    assert metrics("run")["versions"]["torch"] in shown
    assert "fused conv 3×3, ReLU" in shown and "28×28" in " ".join(shown)
    assert "The run has ended, after step 20 of 20, in epoch 2 of 2." in " ".join(
        "".join(page.blocks["p"]).split()
    )


def test_nothing_is_outside_of_the_file(run: Run) -> None:
    run("--epochs", "2", "--output-dir", "run")
    page = Page(Path("run", report.NAME))
    assert page.tags.count("img") == SAMPLES == len(page.links)
    for link in page.links:
        assert link.startswith("data:image/png;base64,")
        picture = imread(io.BytesIO(base64.b64decode(link.partition(",")[2])))
        assert picture.shape[:2] == (28, 28)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    for word in ("http:", "https:", "@import", "url("):
        assert word not in page.source
    assert page.tags.count("svg") == 4  # three curves, and the confusion matrix


def test_while_it_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_at(13, patch)
        assert run("--epochs", "2", "--output-dir", "run")[0] == 130
    page = Page(Path("run", report.NAME))
    words = " ".join("".join(page.blocks["p"]).split())
    assert "The run goes on: this is its state after step 10 of 20." in words
    assert page.tags.count("svg") == 3 and "img" not in page.tags
    assert str(metrics("run")["history"][-1]["test_loss"]) in page.wholes


def test_the_commands_do_what_they_say(run: Run) -> None:
    run("--fused", "--epochs", "1", "--no-channels-last", "--output-dir", "my run")
    resume, repeat = Page(Path("my run", report.NAME)).blocks["pre"]
    assert shlex.split(resume) == ["python", "-m", "vgg_fast.train", "--resume", "my run"]
    words = shlex.split(repeat)
    assert words[:3] == ["python", "-m", "vgg_fast.train"]
    again = resolved(tyro.cli(Config, args=words[3:]))
    asked = resolved(
        tyro.cli(Config, args=[*TINY, "--fused", "--epochs", "1", "--no-channels-last"])
    )
    assert again == asked
    assert "--output-dir" not in words and "--threads" not in words


def test_amp_is_repeated_too(tmp_path: Path) -> None:
    words = shlex.split(report.command(resolved(Config(device="cpu", amp=True))))
    assert words[-1] == "--amp"  # the program makes --amp=True of it


def test_words_from_outside_are_escaped(tmp_path: Path) -> None:
    training = trained()
    classes = tuple(f"<b>{n}&" for n in range(10))
    training.data = dataclasses.replace(training.data, classes=classes)
    training.history = [row(1)]
    training.confusion = torch.full((10, 10), 3)
    folder = tmp_path / "<i>\udcff"
    folder.mkdir()
    report.Report(training, folder).write(is_over=True)
    page = Page(folder / report.NAME)
    assert "b" not in page.tags and "i" not in page.tags
    assert any("<b>3&" in block for block in page.blocks["text"])
    assert "\\udcff" in page.blocks["pre"][0]


def test_is_quick_enough_for_every_epoch(tmp_path: Path) -> None:
    training = trained()
    training.history = [row(n) for n in range(1, 31)]
    made = report.Report(training, tmp_path)
    made.write()
    times = []
    for _ in range(5):
        started = time.process_time()
        made.write()
        times.append(time.process_time() - started)
    assert min(times) < 0.05


class TestHistories:
    @pytest.mark.parametrize("epochs", [0, 1, 2, 250])
    def test_of_any_length(self, tmp_path: Path, epochs: int) -> None:
        training = trained()
        training.history = [row(n) for n in range(1, epochs + 1)]
        report.Report(training, tmp_path).write(is_over=True)
        page = Page(tmp_path / report.NAME)
        rows = sum(whole != "" for whole in page.wholes) / len(ROW)
        assert rows == min(epochs, report.MOST_ROWS)
        assert page.tags.count("svg") == (3 if epochs else 0)
        assert ("in history.csv" in page.source) == (epochs == 250)

    def test_columns_that_only_some_rows_have(self, tmp_path: Path) -> None:
        training = trained()
        training.history = [row(1), row(2, test_accuracy_averaged=0.875)]
        report.Report(training, tmp_path).write()
        page = Page(tmp_path / report.NAME)
        assert "test accuracy averaged" in page.blocks["th"] and "0.8750" in page.blocks["td"]
        assert "test averaged" in page.blocks["text"]

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        training = trained()
        training.history = [row(1), row(2, test_loss=math.nan), row(3, test_loss=math.inf)]
        report.Report(training, tmp_path).write()
        page = Page(tmp_path / report.NAME)
        assert "nan" in page.blocks["td"] and "inf" in page.blocks["td"]
        svgs = page.source.split("<svg")[1:]
        assert not any("nan" in svg.partition("</svg>")[0] for svg in svgs)


class TestCharts:
    @pytest.mark.parametrize(
        ("low", "high"), [(0, 1), (0.71, 0.93), (0, 2.9), (1, 8), (1, 10**6), (0, 1e-5), (5, 5)]
    )
    def test_ticks_are_round_and_enclose(self, low: float, high: float) -> None:
        found = charts.ticks(low, high)
        assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9
        assert len(found) == 1 or 4 <= len(found) <= 8
        assert all(abs(float(f"{tick:.3g}") - tick) < 1e-9 for tick in found)

    def test_a_curve_stays_inside_and_goes_up_where_it_should(self) -> None:
        line = charts.Line("train", [0.2, 0.5, 0.9])
        root = ElementTree.fromstring(charts.curves("Accuracy", [1, 2, 3], [line], True))
        circles = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle")]
        assert [title.text for title in root.iter("title")] == [
            *("epoch 1, train: 20 %", "epoch 2, train: 50 %", "epoch 3, train: 90 %")
        ]
        across, down = zip(*circles, strict=True)
        assert list(across) == [charts.LEFT, (charts.LEFT + charts.RIGHT) / 2, charts.RIGHT]
        assert charts.BOTTOM >= down[0] > down[1] > down[2] >= charts.TOP

    @pytest.mark.parametrize("classes", [2, 10, 30, 100])
    def test_confusion(self, classes: int) -> None:
        counts = torch.eye(classes, dtype=torch.long) * 40
        counts[1, 0] = 10
        names = [f"class {n}" for n in range(classes)]
        root = ElementTree.fromstring(charts.confusion(counts, names))
        shown = [title.text for title in root.iter("title")]
        assert len(shown) == classes + 1 and "class 1 taken for class 0: 10" in shown
        (wrong,) = (r for r in root.iter("rect") if r.get("class") == "wrong")
        assert float(wrong.get("fill-opacity", 0)) == pytest.approx(0.85 * 0.2**0.5, abs=0.01)
        words = [text.text for text in root.iter("text")]
        assert words.count("40") == (classes if classes <= charts.MOST_NUMBERS else 0)
        assert words.count("class 1") == (2 if classes <= charts.MOST_NAMES else 0)

    @pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 8, 12)])
    def test_a_picture_is_what_it_was(self, shape: tuple[int, ...]) -> None:
        image = torch.randint(256, shape, dtype=torch.uint8)
        address = charts.picture(image)
        read = torch.from_numpy(imread(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
        read = (255 * read[..., :3]).round().to(torch.uint8).movedim(-1, 0)
        expected = image if shape[0] == 3 else 255 - image.reshape(1, 28, 28)  # ink on white
        assert (read.int() - expected.int()).abs().max() <= 1


def test_the_most_frequent_mistakes() -> None:
    counts = torch.tensor([[90, 7, 3], [0, 50, 0], [12, 0, 8]])
    assert list(report.confused(counts, ("a", "b", "c"))) == [
        ("c", "a", 12, 0.6),
        ("a", "b", 7, 0.07),
        ("a", "c", 3, 0.03),
    ]


def test_the_samples_are_what_the_network_sees(tmp_path: Path) -> None:
    training = trained()
    *_, training.confusion = training.evaluate(Progressing(Console(quiet=True)))
    report.Report(training, tmp_path).write(is_over=True)
    page = Page(tmp_path / report.NAME)
    predicted = training.predict(training.data.test.images[:SAMPLES])
    right = int((predicted == training.data.test.labels[:SAMPLES]).sum())
    assert page.source.count('<div class="good">') == right
    assert page.source.count('<div class="bad">') == SAMPLES - right
    wrong = (predicted != training.data.test.labels[:SAMPLES]).nonzero().flatten().tolist()
    assert wrong, "a network that has learnt nothing"
    assert f"✗ {training.data.classes[int(predicted[wrong[0]])]}" in page.source
