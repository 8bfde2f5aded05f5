"""A dataset survives kills, notices damage, and serves every window once per epoch."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigenie import files
from minigenie.data.dataset import Dataset, DatasetWriter, Episode, sample_batch
from minigenie.pictures import contact_sheet

LENGTHS = [[9, 4], [], [5, 2, 7], [12]]  # of the episodes of each shard; one shard has nothing to give


def writer(folder: Path, **changes) -> DatasetWriter:
    header = {"frame_size": (8, 6), "fps": 10, "source": "noise", "generator": "test 1", "split": "train"}
    return DatasetWriter(folder, **{**header, "settings": {"crop": (1, 2)}, **changes})


def write_shard(into: DatasetWriter, index: int) -> None:
    lengths = LENGTHS[index]
    frames = np.random.default_rng(index).integers(256, size=(sum(lengths), 8, 6, 3), dtype=np.uint8)
    offsets = np.cumsum([0, *lengths])
    episodes = [Episode(0, int(o), n, level_seed=index) for o, n in zip(offsets[:-1], lengths, strict=True)]
    into.write(index, frames, episodes, np.arange(len(frames)) + 100 * index)


def make(folder: Path, order=(0, 1, 2, 3)) -> Dataset:
    new = writer(folder)
    for index in order:
        write_shard(new, index)
    return new.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_windows_never_cross_an_episode(tmp_path):
    dataset = make(tmp_path)
    lengths = np.concatenate(LENGTHS).astype(int)
    episode_of = np.repeat(np.arange(len(lengths)), lengths)
    for length in (1, 4, 12):
        starts = dataset.windows(length)
        assert (episode_of[starts] == episode_of[starts + length - 1]).all()
        assert len(starts) == np.maximum(lengths - length + 1, 0).sum() == len(set(starts.tolist()))
    with pytest.raises(ValueError, match="longest episode has 12 frames, a window needs 13"):
        dataset.windows(13)


def test_clips_are_slices_of_episodes(tmp_path):
    dataset = make(tmp_path)
    frames = np.concatenate([dataset.episode_frames(i) for i in range(len(dataset.episodes))])
    actions = np.concatenate([dataset.episode_actions(i) for i in range(len(dataset.episodes))])
    starts = dataset.windows(4)[::-1]
    index = starts[:, None] + np.arange(4)
    np.testing.assert_array_equal(dataset.clips(starts, 4), frames[index])
    np.testing.assert_array_equal(dataset.clip_actions(starts, 4), actions[index[:, :-1]])
    with pytest.raises(ValueError, match="past the end of its shard"):
        dataset.clips(np.array([10]), 4)


def test_every_window_exactly_once_per_epoch():
    count, batch_size, epochs = 30, 5, 4
    seen = [sample_batch(count, seed=7, step=step, batch_size=batch_size) for step in range(count * epochs // 5)]
    for epoch in np.concatenate(seen).reshape(epochs, count):
        assert sorted(epoch) == list(range(count))


def test_a_batch_may_span_epochs():
    whole = sample_batch(4, seed=0, step=0, batch_size=10)
    assert sorted(whole[:4]) == sorted(whole[4:8]) == [0, 1, 2, 3]
    parts = [sample_batch(4, seed=0, step=step, batch_size=2) for step in range(5)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_sampling_depends_on_its_arguments_alone():
    expected = sample_batch(1000, seed=1, step=12, batch_size=8)
    sample_batch(1000, seed=2, step=3, batch_size=8)[:] = 0
    np.testing.assert_array_equal(sample_batch(1000, seed=1, step=12, batch_size=8), expected)
    assert (sample_batch(1000, seed=2, step=12, batch_size=8) != expected).any()


def test_a_killed_writer_resumes_bit_identical(tmp_path):
    make(tmp_path / "whole")
    killed = writer(tmp_path / "killed")
    write_shard(killed, 2)
    (tmp_path / "killed" / ".shard-00000.npy.tmp").write_bytes(b"half a shard")
    with pytest.raises(FileNotFoundError, match=r"unfinished .*minigenie collect"):
        Dataset.open(tmp_path / "killed")

    resumed = writer(tmp_path / "killed")
    assert [index in resumed for index in range(4)] == [False, False, True, False]
    for index in (3, 1, 0):
        write_shard(resumed, index)
    resumed.close()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert writer(tmp_path / "killed").finished


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="other files; choose"):
        writer(tmp_path)
    (tmp_path / "manifest.json").rename(tmp_path / "thesis.txt")
    with pytest.raises(FileExistsError, match="other files; choose"):
        writer(tmp_path)
    assert list(contents(tmp_path).values()) == list(before.values())


def test_another_dataset_is_not_overwritten(tmp_path):
    make(tmp_path)
    with pytest.raises(FileExistsError, match=r"its crop is \[1, 2\], not \[3, 4\]"):
        writer(tmp_path, settings={"crop": (3, 4)})


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    new = writer(tmp_path / "full")
    write_shard(new, 0)
    before = contents(tmp_path / "full")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device; make room"):
            write_shard(new, 2)
    assert contents(tmp_path / "full") == before


@pytest.mark.parametrize("name", ["shard-00002.npy", "actions-00002.npy"])
def test_damage_is_noticed(tmp_path, name):
    make(tmp_path)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged .*sha256"):
        Dataset.open(tmp_path)
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        Dataset.open(tmp_path, verify=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format="zip"), "format is 'zip'"),
        (lambda m: m.update(version=2), "has version 2, this MiniGenie reads 1"),
        (lambda m: m.pop("fps"), "missing required field `fps`"),
        (lambda m: m.update(colour="red"), "unknown field `colour`"),
        (
            lambda m: m["shards"][0].update(file="../secret.npy"),
            "file is '../secret.npy', expected `str` matching",
        ),
        (lambda m: m["episodes"][1].update(length=10), "episode 1 .* is outside of its shard"),
        (lambda m: m["episodes"][1].update(shard=-1), "episode 1 .* is outside of its shard"),
        (lambda m: m.update(episodes=[]), "of length >= 1 in episodes"),
        (lambda m: m.update(frame_size=[8, 8]), r"the manifest says \[13, 8, 8, 3\]"),
    ],
)
def test_a_wrong_manifest_is_explained_in_one_line(tmp_path, edit, message):
    manifest = make(tmp_path).manifest
    edit(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message) as error:
        Dataset.open(tmp_path)
    assert "\n" not in str(error.value)


def test_a_broken_or_missing_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a dataset, it has no manifest"):
        Dataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format":')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Dataset.open(tmp_path)


def test_a_dataset_without_episodes_is_an_error(tmp_path):
    new = writer(tmp_path)
    write_shard(new, 1)
    with pytest.raises(ValueError, match="not one usable episode"):
        new.close()


@pytest.fixture
def hashed(tmp_path, monkeypatch) -> list[str]:
    """The names of the files that are read whole, in a cache of its own, whose clock is an hour ahead."""
    monkeypatch.setenv("MINIGENIE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SETTLED", -3600)
    names: list[str] = []
    sha256 = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: names.append(path.name) or sha256(path))
    return names


def opened(folder: Path, hashed: list[str]) -> list[str]:
    """Which files it reads whole to open a dataset."""
    hashed.clear()
    Dataset.open(folder)
    return sorted(hashed)


def test_every_byte_is_read_once_and_again_where_a_file_changed(tmp_path, hashed):
    folder = make(tmp_path / "data").folder
    files, before = sorted(path.name for path in folder.glob("*.npy")), contents(folder)
    assert opened(folder, hashed) == files
    assert opened(folder, hashed) == []
    assert contents(folder) == before
    shard = folder / "shard-00002.npy"
    when = shard.stat().st_mtime_ns
    shard.write_bytes(before[shard.name])
    os.utime(shard, ns=(when, when))
    assert opened(folder, hashed) == [shard.name]  # as it was, but for what nobody can set back
    data = bytearray(before[shard.name])
    data[-1] ^= 1
    shard.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{shard.name} is damaged .*sha256"):
            Dataset.open(folder)
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved" / shard.name).write_bytes(before[shard.name])
    assert opened(tmp_path / "moved", hashed) == files


def test_what_was_read_for_one_manifest_is_read_for_another(tmp_path, hashed):
    dataset = make(tmp_path / "data")
    Dataset.open(dataset.folder)
    dataset.manifest["shards"][0]["sha256"] = "0" * 64
    (dataset.folder / "manifest.json").write_text(json.dumps(dataset.manifest))
    with pytest.raises(ValueError, match=r"shard-00000.npy is damaged"):
        Dataset.open(dataset.folder)


@pytest.mark.parametrize("note", [b"{", b"[1]", b"[[[], 1]]", b'{"shard-00000.npy": 1}', b"\xff", b"[" * 10_000])
def test_a_broken_note_is_no_note(tmp_path, hashed, note):
    folder = make(tmp_path / "data").folder
    files = opened(folder, hashed)
    (path,) = (tmp_path / "cache").rglob("*.json")
    path.write_bytes(note)
    assert opened(folder, hashed) == files
    assert opened(folder, hashed) == []


def test_without_a_place_for_notes_all_is_read_every_time(tmp_path, hashed):
    folder = make(tmp_path / "data").folder
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert opened(folder, hashed) == opened(folder, hashed) != []


def test_a_file_changed_just_now_is_read_again(tmp_path, hashed, monkeypatch):
    """Its times may not show that it changes once more."""
    monkeypatch.setattr(files, "SETTLED", 3600)
    folder = make(tmp_path / "data").folder
    assert opened(folder, hashed) == opened(folder, hashed) != []


MANY = """
import os, resource, sys
import numpy as np
from minigenie.data.dataset import Dataset

resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
dataset = Dataset.open(sys.argv[1])
starts = dataset.windows(2)
for _ in range(2):
    assert (dataset.clips(starts, 2)[:, 0, 0, 0, 0] == np.arange(len(starts)) % 256).all()
print(dataset._map.cache_info().misses, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the descriptors in /proc")
@pytest.mark.parametrize(("most", "mapped"), [(64, 2 * 300), (4096, 300)])
def test_shards_stay_mapped_as_far_as_the_process_may_open_files(tmp_path, monkeypatch, most, mapped):
    """A mapped file holds a descriptor. Where the process may have enough of them, it asks for them and maps each shard
    once; elsewhere it does with what it has."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    many = writer(tmp_path)
    for index in range(300):
        many.write(index, np.full((2, 8, 6, 3), index % 256, np.uint8), [Episode(0, 0, 2)])
    many.close()
    ended = subprocess.run([sys.executable, "-c", MANY, str(tmp_path), str(most)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    maps, descriptors = map(int, ended.stdout.split())
    assert maps == mapped
    assert descriptors < most


def test_contact_sheet_has_a_row_per_episode(tmp_path):
    sheet = contact_sheet(make(tmp_path), rows=3, columns=5)
    assert sheet.shape == (3 * 10, 5 * 8, 3)
    assert (sheet[9:11] == 255).all()
