"""Datasets that robots and agents recorded, LeRobot's and Minari's: videos that come with episodes and actions.

    LeRobot v3   meta/info.json, and parquet: meta/episodes/* of episodes, data/* of frames;
                 videos/CAMERA/chunk-000/file-000.mp4 each hold several episodes, one after another
    LeRobot v2   the same, but a file per episode: data/chunk-000/episode_000000.parquet and
                 videos/chunk-000/CAMERA/episode_000000.mp4
    Minari       data/main_data.hdf5: episode_0/observations, actions, infos, ...; a picture more than actions

To ingest, a video of LeRobot is a video file with its episodes and actions beside it, and so is a whole Minari folder.

Dimensions:  n frames of a dataset   d of a continuous action   h height   w width
"""

import importlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from minigenie.data.controls import MOST_ACTIONS
from minigenie.data.labels import LONGEST, MOST_CONTROLS
from minigenie.data.source import Source, as_frame, as_unreadable
from minigenie.errors import UserError
from minigenie.files import parse_json
from minigenie.settings import IngestSettings

INFO, HDF5 = "meta/info.json", "data/main_data.hdf5"
MOST_FRAMES = 2**24  # of one video, more than a day at any rate
SIGNS = {2: "-+", 3: "- +"}  # how bins are called, from the lowest; others have numbers


class Recorded(NamedTuple):
    """What a dataset says of one of its videos.

    episodes: int64 [episodes 2], the first frame of each and the one after its last. actions: int64 [frames], None if
    they are not known, or not wanted. controls: names of the actions, () if they have none. table: where the episodes
    are from. fps: of the video, by which frames were counted; None if none were.
    """

    episodes: np.ndarray
    actions: np.ndarray | None
    controls: tuple[str, ...]
    table: str
    fps: float | None
    notes: list[str]


def videos_in(folder: Path, settings: IngestSettings) -> list[Path]:
    """The videos of the robot dataset in `folder`; none if it holds no such dataset.

    UserError, one line, if there is one that cannot be read, or not as `settings` say.
    """
    if _is_minari(folder):
        return [folder]
    if not (info := _info(folder)):
        return []
    if not (version := str(info["codebase_version"])).startswith(("v2.", "v3.")):
        cure = "convert it with LeRobot, or name its folder videos, to read these without actions"
        raise UserError(f"{folder / INFO} is of LeRobot {version}, read are v2 and v3; {cure}")
    return list(_episodes(folder, _chosen(folder, _cameras(folder, info), settings.camera), info))


def recorded(videos: list[Path], settings: IngestSettings) -> dict[Path, Recorded]:
    """What their datasets say of those videos that belong to one. UserError, one line, if that cannot be read."""
    found = {video: _minari(video, settings) for video in videos if _is_minari(video)}
    inside = [(v.parents[3], name) for v in videos if len(v.parents) > 3 for name in v.parts[-3:-1]]
    for folder, camera in sorted(set(inside)):
        info = _info(folder)
        if info and camera in _cameras(folder, info):
            found |= _lerobot(folder, camera, info, settings.bins)
    return {video: found[video] for video in videos if video in found}


def local_dataset(name: Path) -> Path:
    """Where Minari keeps the dataset of that name on this machine, whether it does or not."""
    root = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari/datasets"
    return Path(root, name)


class MinariSource(Source):
    """Pictures of all episodes of a Minari dataset, one after another, at `fps`."""

    def __init__(self, folder: Path, settings: IngestSettings):
        super().__init__()
        self.folder, self.period = folder, 1 / settings.fps
        with as_unreadable(), _hdf5(folder) as file:
            self.camera = _chosen(folder, _pictures(file["episode_0"]), settings.camera)
            self.total = self.period * sum(len(episode[self.camera]) for episode in file.values())

    def __iter__(self) -> Iterator[av.VideoFrame | None]:
        number = 0
        with _hdf5(self.folder) as file:
            for i in range(len(file)):
                for stored in file[f"episode_{i}"][self.camera]:
                    try:
                        frame = as_frame(_picture(stored), number * self.period)
                    except (OSError, ValueError):
                        yield None
                    else:
                        yield frame
                    number += 1


def _is_minari(folder: Path) -> bool:
    return os.path.isfile(folder / "data/metadata.json") and os.path.isfile(folder / HDF5)


def _info(folder: Path) -> dict[str, Any]:
    """What LeRobot says of a dataset; nothing if there is none."""
    if not os.path.isfile(folder / INFO):
        return {}
    try:
        info = parse_json((folder / INFO).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / INFO} is damaged ({error}); copy the dataset again") from None
    return info if isinstance(info, dict) and "codebase_version" in info else {}


