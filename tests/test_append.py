"""New videos come into a dataset that is there: each once, and whatever kills it, never half."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from minigenie.__main__ import main
from minigenie.data import append as appending
from minigenie.data.append import append
from minigenie.data.dataset import Dataset
from minigenie.data.ingest import ingest
from minigenie.pictures import save_video
from minigenie.settings import IngestSettings

SETTINGS = IngestSettings(size=16, min_frames=4)


def video(path: Path, seed: int, frames: int = 30) -> Path:
    """A textured picture of its own that scrolls."""
    texture = np.random.default_rng(seed).integers(0, 256, (16, 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    moved = np.stack([texture[:, 2 * i : 2 * i + 64] for i in range(frames)])
    return save_video(torch.from_numpy(moved), path, 10.0)


@pytest.fixture
def videos(tmp_path):
    return [video(tmp_path / "videos" / f"{name}.mp4", seed) for seed, name in enumerate("abcd")]


@pytest.fixture
def data(videos, tmp_path):
    """Made of the first two."""
    return ingest(videos[:2], tmp_path / "data", SETTINGS).dataset.folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_new_files_are_added_and_known_ones_left_alone(videos, data, tmp_path):
    before, shards = Dataset.open(data), contents(data)
    shutil.copy(videos[0], tmp_path / "videos/the same again.mp4")
    result = append(tmp_path / "videos", data, SETTINGS)
    found = {row.file: row for row in result.rows}
    assert {name: row.status for name, row in found.items()} == {
        "a.mp4": "known", "b.mp4": "known", "the same again.mp4": "known", "c.mp4": "kept", "d.mp4": "kept",
    }  # fmt: skip
    assert [each.source for each in result.dataset.episodes] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert result.dataset.num_frames == 2 * before.num_frames
    alone = ingest(videos[2:], tmp_path / "alone", SETTINGS).dataset
    for i in range(2):
        np.testing.assert_array_equal(result.dataset.episode_frames(i), before.episode_frames(i))
        np.testing.assert_array_equal(result.dataset.episode_frames(2 + i), alone.episode_frames(i))
    after = contents(data)
    assert all(after[name] == content for name, content in shards.items() if name.endswith(".npy"))
    assert not (data / appending.PART).exists()
    again = append(tmp_path / "videos", data, SETTINGS)
    assert {row.status for row in again.rows} == {"known"}
    assert contents(data) == after


def test_footage_that_is_there_is_not_taken_twice(videos, data, tmp_path):
    """The same pictures in another encoding."""
    frames = torch.from_numpy(np.array(Dataset.open(data).episode_frames(0)).repeat(4, 1).repeat(4, 2))
    other = save_video(frames, tmp_path / "other/a again.mp4", 10.0)
    result = append([other, videos[2]], data, SETTINGS)
    copied = next(row for row in result.rows if row.file.endswith("a again.mp4"))
    assert (copied.status, copied.frames) == ("skipped", 0)
    assert copied.repeated >= 20
    assert copied.reason.endswith(f"{copied.repeated} frames repeat {data}")
    assert [each.source for each in result.dataset.episodes][2:] == ["videos/c.mp4"]


def test_what_is_held_out_is_added_too(videos, tmp_path):
    settings = IngestSettings(size=16, min_frames=4, split=0.5)
    ingest(videos[:2], tmp_path / "data", settings)
    result = append(videos, tmp_path / "data", settings)
    assert len(result.dataset.episodes) == len(result.test_dataset.episodes) == 2


@pytest.mark.parametrize("call", range(9))
def test_killed_at_any_file_it_goes_on(videos, data, tmp_path, monkeypatch, call):
    """At each of the files that it writes, links or removes, in turn."""
    whole = tmp_path / "whole"
    shutil.copytree(data, whole)
    append(videos, whole, SETTINGS)
    calls, real = [], {name: getattr(appending, name) for name in ("write_atomic", "_put", "_remove_part")}

    def killing(name):
        def write(*args):
            calls.append(name)
            if len(calls) == call + 1:
                raise KeyboardInterrupt
            return real[name](*args)

        return write

    for name in real:
        monkeypatch.setattr(appending, name, killing(name))
    try:
        append(videos, data, SETTINGS)
    except KeyboardInterrupt:
        Dataset.open(data)  # what it was, or what it is to be
        monkeypatch.undo()
        append(videos, data, SETTINGS)
    monkeypatch.undo()
    assert contents(data) == contents(whole)


def test_a_killed_append_of_other_files_says_so(videos, data, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(appending, "_join", killed)
    with pytest.raises(KeyboardInterrupt):
        append(videos[:3], data, SETTINGS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other files were being added to"):
        append(videos, data, SETTINGS)
    append(videos[:3], data, SETTINGS)
    append(videos, data, SETTINGS)
    assert len(Dataset.open(data).episodes) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 32}, r"was made with frame_size \[16, 16\], not \[32, 32\]; append with the same"),
        ({"fps": 5.0}, "was made with fps 10.0, not 5.0"),
        ({"split": 0.5}, "was made with held_out 0.0, not 0.5"),
        ({"min_frames": 8}, "was made with min_frames 4, not 8"),
    ],
)
def test_other_settings_are_refused(videos, data, changes, message):
    before = contents(data)
    with pytest.raises(ValueError, match=message) as caught:
        append(videos, data, IngestSettings(**{"size": 16, "min_frames": 4, **changes}))
    assert "\n" not in str(caught.value)
    assert contents(data) == before


def test_files_with_actions_and_files_without_do_not_mix(videos, data):
    np.savetxt(videos[2].with_suffix(".actions.csv"), np.zeros(30), "%d")
    before = contents(data)
    with pytest.raises(ValueError, match="the new files has an action for every frame, .* not"):
        append(videos[2:3], data, SETTINGS)
    assert contents(data) == before


def test_the_command(videos, data, capsys):
    options = ["--size", "16", "--min-frames", "4"]
    main(["ingest", *map(str, videos), "--out", str(data), "--append", *options])
    assert "2 kept, 2 known" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["ingest", str(videos[0]), "--out", str(data) + "-none", "--append", *options])
    assert "is not a dataset" in capsys.readouterr().err
    log = [json.loads(line) for line in (data / "videos.jsonl").read_text().splitlines()]
    (data / "videos.jsonl").write_text("".join(json.dumps({**row, "sha256": ""}) + "\n" for row in log))
    with pytest.raises(SystemExit, match="2"):
        main(["ingest", str(videos[0]), "--out", str(data), "--append", *options])
    assert "does not say which files it has" in capsys.readouterr().err
    assert os.listdir(data)
