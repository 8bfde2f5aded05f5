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
    """Two frames and the shift between them -> logits of the keys."""

    def __init__(self, num_keys: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(11, 64, 4, stride=4), nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(64 * 64, 128), nn.GELU(),
            nn.Linear(128, num_keys),
        )  # fmt: skip

    def forward(self, pairs: UInt8[Tensor, "n 2 h w c"]) -> Float[Tensor, "n k"]:
        frames, scale = shrunk(pairs)
        shift = shifts(pairs)[:, 0] / scale
        before, after = (frames - 0.5).unbind(1)
        moves = [(int(down), int(right)) for down, right in shift.round()]
        moved = torch.stack([frame.roll(move, (1, 2)) for frame, move in zip(before, moves, strict=True)])
        planes = (shift / 4)[:, :, None, None].expand(-1, -1, *after.shape[-2:])
        return self.net(torch.cat((moved, after, 4 * (after - moved), planes), dim=1))

    @torch.no_grad()
    def keys(self, pairs: UInt8[Tensor, "n 2 h w c"]) -> Int[np.ndarray, " n"]:
        """The likeliest key of each pair."""
        return torch.cat([self(part).argmax(1) for part in pairs.split(CHUNK)]).numpy()


def fit_inverse(
    pairs: UInt8[Tensor, "n 2 h w c"], keys: Int[np.ndarray, " n"], num_keys: int, steps: int, seed: int
) -> InverseDynamics:
    rng = np.random.default_rng(seed)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseDynamics(num_keys).train()
        adam = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for _ in range(steps):
            some = rng.integers(len(pairs), size=BATCH)
            loss = F.cross_entropy(model(pairs[some]), torch.from_numpy(keys[some]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return model.eval()
