"""Datasets of LeRobot and Minari become ours, with their episodes and actions; small ones, by the real libraries."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer
from test_ingest import both, killed_until_done
from test_video import read_video, save, scroll

from minigenie.__main__ import main
from minigenie.data.append import append
from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset
from minigenie.data.ingest import ingest
from minigenie.data.robots import as_integers
from minigenie.errors import UserError
from minigenie.settings import IngestSettings

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
FILES = [[20, 30, 16], [25]]  # frames of the episodes in each video


def lerobot(folder: Path, dtype="int64", dimensions=1, names=None, rate=10) -> Path:
    """A LeRobot dataset of `FILES`; integer actions count frames from 0 in each episode, others go around in a circle
    in two dimensions and rest in all more."""
    episodes, rows = [], []
    for file, lengths in enumerate(FILES):
        for camera, hue in ((FRONT, 0.0), (WRIST, 0.5)):
            path = folder / f"videos/{camera}/chunk-000/file-{file:03d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, [scroll(i / rate, 48, 64, hue + file / 4) for i in range(sum(lengths))], rate=rate)
        start = 0
        for length in lengths:
            place = {"chunk_index": 0, "file_index": file}
            place |= {"from_timestamp": start / rate, "to_timestamp": (start + length) / rate}
            videos = {f"videos/{camera}/{name}": value for camera in (FRONT, WRIST) for name, value in place.items()}
            episodes.append({"episode_index": len(episodes), "length": length, "tasks": ["pick"], **videos})
            for i in range(length):
                turn = [np.cos(i), np.sin(i), 0.5, 0.5][:dimensions]
                action = i if dtype == "int64" else np.array(turn, dtype).tolist()
                rows.append(
                    {"action": action, "frame_index": i, "episode_index": len(episodes) - 1, "index": len(rows)}
                )
            start += length
    for name, table in (("meta/episodes", episodes), ("data", rows)):
        (folder / name / "chunk-000").mkdir(parents=True)
        write_parquet(folder / name / "chunk-000/file-000.parquet", table)
    features = {camera: {"dtype": "video", "shape": [48, 64, 3]} for camera in (WRIST, FRONT)}
    features["action"] = {"dtype": dtype, "shape": [dimensions], "names": names}
    write_info(folder, codebase_version="v3.0", fps=rate, features=features)
    return folder


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_info(folder: Path, **changes) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def edit(path: Path, change) -> None:
    """Change the rows of a parquet file in place."""
    rows = pyarrow.parquet.read_table(path).to_pylist()
    write_parquet(path, change(rows) or rows)


@pytest.fixture
def arm(tmp_path) -> Path:
    return lerobot(tmp_path / "arm")


def test_lerobot_has_episodes_and_actions(arm, tmp_path):
    result = ingest(arm, tmp_path / "out")
    assert [episode.length for episode in result.dataset.episodes] == [20, 30, 16, 25]
    assert [row.file for row in result.rows] == ["file-000.mp4", "file-001.mp4"]
    assert result.rows[0].reason == f"episodes and actions of LeRobot v3.0; camera {FRONT} of {FRONT}, {WRIST}"
    whole = [read_video(arm / f"videos/{FRONT}/chunk-000/file-00{i}.mp4", size=64, fps=10)[0] for i in (0, 1)]
    places = [(0, 0, 20), (0, 20, 50), (0, 50, 66), (1, 0, 25)]
    for i, (file, first, end) in enumerate(places):
        np.testing.assert_array_equal(result.dataset.episode_frames(i), whole[file][first:end])
        assert result.dataset.episode_actions(i).tolist() == [*range(end - first)]


def test_lerobot_of_version_2_has_a_video_for_each_episode(arm, tmp_path):
    write_info(arm, codebase_version="v2.1", chunks_size=2)
    rows = pyarrow.parquet.read_table(arm / DATA).to_pylist()
    (arm / DATA).unlink()
    for number, length in enumerate([*FILES[0], *FILES[1]]):
        data = arm / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
        for path in (data, arm / f"videos/chunk-{number // 2:03d}/{FRONT}/episode_{number:06d}.mp4"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(data, [row for row in rows if row["episode_index"] == number])
        save(path, [scroll(i / 10, 48, 64, number / 4) for i in range(length)])
    result = ingest(arm, tmp_path / "out")
    assert [row.file for row in result.rows] == [f"chunk-00{i // 2}/{FRONT}/episode_00000{i}.mp4" for i in range(4)]
    assert [episode.length for episode in result.dataset.episodes] == [20, 30, 16, 25]
    assert [result.dataset.episode_actions(i).tolist() for i in (1, 3)] == [[*range(30)], [*range(25)]]


def test_frames_and_actions_are_thinned_together(tmp_path):
    arm = lerobot(tmp_path / "arm", rate=30)
    dataset = ingest(arm, tmp_path / "out", IngestSettings(fps=10, min_frames=4)).dataset
    assert dataset.episode_actions(0).tolist() == [*range(0, 20, 3)]
    assert dataset.episode_actions(1).tolist() == [*range(1, 30, 3)]  # the video's frames 21, 24, ...


def test_a_camera_by_its_name(arm, tmp_path, capsys):
    main(["ingest", str(arm), "--out", str(tmp_path / "out"), "--camera", WRIST])
    assert "true actions  yes" in capsys.readouterr().out
    front, wrist = (ingest(arm, tmp_path / name, IngestSettings(camera=name)).dataset for name in (FRONT, WRIST))
    assert (front.episode_frames(0) != wrist.episode_frames(0)).any()
    with pytest.raises(FileExistsError, match="another dataset"):
        ingest(arm, tmp_path / FRONT, IngestSettings(camera=WRIST))


def test_a_video_named_itself_has_its_episodes_too(arm, tmp_path):
    dataset = ingest(arm / f"videos/{WRIST}/chunk-000/file-001.mp4", tmp_path / "out").dataset
    assert [episode.length for episode in dataset.episodes] == [25]
    assert dataset.has_actions


def test_whoever_decodes_robots_and_however_often_killed(arm, tmp_path):
    for workers in (1, 2):
        result = ingest(arm, tmp_path / str(workers), IngestSettings(size=32, split=0.25), workers=workers)
        assert [episode.length for episode in result.test_dataset.episodes] == [16]  # a whole one
    killed_until_done(arm, tmp_path / "killed", kills=3, seed=0, split=0.25)
    assert both(tmp_path / "1") == both(tmp_path / "2") == both(tmp_path / "killed")


def test_continuous_actions_are_binned_if_asked(tmp_path, capsys):
    arm = lerobot(tmp_path / "arm", "float32", 3, {"motors": ["x.pos", "y.pos", "grip"]})
    with pytest.raises(UserError, match=r"arm: its actions are float64 \[3\], no single integers; --bins 3 cuts"):
        ingest(arm, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    dataset = ingest(arm, tmp_path / "out", IngestSettings(bins=2)).dataset
    assert controls_of(dataset).names == ("x- y-", "x- y+", "x+ y-", "x+ y+")
    turn = np.arange(20)
    expected = 2 * (np.cos(turn) > 0) + (np.sin(turn) > 0)
    assert (dataset.episode_actions(0) == expected).mean() > 0.9  # the bins' middle is not at 0 exactly
    assert not ingest(arm, tmp_path / "without", IngestSettings(bins=0)).dataset.has_actions
    with pytest.raises(FileExistsError, match="another dataset"):
        ingest(arm, tmp_path / "out", IngestSettings(bins=3))


def test_robots_are_appended_if_their_controls_are_the_same(tmp_path, walk):
    arms = [lerobot(tmp_path / f"arm{rate}", "float32", 2, ["x", "y"], rate) for rate in (10, 20)]
    settings, out = IngestSettings(bins=2, min_frames=8), tmp_path / "out"
    assert len(ingest(arms[0], out, settings).dataset.episodes) == 4
    assert [row.status for row in append(arms[0], out, settings).rows] == ["known", "known"]
    assert len(append(arms[1], out, settings).dataset.episodes) == 8
    others = (lerobot(tmp_path / "arm30", "float32", 2, ["x", "y"], 30), 0), (walk, None), (tmp_path / "arm30", 3)
    for other, bins in others:
        with pytest.raises(UserError, match=r"has an action for every frame|was made with controls \['x- y-', "):
            append(other, out, replace(settings, bins=bins))
    ingest(walk, tmp_path / "walk", settings)
    assert [row.status for row in append(walk, tmp_path / "walk", settings).rows] == ["known"]


def test_a_world_is_trained_on_the_actions_of_a_robot(tmp_path, capsys):
    arm = lerobot(tmp_path / "arm", "float32", 2, ["x", "y"])
    main(["ingest", str(arm), "--out", str(tmp_path / "data"), "--bins", "2", "--split", "0.3"])
    assert "true actions  yes" in capsys.readouterr().out
    main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--actions", "true", "--max-steps", "2"])
    actions = json.loads((tmp_path / "run/actions.json").read_text())
    assert [entry["name"] for entry in actions] == ["x- y-", "x- y+", "x+ y-", "x+ y+"]


@pytest.mark.parametrize(
    ("bins", "names", "expected"),
    [
        (2, ["x", "x"], ("a0- a1-", "a0+ a1+")),
        (2, 7, ("a0- a1-", "a0+ a1+")),
        (3, {"axes": ["x", "grip, or not"]}, ("x- grip_or_not-", "noop", "x+ grip_or_not+")),
        (4, None, ("a0:1 a1:1", "a0:2 a1:2", "a0:3 a1:3", "a0:4 a1:4")),
        (2, ["a" * 30, "b" * 30], ("action 0", "action 1")),
    ],
)
def test_names_of_binned_actions(bins, names, expected):
    line = np.linspace(-1, 1, 101)
    codes, controls = as_integers(np.stack([line, 2 * line], -1), names, bins, Path("arm"))
    assert controls == expected
    assert (np.diff(codes) >= 0).all()
    assert set(codes.tolist()) == set(range(bins))
    assert as_integers(line + 5, ["x"], 3, Path("arm"))[1] == ("x-", "middle", "x+")


def test_actions_that_cannot_be_integers():
    where, values = Path("arm"), np.random.default_rng(0).normal(size=(1000, 7))
    with pytest.raises(UserError, match="arm: 3 bins of 7 dimensions give .* actions, the most is 64; take fewer"):
        as_integers(values, None, 3, where)
    values[3, 2] = np.nan
    with pytest.raises(UserError, match=r"arm: not all actions \(float64 \[7\]\) are numbers; --bins 0"):
        as_integers(values, None, 2, where)
    with pytest.raises(UserError, match="arm: action -1 is outside of 0 to 65535"):
        as_integers(np.array([3, -1]), None, None, where)


def remove(name):
    return lambda rows: [{key: value for key, value in row.items() if key != name} for row in rows]


def change(row, **values):
    return lambda rows: rows[row].update(values)


EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("file", "how", "reason"),
    [
        (DATA, remove("action"), "data/chunk-000/file-000.parquet has no column 'action'; copy the dataset again"),
        (EPISODES, remove("length"), "meta/episodes/chunk-000/file-000.parquet has no column 'length'; copy"),
        (EPISODES, change(1, length=None), "file-000.parquet: not all of 'length' are numbers; copy the dataset again"),
        (EPISODES, change(1, length=29), "arm/data: episode 1 has 30 rows, in meta/episodes 29; copy"),
        (EPISODES, change(1, length=50), "arm: episode 1 has 50 frames from 2 to 5 s of a video, at 10 per second"),
        (EPISODES, change(0, **{f"videos/{FRONT}/from_timestamp": float("nan")}), "from_timestamp' are numbers"),
        (
            EPISODES,
            change(0, **{f"videos/{FRONT}/from_timestamp": 1.0, f"videos/{FRONT}/to_timestamp": 3.0}),
            "arm: episodes 0 and 1 overlap in file-000.mp4 of observation.images.front",
        ),
        (DATA, lambda rows: rows[:-1], "episode 3 has 24 rows, in meta/episodes 25; copy the dataset again"),
        (DATA, change(0, action=-7), "arm: action -7 is outside of 0 to 65535; --bins 0 leaves them out"),
        (DATA, lambda rows: [row | {"action": "left"} for row in rows], "not all actions"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(arm, tmp_path, capsys, file, how, reason):
    edit(arm / file, how)
    assert reason in error_of(capsys, ["ingest", str(arm), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def error_of(capsys, command: list[str]) -> str:
    """The one line with which a command ends, whose exit code is 2."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"codebase_version": "v1.6"}, "arm/meta/info.json is of LeRobot v1.6, read are v2 and v3; convert it with"),
        ({"codebase_version": "v2.1"}, "arm/meta/info.json: chunks_size is None, should be episodes in a folder"),
        ({"fps": None}, "arm/meta/info.json: fps is None, should be frames per second"),
        ({"features": 3}, "arm/meta/info.json has no features; copy the dataset again"),
        ({"features": {"observation.image": {"dtype": "image"}}}, "arm has no pictures: no camera with videos"),
    ],
)
def test_another_version_or_no_videos_are_one_line(arm, tmp_path, capsys, info, reason):
    write_info(arm, **info)
    assert reason in error_of(capsys, ["ingest", str(arm), "--out", str(tmp_path / "out")])


