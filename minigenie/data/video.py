"""Video files in, one dataset of uncut takes out: `ingest`. One file, all of its frames: `read_video`.

Every file is streamed: decoded packet by packet, thinned to `fps`, each kept frame scaled at once, each finished take
handed on. An hour of full HD needs no more memory than a minute, and a damaged file gives whatever still decodes.

- Time: for each 1/fps second, the frame nearest to it. None is ever repeated, since that would teach a world to stand still:
  a video slower than `fps` keeps every frame once, at its own pace, and its row says so.
- Cuts: a take ends where a frame matches nothing near it in the frame before. 16x16 thumbnails are compared at all shifts up
  to 4 cells; the best match must still differ by 12 of 255 on average, and by 4 times the running level of that difference.
  The shifts tell fast scrolling from a cut: on seven Procgen games with known resets they halved the errors, to 6 false
  cuts in 25,000 frames and 6 % of the resets missed, mostly between levels that look alike.
- Stillness: frames that stay within 8 of 255 of one frame, in all cells of a 32x32 thumbnail, for over a second are dropped.

Dimensions:  t frames   h height   w width
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from minigenie.data.dataset import Dataset, DatasetWriter, Episode, write_atomic

EXTENSIONS = tuple(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
CUT_DIFFERENCE, CUT_RATIO, CUT_SHIFT = 12, 4, 4
STILL_DIFFERENCE, STILL_SECONDS = 8, 1.0
SHARD_FRAMES, SHARD_BYTES, SHARDS_PER_VIDEO = 8192, 2**27, 10_000
LOG = "videos.jsonl"  # a row per finished video: how a killed ingest knows where it was, and where the frames came from


class Video(NamedTuple):
    """`frames` uint8 [t h w 3]; `warning` says what was lost to damage, None if nothing was."""

    frames: np.ndarray
    warning: str | None


class Row(NamedTuple):
    """What became of one file: `status` "kept", "partly" (damaged) or "skipped", and why; `reason` may be "".

    `frames` and `episodes` count what is in the datasets, `test_frames` those of `frames` that were held out.
    """

    file: str
    status: str
    frames: int
    episodes: int
    reason: str
    test_frames: int = 0


class IngestResult(NamedTuple):
    """`test_dataset` is None if nothing is held out: `split` is 0, or there is no second video, no take of two windows."""

    dataset: Dataset
    test_dataset: Dataset | None
    rows: list[Row]


class NoUsableVideo(ValueError):
    """Not one file gave a take; `rows` say why, file by file."""

    def __init__(self, message: str, rows: list[Row]):
        super().__init__(message)
        self.rows = rows


class _Unreadable(ValueError):
    """The reason why a file has no frames to give."""


def read_video(path: str | Path, *, size: int | tuple[int, int], fps: float, fit: str = "crop") -> Video:
    """All frames of a file at `fps` frames per second, scaled to `size` pixels: (height, width), or one number for both.

    `fit` "crop" fills the frame and cuts off what sticks out, "letterbox" shows everything between black bars.
    ValueError with the reason if the file has no usable video, FileNotFoundError if there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a video file")
    height_width = _checked(size, fps, fit)
    try:
        reader = _Reader(path, height_width, fps, fit)
        frames = [frame for frame, _ in reader]
        if not frames:
            raise _Unreadable("truncated before the first frame")
    except _Unreadable as reason:
        raise ValueError(f"{path}: {reason}") from None
    return Video(np.stack(frames), reader.damage())


def find_videos(paths: Iterable[str | Path]) -> list[Path]:
    """Files named in `paths`, whatever their extension, and videos anywhere in folders named there; sorted, each once.

    In folders `EXTENSIONS` count, hidden files do not. FileNotFoundError if a path is missing.
    """
    found = set()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name video files, or folders of them")
        inside = path.rglob("*") if path.is_dir() else ()
        found |= {p for p in inside if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file()}
        found |= set() if path.is_dir() else {path}
    return sorted({path.absolute() for path in found})


def ingest(
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    size: int | tuple[int, int] = 64,
    fps: float = 10,
    fit: str = "crop",
    split: float = 0.0,
    min_frames: int = 16,
    progress: Callable[[float, int, str], None] | None = None,
) -> IngestResult:
    """Turn videos and folders of videos into the dataset `out`; `split` is the share to hold out, into `<out>-test`.

    Takes shorter than `min_frames` (one training window) are left out. Whole videos are held out, chosen by a hash of their
    names; where `split` comes to less than one video, the last part of long takes instead. After a kill the same call
    goes on where it was and ends with the same bytes. `progress(done, total, name)` counts videos, `done` in fractions.

    NoUsableVideo, and nothing left on disk, if no file gives a take; FileNotFoundError for a missing path;
    FileExistsError if `out` holds anything else, be it this dataset from a different list of files.
    """
    height_width = _checked(size, fps, fit)
    if not (min_frames >= 2 and 0 <= split < 1):
        raise ValueError(f"min_frames should be at least 2 and split in [0, 1), got {min_frames} and {split}")
    paths = list(paths)
    videos = find_videos(paths)
    if not videos:
        where = ", ".join(map(str, paths)) or "an empty list of paths"
        raise NoUsableVideo(f"no video in {where}; files in folders should end in {' '.join(EXTENSIONS)}", [])
    root = os.path.commonpath([video.parent for video in videos])
    names = [video.relative_to(root).as_posix() for video in videos]
    header = _header(videos, names, height_width, fps, fit, split, min_frames)

    out, test_out = Path(out), Path(f"{out}-test")
    train = DatasetWriter(out, **header, split="train")
    rows = _read_log(out / LOG)
    if train.finished:
        return IngestResult(train.close(), Dataset.open(test_out) if test_out.exists() else None, _sorted(rows))
    test = DatasetWriter(test_out, **header, split="test") if split else None

    num_held_out = round(split * len(videos))
    order = list(range(len(videos)))
    if num_held_out:
        order.sort(key=lambda i: hashlib.sha256(names[i].encode()).digest())
    shard_frames = max(2 * min_frames, min(SHARD_FRAMES, SHARD_BYTES // (3 * math.prod(height_width))))
    done = {row.file for row in rows}
    for position, i in enumerate(order):
        ...
