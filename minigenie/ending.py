"""Is it over, and won? Whether a frame is the last of its episode, told from its tokens and those of the frame before.

In a game the player dies or wins, and the next level begins. Dynamics learns inside of episodes only, so it never sees
that: a world that knows no end goes on where no game ever went, and what it imagines there is nothing that it has seen.
A small network of its own tells how likely each frame is the last one, and if so, that it was won. It learns from
footage whose episodes are marked as ended (minigenie.data.dataset.Episode), on tokens, so that what is imagined looks
to it as what is true does.

Dimensions:  m moments, two frames each   n patches per frame
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


@dataclass(frozen=True, kw_only=True)
class EndingConfig:
    """dim: channels of the network; 0 for a world that knows no end."""

    dim: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dim <= 4096:
            raise UserError(f"ending.dim is {self.dim}; it must be 0 to 4096")


class Told(NamedTuple):
    """over: the frame is the last of its episode. won: and that was won."""

    over: Bool[Tensor, " m"]
    won: Bool[Tensor, " m"]


class Ending(Model):
    """Tokens of a frame and the one before it -> the chance that it is the last of its episode, and that the episode is
    won then. At an episode's first frame both are that one."""

    def __init__(self, config: EndingConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.grid, self.num_codes, dim = tokenizer.grid, tokenizer.quantizer.num_codes, config.dim
        self.embed = nn.Embedding(self.num_codes, TOKEN_DIM)
        layers: list[nn.Module] = []
        width, seen = 2 * TOKEN_DIM, self.grid
        while len(layers) < 4 or max(seen) > SEEN:
            stride = 2 if layers and max(seen) > SEEN else 1
            layers += [nn.Conv2d(width, dim, 3, stride=stride, padding=1), nn.GELU()]
            width, seen = dim, (-(-seen[0] // stride), -(-seen[1] // stride))
        self.picture = nn.Sequential(*layers, nn.Flatten())
        told = nn.Linear(2 * dim, 2)
        nn.init.constant_(told.bias[0], UNLIKELY)
        self.head = nn.Sequential(nn.Linear(dim * seen[0] * seen[1], 2 * dim), nn.GELU(), nn.Dropout(DROPOUT), told)

    @torch.no_grad()
    def init_from_codebook(self, codebook: Float[Tensor, "k c"]) -> None:
        """Begin with the tokenizer's geometry: codes that look alike start with alike embeddings."""
        self.embed.weight.copy_(embeddings_of(codebook, TOKEN_DIM))

    def logits(self, tokens: Int[Tensor, "m 2 n"]) -> Float[Tensor, "m 2"]:
        """That it is over; that it is won, if it is over."""
        picture = rearrange(self.embed(tokens), "m f (y x) e -> m (f e) y x", y=self.grid[0])
        return self.head(self.picture(picture)).float()

    def tell(self, tokens: Int[Tensor, "m 2 n"], luck: Float[Tensor, " m"] | None = None) -> Told:
        """Whether each second frame is the last of its episode: if the chance is more than one half, or than `luck`, in
        [0, 1). And whether it is likelier won then."""
        over, won = self.logits(tokens).sigmoid().unbind(-1)
        over = over > (0.5 if luck is None else luck)
        return Told(over, over & (won > 0.5))

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: "tokens" int [m 2 n], "last" and "won" bool [m], "odds" [m], how many times likelier a last one is
        here than in the footage -> loss (cross-entropy), metrics."""
        tokens, last, won = batch["tokens"].long(), batch["last"], batch["won"]
        if self.training:
            swap = torch.rand(tokens.shape, device=tokens.device) < CORRUPT
            tokens = torch.where(swap, torch.randint_like(tokens, self.num_codes), tokens)
        over, victory = self.logits(tokens).unbind(-1)
        over = over + batch["odds"].log()  # so that without it they are right of the footage
        loss = F.binary_cross_entropy_with_logits(over, last.float())
        of_last = F.binary_cross_entropy_with_logits(victory, won.float(), weight=last.float(), reduction="sum")
        loss = loss + of_last / len(last)
        return loss, {"accuracy": ((over > 0) == last).float().mean()}
