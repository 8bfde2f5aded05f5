"""Controls that nobody labelled, found where the picture rests."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minigenie.__main__ import main
from minigenie.found import found_controls
from minigenie.inverse import InverseConfig, InverseDynamics

KEYS = ("noop", "left", "right", "jump", "jump-right")


def played(episodes: int, length: int, ways=KEYS, seed: int = 0, hold: int = 12):
    """A platformer's camera: keys held for so many frames each, with friction, gravity and ground. (dataset, motions,
    keys); content moves against the player, [down, right]."""
    rng = np.random.default_rng(seed)
    motions, keys = np.zeros((episodes * length, 2), np.float32), np.zeros(episodes * length, int)
    for episode in range(episodes):
        speed, height, climb = 0.0, 0.0, 0.0
        for frame in range(episode * length, (episode + 1) * length):
            if frame % hold == 0:
                key = KEYS.index(str(rng.choice(ways))) if frame % (3 * hold) else 0
            speed = 0.5 * speed + {"left": -1.0, "right": 1.0}.get(KEYS[key].split("-")[-1], 0.0)
            climb = 6.0 if height == 0 and KEYS[key].startswith("jump") else climb - 1.0 if height > 0 else 0.0
            climb = max(climb, -height)
            height += climb
            motions[frame], keys[frame] = (climb, -speed if abs(speed) > 0.05 else 0.0), key
        motions[frame] = 0
    starts = np.arange(episodes) * length
    windows = lambda n: (starts[:, None] + np.arange(length - n + 1)).ravel()  # noqa: E731
    return SimpleNamespace(windows=windows, name="played"), motions, keys


def test_the_way_out_of_rest_names_what_is_held():
    dataset, motions, keys = played(60, 180)
    found = found_controls(dataset, motions, seed=0)
    assert set(found.names) == {"noop", "left", "right", "up", "up-right"}
    right, falling = as_held(found, keys), motions[found.frames, 0] < -0.5
    assert right[~falling].mean() > 0.9
    for control in range(len(found.names)):
        assert right[~falling & (found.controls == control)].mean() > 0.7


def as_held(found, keys):
    """Which of the found controls are the keys that were held."""
    return np.array(found.names)[found.controls] == np.char.replace(KEYS, "jump", "up")[keys[found.frames]]


def test_nothing_is_held_where_it_rests():
    dataset, motions, _ = played(60, 180, ways=("jump", "noop"))
    found = found_controls(dataset, motions, seed=0)
    speed = np.abs(motions[found.frames]).max(1)
    assert found.names == ("noop", "up")
    assert (found.controls[speed == 0] == 0).all()
    assert (found.controls[motions[found.frames, 0] > 0.5] == 1).all()


def test_what_comes_after_a_fall_was_held_in_it():
    """A flight takes 13 frames, so some keys are let go in it, and some are held until the player jumps again."""
    dataset, motions, keys = played(60, 180, ways=("jump", "noop"), hold=17)
    found = found_controls(dataset, motions, seed=0)
    falling = motions[found.frames, 0] < -0.5
    assert as_held(found, keys)[falling].mean() > 0.7
    assert 0.2 < found.controls[falling].mean() < 0.8


def test_a_rare_way_is_an_accident():
    dataset, motions, _ = played(60, 180, ways=("left", "right"))
    found = found_controls(dataset, motions, seed=0)
    assert found.names == ("noop", "right", "left")


def test_the_same_again():
    dataset, motions, _ = played(40, 180)
    one, two = (found_controls(dataset, motions, seed=3) for _ in range(2))
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.controls, two.controls)


def test_a_camera_that_never_moves_finds_none(toy, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(toy.folder), "--out", str(tmp_path / "world"), "--actions", "found"])
    assert "too few to find controls by" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize("source", ["found", "latent"])
def test_what_takes_no_labels_says_so(source, toy, tmp_path, capsys):
    command = ["train", str(toy.folder), "--out", str(tmp_path / "world"), "--actions", source, "--labels", "100"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert f"{source} actions take none" in capsys.readouterr().err


def test_what_nobody_can_tell_is_drawn_and_lasts(monkeypatch):
    """Eight steps at which two controls are as likely, then eight at which one is: labelled for dynamics."""
    model = InverseDynamics(InverseConfig(controls=("a", "b", "c"), motion=False, held=0.5), (64, 64))
    chances = torch.tensor([[0.48, 0.48, 0.04]] * 8 + [[0.05, 0.9, 0.05]] * 8).expand(400, 16, 3)
    monkeypatch.setattr(model, "_step_logits", lambda video, motions: chances.log())
    labels, video = model.label(torch.zeros(400, 17, 64, 64, 3)), torch.zeros(400, 17, 64, 64, 3)
    told = labels[:, 7] < 2  # a third control is drawn now and then, and does not stay
    assert told.all()
    assert 0.4 < (labels[:, 7] == 0).float().mean() < 0.6
    steady = (labels[:, 1:8] == labels[:, :7]) | (labels[:, :7] == 2)
    assert steady.all()
    assert (labels[:, 8:] == 1).float().mean() > 0.9
    assert torch.equal(labels, model.label(video))
    assert (model.infer(video)[:, 8:] == 1).all()
