"""Many files become the same dataset whoever decodes them and however often they are killed; copies are left out."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_video import contents, save, scroll

from minigenie.__main__ import main
from minigenie.data import ingest as ingesting
from minigenie.data.collect import TOY_ACTIONS
from minigenie.data.duplicates import ThumbnailIndex, thumbnails
from minigenie.data.ingest import ingest
from minigenie.data.toy import ToyWorld
from minigenie.settings import IngestSettings


def write(path: Path, frames: np.ndarray, side: int = 128, **how) -> Path:
    """A video of frames [t h w 3], scaled to a square of `side` pixels."""
    path.parent.mkdir(exist_ok=True)
    larger = np.ones((side // frames.shape[1],) * 2 + (1,), np.uint8)
    return save(path, [np.kron(frame, larger) for frame in frames], **how)


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """Footage of levels of one game, neighbours in other colours, in which nobody rests: uint8 [t 64 64 3] each."""
    keys = [TOY_ACTIONS[name] for name in ("right", "right", "jump-right", "left")]
    return [
        walk(ToyWorld(1, num_levels=1, start_level=level), keys, 32 + level) for level in range(10)
    ]  # seeds at which none stands long


def walk(game: ToyWorld, keys: list[int], seed: int) -> np.ndarray:
    """60 frames in which each key is held for five."""
    frames = []
    for key in np.random.default_rng(seed).choice(keys, 12).repeat(5):
        frames.append(game.frames()[0].copy())
        game.step(np.array([key]))
    return np.stack(frames)


@pytest.fixture(scope="module")
def footage(levels, tmp_path_factory) -> Path:
    """Ten videos, the last but one useless and the last a copy of the second in another encoding and scale."""
    folder = tmp_path_factory.mktemp("many")
    for i, frames in enumerate(levels[:8]):
        write(folder / f"{i}.mp4", frames[:60])
    (folder / "8.mp4").write_bytes(b"junk")
    (folder / "2.actions.csv").write_text("1\n2\n" * 30)
    (folder / "4.episodes.csv").write_text("0,25\n30,60\n")
    write(folder / "9.webm", levels[1][:60], 64, codec="libvpx")
    return folder


@pytest.fixture(scope="module")
def whole(footage, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ingest([footage], out, IngestSettings(size=32, split=0.2))
    return both(out)


def both(out: Path) -> dict[str, bytes]:
    """All files of the dataset and of what is held out, hidden ones too."""
    return contents(out) | {f"test/{name}": data for name, data in contents(f"{out}-test").items()}


@pytest.mark.parametrize("workers", [2, 5])
def test_as_many_workers_as_you_like(footage, whole, tmp_path, workers):
    ingest([footage], tmp_path / "out", IngestSettings(size=32, split=0.2), workers=workers)
    assert both(tmp_path / "out") == whole


def test_a_ray_cluster_of_two_nodes(footage, whole, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ingest([footage], tmp_path / "out", IngestSettings(size=32, split=0.2), ray=cluster.address)
    finally:
        cluster.shutdown()
    assert both(tmp_path / "out") == whole


COMMAND = [sys.executable, "-m", "minigenie", "ingest"]


def killed_until_done(footage: Path, out: Path, kills: int, seed: int, split: float = 0.2) -> None:
    """Run the command, and kill it and all its workers after a random time, again and again; then let it finish."""
    command = [*COMMAND, str(footage), "--out", str(out), "--size", "32", "--split", str(split), "--workers", "2"]
    rng = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started, limit = time.monotonic(), rng.uniform(0.3, 4)
        while process.poll() is None and time.monotonic() - started < limit:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    for folder in (out, Path(f"{out}-test")):
        (folder / "contact-sheet.png").unlink()


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.heavy)])
def test_killed_at_any_moment(footage, whole, tmp_path, kills):
    killed_until_done(footage, tmp_path / "out", kills, seed=kills)
    assert both(tmp_path / "out") == whole


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(footage, whole, tmp_path, stop):
    """However the command alone is stopped, its workers stop too, and what is there is gone on from."""
    out = tmp_path / "out"
    command = [*COMMAND, str(footage), "--out", str(out), "--size", "32", "--split", "0.2", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(f"{ingesting.STAGING}*/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(stop)
    _, printed = process.communicate(timeout=60)
    if stop == signal.SIGKILL:
        assert process.returncode == -stop
    else:
        assert process.returncode == 130
        assert "stopped; to go on with a demo, collect, ingest or train, run it again" in printed
    assert "Traceback" not in printed
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ingest([footage], out, IngestSettings(size=32, split=0.2))
    assert both(out) == whole


def die(*job) -> None:
    os._exit(1)


def test_a_killed_worker_is_one_line(tmp_path, footage, capsys, monkeypatch):
    monkeypatch.setattr(ingesting, "stage", die)
    with pytest.raises(SystemExit) as ended:
        main(["ingest", str(footage), "--out", str(tmp_path / "out"), "--workers", "2"])
    assert ended.value.code == 2
    assert "error: a worker was killed, most likely for want of memory: run" in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(tmp_path, footage, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        main(["ingest", str(footage), "--out", str(tmp_path / "out"), "--ray", "auto"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("run `pip install '.[ray]'`, or leave --ray out\n")


def test_copies_are_left_out_and_named(levels, tmp_path):
    intro, first, second, third = (levels[i][:40] for i in range(4))
    write(tmp_path / "in/a.mp4", np.concatenate([intro, first]))
    write(tmp_path / "in/b.webm", np.concatenate([intro, second]), 192, codec="libvpx")
    write(tmp_path / "in/c.mp4", np.repeat(np.concatenate([first, third]), 3, axis=0), 64, rate=30)
    write(tmp_path / "in/d.mkv", first[7:], codec="mpeg4")
    rows = ingest([tmp_path / "in"], tmp_path / "out").rows
    assert [(row.frames, row.repeated, row.status) for row in rows] == [
        (80, 0, "kept"), (40, 40, "kept"), (40, 40, "kept"), (0, 33, "skipped"),
    ]  # fmt: skip
    assert [row.reason for row in rows[1:]] == ["40 frames repeat a.mp4"] * 2 + ["33 frames repeat a.mp4"]
    everything = ingest([tmp_path / "in"], tmp_path / "all", IngestSettings(keep_duplicates=True))
    assert everything.dataset.num_frames == 80 + 80 + 80 + 33


def test_levels_of_one_game_are_no_copies(toy, tmp_path):
    """Not even those of a game of flat colours in which little moves."""
    for i, episode in enumerate(toy.episodes):
        if episode.length >= 16:
            write(tmp_path / f"{i:02}.mp4", toy.episode_frames(i))
    assert not any(row.repeated for row in ingest([tmp_path], tmp_path / "out").rows)


def test_a_still_camera_is_no_copy(tmp_path):
    """One room, twice, in which something small moves: each time somewhere else."""
    room = scroll(0, 64, 64)
    for name, row in (("a.mp4", 8), ("b.mp4", 40)):
        pictures = [room.copy() for _ in range(50)]
        for i, picture in enumerate(pictures):
            picture[row : row + 8, i : i + 8] = 255
        save(tmp_path / name, pictures)
    save(tmp_path / "c.mkv", pictures, codec="mpeg4")
    assert [row.repeated for row in ingest([tmp_path], tmp_path / "out").rows] == [0, 0, 50]


def test_what_was_seen_outlives_a_kill(levels, tmp_path):
    small = [thumbnails(level) for level in levels[:4]]
    seen = ThumbnailIndex(tmp_path / "seen", 0, 10)
    for video, take in enumerate(small[:3]):
        assert seen.origin(take) is None
        seen.add(video, take)
    with open(tmp_path / "seen", "ab") as file:
        file.write(b"half a record")
    resumed = ThumbnailIndex(tmp_path / "seen", 2, 10)  # two videos were finished
    assert [resumed.origin(take) for take in small] == [0, 1, None, None]
    assert (resumed.table[resumed.table > 0] <= resumed.count).all()


def test_a_long_table_is_short(tmp_path, footage, capsys, monkeypatch):
    monkeypatch.setattr("minigenie.info.MAX_ROWS", 5)
    main(["ingest", str(footage), "--out", str(tmp_path / "out"), "--size", "32"])
    printed = capsys.readouterr().out
    assert "6 more files" in printed
    assert "10: 8 kept, 2 skipped" in " ".join(printed.split())
    assert "not a video" in printed
    assert "repeat 1.mp4" in printed
