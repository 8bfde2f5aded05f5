"""Is it over, and won? Whether a frame is the last of its episode, told from its tokens and those of the frame before.

In a game the player dies or wins, and the next level begins. Dynamics learns inside of episodes only, so it never sees
that: a world that knows no end goes on where no game ever went, and what it imagines there is nothing that it has seen.
A small network of its own tells how likely each frame is the last one, and if so, that it was won. It learns from
footage whose episodes are marked as ended (minigenie.data.dataset.Episode), on tokens, so that what is imagined looks
to it as what is true does.

And is the world lost? Now and then one imagines nothing but rock around a player, or sky without ground, and stays in
it. A second network tells frames of the footage from made-up ones, which repeat a part of themselves all over. A world
that looks so for a while is over, too. That any footage teaches.

Dimensions:  m moments, two frames each   n patches per frame   y x its patches, by row and column
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minigenie.errors import UserError
from minigenie.nn.model import Model
from minigenie.nn.quantize import embeddings_of
from minigenie.tokenizer import TokenizerConfig

LAST = 0.25  # share of a training batch that are last frames
SEEN, TOKEN_DIM, DROPOUT = 4, 16, 0.3  # SEEN: rows and columns of what is left of a picture, at most
CORRUPT = 0.05  # share of tokens replaced by random ones, so that it learns no picture by heart
UNLIKELY = -4.0  # logit of a last frame, before anything is learnt
SURE, LINGER = 4.0, 30.0  # logit of being lost, at most; frames over which it is averaged
TILE, KEPT = 3 / 8, 1 / 8  # shares of a side: a made-up frame's tile, and what stays around its middle, each at most


@dataclass(frozen=True, kw_only=True)
class EndingConfig:
    """dim: channels of the network that tells ends; lost: of that which tells when the world is lost. 0 for none."""

    dim: int = 0
    lost: int = 0

    def __post_init__(self) -> None:
        for name, dim in (("dim", self.dim), ("lost", self.lost)):
            if not 0 <= dim <= 4096:
                raise UserError(f"ending.{name} is {dim}; it must be 0 to 4096")


class Told(NamedTuple):
    """over: the frame is the last of its episode. won: and that was won."""

    over: Bool[Tensor, " m"]
    won: Bool[Tensor, " m"]


class Teller(nn.Module):
    """Tokens of a frame and the one before it -> k logits. At an episode's first frame both are that one. Without
    channels it knows nothing, and every logit is -inf."""

    def __init__(self, dim: int, outputs: int, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.grid, self.num_codes = tokenizer.grid, tokenizer.quantizer.num_codes
        self.outputs, self.knows = outputs, dim > 0
        if not self.knows:
            return
        self.embed = nn.Embedding(self.num_codes, TOKEN_DIM)
        layers: list[nn.Module] = []
        width, seen = 2 * TOKEN_DIM, self.grid
        while len(layers) < 4 or max(seen) > SEEN:
            stride = 2 if layers and max(seen) > SEEN else 1
            layers += [nn.Conv2d(width, dim, 3, stride=stride, padding=1), nn.GELU()]
            width, seen = dim, (-(-seen[0] // stride), -(-seen[1] // stride))
        self.picture = nn.Sequential(*layers, nn.Flatten())
        told = nn.Linear(2 * dim, outputs)
        nn.init.constant_(told.bias[0], UNLIKELY)
        self.head = nn.Sequential(nn.Linear(dim * seen[0] * seen[1], 2 * dim), nn.GELU(), nn.Dropout(DROPOUT), told)

    def logits(self, tokens: Int[Tensor, "m 2 n"]) -> Float[Tensor, "m k"]:
        if not self.knows:
            return torch.full((len(tokens), self.outputs), -torch.inf, device=tokens.device)
        picture = rearrange(self.embed(tokens), "m f (y x) e -> m (f e) y x", y=self.grid[0])
        return self.head(self.picture(picture)).float()


class Ending(Teller, Model):
    """Logits: that a frame is the last of its episode; that the episode is won, if it is. lost: tells when the world is
    lost."""

    def __init__(self, config: EndingConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__(config.dim, 2, tokenizer)
        self.lost = Teller(config.lost, 1, tokenizer)

    @torch.no_grad()
    def init_from_codebook(self, codebook: Float[Tensor, "k c"]) -> None:
        """Begin with the tokenizer's geometry: codes that look alike start with alike embeddings."""
        for teller in (self, self.lost):
            if teller.knows:
                teller.embed.weight.copy_(embeddings_of(codebook, TOKEN_DIM))

    def tell(self, tokens: Int[Tensor, "m 2 n"], luck: Float[Tensor, " m"] | None = None) -> Told:
        """Whether each second frame is the last of its episode: if the chance is more than one half, or than `luck`, in
        [0, 1). And whether it is likelier won then."""
        over, won = self.logits(tokens).sigmoid().unbind(-1)
        over = over > (0.5 if luck is None else luck)
        return Told(over, over & (won > 0.5))

    def doubt(self, tokens: Int[Tensor, "m 2 n"], before: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What speaks for it that the world is lost, averaged over the last frames: above 0 it is. before: that of the
        frame before, -SURE at first, where it stays if nothing is known of it."""
        return before + (self.lost.logits(tokens)[:, 0].clamp(-SURE, SURE) - before) / LINGER

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "tokens" int [m 2 n], "last" and "won" bool [m], "odds" [m], how many times likelier a last one is
        here than in the footage -> loss (cross-entropy), metrics."""
        true, last, won = batch["tokens"].long(), batch["last"], batch["won"]
        tokens, loss, metrics = self._corrupt(true), torch.zeros((), device=true.device), {}
        if self.knows:
            over, victory = self.logits(tokens).unbind(-1)
            over = over + batch["odds"].log()  # so that without it they are right of the footage
            loss = F.binary_cross_entropy_with_logits(over, last.float())
            of_last = F.binary_cross_entropy_with_logits(victory, won.float(), weight=last.float(), reduction="sum")
            loss = loss + of_last / len(last)
            metrics["accuracy"] = ((over > 0) == last).float().mean()
        if self.lost.knows:
            tokens = torch.cat((tokens, self._corrupt(made_up(true[::2], self.grid))))
            lost = self.lost.logits(tokens)[:, 0]
            is_lost = (torch.arange(len(lost), device=lost.device) >= len(true)).float()
            loss = loss + F.binary_cross_entropy_with_logits(lost, is_lost)
            metrics["lost_accuracy"] = ((lost > 0) == (is_lost > 0)).float().mean()
        return loss, metrics

    def _corrupt(self, tokens: Int[Tensor, "m 2 n"]) -> Int[Tensor, "m 2 n"]:
        if not self.training:
            return tokens
        swap = torch.rand(tokens.shape, device=tokens.device) < CORRUPT
        return torch.where(swap, torch.randint_like(tokens, self.num_codes), tokens)


def made_up(tokens: Int[Tensor, "m 2 n"], grid: tuple[int, int]) -> Int[Tensor, "m 2 n"]:
    """Frames that no footage has: each covered with some part of itself, all but a little around its middle."""
    frames = rearrange(tokens, "m f (y x) -> m f y x", y=grid[0])
    places, kept = [], []
    for side in grid:
        size, begin, phase, before, after = torch.rand(5, len(tokens), 1, device=tokens.device)
        size = 1 + (size * max(1, int(TILE * side))).long()
        begin, phase = (begin * (side + 1 - size)).long(), (phase * size).long()
        at = torch.arange(side, device=tokens.device)
        places.append(begin + (at + phase) % size)
        some = 1 + max(1, int(KEPT * side))
        kept.append((at >= side // 2 - (before * some).long()) & (at < side // 2 + (after * some).long()))
    (rows, columns), (high, wide) = places, kept
    moments = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    tiled = rearrange(frames[moments, :, rows[:, :, None], columns[:, None]], "m y x f -> m f y x")
    stays = high[:, None, :, None] & wide[:, None, None, :]
    return torch.where(stays, frames, tiled).flatten(2)
