"""Vector quantization (arXiv:1711.00937) that keeps its codes alive.

Two ways to learn the codebook: "ema", the running mean of the vectors that chose each code, or "gradient", the codebook
loss of the original paper. With either, training begins continuous: for the first `warmup` of it, a step at least, the
vectors pass with noise instead of being quantized, then k-means over a batch places the codes. Codes that nothing
chooses are moved onto vectors of the batch. Without these a small codebook, such as latent actions, collapses to one or
two codes. All this happens in `update_codebook`, once a step, from all parts of the batch on all processes.

Dimensions:  k codes   c code width   d width of an embedding
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.errors import UserError
from minigenie.runtime import full_tensor, shard_like

DISTANCES = 2**19  # at a time, on a CPU
LOSS_WEIGHT = 0.1  # of `Quantized.loss` beside the error of pixels


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """num_codes, code_dim: the codebook. warmup: fraction of training before quantization begins. noise: its standard
    deviation in that time, where vectors have unit variance. commitment: weight of the commitment loss. decay: of the
    running means. revive_below: a code with a smaller running share of 1/num_codes is moved."""

    num_codes: int = 1024
    code_dim: int = 32
    codebook: Literal["ema", "gradient"] = "ema"
    warmup: float = 0.0
    noise: float = 0.5
    commitment: float = 0.25
    decay: float = 0.95
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        if not 2 <= self.num_codes <= 2**24 or not 1 <= self.code_dim <= 65_536:
            most = "use 2 x 1 to 16777216 x 65536"
            raise UserError(f"a codebook of {self.num_codes} codes x {self.code_dim} is too small or too large; {most}")
        for name in ("warmup", "decay", "revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"quantizer.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not self.noise >= 0 or not self.commitment >= 0:
            raise UserError(f"noise {self.noise} and commitment {self.commitment} must be 0 or more")


class Quantized(NamedTuple):
    vectors: Float[Tensor, "... c"]  # straight-through: the value of the code, the gradient of the input
    codes: Int[Tensor, "..."]
    loss: Float[Tensor, ""]  # of codebook and commitment


class VectorQuantizer(nn.Module):
    codebook: Tensor
    share: Tensor
    placed: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        codebook = torch.randn(config.num_codes, config.code_dim)
        if config.codebook == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("share", torch.full((config.num_codes,), 1 / config.num_codes))
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))
        self.ready = False  # `placed`, for those who would wait for a device to ask it
        self.register_load_state_dict_post_hook(lambda self, _: setattr(self, "ready", bool(self.placed)))
        self._statistics: StepStatistics | None = None

    def nearest(self, vectors: Float[Tensor, "... c"]) -> Int[Tensor, "..."]:
        flat = vectors.reshape(-1, self.config.code_dim).float()
        return _nearest(flat, self.codebook).view(vectors.shape[:-1])

    def lookup(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "... c"]:
        return F.embedding(codes, self.codebook)

    def forward(self, vectors: Float[Tensor, "... c"], progress: float = 1.0) -> Quantized:
        """progress: how far training has come, 0 to 1."""
        training = self.training and torch.is_grad_enabled()
        if training and (progress < self.config.warmup or not self.ready):
            noisy = vectors + self.config.noise * torch.randn_like(vectors)
            codes = self.nearest(vectors.detach())
            if progress >= self.config.warmup:
                self._accumulate(vectors.detach().float().flatten(0, -2), codes.flatten())
            return Quantized(noisy, codes, 0 * self.codebook.sum())  # a parameter without a gradient would halt DDP
        vectors = vectors.float()
        codes = self.nearest(vectors.detach())
        if training:
            self._accumulate(vectors.detach().flatten(0, -2), codes.flatten())
        chosen = self.lookup(codes)
        loss = self.config.commitment * F.mse_loss(vectors, chosen.detach())
        if self.config.codebook == "gradient":
            loss = loss + F.mse_loss(chosen, vectors.detach())
        return Quantized(vectors + (chosen - vectors).detach(), codes, loss)

    def usage(self) -> dict[str, Tensor]:
        """How many codes are alive, and exp(entropy) of their running shares: 1 is a collapse, num_codes is even.
        Nothing before the codes are placed, as nothing has used them; they are placed on all processes at once."""
        if not self.ready:
            return {}
        share = self.share / self.share.sum()
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return {"codes_alive": (share > 0.1 / len(share)).sum().float(), "perplexity": entropy.exp()}

    @torch.no_grad()
    def _accumulate(self, flat: Float[Tensor, "m c"], codes: Int[Tensor, " m"]) -> None:
        k, shuffled = self.config.num_codes, flat[torch.randperm(len(flat), device=flat.device)]
        sizes = torch.zeros(k, device=flat.device).index_add_(0, codes, torch.ones_like(flat[:, 0]))
        totals = torch.zeros(k, flat.shape[1], device=flat.device).index_add_(0, codes, flat)
        if self._statistics is None:
            self._statistics = StepStatistics(shuffled, sizes, totals)
        else:
            self._statistics.sizes.add_(sizes)
            self._statistics.totals.add_(totals)

    @torch.no_grad()
    def update_codebook(self) -> None:
        """Learn from what the step's parts have shown, on all processes together. Call it after every step."""
        if self._statistics is None:
            return
        seen, self._statistics = self._statistics, None
        codebook = full_tensor(self.codebook)
        if self.ready:
            codebook = self._updated(codebook, seen)
        else:
            codebook = _broadcast_from_rank_0(k_means(seen.vectors, self.config.num_codes))
            self.share.fill_(1 / self.config.num_codes)
            self.placed.fill_(True)
            self.ready = True
        self.codebook.copy_(shard_like(self.codebook, codebook))

    def _updated(self, codebook: Float[Tensor, "k c"], seen: "StepStatistics") -> Float[Tensor, "k c"]:
        k, decay = self.config.num_codes, self.config.decay
        for statistic in (seen.sizes, seen.totals):
            if dist.is_initialized():
                dist.all_reduce(statistic)
        size, before = seen.sizes.sum(), codebook * self.share[:, None]
        self.share.lerp_(seen.sizes / size, 1 - decay)
        if self.config.codebook == "ema":
            codebook = before.lerp(seen.totals / size, 1 - decay) / self.share.clamp(min=1e-8)[:, None]
        dead = self.share < self.config.revive_below / k
        fresh = _broadcast_from_rank_0(_take_cyclic(seen.vectors, k, 0))
        self.share.copy_(torch.where(dead, 1 / k, self.share))
        return torch.where(dead[:, None], fresh, codebook)


