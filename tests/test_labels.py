"""The labels beside a dataset: what is written is read again, what makes no sense is refused in one line."""

import json
import re
import shutil

import numpy as np
import pytest

from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset
from minigenie.data.labels import FILE, Labels, check_labels, read_labels, recorded_labels, write_labels

NAMES = ("noop", "left", "right")


@pytest.fixture
def data(toy, tmp_path):
    return Dataset.open(shutil.copytree(toy.folder, tmp_path / "data"))


def refused(data, **changed) -> str:
    content = {
        "format": "minigenie-labels",
        "version": 1,
        "controls": list(NAMES),
        "labels": [[3, 1], [0, 2]],
    } | changed
    (data.folder / FILE).write_text(json.dumps(content))
    return why(data)


def why(data) -> str:
    with pytest.raises(ValueError, match=f"^{re.escape(str(data.folder / FILE))}: ") as caught:
        read_labels(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_again_in_order(data):
    write_labels(data.folder, NAMES, {30: 1, 4: 2, 5: 0, 6: 2})
    labels = read_labels(data)
    assert labels.names == NAMES
    assert labels.frames.tolist() == [4, 5, 6, 30]
    assert labels.controls.tolist() == [2, 0, 2, 1]
    assert labels.counts == {"noop": 1, "left": 1, "right": 2}


def test_a_file_without_a_label_has_its_names(data):
    write_labels(data.folder, NAMES, {})
    assert read_labels(data).counts == {"noop": 0, "left": 0, "right": 0}


def test_a_dataset_without_labels_says_how_to_make_some(data):
    with pytest.raises(FileNotFoundError, match="has no labels.json; make some with `minigenie teach"):
        read_labels(data)


def test_two_labels_for_one_frame(data):
    assert "frame 7 has two labels" in refused(data, labels=[[7, 1], [8, 0], [7, 1]])


@pytest.mark.parametrize("control", [3, -1])
def test_a_control_that_is_not_there(data, control):
    assert f"names control {control}; there are 0 to 2" in refused(data, labels=[[0, control]])


def test_a_frame_that_is_not_there_or_leads_nowhere(data):
    last = int(data.episode_starts[0]) + data.episodes[0].length - 1
    for frame in (-1, last, data.num_frames, 10**12):
        assert f"frame {frame} is labelled" in refused(data, labels=[[frame, 0]])


@pytest.mark.parametrize(
    "labels", [None, {}, [[1]], [[1, 2, 3]], [["1", 0]], [[1.0, 0]], [[True, 0]], [[2**70, 0]], [3]]
)
def test_labels_that_are_none(data, labels):
    assert "two integers each" in refused(data, labels=labels)


@pytest.mark.parametrize(
    "controls", [None, [], "left", [1], [""], [" "], ["a,b"], ["a\nb"], ["x" * 41], [str(i) for i in range(65)]]
)
def test_names_that_are_none(data, controls):
    assert "controls must be 1 to 64 names" in refused(data, controls=controls)


def test_two_controls_of_one_name(data):
    assert "the same name, 'up'" in refused(data, controls=["up", "left", "up"])


def test_another_version_or_file(data):
    assert "it has version 2, this MiniGenie reads 1" in refused(data, version=2)
    assert "no file of labels" in refused(data, format="minigenie-dataset")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_damaged_file(data, content):
    (data.folder / FILE).write_bytes(content)
    why(data)


def test_a_failed_write_leaves_the_old_file(data, monkeypatch):
    def full(_):
        raise OSError(28, "no space")

    write_labels(data.folder, NAMES, {3: 1})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="cannot write"):
        write_labels(data.folder, NAMES, {4: 1})
    assert read_labels(data).frames.tolist() == [3]


def test_training_wants_enough_labels_and_some_of_every_control():
    frames = np.arange(20)
    assert check_labels(Labels(NAMES, frames, frames % 3)).counts == {"noop": 7, "left": 7, "right": 6}
    with pytest.raises(ValueError, match="there are 19 labels; give at least 20"):
        check_labels(Labels(NAMES, frames[:19], frames[:19] % 3))
    with pytest.raises(ValueError, match="no label says 'right'"):
        check_labels(Labels(NAMES, frames, frames % 2))


def test_recorded_labels_are_true_and_reproducible(data):
    labels = recorded_labels(data, 200, seed=3)
    again, other = recorded_labels(data, 200, seed=3), recorded_labels(data, 200, seed=4)
    np.testing.assert_array_equal(labels.frames, again.frames)
    assert (labels.frames != other.frames).any()
    assert len(np.unique(labels.frames)) == 200
    starts = data.episode_starts
    for frame, control in zip(labels.frames.tolist(), labels.controls.tolist(), strict=True):
        episode = int(np.searchsorted(starts, frame, side="right")) - 1
        assert frame - starts[episode] < data.episodes[episode].length - 1
        assert control == data.episode_actions(episode)[frame - starts[episode]]
    assert labels.names == controls_of(data).names


def test_recorded_labels_of_footage_without_actions(data):
    for number in (19, data.num_frames):
        with pytest.raises(ValueError, match=f"labels is {number}"):
            recorded_labels(data, number, seed=0)
    data.has_actions = False
    with pytest.raises(ValueError, match="has no recorded actions to learn from"):
        recorded_labels(data, 20, seed=0)
