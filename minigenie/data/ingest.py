"""Many video files in, one dataset of uncut takes out, the same whatever decodes it and however often it is killed.

Workers decode whole files, out of order, each into a file of its takes in a staging folder inside the dataset. One
process goes through these in the order of the files: it drops copies of what came before, holds out, writes shards.
All that depends on earlier files is decided there, so the bytes do not depend on how many workers there are. A line in
a log ends each file; a killed run decodes again what was staged without a line, and goes on from there.

Dimensions:  t frames   h height   w width
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.data.duplicates import SIDE, ThumbnailIndex, thumbnails
from minigenie.data.robots import HDF5, Recorded, recorded
from minigenie.data.sidecars import Sidecars, read_sidecars, sidecar_paths
from minigenie.data.source import Unreadable, numbered_pictures, stands_for_many
from minigenie.data.video import EXTENSIONS, Reader, check_options, find_videos, split_takes
from minigenie.data.workers import workers as start_workers
from minigenie.errors import UserError
from minigenie.files import convert, parse_json, sha256_of, write_atomic
from minigenie.settings import IngestSettings

SHARD_FRAMES, SHARD_BYTES, SHARDS_PER_VIDEO = 8192, 2**26, 10_000
LOG = "videos.jsonl"  # a row per finished video: where a killed ingest goes on, and where the frames came from
PASSED_OVER, MOST_ENDINGS = "passed over", 20  # told of one by one
SEEN, STAGING = ".seen", ".staging-"  # gone when the dataset is finished


class Row(NamedTuple):
    """What became of one file: `status` "kept", "partly" (damaged) or "skipped", and why; `reason` may be "".

    A last row, "passed over", counts the files in folders whose endings are not those of videos. `frames` and
    `episodes` count what is in the datasets, `test_frames` those of `frames` that were held out, `repeated` the frames
    left out because an earlier file has them. `sha256`: of its bytes.
    """

    file: str
    status: str
    frames: int
    episodes: int
    reason: str
    test_frames: int = 0
    repeated: int = 0
    sha256: str = ""


class IngestResult(NamedTuple):
    """`test_dataset` is None if nothing is held out: `split` is 0, or no other video or take was long enough to."""

    dataset: Dataset
    test_dataset: Dataset | None
    rows: list[Row]


class NoUsableVideo(UserError):
    """Not one file gave a take; `rows` say why, file by file."""

    def __init__(self, message: str, rows: list[Row]):
        super().__init__(message)
        self.rows = rows


class Staged(NamedTuple):
    """A decoded file: `lengths` of its takes, their thumbnails [t 16 16 3], how many frames it gave, at what `rate`.

    `damage` says what was lost, None if nothing was; `unreadable` why there is nothing, None if there is; `notes` how
    it was read. `actions` at the frames of the takes, int64 [t], and whether its `episodes` are, if they are known.
    """

    lengths: list[int]
    thumbnails: np.ndarray
    num_given: int = 0
    rate: float = math.inf
    damage: str | None = None
    unreadable: str | None = None
    notes: tuple[str, ...] = ()
    actions: np.ndarray | None = None
    episodes: bool = False
    sha256: str = ""


def ingest(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    settings: IngestSettings = IngestSettings(),
    *,
    workers: int = 1,
    ray: str | None = None,
    progress: Callable[[float, int, str], None] = lambda done, total, name: None,
) -> IngestResult:
    """Turn videos and folders of videos into the dataset `out`, and what is held out into `<out>-test`.

    Whole videos are held out, chosen by a hash of their names; where `settings.split` comes to less than one video, the
    last part of long takes, and whole short ones. Files are decoded by so many processes, `workers`, or by all of the
    Ray cluster at the address `ray`, whose machines must see `paths` and `out` under the same names. After a kill the
    same call goes on where it was and ends with the same bytes, whatever the workers. `progress(done, total, name)`
    counts videos, `done` in fractions if this process decodes them.

    NoUsableVideo, and nothing left on disk, if no file gives a take; FileNotFoundError for a missing path;
    FileExistsError if `out` holds anything else, be it this dataset from a different list of files.
    """
    fps, split, min_frames = settings.fps, settings.split, settings.min_frames
    height_width = check_options(settings)
    if not (min_frames >= 2 and 0 <= split < 1):
        raise UserError(f"min_frames should be at least 2 and split in [0, 1), got {min_frames} and {split}")
    if workers < 1:
        raise UserError(f"workers is {workers}; it takes at least 1 to decode")
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    skipped: list[tuple[Path, str]] = []
    videos = find_videos(paths, lambda path, why: skipped.append((path, why)), settings)
    others = _others(skipped, {sidecar for video in videos for sidecar in sidecar_paths(video)})
    if not videos:
        where = ", ".join(map(str, paths)) or "an empty list of paths"
        raise NoUsableVideo(f"no video in {where}; files in folders should end in {EXTENSIONS}", others)
    known = recorded(videos, settings)
    controls = _controls(videos, known)
    root = os.path.commonpath([video.parent for video in videos])
    names = [_readable(video.relative_to(root).as_posix()) for video in videos]
    listing = "\n".join(f"{name} {_contents(v, known.get(v))}" for name, v in zip(names, videos, strict=True))
    digest = hashlib.sha256(listing.encode()).hexdigest()[:12]
    header = header_of(settings, f"{len(videos)} files with listing {digest}", controls)

    def report(done: int, name: str, share: float) -> None:
        progress(done + share, len(videos), name)

    out = Path(out)
    test_out = Path(f"{out}-test")
    train = DatasetWriter(out, **header, split="train")
    rows = read_log(out / LOG)
    if train.finished:
        return IngestResult(train.close(), Dataset.open(test_out) if test_out.exists() else None, sorted(rows) + others)
    test = DatasetWriter(test_out, **header, split="test") if split else None

    order, num_test_videos = list(range(len(videos))), round(split * len(videos))
    if num_test_videos:
        order.sort(key=lambda i: hashlib.sha256(names[i].encode()).digest())
    max_frames = max(2 * min_frames, min(SHARD_FRAMES, SHARD_BYTES // (3 * math.prod(height_width))))
    seen = None if settings.keep_duplicates else ThumbnailIndex(out / SEEN, len(rows), fps)

    for left_behind in out.glob(f"{STAGING}*"):
        shutil.rmtree(left_behind)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=out.absolute()))
    todo = range(len(rows), len(order))
    with start_workers(min(workers, max(1, len(todo))), ray if todo else None) as (submit, ahead):

        def begin(k: int) -> Callable[[], Staged]:
            reports = [partial(report, k, names[order[k]])] if ahead == 1 else []
            video = videos[order[k]]
            return submit(stage, video, staging / str(k), settings, max_frames, known.get(video), *reports)

        beginning = map(begin, todo)
        begun = deque(islice(beginning, ahead))
        while begun:
            decoded, k = begun.popleft()(), len(rows)
            i, staged = order[k], staging / str(k)
            train_shards, test_shards = (_Shards(writer, i, names[i], max_frames) for writer in (train, test))
            num_test_frames = _hold_out(rows, split, num_test_videos, min_frames)
            repeated: Counter[str] = Counter()
            for take, small, actions in _staged_takes(staged, height_width, decoded):
                labelled = decoded.episodes or actions is not None  # and so no mere copy
                origin = seen.origin(small) if seen and not labelled else None
                if origin is not None:
                    repeated[names[order[origin]]] += len(take)
                    continue
                if seen:
                    seen.add(k, small)
                end = len(take) - num_test_frames(len(take))
                train_shards.add(take[:end], None if actions is None else actions[:end])
                # a copy, so as not to keep the whole take
                test_shards.add(take[end:].copy(), None if actions is None else actions[end:])
            train_shards.flush()
            test_shards.flush()
            if seen:
                seen.sync()
            staged.unlink(missing_ok=True)
            rows.append(_row(names[i], decoded, train_shards, test_shards, repeated, fps, min_frames))
            append_to_log(out / LOG, rows[-1])
            report(len(rows), names[i], 0.0)
            begun.extend(islice(beginning, 1))
    report(len(videos), names[-1], 0.0)
    shutil.rmtree(staging)
    (out / SEEN).unlink(missing_ok=True)

    if not any(row.episodes for row in rows):
        for writer in filter(None, (train, test)):
            shutil.rmtree(writer.folder)
        first = min(rows)
        raise NoUsableVideo(
            f"none of {len(rows)} files can be used; {first.file}: {first.reason}", sorted(rows) + others
        )
    has_test = any(row.test_frames for row in rows)
    if test and not has_test:
        shutil.rmtree(test_out)
    test_dataset = test.close() if test and has_test else None  # first, so that a finished `out` says that both are
    return IngestResult(train.close(), test_dataset, sorted(rows) + others)


def header_of(settings: IngestSettings, videos: str, controls: tuple[str, ...] = ()) -> dict[str, Any]:
    """How the dataset's manifest begins. videos: of which files it is made. controls: names of the recorded actions."""
    return {
        "frame_size": check_options(settings),
        "fps": float(settings.fps),
        "source": "video",
        "generator": f"minigenie ingest, av {av.__version__}",
        "settings": {
            "videos": videos,
            "fit": settings.fit,
            "held_out": settings.split,
            "min_frames": settings.min_frames,
            "duplicates": "kept" if settings.keep_duplicates else "dropped",
            **({"controls": controls} if controls else {}),
        },
    }


