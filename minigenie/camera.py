"""How far the picture moves as a whole, foretold before its tokens are.

The camera's motion is one of a few hundred that the footage knows. Dynamics tells it first, from the frames so far and
the action, and then fills in a frame for which it is known: the former frame, moved along, stands where a token is
still hidden. Without that a camera that rests hardly ever starts: of all tokens the former one is the likeliest,
although it is likelier that some change.

Dimensions:  m frames   p positions of the transformer   d model width   k motions
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.nn.motion import STILL, warp
from minigenie.nn.quantize import k_means

SPREAD = 0.2  # pixels: motions that lie so close count as nearly the same
OF_ITS_OWN, OF_ITS_PLACE = 0.5, 0.5  # of a motion's embedding: what is its alone, what its neighbours share


class Camera(nn.Module):
    """motions: [k 2], pixels [down, right] by which the picture's content moves. unknown: the code of a motion that
    nobody knows."""

    motions: Tensor

    def __init__(self, num_motions: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.unknown, self.num_heads = num_motions, num_heads
        self.register_buffer("motions", torch.zeros(num_motions, 2))
        self.embed = nn.Embedding(num_motions + 1, dim)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.head = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, num_motions))

    @torch.no_grad()
    def know(self, motions: Float[Tensor, "k 2"]) -> None:
        """Take these motions. They start with embeddings that are alike where they are."""
        self.motions.copy_(motions)
        places = self.motions / self.motions.std(0).clamp(min=1e-3)
        places = torch.cat((places, places * places.abs()), dim=1)
        nn.init.normal_(self.embed.weight, std=OF_ITS_OWN)
        self.embed.weight[:-1] += OF_ITS_PLACE * places @ torch.randn(4, self.embed.embedding_dim)

    def nearest(self, motions: Float[Tensor, "*n 2"]) -> Int[Tensor, "*n"]:
        """The code of each."""
        return torch.cdist(motions.flatten(0, -2), self.motions).argmin(-1).view(motions.shape[:-1])

    def move(self, frames: Float[Tensor, "m h w c"], codes: Int[Tensor, " m"]) -> Float[Tensor, "m h w c"]:
        return warp(frames, self.motions[codes])[0]

    def logits(self, hidden: Float[Tensor, "m p d"], action: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        """Of the motion into the next frame. hidden: of the frame at hand. action: the embedding of the one to come, by
        which it is looked at."""
        hidden = self.norm(hidden)
        query = rearrange(self.query(action), "m (h e) -> m h 1 e", h=self.num_heads)
        key, value = rearrange(self.key_value(hidden), "m p (two h e) -> two m h p e", two=2, h=self.num_heads)
        seen = rearrange(F.scaled_dot_product_attention(query, key, value), "m h 1 e -> m (h e)")
        return self.head(torch.cat((seen, hidden.mean(1), action), dim=1)).float()

    def loss(self, logits: Float[Tensor, "m k"], codes: Int[Tensor, " m"]) -> Tensor:
        """Cross-entropy, in which a motion's near neighbours are nearly right."""
        near = torch.softmax(-torch.cdist(self.motions, self.motions).square() / (2 * SPREAD**2), dim=-1)
        return -(near[codes] * logits.log_softmax(-1)).sum(-1).mean()


def typical_motions(footage: Float[Tensor, "n 2"], k: int) -> Float[Tensor, "k 2"]:
    """k motions that stand for those of some footage: rest once, however often there is some, and means of others."""
    moving = footage[footage.abs().amax(1) >= STILL]
    if not len(moving) or k == 1:
        return footage.new_zeros(k, 2)
    order = torch.randperm(len(moving), generator=torch.Generator().manual_seed(0))
    return torch.cat((footage.new_zeros(1, 2), k_means(moving[order], k - 1)))
