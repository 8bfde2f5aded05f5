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
    """The past of one ST-transformer: keys and values of the last `frames` committed frames, for b worlds at once.

    Its tensors never move and never change their shape, so that a pass can be compiled or captured once. The frame at
    hand has a slot of its own among them, which every pass writes anew; `commit` makes it the newest of the past, and
    the oldest one's slot is the next to be written. Positions are ages, 0 for the frame at hand: as only distances
    matter, queries need no rotation, and the keys of the past are turned once a commit.

    keys, turned, values: [blocks b n heads slots head_dim]. seen: [b slots], what each world has a past for.
    """

    def __init__(
        self, transformer: "STTransformer", b: int, frames: int, slot: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        config, device = transformer.config, transformer.norm.weight.device
        blocks, n = config.num_blocks * config.attend_time, transformer.grid[0] * transformer.grid[1]
        shape = (blocks, b, n, config.num_heads, frames + 1, config.dim // config.num_heads)
        self.keys, self.turned, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(3))
        self.back_in_time = rope(-torch.arange(frames + 1, device=device)[:, None], shape[-1], TIME_BASE)
        self.seen = torch.zeros(b, frames + 1, dtype=torch.bool, device=device)
        self.slot = torch.full((1,), slot % (frames + 1), device=device)
        self.seen.index_fill_(1, self.slot, True)

    def read(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The past of a block with the frame at hand in its slot: keys, values, and which of them are seen."""
        for slots, present in ((self.keys, key), (self.turned, key), (self.values, value)):
            slots[block].flatten(0, 1).index_copy_(2, self.slot, present)
        seen = self.seen[:, None, None, None].expand(-1, self.keys.shape[2], -1, -1, -1).flatten(0, 1)
        return self.turned[block].flatten(0, 1), self.values[block].flatten(0, 1), seen

    def commit(self) -> None:
        """What the last pass wrote is now the past."""
        self.slot.add_(1).remainder_(self.seen.shape[1])
        self.seen.index_fill_(1, self.slot, True)
        ages = (self.slot - torch.arange(self.seen.shape[1], device=self.slot.device)) % self.seen.shape[1]
        self.turned.copy_(rotate(self.keys, self.back_in_time[:, ages]))

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.keys, self.turned, self.values))

    def put(self, worlds: Int[Tensor, " k"], other: "TimeCache") -> None:
        """Replace the past of some worlds by that of another cache, of k worlds and at the same slot."""
        for mine, its in ((self.keys, other.keys), (self.turned, other.turned), (self.values, other.values)):
            mine.index_copy_(1, worlds, its)
        self.seen.index_copy_(0, worlds, other.seen)


def rope(positions: Int[Tensor, "s axes"], head_dim: int, base: float) -> Float[Tensor, "2 s half"]:
    """Cosines and sines of rotary positions (arXiv:2104.09864); every axis of the positions turns its share of the
    width. Only differences of positions matter: patches learn from neighbours anywhere, and a world can slide past its
    training length."""
    frequencies = base ** -torch.linspace(0, 1, head_dim // 2 // positions.shape[1], device=positions.device)
    angles = (positions[..., None].float() * frequencies).flatten(1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Float[Tensor, "... s d"], turn: Float[Tensor, "2 s half"]) -> Float[Tensor, "... s d"]:
    cos, sin = turn.to(x.dtype)
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
        turn: Float[Tensor, "2 s half"] | None = None,
        mask: Bool[Tensor, "s s"] | None = None,
        past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "*b s d"]:
        """turn: rotary positions. mask: which position (row) sees which (column). past: takes the keys and values of
        these positions, gives those to attend to and the mask."""
        lead = x.shape[:-2]
        q, k, v = rearrange(self.qkv(x), "... s (qkv h d) -> qkv (...) h s d", qkv=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v, mask = past(k, v)
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
        self, x: Float[Tensor, "b t n d"], places: Float[Tensor, "2 n half"], **time: Any
    ) -> Float[Tensor, "b t n d"]:
        x = x + self.space(self.norm_space(x), places)
        if self.attend_time:
            along_time = self.time(rearrange(self.norm_time(x), "b t n d -> b n t d"), **time)
            x = x + rearrange(along_time, "b n t d -> b t n d")
        return x + self.mlp(self.norm_mlp(x))


class STTransformer(nn.Module):
    """A stack of ST blocks and a final norm. Frames of width d in, frames of width d out.

    grid: rows and columns of a frame's patches, n = rows * columns.
    """

    places: Tensor

    def __init__(self, config: STConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid, self.head_dim = config, grid, config.dim // config.num_heads
        self.blocks = nn.ModuleList(STBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim, bias=False)
        patches = torch.cartesian_prod(*(torch.arange(side) for side in grid))
        self.register_buffer("places", rope(patches, self.head_dim, SPACE_BASE), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        positions: Int[Tensor, " t"] | None = None,
        mask: Bool[Tensor, "t t"] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """positions: frame numbers along time, 0..t-1 by default. mask: which frame (row) sees which (column), causal
        by default."""
        t = x.shape[1]
        if positions is None:
            positions = torch.arange(t, device=x.device)
        if mask is None and t > 1:
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        turn = rope(positions[:, None], self.head_dim, TIME_BASE)
        for block in self.blocks:
            x = block(x, self.places, turn=turn, mask=mask)
        return self.norm(x)

    def step(self, x: Float[Tensor, "b n d"], cache: TimeCache) -> Float[Tensor, "b n d"]:
        """One frame after those in the cache: the last frame of `forward` over all of them."""
        x = x[:, None]
        for index, block in enumerate(self.blocks):
            x = block(x, self.places, past=partial(cache.read, index))
        return self.norm(x[:, 0])
