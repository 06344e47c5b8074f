"""Transformed weights that the CPU kernels keep: never stale, and gone with their layer."""

from __future__ import annotations

import copy
import gc
import math
import threading

import pytest
import torch
from torch import Tensor, nn

from tests.support.cases import TOLERANCES
from vgg_fast import cpu, info
from vgg_fast.functional import conv3x3, conv3x3_relu
from vgg_fast.layers import Conv3x3ReLU, Conv3x3ReLUPool

CHANNELS, OUTPUTS = 24, 40
COPY_BYTES = 36 * 4 * CHANNELS * OUTPUTS  # of F(4×4), before any padding


@pytest.fixture(autouse=True)
def nothing_kept():
    before = cpu.get()
    gc.collect()
    cpu.release_workspaces()
    cpu.set("winograd4")
    yield
    cpu.set(*before)
    cpu.release_workspaces()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, CHANNELS, 11, 13, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def layer() -> Conv3x3ReLU:
    torch.manual_seed(1)
    return Conv3x3ReLU(CHANNELS, OUTPUTS).requires_grad_(False)


def afresh(layer: nn.Module, image: Tensor) -> Tensor:
    """The layer's output by a weight that is transformed for it alone."""
    return copy.deepcopy(layer)(image)


def test_the_second_call_with_the_same_weight_keeps_it(layer, image):
    first = layer(image)
    assert cpu.kept_weights() == 0
    second = layer(image)
    kept = cpu.kept_weights()
    assert COPY_BYTES <= kept <= 2 * COPY_BYTES
    third = layer(image)
    assert cpu.kept_weights() == kept
    assert torch.equal(first, second) and torch.equal(second, third)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 40])  # a weight is transformed on the way, or before
def test_a_kept_weight_gives_the_bits_of_a_new_one(algorithm, dtype, format, images):
    """Of several chunks and blocks of channels, some of their filters tiny."""
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(140, 150, 3, 3, generator=random)
    weight[3] *= 1e-30
    weight[70:75] *= 1e-42
    weight = weight.to(dtype).contiguous(memory_format=format)
    image = torch.randn(images, 150, 11, 13, generator=random).to(dtype)
    output = conv3x3_relu(image.requires_grad_(), weight, torch.zeros(140, dtype=dtype))
    gradient = torch.randn(output.shape, generator=random).to(dtype)

    cpu.set(algorithm)
    frozen = image.detach()
    forward = [conv3x3_relu(frozen, weight, torch.zeros(140, dtype=dtype)) for _ in range(3)]
    backward = [
        torch.ops.vgg_fast.conv3x3_relu_backward(
            gradient, frozen, weight, output.detach(), True, False, False
        )[0]
        for _ in range(3)
    ]
    assert cpu.kept_weights() > 0
    for results in (forward, backward):
        assert all(torch.equal(result, results[0]) for result in results)


def _negate(weight: Tensor) -> None:
    weight.neg_()


def _exchange_two_filters(weight: Tensor) -> None:
    weight[[0, 1]] = weight[[1, 0]].clone()


def _exchange_two_inputs(weight: Tensor) -> None:
    weight[:, [3, 4]] = weight[:, [4, 3]].clone()


def _write_through_data(weight: Tensor) -> None:
    weight.data.copy_(torch.full_like(weight, 0.01))


def _write_through_numpy(weight: Tensor) -> None:
    weight.numpy()[5, 7, 1, 1] += 1


def _write_the_last_element(weight: Tensor) -> None:
    weight[-1, -1, -1, -1] += 1e-3


def _replace_the_data(weight: Tensor) -> None:
    weight.data = weight.data * 2


@pytest.mark.parametrize(
    "change",
    [
        _negate,
        _exchange_two_filters,
        _exchange_two_inputs,
        _write_through_data,
        _write_through_numpy,
        _write_the_last_element,
        _replace_the_data,
    ],
)
def test_a_changed_weight_is_noticed(layer, image, change):
    before = [layer(image) for _ in range(3)][-1]
    assert cpu.kept_weights() > 0
    change(layer.weight)
    after = layer(image)
    assert not torch.equal(after, before)
    assert torch.equal(after, afresh(layer, image))


def test_a_loaded_state_dict_is_noticed(layer, image):
    other = Conv3x3ReLU(CHANNELS, OUTPUTS)
    for _ in range(3):
        layer(image)
    layer.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.equal(layer(image), afresh(other, image))


