"""Footage that an example draws: what is done at the wheel shows, and ingest reads it with its actions."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

from minigenie.__main__ import main
from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset

EXAMPLE = Path(__file__).parent.parent / "examples" / "drive.py"
drive = runpy.run_path(str(EXAMPLE))


def edge(frame):
    """Where the road's right edge meets the middle lines: the last white column."""
    return np.flatnonzero((frame[45] == drive["EDGE"]).all(axis=-1)).max()


def test_steering_to_the_left_moves_the_road_to_the_right():
    road = drive["Road"](np.random.default_rng(0), 300)
    places = [edge(drive["draw"](road, 20.0, aside, 0.0)) for aside in (0.4, 0.2, 0.0)]
    assert places == sorted(set(places))


def test_driving_forwards_brings_what_is_far_nearer():
    road = drive["Road"](np.random.default_rng(0), 300)
    road.trees = road.trees[9:10]
    along, beside = road.trees[0]
    views = [drive["draw"](road, along - depth, beside, 0.0) for depth in (40, 20, 8)]
    leaves = [(view == drive["LEAVES"]).all(axis=-1).sum() for view in views]
    assert 0 < leaves[0] < leaves[1] < leaves[2]


def test_drives_come_in_with_what_was_done(tmp_path):
    subprocess.run([sys.executable, EXAMPLE, tmp_path / "drives", "--clips", "2", "--length", "120"], check=True)
    main(["ingest", str(tmp_path / "drives"), "--out", str(tmp_path / "data"), "--size", "64", "--fps", "10"])
    data = Dataset.open(tmp_path / "data")
    assert data.num_frames == 240
    controls = controls_of(data)
    assert controls is not None
    assert len(controls) == 3
    video, actions = drive["drive"](0, 120)
    stored = [data.episode_frames(i) for i in range(len(data.episodes))]
    nearest = min(np.abs(each[:120].astype(int) - video).mean() for each in stored)
    assert nearest < 4  # of 255: what H.264 loses
    assert any(np.array_equal(data.episode_actions(i), actions) for i in range(len(data.episodes)))
