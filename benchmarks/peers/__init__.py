"""The peers: other ways to compute what vgg_fast computes, and vgg_fast itself among them.

A peer has a ``name``, a ``precision``, ``version()`` and ``prepare(work)``. One that isn't
installed, or can't do a work, raises :class:`Unavailable`; it is listed with the reason.
To add one, write its file and put it into PEERS; DEFAULT_PEERS, too, if a report is to have it.
"""

from __future__ import annotations

import torch

from benchmarks.peers.apex import Apex
from benchmarks.peers.base import Call, Peer, Unavailable, precision
from benchmarks.peers.compile import Compile
from benchmarks.peers.cudnn import Cudnn
from benchmarks.peers.eager import Eager
from benchmarks.peers.ipex import Ipex
from benchmarks.peers.modes import InMode
from benchmarks.peers.ncnn import Ncnn
from benchmarks.peers.onnxruntime import OnnxRuntime
from benchmarks.peers.openvino import OpenVino, OpenVinoBf16
from benchmarks.peers.vgg_fast import VggFast

__all__ = [
    "DEFAULT_PEERS",
    "PEERS",
    "TORCH_PEERS",
    "Call",
    "Peer",
    "Unavailable",
    "precision",
]

_CHANNELS_LAST = Eager("channels_last", torch.channels_last)
_DEFAULT: tuple[Peer, ...] = (
    VggFast(),
    Eager("eager", torch.contiguous_format),
    _CHANNELS_LAST,
    InMode(_CHANNELS_LAST, "bf16"),
    Compile(),
    Ipex(),
    OnnxRuntime(),
    OpenVino(),
    OpenVinoBf16(),
    Ncnn(),
    Cudnn(),
    Apex(),
)
# Variants that a run measures if it is asked to: TF32 needs a processor with AMX in float16, and
# for a convolution torch.compile calls what eager calls.
_VARIANTS: tuple[Peer, ...] = (
    InMode(_CHANNELS_LAST, "tf32"),
    InMode(Compile("bf16"), "bf16"),
    InMode(Compile("tf32"), "tf32"),
)
PEERS: dict[str, Peer] = {peer.name: peer for peer in (*_DEFAULT, *_VARIANTS)}
# Those of a run without --peers, and the columns of the README's table.
DEFAULT_PEERS = tuple(peer.name for peer in _DEFAULT)
# Those that can do every work on a CPU.
TORCH_PEERS = ("vgg_fast", "eager", "channels_last", "compile")
