"""The forward pass as the convolutions share it: one launch of the kernel and tile that serve.

A first layer has a kernel of its own, direct.py; every other is the implicit product of fprop.py.
"""

from __future__ import annotations

from torch import Tensor

from vgg_fast._layout import to_channels_last
from vgg_fast.dispatch import policy
from vgg_fast.dispatch.tiles import Call
from vgg_fast.triton import direct, fprop, tuning
from vgg_fast.triton.epilogue import run


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    argmax: Tensor | None = None,
    bits: Tensor | None = None,
    windows: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    relu: bool = False,
    negative_slope: float = 0.0,
    pool: bool = False,
) -> None:
    """Fill ``output`` (channels_last), and what else there is; launches one kernel.

    The dtype, device and shapes fit already; with a ``scale``, the bias has its dtype. With a
    ``negative_slope`` the ReLU is a leaky one. ``argmax`` is uint8, of the shape of ``output``. If
    there are ``bits``, and with a pooling ``windows``, there is no ``argmax``; ops/frozen.py says
    how they are packed.

    Raises:
        RuntimeError: the map is larger than the kernel can index.
    """
    if output.numel() == 0:
        return
    n, c, h, w = input.shape
    input, weight = to_channels_last(input), to_channels_last(weight)
    arithmetic = policy.arithmetic(input.dtype)
    first = policy.is_first_layer(c, arithmetic)
    # Only the implicit product has tiles that load by descriptors.
    aligned = first or (input.data_ptr() | weight.data_ptr()) % 16 == 0
    call = Call(
        "direct" if first else "fprop", arithmetic, n, h, w, c, weight.shape[0], pool, aligned
    )
    choice = tuning.choice_for(call, input.device)
    wanted = (relu, bias is not None, argmax is not None, negative_slope)
    # A launch is of one kind of tensors: which of them there are is in its key.
    key = (input.dtype, *wanted, bits is not None, scale is not None)
    launch = choice.ready.get(key)
    if launch is None:
        plan = (
            direct.plan(call, choice.tile) if first else fprop.plan(call, choice.tile, input.device)
        )
        launch = choice.ready[key] = plan.launch(*wanted)
    run(launch, input, weight, bias, output, argmax, bits, windows, scale)
