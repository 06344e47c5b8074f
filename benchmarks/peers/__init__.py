"""The peers: other ways to compute what vgg_fast computes, and vgg_fast itself among them.

A peer has a ``name``, a ``precision``, ``version()`` and ``prepare(work)``. One that isn't
installed, or can't do a work, raises :class:`Unavailable`; it is listed with the reason.
To add one, write its file and put it into PEERS.
"""

from __future__ import annotations

import torch

from benchmarks.peers.apex import Apex
from benchmarks.peers.base import Call, Peer, Unavailable, precision
from benchmarks.peers.compile import Compile
from benchmarks.peers.cudnn import Cudnn
from benchmarks.peers.eager import Eager
from benchmarks.peers.ncnn import Ncnn
from benchmarks.peers.onnxruntime import OnnxRuntime
from benchmarks.peers.openvino import OpenVino, OpenVinoBf16
from benchmarks.peers.vgg_fast import VggFast

__all__ = ["PEERS", "TORCH_PEERS", "Call", "Peer", "Unavailable", "precision"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        VggFast(),
        Eager("eager", torch.contiguous_format),
        Eager("channels_last", torch.channels_last),
        Compile(),
        OnnxRuntime(),
        OpenVino(),
        OpenVinoBf16(),
        Ncnn(),
        Cudnn(),
        Apex(),
    )
}
# Those that can do every work on a CPU.
TORCH_PEERS = ("vgg_fast", "eager", "channels_last", "compile")
