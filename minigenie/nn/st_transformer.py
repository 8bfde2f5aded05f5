"""The ST-transformer of Genie (arXiv:2402.15391, fig. 4): attend within a frame, then along time, one feed-forward.

Cost per frame is linear in t, where attention over all t*n tokens would be quadratic. Nothing computed for a frame
depends on later frames, so a committed frame never has to be computed again: `TimeCache` keeps its keys and values.

Dimensions:  b batch   t frames   n patches per frame   d model width   s sequence
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigenie.errors import UserError

# Bases of the rotary frequencies: clips are tens of frames long, frames tens of patches wide, not thousands of words.
TIME_BASE, SPACE_BASE = 100.0, 10.0
SHORT = 32  # positions, up to which the library's attention loses to two products on a CPU in float32 too

Recompute = Literal["nothing", "cheap", "blocks"]


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
        for name, least, most in (("num_blocks", 0, 1000), ("dim", 2, 65_536), ("num_heads", 1, 65_536)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {least} to {most}")
        if not 0 < self.mlp_ratio <= 64:
            raise UserError(f"mlp_ratio is {self.mlp_ratio}; it must be above 0, 4 is usual")
        if self.dim % (4 * self.num_heads):
            raise UserError(
                f"dim {self.dim} does not split into {self.num_heads} heads whose width is a multiple of 4; "
                f"choose a dim that is a multiple of {4 * self.num_heads}, or other num_heads"
            )


class TimeCache:
    """The past of one ST-transformer: keys and values of the last `frames` committed frames, for b worlds at once.

    Its tensors never move and never change their shape, so that a pass can be compiled or captured once. The frame at
    hand has a slot of its own among them, which every pass writes anew; `commit` makes it the newest of the past, and
    the oldest one's slot is the next to be written. Positions are ages, 0 for the frame at hand: as only distances
    matter, queries need no rotation, and each commit turns the keys of the past by one frame.

    keys, values: [slots b n heads head] for each block. unseen: [slots b 1 1], 0 where a world has a past and -inf
    elsewhere.
    """

    def __init__(self, transformer: "STTransformer", b: int, frames: int, slot: int = 0) -> None:
        config, device, dtype = transformer.config, transformer.norm.weight.device, transformer.norm.weight.dtype
        blocks = config.num_blocks if config.attend_time else 0
        n, width = transformer.grid[0] * transformer.grid[1], transformer.head_dim
        shape = (frames + 1, b, n, config.num_heads, width)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(blocks)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(blocks)]
        self.one_back = rope(torch.tensor([[-1]], device=device), width, TIME_BASE)
        self.unseen = torch.full((frames + 1, b, 1, 1), -torch.inf, device=device, dtype=dtype)
        self.slot = torch.full((1,), slot % (frames + 1), device=device)
        self.unseen.index_fill_(0, self.slot, 0)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.keys + self.values)

    def attend(
        self, block: int, query: Float[Tensor, "b n h 1 d"], key: Tensor, value: Tensor
    ) -> Float[Tensor, "b n h 1 d"]:
        """What the frame at hand takes from the past and from itself. One query has no use for a matrix product: sums
        over slots that lie apart take half the time of the library's attention on a CPU."""
        keys, values = self.keys[block], self.values[block]
        keys.index_copy_(0, self.slot, key.to(keys.dtype).view(1, *keys.shape[1:]))
        values.index_copy_(0, self.slot, value.to(keys.dtype).view(1, *keys.shape[1:]))
        scores = (keys * query.view(keys.shape[1:])).sum(-1) / query.shape[-1] ** 0.5
        weights = (scores + self.unseen).softmax(dim=0)
        return (weights[..., None] * values).sum(0).view(query.shape)

    def commit(self) -> None:
        """What the last pass wrote is now the past."""
        for keys in self.keys:
            keys.copy_(rotate(keys, self.one_back))
        self.slot.add_(1).remainder_(len(self.unseen))
        self.unseen.index_fill_(0, self.slot, 0)

    def copy_(self, other: "TimeCache") -> None:
        """Become another cache of as many worlds, in place."""
        for mine, its in zip(self.tensors, other.tensors, strict=True):
            mine.copy_(its)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [*self.keys, *self.values, self.unseen, self.slot]

    def made_of(self, tensors: list[Tensor]) -> "TimeCache":
        """Another cache of this kind. tensors: as `tensors` lists them."""
        other, blocks = copy(self), len(self.keys)
        other.keys, other.values = tensors[:blocks], tensors[blocks : 2 * blocks]
        other.unseen, other.slot = tensors[2 * blocks :]
        return other

    def put(self, worlds: Int[Tensor, " k"], other: "TimeCache") -> None:
        """Replace the past of some worlds by that of another cache, of k worlds and at the same slot."""
        for mine, its in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine.index_copy_(1, worlds, its)
        self.unseen.index_copy_(1, worlds, other.unseen)


