"""Optimisers and the learning-rate schedule.

AdamW, as the paper has it, or Muon for the matrices inside the transformers with AdamW for the rest: Muon's steps are
orthogonalised momentum (Jordan 2024), in bfloat16 where the device is fast at it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minigenie.errors import UserError
from minigenie.runtime import dtype_of, full_tensor, shard_like


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """lr, weight_decay: peak learning rate of AdamW, and how much of a weight goes each step, times the rate; matrices
    under Muon take muon_lr and muon_decay. warmup: steps of linear warm-up. decay: shape after it, down to final_lr (a
    share of the peak); "linear" and "cosine" use all of training, "late" keeps the peak for the first 60 %. clip:
    largest norm of the gradient."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    muon_lr: float = 0.02
    muon_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 1e-4
    warmup: int = 1000
    decay: Literal["constant", "cosine", "linear", "late"] = "cosine"
    final_lr: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"optim.{name} is {getattr(self, name)}; it must be a number above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas is {self.betas}; both must lie in [0, 1)")
        for name in ("warmup", "weight_decay", "muon_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.final_lr <= 1:
            raise UserError(f"optim.final_lr is {self.final_lr}; it is a share in [0, 1]")


def learning_rate_share(config: OptimConfig, step: int, progress: float) -> float:
    """Learning rate over its peak, at `step` (counted from 0) and `progress` in [0, 1] of training."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    left = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "late": min(1.0, (1 - progress) / 0.4),
    }[config.decay]
    if config.decay == "constant":
        return warm
    return warm * (config.final_lr + (1 - config.final_lr) * left)


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW over all parameters; with optimizer="muon" Muon takes the matrices of the transformers' blocks."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if config.optimizer == "muon" and ".blocks." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    adamw = torch.optim.AdamW(rest, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    return [adamw, Muon(matrices, weight_decay=config.muon_decay)] if matrices else [adamw]


def set_learning_rate(optimizers: list[torch.optim.Optimizer], config: OptimConfig, share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * (config.muon_lr if isinstance(optimizer, Muon) else config.lr)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step; matrices of one shape go through together."""

    def __init__(self, params: Sequence[Tensor], weight_decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shape in sorted({p.shape for p in group["params"]}):
                self._step([p for p in group["params"] if p.shape == shape and p.grad is not None], group)

    def _step(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        momenta = [self.state[p]["momentum"] for p in params]
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        matrices = torch.stack([full_tensor(matrix) for matrix in ahead])
        updates = orthogonal(matrices.to(dtype_of(matrices.device, "auto")))
        rows, columns = params[0].shape
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(shard_like(p, update.to(p.dtype)), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


# The Polar Express (arXiv:2505.16932): the best quintics, one after the other, for singular values in [0.001, 1].
QUINTICS = (
    (8.2872, -23.5959, 17.3004),
    (4.1071, -2.9479, 0.5448),
    (3.9487, -2.9089, 0.5518),
    (3.3184, -2.4885, 0.5100),
    (2.3007, -1.6689, 0.4188),
)
MARGIN = 1.01  # bfloat16 may round singular values to above 1, where quintics soon grow


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factor of each matrix [... rows columns], by Newton-Schulz iterations
    x <- (a + b g + c g^2) x with g = x x^T.

    What multiplies x are polynomials of one symmetric matrix, so they commute: the iteration runs on the small square g
    alone, and x is touched twice. In bfloat16 g loses the small singular values, so x itself goes through."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.dtype == torch.bfloat16:
        for a, b, c in QUINTICS:
            x = _quintic(x @ x.mT, (a / MARGIN, b / MARGIN**3, c / MARGIN**5)) @ x
        return x.mT if tall else x
    gram = x @ x.mT
    factor = power = _quintic(gram, QUINTICS[0])
    for coefficients in QUINTICS[1:]:
        gram = power @ (gram @ power)
        power = _quintic(gram, coefficients)
        factor = power @ factor
    x = factor @ x
    return x.mT if tall else x


def _quintic(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """a + b g + c g^2"""
    a, b, c = coefficients
    power = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    power.diagonal(dim1=-2, dim2=-1).add_(a)
    return power