def test_files_that_are_no_tables_are_one_line(arm, tmp_path, capsys):
    command = ["ingest", str(arm), "--out", str(tmp_path / "out")]
    assert "has no camera 'x'; there are observation.images.front" in error_of(capsys, [*command, "--camera", "x"])
    assert "bins is 1; take 2 or more" in error_of(capsys, [*command, "--bins", "1"])
    (arm / DATA).write_bytes((arm / DATA).read_bytes()[:-100])
    assert "file-000.parquet cannot be read (" in error_of(capsys, command)
    (arm / DATA).unlink()
    assert "arm/data has no rows in parquet files" in error_of(capsys, command)
    (arm / "meta/info.json").write_text("{")
    assert "arm/meta/info.json is damaged" in error_of(capsys, command)


def test_a_bad_video_is_a_row(arm, tmp_path):
    folder = arm / f"videos/{FRONT}/chunk-000"
    save(folder / "file-000.mp4", [scroll(i / 10, 48, 64) for i in range(65)])
    rows = ingest(arm, tmp_path / "short").rows
    reason = "meta/episodes has an episode up to frame 66, the video has 65 frames"
    assert rows[0][1:5:3] == ("skipped", reason)
    save(folder / "file-000.mp4", [scroll(i / 10, 48, 64) for i in range(70)], rate=20)
    reason = "it has 20 frames per second, meta/episodes counts 10"
    assert ingest(arm, tmp_path / "fast").rows[0][1:5:3] == ("skipped", reason)
    (folder / "file-000.mp4").unlink()
    rows = ingest(arm, tmp_path / "missing").rows
    assert rows[0][1:5:3] == ("skipped", "cannot be read: No such file or directory")
    assert rows[1].status == "kept"