@pytest.mark.parametrize("seed", range(8))
def test_any_single_element_is_noticed(layer, image, seed):
    for _ in range(2):
        layer(image)
    generator = torch.Generator().manual_seed(seed)
    at = int(torch.randint(layer.weight.numel(), (), generator=generator))
    layer.weight.view(torch.int32).view(-1)[at] ^= 1 << int(
        torch.randint(32, (), generator=generator)
    )
    torch.testing.assert_close(layer(image), afresh(layer, image), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("algorithm", [name for name in cpu.ALGORITHMS if name != "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_last_element_is_noticed_in_every_form(layer, image, dtype, algorithm):
    layer, image = layer.to(dtype), image.to(dtype)
    with cpu.use(algorithm):
        for _ in range(3):
            layer(image)
        layer.weight.view(-1)[-1] += 100
        assert torch.equal(layer(image), afresh(layer, image))


def test_training_keeps_nothing(image):
    layer = Conv3x3ReLU(CHANNELS, OUTPUTS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        layer(image.requires_grad_()).square().mean().backward()
        optimizer.step()
        assert cpu.kept_weights() == 0


def test_training_after_evaluation_frees_the_copies(image):
    layer = Conv3x3ReLU(CHANNELS, OUTPUTS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.no_grad():
        for _ in range(2):
            layer(image)
    assert cpu.kept_weights() > 0
    for _ in range(2):
        layer(image).square().mean().backward()
        optimizer.step()
    assert cpu.kept_weights() == 0


def test_frozen_weights_are_kept_for_the_data_gradient_too(layer, image):
    image.requires_grad_()
    gradients = []
    for _ in range(3):
        gradients += torch.autograd.grad(layer(image).sum(), image)
    assert cpu.kept_weights() >= 2 * COPY_BYTES
    with cpu.use("winograd4", weight_cache=0):
        gradients += torch.autograd.grad(layer(image).sum(), image)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_copies_go_with_their_layer(image):
    layer = Conv3x3ReLU(CHANNELS, OUTPUTS).requires_grad_(False)
    for _ in range(2):
        layer(image)
    assert cpu.kept_weights() > 0
    del layer
    gc.collect()
    assert cpu.kept_weights() == 0


@pytest.mark.parametrize("move", [nn.Module.double, nn.Module.bfloat16, lambda m: m.to("meta")])
def test_copies_go_when_the_layer_moves(layer, image, move):
    for _ in range(2):
        layer(image)
    assert cpu.kept_weights() > 0
    move(layer)
    assert cpu.kept_weights() == 0


def test_a_frozen_weight_is_kept_at_once_and_not_compared(layer, image):
    before = layer(image)
    with cpu.frozen(layer):
        assert cpu.frozen_weights() == 1
        assert torch.equal(layer(image), before)
        assert cpu.kept_weights() >= COPY_BYTES
        _write_through_data(layer.weight)
        assert torch.equal(layer(image), before), "it was promised that nothing is written"
    assert cpu.frozen_weights() == 0 and cpu.kept_weights() == 0
    assert torch.equal(layer(image), afresh(layer, image))


def test_what_was_written_before_a_weight_is_frozen_counts(layer, image):
    for _ in range(3):
        layer(image)
    _write_through_data(layer.weight)
    with cpu.frozen(layer):
        assert torch.equal(layer(image), afresh(layer, image))


def test_freezing_ends_with_the_outermost_block_and_with_an_error(layer, image):
    with cpu.frozen(nn.Sequential(layer, layer)):
        with pytest.raises(KeyError), cpu.frozen(layer):
            assert cpu.frozen_weights() == 2
            raise KeyError
        before = layer(image)
        _negate(layer.weight)
        assert torch.equal(layer(image), before)
    assert torch.equal(layer(image), afresh(layer, image))


def test_only_the_weights_of_the_frozen_modules_are_taken_at_their_word(image):
    """Autocast's copies of two layers may lie at one address, one after the other."""
    layers = [Conv3x3ReLU(CHANNELS, CHANNELS).requires_grad_(False) for _ in range(3)]
    net = nn.Sequential(*layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = net(image)
        with cpu.frozen(net):
            for _ in range(3):
                assert torch.equal(net(image), expected)
    with cpu.frozen(net):
        expected = layers[0](image)
        address = layers[0].weight.data_ptr()
        layers[0].weight.data = layers[1].weight.data
        afresh = conv3x3_relu(image, layers[1].weight, layers[0].bias)
        assert torch.equal(layers[0](image), afresh)
        assert all(torch.empty(CHANNELS, CHANNELS, 3, 3).data_ptr() != address for _ in range(9))
    assert not torch.equal(layers[0](image), expected)


def test_info_says_how_many_weights_are_frozen(layer):
    assert info.collect()["cpu"]["frozen weights"] == 0
    with cpu.frozen(layer):
        assert info.collect()["cpu"]["frozen weights"] == 1


def test_it_can_be_turned_off(layer, image):
    for _ in range(2):
        layer(image)
    with cpu.use("winograd4", weight_cache=0):
        assert cpu.kept_weights() == 0, "turning it off frees what was kept"
        outputs = [layer(image) for _ in range(3)]
        assert cpu.kept_weights() == 0
    outputs += [layer(image) for _ in range(3)]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_the_cap_frees_what_was_used_longest_ago():
    layers = [Conv3x3ReLU(64, 64).requires_grad_(False) for _ in range(3)]
    image = torch.randn(1, 64, 8, 8)
    expected = [layer(image) for layer in layers]
    cpu.set("winograd4", weight_cache=1)  # room for one copy of 0.6 MB
    for _ in range(2):
        for layer in layers:
            layer(image)
    assert 0 < cpu.kept_weights() <= 1 << 20
    for layer, output in zip(layers, expected, strict=True):
        assert torch.equal(layer(image), output)


def test_a_copy_beyond_the_cap_is_not_kept():
    layer, image = Conv3x3ReLU(128, 128).requires_grad_(False), torch.randn(1, 128, 8, 8)
    cpu.set("winograd4", weight_cache=1)
    for _ in range(3):
        layer(image)
    assert cpu.kept_weights() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights(layer, image, dtype):
    layer, image = layer.to(dtype), image.to(dtype)
    outputs = [layer(image) for _ in range(3)]
    assert cpu.kept_weights() > 0
    assert torch.equal(outputs[0], outputs[2])
    layer.weight[0, 0, 0, 1] += 1
    assert torch.equal(layer(image), afresh(layer, image))


def test_weights_of_any_strides(image):
    dense = torch.randn(OUTPUTS, CHANNELS, 3, 3)
    views = {
        "channels_last": dense.contiguous(memory_format=torch.channels_last),
        "transposed": dense.transpose(0, 1).contiguous().transpose(0, 1),
        "sliced": torch.randn(OUTPUTS, 2 * CHANNELS, 3, 3)[:, ::2].copy_(dense),
        "expanded": dense[:1].expand(OUTPUTS, -1, -1, -1),
    }
    for name, weight in views.items():
        for _ in range(3):
            with cpu.use("winograd4", weight_cache=0):
                expected = conv3x3(image, weight)
            assert torch.equal(conv3x3(image, weight), expected), name
        if name != "expanded":
            weight[3, 5] *= 2
            with cpu.use("winograd4", weight_cache=0):
                expected = conv3x3(image, weight)
            assert torch.equal(conv3x3(image, weight), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (4, 4), (17, 1)], ids=str)
def test_few_pixels_need_no_copy(shape, dtype):
    """Their weight is read in place, if its terms are dense, and is never out of date."""
    image = torch.randn(1, CHANNELS, *shape).to(dtype)
    dense = (torch.randn(OUTPUTS, CHANNELS, 3, 3) / 15).to(dtype)
    views = {
        "contiguous": dense,
        "channels_last": dense.contiguous(memory_format=torch.channels_last),
        "every second output": torch.stack([dense, -dense], 1).flatten(0, 1)[::2],
        "expanded": dense[:1].expand(OUTPUTS, -1, -1, -1),
        "transposed": dense.transpose(0, 1).contiguous().transpose(0, 1),
        "reversed taps": dense.mT.contiguous().mT,
    }
    bias = torch.randn(OUTPUTS).to(dtype)
    with cpu.use("direct"):
        for name, weight in views.items():
            for _ in range(2):
                expected = nn.functional.conv2d(
                    image.double(), weight.double(), bias.double(), padding=1
                )
                found = conv3x3(image, weight, bias).double()
                error = (found - expected).norm() / expected.norm()
                assert error < TOLERANCES[dtype].forward, name
                if name != "expanded":
                    weight.data.mul_(-2)
        cpu.release_workspaces()
        for _ in range(2):
            conv3x3(image, dense, bias)
    assert (cpu.kept_weights() > 0) == (math.prod(shape) > 16)


def test_one_weight_in_two_sizes_and_as_a_part(image):
    """The address alone says nothing: two weights may begin at it."""
    weight = torch.randn(OUTPUTS, CHANNELS, 3, 3)
    for _ in range(3):
        whole, part = conv3x3_relu(image, weight), conv3x3_relu(image, weight[: OUTPUTS // 2])
    torch.testing.assert_close(whole[:, : OUTPUTS // 2], part)


def test_two_python_threads_share_a_layer(layer, image):
    expected = layer(image)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert torch.equal(layer(image), expected)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(20):
        cpu.release_workspaces()
    for worker in workers:
        worker.join()
    assert not failures, failures


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit, deprecated
@pytest.mark.parametrize("how", [torch.jit.script, torch.compile])
def test_compiled_layers_notice_too(layer, image, how):
    program = how(layer)
    for _ in range(3):
        program(image)
    assert cpu.kept_weights() > 0
    layer.weight.mul_(-1)
    assert torch.equal(program(image), afresh(layer, image))


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_layer_that_was_never_made_goes_quietly():
    with pytest.raises(ValueError, match="in_channels must be at least 1"):
        Conv3x3ReLUPool(0, 1)
    with torch.device("meta"):
        Conv3x3ReLUPool(1, 1)
    gc.collect()
