"""MaskGIT decoding (arXiv:2202.04200): fill in a frame over a few steps, the most confident tokens first.

Dimensions:  b batch   n patches of a frame   k codes
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minigenie.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """steps: passes per frame (the paper: 25). temperature: of the tokens (the paper: 1); 0 takes the likeliest, and
    nothing is left to chance. choice_noise: Gumbel noise on which tokens are kept, annealed to 0 over the steps."""

    steps: int = 25
    temperature: float = 1.0
    choice_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; a frame takes at least 1")
        if self.temperature < 0 or self.choice_noise < 0:
            raise UserError(f"temperature {self.temperature} and choice_noise {self.choice_noise} must be 0 or more")


@cache  # a captured step reads these very tensors
def schedule(steps: int, n: int, device: torch.device) -> tuple[Int[Tensor, " steps"], Float[Tensor, " steps"]]:
    """For each step, how many of n patches are filled in after it, and the share of the noise that is left. One patch a
    step at least, so never more steps than patches."""
    done = [step / min(steps, n) for step in range(1, min(steps, n) + 1)]
    keep = [max(i, n - math.floor(n * math.cos(math.pi / 2 * share))) for i, share in enumerate(done, 1)]
    return torch.tensor([*keep[:-1], n], device=device), torch.tensor([1 - share for share in done], device=device)


class Filled(NamedTuple):
    """A frame as far as it is filled in. sure: the log-probability of each token when it was; 0 where there is none."""

    tokens: Int[Tensor, "b n"]
    sure: Float[Tensor, "b n"]


def fill_most_confident(
    filled: Filled,
    mask_id: int,
    logits: Float[Tensor, "b n k"],
    uniform: Float[Tensor, "2 b n"],
    keep: Int[Tensor, ""],
    noise: Float[Tensor, ""],
    temperature: Float[Tensor, ""] | None,
) -> Filled:
    """Draw a token for every patch that is still `mask_id` and keep the most confident, until `keep` of a frame are
    filled in. uniform: random numbers in [0, 1). noise: scale of the Gumbel noise on the confidence. temperature: None
    takes the likeliest token."""
    centred = logits - logits.amax(dim=-1, keepdim=True)
    if temperature is None:
        choice = centred.argmax(dim=-1)
    else:
        choice = sample_weighted((centred * temperature.reciprocal()).exp_(), uniform[0])
    sure = centred.gather(-1, choice[..., None])[..., 0] - centred.exp_().sum(dim=-1).log()
    confidence = sure - noise * (-uniform[1].clamp(min=1e-20).log()).clamp(min=1e-20).log()
    open_still = filled.tokens == mask_id
    order = confidence.masked_fill(~open_still, torch.inf).sort(dim=-1, descending=True).indices
    first = (torch.arange(order.shape[1], device=keep.device) < keep).expand(order.shape)
    chosen = torch.zeros_like(open_still).scatter(1, order, first) & open_still
    return Filled(torch.where(chosen, choice, filled.tokens), torch.where(chosen, sure, filled.sure))


def sample_weighted(weights: Float[Tensor, "b n k"], uniform: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """One of k with a chance in proportion to its weight: where the cumulated weights pass the random number. First the
    run of up to 64 is found, then the place in it, which spares cumulating most of them."""
    runs = weights.unflatten(-1, (-1, math.gcd(weights.shape[-1], 64)))
    ends = runs.sum(-1).cumsum(-1)
    at = uniform[..., None] * ends[..., -1:]
    run = (ends <= at).sum(-1, keepdim=True).clamp(max=ends.shape[-1] - 1)
    inside = runs.gather(-2, run[..., None].expand(-1, -1, -1, runs.shape[-1]))[..., 0, :].cumsum(-1)
    at = at - ends.gather(-1, run) + inside[..., -1:]
    place = (inside <= at).sum(-1, keepdim=True).clamp(max=runs.shape[-1] - 1)
    return (run * runs.shape[-1] + place)[..., 0]


def sample_frame(
    fill: Callable[..., Filled],
    masked: Int[Tensor, "b n"],
    config: SamplingConfig,
    generator: torch.Generator,
) -> Filled:
    """masked: a frame of nothing but the mask token. fill: what is filled in, and what else `fill_most_confident` takes
    after the logits -> what is filled in then. Every patch is filled exactly once; after step s of S, 1 - cos(pi/2 s/S)
    of them are."""
    keeps, noises = schedule(config.steps, masked.shape[1], masked.device)
    uniforms = torch.rand(len(keeps), 2, *masked.shape, generator=generator, device=masked.device)
    temperature = torch.full_like(noises[0], config.temperature) if config.temperature else None
    filled = Filled(masked, torch.zeros(masked.shape, device=masked.device))
    left = noises * (config.choice_noise if config.temperature else 0.0)
    for uniform, keep, noise in zip(uniforms, keeps, left, strict=True):
        filled = fill(filled, uniform, keep, noise, temperature)
    return filled
