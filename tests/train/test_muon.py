"""The optimizer Muon, against singular values, torch's own for matrices, and Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vgg_fast import VGG
from vgg_fast.train import recipe
from vgg_fast.train.config import resolved
from vgg_fast.train.muon import ADAM_SHARE, BETAS, Muon, orthogonalized
from vgg_fast.train.options import Config


def with_gradients(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    """The same for the same shapes."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize("shape", [(16, 144), (64, 24), (32, 32), (1, 9), (5, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_orthogonalized_keeps_singular_vectors_and_levels_values(
    shape: tuple[int, int], scale: float
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    (found,) = orthogonalized([matrix])
    between = left.T @ found @ right.T
    level = between.diagonal()[values > values[0] / 100]
    assert (level > 0.65).all() and (level < 1.25).all()
    assert (between - between.diagonal().diag()).abs().max() < 1e-3


def test_a_gradient_of_zeros_moves_nothing() -> None:
    (found,) = orthogonalized([torch.zeros(3, 5)])
    assert found.abs().max() == 0


def test_matrices_with_a_side_in_common_dont_mix() -> None:
    matrices = [torch.randn(shape) for shape in ((6, 9), (20, 6), (4, 4), (6, 6))]
    for matrix, found in zip(matrices, orthogonalized(matrices), strict=True):
        (alone,) = orthogonalized([matrix])
        torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.5, 0.3)])
def test_matrices_move_as_torchs_muon_moves_them(
    shape: tuple[int, int], momentum: float, weight_decay: float
) -> None:
    (own,), (its,) = with_gradients(shape), with_gradients(shape)
    before = own.detach().clone()
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    optimizers = Muon([own], [], **options), torch.optim.Muon([its], **options)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
        for parameter in (own, its):
            assert parameter.grad is not None
            parameter.grad = parameter.grad.roll(1)
    # It computes in bfloat16.
    assert (own - its).norm() < 0.03 * (own - before).norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_moves_as_its_matrix(layout: torch.memory_format) -> None:
    (matrix,), (weight,) = with_gradients((8, 36)), with_gradients((8, 36))

    def as_convolution(values: Tensor) -> Tensor:
        return values.detach().view(8, 4, 3, 3).to(memory_format=layout)

    convolution = nn.Parameter(as_convolution(weight))
    assert weight.grad is not None
    convolution.grad = as_convolution(weight.grad)
    for parameter in (matrix, convolution):
        optimizer = Muon([parameter], [], 0.1)
        optimizer.step()
        optimizer.step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_others_move_as_adam_moves_them() -> None:
    own, its = with_gradients((7,), (4, 5)), with_gradients((7,), (4, 5))
    optimizers = Muon([], own, 0.1), torch.optim.Adam(its, 0.1 * ADAM_SHARE, BETAS)
    for step in range(4):
        for parameter in (*own, *its):
            assert parameter.grad is not None
            parameter.grad.mul_(1 + step)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(own, its)


def test_parameters_without_a_gradient_stay() -> None:
    hidden, other = with_gradients((4, 4), (3,))
    before = hidden.detach().clone(), other.detach().clone()
    hidden.grad = other.grad = None
    Muon([hidden], [other], 0.1).step()
    assert torch.equal(hidden, before[0]) and torch.equal(other, before[1])


def test_the_first_and_the_last_layer_are_adams() -> None:
    config = resolved(Config(preset="record", device="cpu"))
    net = VGG(((1, 4), (1, 8)), image_size=8, classifier_width=16)
    hidden, others = recipe.make_optimizer(config, net).param_groups
    assert [p.shape for p in hidden["params"]] == [(8, 4, 3, 3), (16, 32), (16, 16)]
    assert [p.shape for p in others["params"] if p.dim() > 1] == [(4, 1, 3, 3), (10, 16)]
    assert len(others["params"]) == 7 and hidden["lr"] == config.lr


def test_frozen_weights_are_left_out() -> None:
    config = resolved(Config(preset="record", device="cpu"))
    net = VGG(((1, 4), (1, 8)), image_size=8, classifier_width=16)
    for block in list(net)[:2]:
        block.requires_grad_(False)
    hidden, others = recipe.make_optimizer(config, net).param_groups
    assert [p.shape for p in hidden["params"]] == [(16, 32), (16, 16)]
    assert len(others["params"]) == 4
