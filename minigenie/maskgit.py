"""MaskGIT decoding (arXiv:2202.04200): fill in a frame over a few steps, the surest tokens first.

Dimensions:  b batch   n patches of a frame   k codes
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """steps: passes per frame (the paper: 25). temperature: of the tokens, 0 takes the likeliest (the paper: 1).
    choice_noise: Gumbel noise on which tokens are kept, annealed to 0 over the steps."""

    steps: int = 25
    temperature: float = 1.0
    choice_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a frame takes at least 1")
        if self.temperature < 0 or self.choice_noise < 0:
            raise ValueError(f"temperature {self.temperature} and choice_noise {self.choice_noise} must be 0 or more")


def sample_frame(
    predict: Callable[[Int[Tensor, "b n"]], Float[Tensor, "b n k"]],
    masked: Int[Tensor, "b n"],
    config: SamplingConfig,
    generator: torch.Generator,
) -> Int[Tensor, "b n"]:
    """predict: tokens, some still masked -> logits. masked: a frame of nothing but the mask token. Every patch is
    filled exactly once; after step s of S, 1 - cos(pi/2 s/S) of them are."""
    tokens, mask_id, n = masked, masked[0, 0], masked.shape[1]
    steps = min(config.steps, n)
    for step in range(1, steps + 1):
        logits = predict(tokens)
        choice, log_prob = _choose(logits, config.temperature, generator)
        left = (1 - step / steps) * config.choice_noise
        sureness = log_prob + left * _gumbel(log_prob, generator) if left else log_prob
        sureness = sureness.masked_fill(tokens != mask_id, torch.inf)
        keep = max(step, n - math.floor(n * math.cos(math.pi / 2 * step / steps))) if step < steps else n
        rank = sureness.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        tokens = torch.where((tokens == mask_id) & (rank < keep), choice, tokens)
    return tokens


def _choose(
    logits: Float[Tensor, "b n k"], temperature: float, generator: torch.Generator
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
    """A token for every patch, and its log-probability."""
    log_prob = logits.log_softmax(-1)
    if temperature:  # one random number a patch, against its cumulated probabilities: Gumbel noise took four times that
        cumulated = (log_prob / temperature).softmax(-1).cumsum(-1)
        uniform = torch.rand(logits.shape[:-1], generator=generator, device=logits.device)[..., None]
        choice = torch.searchsorted(cumulated, uniform * cumulated[..., -1:], right=True)
        choice = choice.clamp(max=logits.shape[-1] - 1)
    else:
        choice = logits.argmax(dim=-1, keepdim=True)
    return choice[..., 0], log_prob.gather(-1, choice)[..., 0]


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
