"""Style transfer: one picture's forms in another one's texture.

    python examples/python/style_transfer.py --content me.jpg --style the_scream.jpg

Gatys, Ecker and Bethge 2016 (arXiv:1508.06576): the picture is what is optimised, until features of
VGG-19 are near those of the content, and their Gram matrices near those of the style. Writes
result.png, before_and_after.png and losses.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.progress import track
from torch import Tensor

from pictures import load, save, save_beside, save_curves
from vgg_fast.features import ContentLoss, StyleLoss, VGGFeatures, gram_matrix
from vgg_weights import MissingWeights, find

STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
EPSILON = 1e-12  # two equal pictures, or one of a single color


@dataclass
class Options:
    """Paint one picture in the style of another."""

    content: str = "coffee"
    """The picture whose forms are kept: a file, or the name of one that scikit-image ships."""

    style: str = "immunohistochemistry"
    """The picture whose texture and colors are taken: likewise."""

    size: int = 320
    """Pixels of the longer side."""

    style_size: int = 400
    """The same of the style; a larger one makes a coarser texture."""

    steps: int = 250
    """Steps of the optimizer."""

    style_weight: float = 300.0
    """How much style counts in relation to content."""

    tv_weight: float = 10.0
    """How much total variation counts: it takes out noise."""

    content_tap: str = "relu4_1"
    """The layer whose features keep the forms; a deeper one leaves more freedom."""

    arch: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = "vgg19"
    """The network."""

    pooling: Literal["average", "max"] = "average"
    """The network's; Gatys et al. found that average looks better."""

    weights: Annotated[str, tyro.conf.arg(metavar="auto|imagenet|random|fashion-mnist|PATH")] = (
        "auto"
    )
    """auto: ImageNet's, or random ones where they can't be had; vgg_weights.py says more."""

    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """L-BFGS finds better pictures in as many steps; Adam needs less memory."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda or cuda:N."""

    out: Path = Path(__file__).parents[1] / "out" / "style"
    """The folder of the results."""

    seed: int = 0
    """Of random weights."""


def losses(
    features: VGGFeatures, content: Tensor, style: Tensor, content_tap: str
) -> tuple[Any, Any]:
    """Two functions of a picture's features: its distances in content and in style.

    Each is scaled by what it is about, so that weights for them mean the same whatever the network,
    its weights and its pooling: the content's by the variance of its features, and the style's at
    each tap by the distance that the content has from the style, where the picture starts.
    """
    with torch.no_grad():
        of_content, of_style = features(content), features(style)
    weights = {}
    for tap in STYLE_TAPS:
        apart = gram_matrix(of_content[tap]) - gram_matrix(of_style[tap])
        weights[tap] = 1 / (len(STYLE_TAPS) * apart.square().mean().item() + EPSILON)
    variance = of_content[content_tap].var((2, 3)).mean().item()

    content_loss = ContentLoss({content_tap: 1 / (variance + EPSILON)}, features=features)
    style_loss = StyleLoss(weights, features=features)
    # Neither changes from step to step: their features are computed once.
    content_target, style_target = content_loss.target(of_content), style_loss.target(of_style)
    return (
        lambda maps: content_loss(maps, content_target),
        lambda maps: style_loss(maps, style_target),
    )


def total_variation(picture: Tensor) -> Tensor:
    """Mean absolute difference of neighbours."""
    rows, columns = picture.diff(dim=2).abs(), picture.diff(dim=3).abs()
    return rows.mean() + columns.mean()


def paint(
    features: VGGFeatures, content: Tensor, style: Tensor, options: Options
) -> tuple[Tensor, dict[str, dict[int, float]]]:
    """The picture, and the losses by name and step."""
    content_loss, style_loss = losses(features, content, style, options.content_tap)

    # Of a sigmoid, values stay between 0 and 1; away from its flat ends they can move.
    logits = content.clamp(0.1, 0.9).logit().requires_grad_()
    optimizer: torch.optim.Optimizer
    if options.optimizer == "lbfgs":
        optimizer = torch.optim.LBFGS([logits], max_iter=1, history_size=20)
    else:
        optimizer = torch.optim.Adam([logits], lr=0.1)
    # L-BFGS divides differences of neighbouring gradients: 16 bits would leave noise of them.
    amp = content.is_cuda and options.optimizer == "adam"

    history: dict[str, dict[int, float]] = {"total": {}, "style": {}, "content": {}}

    def closure() -> Tensor:
        optimizer.zero_grad()
        picture = logits.sigmoid()
        with torch.autocast(content.device.type, torch.bfloat16, enabled=amp):
            maps = features(picture)  # both losses' own
            of_content, of_style = content_loss(maps), style_loss(maps)
        total = of_content + options.style_weight * of_style
        total = total + options.tv_weight * total_variation(picture)
        total.backward()
        for name, value in zip(history, (total, of_style, of_content), strict=True):
            history[name][len(history[name]) + 1] = value.item()
        return total

    for _ in track(range(options.steps), "Painting", disable=not sys.stdout.isatty()):
        optimizer.step(closure)
    return logits.detach().sigmoid(), history


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = tyro.cli(Options, args=arguments)
    torch.manual_seed(options.seed)
    try:
        content = load(options.content, options.size)
        style = load(options.style, options.style_size)
        weights = find(options.weights, options.arch, [content, style])
        features = VGGFeatures(
            weights.arch,
            [*STYLE_TAPS, options.content_tap],
            weights=weights.state,
            pooling=options.pooling,
            device=options.device,
        )
    except (MissingWeights, FileNotFoundError, ValueError) as error:  # each is a sentence
        print(f"style_transfer.py: {error}", file=sys.stderr)
        return 1
    height, width = content.shape[2:]
    print(f"{width} x {height} pixels, {weights.arch}, {weights.source} weights, {options.device}")
    content, style = content.to(options.device), style.to(options.device)
    picture, history = paint(features, content, style, options)

    options.out.mkdir(parents=True, exist_ok=True)
    save(picture, options.out / "result.png")
    title = f"{Path(options.content).stem} in the style of {Path(options.style).stem}"
    shown = {"content": content, "style": style, f"after {options.steps} steps": picture}
    save_beside(shown, options.out / "before_and_after.png", title)
    save_curves({"loss": history}, options.out / "losses.png", title)
    totals = list(history["total"].values())
    print(f"loss {totals[0]:.4g} -> {totals[-1]:.4g}; the pictures are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