def _cameras(folder: Path, info: dict[str, Any]) -> list[str]:
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
        raise UserError(f"{folder / INFO} has no features; copy the dataset again")
    videos = (key for key, feature in features.items() if feature.get("dtype") == "video")
    return sorted(key for key in videos if re.fullmatch(r"[^/\\\0]+", key))


def _chosen(folder: Path, cameras: list[str], wanted: str | None) -> str:
    if not cameras:
        raise UserError(f"{folder} has no pictures: no camera with videos, no observation of uint8 [h w 3]")
    if wanted and wanted not in cameras:
        raise UserError(f"{folder} has no camera {wanted!r}; there are {', '.join(cameras)}")
    return wanted or cameras[0]


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        cure = f"run `pip install '.[{extra}]'` to read {extra} datasets"
        raise UserError(f"{module.partition('.')[0]} cannot be imported ({error}): {cure}") from None


class _Episodes(NamedTuple):
    """Of one video, int64 each [episodes]: their numbers, their first frames, and those after their last."""

    number: np.ndarray
    first: np.ndarray
    end: np.ndarray


def _episodes(folder: Path, camera: str, info: dict[str, Any]) -> dict[Path, _Episodes]:
    """By video of that camera, its episodes in order. Their times count frames at the rate of the dataset."""
    fps: Any = info.get("fps")
    if type(fps) not in (int, float) or not 0 < fps < 1000:
        raise UserError(f"{folder / INFO}: fps is {fps!r}, should be frames per second")
    if _table_of(info) == "data":
        return _single_episodes(folder, camera, info.get("chunks_size"))
    columns = ["chunk_index", "file_index", "from_timestamp", "to_timestamp"]
    columns = ["episode_index", "length", *(f"videos/{camera}/{column}" for column in columns)]
    table = np.stack(list(_table(folder / "meta/episodes", columns).values()), -1)
    table = table[np.lexsort((table[:, 4], table[:, 3], table[:, 2]))]
    number, length, chunk, file = table[:, :4].astype(np.int64).T
    start, stop = table[:, 4:].T
    first = np.rint(start * fps).astype(np.int64)
    end = first + length
    fits = (np.abs((stop - start) * fps - length) < 1.5) & (length > 0) & (first >= 0) & (end <= MOST_FRAMES)
    for i in np.flatnonzero(~fits):
        times = f"{start[i]:g} to {stop[i]:g} s of a video, at {fps:g} per second"
        raise UserError(f"{folder}: episode {number[i]} has {length[i]} frames from {times}; copy the dataset again")
    found = {}
    for place in sorted({*zip(chunk.tolist(), file.tolist(), strict=True)}):
        inside = (chunk == place[0]) & (file == place[1])
        video = folder / f"videos/{camera}/chunk-{place[0]:03d}/file-{place[1]:03d}.mp4"
        found[video] = _Episodes(number[inside], first[inside], end[inside])
        for i in np.flatnonzero(found[video].first[1:] < found[video].end[:-1]):
            both = " and ".join(map(str, found[video].number[i : i + 2]))
            raise UserError(f"{folder}: episodes {both} overlap in {video.name} of {camera}; copy the dataset again")
    return found


def _single_episodes(folder: Path, camera: str, chunk_size: Any) -> dict[Path, _Episodes]:
    """As `_episodes`, of version 2: each video is an episode, and its rows say how long it is."""
    if type(chunk_size) is not int or chunk_size < 1:
        raise UserError(f"{folder / INFO}: chunks_size is {chunk_size!r}, should be episodes in a folder")
    numbers, lengths = np.unique(_table(folder / "data", ["episode_index"])["episode_index"], return_counts=True)
    return {
        folder / f"videos/chunk-{number // chunk_size:03d}/{camera}/episode_{number:06d}.mp4": _Episodes(
            np.array([number]), np.array([0]), np.array([length])
        )
        for number, length in zip(numbers.astype(np.int64).tolist(), lengths.tolist(), strict=True)
    }


def _table_of(info: dict[str, Any]) -> str:
    """Which folder of parquet files tells of the episodes."""
    return "data" if str(info["codebase_version"]).startswith("v2.") else "meta/episodes"


