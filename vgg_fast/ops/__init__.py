"""The operators of the namespace ``vgg_fast``: one file each, every file with the same five parts.

Schemas and CPU kernels live in C++ (``csrc/``). Each file here adds what Python owns: what the
operator refuses, the plain-PyTorch reference, the fake kernel, autograd and autocast. ``flops``
has what torch counts of them, and ``frozen`` what they do where the weight wants no gradient.
"""

from vgg_fast import _extension

_extension.load()

from vgg_fast.ops import (  # noqa: E402
    batch_norm,
    conv3x3,
    conv3x3_relu,
    conv3x3_relu_and_pool,
    conv3x3_relu_pool,
    distances,
    flops,
    frozen,
    linear,
    max_pool2x2,
    to_nchw,
)

flops.register_when_imported()

__all__ = [
    "batch_norm",
    "conv3x3",
    "conv3x3_relu",
    "conv3x3_relu_and_pool",
    "conv3x3_relu_pool",
    "distances",
    "frozen",
    "linear",
    "max_pool2x2",
    "to_nchw",
]
