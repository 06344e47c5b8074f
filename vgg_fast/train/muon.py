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
            moving = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if group["moved_by"] == "muon":
                self._move(moving, group)
            else:
                for parameter, gradient in moving:
                    self._move_by_adam(parameter, gradient, group)
        return loss

    def _move(self, moving: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        ahead = [self._ahead(weight, gradient, group["momentum"]) for weight, gradient in moving]
        directions = orthogonalized([gradient.flatten(1) for gradient in ahead])
        for (weight, _), direction in zip(moving, directions, strict=True):
            rows, columns = direction.shape
            step = group["lr"] * math.sqrt(max(1.0, rows / columns))
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(direction.view(weight.shape), alpha=-step)

    def _ahead(self, weight: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """The gradient with the momentum in it, in Nesterov's form."""
        if not momentum:
            return gradient
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return torch.lerp(
            gradient, state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum
        )

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


def orthogonalized(matrices: list[Tensor]) -> list[Tensor]:
    """Matrices with the singular vectors of ``matrices``, and singular values from 0.7 to 1.2.

    By the iteration of Newton and Schulz, x <- (a + b g + c g²) x with g = x xᵀ, which takes
    products alone. All its factors are polynomials of the first g, and so they are multiplied among
    themselves, with as many rows and columns as the shorter side of the matrix has, and only their
    product with the matrix; matrices whose shorter sides agree share each product. Singular values
    below a hundredth of the largest may come out smaller.

    Args:
        matrices: each (rows, columns).
    """
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    wide = [x / x.norm().clamp(min=LEAST_NORM) for x in wide]
    for side in {len(x) for x in wide}:
        alike = [i for i, x in enumerate(wide) if len(x) == side]
        factors = _factors(torch.stack([wide[i] @ wide[i].T for i in alike]))
        for i, factor in zip(alike, factors, strict=True):
            wide[i] = factor @ wide[i]
    return [x if x.shape == m.shape else x.T for x, m in zip(wide, matrices, strict=True)]


def _factors(gram: Tensor) -> Tensor:
    """What a matrix is multiplied by, from the product with its transpose, (N, side, side)."""
    factors = factor = _quintic(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        factors = factor @ factors
    return factors


def _quintic(gram: Tensor) -> Tensor:
    a, b, c = QUINTIC
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c).add_(one, alpha=a)