def _lerobot(folder: Path, camera: str, info: dict[str, Any], bins: int | None) -> dict[Path, Recorded]:
    """By video of that camera, what is known of it."""
    episodes = _episodes(folder, camera, info)
    feature = info["features"].get("action") if bins != 0 else {}
    actions, controls = _lerobot_actions(folder, episodes, feature, bins) if feature else ({}, ())
    notes = _notes(f"LeRobot {info['codebase_version']}", camera, _cameras(folder, info), bool(feature))
    origin = _table_of(info), info["fps"], notes
    return {
        video: Recorded(np.stack([each.first, each.end], -1), actions.get(video), controls, *origin)
        for video, each in episodes.items()
    }


def _lerobot_actions(
    folder: Path, episodes: dict[Path, _Episodes], feature: dict[str, Any], bins: int | None
) -> tuple[dict[Path, np.ndarray], tuple[str, ...]]:
    """By video, the actions at its frames, int64 [frames], 0 outside of episodes; and names of the controls."""
    table = _table(folder / "data", ["episode_index", "frame_index"], "action")
    order = np.lexsort((table["frame_index"], table["episode_index"]))
    codes, controls = as_integers(table["action"][order], feature.get("names"), bins, folder)
    found = {}
    for video, each in episodes.items():
        firsts, ends = np.searchsorted(table["episode_index"][order], [each.number, each.number + 1])
        for i in np.flatnonzero(ends - firsts != each.end - each.first):
            rows = f"{ends[i] - firsts[i]} rows, in meta/episodes {each.end[i] - each.first[i]}"
            raise UserError(f"{folder / 'data'}: episode {each.number[i]} has {rows}; copy the dataset again")
        found[video] = np.zeros(each.end[-1], np.int64)
        for a, b, first, end in zip(firsts, ends, each.first, each.end, strict=True):
            found[video][first:end] = codes[a:b]
    return found, controls


def _table(folder: Path, columns: list[str], values: str | None = None) -> dict[str, np.ndarray]:
    """Columns of numbers, float64 [rows], in all parquet files there; and `values`, of any kind, [rows d] or [rows].

    UserError with the file if one is damaged, lacks a column, or a number.
    """
    tables = [_columns(path, columns, values) for path in sorted(folder.glob("*/*.parquet"))]
    tables = [table for table in tables if len(table[columns[0]])]
    if not tables:
        raise UserError(f"{folder} has no rows in parquet files; copy the dataset again")
    try:
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    except ValueError:
        raise UserError(f"{folder}: not all of {values!r} have one shape; copy the dataset again") from None


def _columns(path: Path, columns: list[str], values: str | None) -> dict[str, np.ndarray]:
    """As `_table`, of one file."""
    parquet = _needed("pyarrow.parquet", "lerobot")
    wanted = [*columns, *([values] if values else [])]
    try:
        table = parquet.ParquetFile(path).read(columns=wanted)
        if missing := [name for name in wanted if name not in table.column_names]:
            raise UserError(f"{path} has no column {missing[0]!r}; copy the dataset again")
        arrays = {name: table[name].to_numpy() for name in wanted}
        arrays |= {name: np.stack(array) for name, array in arrays.items() if array.dtype == object and len(array)}
        arrays |= {name: arrays[name].astype(np.float64) for name in columns}
    except (OSError, ValueError, TypeError, NotImplementedError, MemoryError) as error:  # Arrow's own are among these
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); copy the dataset again") from None
    for name in columns:
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path}: not all of {name!r} are numbers; copy the dataset again")
    return arrays


def _minari(folder: Path, settings: IngestSettings) -> Recorded:
    """Episodes and actions alone; read from the HDF5 file itself, since Minari would read the pictures too."""
    try:
        with _hdf5(folder) as file:
            groups = [file[f"episode_{i}"] for i in range(len(file))]
            cameras = _pictures(groups[0]) if groups else []
            camera = _chosen(folder, cameras, settings.camera)
            lengths = np.array([len(group[camera]) for group in groups])
            stored = [group["actions"][()] for group in groups] if settings.bins != 0 else []
        for i, each in enumerate(stored):
            if len(each) != lengths[i] - 1:
                wrong = f"has {len(each)} actions, should be one less than {lengths[i]} frames"
                raise UserError(f"{folder}: episode_{i} {wrong}; copy the dataset again")
        values = np.concatenate(stored) if stored else None
    except UserError:
        raise
    except Exception as error:  # whatever is in the file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder / HDF5} cannot be read ({reason}); copy the dataset again") from None
    ends = np.cumsum(lengths)
    actions, controls = None, tuple[str, ...]()
    if values is not None:
        codes, controls = as_integers(values, None, settings.bins, folder)
        actions = np.insert(codes, (ends - np.arange(1, len(ends) + 1)), 0)  # at the last frame of each episode
    notes = _notes("Minari", camera, cameras, actions is not None)
    return Recorded(np.stack([ends - lengths, ends], -1), actions, controls, HDF5, None, notes)


