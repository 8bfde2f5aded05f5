"""A dataset is one folder of plain NumPy files, mapped into memory and cut into clips.

    manifest.json       what it is, where it came from, its episodes, a checksum per file
    shard-00000.npy     frames, uint8 [frames h w c]; episodes lie one after another
    actions-00000.npy   optional, integer [frames]: actions[i] leads from frame i to i + 1; only to evaluate with

A dataset may also lie in object storage: its shards are copied whole, each when it is first read, into a cache here.

Slicing a mapped array is the whole reader: more clips per CPU-second than record files, or than decoding video.
Writing is atomic, the manifest comes last, so a killed writer resumes and a reader never sees half a dataset.
Which clips a training step sees is a pure function of (seed, step, rank): there is no loader state to save.

Dimensions:  b batch   t frames of a clip   h height   w width   c channels (3, RGB)
"""

import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from minigenie.config import parse_json
from minigenie.data.remote import cache_folder, is_url, read

FORMAT, VERSION = "minigenie-dataset", 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
HEADER_KEYS = {"format", "version", "frame_size", "fps", "source", "generator", "split", "settings"}
SHARD_KEYS = {"file", "frames", "sha256", "actions", "actions_sha256"}
CHECKSUMS = {"file": "sha256", "actions": "actions_sha256"}
THREADS = 8  # shards copied or hashed at once
SETTLED = 2  # seconds; of a file that was changed later than that, its times need not show the next change
COPY_AGAIN = "copy it again, or make the dataset again in another folder"
OPEN_FILES = 10_240  # that a process asks for at most, as macOS gives no more


class Episode(NamedTuple):
    """`length` consecutive frames of shard number `shard`, from its frame `offset`; one take, no cut inside."""

    shard: int
    offset: int
    length: int
    level_seed: int | None = None
    source: str | None = None


def write_atomic(path: Path, *parts: Any) -> str:
    """Write bytes-like `parts` to `path` so that it holds all of them or is not there. Returns their sha256 in hex."""
    temporary = path.with_name(f".{path.name}.tmp")
    digest = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        advice = "make room or fix the disk, then run the same command again; what was written before is safe"
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {advice}") from None
    return digest.hexdigest()


