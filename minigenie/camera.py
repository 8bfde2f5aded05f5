"""How far the picture moves as a whole, foretold before its tokens are.

The camera's motion is one of a few hundred that the footage knows. A small network of its own tells it first, from the
frame at hand, the motions and actions that led to it, and the action to come; then dynamics fills in a frame for which
it is known: the former frame, moved along, stands where a token is still hidden. Without that a camera that rests
hardly ever starts: of all tokens the former one is the likeliest, although it is likelier that some change.

Dimensions:  m frames   n patches per frame   s steps that are looked back   k motions   d width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.nn.mosaic import Mosaic
from minigenie.nn.motion import STILL, warp
from minigenie.nn.quantize import k_means

PAST = 7  # steps that are looked back

SEEN, CHANNELS, ACTION_DIM, DROPOUT = 8, 64, 16, 0.1  # SEEN: rows and columns of what is left of a picture, at most
FINE = 0.3  # pixels, above which a motion's size is seen by its logarithm
SPREAD = 0.2  # pixels: motions that lie so close count as nearly the same
OF_ITS_OWN, OF_ITS_PLACE = 0.5, 0.5  # of a motion's embedding: what is its alone, what its neighbours share


class History(NamedTuple):
    """What a motion is told from. tokens: of the frame at hand. motions, actions: codes of the motions and actions of
    the PAST steps that led to it, `Camera.unknown` and `Camera.no_action` before the beginning."""

    tokens: Int[Tensor, "m n"]
    motions: Int[Tensor, "m s"]
    actions: Int[Tensor, "m s"]


class Camera(nn.Module):
    """motions: [k 2], pixels [down, right] by which the picture's content moves. unknown: the code of a motion that
    nobody knows. grid: rows and columns of a frame's tokens. memory: pixels around the frame at hand, remembered
    (minigenie.nn.mosaic)."""

    motions: Tensor

    def __init__(
        self,
        num_motions: int,
        dim: int,
        num_codes: int,
        token_dim: int,
        grid: tuple[int, int],
        num_actions: int,
        memory: int = 0,
    ) -> None:
        super().__init__()
        self.unknown, self.no_action, self.grid, self.memory = num_motions, num_actions, grid, memory
        self.register_buffer("motions", torch.zeros(num_motions, 2))
        self.embed = nn.Embedding(num_motions + 1, dim)
        self.embed_token = nn.Embedding(num_codes, token_dim)
        strides = [2 if max(grid) > side else 1 for side in (SEEN, 2 * SEEN)]
        seen = [-(-side // (strides[0] * strides[1])) for side in grid]
        self.picture = nn.Sequential(
            nn.Conv2d(token_dim, CHANNELS, 3, stride=strides[0], padding=1), nn.GELU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=strides[1], padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(CHANNELS * seen[0] * seen[1], dim),
        )  # fmt: skip
        self.embed_action = nn.Embedding(num_actions + 1, ACTION_DIM)
        self.steps = nn.Linear(2 * PAST + ACTION_DIM * (PAST + 1), dim)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 2 * dim), nn.GELU(),
            nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(2 * dim, num_motions),
        )  # fmt: skip

    @torch.no_grad()
    def set_motions(self, motions: Float[Tensor, "k 2"]) -> None:
        """Take these motions. They start with embeddings that are alike where they are."""
        self.motions.copy_(motions)
        places = self.motions / self.motions.std(0).clamp(min=1e-3)
        places = torch.cat((places, places * places.abs()), dim=1)
        nn.init.normal_(self.embed.weight, std=OF_ITS_OWN)
        self.embed.weight[:-1] += OF_ITS_PLACE * places @ torch.randn(4, self.embed.embedding_dim)

    def nearest(self, motions: Float[Tensor, "*n 2"]) -> Int[Tensor, "*n"]:
        """The code of each."""
        return torch.cdist(motions.flatten(0, -2), self.motions).argmin(-1).view(motions.shape[:-1])

    def remember(self, video: Float[Tensor, "m t h w c"], motions: Float[Tensor, "m t-1 2"]) -> Mosaic:
        """What was seen by the end of some clips. motions: of the picture, from each frame to the next."""
        mosaic = Mosaic.begin(video[:, 0], self.memory)
        for step in range(1, video.shape[1]):
            mosaic.move(motions[:, step - 1], video[:, step])
        return mosaic

    def move(
        self, video: Float[Tensor, "m t h w c"], codes: Int[Tensor, "m t"], motions: Float[Tensor, "m t 2"]
    ) -> Float[Tensor, "m t h w c"]:
        """Each frame of some clips, moved by a typical motion, with what was seen before in the clip. motions: those
        that led from each frame to the next, the last one of no account."""
        if not self.memory:  # then every frame stands alone
            return warp(video.flatten(0, 1), self.motions[codes.flatten()])[0].view(video.shape)
        mosaic, moved = Mosaic.begin(video[:, 0], self.memory), []
        for step, frame in enumerate(video.unbind(1)):
            if step:
                mosaic.move(motions[:, step - 1], frame)
            moved.append(mosaic.look(frame, self.motions[codes[:, step]]))
        return torch.stack(moved, dim=1)

    def history(self, tokens: Int[Tensor, "m n"], motions: Int[Tensor, "m t"], actions: Int[Tensor, "m t"]) -> History:
        """Of a frame, and the motions and actions that led into it and those before."""
        motions, actions = (
            F.pad(motions, (PAST, 0), value=self.unknown),
            F.pad(actions, (PAST, 0), value=self.no_action),
        )
        return History(tokens, motions[:, -PAST:], actions[:, -PAST:])

    def logits(self, history: History, action: Int[Tensor, " m"]) -> Float[Tensor, "m k"]:
        """Of the motion into the next frame. action: the one to come."""
        tokens, motions, actions = history
        picture = rearrange(self.embed_token(tokens), "m (y x) e -> m e y x", y=self.grid[0])
        moved = F.pad(self.motions, (0, 0, 0, 1))[motions]
        moved = moved.sign() * (1 + moved.abs() / FINE).log()
        taken = self.embed_action(torch.cat((actions, action[:, None]), dim=1))
        steps = self.steps(torch.cat((moved.flatten(1), taken.flatten(1)), dim=1))
        return self.head(torch.cat((self.picture(picture), steps), dim=1)).float()

    def likeliest_motion(self, history: History, action: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
        """The code of the motion into the next frame. It is not drawn by chance: that may lead into a wall, and
        out of a wall no picture leads."""
        return self.logits(history, action).argmax(-1)

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
