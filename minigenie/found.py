"""Controls that nobody labelled, found where the picture rests: what it does next is what is held.

From rest a key's effect is all there is to see; in flight a fall hides it. So transitions out of rest are named, by
the way that the scene then goes, and inverse dynamics (minigenie.inverse) learn from these, as from labels, to tell the
others by the player's looks. Of some falls the end is named, too, by what comes after it. No picture shows that, but a
key that were never held in a fall would be one that dynamics has never seen held until the player lands. It takes
footage whose camera follows the player and in which the player rests now and then.

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
FALLING = 4  # last steps of a fall, in which is held what comes after it
FAR = 0.6  # of how far the scene goes out of rest: less after a fall is nobody's doing
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
    paths = _paths(motions, starts)
    measure = np.sqrt((paths**2).mean(0)).clip(STILL)
    directions = _directions(paths / measure)
    common = np.flatnonzero(np.bincount(directions, minlength=len(DIRECTIONS)) >= RARE * len(starts))
    starts, directions = starts[np.isin(directions, common)], directions[np.isin(directions, common)]
    named = np.concatenate([starts + step for step in range(HELD)])
    controls = np.tile(1 + np.searchsorted(common, directions), HELD)
    idle = np.setdiff1d(rng.permutation(still)[: len(starts) // 4], named)
    falls, after = _falls(dataset, motions, measure, common)
    some = rng.permutation(np.flatnonzero(~np.isin(falls, np.union1d(named, idle))))[: len(starts) // 3]
    frames = np.concatenate([named, idle, falls[some]])
    controls = np.concatenate([controls, np.zeros(len(idle), np.int64), after[some]])
    frames, first = np.unique(frames, return_index=True)
    return Labels((NOTHING, *(DIRECTIONS[direction] for direction in common)), frames, controls[first])


def _steps(motions: Float[np.ndarray, "f 2"], frames: Int[np.ndarray, " n"], first: int, end: int) -> np.ndarray:
    """How fast the picture moves at the steps around some frames: [n s], the larger of both axes."""
    return np.stack([np.abs(motions[frames + step]).max(-1) for step in range(first, end)], axis=1)


def _paths(motions: Float[np.ndarray, "f 2"], frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """Where the content goes from some frames on."""
    return np.stack([motions[frames + step] for step in range(AHEAD)], axis=1).sum(1)


def _falls(
    dataset: Dataset, motions: Float[np.ndarray, "f 2"], measure: Float[np.ndarray, " 2"], common: Int[np.ndarray, " k"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The last frames of falls, and the control that shows after each: nothing, where the scene hardly goes on.
    measure: of a path out of rest. common: the directions that are controls."""
    landed = dataset.windows(FALLING + AHEAD + 2) + FALLING
    fell = -motions[landed - 1, 0] >= np.abs(motions[landed - 1, 1]).clip(STILL)
    landed = landed[fell & (motions[landed, 0] > -STILL)]
    first, second = (_steps(motions, landed, 0, 2) >= STILL).T
    landed = landed + ~first  # it may stand for a step before it goes on
    paths = _paths(motions, landed) / measure
    directions, far = _directions(paths), (first | second) & (np.hypot(*paths.T) >= FAR)
    controls = np.where(far, 1 + np.searchsorted(common, directions), 0)
    told = ~far | np.isin(directions, common)
    frames = np.concatenate([landed[told] - step for step in range(1, FALLING + 1)])
    return frames, np.tile(controls[told], FALLING)


def _directions(paths: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Which of DIRECTIONS the player goes when the content moves [down, right], each axis in its own measure: against
    it sideways, up when it moves down."""
    up, left = paths.T
    return np.round(np.arctan2(up, -left) / (np.pi / 4)).astype(np.int64) % len(DIRECTIONS)