class DatasetWriter:
    """Writes a dataset shard by shard, each atomically; after a kill, the same call picks up where it stopped.

    `frame_size` is [h, w] in pixels, `fps` frames per second, `settings` whatever else would change the frames.
    Raises FileExistsError if `folder` holds anything but the same dataset, finished (then `finished` is true) or begun.
    A writer may be copied to other processes: each index is to be written by one of them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frame_size: tuple[int, int],
        fps: float,
        source: str,
        generator: str,
        split: str,
        settings: dict[str, Any],
    ):
        self.folder = Path(folder)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "frame_size": [int(side) for side in frame_size],
            "fps": fps,
            "source": source,
            "generator": generator,
            "split": split,
            "settings": settings,
        }
        self.header: dict[str, Any] = json.loads(json.dumps(header))  # as it will be read back
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{folder} is a file; choose a folder to write the dataset to")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = (self.folder / MANIFEST).exists()
        if self.finished or (self.folder / UNFINISHED).exists():
            self._check_same(_read_json(self.folder / (MANIFEST if self.finished else UNFINISHED)))
        elif any(path.name != f".{UNFINISHED}.tmp" for path in self.folder.iterdir()):
            raise FileExistsError(f"{folder} already holds other files; choose a new or an empty folder")
        else:
            write_atomic(self.folder / UNFINISHED, _to_json(self.header))

    def _check_same(self, there: dict[str, Any]) -> None:
        if there.get("format") != FORMAT:
            raise FileExistsError(f"{self.folder} already holds other files; choose a new or an empty folder")
        old, new = ({**header, **header["settings"]} for header in (there, self.header))
        for key in {**new, **old}:
            if key not in ("settings", "shards", "episodes") and old.get(key) != new.get(key):
                detail = f"its {key} is {old.get(key)!r}, not {new.get(key)!r}"
                raise FileExistsError(f"{self.folder} is another dataset ({detail}); choose another folder")

    def __contains__(self, index: int) -> bool:
        return self._sidecar(index).exists()

    def write(self, index: int, frames: np.ndarray, episodes: list[Episode], actions: np.ndarray | None = None) -> None:
        """Store shard `index`: uint8 frames [f h w 3], integer actions [f] or None, episodes by offset within it.

        The `shard` of the episodes is filled in here. No episodes: the shard is noted as done and takes no room.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != (*self.header["frame_size"], 3):
            expected = f"uint8 [frames {' '.join(map(str, self.header['frame_size']))} 3]"
            raise ValueError(f"shard {index}: frames are {frames.dtype} {list(frames.shape)}, should be {expected}")
        if actions is not None and actions.shape != frames.shape[:1]:
            raise ValueError(
                f"shard {index}: actions are {list(actions.shape)}, should be [{len(frames)}] as the frames"
            )
        if any(e.offset < 0 or e.length < 1 or e.offset + e.length > len(frames) for e in episodes):
            raise ValueError(f"shard {index}: an episode reaches outside of its {len(frames)} frames")
        shard = None
        if episodes:
            file, actions_file = f"shard-{index:05d}.npy", f"actions-{index:05d}.npy"
            shard = {
                "file": file,
                "frames": len(frames),
                "sha256": write_atomic(self.folder / file, *npy_parts(frames)),
                "actions": None if actions is None else actions_file,
                "actions_sha256": None
                if actions is None
                else write_atomic(self.folder / actions_file, *npy_parts(actions)),
            }
        entry = {"shard": shard, "episodes": [[e.offset, e.length, e.level_seed, e.source] for e in episodes]}
        write_atomic(self._sidecar(index), _to_json(entry))

    def close(self) -> "Dataset":
        """Join what was written into the manifest and open it. ValueError if there is not a single episode."""
        if not self.finished:
            shards: list[dict] = []
            episodes: list[dict] = []
            for sidecar in self._sidecars():
                entry = _read_json(sidecar)
                episodes += [Episode(len(shards), *episode)._asdict() for episode in entry["episodes"]]
                shards += [entry["shard"]] if entry["shard"] else []
            if not episodes:
                raise ValueError(f"{self.folder}: not one usable episode in {self.header['source']}; use other input")
            manifest = {**self.header, "shards": shards, "episodes": episodes}
            write_atomic(self.folder / MANIFEST, _to_json(manifest))
            self.finished = True
        for leftover in [*self._sidecars(), *self.folder.glob(".*.tmp"), self.folder / UNFINISHED]:
            leftover.unlink(missing_ok=True)
        return Dataset.open(self.folder, verify=False)

    def _sidecar(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.json"

    def _sidecars(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.json"), key=lambda path: (len(path.name), path.name))


class Dataset:
    """Frames and episodes of a finished folder. Frames are counted through all shards, in the manifest's order.

    `folder` is where its files lie: of a dataset at `url`, copies of those that were read. `name` is what it was opened
    by.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], url: str | None = None):
        self.folder, self.url = folder, url
        self.name = url or str(folder)
        self.manifest = manifest
        self.frame_size: tuple[int, int] = tuple(manifest["frame_size"])
        self.fps: float = manifest["fps"]
        self.episodes = [Episode(**episode) for episode in manifest["episodes"]]
        self._ends = np.cumsum([shard["frames"] for shard in manifest["shards"]])
        self._firsts = np.concatenate([[0], self._ends[:-1]])
        self.num_frames = int(self._ends[-1])
        self.has_actions = all(shard["actions"] for shard in manifest["shards"])
        self._map = lru_cache(_mappable(len(CHECKSUMS) * len(manifest["shards"])))(self._map_file)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Dataset":
        """Check the folder against its manifest and map it; `verify` compares checksums, for which it reads every byte
        once: what was read is noted in the cache, and read again when its size, times or inode have changed, or its
        checksum in the manifest. So damage below the file system, on the disk itself, shows at first reading only.

        `folder` may be an address, such as "s3://bucket/folder". Then shards are checked when they are copied, and
        `verify` is for earlier copies: a damaged one is made again.

        FileNotFoundError if it is not there or unfinished, ValueError if it is damaged, OSError if storage cannot be
        read: one line, with the cure.
        """
        if is_url(folder):
            return cls._open_url(str(folder).rstrip("/"), verify)
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if (folder / UNFINISHED).exists():
                source = _read_json(folder / UNFINISHED).get("source")
                cure = "run the `minigenie collect` or `minigenie ingest` command that began it again, it will resume"
                raise FileNotFoundError(f"{folder} is unfinished ({source}): {cure}")
            cure = "make one with `minigenie collect` or `minigenie ingest`"
            raise FileNotFoundError(f"{folder} is not a dataset, it has no {MANIFEST}: {cure}")
        manifest = _read_json(folder / MANIFEST)
        _check_manifest(str(folder / MANIFEST), manifest)
        dataset = cls(folder, manifest)
        files = [
            (folder / shard[kind], shard[CHECKSUMS[kind]], dataset._shape(kind, shard))
            for shard in manifest["shards"]
            for kind in CHECKSUMS
            if shard[kind]
        ]
        for path, _, _ in files:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; {COPY_AGAIN}")
        if verify and (damaged := _damaged(str(folder.resolve()), [file[:2] for file in files])):
            raise ValueError(f"{damaged[0]} is damaged (its sha256 is not the manifest's); {COPY_AGAIN}")
        for path, _, shape in files:
            _check_shape(path, shape)
        return dataset

    @classmethod
    def _open_url(cls, url: str, verify: bool) -> "Dataset":
        where = f"{url}/{MANIFEST}"
        manifest = _parse_json(where, read(where))
        _check_manifest(where, manifest)
        dataset = cls(cache_folder(url), manifest, url)
        if verify:
            for copy in _damaged(url, [(copy, copy.stem) for copy in dataset.folder.glob("*.npy")]):
                copy.unlink()
        return dataset

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """The first frame of every episode, counted through all shards: int64 [episodes]."""
        return np.array([self._firsts[episode.shard] + episode.offset for episode in self.episodes])

    def episode_frames(self, i: int) -> np.ndarray:
        """Frames of episode `i`: uint8 [t h w c], a read-only view of the file."""
        return self._slice("file", i)

    def episode_actions(self, i: int) -> np.ndarray | None:
        """True actions of episode `i`: integers [t], the last one unused. None if there are none."""
        return self._slice("actions", i) if self.has_actions else None

    def windows(self, length: int) -> np.ndarray:
        """The first frame of every run of `length` frames inside one episode: int64 [num_windows]."""
        lengths = np.array([episode.length for episode in self.episodes])
        firsts = self.episode_starts
        counts = np.maximum(lengths - length + 1, 0)
        if not counts.any():
            raise ValueError(
                f"{self.name}: longest episode has {lengths.max()} frames, a window needs {length}; use shorter clips"
            )
        before = np.cumsum(counts) - counts  # windows of all earlier episodes
        return np.repeat(firsts - before, counts) + np.arange(counts.sum())

    def episodes_of(self, frames: np.ndarray) -> np.ndarray:
        """Which episode each of `frames` lies in, counted through all shards."""
        order = np.argsort(self.episode_starts)
        return order[np.searchsorted(self.episode_starts[order], frames, side="right") - 1]

    def shards_of(self, frames: np.ndarray) -> np.ndarray:
        """Which shard each of `frames` lies in, counted through all shards."""
        return np.searchsorted(self._ends, frames, side="right")

    def clips(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` frames from each of `starts` [b], counted through all shards: uint8 [b t h w c]."""
        return self._gather("file", starts, np.empty((len(starts), length, *self.frame_size, 3), np.uint8))

    def clip_actions(self, starts: np.ndarray, length: int) -> np.ndarray | None:
        """True actions between the frames of `clips(starts, length)`: int64 [b t-1]. None if there are none."""
        if not self.has_actions:
            return None
        return self._gather("actions", starts, np.empty((len(starts), length - 1), np.int64))

    def _gather(self, kind: str, starts: np.ndarray, out: np.ndarray) -> np.ndarray:
        starts = np.asarray(starts)
        length = out.shape[1]
        shards = self.shards_of(starts)
        if len(starts) and (starts.min() < 0 or starts.max() >= self.num_frames):
            raise ValueError(f"clips start at frames 0 to {self.num_frames - 1}, got {starts.min()} to {starts.max()}")
        if (starts + length > self._ends[shards]).any():
            raise ValueError(f"a clip of {length} frames runs past the end of its shard; take starts from windows()")
        locals_ = starts - self._firsts[shards]
        if self.url:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(partial(self._path, kind), np.unique(shards).tolist()))
        for row, shard, first in zip(out, shards.tolist(), locals_.tolist(), strict=True):
            row[:] = self._map(kind, shard)[first : first + length]
        return out

    def _slice(self, kind: str, i: int) -> np.ndarray:
        episode = self.episodes[i]
        return self._map(kind, episode.shard)[episode.offset : episode.offset + episode.length]

    def _map_file(self, kind: str, shard: int) -> np.ndarray:
        # a plain view: slicing the memmap class itself is several times slower
        return load_npy(self._path(kind, shard), COPY_AGAIN).view(np.ndarray)

    def _path(self, kind: str, shard: int) -> Path:
        """The file of a shard. Of a dataset at a URL its copy, under its checksum: that name cannot be out of date."""
        entry = self.manifest["shards"][shard]
        if not self.url:
            return self.folder / entry[kind]
        sha256 = entry[CHECKSUMS[kind]]
        path = self.folder / f"{sha256}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{sha256}.lock"):  # what one process copies the others wait for
                if not path.exists():
                    _copy(f"{self.url}/{entry[kind]}", path, sha256)
            _check_shape(path, self._shape(kind, entry))
        return path

    def _shape(self, kind: str, shard: dict[str, Any]) -> tuple[int, ...]:
        return (shard["frames"], *self.frame_size, 3) if kind == "file" else (shard["frames"],)

    def __reduce__(self) -> tuple:
        return Dataset, (self.folder, self.manifest, self.url)


