"""torch.compile(backend="vgg_fast"): a batch norm in eval mode, as a scale or inside the weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.numerics import relative_error
from tests.support.rewritten import Calls, Recorder, image, norm_forward, run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def scales(recorder: Recorder) -> int:
    """How many operators are given a scale."""
    return sum("scale" in node.kwargs for graph in recorder.graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_in_eval_mode_is_folded(bias, affine) -> None:
    model = Calls(norm_forward, bias=bias)
    if not affine:
        model.norm = nn.BatchNorm2d(4, affine=False)
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    recorder = run(model.eval(), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1}
    assert recorder.calls("batch_norm") == 0


def test_a_batch_norm_in_training_mode_stays() -> None:
    recorder = run(Calls(norm_forward), image())
    assert recorder.counts == {"conv3x3": 1}
    assert recorder.calls("batch_norm") == 1


def test_a_batch_norm_that_learns_behind_a_frozen_weight_stays() -> None:
    model = Calls(norm_forward).eval()
    model.conv.requires_grad_(False)
    assert run(model, image()).counts == {"conv3x3": 1}
    model.norm.requires_grad_(False)
    torch._dynamo.reset()
    assert run(model, image()).counts == {"conv3x3_relu_pool": 1}


def test_a_batch_norm_whose_statistics_change_between_stays() -> None:
    def forward(m, x):
        y = m.conv(x)
        m.norm.running_mean.add_(1)
        return F.relu(m.norm(y))

    assert run(Calls(forward).eval(), image()).counts == {"conv3x3": 1}


def test_without_gradients_the_operator_gets_a_scale() -> None:
    model = Calls(norm_forward).eval()
    with torch.no_grad():
        recorder = run(model, image(1, 3, 4, 4))
    assert recorder.counts == {"conv3x3_relu_pool": 1}
    assert scales(recorder) == 1
    operator = next(n for n in recorder.graphs[0].graph.nodes if "scale" in n.kwargs)
    assert operator.args[1].op == "placeholder"  # the weight as it is, which can be kept


def test_a_frozen_norm_is_a_scale_in_training_too() -> None:
    model = Calls(norm_forward).eval()
    model.norm.requires_grad_(False)
    recorder = run(model, image())
    assert recorder.counts == {"conv3x3_relu_pool": 1} and scales(recorder) == 1


def test_a_norm_that_learns_goes_into_the_weight() -> None:
    recorder = run(Calls(norm_forward).eval(), image())
    assert recorder.counts == {"conv3x3_relu_pool": 1} and scales(recorder) == 0


def test_a_norm_whose_bias_alone_learns_is_a_scale() -> None:
    model = Calls(norm_forward).eval()
    model.norm.weight.requires_grad_(False)
    recorder = run(model, image())
    assert recorder.counts == {"conv3x3_relu_pool": 1} and scales(recorder) == 1


def test_backward_with_more_weights_than_pixels_it_stays() -> None:
    model = Calls(norm_forward).eval()
    for frozen in (False, True):
        model.norm.requires_grad_(not frozen)
        torch._dynamo.reset()
        recorder = run(model, image(1, 3, 4, 4))
        assert recorder.counts == {"conv3x3": 1}
        why = "is followed by a batch norm, and has more weights than pixels to scale"
        assert recorder.groups[0].why == why
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        torch._dynamo.reset()
        assert run(model, image(1, 3, 4, 4)).counts == {"conv3x3_relu_pool": 1}


ENDS = {
    "nothing": lambda x: x,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "silu": F.silu,
    "sum": lambda x: x + 1,
    "pool": lambda x: F.max_pool2d(x, 2),
    "pool, relu": lambda x: F.relu(F.max_pool2d(x, 2)),
}
BECOMES = {"leaky relu": "conv3x3_relu", "pool, relu": "conv3x3_relu_pool"}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("padding", ["zeros", "valid", "reflect"])
def test_a_norm_with_other_ends(end: str, padding: str) -> None:
    def forward(m, x):
        if padding == "reflect":
            x = F.pad(x, (1, 1, 1, 1), "reflect")
        y = F.conv2d(x, m.conv.weight, m.conv.bias, padding=int(padding == "zeros"))
        return ENDS[end](m.norm(y))

    model = Calls(forward).eval()
    with torch.no_grad():
        recorder = run(model, image())
    assert recorder.counts == {BECOMES.get(end, "conv3x3"): 1}
    assert scales(recorder) == 1 and recorder.calls("batch_norm") == recorder.calls("pad") == 0
    torch._dynamo.reset()
    model.norm.requires_grad_(False)
    recorder = run(model, image())  # nothing is gained where it only goes with a backward pass
    assert recorder.counts == {BECOMES.get(end, "conv3x3"): 1}
    assert scales(recorder) == (end in BECOMES)


def test_a_norm_that_two_read() -> None:
    def forward(m, x):
        y = m.norm(m.conv(x))
        return F.relu(y), y

    with torch.no_grad():
        recorder = run(Calls(forward).eval(), image())
    assert recorder.counts == {"conv3x3": 1} and scales(recorder) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_norm", [torch.float32, None], ids=["fp32", "same"])
def test_dtypes_of_the_norm(dtype, of_norm) -> None:
    model = Calls(norm_forward).eval().to(dtype)
    model.norm.to(of_norm or dtype)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    with torch.no_grad():
        recorder = run(model, image().to(dtype), tolerance)
    assert recorder.counts == {"conv3x3_relu_pool": 1} and scales(recorder) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_scale_as_it_is(dtype) -> None:
    model, recorder = Calls(norm_forward).eval(), Recorder()
    compiled = torch.compile(model, backend=recorder)
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            found, eager = compiled(image()), model(image())
        exact = model.double()(image().double())
    assert recorder.counts == {"conv3x3_relu_pool": 1} and scales(recorder) == 1
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    assert relative_error(found, exact) <= 2 * relative_error(eager, exact)