def test_frames_after_the_last_episode_are_left_out(arm, tmp_path):
    video = arm / f"videos/{FRONT}/chunk-000/file-001.mp4"
    save(video, [scroll(i / 10, 48, 64) for i in range(45)])
    assert ingest(video, tmp_path / "out").rows[0].frames == 25


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "lerobot"), ("h5py", "minari")])
def test_what_is_not_installed_is_named(arm, walk, tmp_path, capsys, monkeypatch, module, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    folder = arm if module == "pyarrow" else walk
    line = error_of(capsys, ["ingest", str(folder), "--out", str(tmp_path / "out")])
    assert f"error: {module} cannot be imported (import of {module}" in line
    assert f"run `pip install '.[{extra}]'` to read {extra} datasets" in line


class Walk(gymnasium.Env):
    """A scrolling picture, small enough that Minari's own reader takes it for numbers, and where it is."""

    def __init__(self, space: gymnasium.Space, size: tuple[int, int] = (24, 32)):
        self.size, self.action_space = size, space
        pixels = Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = Dict({"pixels": pixels, "place": Box(-np.inf, np.inf, (1,))})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observed(), {"frame": scroll(0, 48, 64, 0.5)}

    def step(self, action):
        self.time += 1
        return self._observed(), 0.0, self.time == 20, False, {"frame": scroll(self.time / 10, 48, 64, 0.5)}

    def _observed(self):
        return {"pixels": scroll(self.time / 10, *self.size), "place": np.array([self.time], np.float32)}


def record(env: Walk, name: str, key: str | None = None, infos: bool = True) -> Path:
    """Three episodes of 21 frames in Minari's folder; of the observations, all or the entry `key`."""
    env.action_space.seed(0)
    buffers = []
    for number in range(3):
        observation, info = env.reset()
        observations, actions, seen, done = [observation], [], [info], False
        while not done:
            actions.append(env.action_space.sample())
            observation, _, done, _, info = env.step(actions[-1])
            observations.append(observation)
            seen.append(info)
        entries = {each: [one[each] for one in observations] for each in env.observation_space}
        ends = [False] * 19 + [True]
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=entries[key] if key else entries,
                actions=actions,
                rewards=[0.0] * 20,
                terminations=ends,
                truncations=[False] * 20,
                infos={"frame": [s["frame"] for s in seen]} if infos else {},
            )
        )
    space = env.observation_space[key] if key else env.observation_space
    dataset = minari.create_dataset_from_buffers(
        name, buffers, env=None, observation_space=space, action_space=env.action_space
    )
    return Path(dataset.storage.data_path).parent


