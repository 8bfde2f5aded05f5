"""Several datasets as one: nothing lost, nothing mixed up, and each with the weight that was asked for."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from minigenie.__main__ import main
from minigenie.data.collect import collect
from minigenie.data.controls import TOY_NAMES, controls_of
from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.data.joined import JoinedDataset, open_datasets
from minigenie.data.labels import read_labels, write_labels
from minigenie.pipeline import held_out
from minigenie.settings import CollectSettings

SETTINGS = CollectSettings(game="toy", frames=300, levels=3, num_envs=2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Random and explored footage of one game."""
    folder = tmp_path_factory.mktemp("two")
    return [
        collect(SETTINGS, folder / "random"),
        collect(replace(SETTINGS, policy="explore", frames=500, seed=1), folder / "explored"),
    ]


@pytest.fixture
def joined(two):
    return JoinedDataset(two)


def written(folder, actions=None, fps=10.0, size=(8, 8), length=30):
    about = {"frame_size": size, "fps": fps, "source": "x", "generator": "x", "split": "train", "settings": {}}
    writer = DatasetWriter(folder, **about)
    frames = np.zeros((length, *size, 3), np.uint8)
    writer.write(0, frames, [Episode(0, 0, length)], actions)
    return writer.close()


def test_frames_and_actions_are_those_of_the_parts(two, joined):
    first, second = two
    assert joined.num_frames == first.num_frames + second.num_frames
    assert len(joined.episodes) == len(first.episodes) + len(second.episodes)
    np.testing.assert_array_equal(joined.windows(5)[: len(first.windows(5))], first.windows(5))
    np.testing.assert_array_equal(joined.windows(5)[len(first.windows(5)) :], second.windows(5) + first.num_frames)
    starts = joined.windows(5)[:: len(joined.windows(5)) // 7]
    for start in starts:
        part, begin = (first, start) if start < first.num_frames else (second, start - first.num_frames)
        np.testing.assert_array_equal(joined.clips([start], 5), part.clips([begin], 5))
        np.testing.assert_array_equal(joined.clip_actions([start], 5), part.clip_actions([begin], 5))
    assert controls_of(joined).names == TOY_NAMES
    again = pickle.loads(pickle.dumps(joined))
    np.testing.assert_array_equal(again.clips(starts, 5), joined.clips(starts, 5))


def test_weights_are_shares_of_an_epoch(two):
    first = two[0]
    joined = JoinedDataset(two, (3, 1))
    windows = joined.training_windows(5)
    of_first = windows < first.num_frames
    assert of_first.mean() == pytest.approx(0.75, abs=0.01)
    assert set(windows) == set(joined.windows(5))  # every one of them, some more often
    counts = np.bincount(windows)[joined.windows(5)]
    assert counts.max() - counts[: len(first.windows(5))].min() <= 1
    np.testing.assert_array_equal(JoinedDataset(two).training_windows(5), joined.windows(5))


def test_actions_of_other_games_are_controls_of_their_own(tmp_path):
    """Keys 1 and 4 of one, 4 and 1 of another: the same two; a third game has others, so there are none together."""
    alike = [written(tmp_path / name, np.resize([1, 4, 4], 30)) for name in "ab"]
    joined = JoinedDataset(alike)
    assert controls_of(joined).names == ("key 1", "key 4")
    assert joined.clip_actions([0, 30], 4).tolist() == [[0, 1, 1]] * 2
    other = written(tmp_path / "c", np.resize([1, 7], 30))
    assert controls_of(JoinedDataset([*alike, other])) is None
    assert controls_of(JoinedDataset([alike[0], written(tmp_path / "d")])) is None


def test_labels_of_all_parts_count(two):
    for part, frames in zip(two, ((3, 9), (4,)), strict=True):
        write_labels(part.folder, ("noop", "left"), dict.fromkeys(frames, 1))
    labels = read_labels(JoinedDataset(two))
    assert labels.frames.tolist() == [3, 9, two[0].num_frames + 4]
    (two[1].folder / "labels.json").unlink()
    assert read_labels(JoinedDataset(two)).frames.tolist() == [3, 9]
    write_labels(two[1].folder, ("noop", "right"), {4: 1})
    with pytest.raises(ValueError, match="has other controls than"):
        read_labels(JoinedDataset(two))
    for part in two:
        (part.folder / "labels.json").unlink()


def test_what_is_held_out_beside_each_is_held_out(tmp_path):
    parts = [written(tmp_path / name) for name in ("a", "b", "c")]
    assert held_out(JoinedDataset(parts)) is None
    written(tmp_path / "a-test")
    assert held_out(JoinedDataset(parts)).num_frames == 30
    written(tmp_path / "c-test", length=40)
    assert held_out(JoinedDataset(parts)).num_frames == 70


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        (
            {"size": (8, 16)},
            (),
            r"a has frames of 8x8 at 10 a second, \S*b has frames of 8x16 .*ingest both alike",
        ),
        ({"fps": 12.0}, (), r"at 10 a second, \S*b has frames of 8x8 at 12 a second"),
        ({}, (1,), "weights are 1; give 2 numbers above 0"),
        ({}, (1, 0), "weights are 1, 0; give 2 numbers above 0"),
        ({}, (1, float("nan")), "give 2 numbers above 0"),
    ],
)
def test_what_does_not_fit_together(tmp_path, changes, weights, message):
    parts = [written(tmp_path / "a"), written(tmp_path / "b", **changes)]
    with pytest.raises(ValueError, match=message) as caught:
        JoinedDataset(parts, weights)
    assert "\n" not in str(caught.value)


def test_weights_that_make_no_sense(tmp_path):
    parts = [written(tmp_path / "a"), written(tmp_path / "b", length=4)]
    with pytest.raises(ValueError, match=r"\Sb has no 5 frames in a row to give weight to"):
        JoinedDataset(parts, (1, 1)).training_windows(5)
    with pytest.raises(ValueError, match="each clip of .*b would come 967 times an epoch; at most 100"):
        JoinedDataset(parts, (1, 100)).training_windows(4 - 2)


def test_a_run_on_two_datasets_goes_on_only_with_the_same(two, tmp_path, capsys):
    folders = [str(part.folder) for part in two]
    small = [
        "--recipe",
        "tiny",
        "--max-steps",
        "1",
        "--device",
        "cpu",
        "--actions",
        "true",
        "--out",
        str(tmp_path / "run"),
    ]
    small += [word for name in ("tokenizer", "lam", "dynamics") for word in ("--set", f"{name}_fit.batch_size=2")]
    main(["train", *folders, "--weights", "1", "3", *small])
    config = json.loads((tmp_path / "run/config.json").read_bytes())["dataset"]
    assert config["settings"]["weights"] == [1, 3]
    assert [each["settings"]["policy"] for each in config["settings"]["datasets"]] == ["random", "explore"]
    with pytest.raises(SystemExit, match="2"):
        main(["train", *folders, *small])
    assert "holds a run with another dataset.settings" in capsys.readouterr().err
    main(["info", *folders])
    assert capsys.readouterr().out.count("true actions  yes") == 2


def test_one_folder_is_a_plain_dataset(two):
    assert type(open_datasets([str(two[0].folder)])) is Dataset
