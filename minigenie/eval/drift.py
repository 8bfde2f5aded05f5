"""Does a world stay itself while it is played on and on?

Nobody knows the true frame 200 frames after a player took over, but the frames of a sound world go on looking like real
ones: as sharp, built from as many codes, near them as a distribution. A world that drifts goes blurred, empty or noisy.

Dimensions:  b clips   t frames   m frames measured of each clip   r real frames   h w c a frame   d features
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie.eval.statistics import bootstrap, perplexity
from minigenie.nn.patches import to_float
from minigenie.world import World

ENDS = (10, 50, 100, 200, 500, 1000)  # of the stretches of horizon: 1-10, 11-50, ...
MEASURED = 10  # frames of each clip in a stretch: equal counts, since perplexity and Frechet distance depend on them
LEAST_GRADIENT = 1e-8  # footage of nothing but flat colour
HOLD = 8  # frames that an action is held on average, as a player holds a key

Watch = Callable[[int, int], None]
Features = Callable[[Tensor], Tensor]


def drift(
    world: World,
    starts: UInt8[Tensor, "b h w c"],
    horizon: int = 200,
    seed: int = 0,
    watch: Watch = lambda done, total: None,
    *,
    real: UInt8[Tensor, "r h w c"] | None = None,
    features: Features | None = None,
) -> dict[str, Any]:
    """`play_on`, then `measure_drift`."""
    frames = play_on(world, starts, horizon, seed, watch)
    return measure_drift(world, frames, starts if real is None else real, seed, features)


def play_on(
    world: World, starts: UInt8[Tensor, "b h w c"], horizon: int, seed: int, watch: Watch = lambda done, total: None
) -> dict[int, UInt8[Tensor, "b h w c"]]:
    """Roll out from `starts` under random held actions: the frames that are measured, by horizon, in order."""
    wanted = {t for picks in stretches(horizon).values() for t in picks}
    frames: dict[int, Tensor] = {}
    world.reset(starts[:, None], seed)
    for t, column in enumerate(held_actions(len(starts), horizon, world.num_actions, seed).unbind(1), 1):
        frame = world.step(column)
        if t in wanted:
            frames[t] = frame
        watch(t, horizon)
    return frames


def measure_drift(
    world: World,
    frames: dict[int, UInt8[Tensor, "b h w c"]],
    real: UInt8[Tensor, "r h w c"],
    seed: int = 0,
    features: Features | None = None,
) -> dict[str, Any]:
    """real: true frames, best twice as many as a stretch has: every other one to compare with, the rest to show what
    true frames score. features: frames [b h w c] in [0, 1] -> [b d].

    -> {"clips", "horizon", "real": SCORES, "stretches": {"1-10": SCORES, ...}} with SCORES {"frames", "sharpness":
    {"mean", "ci95", "clips"}, "perplexity", "perplexity_share", "frechet"}. sharpness is the gradient energy over that
    of true frames, perplexity_share likewise: both are 1 in a sound world. frechet only with `features`.
    """
    truth = _measure(world, real[::2, None], features)
    gradient = max(float(truth["gradient"].mean()), LEAST_GRADIENT)

    def score(video: UInt8[Tensor, "b m h w c"]) -> dict[str, Any]:
        seen = _measure(world, video, features)
        report: dict[str, Any] = {
            "frames": video.shape[0] * video.shape[1],
            "sharpness": bootstrap(seen["gradient"] / gradient, seed),
            "perplexity": seen["perplexity"],
            "perplexity_share": seen["perplexity"] / truth["perplexity"],
        }
        if features:
            from minigenie.eval.perceptual import frechet

            report["frechet"] = frechet(seen["features"], truth["features"])
        return report

    parts = {name: torch.stack([frames[t] for t in picks], dim=1) for name, picks in stretches(max(frames)).items()}
    return {
        "clips": len(frames[1]),
        "horizon": max(frames),
        "real": score(real[len(real) > 1 :: 2, None]),
        "stretches": {name: score(video) for name, video in parts.items()},
    }


def stretches(horizon: int) -> dict[str, list[int]]:
    """The stretches of a horizon, each with those of its frames that are measured, evenly spaced."""
    ends = (0, *(end for end in ENDS if end < horizon), horizon)
    return {
        f"{before + 1}-{end}": np.unique(np.linspace(before + 1, end, MEASURED).round()).astype(int).tolist()
        for before, end in pairwise(ends)
    }


def held_actions(clips: int, horizon: int, num_actions: int, seed: int) -> Int[Tensor, "b t"]:
    """Random actions, each held for a random time of `HOLD` frames on average."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randint(num_actions, (clips, horizon), generator=generator)
    change = torch.rand(clips, horizon, generator=generator) < 1 / HOLD
    change[:, 0] = True
    since = torch.where(change, torch.arange(horizon), 0).cummax(dim=1).values
    return fresh.gather(1, since)


def gradient_energy(frames: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Mean squared difference between neighbouring pixels: what blur takes away and noise adds."""
    down, right = frames.diff(dim=-3).square(), frames.diff(dim=-2).square()
    return down.mean(dim=(-3, -2, -1)) + right.mean(dim=(-3, -2, -1))


@torch.no_grad()
def _measure(world: World, video: UInt8[Tensor, "b m h w c"], features: Features | None) -> dict[str, Any]:
    """Gradient energy of each clip [b], perplexity of all tokens, features [b*m d]. Frames are encoded one at a time:
    those between them are not there."""
    flat = to_float(video.flatten(0, 1))
    tokens = torch.cat([world.tokenizer.encode(part[:, None].to(world.device)).cpu() for part in flat.split(64)])
    return {
        "gradient": gradient_energy(to_float(video)).mean(dim=1).numpy(),
        "perplexity": perplexity(tokens.numpy()),
        "features": features(flat).numpy() if features else None,
    }