@pytest.fixture(autouse=True)
def minari_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def walk() -> Path:
    return record(Walk(Discrete(5)), "test/walk-v0")


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")  # what it would like to know of our datasets


def test_minari_has_episodes_and_actions(walk, tmp_path):
    result = ingest(walk, tmp_path / "out", IngestSettings(size=24))
    (row,) = result.rows
    assert (row.file, row.episodes, row.frames) == ("walk-v0", 3, 63)
    cameras = "camera observations/pixels of observations/pixels, infos/frame"
    assert row.reason == f"episodes and actions of Minari; {cameras}"
    for i, episode in enumerate(minari.MinariDataset(walk / "data")):
        assert result.dataset.episode_actions(i).tolist() == [*episode.actions, 0]
        expected = np.stack([scroll(time / 10, 24, 32)[:, 4:28] for time in range(21)])
        assert np.abs(result.dataset.episode_frames(i).astype(int) - expected).mean() < 12  # it keeps JPEG


def test_minari_by_its_name_and_what_it_rendered(walk, tmp_path):
    main(["ingest", "test/walk-v0", "--out", str(tmp_path / "out"), "--size", "48", "--camera", "infos/frame"])
    frames = Dataset.open(tmp_path / "out").episode_frames(1)
    expected = np.stack([scroll(time / 10, 48, 64, 0.5)[:, 8:56] for time in range(21)])
    assert np.abs(frames.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("size", [(24, 32), (48, 64)])
def test_observations_that_are_pictures(tmp_path, size):
    folder = record(Walk(Box(-1, 1, (2,)), size), "pixels-v0", "pixels", infos=False)
    with pytest.raises(UserError, match=r"pixels-v0: its actions are float32 \[2\], no single integers"):
        ingest(folder, tmp_path / "out")
    dataset = ingest(folder, tmp_path / "out", IngestSettings(bins=2)).dataset
    assert controls_of(dataset).names == ("a0- a1-", "a0- a1+", "a0+ a1-", "a0+ a1+")


def test_two_datasets_of_other_actions(tmp_path, walk):
    other = record(Walk(Box(-1, 1, (2,))), "other-v0")
    with pytest.raises(UserError, match="walk-v0 have not the same controls; ingest one at a time"):
        ingest([walk, other], tmp_path / "out", IngestSettings(bins=2))
    video = save(tmp_path / "clip.mp4", [scroll(i / 10, 48, 64) for i in range(20)])
    (tmp_path / "clip.actions.csv").write_text("9\n" * 20)
    with pytest.raises(UserError, match=r"clip.mp4 and .*other-v0 have not the same controls"):
        ingest([video, other], tmp_path / "out", IngestSettings(bins=2))
    assert len(ingest([walk, other], tmp_path / "out", IngestSettings(bins=0)).dataset.episodes) == 6


def test_bad_minari_is_one_line(tmp_path, walk, capsys, minari_folder):
    command = ["ingest", str(walk), "--out", str(tmp_path / "out")]
    assert "test/none-v0 does not exist" in error_of(capsys, ["ingest", "test/none-v0", *command[2:]])
    places = record(Walk(Discrete(5)), "places-v0", "place", infos=False)
    assert "places-v0 has no pictures: no camera" in error_of(capsys, ["ingest", str(places), *command[2:]])
    assert "walk-v0 has no camera 'x'; there are observations/pixels" in error_of(capsys, [*command, "--camera", "x"])
    with h5py.File(walk / "data/main_data.hdf5", "a") as file:
        actions = file["episode_1/actions"][:-1]
        del file["episode_1/actions"]
        file["episode_1/actions"] = actions
    assert "episode_1 has 19 actions, should be one less than 21 frames" in error_of(capsys, command)
    with h5py.File(walk / "data/main_data.hdf5", "a") as file:
        del file["episode_2"]
        file["episode_7"] = 0
    assert "main_data.hdf5 cannot be read (" in error_of(capsys, command)
    (walk / "data/main_data.hdf5").write_bytes(b"junk")
    assert "walk-v0/data/main_data.hdf5 cannot be read (" in error_of(capsys, command)
    assert not (tmp_path / "out").exists()
