"""Several processes train one fused network with DistributedDataParallel.

    torchrun --standalone --nproc-per-node=2 examples/python/distributed.py

Each process takes a GPU of its own, with nccl; without GPUs, CPUs, with gloo.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
import tyro
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import vgg_fast


def main(arch: str = "resnet18", size: int = 64, count: int = 256, epochs: int = 2) -> None:
    """Train on invented images: bright ones, and dark ones.

    Args:
        arch: a model of torchvision.
        size: pixels of an image's side.
        count: images, of all processes together.
        epochs: passes over them.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    rank, ranks = dist.get_rank(), dist.get_world_size()

    # The same images in every process, of which the sampler gives each a part.
    torch.manual_seed(0)
    labels = torch.arange(count) % 2
    images = TensorDataset(torch.randn(count, 3, size, size) + labels.view(-1, 1, 1, 1), labels)
    sampler = DistributedSampler(images)
    loader = DataLoader(images, 16, sampler=sampler)

    # fuse() first: DDP then listens to the gradients of the parameters, which stay the same.
    model = vgg_fast.fuse(torchvision.models.get_model(arch, num_classes=2)).to(device)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)  # another order
        total = torch.zeros((), device=device)
        for batch, wanted in loader:
            loss = F.cross_entropy(model(batch.to(device)), wanted.to(device))
            optimizer.zero_grad()
            loss.backward()  # averages the gradients of all processes
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            print(f"epoch {epoch}: loss {total.item() / (ranks * len(loader)):.3f}, {ranks} ranks")

    # Equal gradients from equal weights: they are still equal.
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    assert torch.equal(mine, first), f"rank {rank} has other weights than rank 0"
    dist.destroy_process_group()


if __name__ == "__main__":
    tyro.cli(main)