def sample_batch(windows_count: int, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which windows the batch number `step` is made of: int64 [batch_size] in [0, windows_count).

    Epoch after epoch, each a permutation of all windows, laid end to end; a batch takes the next `batch_size` of them.
    """
    if windows_count < 1:
        raise ValueError("there are no windows to sample from; use shorter clips or a larger dataset")
    first = step * batch_size
    epochs, positions = np.divmod(np.arange(first, first + batch_size), windows_count)
    batch = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        batch[here] = _permutation(windows_count, seed, int(epoch))[positions[here]]
    return batch


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def contact_sheet(dataset: Dataset, rows: int = 6, columns: int = 10) -> np.ndarray:
    """A picture of the dataset: a row per episode, evenly spaced frames in it, 2 px gaps. uint8 [H W 3]."""
    rows, gap = min(rows, len(dataset.episodes)), 2
    height, width = (side + gap for side in dataset.frame_size)
    sheet = np.full((rows * height - gap, columns * width - gap, 3), 255, np.uint8)
    chosen = np.random.default_rng(0).choice(len(dataset.episodes), rows, replace=False)
    for row, episode in enumerate(chosen):
        frames = dataset.episode_frames(int(episode))
        for column, frame in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            y, x = row * height, column * width
            sheet[y : y + height - gap, x : x + width - gap] = frames[frame]
    return sheet


# Reading and checking files.


def load_npy(path: Path, cure: str) -> np.memmap:
    """An .npy file, mapped. ValueError, one line, if it is none; nothing in it is unpickled."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its version is not 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
        if dtype.hasobject or min(shape, default=0) < 0 or offset + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"its {size} bytes are not {dtype} {list(shape)}")
        return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    except (ValueError, TypeError, OverflowError, SyntaxError, EOFError, TokenError, OSError) as error:  # numpy's
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}); {cure}") from None


