"""Which key was pressed between two frames: a small network that learns it from footage with true actions.

It says what could be known from a pair of frames at all, and, of imagined frames, whether they show the key that was
asked for. The first frame is moved to where the second has it: what is left is what the player does.

Dimensions:  n pairs   h w c a frame   k keys
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from minigenie.eval.motion import shifts, shrunk

BATCH, LEARNING_RATE = 64, 2e-3
CHUNK = 256  # pairs judged at once


class InverseDynamics(nn.Module):
    """Pairs of frames and the shift between them -> logits of the keys."""

    def __init__(self, num_keys: int) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(6, 64, 4, stride=4), nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(0.3),
        )  # fmt: skip
        self.tell = nn.Sequential(nn.Linear(64 * 64 + 2, 128), nn.GELU(), nn.Linear(128, num_keys))

    def forward(self, moved: UInt8[Tensor, "n 2 h w c"], shift: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        frames, scale = shrunk(moved)
        before, after = frames.unbind(1)
        seen = self.see(torch.cat((before - 0.5, 4 * (after - before)), dim=1))
        return self.tell(torch.cat((seen, shift / (4 * scale)), dim=1))

    @torch.no_grad()
    def keys(self, pairs: UInt8[Tensor, "n 2 h w c"]) -> Int[np.ndarray, " n"]:
        """The likeliest key of each pair."""
        return torch.cat([self(*align(part)).argmax(1) for part in pairs.split(CHUNK)]).numpy()


def align(pairs: UInt8[Tensor, "n 2 h w c"]) -> tuple[UInt8[Tensor, "n 2 h w c"], Float[Tensor, "n 2"]]:
    """The pairs with the first frame moved to where the second has it, and how far that was."""
    shift = shifts(pairs)[:, 0]
    moved = pairs.clone()
    for pair, way in zip(moved, shift.round().int().tolist(), strict=True):
        pair[0] = pair[0].roll(way, (0, 1))
    return moved, shift


def fit_inverse(
    pairs: UInt8[Tensor, "n 2 h w c"], keys: Int[np.ndarray, " n"], num_keys: int, steps: int, seed: int
) -> InverseDynamics:
    rng, (moved, shift) = np.random.default_rng(seed), align(pairs)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseDynamics(num_keys).train()
        adam = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for _ in range(steps):
            some = rng.integers(len(moved), size=BATCH)
            loss = F.cross_entropy(model(moved[some], shift[some]), torch.from_numpy(keys[some]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return model.eval()
