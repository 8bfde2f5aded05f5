"""A dataset in object storage is the dataset; each of its shards comes once, whole and checked."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_dataset import make

from minigenie import files
from minigenie.__main__ import main
from minigenie.data import dataset as datasets
from minigenie.data.collect import collect
from minigenie.data.dataset import Dataset
from minigenie.data.joined import JoinedDataset
from minigenie.files import cache_folder
from minigenie.settings import CollectSettings


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Dataset:
    """Three shards, with true actions."""
    return collect(
        CollectSettings(game="toy", frames=3_000, levels=20, num_envs=2), tmp_path_factory.mktemp("data") / "toy"
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGENIE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def address(footage, bucket) -> str:
    """The footage in object storage."""
    import s3fs

    s3fs.S3FileSystem().put(f"{footage.folder}/", "my-bucket/footage/", recursive=True)
    return f"{bucket}/footage"


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Every address that was read."""
    asked: list[str] = []
    read = files.read_url
    for module in (files, datasets):
        monkeypatch.setattr(module, "read_url", lambda url: asked.append(url) or read(url))
    return asked


def test_it_equals_the_local_one_and_comes_once(address, footage, counted):
    there = Dataset.open(address)
    assert counted == [f"{address}/manifest.json"]  # nothing else before it is needed
    starts = footage.windows(8)[::7]
    np.testing.assert_array_equal(there.clips(starts, 8), footage.clips(starts, 8))
    np.testing.assert_array_equal(there.clip_actions(starts, 8), footage.clip_actions(starts, 8))
    np.testing.assert_array_equal(there.episode_frames(3), footage.episode_frames(3))
    assert len(counted) == len(set(counted)) == 1 + 2 * len(footage.manifest["shards"])
    counted.clear()
    again = Dataset.open(address + "/")
    np.testing.assert_array_equal(again.clips(starts, 8), footage.clips(starts, 8))
    assert counted == [f"{address}/manifest.json"]


def test_train_eval_and_info_take_an_address(address, trained, tmp_path, capsys):
    small = ["--recipe", "tiny", "--max-steps", "2", "--set", "tokenizer_fit.batch_size=4"]
    main(["train", address, "--out", str(tmp_path / "world"), *small])
    main(["info", address])
    printed = capsys.readouterr().out
    assert f"{address}: 3," in printed
    assert str(cache_folder(address)) in printed
    fsspec.filesystem("memory").put(f"{make(tmp_path / 'small').folder}/", "/small/", recursive=True)
    assert "memory://small has frames of 8x6" in refused(capsys, "eval", trained, "memory://small")


def test_processes_copy_at_once(address, footage):
    """Four processes want all shards at the same time: each is whole, and comes once."""
    code = (
        "import sys, numpy as np\n"
        "from minigenie import files\n"
        "from minigenie.data import dataset\n"
        "read, asked = files.read_url, []\n"
        "files.read_url = lambda url: asked.append(url) or read(url)\n"
        "there = dataset.Dataset.open(sys.argv[1])\n"
        "print(int(there.clips(there.windows(8), 8).sum(dtype=np.int64)), len(asked))\n"
    )
    command = [sys.executable, "-c", code, address]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [process.communicate(timeout=120)[0].split() for process in processes]
    total = footage.clips(footage.windows(8), 8).sum(dtype=np.int64)
    assert {int(line[0]) for line in printed} == {int(total)}
    assert sum(int(line[1]) for line in printed) == len(footage.manifest["shards"])


def test_the_cache_survives_a_killed_download(address, footage):
    """What a kill leaves is overwritten: a half-written copy has another name, and a dead process holds no lock."""
    code = (
        "import os, sys\n"
        "from minigenie.data import dataset\n"
        "os.fsync = lambda handle: os._exit(9)\n"  # all written, nothing renamed
        "dataset.Dataset.open(sys.argv[1]).episode_frames(0)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, address]).returncode == 9
    cache = cache_folder(address)
    (half,) = cache.glob(".*.tmp")
    half.write_bytes(half.read_bytes()[:1000])
    assert not list(cache.glob("*.npy"))
    np.testing.assert_array_equal(Dataset.open(address).episode_frames(0), footage.episode_frames(0))
    assert not list(cache.glob(".*.tmp"))


def test_a_damaged_copy_is_made_again(address, footage):
    Dataset.open(address).episode_frames(0)
    (copy,) = cache_folder(address).glob("*.npy")
    copy.write_bytes(copy.read_bytes()[:-1])
    np.testing.assert_array_equal(Dataset.open(address).episode_frames(0), footage.episode_frames(0))


def test_copies_are_read_whole_once(address, monkeypatch):
    monkeypatch.setattr(files, "SETTLED", -3600)
    Dataset.open(address).episode_frames(0)
    read = []
    sha256 = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: read.append(path) or sha256(path))
    Dataset.open(address), Dataset.open(address)
    assert len(read) == 1