def _others(skipped: list[tuple[Path, str]], sidecars: set[Path]) -> list[Row]:
    """Rows of the folders that cannot be read, and of the files of other endings."""
    unread = [Row(_readable(path), "skipped", 0, 0, f"folder cannot be read: {why}") for path, why in skipped if why]
    endings = Counter(path.suffix.lower() or "no ending" for path, why in skipped if not why and path not in sidecars)
    if not endings:
        return sorted(unread)
    counts = ", ".join(f"{count} {_readable(ending)}" for ending, count in endings.most_common(MOST_ENDINGS))
    counts += ", ..." if len(endings) > MOST_ENDINGS else ""
    reason = f"{counts}: no endings of videos; name such a file itself to have it read"
    return [*sorted(unread), Row(f"{endings.total()} other files", PASSED_OVER, 0, 0, reason)]


def _readable(path: str | Path) -> str:
    """A path as text that can be written anywhere, whatever bytes a file system allows in it."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _controls(videos: list[Path], known: dict[Path, Recorded]) -> tuple[str, ...]:
    """Names of the actions that come with the videos; none if these are plain integers, or if there are none.

    UserError, one line, if not all have the same.
    """
    named: dict[tuple[str, ...], Path] = {}
    for video in videos:
        if each := known.get(video):
            if each.actions is not None:
                named.setdefault(each.controls, video)
        elif any(".actions." in path.name for path in sidecar_paths(video)):
            named.setdefault((), video)
    if len(named) > 1:
        one, other, *_ = named.values()
        raise UserError(f"{one} and {other} have not the same controls; ingest one at a time, or with --bins 0")
    return next(iter(named), ())


def _contents(video: Path, known: Recorded | None) -> str:
    """What tells that a file has changed: its size, that of its pictures, and what lies beside it."""
    contents = []
    with suppress(OSError):  # its row will say so
        if known:
            arrays = known.episodes, np.empty(0) if known.actions is None else known.actions
            contents += [*known.notes, *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)]
        files = numbered_pictures(video) if stands_for_many(video) else [video]
        contents.append(str(sum(file.stat().st_size for file in files)))
        contents += [hashlib.sha256(path.read_bytes()).hexdigest() for path in sidecar_paths(video)]
    return " ".join(contents)


def sha256_of_video(video: Path) -> str:
    """Of a file, Minari's too, or of numbered pictures one after the other, and of what lies beside them."""
    files = list(numbered_pictures(video)) if stands_for_many(video) else [video / HDF5 if video.is_dir() else video]
    digests = [sha256_of(file) for file in [*files, *sidecar_paths(video)]]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def stage(
    video: Path,
    path: Path,
    settings: IngestSettings,
    max_frames: int,
    recorded: Recorded | None = None,
    *report: Callable[[float], None],
) -> Staged:
    """Decode a file: the frames of its takes go to `path`, uint8 [t h w 3] without a header."""
    lengths, small, numbers = [], [np.empty((0, SIDE, SIDE, 3), np.uint8)], [np.empty(0, np.int64)]
    try:
        sidecars = Sidecars(*recorded[:2], (recorded.table, ""), recorded.notes) if recorded else read_sidecars(video)
        known = sidecars.episodes is not None
        reader = Reader(video, settings, *report)
        with open(path, "wb") as file:
            frames = sidecars.within(reader)
            for take in split_takes(frames, settings.fps, settings.min_frames, max_frames, known):
                file.write(take.frames.data)
                lengths.append(len(take.frames))
                small.append(thumbnails(take.frames))
                numbers.append(take.numbers)
        sidecars.check(reader.num_frames)
        if recorded and recorded.fps and abs(reader.rate / recorded.fps - 1) > 0.02:
            raise Unreadable(f"it has {reader.rate:.4g} frames per second, {recorded.table} counts {recorded.fps:g}")
        sha256 = sha256_of_video(video)
    except Unreadable as reason:
        return Staged([], small[0], unreadable=str(reason))
    actions = None if sidecars.actions is None else sidecars.actions[np.concatenate(numbers)]
    notes = (*reader.notes, *sidecars.notes)
    return Staged(
        lengths,
        np.concatenate(small),
        reader.num_given,
        reader.rate,
        reader.damage(),
        None,
        notes,
        actions,
        known,
        sha256,
    )


