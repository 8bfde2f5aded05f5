"""The ST-transformer of Genie (arXiv:2402.15391, fig. 4): attend within a frame, then along time, one feed-forward.

Cost per frame is linear in t, where attention over all t*n tokens would be quadratic. Nothing computed for a frame
depends on later frames, so a committed frame never has to be computed again: `TimeCache` keeps its keys and values.

Dimensions:  b batch   t frames   n patches per frame   d model width   s sequence
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# Bases of the rotary frequencies: clips are tens of frames long, frames tens of patches wide, not thousands of words.
TIME_BASE, SPACE_BASE = 100.0, 10.0


@dataclass(frozen=True, kw_only=True)
class STConfig:
    """Size of one ST-transformer.

    num_blocks: ST blocks. dim: model width. num_heads: attention heads, dividing dim. mlp_ratio: hidden width of the
    feed-forward over dim. attend_time: False drops attention along time, which makes every frame stand alone.
    """

    num_blocks: int = 8
    dim: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    attend_time: bool = True

    def __post_init__(self) -> None:
        for name, least in (("num_blocks", 0), ("dim", 2), ("num_heads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.mlp_ratio <= 64:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be above 0, 4 is usual")
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"dim {self.dim} does not split into {self.num_heads} heads whose width is a multiple of 4; "
                f"choose a dim that is a multiple of {4 * self.num_heads}, or other num_heads"
            )


class TimeCache:
    """Keys and values of the committed frames, one pair per block: [b n h t d/h]. Grows by one frame a commit."""

    def __init__(self, num_blocks: int) -> None:
        self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * num_blocks

    def read(self, block: int, key: Tensor, value: Tensor, commit: bool) -> tuple[Tensor, Tensor]:
        """The committed keys and values with these behind them; `commit` keeps these too."""
        if (past := self.pairs[block]) is not None:
            key, value = torch.cat((past[0], key), dim=-2), torch.cat((past[1], value), dim=-2)
        if commit:
            self.pairs[block] = (key, value)
        return key, value

    def keep_last(self, frames: int) -> None:
        """Forget all but the last `frames` frames."""
        self.pairs = [pair and (pair[0][..., -frames:, :], pair[1][..., -frames:, :]) for pair in self.pairs]


def rope_angles(positions: Int[Tensor, "s axes"], head_dim: int, base: float) -> Float[Tensor, "s half"]:
    """Rotary angles (arXiv:2104.09864); every axis of the positions turns its share of the width. Only differences of
    positions matter: patches learn from neighbours anywhere, and a world can slide past its training length."""
    frequencies = base ** -torch.linspace(0, 1, head_dim // 2 // positions.shape[1], device=positions.device)
    return (positions[..., None].float() * frequencies).flatten(1)


def rotate(x: Float[Tensor, "... s d"], angles: Float[Tensor, "s half"]) -> Float[Tensor, "... s d"]:
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Multi-head attention with QK-norm (arXiv:2302.05442), over the second last axis."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q = nn.LayerNorm(dim // num_heads, bias=False)
        self.norm_k = nn.LayerNorm(dim // num_heads, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "*b s d"],
        angles: Float[Tensor, "s half"] | None = None,
        mask: Bool[Tensor, "s s"] | None = None,
        past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "*b s d"]:
        """angles: rotary positions. mask: which position (row) sees which (column). past: puts earlier keys and values
        in front of these."""
        lead = x.shape[:-2]
        q, k, v = rearrange(self.qkv(x), "... s (qkv h d) -> qkv (...) h s d", qkv=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if past is not None:
            k, v = past(k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(rearrange(y, "b h s d -> b s (h d)").unflatten(0, lead))


class STBlock(nn.Module):
    """Space, time, then one feed-forward after both, as in the paper."""

    def __init__(self, config: STConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.norm_space = nn.LayerNorm(config.dim, bias=False)
        self.space = Attention(config.dim, config.num_heads)
        if config.attend_time:
            self.norm_time = nn.LayerNorm(config.dim, bias=False)
            self.time = Attention(config.dim, config.num_heads)
        self.norm_mlp = nn.LayerNorm(config.dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, config.dim, bias=False)
        )
        self.attend_time = config.attend_time
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):
                nn.init.zeros_(weight)  # a block starts as the identity, so deep stacks bear high learning rates

    def forward(
        self, x: Float[Tensor, "b t n d"], space_angles: Float[Tensor, "n half"], **time: Any
    ) -> Float[Tensor, "b t n d"]:
        x = x + self.space(self.norm_space(x), space_angles)
        if self.attend_time:
            along_time = self.time(rearrange(self.norm_time(x), "b t n d -> b n t d"), **time)
            x = x + rearrange(along_time, "b n t d -> b t n d")
        return x + self.mlp(self.norm_mlp(x))


class STTransformer(nn.Module):
    """A stack of ST blocks and a final norm. Frames of width d in, frames of width d out.

    grid: rows and columns of a frame's patches, n = rows * columns.
    """

    def __init__(self, config: STConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.blocks = nn.ModuleList(STBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        positions: Int[Tensor, " t"] | None = None,
        mask: Bool[Tensor, "t t"] | None = None,
        cache: TimeCache | None = None,
        commit: bool = False,
    ) -> Float[Tensor, "b t n d"]:
        """positions: frame numbers along time, 0..t-1 by default. mask: which frame (row) sees which (column), causal
        by default. cache: the frames before x, all of which x sees; with `commit` x joins them."""
        t = x.shape[1]
        if positions is None:
            positions = torch.arange(t, device=x.device)
        if mask is None and t > 1:
            assert cache is None, "frames join a cache one at a time"
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        head_dim = self.config.dim // self.config.num_heads
        rows, columns = (torch.arange(side, device=x.device) for side in self.grid)
        space_angles = rope_angles(torch.cartesian_prod(rows, columns), head_dim, SPACE_BASE)
        angles = rope_angles(positions[:, None], head_dim, TIME_BASE)
        for index, block in enumerate(self.blocks):
            past = partial(cache.read, index, commit=commit) if cache is not None else None
            x = block(x, space_angles, angles=angles, mask=mask, past=past)
        return self.norm(x)
