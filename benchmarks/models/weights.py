"""Random weights instead of downloads, in a scale that deep networks keep.

Nothing is downloaded: what matters here is which layers a model has and how it calls them, and
neither depends on its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# By a part of the address: what packages expect of weights that aren't a whole state_dict.
_ANSWERS: dict[str, Callable[[], Any]] = {
    # piq: a weight for each channel of VGG-16's five blocks, and in DISTS of the image too.
    "lpips_weights.pt": lambda: [torch.rand(1, c, 1, 1) / c for c in (64, 128, 256, 512, 512)],
    "dists_weights.pt": lambda: {
        name: torch.rand(1, 1475, 1, 1) / 1475 for name in ("alpha", "beta")
    },
}


class _NotDownloaded(dict):
    """Stands for a state_dict; loading it leaves the weights as they are."""


def _answer(url: Any = "", *_: Any, **__: Any) -> Any:
    for part, made in _ANSWERS.items():
        if part in str(url):
            return made()
    return _NotDownloaded()


_load_state_dict = nn.Module.load_state_dict


def _load_unless_missing(self: nn.Module, state_dict: Any, *args: Any, **options: Any) -> Any:
    if isinstance(state_dict, _NotDownloaded):
        return None
    return _load_state_dict(self, state_dict, *args, **options)


@contextmanager
def random_weights() -> Iterator[None]:
    """Inside, models that want to download their weights keep random ones.

    And :func:`initialise_large` is to draw the large weights: the 120 million of a VGG-16's
    classifier, which most of these models build and then throw away, would take seconds each time.
    """
    with ExitStack() as patches:
        for target, attribute, stand_in in (
            (nn.Module, "load_state_dict", _load_unless_missing),
            (torch.hub, "load_state_dict_from_url", _answer),
            *((nn.init, name, _unless_large(getattr(nn.init, name))) for name in _INITIALISERS),
        ):
            patches.enter_context(mock.patch.object(target, attribute, stand_in))
        try:
            from torchvision.models import WeightsEnum
        except ImportError:
            pass  # the models that need it aren't built either
        else:
            patches.enter_context(mock.patch.object(WeightsEnum, "get_state_dict", _answer))
        yield


_INITIALISERS = (
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "orthogonal_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
)
_LARGE = 1 << 22  # no convolution of a VGG or ResNet is


def _unless_large(initialise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def initialise_small(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        return tensor if tensor.numel() >= _LARGE else initialise(tensor, *args, **options)

    return initialise_small


def initialise_large(model: nn.Module) -> None:
    """Draw the weights that :func:`random_weights` left out."""
    for module in model.modules():
        if any(p is not None and p.numel() >= _LARGE for p in module._parameters.values()):
            module.reset_parameters()


def settle(model: nn.Module, run: Callable[[], object]) -> None:
    """Give every layer results of unit variance, by one run of the model.

    Layer by layer, as LSUV does (arXiv:1511.06422), so that neither 20 layers of default weights
    make zeros, nor 50 random residual blocks make infinities: in both, rounding decides everything.
    Convolutions and linear layers are rescaled, with biases of 0.1; batch normalisations, which are
    the identity when new, get statistics near those of their input, and weights and biases of
    their own.

    Args:
        model: in eval mode; its weights are changed.
        run: runs it once, on inputs like those that it'll be given.
    """
    settled: set[nn.Module] = set()

    def prepare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in settled or not args or not args[0].numel():
            return
        settled.add(module)
        if isinstance(module, _BatchNorm):
            _settle_norm(module, args[0])
        else:
            _settle_weights(module, args, kwargs)

    hooks = [
        # Before the hooks of the model's own, which may compute the weight.
        module.register_forward_pre_hook(prepare, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        or (
            isinstance(module, (_ConvNd, nn.Linear))
            and isinstance(module._parameters.get("weight"), nn.Parameter)
        )
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _settle_norm(norm: _BatchNorm, input: Tensor) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        channels = input.transpose(0, 1).flatten(1)
        variance = channels.var(1, correction=0) + channels.var(correction=0) + 1e-3
        norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.4, 0.7))
        # Of a few pixels the mean would be those themselves, and other inputs far from it.
        norm.running_mean.copy_(channels.mean(1) if channels.shape[1] > 8 else channels.mean())
        norm.running_mean.add_(0.2 * variance.sqrt() * torch.randn_like(variance))
    if norm.weight is not None:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.2)


@torch.no_grad()
def _settle_weights(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if layer.bias is not None:
        layer.bias.zero_()
    scale = layer.forward(*args, **kwargs).std()
    if torch.isfinite(scale) and scale > 0:
        layer.weight.div_(scale)
    if layer.bias is not None:
        layer.bias.normal_(0, 0.1)