def rope(positions: Int[Tensor, "s axes"], width: int, base: float) -> Float[Tensor, "2 s d"]:
    """Rotary positions (arXiv:2104.09864), for `rotate`: every axis of the positions turns its share of the width. Only
    differences of positions matter: patches learn from neighbours anywhere, and a world can slide past its training
    length."""
    frequencies = base ** -torch.linspace(0, 1, width // 2 // positions.shape[1], device=positions.device)
    angles = (positions[..., None].float() * frequencies).flatten(1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x: Float[Tensor, "*b d"], turn: Float[Tensor, "2 ... d"]) -> Float[Tensor, "*b d"]:
    along, across = turn.to(x.dtype)
    return (x * along).addcmul_(x.roll(x.shape[-1] // 2, -1), across)


def attention(
    q: Float[Tensor, "b g h s d"],
    k: Float[Tensor, "b g h s d"],
    v: Float[Tensor, "b g h s d"],
    mask: Float[Tensor, "s s"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "b g h s d"]:
    """What queries take from keys and values. mask: added to the scores, -inf where a query (row) sees no key.

    The library's kernel, but on a CPU two products and a softmax over short sequences, and in bf16, where it is ten
    times slower to go back through."""
    s, width = q.shape[-2:]
    if q.device.type != "cpu" or (q.dtype == torch.float32 and s > SHORT):
        rows = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        return F.scaled_dot_product_attention(*rows, attn_mask=mask, is_causal=causal).view(q.shape)
    if causal:
        mask = q.new_full((s, s), -torch.inf).triu(1)
    add = q.new_zeros(1, 1) if mask is None else mask
    scores = torch.baddbmm(add, q.flatten(0, 2), k.flatten(0, 2).mT, beta=float(mask is not None), alpha=width**-0.5)
    return (scores.softmax(-1) @ v.flatten(0, 2)).view(q.shape)


class Norm(nn.LayerNorm):
    """Layer norm without a bias, in the precision of what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__(width, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), None, self.eps)


class Attention(nn.Module):
    """Multi-head attention along one axis, with QK-norm (arXiv:2302.05442)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q, self.norm_k = Norm(self.width), Norm(self.width)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        axis: int,
        turn: Float[Tensor, "2 s head"] | None,
        attend: Callable[..., Tensor] = attention,
    ) -> Float[Tensor, "b t n d"]:
        """axis: 1 along time, 2 within a frame. turn: rotary positions, None if all are 0. attend: queries, keys,
        values [b g h s head], where s is along the axis and g the other -> what they take."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, self.width)).unbind(-3)
        q, k, v = (each.movedim(axis, -2) for each in heads)
        q, k = self.norm_q(q.float()), self.norm_k(k.float())  # normalised and turned in float32, rounded once
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return self.out(attend(q.to(v.dtype), k.to(v.dtype), v).movedim(-2, axis).flatten(-2))


class STBlock(nn.Module):
    """Space, time, then one feed-forward after both, as in the paper. recompute: "cheap" computes the norm and the GELU
    of the feed-forward again for the gradients instead of keeping them."""

    recompute: Recompute = "nothing"

    def __init__(self, config: STConfig) -> None:
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.norm_space = Norm(config.dim)
        self.space = Attention(config.dim, config.num_heads)
        if config.attend_time:
            self.norm_time = Norm(config.dim)
            self.time = Attention(config.dim, config.num_heads)
        self.norm_mlp = Norm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, config.dim, bias=False)
        )
        self.attend_time = config.attend_time
        for name, weight in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):
                nn.init.zeros_(weight)  # a block starts as the identity, so deep stacks bear high learning rates

    def forward(
        self, x: Float[Tensor, "b t n d"], places: Tensor, times: Tensor | None, attend: Callable[..., Tensor]
    ) -> Float[Tensor, "b t n d"]:
        """places, times: rotary positions in space and in time, None if all are 0. attend: along time."""
        x = x + self.space(self.norm_space(x), 2, places)
        if self.attend_time:
            x = x + self.time(self.norm_time(x), 1, times, attend)
        if self.recompute != "cheap" or not torch.is_grad_enabled():
            return x + self.mlp(self.norm_mlp(x))
        return x + recomputed(self.mlp[1:], recomputed(lambda x: self.mlp[0](self.norm_mlp(x)), x))


def recomputed(call: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """What `call` gives, of which only the inputs are kept for the gradients. The second time it ends before its last
    product, whose result nobody needs."""
    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


class STTransformer(nn.Module):
    """A stack of ST blocks and a final norm. Frames of width d in, frames of width d out, of the same dtype, whatever
    is computed in between.

    grid: rows and columns of a frame's patches, n = rows * columns.
    """

    places: Tensor
    recompute: Recompute = "nothing"

    def __init__(self, config: STConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid, self.head_dim = config, grid, config.dim // config.num_heads
        self.blocks = nn.ModuleList(STBlock(config) for _ in range(config.num_blocks))
        self.norm = Norm(config.dim)
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
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        times = rope(positions[:, None], self.head_dim, TIME_BASE)
        y = x.to(self._dtype(x))
        unseen = None if mask is None else torch.zeros_like(mask, dtype=y.dtype).masked_fill_(~mask, -torch.inf)
        attend = partial(attention, mask=unseen, causal=mask is None)
        whole = self.recompute == "blocks" and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(recomputed, block) if whole else block
            y = run(y, self.places, times, attend)
        return self.norm(y).to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """What the blocks compute in: autocast's choice, or else the weights' own."""
        kind = x.device.type
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if autocast else self.norm.weight.dtype

    def set_recompute(self, recompute: Recompute) -> None:
        """What to compute again for the gradients, to save memory: nothing, what is cheap, or whole blocks."""
        self.recompute = recompute
        for block in self.blocks:
            block.recompute = recompute  # type: ignore[assignment]

    def step(self, x: Float[Tensor, "b n d"], cache: TimeCache) -> Float[Tensor, "b n d"]:
        """One frame after those in the cache: the last frame of `forward` over all of them."""
        y = x[:, None].to(self._dtype(x))
        for index, block in enumerate(self.blocks):
            y = block(y, self.places, None, partial(cache.attend, index))
        return self.norm(y[:, 0]).to(x.dtype)
