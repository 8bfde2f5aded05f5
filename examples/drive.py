"""Footage that is no game: a drive along a winding road, drawn line by line as arcade games of the eighties did.

    python examples/drive.py drives --clips 64
    minigenie ingest drives --out data/drive --size 64 --fps 10 --split 0.1

Beside each video lies what was done at each of its frames: 0 straight on, 1 left, 2 right.
"""

from pathlib import Path

import numpy as np
import torch
import tyro

from minigenie.pictures import save_video

SIZE, HORIZON, FPS = 64, 26, 10
SKY, FAR_SKY, HILL = (92, 148, 252), (204, 226, 255), (70, 120, 90)
GRASS, ROAD, EDGE, DASH = (
    ((64, 160, 60), (52, 140, 52)),
    ((104, 104, 108), (98, 98, 102)),
    (236, 236, 236),
    (250, 220, 60),
)
TRUNK, LEAVES = (96, 62, 40), (20, 92, 50)
EYE, HALF_ROAD, SPEED, STEER = 1.2, 2.0, 1.6, 0.3  # metres; a frame's way forwards and sideways
DEPTHS = 40 * EYE / (np.arange(HORIZON, SIZE) - HORIZON + 0.6)  # metres to the ground that each line shows


class Road:
    """bends: how much it turns, by metres from its start. trees: where they stand, metres along and from its middle."""

    def __init__(self, rng: np.random.Generator, length: int) -> None:
        waves, phases = rng.uniform(60, 200, 3), rng.uniform(0, 2 * np.pi, 3)
        self.bends = 0.004 * np.sin(2 * np.pi * np.arange(length)[:, None] / waves + phases).sum(axis=1)
        along = np.arange(8, length, 9) + rng.uniform(-2, 2, len(range(8, length, 9)))
        self.trees = np.stack([along, rng.choice([-1, 1], len(along)) * rng.uniform(3.5, 7, len(along))], axis=1)

    def middle(self, at: float, depths: np.ndarray) -> np.ndarray:
        """Metres to the right of straight ahead, at each depth in front of `at`."""
        ahead = np.cumsum(np.cumsum(self.bends[int(at) : int(at) + 120]))
        return np.interp(depths, np.arange(len(ahead)), ahead)


def draw(road: Road, at: float, aside: float, heading: float) -> np.ndarray:
    """The view from `at` metres along the road and `aside` to the right of its middle, uint8 [SIZE SIZE 3]."""
    frame, columns = np.empty((SIZE, SIZE, 3)), np.arange(SIZE)
    frame[:HORIZON] = np.linspace(SKY, FAR_SKY, HORIZON)[:, None]
    hills = HORIZON - 4 - 2.5 * np.sin(0.11 * columns + 5 * heading) - 1.5 * np.sin(0.23 * columns + 11 * heading)
    frame[:HORIZON][np.arange(HORIZON)[:, None] > hills] = HILL
    middle = road.middle(at, DEPTHS) - aside
    across = (columns - SIZE / 2) / 40 * DEPTHS[:, None] - middle[:, None]  # metres from the road's middle
    stripe = ((at + DEPTHS) // 4 % 2).astype(int)[:, None]
    ground = np.array(GRASS)[np.broadcast_to(stripe, across.shape)]
    on_road = np.abs(across) < HALF_ROAD
    ground[on_road] = np.array(ROAD)[np.broadcast_to(stripe, across.shape)[on_road]]
    ground[on_road & (np.abs(across) > HALF_ROAD - 0.3)] = EDGE
    ground[(np.abs(across) < 0.15) & (stripe == 0)] = DASH
    frame[HORIZON:] = ground
    near = road.trees[(road.trees[:, 0] > at + 2) & (road.trees[:, 0] < at + 60)]
    for along, beside in near[::-1]:
        depth = along - at
        x = SIZE / 2 + 40 * (road.middle(at, np.array([depth]))[0] - aside + beside) / depth
        foot, tall = HORIZON + 40 * EYE / depth, 40 * 3.2 / depth
        _box(frame, x - 4 / depth, x + 6 / depth, foot - tall / 2, foot, TRUNK)
        _box(frame, x - 34 / depth, x + 36 / depth, foot - tall, foot - tall / 3, LEAVES)
    return frame.astype(np.uint8)


def _box(frame: np.ndarray, left: float, right: float, top: float, bottom: float, colour: tuple[int, int, int]) -> None:
    frame[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = colour


def drive(seed: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A driver who holds the wheel now so, now so, and comes back from the grass. uint8 [t h w 3], actions int [t]."""
    rng = np.random.default_rng(seed)
    road = Road(rng, int(frames * SPEED) + 200)
    at, aside, heading, action, left = 0.0, 0.0, 0.0, 0, 0
    video, actions = np.empty((frames, SIZE, SIZE, 3), np.uint8), np.empty(frames, np.int64)
    for t in range(frames):
        if left == 0:
            action, left = int(rng.integers(3)), int(rng.integers(3, 10))
        if abs(aside) > 1.3 * HALF_ROAD:
            action, left = 1 if aside > 0 else 2, 4
        video[t], actions[t] = draw(road, at, aside, heading), action
        bend = road.bends[int(at)]
        at, heading, left = at + SPEED, heading + bend * SPEED, left - 1
        aside += STEER * (0, -1, 1)[action] - 6 * bend  # a bend carries outwards
    return video, actions


def main(out: tyro.conf.Positional[Path], clips: int = 64, length: int = 500, seed: int = 0) -> None:
    """Write `clips` drives of `length` frames each, 10 a second, as mp4 with the actions beside them."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        video, actions = drive(seed + number, length)
        path = save_video(torch.from_numpy(video), out / f"drive-{number:03}.mp4", FPS)
        np.save(path.with_suffix(".actions.npy"), actions)
    print(f"{out}: {clips} drives, {clips * length:,} frames")


if __name__ == "__main__":
    tyro.cli(main)
