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

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from msgspec import Meta, Struct
from msgspec.structs import astuple

from minigenie.errors import UserError
from minigenie.files import (
    THREADS,
    Checksum,
    cache_folder,
    convert,
    copy_url,
    damaged,
    is_url,
    load_npy,
    npy_parts,
    parse_json,
    read_url,
    to_json,
    trim_cache,
    write_atomic,
)

FORMAT, VERSION = "minigenie-dataset", 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
COPY_AGAIN = "copy it again, or make the dataset again in another folder"
OTHER_FILES = "already holds other files; choose a new or an empty folder"
OPEN_FILES = 10_240  # that a process asks for at most, as macOS gives no more
FileName = Annotated[str, Meta(pattern=r"\A[\w-]+\.npy\Z")]  # in the dataset's own folder
Side = Annotated[int, Meta(ge=1)]


class Header(Struct, kw_only=True, forbid_unknown_fields=True):
    """How a manifest begins. `frame_size` is [h, w] in pixels, `fps` frames per second, `settings` whatever else would
    change the frames."""

    format: str = FORMAT
    version: int = VERSION
    frame_size: tuple[Side, Side]
    fps: Annotated[float, Meta(gt=0, le=sys.float_info.max)]
    source: str
    generator: str
    split: str
    settings: dict[str, Any]


class Shard(Struct, forbid_unknown_fields=True):
    """Names of a shard's files, their checksums, and how many frames there are."""

    file: FileName
    frames: Annotated[int, Meta(ge=1, lt=2**48)]
    sha256: Checksum
    actions: FileName | None
    actions_sha256: Checksum | None

    def __post_init__(self) -> None:
        if (self.actions is None) != (self.actions_sha256 is None):
            raise UserError("actions and actions_sha256 go together")


class Episode(Struct, frozen=True, forbid_unknown_fields=True):
    """`length` consecutive frames of shard number `shard`, from its frame `offset`; one take, no cut inside. ended:
    the game was over after its last frame, which was not cut off; won: and won."""

    shard: int
    offset: int
    length: int
    level_seed: int | None = None
    source: str | None = None
    ended: bool = False
    won: bool = False


class Manifest(Header):
    shards: Annotated[list[Shard], Meta(min_length=1)]
    episodes: Annotated[list[Episode], Meta(min_length=1)]

    def __post_init__(self) -> None:
        for i, (shard, first, length) in enumerate((e.shard, e.offset, e.length) for e in self.episodes):
            if not (0 <= shard < len(self.shards) and 0 <= first < first + length <= self.shards[shard].frames):
                where = f"shard {shard}, offset {first}, length {length}"
                raise UserError(f"episode {i} ({where}) is outside of its shard")


