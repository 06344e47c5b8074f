"""Which GPUs the library of CUDA C++ kernels holds code for."""

from __future__ import annotations

import functools
import re

import torch

from vgg_fast import _extension


def run_on(listed: str, capability: tuple[int, int]) -> bool:
    """Whether a library that was built for ``listed`` runs on a GPU of this compute capability.

    Args:
        listed: as in ``TORCH_CUDA_ARCH_LIST``, such as ``"8.0;9.0a"``. Code for 8.0 runs on 8.6
            too, but not on 9.0; code for 9.0a on no other; PTX, as in ``8.0+PTX``, on all that are
            newer. A name, such as ``Ampere``, is taken as code for every GPU.
        capability: major and minor.
    """
    entries = re.split(r"[;, ]+", listed.strip("; ,"))
    return any(_runs_on(entry, capability) for entry in entries)


def _runs_on(entry: str, capability: tuple[int, int]) -> bool:
    known = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
    if known is None:
        return True
    built = int(known[1]), int(known[2])
    if known[3] == "a":
        return capability == built
    newer = capability >= built
    return newer and (capability[0] == built[0] or (known[4] is not None and not known[3]))


@functools.cache
def why_not(index: int | None) -> str:
    """Why the CUDA C++ kernels don't run on a GPU of this machine; empty if they do.

    Args:
        index: the GPU; the current one if it is None.
    """
    listed = _extension.cuda_facts().get("cuda architectures")
    if not listed or not torch.cuda.is_available():
        return ""
    capability = torch.cuda.get_device_capability(index)
    if run_on(listed, capability):
        return ""
    found = "{}.{}".format(*capability)
    return (
        f"the C++ kernels are built for {listed}, and this GPU's compute capability is {found}; "
        f"build them with TORCH_CUDA_ARCH_LIST={found}, or use the backend 'auto'"
    )
