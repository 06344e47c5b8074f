"""python -m benchmarks.features: what is compared and measured, its record, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peak
from benchmarks.features import __main__ as features
from benchmarks.features import losses, measure, memory, work
from benchmarks.features.record import MEGAPIXEL, megapixels_per_gb
from benchmarks.features.work import CURVE, Candidate, works
from benchmarks.record import environment
from tests.support.numerics import relative_error
from tests.support.report import made, page_of, put

QUICK = works(quick=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # other packages' use of what is deprecated
WITHOUT_COMPILER = {"rounds": 1, "compiles": False}


def run(*arguments: str | Path) -> Path | None:
    return features.main(["--threads", str(torch.get_num_threads()), *map(str, arguments)])


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------- compared and measured


@pytest.mark.parametrize("name", QUICK)
def test_every_way_computes_the_same(name) -> None:
    found = measure.timed(QUICK[name], **WITHOUT_COMPILER)
    for way, numbers in found["ways"].items():
        if "isn't installed" in numbers.get("problem", ""):
            continue
        if QUICK[name].is_kept and way == "piq":
            assert numbers["problem"] == "computes the target's features at every call"
            continue
        value, gradient = numbers["errors"]["fp64"]
        assert value <= 1e-5 and gradient <= 1e-4, way
        assert numbers["seconds"]["median"] > 0 and numbers["ratio"]["median"] > 0


def test_piqs_content_loss_is_ours_where_it_sees_the_target_anew() -> None:
    pytest.importorskip("piq")
    ours, theirs = (
        Candidate(works()["content-target"], way, torch.float64).step(32)()
        for way in ("vgg_fast", "piq")
    )
    assert relative_error(ours[0], theirs[0]) < 1e-5
    assert relative_error(ours[1], theirs[1]) < 1e-4


def test_under_autocast_it_is_compared_more_loosely() -> None:
    half = works()["content-bf16"]
    quick = work.Work(**{**vars(QUICK["content"]), "precision": half.precision})
    ways = measure.timed(quick, **WITHOUT_COMPILER)["ways"]
    assert ways["vgg_fast"]["ratio"] and ways["channels_last"]["ratio"]
    assert ways["vgg_fast"]["errors"]["bf16"][0] > 1e-5  # it was in bf16 indeed


class Doubled(losses.OfMap):
    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(images, target)


class NotANumber(losses.OfMap):
    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        return super().forward(images, target) * float("nan")


class Broken(losses.OfMap):
    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Doubled, "computes something else: its value in fp64 is 1e+00 off"),
        (NotANumber, "computes something else: its value in fp64 is nan off"),
        (Broken, "failed: ValueError: no"),
    ],
)
def test_what_is_not_equal_is_not_timed(monkeypatch, tmp_path, kind, words) -> None:
    source = losses.Source("vgg_fast", lambda: kind(losses.vgg16()))
    monkeypatch.setitem(losses.LOSSES["features"], "vgg_fast", source)
    monkeypatch.setattr(features, "Worker", InThisProcess)
    found = measure.timed(QUICK["features"], **WITHOUT_COMPILER)
    assert found["ways"]["vgg_fast"]["problem"] == words
    assert "seconds" not in found["ways"]["vgg_fast"] and "seconds" in found["ways"]["eager"]
    with pytest.raises(SystemExit, match="features, vgg_fast: "):  # a trial tells of it
        run("--quick", "--only", "^features$", "--json", tmp_path / "features.json")


def test_without_eager_there_is_nothing_to_compare_with(monkeypatch) -> None:
    source = losses.Source("no_such_package", nn.Identity)
    monkeypatch.setitem(losses.LOSSES["features"], "theirs", source)
    ways = measure.timed(QUICK["features"], **WITHOUT_COMPILER)["ways"]
    reason = "can't be compared: no_such_package isn't installed (pip install no_such_package)"
    assert ways["vgg_fast"]["problem"] == reason


def test_what_is_kept_is_counted_once_and_without_parameters(monkeypatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(100_000))

        def forward(self, images: Tensor, target: Tensor) -> Tensor:
            return (images * images * self.weight[0]).sin().sum()

    source = losses.Source("torch", Twice)
    monkeypatch.setitem(losses.LOSSES["features"], "theirs", source)
    # The image, kept twice, and its square: two times three channels of 4 bytes.
    assert measure.kept_per_pixel(QUICK["features"], "eager", 64) == pytest.approx(24, rel=0.01)


def test_ours_keeps_less_than_a_tenth_of_what_eager_keeps() -> None:
    ours, eager = (
        measure.kept_per_pixel(QUICK["features"], name) for name in ("vgg_fast", "eager")
    )
    assert 0 < 10 * ours < eager


def test_peak_memory_in_a_process_of_its_own() -> None:
    found = memory.in_a_process(CURVE, "eager", threads=1, limit=16, size=128)
    # Both maps of the first block at 128², 64 channels, and the gradient of one.
    assert found["bytes"] > 3 * 4 * 64 * 128**2
    found = memory.in_a_process(CURVE, "eager", threads=1, limit=0.75, size=2048)
    assert found == {"problem": "needs more than 0.75 GiB"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match="there is no 'no-such-way': choose one of vgg_fast, "):
        memory.main(["curve", "no-such-way"])
    with pytest.raises(SystemExit, match="no part fits 'nothing'"):
        run("--only", "nothing")
    with pytest.raises(SystemExit, match="no regular expression"):
        run("--only", "(")


def test_megapixels_for_a_gb_come_from_the_slope() -> None:
    points = [
        {"megapixels": size**2 / MEGAPIXEL, "bytes": 5e8 + 400 * size**2}
        for size in (512, 1024, 4096)
    ]
    assert megapixels_per_gb(points) == pytest.approx(2.5)
    assert megapixels_per_gb(points[:1]) is None
    assert megapixels_per_gb([{**point, "bytes": 7} for point in points]) is None


# ------------------------------------------------------------------------------------- the record


class InThisProcess:
    """Stands for :class:`benchmarks.models.worker.Worker`, whose process knows no patches."""

    def __init__(self, threads: int) -> None:
        pass

    def __call__(self, function, *arguments: object) -> object:
        return function(*arguments)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Parts:
    """Stands for what measures; notes what it was asked for."""

    def __init__(self, fails_at: str | None = None, dies_at: str | None = None) -> None:
        self.fails_at, self.dies_at, self.asked = fails_at, dies_at, []

    def timed(self, work: work.Work, rounds: int, compiles: bool) -> dict:
        self.begin(work.name)
        return {"rounds": rounds, "ways": {"vgg_fast": way(0.5, 1.0), "eager": way(1.0, 2.0)}}

    def kept_per_pixel(self, work: work.Work, name: str) -> float:
        self.begin(f"kept {name}")
        return {"vgg_fast": 38.0, "eager": 1452.0}[name]

    def in_a_process(self, work, name, threads, limit, size=None) -> dict:
        if size is not None:
            self.begin(f"curve {name} {size}")
            if name == "eager" and size > 1024:
                return {"problem": "needs more than 16 GiB"}
        pixels = (size or work.size) ** 2
        return {"bytes": {"vgg_fast": 200, "eager": 1000}[name] * pixels}

    def begin(self, name: str) -> None:
        if name == self.fails_at:
            raise KeyboardInterrupt
        if name == self.dies_at:
            raise RuntimeError("the process died")
        self.asked.append(name)


def way(seconds: float, ratio: float) -> dict:
    spread = {"median": seconds, "q1": seconds, "q3": seconds}
    ratios = {"median": ratio, "q1": 0.9 * ratio, "q3": 1.1 * ratio}
    errors = {"fp64": [2e-9, 3e-8], "fp32": [1e-7, 1e-3]}
    return {"version": "1.2", "errors": errors, "seconds": spread, "ratio": ratios, "times": []}


@pytest.fixture
def parts(monkeypatch) -> Parts:
    found = Parts()
    install(monkeypatch, found)
    return found


def install(monkeypatch, found: Parts) -> None:
    monkeypatch.setattr(measure, "timed", found.timed)
    monkeypatch.setattr(measure, "kept_per_pixel", found.kept_per_pixel)
    monkeypatch.setattr(memory, "in_a_process", found.in_a_process)
    monkeypatch.setattr(features, "Worker", InThisProcess)
    monkeypatch.setattr(peak, "has_matrix_tiles", lambda: False)


def test_a_whole_run_has_a_record(tmp_path, parts, monkeypatch, capsys) -> None:
    monkeypatch.setattr(features, "RESULTS", tmp_path)
    path = run()
    assert path.parent == tmp_path and path.name.startswith("features-")
    assert list(tmp_path.iterdir()) == [path]
    found = read(path)
    assert found["cpu"] == environment()["cpu"] and found["threads"] == torch.get_num_threads()
    assert [row["name"] for row in found["rows"]] == list(works())
    (half,) = (row for row in found["rows"] if row["precision"] == "bf16")
    assert half["ways"] == {} and "no matrix tiles (AMX)" in half["problem"]
    assert found["rows"][0]["ways"]["eager"]["memory"] == {"bytes": 1000 * 256**2}
    assert found["kept"]["bytes_per_pixel"] == {"vgg_fast": 38.0, "eager": 1452.0}
    ours, eager = (found["curve"]["ways"][name] for name in ("vgg_fast", "eager"))
    assert [point["size"] for point in ours["points"]] == [512, 1024, 2048, 4096]
    assert [point["size"] for point in eager["points"]] == [512, 1024, 2048]  # and no further
    assert ours["megapixels_per_gb"] == pytest.approx(5)
    assert eager["megapixels_per_gb"] == pytest.approx(1)
    assert "eager at 2048²: needs more than 16 GiB" in capsys.readouterr().out
    assert run("--only", "lpips") is None and run("--quick") is None and run("--no-memory") is None


def test_a_run_that_was_cut_short_is_continued(tmp_path, monkeypatch) -> None:
    path, partial = tmp_path / "features.json", tmp_path / "features.partial.json"
    install(monkeypatch, Parts(fails_at="features-1024"))
    with pytest.raises(SystemExit, match=r"interrupted; --resume .*features\.partial\.json"):
        run("--rounds", 3, "--json", path)
    names = ["lpips", "content", "content-target", "content-bf16", "features"]
    assert [row["name"] for row in read(partial)["rows"]] == names and not path.exists()
    with pytest.raises(SystemExit, match=r"cut short left .*features\.partial\.json"):
        run("--json", path)
    with pytest.raises(SystemExit, match="begun with --rounds 3: leave that out"):
        run("--rounds", 5, "--resume", partial)
    with pytest.raises(SystemExit, match="leave --json out"):
        run("--json", path, "--resume", partial)

    install(monkeypatch, second := Parts())
    assert run("--resume", partial) == path
    assert second.asked[:3] == ["features-1024", "features-2048", "kept vgg_fast"]
    found = read(path)
    assert [row["name"] for row in found["rows"]] == list(works()) and not partial.exists()
    assert found["rows"][-1]["rounds"] == 3 and "curve" in found and "kept" in found


def test_a_part_that_dies_is_tried_again(tmp_path, monkeypatch, capsys) -> None:
    path, partial = tmp_path / "features.json", tmp_path / "features.partial.json"
    install(monkeypatch, Parts(dies_at="content"))
    with pytest.raises(SystemExit, match=r"content failed; --resume .* tries again"):
        run("--json", path)
    assert "content: RuntimeError: the process died" in capsys.readouterr().out
    assert not path.exists() and len(read(partial)["rows"]) == len(works()) - 1
    install(monkeypatch, second := Parts())
    assert run("--resume", partial) == path and second.asked == ["content"]
    assert [row["name"] for row in read(path)["rows"]] == list(works())


@pytest.mark.parametrize(
    "changed", [{"cpu": "Another CPU"}, {"commit": {"hash": "0000000", "dirty": False}}]
)
def test_other_numbers_are_not_added(tmp_path, parts, changed) -> None:
    partial = tmp_path / "features.partial.json"
    run("--only", "lpips", "--json", tmp_path / "features.json")
    before = {**read(tmp_path / "features.json"), **changed}
    partial.write_text(json.dumps(before), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^benchmarks\.features: .* can't be continued here"):
        run("--resume", partial)
    partial.write_text("{")
    with pytest.raises(SystemExit, match=r"^benchmarks\.features: .* isn't a record"):
        run("--resume", partial)


# ------------------------------------------------------------------------------ what is told of it


def whole(tmp_path: Path, **more) -> dict:
    run("--json", tmp_path / "features.json")
    invented = {"cpu": "Invented CPU", "threads": 2, "date": "2026-01-02T03:04:05+00:00"}
    return {**read(tmp_path / "features.json"), **invented, **more}


def test_a_record_is_told(root, tmp_path, parts) -> None:
    put(root, "features-a.json", whole(tmp_path))
    pages = made(root)
    assert "On CPUs: not measured yet." in pages["networks"]  # it is no record of benchmarks.run
    told = pages["features"]
    assert "relative to `vgg_fast.features` on 2 threads of Invented CPU" in told
    assert "| LPIPS of pairs at 256², batch 4 | **2.00** (1.80–2.20) |\n" in told
    assert "| LPIPS of pairs at 256², batch 4: peak memory | 5.00 |\n" in told
    assert "| vgg_fast | 1.2 | 500 | 1.00 | 0.90–1.10 | 2e-09 | 3e-08 | 12 MiB |\n" in told
    assert "| | 512² | 1024² | 2048² | 4096² |\n" in told
    assert "| vgg_fast | 50 | 200 | 800 | 3200 |\n| eager | 250 | 1000 | – | – |\n" in told
    assert "- eager at 2048²: needs more than 16 GiB" in told
    for once in (
        "for each pixel of the image: vgg_fast **38**, eager **1452** (VGG-16 to",
        "- Megapixels for each GB of memory: vgg_fast **5.00**, eager **1.00** (",
        "bf16 autocast: not measured on this processor, which has no matrix tiles (AMX)",
    ):
        assert told.count(once) == 1
    images = {path.name for path in (root / "docs" / "images").iterdir()}
    assert images == {"memory-features.svg", "summary.svg"}
    assert "../images/memory-features.svg" in told
    page = page_of(root)
    assert "Perceptual losses: 2 threads of Invented CPU" in page and page.count("<svg") == 1
    assert "eager 1452" in page and "no matrix tiles" in page and "0.90–1.10" in page


def test_the_newest_whole_record_of_a_machine_is_told(root, tmp_path, parts) -> None:
    found = whole(tmp_path)
    later = {"date": "2026-02-01T00:00:00+00:00"}
    put(root, "features-a.json", {**found, "cpu": "Another CPU"})
    put(root, "features-b.json", {**found, "date": "2025-01-01T00:00:00+00:00"})
    put(root, "features-c.json", {**found, **later})
    put(root, "features-d.partial.json", {**found, "date": "2026-03-01T00:00:00+00:00"})
    for name, part in {"e": {"quick": True}, "f": {"only": "l"}, "g": {"memory": False}}.items():
        options = {**found["options"], **part}
        put(root, f"features-{name}.json", {**found, "options": options, "date": "2026-04-01"})
    told = made(root)["features"]
    relative, every_way = told.split("<!-- /report:features -->")
    assert "2026-02-01" in relative and "Another CPU" not in relative
    assert every_way.index("2026-02-01") < every_way.index("Another CPU")
    assert not any(date in told for date in ("2025-01-01", "2026-03-01", "2026-04-01"))


def test_without_a_record_nothing_is_claimed(root) -> None:
    told = made(root)["features"]
    assert "Time and memory: not measured yet." in told
    assert "Perceptual losses: not measured yet." in told
    page = page_of(root)
    assert "<code>python -m benchmarks.features</code> measures them" in page