class StepStatistics(NamedTuple):
    """Of a step. vectors: of the first part alone, in random order. sizes, totals: of those that chose each code."""

    vectors: Float[Tensor, "m c"]
    sizes: Float[Tensor, " k"]
    totals: Float[Tensor, "k c"]


def embeddings_of(codebook: Float[Tensor, "k c"], dim: int) -> Float[Tensor, "k d"]:
    """A random embedding of each code, in which codes that look alike are alike."""
    project = torch.randn(codebook.shape[1], dim) / codebook.shape[1] ** 0.5
    return ((codebook - codebook.mean(0)) / codebook.std()).float() @ project


def k_means(vectors: Float[Tensor, "m c"], k: int) -> Float[Tensor, "k c"]:
    """From the first vectors; a centre that loses all of them moves onto one of the next."""
    centres = _take_cyclic(vectors, k, 0)
    for turn in range(1, 11):
        nearest = _nearest(vectors, centres)
        count = torch.bincount(nearest, minlength=k)
        mean = torch.zeros_like(centres).index_add_(0, nearest, vectors) / count.clamp(min=1)[:, None]
        centres = torch.where(count[:, None] > 0, mean, _take_cyclic(vectors, k, turn))
    return centres


def _take_cyclic(vectors: Float[Tensor, "m c"], k: int, turn: int) -> Float[Tensor, "k c"]:
    """The turn'th k of them, beginning anew where they end."""
    return vectors[(turn * k + torch.arange(k, device=vectors.device)) % len(vectors)]


@torch.no_grad()
def _nearest(flat: Float[Tensor, "m c"], codebook: Float[Tensor, "k c"]) -> Int[Tensor, " m"]:
    """In float32 whatever the precision around: bf16 would choose other codes in training than in use. On a CPU in
    parts whose distances stay in the caches, and by NumPy, whose argmin is four times as fast as torch's there."""
    squares = codebook.square().sum(-1)
    with torch.autocast(flat.device.type, enabled=False):
        if flat.device.type != "cpu":
            return torch.addmm(squares, flat, codebook.T, alpha=-2).argmin(-1)
        parts = flat.split(max(1, DISTANCES // len(codebook)))
        nearest = [torch.addmm(squares, part, codebook.T, alpha=-2).numpy().argmin(-1) for part in parts]
        return torch.from_numpy(np.concatenate(nearest))


def _broadcast_from_rank_0(tensor: Tensor) -> Tensor:
    """The same on every process, so that all move their codes alike."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.broadcast(tensor, src=0)
    return tensor
