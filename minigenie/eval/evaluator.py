"""What every measurement shares: clips of held-out footage, rollouts side by side, progress, notes.

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
UNMEASURED = "not measured: "  # how a note on what is missing begins

Watch = Callable[[int, int], None]  # frames imagined: done, in all


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

    def rollout(self, frames: Tensor, actions: Tensor) -> UInt8[Tensor, "b t h w c"]:
        """As the world's own, in small batches, with progress."""

        def play(prompt: Tensor, choice: Tensor, seed: int) -> Tensor:
            video = self.world.fresh_copy().rollout(prompt, choice, seed)
            self.advance(choice.numel())
            return video

        return torch.cat(self.each(play, frames.split(BATCH), actions.split(BATCH), count(self.seed)))

    def each(self, call: Callable[..., Result], *parts: Iterable[Any]) -> list[Result]:
        return list(parallel_map(call, *parts, device=self.world.device))

    def infer_actions(self, video: UInt8[Tensor, "b t h w c"]) -> Int[Tensor, "b steps"]:
        return torch.cat(self.each(self.world.infer_actions, video.split(BATCH)))

    def clips(self, count: int, length: int, salt: int) -> Int[np.ndarray, " b"]:
        """Where `count` clips begin, drawn without repetition; all there are, if they are fewer."""
        windows = self.dataset.windows(length)
        chosen = np.random.default_rng([self.seed, salt]).choice(windows, min(count, len(windows)), replace=False)
        return np.sort(chosen)

    def frames(self, starts: Int[np.ndarray, " b"], length: int) -> UInt8[Tensor, "b t h w c"]:
        return torch.from_numpy(self.dataset.clips(starts, length))

    def compare(
        self, distance: Distance, frames: UInt8[Tensor, "b t h w c"], truth: UInt8[Tensor, "b t h w c"]
    ) -> Float[np.ndarray, "b t"]:
        """A distance of each pair of frames; a few clips at a time, as it takes many times their memory."""

        def between(some: Tensor, true: Tensor) -> Tensor:
            return distance(to_float(some.flatten(0, 1)), to_float(true.flatten(0, 1))).unflatten(0, some.shape[:2])

        return torch.cat(self.each(between, frames.split(BATCH), truth.split(BATCH))).numpy()