def _mappable(files: int) -> int:
    """How many of `files` files a dataset may keep mapped. Python holds a descriptor for each, so it may have a quarter
    of those that this process may hold, which asks for more if they are too few."""
    try:
        import resource
    except ImportError:  # there is no such limit on Windows
        return files
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed, most = (OPEN_FILES if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if (wanted := min(4 * files, OPEN_FILES, most)) > allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
            allowed = wanted
    return min(files, allowed // 4)


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """The two parts of an .npy file: its header and its data, without a copy."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.getvalue(), array.data


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _copy(url: str, path: Path, sha256: str) -> None:
    data = read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        cure = "copy it there again, or make the dataset again"
        raise ValueError(f"{url} is damaged (the sha256 of its {len(data):,} bytes is not the manifest's); {cure}")
    write_atomic(path, data)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(address: str, files: list[tuple[Path, str]]) -> list[Path]:
    """Those of the files of a dataset whose sha256 is not the one given.

    What was read is noted in the cache, not in the dataset's folder: that may be read-only, is compared byte by byte
    with another, and a note that is copied along with it would vouch for files that nobody has read. Without a cache
    to write to, all is read every time.
    """
    note, seen = None, {}
    with suppress(OSError, RuntimeError, TypeError, ValueError):  # no home folder, no note, or nonsense in it
        note = cache_folder(address) / "read.json"
        seen = dict(parse_json(note.read_bytes()))
    looks = {path: _look(path) for path, _ in files}
    unread = [(path, sha256) for path, sha256 in files if seen.get(path.name) != [sha256, *looks[path]]]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(_sha256, [path for path, _ in unread]))
    damaged = [path for (path, sha256), one in zip(unread, found, strict=True) if one != sha256]
    if unread and note:
        settled = (time.time() - SETTLED) * 1e9
        noted = {
            path.name: [sha256, *looks[path]]
            for path, sha256 in files
            if path not in damaged and max(looks[path][1:3]) < settled
        }
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, _to_json(noted))
    return damaged


def _look(path: Path) -> list[int]:
    """What of a file changes with its bytes, in practice."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(str(path), path.read_bytes())


def _parse_json(path: str, data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); make the dataset again in another folder") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a MiniGenie file: it should hold one JSON object; choose another folder")
    return value


def _check_manifest(path: str, manifest: dict[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {manifest.get('format')!r}, should be {FORMAT!r}; choose another folder")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {manifest.get('version')!r}, this MiniGenie reads {VERSION}; "
            "make the dataset again or install the MiniGenie that made it"
        )
    _check_keys(path, "the manifest", manifest, HEADER_KEYS | {"shards", "episodes"})
    shards, episodes, size = manifest["shards"], manifest["episodes"], manifest["frame_size"]
    _check(path, _is_list_of(size, int) and len(size) == 2 and min(size) > 0, "frame_size should be [height, width]")
    fps = manifest["fps"]
    _check(path, type(fps) in (int, float) and 0 < fps < math.inf, "fps should be a positive number")
    _check(path, _is_list_of(shards, dict) and len(shards) > 0, "shards should be a list of at least one object")
    _check(path, _is_list_of(episodes, dict) and len(episodes) > 0, "episodes should be a list of at least one object")
    for i, shard in enumerate(shards):
        _check_keys(path, f"shard {i}", shard, SHARD_KEYS)
        names = [shard["file"], *([shard["actions"]] if shard["actions"] else [])]
        plain = all(isinstance(name, str) and re.fullmatch(r"[\w-]+\.npy", name) for name in names)
        _check(path, plain, f"shard {i} should name files of this folder, not {names}")
        sums = [shard["sha256"], *([shard["actions_sha256"]] if shard["actions"] else [])]
        hexadecimal = all(isinstance(sum, str) and re.fullmatch("[0-9a-f]{64}", sum) for sum in sums)
        _check(path, hexadecimal, f"shard {i} should have checksums of 64 hexadecimal digits, not {sums}")
        counted = type(shard["frames"]) is int and 0 < shard["frames"] < 2**48
        _check(path, counted, f"shard {i} should count its frames, not {shard['frames']!r}")
    for i, entry in enumerate(episodes):
        _check_keys(path, f"episode {i}", entry, set(Episode._fields))
        shard, offset, length = entry["shard"], entry["offset"], entry["length"]
        numbers = _is_list_of([shard, offset, length], int)
        inside = numbers and 0 <= shard < len(shards) and 0 <= offset < offset + length <= shards[shard]["frames"]
        _check(path, inside, f"episode {i} (shard {shard}, offset {offset}, length {length}) is outside of its shard")


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    array = load_npy(path, COPY_AGAIN)
    if array.shape != shape or (array.dtype != np.uint8 if len(shape) > 1 else array.dtype.kind not in "iu"):
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}, the manifest says {list(shape)}; {COPY_AGAIN}"
        )


def _check_keys(path: str, what: str, entry: dict, keys: Iterable[str]) -> None:
    missing, unknown = sorted(set(keys) - set(entry)), sorted(set(entry) - set(keys))
    _check(path, not missing, f"{what} lacks {', '.join(missing)}")
    _check(path, not unknown, f"{what} has unknown {', '.join(unknown)}")


def _check(path: str, ok: bool, fault: str) -> None:
    if not ok:
        raise ValueError(f"{path} is damaged: {fault}; make the dataset again in another folder")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)  # no bool as int


def _sync_folder(folder: Path) -> None:
    """Make a rename itself safe from a power cut."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