def _hdf5(folder: Path) -> Any:
    return _needed("h5py", "minari").File(folder / HDF5)


def _pictures(episode: Any) -> list[str]:
    """Names of what holds pictures in an episode: observations first."""
    names: list[str] = []
    episode.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    kinds = [name for name in names if re.match("(observations|infos)(/|$)", name)]
    return sorted((name for name in kinds if _is_picture(episode[name])), key=lambda name: (name < "o", name))


def _is_picture(stored: Any) -> bool:
    first = np.asarray(stored[0]) if stored.shape and len(stored) else np.empty(0)
    return first.dtype == np.uint8 and ((first.ndim == 3 and first.shape[-1] == 3) or first[:2].tolist() == [255, 216])


def _picture(stored: np.ndarray) -> Image.Image:
    """Newer Minari stores JPEG, older arrays."""
    return Image.open(io.BytesIO(stored.tobytes())) if stored.ndim == 1 else Image.fromarray(stored)


def _notes(kind: str, camera: str, cameras: list[str], actions: bool) -> list[str]:
    notes = [f"episodes {'and actions of' if actions else 'of'} {kind}"]
    return notes + ([f"camera {camera} of {', '.join(cameras)}"] if len(cameras) > 1 else [])


def as_integers(values: np.ndarray, names: Any, bins: int | None, where: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Recorded actions [n] or [n d] as one integer each, int64 [n], and a name for each integer, () for plain ones.

    Single integers stay as they are. Else each of d dimensions is cut into `bins` equal parts between its 1st and 99th
    percentile; each combination of these that occurs is an action. UserError if there are no bins, or too many.
    """
    values = values.reshape(len(values), -1)
    kind = f"{values.dtype} [{values.shape[1]}]"
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise UserError(f"{where}: not all actions ({kind}) are numbers; --bins 0 leaves them out")
    if values.dtype.kind != "f" and values.shape[1] == 1:
        if len(beyond := values[(values < 0) | (values >= MOST_ACTIONS)]):
            most = MOST_ACTIONS - 1
            raise UserError(f"{where}: action {beyond[0]} is outside of 0 to {most}; --bins 0 leaves them out")
        return values[:, 0].astype(np.int64), ()
    if bins is None:
        cure = "--bins 3 cuts each dimension into three, --bins 0 leaves actions out"
        raise UserError(f"{where}: its actions are {kind}, no single integers; {cure}")
    return _joined(values, _dimensions(names, values.shape[1]), bins, where)


def _joined(values: np.ndarray, dimensions: list[str], bins: int, where: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    low, high = np.percentile(values, [1, 99], axis=0)
    moves = high > low
    width = np.where(moves, (high - low) / bins, np.inf)

    def binned(values: np.ndarray) -> np.ndarray:
        return np.clip((values - low) / width, 0, bins - 1).astype(np.int64)[..., moves]

    found, codes = np.unique(binned(values), axis=0, return_inverse=True)
    if len(found) > MOST_CONTROLS:
        count = f"{bins} bins of {moves.sum()} dimensions give {len(found)} actions, the most is {MOST_CONTROLS}"
        raise UserError(f"{where}: {count}; take fewer bins, or --bins 0 to leave actions out")
    signs = SIGNS.get(bins) or [f":{number + 1}" for number in range(bins)]
    rest, moving = binned(np.zeros(values.shape[1])), np.array(dimensions)[moves]
    controls = []
    for action, each in enumerate(found):
        name = " ".join(dimension + signs[i] for dimension, i in zip(moving, each, strict=True) if signs[i] != " ")
        name = name or ("noop" if (each == rest).all() else "middle")
        controls.append(name if len(name) <= LONGEST else f"action {action}")
    return codes.reshape(-1), tuple(controls)


def _dimensions(names: Any, count: int) -> list[str]:
    """Short names of an action's dimensions, numbers if the dataset gives no names."""
    if isinstance(names, dict):
        names = next((each for each in names.values() if isinstance(each, list)), list(names))
    names = names if isinstance(names, list) else []
    names = [re.sub(r"[^\w.]+", "_", str(name).removesuffix(".pos")) for name in names]
    return names if len(set(names)) == len(names) == count else [f"a{i}" for i in range(count)]
