"""Takes that were there before: videos uploaded twice, intros that videos share, other encodings and scales of them.

A copy is footage that differs from an earlier take by less than from itself a second later, everywhere in the picture
and for most of the take. That needs no threshold in brightness: a fixed camera in a still room has copies told from
later recordings by the little that moves, and so have games that share a moving background. Twice a second, a thumbnail
of what is kept goes to a file; the signs of its 24 lowest Walsh coefficients say where in a table of fixed size its
number is looked for. So memory does not grow with the footage (where the table is full, first come, first kept), and a
wrong guess costs a comparison, never a take.

Dimensions:  t frames of a take
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
RECORD = np.dtype([("video", "<u4"), ("thumbnail", "u1", (SIDE, SIDE, 3))])
KEY_BITS, ALIGNMENTS = 24, 8  # the table takes 64 MB; so many ways to lay a take over earlier ones are tried
RATIO = 0.25  # of the change within a second


def thumbnails(take: np.ndarray) -> np.ndarray:
    """Small copies of frames [t h w 3]: uint8 [t 16 16 3]."""
    small = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX) for frame in take]
    return np.stack([np.asarray(image) for image in small])


class ThumbnailIndex:
    """What was kept so far, in the file `path`; one that a killed run left is taken up, up to video `num_videos`."""

    def __init__(self, path: Path, num_videos: int, fps: float):
        self.path, self.second, self.step = path, max(1, round(fps)), max(1, round(fps / 2))
        self.table = np.zeros(2**KEY_BITS, np.uint32)  # by key: the first record of it, counted from 1
        path.touch()
        whole = path.stat().st_size // RECORD.itemsize
        videos = np.memmap(path, RECORD, "r", shape=whole)["video"] if whole else np.zeros(0)
        count = int(np.searchsorted(videos, num_videos))
        os.truncate(path, count * RECORD.itemsize)
        self.count = 0
        for first in range(0, count, 2**16):
            self._enter(self._read(first, min(first + 2**16, count))["thumbnail"])

    def add(self, video: int, take: np.ndarray) -> None:
        """Remember a take of the video of that number, by its thumbnails [t 16 16 3]."""
        records = np.empty(len(take[:: self.step]), RECORD)
        records["video"], records["thumbnail"] = video, take[:: self.step]
        with open(self.path, "ab") as file:
            file.write(records.tobytes())
        self._enter(records["thumbnail"])

    def sync(self) -> None:
        """To be called before a video is noted as finished."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def origin(self, take: np.ndarray) -> int | None:
        """The number of the video that a take, by its thumbnails [t 16 16 3], mostly copies. None if it is new."""
        firsts = self.table[_keys(take)].astype(int) - 1
        frames = np.flatnonzero(firsts >= 0)
        alignments, votes = np.unique(frames - self.step * firsts[frames], return_counts=True)
        lag = min(self.second, len(take) // 2)
        limit = RATIO * _difference(take[lag:], take[:-lag]).mean()
        copied: dict[int, int] = {}  # by half second of the take: which video's
        for alignment in alignments[np.argsort(-votes, kind="stable")][:ALIGNMENTS].tolist():
            first, last = (max(0, -(-(end - alignment) // self.step)) for end in (0, len(take)))
            records = self._read(first, min(last, self.count))
            frames = alignment + self.step * np.arange(first, first + len(records))
            same = _difference(take[frames], records["thumbnail"]) < limit
            if same.sum() > 1:
                copied |= dict(zip((frames[same] // self.step).tolist(), records["video"][same].tolist(), strict=True))
        if 2 * len(copied) <= -(-len(take) // self.step):
            return None
        videos = list(copied.values())
        return max(sorted(set(videos)), key=videos.count)

    def _enter(self, thumbnails: np.ndarray) -> None:
        keys, firsts = np.unique(_keys(thumbnails), return_index=True)
        new = self.table[keys] == 0
        self.table[keys[new]] = self.count + 1 + firsts[new]
        self.count += len(thumbnails)

    def _read(self, first: int, last: int) -> np.ndarray:
        return np.fromfile(self.path, RECORD, count=max(0, last - first), offset=first * RECORD.itemsize)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference, thumbnail by thumbnail, of [t 16 16 3] and as many more: int16 [t]."""
    return np.abs(a.astype(np.int16) - b).max((1, 2, 3))


def _keys(thumbnails: np.ndarray) -> np.ndarray:
    """24 bits of each thumbnail: whether it is brighter where a slow square wave is up than where it is down."""
    # whole numbers: exact on every machine
    waves = thumbnails.sum(-1).reshape(-1, SIDE * SIDE).astype(np.float32) @ WALSH.T
    return (waves > 0) @ (1 << np.arange(KEY_BITS))


def _walsh() -> np.ndarray:
    """The 5x5 slowest square waves over a thumbnail, less the constant one: float32 [24 256] of -1 and 1."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < SIDE:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    slow = hadamard[np.argsort((np.diff(hadamard) != 0).sum(1))[:5]]
    return np.kron(slow, slow)[1:].astype(np.float32)


WALSH = _walsh()
