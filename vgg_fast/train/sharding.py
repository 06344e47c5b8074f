"""The network over the ranks: a copy in each, or cut, and put together again for a checkpoint."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from vgg_fast.train import ranks
from vgg_fast.train.config import TrainingError
from vgg_fast.train.options import Config


def wrapped(model: nn.Module) -> nn.Module:
    """``model`` with gradients that are means over all ranks."""
    if ranks.size() == 1:
        return model
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a new name that not every torch knows
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # share_buffers does it, where they are read
            gradient_as_bucket_view=True,
        )


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Replace what each rank's batch norms have seen by the mean over all ranks."""
    if ranks.size() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(ranks.total(buffer) / ranks.size())


def require_possible(config: Config) -> None:
    """Refuse ``--fsdp`` where there is nothing to cut the network over, or no way to run it then.

    Raises:
        TrainingError: one process alone, torch.compile, averaged weights, or Muon.
    """
    if config.compile:
        raise TrainingError(
            "--fsdp doesn't go with --compile: leave one of them out, --fsdp if the network fits "
            "into one process"
        )
    if config.ema is not None:
        raise TrainingError(
            "--fsdp doesn't go with --ema, whose average each process would have to hold whole: "
            "leave one of them out"
        )
    if config.optimizer == "muon":
        raise TrainingError(
            "--fsdp doesn't go with --optimizer muon, which moves each weight as a whole: take "
            "adamw or sgd"
        )
    if ranks.size() == 1:
        raise TrainingError(
            "--fsdp cuts the parameters over several processes: start them with torchrun, or leave "
            "it out"
        )


def shard(model: nn.Sequential, device: torch.device) -> None:
    """Cut the parameters of ``model``, which lies on the CPU, over the ranks' devices, in place.

    Each block, and each linear layer, is put together for its own forward and backward pass.
    """
    from torch.distributed.fsdp import fully_shard  # half a second

    mesh = init_device_mesh(device.type, (ranks.size(),))
    for child in model:
        if next(child.parameters(), None) is not None:
            fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to(device)  # buffers


def whole(value: Any) -> Any:
    """``value`` with every tensor that is cut put together, on the CPU of the first rank.

    Args:
        value: a state_dict, or what may stand in one. All ranks call it alike.
    """
    if isinstance(value, dict):
        return {name: whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [whole(part) for part in value]
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor().detach()
    return full.cpu() if ranks.is_first() else full.new_empty(0)


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole ``value``, which every rank has, cut as ``like`` is; itself if that is whole."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device).expand(like.shape)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def gradients_shared(net: Any, model: nn.Module, is_last: bool) -> Iterator[None]:
    """A forward and backward pass of several whose gradients add up to those of one step.

    Args:
        net: what is called, the return value of :func:`wrapped`, perhaps
            compiled.
        model: the network in it.
        is_last: of the step's passes; only then do the ranks exchange their gradients.
    """
    if ranks.size() == 1:
        yield
        return
    inner = getattr(net, "_orig_mod", net)
    if isinstance(inner, DistributedDataParallel):
        with contextlib.nullcontext() if is_last else inner.no_sync():
            yield
        return
    model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
    yield
