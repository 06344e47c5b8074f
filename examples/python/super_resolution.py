"""Super-resolution: a small network that doubles a picture's width and height.

    python examples/python/super_resolution.py --steps 2000 --perceptual 0.1

Plain 3×3 convolutions at the low resolution, as in ESPCN (Shi et al. 2016, arXiv:1609.05158), fused
with their LeakyReLUs by ``vgg_fast.fuse``; trained on crops of pictures that scikit-image ships,
with L1 and a perceptual loss. Writes before_and_after.png, curves.png and checkpoint.pt.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from torch import Tensor, nn

import vgg_fast
from pictures import load, psnr, save_beside, save_curves
from vgg_fast.features import LPIPS, ContentLoss
from vgg_weights import MissingWeights, Weights, find

TRAINING = ("brick", "chelsea", "coffee", "grass", "gravel", "immunohistochemistry", "rocket")


@dataclass
class Options:
    """Train a network that doubles a picture's width and height."""

    steps: int = 400
    """Steps of the optimizer."""

    perceptual: float = 0.1
    """How much the perceptual loss counts: 1 is as much as L1 at first; 0 leaves it out."""

    perceptual_loss: Literal["lpips", "content"] = "lpips"
    """lpips: of VGG-16; content: mean absolute difference of features at relu2_1 and relu3_2."""

    weights: Annotated[str, tyro.conf.arg(metavar="auto|imagenet|random|fashion-mnist|PATH")] = (
        "auto"
    )
    """Of the perceptual loss. auto: ImageNet's, or random ones where they can't be had."""

    train: tuple[str, ...] = TRAINING
    """The pictures to learn from: files, or names of what scikit-image ships."""

    test: str = "astronaut"
    """The picture that is held out."""

    blocks: int = 6
    """Convolutions with LeakyReLU, of the width that follows."""

    channels: int = 48
    """Channels of each."""

    batch_size: int = 8
    """Crops in one step."""

    crop: int = 64
    """Pixels of a crop's side, at the high resolution."""

    lr: float = 1e-3
    """Adam's highest learning rate; it falls to zero along a cosine."""

    every: int = 25
    """Steps between two looks at the picture that is held out."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda or cuda:N."""

    out: Path = Path(__file__).parents[1] / "out" / "super-resolution"
    """The folder of the results."""

    seed: int = 0
    """Of initial weights and crops."""


