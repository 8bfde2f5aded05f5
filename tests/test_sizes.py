"""Frames that are not 64 x 64, from video to a world that is played."""

import numpy as np
import pytest
import torch

from minigenie.__main__ import main
from minigenie.data.dataset import Dataset
from minigenie.data.toy import ToyWorld
from minigenie.pictures import save_video
from minigenie.world import World


@pytest.fixture(scope="module")
def toy_videos(tmp_path_factory):
    """Three files of 128 x 192 pixels."""
    folder = tmp_path_factory.mktemp("videos")
    game, rng = ToyWorld(3), np.random.default_rng(0)
    seen = []
    for _ in range(40):
        seen.append(np.concatenate((game.frames(), game.frames()[:, :, :32]), axis=2))
        game.step(rng.integers(6, size=3))
    for number, video in enumerate(np.stack(seen, axis=1)):
        save_video(torch.from_numpy(video), folder / f"{number}.mp4", 10.0)
    return folder


@pytest.mark.parametrize("size", [(96, 160), (128, 128)])
def test_from_video_to_a_world(toy_videos, tmp_path, size, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    main(["ingest", str(toy_videos), "--out", str(data), "--size", "x".join(map(str, size)), "--min-frames", "8"])
    assert Dataset.open(data).frame_size == size
    main(["train", str(data), "--dry-run"])
    positions = size[0] * size[1] // 16**2
    assert f"{4 * positions} patches of 8 pixels, {positions} positions of dynamics" in capsys.readouterr().out
    main(["train", str(data), "--out", str(run), "--max-steps", "2", "--device", "cpu"])
    world = World.load(run, device="cpu")
    assert world.frame_shape == (*size, 3)
    start = Dataset.open(data).clips(np.zeros(1, np.int64), 4)
    assert world.rollout(start, torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, *size, 3)
    main(["rollout", str(run), "--actions", "0,1", "--out", str(tmp_path / "clip.mp4"), "--device", "cpu"])
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    if size == (96, 160):  # a whole evaluation, once
        main(["eval", str(run), str(data), "--clips", "2", "--device", "cpu"])
        assert (run / "report.html").exists()
