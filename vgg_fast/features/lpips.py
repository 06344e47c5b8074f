"""LPIPS: features as vectors of length one, their channels weighted as people judge images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_fast.features import distances
from vgg_fast.features.extractor import VGGFeatures
from vgg_fast.features.losses import FeatureLoss
from vgg_fast.features.weights import Weights, find_file, read

__all__ = ["LPIPS"]

TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
CHANNELS = (64, 128, 256, 512, 512)

LinearWeights = str | os.PathLike[str] | Mapping[str, Tensor] | Sequence[Tensor]

# The same values; the packages are not imported.
_FILES = (
    ("lpips", "weights/v0.1/vgg.pth"),
    ("torchmetrics", "functional/image/lpips_models/vgg.pth"),
)


class LPIPS(FeatureLoss):
    """Learned perceptual image patch similarity of Zhang et al. 2018 (arXiv:1801.03924), by VGG-16.

    Equivalent to: ``lpips.LPIPS(net="vgg")(input, target, normalize=normalize).mean()``, but for
    pixels that have no feature at all, where that package's gradient is NaN: here it is 0.

    Args:
        lpips: whether channels count as the linear weights say; or once each.
        spatial: a map of distances, in place of its mean.
        normalize: whether images are between 0 and 1; or between -1 and 1.
        reduction: of the images' losses: "mean", "sum" or "none".
        linear_weights: a path, a state_dict of the package's, or a tensor for each of the five
            taps; None takes the file of an installed package, lpips or torchmetrics.
        features: VGG-16's, which take images as ``normalize`` says; None makes new ones.
        vgg_weights: the network's, as ``weights`` in :class:`VGGFeatures`.
        **options: ``pooling``, ``device`` and ``dtype`` of :class:`VGGFeatures`.

    Shape:
        (N, 3, H, W) and the same, or (1, 3, H, W), to a scalar. With the reduction "none" to (N),
        or to (N, 1, H, W) where it is spatial. H and W at least 16.

    Raises:
        ValueError: an argument isn't known, or weights are of another network.
        ImportError: no installed package has linear weights.
    """

    def __init__(
        self,
        *,
        lpips: bool = True,
        spatial: bool = False,
        normalize: bool = False,
        reduction: str = "mean",
        linear_weights: LinearWeights | None = None,
        features: VGGFeatures | None = None,
        vgg_weights: Weights = "DEFAULT",
        **options: Any,
    ) -> None:
        input_range = (0.0, 1.0) if normalize else (-1.0, 1.0)
        if features is None:
            options["input_range"] = input_range
        super().__init__(TAPS, reduction, features, "vgg16", vgg_weights, options)
        _check_features(self.features, input_range)
        self.spatial = spatial
        self.linear: nn.ParameterList | None = None
        if lpips:
            like = self.features.first_weight
            self.linear = nn.ParameterList(
                nn.Parameter(weight.to(like, copy=True), requires_grad=False)
                for weight in _linear_weights(linear_weights)
            )

    @classmethod
    def from_lpips(cls, module: nn.Module, **options: Any) -> LPIPS:
        """The same loss as ``module``, whose weights are copied.

        Args:
            module: lpips' ``LPIPS(net="vgg")``, torchmetrics'
                ``LearnedPerceptualImagePatchSimilarity(net_type="vgg")`` or piq's ``LPIPS``.
            **options: of this class, in place of the module's; ``normalize`` is an argument of a
                call in the package lpips, and of the constructor here.

        Raises:
            ValueError: the module is of another network, or of another kind.
        """
        settings: dict[str, Any] = {}
        if hasattr(module, "normalize") and hasattr(module, "net"):  # torchmetrics' metric
            settings.update(normalize=module.normalize, reduction=module.reduction)
            module = module.net  # type: ignore[assignment]
        if hasattr(module, "pnet_type"):
            settings.update(_of_lpips(module))
        elif type(module).__name__ == "LPIPS" and hasattr(module, "get_features"):
            settings.update(_of_piq(module))
        else:
            raise ValueError(
                f"LPIPS.from_lpips: a {type(module).__name__} is no LPIPS of lpips, torchmetrics "
                "or piq"
            )
        return cls(**{**settings, **options})

    def _per_image(self, pairs: Iterator[tuple[str, Tensor, Tensor]]) -> Tensor:
        size, total = None, None
        for i, (_, x, y) in enumerate(pairs):
            size = size or x.shape[2:]  # of the images: no pooling comes before the first tap
            weight = None if self.linear is None else self.linear[i]
            found = distances.unit_distance(x, y, weight)
            if self.spatial:
                found = F.interpolate(found, size, mode="bilinear", align_corners=False)
            else:
                found = found.mean((1, 2, 3))
            total = found if total is None else total + found
            del x, y
        assert total is not None
        return total


def _check_features(features: VGGFeatures, input_range: tuple[float, float]) -> None:
    if features.arch != "vgg16":
        raise ValueError(f"LPIPS: the features must be vgg16's, but they are {features.arch}'s")
    if features.input_range != input_range:
        raise ValueError(
            f"LPIPS: the features take images from {features.input_range[0]:g} to "
            f"{features.input_range[1]:g}, but normalize={input_range[0] == 0} means "
            f"{input_range[0]:g} to {input_range[1]:g}"
        )


def _linear_weights(weights: LinearWeights | None) -> list[Tensor]:
    """(C) for each tap."""
    found: Any = find_file("LPIPS: linear_weights", _FILES) if weights is None else weights
    if isinstance(found, (str, os.PathLike)):
        found = read(found, "LPIPS")
    if isinstance(found, Mapping):
        keys = [f"lin{i}.model.1.weight" for i in range(len(TAPS))]
        lacking = [key for key in keys if key not in found]
        if lacking:
            raise ValueError(f"LPIPS: the linear weights have no {', '.join(lacking)}")
        found = [found[key] for key in keys]
    tensors = [weight.detach().flatten() for weight in found if isinstance(weight, Tensor)]
    if len(tensors) < len(found):
        raise TypeError("LPIPS: linear_weights must be tensors, or a file or a state_dict of them")
    if tuple(map(len, tensors)) != CHANNELS:
        raise ValueError(
            f"LPIPS: the linear weights are for {tuple(map(len, tensors))} channels, but the taps "
            f"of vgg16 have {CHANNELS}"
        )
    return tensors


def _of_lpips(module: Any) -> dict[str, Any]:
    """Of the package lpips, and of torchmetrics, whose network is the same."""
    if module.pnet_type not in ("vgg", "vgg16"):
        raise ValueError(f"LPIPS.from_lpips: the module is of {module.pnet_type}, not of vgg")
    if getattr(module, "version", "0.1") != "0.1" or getattr(module, "resize", None) is not None:
        raise ValueError("LPIPS.from_lpips: only version 0.1 is served, and images as they are")
    # The layers are those of torchvision's `features`, in slices: slice1.0.weight
    vgg = {key.split(".", 1)[1]: value for key, value in module.net.state_dict().items()}
    uses_linear = getattr(module, "lpips", True)
    return {
        "lpips": uses_linear,
        "spatial": module.spatial,
        "vgg_weights": vgg,
        "linear_weights": [lin.model[-1].weight for lin in module.lins] if uses_linear else None,
        **_place(vgg),
    }


def _of_piq(module: Any) -> dict[str, Any]:
    if not isinstance(module.distance, nn.MSELoss):
        raise ValueError('LPIPS.from_lpips: of piq\'s, only distance="mse" is served')
    vgg = module.model.state_dict()
    averages = any(isinstance(layer, nn.AvgPool2d) for layer in module.model.modules())
    return {
        "normalize": True,
        "reduction": module.reduction,
        "pooling": "average" if averages else "max",
        "vgg_weights": vgg,
        "linear_weights": list(module.weights),
        **_place(vgg),
    }


def _place(state: Mapping[str, Tensor]) -> dict[str, torch.device | torch.dtype]:
    tensor = next(iter(state.values()))
    return {"device": tensor.device, "dtype": tensor.dtype}
