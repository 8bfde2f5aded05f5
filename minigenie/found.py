"""Controls that nobody labelled, found where the picture rests: what it does next is what is held.

From rest a key's effect is all there is to see; in flight a fall hides it. So only transitions out of rest are named,
by the way that the scene then goes, and inverse dynamics (minigenie.inverse) learn from these, as from labels, to tell
the others by the player's looks. It takes footage whose camera follows the player and in which the player rests now and
then.

Dimensions:  f frames of a dataset   n moments   s steps
"""

import numpy as np
from jaxtyping import Float, Int

from minigenie.data.dataset import Dataset
from minigenie.data.labels import Labels
from minigenie.errors import UserError
from minigenie.nn.motion import STILL

RESTED = 3  # steps of rest before a start
AHEAD = 6  # steps by which is told where it goes
HELD = 2  # steps from a start on that have the same control
SETTLING = 4  # steps before a rest, in which nothing is held any more
RARE = 0.05  # share of starts below which a direction is an accident
FEWEST = 60  # starts
DIRECTIONS = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
NOTHING = "noop"


def found_controls(dataset: Dataset, motions: Float[np.ndarray, "f 2"], seed: int) -> Labels:
    """motions: of the picture's content from each frame to the next, [down, right] in pixels. ValueError, one line, if
    the footage has too few starts from rest."""
    windows = dataset.windows(RESTED + AHEAD + 1) + RESTED
    moments = windows[(_steps(motions, windows, -RESTED, 0) < STILL).all(1)]
    speed, rng = _steps(motions, moments, 0, AHEAD), np.random.default_rng(seed)
    still, starts = moments[(speed < STILL).all(1)], moments[speed[:, 0] >= STILL]
    if len(starts) < FEWEST:
        raise UserError(
            f"in {dataset.name} the picture starts from rest {len(starts)} times, too few to find controls by "
            f"({FEWEST} are needed); take --actions latent"
        )
    directions = _directions(np.stack([motions[starts + step] for step in range(AHEAD)], axis=1).sum(1))
    common = np.flatnonzero(np.bincount(directions, minlength=len(DIRECTIONS)) >= RARE * len(starts))
    starts, directions = starts[np.isin(directions, common)], directions[np.isin(directions, common)]
    named = np.concatenate([starts + step for step in range(HELD)])
    controls = np.tile(1 + np.searchsorted(common, directions), HELD)
    idle = np.setdiff1d(rng.permutation(still)[: len(starts) // 4], named)
    settling = np.setdiff1d(rng.permutation(_settling(dataset, motions))[: len(starts) // 9], np.union1d(named, idle))
    frames = np.concatenate([named, idle, settling])
    controls = np.concatenate([controls, np.zeros(len(idle) + len(settling), np.int64)])
    frames, first = np.unique(frames, return_index=True)
    return Labels((NOTHING, *(DIRECTIONS[direction] for direction in common)), frames, controls[first])


def _steps(motions: Float[np.ndarray, "f 2"], frames: Int[np.ndarray, " n"], first: int, end: int) -> np.ndarray:
    """How fast the picture moves at the steps around some frames: [n s], the larger of both axes."""
    return np.stack([np.abs(motions[frames + step]).max(-1) for step in range(first, end)], axis=1)


def _settling(dataset: Dataset, motions: Float[np.ndarray, "f 2"]) -> Int[np.ndarray, " n"]:
    """Frames just before the picture comes to rest, when it fell."""
    windows = dataset.windows(SETTLING + RESTED + 2) + SETTLING
    speed = _steps(motions, windows, -1, RESTED + 1)
    falls = -motions[windows - 1, 0] > np.abs(motions[windows - 1, 1])
    rests = windows[(speed[:, 0] >= STILL) & (speed[:, 1:] < STILL).all(1) & falls]
    return np.unique(np.concatenate([rests - step for step in range(1, SETTLING + 1)]))


def _directions(path: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Which of DIRECTIONS the player goes when the content moves [down, right]: against it sideways, up when it moves
    down. Each axis counts in its own measure."""
    up, left = (path / np.sqrt((path**2).mean(0)).clip(STILL)).T
    return np.round(np.arctan2(up, -left) / (np.pi / 4)).astype(np.int64) % len(DIRECTIONS)
