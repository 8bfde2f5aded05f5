"""Which key was pressed between two frames: inverse dynamics (minigenie.inverse) of a pair of frames and no more.

It says what could be known from a pair of frames at all, and, of imagined frames, whether they show the key that was
asked for.

Dimensions:  n pairs   h w c a frame
"""

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from minigenie.inverse import InverseConfig, InverseDynamics
from minigenie.nn.patches import to_float

BATCH, LEARNING_RATE = 64, 2e-3
CHUNK = 256  # pairs looked at together


def fit_inverse(
    pairs: UInt8[Tensor, "n 2 h w c"], keys: Int[np.ndarray, " n"], names: tuple[str, ...], steps: int, seed: int
) -> InverseDynamics:
    """names: of the keys."""
    rng, targets = np.random.default_rng(seed), torch.from_numpy(keys)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, _, height, width, _ = pairs.shape
        model = InverseDynamics(InverseConfig(controls=names, past=0, future=0), (height, width)).train()
        moved = torch.cat([model.motions(to_float(part)) for part in pairs.split(CHUNK)])
        model.fit_focus(*to_float(pairs[:CHUNK]).unbind(1))
        adam = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for _ in range(steps):
            some = rng.integers(len(pairs), size=BATCH)
            loss, _ = model({"frames": pairs[some], "around": moved[some], "controls": targets[some]})
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    return model.eval()


def keys_of(model: InverseDynamics, pairs: UInt8[Tensor, "n 2 h w c"]) -> Int[np.ndarray, " n"]:
    """The likeliest key of each pair."""
    return torch.cat([model.infer(to_float(part))[:, 0] for part in pairs.split(CHUNK)]).numpy()