class Upscaler(nn.Module):
    """Bicubic interpolation, and what a network adds to it: (N, 3, H, W) to (N, 3, 2H, 2W)."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        widths = [3, *[channels] * blocks]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            conv = nn.Conv2d(before, after, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, a=0.1)
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.LeakyReLU(0.1)]
        # The four pixels that one becomes are channels of the last layer. Zeros: it starts from
        # the bicubic picture, and not from noise.
        last = nn.Conv2d(channels, 12, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(2))

    def forward(self, images: Tensor) -> Tensor:
        """The larger images."""
        # What is missing are details. Next to what neighbours have in common they are so small that
        # hundreds of steps taught nothing without this difference.
        details = images - F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
        return bicubic(images, 2) + self.layers(details)


def bicubic(images: Tensor, scale: float) -> Tensor:
    """Images ``scale`` times as wide and high."""
    return F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=scale < 1)


def pair(name: str, device: str) -> tuple[Tensor, Tensor]:
    """A picture with even sides, and the same at half the resolution."""
    high = load(name)
    high = high[..., : high.shape[2] // 2 * 2, : high.shape[3] // 2 * 2].to(device)
    return high, bicubic(high, 0.5).clamp(0, 1)


def batch(pairs: Sequence[tuple[Tensor, Tensor]], options: Options) -> tuple[Tensor, Tensor]:
    """Random crops at both resolutions, turned and mirrored."""
    crops = []
    size = options.crop // 2
    for i in torch.randint(len(pairs), (options.batch_size,)).tolist():
        high, low = pairs[i]
        y, x = (int(torch.randint(side - size + 1, ())) for side in low.shape[2:])
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        both = []
        for image, scale in ((high, 2), (low, 1)):
            crop = image[..., scale * y :, scale * x :][..., : scale * size, : scale * size]
            crop = crop.rot90(turns, (2, 3))
            both.append(crop.flip(3) if mirrored else crop)
        crops.append(both)
    highs, lows = zip(*crops, strict=True)
    return torch.cat(highs), torch.cat(lows)


def perceptual_loss(options: Options, weights: Weights) -> nn.Module:
    """Of images between 0 and 1."""
    common = {"vgg_weights": weights.state, "device": options.device}
    if options.perceptual_loss == "content":
        taps = {"relu2_1": 0.5, "relu3_2": 0.5}
        return ContentLoss(taps, "l1", arch=weights.arch, **common)
    # The weights of LPIPS's channels were learnt for ImageNet's features, and fit no others.
    fits = weights.source not in ("random", "Fashion-MNIST")
    return LPIPS(lpips=fits, normalize=True, **common)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = tyro.cli(Options, args=arguments)
    torch.manual_seed(options.seed)
    try:
        pairs = [pair(name, options.device) for name in options.train]
        test_high, test_low = pair(options.test, options.device)
        perceptual = None
        if options.perceptual:
            weights = find(options.weights, "vgg16", [center(low, 128) for _, low in pairs])
            perceptual = perceptual_loss(options, weights)
    except (MissingWeights, FileNotFoundError, ValueError) as error:  # each is a sentence
        print(f"super_resolution.py: {error}", file=sys.stderr)
        return 1
    model = vgg_fast.fuse(Upscaler(options.blocks, options.channels)).to(options.device)
    count = sum(parameter.numel() for parameter in model.parameters())
    source = f", perceptual loss with {weights.source} weights" if perceptual else ""
    print(f"{count:,} parameters, {len(pairs)} pictures, {options.device}{source}")

    test_bicubic = bicubic(test_low, 2).clamp(0, 1)
    history = train(model, perceptual, pairs, (test_high, test_low), options)
    history["PSNR, dB"]["bicubic"] = dict.fromkeys(
        history["PSNR, dB"]["this network"], psnr(test_bicubic, test_high)
    )
    upscaled = upscale(model, test_low)

    options.out.mkdir(parents=True, exist_ok=True)
    # The keys are the plain model's, which can load them without vgg_fast.
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    torch.save({"model": model.state_dict(), "options": plain}, options.out / "checkpoint.pt")
    title = f"{Path(options.test).stem}, which was held out: {options.steps} steps"
    save_curves(history, options.out / "curves.png", title)
    shown = {
        f"bicubic: {psnr(test_bicubic, test_high):.2f} dB": test_bicubic,
        f"this network: {psnr(upscaled, test_high):.2f} dB": upscaled,
        "original": test_high,
    }
    middle = {name: center(picture, 160) for name, picture in shown.items()}
    save_beside(middle, options.out / "before_and_after.png", title)
    print(f"{'; '.join(list(shown)[:2])}; the files are in {options.out}")
    return 0


def train(
    model: nn.Module,
    perceptual: nn.Module | None,
    pairs: Sequence[tuple[Tensor, Tensor]],
    test: tuple[Tensor, Tensor],
    options: Options,
) -> dict[str, dict[str, dict[int, float]]]:
    """The means of the losses between two looks at the picture held out, and its PSNR, by step."""
    optimizer = torch.optim.Adam(model.parameters(), options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    amp = options.device.startswith("cuda")
    means: dict[str, dict[int, float]] = {"L1": {}, "perceptual": {}}
    psnrs: dict[int, float] = {}
    sums = torch.zeros(2, device=options.device)
    since, scale = 0, None
    steps = range(1, options.steps + 1)
    for step in track(steps, "Training", disable=not sys.stdout.isatty()):
        high, low = batch(pairs, options)
        with torch.autocast(high.device.type, torch.bfloat16, enabled=amp):
            found = model(low)
            l1 = F.l1_loss(found, high)
            felt = perceptual(found, high) if perceptual else torch.zeros_like(l1)
        if scale is None:  # losses of random and of trained weights differ tenfold
            scale = l1.item() / max(felt.item(), 1e-12)
        felt = scale * felt
        optimizer.zero_grad()
        (l1 + options.perceptual * felt).backward()
        optimizer.step()
        schedule.step()
        sums += torch.stack([l1, felt]).detach()
        since += 1
        if step % options.every == 0 or step == options.steps:
            for name, total in zip(means, sums.tolist(), strict=True):
                means[name][step] = total / since
            psnrs[step] = psnr(upscale(model, test[1]), test[0])
            sums.zero_()
            since = 0
    if not perceptual:
        del means["perceptual"]
    return {"training loss": means, "PSNR, dB": {"this network": psnrs}}


@torch.no_grad()
def upscale(model: nn.Module, low: Tensor) -> Tensor:
    """What is written as a picture: within the range."""
    return model(low).clamp(0, 1)


def center(picture: Tensor, side: int) -> Tensor:
    """A square of the middle, where single pixels can be seen."""
    top, left = (max(0, (size - side) // 2) for size in picture.shape[2:])
    return picture[..., top : top + side, left : left + side]


if __name__ == "__main__":
    sys.exit(main())
