"""Fused VGG layers for PyTorch: 3×3 convolution, bias, ReLU and 2×2 pooling in one kernel."""

from importlib.metadata import PackageNotFoundError, version

from vgg_fast import backends, cpu, features, functional, layers, models
from vgg_fast.dispatch import environment as _environment
from vgg_fast.fusing import FusionReport, fuse, unfuse
from vgg_fast.fusing.explain import Explanation, explain
from vgg_fast.models import (
    VGG,
    seed_vgg,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
    vgg_block,
)

try:
    __version__ = version("vgg_fast")
except PackageNotFoundError:  # imported from a source tree that isn't installed
    __version__ = "unknown"

backends.set(_environment.backend())

__all__ = [
    "VGG",
    "Explanation",
    "FusionReport",
    "__version__",
    "backends",
    "cpu",
    "explain",
    "features",
    "functional",
    "fuse",
    "layers",
    "models",
    "seed_vgg",
    "unfuse",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vgg_block",
]
