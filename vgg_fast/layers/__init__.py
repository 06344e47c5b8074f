"""Stand-ins for torch's layers: each is a subclass, and alone computes what its parent does.

A stand-in has its parent's attributes, parameters, keys and printout. What it can't do, or not
faster (other strides, dtypes, shapes), it leaves to its parent, at each call.
"""

from vgg_fast.layers.convolution import (
    Conv3x3,
    Conv3x3ReLU,
    Conv3x3ReLUPool,
    LazyConv3x3,
    why_not_conv3x3,
)
from vgg_fast.layers.linear import Linear
from vgg_fast.layers.pooling import MaxPool2x2, why_not_max_pool2x2
from vgg_fast.layers.sequential import FusedSequential

__all__ = [
    "Conv3x3",
    "Conv3x3ReLU",
    "Conv3x3ReLUPool",
    "FusedSequential",
    "LazyConv3x3",
    "Linear",
    "MaxPool2x2",
    "why_not_conv3x3",
    "why_not_max_pool2x2",
]
