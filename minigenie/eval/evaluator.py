"""What every measurement shares: clips of held-out footage, rollouts side by side, progress, notes; how sure a mean is,
and how evenly things are used.

Dimensions:  b clips   t frames   h w c a frame
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie.data.dataset import Dataset
from minigenie.eval.perceptual import Distance, Features
from minigenie.nn.patches import to_float
from minigenie.runtime import Result, parallel_map
from minigenie.world import World

BATCH = 16  # clips looked at together
PROMPT = 4  # true frames given of every clip
DRAWS = 2000  # of the bootstrap
UNMEASURED = "not measured: "  # how a note on what is missing begins

Watch = Callable[[int, int], None]  # frames imagined: done, in all
Report = dict[str, Any]  # or a part of it
Video = UInt8[Tensor, "b t h w c"]
Clips = Int[np.ndarray, " b"]  # of each clip its first frame, or its episode


@dataclass
class Evaluator:
    world: World
    dataset: Dataset
    max_clips: int
    seed: int
    watch: Watch = lambda done, total: None
    total: int = 0
    done: int = 0
    notes: list[str] = field(default_factory=list)
    distances: dict[str, Distance] = field(default_factory=dict)  # of pairs of frames, by name in the report
    features: Features | None = None
    lock: Any = field(default_factory=Lock)

    def advance(self, frames: int) -> None:
        with self.lock:  # parts run side by side
            self.done += frames
            self.watch(min(self.done, self.total), self.total)

    def rollout(self, frames: Tensor, actions: Tensor) -> Video:
        """As the world's own, in small batches, with progress."""

        def play(prompt: Tensor, choice: Tensor, seed: int) -> Tensor:
            video = self.world.fresh_copy().rollout(prompt, choice, seed)
            self.advance(choice.numel())
            return video

        return torch.cat(self.each(play, frames.split(BATCH), actions.split(BATCH), count(self.seed)))

    def each(self, call: Callable[..., Result], *parts: Iterable[Any]) -> list[Result]:
        return list(parallel_map(call, *parts, device=self.world.device))

    def infer_actions(self, video: Video) -> Int[Tensor, "b steps"]:
        return torch.cat(self.each(self.world.infer_actions, video.split(BATCH)))

    def clips(self, count: int, length: int, salt: int) -> Clips:
        """Where `count` clips begin, drawn without repetition; all there are, if they are fewer."""
        windows = self.dataset.windows(length)
        chosen = np.random.default_rng([self.seed, salt]).choice(windows, min(count, len(windows)), replace=False)
        return np.sort(chosen)

    def frames(self, starts: Clips, length: int) -> Video:
        return torch.from_numpy(self.dataset.clips(starts, length))

    def compare(self, distance: Distance, frames: Video, truth: Video) -> Float[np.ndarray, "b t"]:
        """A distance of each pair of frames; a few clips at a time, as it takes many times their memory."""

        def between(some: Tensor, true: Tensor) -> Tensor:
            return distance(to_float(some.flatten(0, 1)), to_float(true.flatten(0, 1))).unflatten(0, some.shape[:2])

        return torch.cat(self.each(between, frames.split(BATCH), truth.split(BATCH))).numpy()


# Statistics.


def interval(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of `values` [clips], over resampled groups of clips, such as those of one episode,
    which are not independent. groups: [clips]; by default, or where all are one group, each clip is its own."""
    which = np.zeros(len(values), int) if groups is None else np.unique(groups, return_inverse=True)[1]
    which = which if which.any() else np.arange(len(values))
    sums, counts = np.bincount(which, weights=np.asarray(values, float)), np.bincount(which)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    return np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5]).tolist()


def interval_of_columns(values: np.ndarray, seed: int) -> list[float]:
    """The 95 % interval of the mean of the columns' means, over resampled rows; NaN where a row has no value."""
    picks = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    columns = np.ma.masked_invalid(values)[picks].mean(axis=1)
    return np.percentile(columns.mean(axis=1).compressed(), [2.5, 97.5]).tolist()


def bootstrap(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> Report:
    """Mean of `values` [clips] with its 95 % interval and the count."""
    return {"mean": float(values.mean()), "ci95": interval(values, seed, groups, draws), "clips": len(values)}


def by_horizon(
    name: str, values: np.ndarray, seed: int, groups: np.ndarray | None = None, scale: Callable = np.asarray
) -> dict[str, Any]:
    """values [clips t] -> {name: {"1": mean, ...}, name_ci95: {"1": [low, high], ...}}, on another `scale` if given."""
    columns = {str(t): column for t, column in enumerate(values.T, 1)}
    ends = {t: scale(np.array(interval(column, seed, groups))) for t, column in columns.items()}
    return {
        name: {t: float(scale(column.mean())) for t, column in columns.items()},
        f"{name}_ci95": {t: sorted(pair.tolist()) for t, pair in ends.items()},
    }


def entropy(share: np.ndarray) -> float:
    """Entropy of a distribution, in nats."""
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())


def perplexity(codes: np.ndarray) -> float:
    """exp(entropy) of how often each code occurs: so many, if they were used evenly."""
    counts = np.bincount(np.asarray(codes).ravel())
    return float(np.exp(entropy(counts / counts.sum())))