def _staged_takes(
    path: Path, height_width: tuple[int, int], staged: Staged
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """One after another, takes [t h w 3], their thumbnails [t 16 16 3], and their actions [t]."""
    first, frame = 0, 3 * math.prod(height_width)
    for length in staged.lengths:
        end = first + length
        take = np.fromfile(path, np.uint8, count=length * frame, offset=first * frame)
        actions = None if staged.actions is None else staged.actions[first:end]
        yield take.reshape(length, *height_width, 3), staged.thumbnails[first:end], actions
        first = end


def read_log(path: Path) -> list[Row]:
    """Rows of the finished videos. A last line that a kill cut short is taken off the file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        write_atomic(path, *lines[:-1])
        lines.pop()
    try:
        return [convert(tuple(Row(**parse_json(line))), Row) for line in lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); ingest into another folder") from None


def append_to_log(path: Path, row: Row) -> None:
    with open(path, "ab") as log:
        log.write(json.dumps(row._asdict()).encode() + b"\n")
        log.flush()
        os.fsync(log.fileno())


def _hold_out(rows: list[Row], split: float, num_videos: int, min_frames: int) -> Callable[[int], int]:
    """How many frames to hold out at the end of a take of given length, given the videos before it.

    With `num_videos`, whole videos: the first usable one is for training, the next ones are held out. Otherwise, the
    share `split` in tails of a window or more, of takes that leave as much for training, and whole shorter takes.
    """
    if num_videos:
        has_train, num_held_out = any(r.frames > r.test_frames for r in rows), sum(r.test_frames > 0 for r in rows)
        return lambda length: length if has_train and num_held_out < num_videos else 0
    owed = split * sum(row.frames for row in rows) - sum(row.test_frames for row in rows)

    def tail(length: int) -> int:
        nonlocal owed
        owed += split * length
        if length < 2 * min_frames:
            count = length if owed >= length else 0
        else:
            count = min(max(int(owed), min_frames), length - min_frames) if owed > 0 else 0
        owed -= count
        return count

    return tail


class _Shards:
    """Packs takes of one video into shards of at most `max_frames`; what a killed run wrote already stays."""

    def __init__(self, writer: DatasetWriter | None, video: int, name: str, max_frames: int):
        self.writer, self.index, self.name, self.max_frames = writer, video * SHARDS_PER_VIDEO, name, max_frames
        self.takes: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.num_frames = self.num_takes = 0

    def add(self, take: np.ndarray, actions: np.ndarray | None) -> None:
        if sum(map(len, self.takes)) + len(take) > self.max_frames:
            self.flush()
        if len(take):
            self.takes.append(take)
            self.actions += [] if actions is None else [actions]
            self.num_frames += len(take)
            self.num_takes += 1

    def flush(self) -> None:
        if self.writer and self.takes:
            if self.index not in self.writer:
                offsets = np.cumsum([0, *map(len, self.takes)]).tolist()
                at = zip(offsets, self.takes, strict=False)
                episodes = [Episode(self.index, offset, len(take), source=self.name) for offset, take in at]
                actions = np.concatenate(self.actions) if self.actions else None
                self.writer.write(self.index, np.concatenate(self.takes), episodes, actions)
            self.index += 1
            self.takes.clear()
            self.actions.clear()


def _row(
    name: str, staged: Staged, train: _Shards, test: _Shards, repeated: Counter[str], fps: float, min_frames: int
) -> Row:
    if staged.unreadable:
        return Row(name, "skipped", 0, 0, staged.unreadable)
    frames, num_repeated = train.num_frames + test.num_frames, repeated.total()
    reasons = [staged.damage] if staged.damage else []
    reasons += staged.notes
    reasons += [f"{count} frames repeat {origin}" for origin, count in sorted(repeated.items())]
    if staged.num_given < min_frames:
        reasons.append(f"{staged.num_given} frames at {fps:g} per second, a take needs {min_frames}")
    elif staged.num_given > frames + num_repeated:
        left_out = f"{staged.num_given - frames - num_repeated} of {staged.num_given} frames left out"
        where = "outside of its episodes" if staged.episodes else "still"
        reasons.append(f"{left_out}: {where}, or in takes of fewer than {min_frames}")
    if staged.rate < 0.9 * fps:
        reasons.append(f"its {staged.rate:.3g} frames per second are below {fps:g}: each kept once")
    status = "skipped" if not frames else "partly" if staged.damage else "kept"
    num_takes = train.num_takes + test.num_takes
    return Row(name, status, frames, num_takes, "; ".join(reasons), test.num_frames, num_repeated, staged.sha256)
