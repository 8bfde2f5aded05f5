"""Controls from a few labels."""

from dataclasses import replace

import numpy as np
import torch
from torch.testing import assert_close

from minigenie.batches import recorded_controls
from minigenie.data.labels import recorded_labels
from minigenie.encode import encode_actions, encode_motions
from minigenie.inverse import InverseConfig, InverseDynamics
from minigenie.nn.patches import to_float
from minigenie.pipeline import Run, Watcher, with_actions

SIX = ("noop", "left", "right", "jump", "jump-left", "jump-right")
CPU = torch.device("cpu")


def test_a_mirror_swaps_left_and_right():
    assert InverseConfig(controls=SIX).mirrored == [0, 2, 1, 3, 5, 4]
    assert InverseConfig(controls=("brake", "gas")).mirrored is None
    assert InverseConfig(controls=("noop", "left")).mirrored is None


def test_a_whole_video_at_once_or_in_pieces(toy, tmp_path, monkeypatch):
    """What `encode` does in pieces, with the steps around them, is what the model says of every whole episode."""
    model = InverseDynamics(InverseConfig(controls=SIX), (64, 64)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    monkeypatch.setattr("minigenie.encode.BATCH_FRAMES", 64)
    encoded = encode_actions(toy, model, np.zeros((toy.num_frames, 0)), 16, tmp_path / "actions.npy")
    motions = encode_motions(toy, tmp_path / "motions.npy", torch.device("cpu"))
    known = encode_actions(toy, model, np.zeros((toy.num_frames, 0)), 16, tmp_path / "known.npy", motions=motions)
    assert (known == encoded).mean() > 0.99
    same = []
    for i, first in enumerate(toy.episode_starts):
        frames = to_float(torch.from_numpy(toy.episode_frames(i).copy()))
        same.append((model.infer(frames[None])[0].numpy() == encoded[first : first + len(frames) - 1]).mean())
    assert np.mean(same) > 0.99  # a near thing may come out differently in another batch
    assert len(np.unique(encoded)) > 1


def test_it_sees_some_steps_around_and_no_further():
    model = InverseDynamics(InverseConfig(controls=SIX, past=1, future=2), (64, 64)).eval()
    video = torch.rand(1, 10, 64, 64, 3)
    far, near = video.clone(), video.clone()
    far[:, 7:], near[:, 6] = 0, 0

    def around(video, step):  # logits of one step, from the frames that it may see
        moved = torch.nn.functional.pad(model.motions(video), (0, 0, 1, 2)).unfold(1, 4, 1).transpose(-1, -2)
        return model.logits(video[:, step], video[:, step + 1], moved[:, step])

    assert_close(around(video, 3), around(far, 3))
    assert not torch.allclose(around(video, 3), around(near, 3))


def test_it_looks_where_motion_does_not_explain_what_changes():
    model = InverseDynamics(InverseConfig(controls=SIX), (64, 64))
    before = torch.rand(16, 1, 1, 3).expand(16, 64, 64, 3).clone()
    after = before.clone()
    after[:, 40:48, 8:16] = torch.rand(16, 8, 8, 3)
    model.fit_focus(before, after)
    row, column = divmod(int(model.focus.argmax()), 64)
    assert 40 <= row < 48
    assert 8 <= column < 16
    assert model.focus[:30].max() < 0.01


def test_a_few_labels_tell_the_rest(toy, recipe, tmp_path):
    """300 labels of 1,500 frames; judged on all frames, most of which it never saw labelled."""
    recipe = with_actions(recipe, toy, "labels", 300)
    recipe = replace(recipe, lam_fit=replace(recipe.lam_fit, steps=120, batch_size=64))
    run = Run(toy, recipe, tmp_path / "run", CPU, None, False, Watcher())
    model = run.inverse()
    found = run.actions(model, np.zeros((toy.num_frames, 0)))
    frames = toy.windows(2)
    truth = recorded_controls(toy, frames, 2)[:, 0].numpy()
    commonest = np.bincount(truth).max() / len(truth)
    assert (found[frames] == truth).mean() > commonest + 0.2
    labels = recorded_labels(toy, 300, recipe.seed)
    np.testing.assert_array_equal(found[labels.frames], labels.controls)
    unlabelled = np.setdiff1d(frames, labels.frames)
    assert (found[unlabelled] == recorded_controls(toy, unlabelled, 2)[:, 0].numpy()).mean() > commonest + 0.1
