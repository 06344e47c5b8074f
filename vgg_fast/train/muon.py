"""The optimizer Muon, for networks of convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A quintic whose repeated application brings every singular value near 1: Jordan's coefficients.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_SHARE = 0.15  # its learning rate, as a share of Muon's
BETAS = (0.9, 0.99)
LEAST_ROOT = 1e-8
LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for the weights of hidden layers, Adam for all other parameters.

    A hidden layer's weight moves along its momentum with all singular values set to (nearly) 1: so
    no direction of a layer learns much faster than another, and a deep network without batch norms
    learns in few epochs. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A
    convolution's weight (K, C, 3, 3) counts as a matrix (K, C * 9).

    ``torch.optim.Muon`` takes matrices alone, and computes in bfloat16, which few CPUs have.

    Args:
        hidden: weights with two or more dimensions.
        others: biases, and the weights of the first and of the last layer.
        lr: of the hidden weights. A matrix with more rows than columns moves faster by the root of
            their quotient. Adam's is :data:`ADAM_SHARE` of it.
        momentum: of the hidden weights, in Nesterov's form.
        weight_decay: in each step, this share of ``lr`` of every hidden weight is taken away.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        groups = [
            {"params": list(hidden), "moved_by": "muon"},
            {"params": list(others), "moved_by": "adam"},
        ]
        super().__init__([group for group in groups if group["params"]], options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = self._move_by_adam if group["moved_by"] == "adam" else self._move
                    move(parameter, parameter.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"]:
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            gradient = torch.lerp(gradient, momentum, group["momentum"])
        direction = orthogonalized(gradient.flatten(1))
        rows, columns = direction.shape
        step = group["lr"] * math.sqrt(max(1.0, rows / columns))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(direction.view(weight.shape), alpha=-step)

    def _move_by_adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())
        state["step"] += 1
        first, second = (1 - beta ** state["step"].item() for beta in BETAS)
        mean = state["exp_avg"].lerp_(gradient, 1 - BETAS[0])
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - BETAS[1])
        root = (square / second).sqrt_().add_(LEAST_ROOT)
        parameter.addcdiv_(mean, root, value=-group["lr"] * ADAM_SHARE / first)


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of ``matrix`` and singular values from 0.7 to 1.2.

    By the iteration of Newton and Schulz, x <- (a + b g + c g²) x with g = x xᵀ, which takes
    products alone. All its factors are polynomials of the first g, and so they are multiplied among
    themselves, with as many rows and columns as the shorter side of the matrix has, and only their
    product with the matrix. Singular values below a hundredth of the largest may come out smaller.

    Args:
        matrix: (rows, columns).
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=LEAST_NORM)
    gram = x @ x.T
    factors = factor = _quintic(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        factors = factor @ factors
    x = factors @ x
    return x.T if is_tall else x


def _quintic(gram: Tensor) -> Tensor:
    a, b, c = QUINTIC
    one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.addmm(one, gram, gram, beta=a, alpha=c).add_(gram, alpha=b)