def test_a_dataset_made_anew_is_read_anew(footage, tmp_path):
    storage = fsspec.filesystem("memory")
    storage.put(str(footage.folder), "/anew", recursive=True)
    old = Dataset.open("memory://anew").episode_frames(0).copy()
    other = collect(CollectSettings(game="toy", frames=600, seed=5, num_envs=2), tmp_path / "other")
    storage.rm("/anew", recursive=True)
    storage.put(str(other.folder), "/anew", recursive=True)
    new = Dataset.open("memory://anew").episode_frames(0)
    np.testing.assert_array_equal(new, other.episode_frames(0))
    assert old.shape != new.shape or (old != new).any()


def reachable(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def test_any_storage_will_do(footage, tmp_path):
    """Over http, from Python's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory"]
    server = subprocess.Popen([*command, str(footage.folder)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not reachable(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        there = Dataset.open(f"http://127.0.0.1:{port}")
        np.testing.assert_array_equal(there.episode_frames(1), footage.episode_frames(1))
    finally:
        server.terminate()
        server.wait()


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


def test_what_is_not_there_is_one_line(address, tmp_path, capsys):
    gone = "s3://my-bucket/gone"
    assert f"there is no {gone}/manifest.json" in refused(capsys, "train", gone, "--out", tmp_path / "run")
    for address in (gone, "s3://nowhere/toy"):
        assert f"there is no dataset and no finished world at {address}" in refused(capsys, "info", address)
    assert "Protocol not known: floppy" in refused(capsys, "train", "floppy://toy", "--out", tmp_path / "run")


def test_without_s3fs_one_line_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['s3fs'] = None; from minigenie.__main__ import main; main(['info', 's3://a/b'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.endswith("run `pip install '.[s3]'`\n")
    assert ended.stderr.count("\n") == 1


def test_no_network_is_one_line(tmp_path):
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    command = [sys.executable, "-m", "minigenie", "info", "s3://footage/toy"]
    ended = subprocess.run(command, env=environment | keys, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: cannot read s3://footage/toy/checksums.json (")
    assert ended.stderr.endswith("check the address, the credentials and the network\n")


def test_damage_over_there_is_one_line(footage, tmp_path, capsys):
    storage = fsspec.filesystem("memory")
    copy = shutil.copytree(footage.folder, tmp_path / "copy")
    shard = copy / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    storage.put(str(copy), "/damaged", recursive=True)
    with pytest.raises(ValueError, match=r"memory://damaged/shard-00000.npy is damaged .*copy it there again"):
        Dataset.open("memory://damaged").episode_frames(0)
    assert not list(cache_folder("memory://damaged").glob("*.npy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "../../../elsewhere"
    storage.pipe("/damaged/manifest.json", json.dumps(manifest).encode())
    assert "shards[0].sha256 is '../../../elsewhere', expected `str` matching" in refused(
        capsys, "info", "memory://damaged"
    )


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("MINIGENIE_CACHE")
    assert cache_folder("s3://footage/toy").parent == Path.home() / ".cache" / "minigenie"


def test_a_cache_with_a_limit_keeps_what_was_used_last(address, footage, monkeypatch):
    """All is read all the same; a copy that has gone comes again."""
    sizes = [path.stat().st_size for path in footage.folder.glob("shard-*.npy")]
    monkeypatch.setenv("MINIGENIE_CACHE_GB", str((sum(sizes) - min(sizes) / 2) / 1e9))
    remote = Dataset.open(address)
    starts = footage.windows(3)[:: len(footage.windows(3)) // 50]
    for _ in range(2):
        for start in starts:
            np.testing.assert_array_equal(remote.clips([start], 3), footage.clips([start], 3))
    copies = [path for path in remote.folder.glob("*.npy") if path.stat().st_size > 100_000]
    assert len(copies) == len(sizes) - 1
    last = Dataset.open(address)._path("frames", len(sizes) - 1)
    assert last in copies
    again = Dataset.open(address)  # nothing is mapped yet: the first shard has gone, and comes again
    np.testing.assert_array_equal(again.clips(starts[:1], 3), footage.clips(starts[:1], 3))


@pytest.mark.parametrize("limit", ["much", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_none(address, monkeypatch, limit):
    monkeypatch.setenv("MINIGENIE_CACHE_GB", limit)
    remote = Dataset.open(address)
    with pytest.raises(ValueError, match="MINIGENIE_CACHE_GB is .*; it should be a number of gigabytes above 0"):
        remote.clips(remote.windows(3)[:1], 3)


def test_parts_in_object_storage_and_here_are_joined(address, footage):
    joined = JoinedDataset([Dataset.open(address), footage])
    starts = np.array([0, footage.num_frames])
    np.testing.assert_array_equal(joined.clips(starts, 2), footage.clips([0, 0], 2))
