"""``--init`` and ``--freeze-features``: torchvision's own networks, in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from tests.train.test_train import Run, assert_same_run, metrics, run, weights
from vgg_fast.features.extractor import IMAGENET_MEAN, IMAGENET_STD
from vgg_fast.models import VGG
from vgg_fast.train import checkpoint, initial
from vgg_fast.train.config import TrainingError

__all__ = ["run"]

LAYERS: list[str | int] = [8, "M", 16, "M"]  # as TINY has them


def features(batch_norm: bool = False, layers: list[str | int] = LAYERS) -> nn.Sequential:
    """Those of torchvision's VGG, with random weights and statistics."""
    torch.manual_seed(3)
    network = make_layers(layers, batch_norm)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + (0.5 if "var" in name else -0.5))
    return network.eval()


def state_of(network: nn.Sequential) -> dict[str, Tensor]:
    """As torchvision's file has it, with a classifier that nobody wants."""
    state = {f"features.{name}": tensor for name, tensor in network.state_dict().items()}
    return {**state, "classifier.0.weight": torch.rand(3, 3)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(state_of(features()), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


def features_of_ours(model: VGG) -> nn.Sequential:
    return nn.Sequential(*initial.features_of(model))


class TestLoading:
    @pytest.mark.parametrize("fused", [True, False])
    def test_colour(self, file: Path, fused: bool) -> None:
        model = VGG(((1, 8), (1, 16)), 3, 12, classifier_width=8, fused=fused).eval()
        classifier = model[-1].weight.clone()
        initial.load_convolutions(model, file)
        images = torch.rand(2, 3, 12, 12)
        with torch.no_grad():
            torch.testing.assert_close(features_of_ours(model)(images), features()(images))
        assert torch.equal(model[-1].weight, classifier)

    def test_grey_is_what_a_grey_colour_image_gives(self, file: Path) -> None:
        model = VGG(((1, 8), (1, 16)), 1, 12, classifier_width=8).eval()
        initial.load_convolutions(model, file)
        images = torch.rand(2, 1, 12, 12)
        with torch.no_grad():
            found = features_of_ours(model)(images)
            torch.testing.assert_close(found, features()(images.expand(-1, 3, -1, -1)))

    def test_the_names_are_torchvisions(self) -> None:
        """Of VGG-16, by position: without and with batch norm, which VGG here may lack."""
        blocks = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
        theirs: list[str | int] = []
        for count, channels in blocks:
            theirs += [*(count * [channels]), "M"]
        with torch.device("meta"):
            ours = VGG(blocks, 3, 32, classifier_width=8)
            names = dict(initial._tensors(ours))
            expected = TorchvisionVGG(make_layers(theirs)).state_dict()  # type: ignore[arg-type]
        wanted = {k: v.shape for k, v in expected.items() if k.startswith("features.")}
        assert {name: tensor.shape for name, tensor in names.items()} == wanted

    @pytest.mark.parametrize("has_counts", [True, False])
    def test_batch_norm(self, tmp_path: Path, has_counts: bool) -> None:
        state = state_of(features(batch_norm=True))
        state["features.1.num_batches_tracked"] += 7
        if not has_counts:  # files of before 2018
            state = {k: v for k, v in state.items() if "num_batches" not in k}
        torch.save(state, tmp_path / "bn.pth")
        model = with_batch_norm()
        initial.load_convolutions(model, tmp_path / "bn.pth")
        images = torch.rand(2, 3, 12, 12)
        with torch.no_grad():
            torch.testing.assert_close(
                features_of_ours(model.eval())(images), features(batch_norm=True)(images)
            )
        assert int(model[0][1].num_batches_tracked) == (7 if has_counts else 0)

    def test_safetensors(self, file: Path) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(state_of(features()), file.with_suffix(".safetensors"))
        models = [VGG(((1, 8), (1, 16)), 3, 12, classifier_width=8) for _ in range(2)]
        for model, path in zip(models, (file, file.with_suffix(".safetensors")), strict=True):
            initial.load_convolutions(model, path)
        for a, b in zip(*(features_of_ours(m).parameters() for m in models), strict=True):
            assert torch.equal(a, b)


def with_batch_norm() -> VGG:
    """A VGG with batch norms between convolutions and ReLU, put together by hand."""
    model = VGG(((1, 8), (1, 16)), 3, 12, classifier_width=8, fused=False)
    for i, channels in ((0, 8), (1, 16)):
        conv, relu, pool = model[i].children()
        model[i] = nn.Sequential(conv, nn.BatchNorm2d(channels), relu, pool)
    return model


class TestMismatch:
    @pytest.mark.parametrize(
        ("layers", "batch_norm", "words"),
        [
            ([8, "M", 17, "M"], False, r"its features.3.weight is \(17, 8, 3, 3\), and this"),
            ([8, "M", 16, 16, "M"], False, "its features.5.weight is .*network's is missing"),
            ([8, "M"], False, r"its features.3.weight is missing, and this network's is \(16, 8"),
            ([8, 16, "M"], False, "its features.3.weight is missing"),  # only pooling differs
            ([8, "M", 16, "M"], True, "its features.3.weight is missing"),
        ],
    )
    def test_names_the_first_difference(
        self, tmp_path: Path, layers: list[str | int], batch_norm: bool, words: str
    ) -> None:
        torch.save(state_of(features(batch_norm, layers)), tmp_path / "other.pth")
        model = VGG(((1, 8), (1, 16)), 3, 12, classifier_width=8)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(TrainingError, match=words) as raised:
            initial.load_convolutions(model, tmp_path / "other.pth")
        assert "--arch" in str(raised.value) and "\n" not in str(raised.value)
        assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())

    def test_grey_weights_in_a_colour_network(self, tmp_path: Path) -> None:
        state = state_of(features())
        state["features.0.weight"] = state["features.0.weight"][:, :1]
        torch.save(state, tmp_path / "grey.pth")
        model = VGG(((1, 8), (1, 16)), 3, 12, classifier_width=8)
        with pytest.raises(TrainingError, match=r"is \(8, 1, 3, 3\), and this network's is \(8, 3"):
            initial.load_convolutions(model, tmp_path / "grey.pth")

    @pytest.mark.parametrize(
        ("write", "words"),
        [
            (lambda path: None, "there is no file"),
            (lambda path: path.write_bytes(b"text"), "no readable file of tensors"),
            (lambda path: path.write_bytes(b""), "no readable file of tensors"),
            (lambda path: torch.save([1, 2], path), "holds a list"),
            (lambda path: torch.save({"a": torch.ones(1)}, path), "has no tensor features.0"),
            (lambda path: torch.save(features(), path), "no readable file of tensors"),  # pickled
        ],
    )
    def test_other_files(self, run: Run, write: Callable[[Path], Any], words: str) -> None:
        write(Path("vgg.pth"))
        code, _, err = run("--init", "vgg.pth", "--steps", "1", "--output-dir", "run")
        assert code == 1 and words in err and err.count("\n") == 1 and "--init" in err
        assert not Path("run").exists()


class TestRun:
    def test_starts_from_the_file(self, run: Run, file: Path) -> None:
        code, out, err = run("--init", str(file), "--steps", "1", "--lr", "1e-9")
        assert code == 0, err
        assert f"the convolutions are those of {file}, the first one's summed" in out
        found = weights("runs/fast-plain")
        torch.testing.assert_close(
            found["0.0.weight"], features()[0].weight.sum(1, keepdim=True), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(found["1.0.bias"], features()[3].bias, rtol=1e-4, atol=1e-4)
        expected = checkpoint.load(Path("runs/fast-plain"))["input"]
        assert expected["mean"] == [pytest.approx(sum(IMAGENET_MEAN) / 3)]
        assert expected["deviation"] == [pytest.approx(sum(IMAGENET_STD) / 3)]

    def test_it_goes_on_without_the_file(self, run: Run, file: Path) -> None:
        common = ["--epochs", "2", "--init", str(file), "--lr", "0.01"]
        assert run(*common, "--output-dir", "whole")[0] == 0
        assert run(*common, "--steps", "5", "--output-dir", "parts")[0] == 0
        file.unlink()
        code, _, err = run("--resume", "parts", "--lr", "0.01")
        assert code == 0, err
        assert_same_run("whole", "parts")

    def test_a_missing_file_is_noticed_first(self, run: Run) -> None:
        for name in ("none.pth", 300 * "x", "."):
            code, _, err = run("--init", name, "--data-root", "nowhere")
            assert code == 1 and f"--init: there is no file {name}" in err

    def test_another_file_is_refused_when_it_goes_on(self, run: Run, file: Path) -> None:
        assert run("--init", str(file), "--steps", "2", "--output-dir", "run")[0] == 0
        code, _, err = run("--resume", "run", "--init", "other.pth")
        assert code == 1 and "--init can't change" in err

    @pytest.mark.parametrize("stop", ["5", "13"])
    @pytest.mark.parametrize("fused", ["--fused", "--no-fused"])
    def test_frozen_features(self, run: Run, file: Path, stop: str, fused: str) -> None:
        common = ["--epochs", "2", "--init", str(file), "--freeze-features", "--lr", "0.01", fused]
        code, out, err = run(*common, "--output-dir", "whole")
        assert code == 0, err
        assert "the classifier alone learns" in out
        run(*common, "--steps", stop, "--output-dir", "parts")
        code, _, err = run("--resume", "parts", "--lr", "0.01")
        assert code == 0, err
        assert_same_run("whole", "parts")
        found = weights("parts")
        assert torch.equal(found["1.0.weight"], features()[3].weight)
        losses = [row["train_loss"] for row in metrics("parts")["history"]]
        assert losses[-1] < losses[0]

    def test_frozen_batch_norms_keep_their_statistics(self) -> None:
        model = with_batch_norm().train()
        initial.freeze(model)
        model(torch.rand(4, 3, 12, 12)).sum().backward()
        norm = model[0][1]
        assert int(norm.num_batches_tracked) == 0 and not norm.running_mean.any()
        assert all(p.grad is None for p in features_of_ours(model).parameters())
        learning = initial.trainable(model)
        assert len(learning) == 6 and all(p.grad is not None for p in learning)
        assert model.training and model[-2].training


class TestWhitening:
    @staticmethod
    def network(channels: int, filters: int) -> VGG:
        return VGG(((1, filters), (1, 8)), channels, 12, classifier_width=8)

    @staticmethod
    def images(channels: int) -> Tensor:
        """Smooth ones, whose neighbouring pixels are alike."""
        noise = torch.randn(200, channels, 14, 14, generator=torch.Generator().manual_seed(4))
        return nn.functional.avg_pool2d(noise, 3, stride=1)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_patches_come_out_white(self, channels: int) -> None:
        model, images = self.network(channels, 60), self.images(channels)
        before = model[0][0].weight.clone()
        initial.whiten(model, images)
        weight = model[0][0].weight
        found = nn.functional.conv2d(images, weight[: 18 * channels : 2])
        spread = found.transpose(0, 1).flatten(1).cov()
        assert (spread - spread.diagonal().diag()).abs().max() < 1e-3
        # Below 1 by what is added to every variance.
        assert spread.diagonal().max() < 1 and spread.diagonal()[0] > 0.99
        assert torch.equal(weight[1 : 18 * channels : 2], -weight[: 18 * channels : 2])
        assert torch.equal(weight[18 * channels :], before[18 * channels :])

    def test_few_filters_take_the_strongest(self) -> None:
        few, many, images = self.network(1, 4), self.network(1, 32), self.images(1)
        for model in (few, many):
            initial.whiten(model, images)
        assert torch.equal(few[0][0].weight, many[0][0].weight[:4])

    def test_images_that_are_all_alike_give_finite_filters(self) -> None:
        model = self.network(1, 32)
        initial.whiten(model, torch.ones(3, 1, 12, 12))
        assert model[0][0].weight.isfinite().all()

    def test_images_smaller_than_a_patch_change_nothing(self) -> None:
        model = VGG(((1, 8),), image_size=2, classifier_width=8)
        before = model[0][0].weight.clone()
        initial.whiten(model, torch.rand(5, 1, 2, 2))
        assert torch.equal(model[0][0].weight, before)

    def test_large_images_count_by_their_pixels(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[torch.Size] = []
        monkeypatch.setattr(
            "vgg_fast.train.loop.whiten", lambda model, images: seen.append(images.shape)
        )
        for size in ("28", "112"):
            code, _, err = run("--whiten", "--image-size", size, "--steps", "1")
            assert code == 0, err
        small, large = seen
        assert large[2:] == (112, 112) and large[0] * 112**2 <= 1000 * 28**2
        assert large[0] <= small[0]

    def test_a_run_begins_so_and_is_resumed(self, run: Run) -> None:
        common = ["--whiten", "--lr", "1e-9", "--weight-decay", "0"]
        assert run(*common, "--steps", "1", "--output-dir", "run")[0] == 0
        first = next(iter(weights("run").values()))
        assert torch.allclose(first[1], -first[0]) and first[0].abs().sum() > 0
        code, _, err = run("--resume", "run", *common, "--steps", "2")
        assert code == 0, err
        torch.testing.assert_close(next(iter(weights("run").values())), first)

    def test_init_and_it_exclude_each_other(self, run: Run, file: Path) -> None:
        code, _, err = run("--whiten", "--init", str(file))
        assert code == 1 and "--whiten and --init" in err