class DatasetWriter:
    """Writes a dataset shard by shard, each atomically; after a kill, the same call picks up where it stopped.

    `header` has the fields of `Header`. Raises FileExistsError if `folder` holds anything but the same dataset,
    finished (then `finished` is true) or begun. A writer may be copied to other processes: each index is to be written
    by one of them."""

    def __init__(self, folder: str | Path, **header: Any):
        self.folder = Path(folder)
        self.header: dict[str, Any] = parse_json(to_json(Header(**header)))  # as it will be read back
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{folder} is a file; choose a folder to write the dataset to")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished = (self.folder / MANIFEST).exists()
        begun = self.folder / (MANIFEST if self.finished else UNFINISHED)
        if begun.exists():
            self._check_same(_read_object(begun))
        elif any(path.name != f".{UNFINISHED}.tmp" for path in self.folder.iterdir()):
            raise FileExistsError(f"{folder} {OTHER_FILES}")
        else:
            write_atomic(begun, to_json(self.header))

    def _check_same(self, there: dict[str, Any]) -> None:
        if there.get("format") != FORMAT:
            raise FileExistsError(f"{self.folder} {OTHER_FILES}")
        old, new = ({**header, **header["settings"]} for header in (there, self.header))
        for key in {**new, **old}:
            if key not in ("settings", "shards", "episodes") and old.get(key) != new.get(key):
                detail = f"its {key} is {old.get(key)!r}, not {new.get(key)!r}"
                raise FileExistsError(f"{self.folder} is another dataset ({detail}); choose another folder")

    def __contains__(self, index: int) -> bool:
        return self._sidecar(index).exists()

    def write(self, index: int, frames: np.ndarray, episodes: list[Episode], actions: np.ndarray | None = None) -> None:
        """Store shard `index`: uint8 frames [f h w 3], integer actions [f] or None, episodes by offset within it.

        The `shard` of the episodes is filled in here. No episodes: the shard is noted as done and takes no room."""
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (*self.header["frame_size"], 3)
        assert actions is None or actions.shape == frames.shape[:1]
        assert all(0 <= e.offset < e.offset + e.length <= len(frames) for e in episodes)
        shard = None
        if episodes:
            shard = Shard(f"shard-{index:05d}.npy", len(frames), "", None, None)
            shard.sha256 = write_atomic(self.folder / shard.file, *npy_parts(frames))
            if actions is not None:
                shard.actions = f"actions-{index:05d}.npy"
                shard.actions_sha256 = write_atomic(self.folder / shard.actions, *npy_parts(actions))
        entry = {"shard": shard, "episodes": [astuple(episode)[1:] for episode in episodes]}
        write_atomic(self._sidecar(index), to_json(entry))

    def close(self) -> "Dataset":
        """Join what was written into the manifest and open it. ValueError if there is not a single episode."""
        if not self.finished:
            shards: list[dict] = []
            episodes: list[Episode] = []
            for sidecar in self._sidecars():
                entry = _read_object(sidecar)
                episodes += [Episode(len(shards), *episode) for episode in entry["episodes"]]
                shards += [entry["shard"]] if entry["shard"] else []
            if not episodes:
                raise UserError(f"{self.folder}: not one usable episode in {self.header['source']}; use other input")
            write_atomic(self.folder / MANIFEST, to_json({**self.header, "shards": shards, "episodes": episodes}))
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
    by."""

    def __init__(self, folder: Path, manifest: dict[str, Any], url: str | None = None):
        self.folder, self.url = folder, url
        self.name = url or str(folder)
        self.manifest = manifest
        checked = _check_manifest(f"{self.name}/{MANIFEST}", manifest)
        self.frame_size, self.fps, self.episodes = checked.frame_size, manifest["fps"], checked.episodes
        self.shards = checked.shards
        self.parts: tuple[Dataset, ...] = (self,)
        self.has_actions = all(shard.actions for shard in checked.shards)
        self._ends = np.cumsum([shard.frames for shard in checked.shards])
        self._firsts = np.concatenate([[0], self._ends[:-1]])
        self.num_frames = int(self._ends[-1])
        self._files: dict[tuple[str, int], tuple[str, str, tuple[int, ...]]] = {}  # name, checksum, shape
        for i, shard in enumerate(checked.shards):
            self._files["frames", i] = shard.file, shard.sha256, (shard.frames, *self.frame_size, 3)
            if shard.actions and shard.actions_sha256:
                self._files["actions", i] = shard.actions, shard.actions_sha256, (shard.frames,)
        self._map = lru_cache(_mappable(len(self._files)))(self._map_file)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> "Dataset":
        """Check the folder against its manifest and map it; `verify` compares checksums, for which it reads every byte
        once: what was read is noted in the cache, and read again when its size, times or inode have changed, or its
        checksum in the manifest. So damage below the file system, on the disk itself, shows at first reading only.

        `folder` may be an address, such as "s3://bucket/folder". Then shards are checked when they are copied, and
        `verify` is for earlier copies: a damaged one is made again.

        FileNotFoundError if it is not there or unfinished, ValueError if it is damaged, OSError if storage cannot be
        read: one line, with the cure."""
        if is_url(folder):
            url = str(folder).rstrip("/")
            dataset = cls(cache_folder(url), _read_object(f"{url}/{MANIFEST}"), url)
            copies = dataset.folder.glob("*.npy") if verify else ()
            for copy in damaged(url, [(copy, copy.stem) for copy in copies]):
                copy.unlink()
            return dataset
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if (begun := folder / UNFINISHED).exists():
                source = _read_object(begun).get("source")
                cure = "run the same `minigenie collect` or `minigenie ingest` command again, it goes on"
                raise FileNotFoundError(f"{folder} is unfinished ({source}): {cure}")
            cure = "make one with `minigenie collect` or `minigenie ingest`"
            raise FileNotFoundError(f"{folder} is not a dataset, it has no {MANIFEST}: {cure}")
        dataset = cls(folder, _read_object(folder / MANIFEST))
        files = [(folder / name, sha256) for name, sha256, _ in dataset._files.values()]
        if missing := [path for path, _ in files if not path.is_file()]:
            raise FileNotFoundError(f"{missing[0]} is missing; {COPY_AGAIN}")
        if verify and (bad := damaged(str(folder.resolve()), files)):
            raise UserError(f"{bad[0]} is damaged (its sha256 is not the manifest's); {COPY_AGAIN}")
        for name, _, shape in dataset._files.values():
            _load(folder / name, shape)
        return dataset

    @property
    def knows_ends(self) -> bool:
        """Whether it says of any episode that it ended."""
        return any(episode.ended for episode in self.episodes)

    @cached_property
    def episode_starts(self) -> np.ndarray:
        """The first frame of every episode, counted through all shards: int64 [episodes]."""
        return np.array([self._firsts[episode.shard] + episode.offset for episode in self.episodes])

    def episode_frames(self, i: int) -> np.ndarray:
        """Frames of episode `i`: uint8 [t h w c], a read-only view of the file."""
        return self._slice("frames", i)

    def episode_actions(self, i: int) -> np.ndarray | None:
        """True actions of episode `i`: integers [t], the last one unused. None if there are none."""
        return self._slice("actions", i) if self.has_actions else None

    def windows(self, length: int) -> np.ndarray:
        """The first frame of every run of `length` frames inside one episode: int64 [num_windows]."""
        lengths = np.array([episode.length for episode in self.episodes])
        firsts = self.episode_starts
        counts = np.maximum(lengths - length + 1, 0)
        if not counts.any():
            raise UserError(
                f"{self.name}: longest episode has {lengths.max()} frames, a window needs {length}; use shorter clips"
            )
        before = np.cumsum(counts) - counts  # windows of all earlier episodes
        return np.repeat(firsts - before, counts) + np.arange(counts.sum())

    def training_windows(self, length: int) -> np.ndarray:
        """Those that an epoch of training is made of."""
        return self.windows(length)

    def episodes_of(self, frames: np.ndarray) -> np.ndarray:
        """Which episode each of `frames` lies in, counted through all shards."""
        order = np.argsort(self.episode_starts)
        return order[np.searchsorted(self.episode_starts[order], frames, side="right") - 1]

    def shards_of(self, frames: np.ndarray) -> np.ndarray:
        """Which shard each of `frames` lies in, counted through all shards."""
        return np.searchsorted(self._ends, frames, side="right")

    def clips(self, starts: np.ndarray, length: int) -> np.ndarray:
        """`length` frames from each of `starts` [b], counted through all shards: uint8 [b t h w c]."""
        return self._gather("frames", starts, np.empty((len(starts), length, *self.frame_size, 3), np.uint8))

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
            raise UserError(f"clips start at frames 0 to {self.num_frames - 1}, got {starts.min()} to {starts.max()}")
        if (starts + length > self._ends[shards]).any():
            raise UserError(f"a clip of {length} frames runs past the end of its shard; take starts from windows()")
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
        while True:
            path = self._path(kind, shard)
            try:
                return _load(path, self._files[kind, shard][2])
            except UserError:
                if path.exists() or not self.url:  # else another process has just made room in the cache
                    raise

    def _path(self, kind: str, shard: int) -> Path:
        """The file of a shard. Of a dataset at a URL its copy, under its checksum: that name cannot be out of date."""
        name, sha256, _ = self._files[kind, shard]
        if not self.url:
            return self.folder / name
        path = self.folder / f"{sha256}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{sha256}.lock"):  # what one process copies the others wait for
                if not path.exists():
                    copy_url(f"{self.url}/{name}", path, sha256, "copy it there again, or make the dataset again")
                    trim_cache(path)
        with suppress(OSError):
            os.utime(path)  # what was used last is kept longest
        return path

    def __reduce__(self) -> tuple:
        return Dataset, (self.folder, self.manifest, self.url)


def sample_batch(windows_count: int, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which windows the batch number `step` is made of: int64 [batch_size] in [0, windows_count).

    Epoch after epoch, each a permutation of all windows, laid end to end; a batch takes the next `batch_size` of them.
    """
    if windows_count < 1:
        raise UserError("there are no windows to sample from; use shorter clips or a larger dataset")
    first = step * batch_size
    places = (divmod(i, windows_count) for i in range(first, first + batch_size))
    return np.array([_permutation(windows_count, seed, epoch)[position] for epoch, position in places])


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


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


def _read_object(path: Path | str) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes() if isinstance(path, Path) else read_url(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make the dataset again in another folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a MiniGenie file: it should hold one JSON object; choose another folder")
    return value


def _check_manifest(path: str, manifest: dict[str, Any]) -> Manifest:
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format is {manifest.get('format')!r}, should be {FORMAT!r}; choose another folder")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path} has version {manifest.get('version')!r}, this MiniGenie reads {VERSION}; "
            "make the dataset again or install the MiniGenie that made it"
        )
    try:
        return convert(manifest, Manifest)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; make the dataset again in another folder") from None


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Frames or actions of a shard: a view, since slicing the memmap class itself is several times slower."""
    array = load_npy(path, COPY_AGAIN)
    if array.shape != shape or (array.dtype != np.uint8 if len(shape) > 1 else array.dtype.kind not in "iu"):
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)}, the manifest says {list(shape)}; {COPY_AGAIN}"
        )
    return array.view(np.ndarray)
