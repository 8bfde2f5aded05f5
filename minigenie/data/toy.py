"""A small platformer in NumPy with known actions: CoinRun's stand-in for tests and where no Procgen wheel exists.

The agent runs and jumps over hills and floating blocks towards a golden gate on the right; the camera keeps it in the
centre, so the world scrolls. An episode ends at the gate or after 400 steps. A level is a function of its number alone.

Actions: 0 noop, 1 left, 2 right, 3 jump, 4 jump-left, 5 jump-right.
Dimensions: n games played side by side   h w c a frame, 64 x 64 x 3   Positions are (y, x) in pixels, y downwards.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

VIEW, TILE, MARGIN = 64, 8, 4  # pixels of a frame, pixels of a tile, tiles around the level that the camera may see
ROWS, COLUMNS = 12 + 2 * MARGIN, 48 + 2 * MARGIN
AGENT = np.array([8, 6])  # height, width
DOWN = np.array([1, 0])
SPEED, JUMP, FALL = 2, 7, 6  # pixels per step; gravity takes 1 off each step, so a jump is 28 pixels high
MAX_STEPS = 400
SKIES = np.array([[120, 180, 240], [20, 20, 60], [240, 190, 140], [150, 210, 200]])
GROUNDS = np.array([[140, 90, 50], [90, 90, 120], [170, 90, 60], [70, 110, 70]])
TOPS = np.array([[60, 180, 60], [200, 200, 230], [240, 230, 150], [240, 240, 240]])
GOLD, BODY, EYE = (250, 210, 40), (230, 40, 60), (255, 255, 255)


class ToyWorld:
    """`num_envs` games on levels drawn from [start_level, start_level + num_levels), each restarting by itself."""

    VERSION = 1  # of the pictures and rules: a change of either makes other datasets

    def __init__(self, num_envs: int, seed: int = 0, num_levels: int = 10_000, start_level: int = 0):
        self._rng = np.random.default_rng(seed)
        self._levels = start_level, start_level + num_levels
        self._solid = np.empty((num_envs, ROWS, COLUMNS), bool)
        self._pictures = np.empty((num_envs, ROWS * TILE, COLUMNS * TILE, 3), np.uint8)
        self._position = np.empty((num_envs, 2), np.int64)
        self._fall, self._facing, self._steps = np.zeros((3, num_envs), np.int64)
        self._sprites = np.full((2, *AGENT, 3), BODY, np.uint8)  # looking left, looking right
        self._sprites[0, 1:3, 0:2] = self._sprites[1, 1:3, 4:6] = EYE
        self.level_seed = np.empty(num_envs, np.int64)
        self.first, self.won = np.ones(num_envs, bool), np.zeros(num_envs, bool)
        self._restart()

    def frames(self) -> np.ndarray:
        """What the cameras see now: uint8 [n h w c]."""
        top, left = (VIEW - AGENT) // 2
        views = sliding_window_view(self._pictures, (1, VIEW, VIEW, 3))
        y, x = (self._position - (top, left)).T
        frames = views[np.arange(len(y)), y, x, 0, 0]
        frames[:, top : top + AGENT[0], left : left + AGENT[1]] = self._sprites[self._facing]
        return frames

    def step(self, actions: np.ndarray) -> None:
        """Play `actions`, int [n] in 0..5. Where a game ends, `first` is true and the next frame is its new level's;
        `won` if the last one was done, not over for its time."""
        actions = np.asarray(actions)
        side = np.array([0, -1, 1])[actions % 3]
        grounded = self._hits(self._position + DOWN)
        self._fall = np.where(grounded & (actions >= 3), -JUMP, np.minimum(self._fall + 1, FALL))
        self._fall[~self._move(0, self._fall)] = 0
        self._move(1, SPEED * side)
        self._facing = np.where(side, side > 0, self._facing).astype(np.int64)
        self._steps += 1
        gate = (COLUMNS - MARGIN - 1) * TILE
        self.won = self._position[:, 1] + AGENT[1] > gate
        self.first = self.won | (self._steps >= MAX_STEPS)
        self._restart()

    def _move(self, axis: int, distance: np.ndarray) -> np.ndarray:
        """Move by `distance` pixels [n] or up to a wall; which of them came through, bool [n]."""
        through = np.ones(len(distance), bool)
        for pixel in range(np.abs(distance).max()):
            target = self._position.copy()
            target[:, axis] += np.sign(distance) * (pixel < np.abs(distance))
            through &= ~self._hits(target)
            self._position[through] = target[through]
        return through

    def _hits(self, position: np.ndarray) -> np.ndarray:
        """Whether an agent at `position` [n 2] would overlap something solid: bool [n]. Its corners tell."""
        rows = (position[:, :1] + (0, AGENT[0] - 1)) // TILE
        columns = (position[:, 1:] + (0, AGENT[1] - 1)) // TILE
        games = np.arange(len(position))[:, None, None]
        return self._solid[games, rows[:, :, None], columns[:, None, :]].any((1, 2))

    def _restart(self) -> None:
        """Give every game whose episode is over a level from the start."""
        for i in np.flatnonzero(self.first):
            self.level_seed[i] = self._rng.integers(*self._levels)
            self._solid[i], self._pictures[i], floor = _level(int(self.level_seed[i]))
            self._position[i] = floor * TILE - AGENT[0], (MARGIN + 1) * TILE
            self._fall[i], self._facing[i], self._steps[i] = 0, 1, 0


def _level(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Level number `seed`: solid tiles, bool [ROWS COLUMNS]; its picture, uint8 [h w c]; the row that it starts on."""
    rng = np.random.default_rng(seed)
    hills = np.repeat(rng.integers(1, 4, COLUMNS // 3 + 1), 3)[:COLUMNS]  # three tiles wide, one to three high
    rows, columns = np.indices((ROWS, COLUMNS))
    floor = ROWS - MARGIN - hills
    blocks = (rows == floor - 4) & (rng.random(COLUMNS) < 0.2)
    walls = (columns < MARGIN) | (columns >= COLUMNS - MARGIN)
    solid = (rows >= floor) | blocks | walls

    sky, ground, top = (colours[seed % len(colours)] for colours in (SKIES, GROUNDS, TOPS))
    shade = rng.integers(-25, 25, (ROWS, COLUMNS, 1))  # tells tiles apart, so that scrolling shows
    tiles = np.where(solid[..., None], ground + shade, sky)
    tiles[(columns == COLUMNS - MARGIN - 1) & ~solid] = GOLD
    picture = tiles.repeat(TILE, 0).repeat(TILE, 1)
    inside = np.indices(picture.shape[:2]) % TILE  # pixel within its tile
    star = (~solid & (rng.random(solid.shape) < 0.15)).repeat(TILE, 0).repeat(TILE, 1)
    picture[star & (inside // 2 == 1).all(0)] = 255
    surface = (solid & ~np.roll(solid, 1, axis=0)).repeat(TILE, 0).repeat(TILE, 1)
    picture[surface & (inside[0] < 2)] = top
    return solid, picture.clip(0, 255).astype(np.uint8), int(floor[MARGIN + 1])
