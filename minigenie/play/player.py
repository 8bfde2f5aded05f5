"""One player's world: weights shared with the other players, and a past, a recording and a clip of its own.

Everything here blocks; the server calls it from its one worker thread.

Dimensions:  t frames   h w c a frame
"""

from collections import deque
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.past import Snapshot
from minigenie.world import World

PAST_BYTES, PAST_MOMENTS = 64 << 20, 200  # what undo can go back to
RECORD_BYTES, RECORD_FRAMES = 64 << 20, 1_800  # 2 minutes at 15 frames/s
MAX_STEPS, MAX_TEMPERATURE = 64, 2.0
CLIP_FRAMES = 33  # of the split view
Outcome = Literal["won", "lost"]


class View(NamedTuple):
    """What a player sees: the frame, its number, what led to it; `truth` in the split view: what it should be.
    certainty: as `World.step` gives it."""

    frame: np.ndarray
    action: int | None
    number: int
    truth: np.ndarray | None = None
    certainty: float = 1.0


class Clip(NamedTuple):
    """Held-out footage and the actions that lead through it."""

    frames: np.ndarray
    actions: list[int]


class Player:
    """`reset`, then `step` and `undo`; `view` is what is seen now, replaced as a whole."""

    def __init__(self, base: World) -> None:
        self.world = base.fresh_copy()
        self.view: View | None = None
        self.past: deque[tuple[View, Snapshot]] = deque(maxlen=PAST_MOMENTS)  # what undo goes back to
        self.recorded: list[np.ndarray] = []
        self.recording = False
        self.clip: Clip | None = None
        self.start: np.ndarray | None = None
        self.seed = 0

    @property
    def most_steps(self) -> int:
        """MaskGIT fills in one token a step at least."""
        return min(self.world.config.tokenizer.num_patches, MAX_STEPS)

    def reset(self, start: np.ndarray, seed: int, clip: Clip | None = None) -> None:
        """Begin anew from one frame, uint8 [h w c]; with a clip: its first, to be followed by its own actions."""
        self.start, self.seed, self.clip = start, seed, clip
        self.past.clear()
        self._begin()

    def step(self, action: int) -> Outcome | None:
        """One frame on. Where the world says that it is over, the start picture again, and how it ended. In the split
        view the clip says which action, and begins again at its end."""
        assert self.view is not None
        if self.clip is not None and self.view.number == len(self.clip.actions):
            self.reset(self.clip.frames[0], self.seed, self.clip)
            return None
        if self.clip is not None:
            action = self.clip.actions[self.view.number]
        before = self.world.snapshot()
        told = self.world.told()
        self._remember(before)
        if self.clip is None and told.over:
            self._begin()
            return "won" if told.won else "lost"
        frames, certainty = self.world.step([action], certainty=True)
        self._show(frames[0].numpy(), action, self.view.number + 1, float(certainty))
        return None

    def undo(self) -> bool:
        """Back by one frame, to the very state it was in. False at the beginning of what is kept."""
        if not self.past:
            return False
        view, before = self.past.pop()
        self.world.restore(before)
        self.view = view
        return True

    def sample(self, steps: int, temperature: float) -> None:
        """How the frames from now on are sampled. UserError if it cannot be."""
        if not 1 <= steps <= self.most_steps:
            raise UserError(f"steps is {steps}; a frame takes 1 to {self.most_steps}")
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise UserError(f"temperature is {temperature}; use 0 to {MAX_TEMPERATURE}")
        sampling = replace(self.world.config.sampling, steps=steps, temperature=temperature)
        self.world.config = replace(self.world.config, sampling=sampling)

    def record(self, on: bool) -> None:
        """Begin a new recording, or end it; its frames stay until the next one begins."""
        if on and not self.recording:
            self.recorded = [self.view.frame] if self.view else []
        self.recording = on

    def _begin(self) -> None:
        assert self.start is not None
        self.world.reset(self.start[None, None], self.seed)
        self._show(self.start, None, 0)

    def _remember(self, before: Snapshot) -> None:
        assert self.view is not None
        self.past.append((self.view, before))
        while len(self.past) * before.size > PAST_BYTES and len(self.past) > 1:
            self.past.popleft()

    def _show(self, frame: np.ndarray, action: int | None, number: int, certainty: float = 1.0) -> None:
        self.view = View(frame, action, number, self.clip.frames[number] if self.clip else None, certainty)
        if self.recording:
            self.recorded.append(frame)
            full = len(self.recorded) * frame.nbytes >= RECORD_BYTES or len(self.recorded) >= RECORD_FRAMES
            self.recording = not full


def footage_clip(world: World, footage: Dataset, number: int) -> Clip:
    """Clip `number` of held-out footage: from the first third of an episode on."""
    lengths = [episode.length for episode in footage.episodes]
    long = [i for i, length in enumerate(lengths) if length >= min(CLIP_FRAMES, max(lengths))]
    frames = footage.episode_frames(long[number % len(long)])
    begin = max(0, (len(frames) - CLIP_FRAMES) // 3)
    window = np.array(frames[begin : begin + CLIP_FRAMES])
    return Clip(window, world.infer_actions(window[None])[0].tolist())
