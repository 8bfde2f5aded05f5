"""A dataset as integers: every frame's tokens and the action that leads on from it, computed once.

Dynamics then trains on them alone: no tokenizer or LAM runs in its step, and 10 million frames of 64x64 are 5 GB of
tokens instead of 120 GB of pixels.

Dimensions:  f frames of the whole dataset   b batch   t frames of a clip   n patches per frame
"""

import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from minigenie.config import parse_json
from minigenie.data.dataset import Dataset, load_npy, write_atomic
from minigenie.lam import LatentActionModel
from minigenie.nn.patches import to_float
from minigenie.tokenizer import VideoTokenizer

BATCH_FRAMES = 256
SAVE_EVERY = 30  # seconds
MAKE_AGAIN = "delete it, and it is made again"
Watch = Callable[[int, int], None]
Pieces = Iterator[tuple[np.ndarray, np.ndarray]]


def encode_tokens(
    dataset: Dataset, tokenizer: VideoTokenizer, clip_frames: int, path: Path, watch: Watch = lambda done, total: None
) -> np.ndarray:
    """Tokens of every frame, [f n] of the smallest unsigned type, mapped from `path`, which is made if missing.

    A tokenizer with a sense of time reads episodes in clips of `clip_frames`, as it was trained to.
    """
    device = next(tokenizer.parameters()).device
    kind = np.uint16 if tokenizer.config.quantizer.num_codes <= 65536 else np.uint32

    def encode(starts: np.ndarray, frames: np.ndarray, tokens: np.ndarray) -> None:
        clips = to_float(torch.from_numpy(frames).to(device))
        tokens[_spans(starts, frames.shape[1])] = tokenizer.encode(clips).cpu().numpy().astype(kind)

    shape = (dataset.num_frames, tokenizer.config.num_patches)
    _fill(path, np.dtype(kind), shape, _pieces(dataset, clip_frames, overlap=0), encode, watch)
    return _kept(path, shape, tokenizer.config.quantizer.num_codes)


def encode_actions(
    dataset: Dataset,
    lam: LatentActionModel,
    tokens: np.ndarray,
    clip_frames: int,
    path: Path,
    watch: Watch = lambda done, total: None,
) -> np.ndarray:
    """actions[i] leads from frame i to frame i + 1: uint8 [f], mapped from `path`; an episode's last one is 0."""
    device = next(lam.parameters()).device

    def encode(starts: np.ndarray, frames: np.ndarray, actions: np.ndarray) -> None:
        if (length := frames.shape[1]) > 1:
            clips = {
                "frames": torch.from_numpy(frames).to(device),
                "tokens": torch.from_numpy(tokens[_spans(starts, length)].astype(np.int64)).to(device),
            }
            actions[_spans(starts, length - 1)] = lam.infer(lam.video(clips)).cpu().numpy()

    pieces = _pieces(dataset, clip_frames, overlap=1)
    _fill(path, np.dtype(np.uint8), (dataset.num_frames,), pieces, encode, watch)
    return _kept(path, (dataset.num_frames,), lam.config.num_actions)


@torch.no_grad()
def _fill(
    path: Path,
    kind: np.dtype,
    shape: tuple[int, ...],
    pieces: Pieces,
    encode: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
    watch: Watch,
) -> None:
    """Make the array at `path` if it is missing, in a file beside it; a note says how many pieces are safely in it."""
    unfinished, note = path.with_suffix(".part"), path.with_suffix(".json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _noted(note) if unfinished.exists() else 0
        if not done:
            _reserve(unfinished, kind, shape)
        array, saved = np.lib.format.open_memmap(unfinished, mode="r+"), time.monotonic()
        for number, (starts, frames) in enumerate(pieces):
            if number >= done:
                encode(starts, frames, array)
                watch(int(starts[-1]) + frames.shape[1], shape[0])
            if time.monotonic() - saved > SAVE_EVERY:
                array.flush()
                write_atomic(note, json.dumps(number + 1).encode())
                saved = time.monotonic()
        array.flush()
        unfinished.replace(path)
    note.unlink(missing_ok=True)


def _noted(note: Path) -> int:
    """How many pieces it says are done; none, if it is not there or makes no sense."""
    try:
        done = parse_json(note.read_bytes())
    except (OSError, ValueError):
        return 0
    return done if type(done) is int else 0


def _reserve(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> None:
    """An .npy file of zeros whose room on the disk is sure, since a full disk kills who writes to a mapped file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    )
    size = len(header.getvalue()) + math.prod(shape) * kind.itemsize
    try:
        with open(path, "wb") as file:
            file.write(header.getvalue())
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"cannot write {path}, {size / 1e6:.0f} MB: {error.strerror}; make room and run the same command again",
        ) from None


def _pieces(dataset: Dataset, length: int, overlap: int) -> Pieces:
    """Every episode in runs of `length` frames, the next beginning `overlap` before the end of the last; equally long
    ones together: first frames [b], frames [b t h w c]."""
    starts: list[int] = []
    runs: list[np.ndarray] = []
    for i, first in enumerate(dataset.episode_starts):
        frames = dataset.episode_frames(i)
        for offset in range(0, len(frames), length - overlap):
            run = frames[offset : offset + length]
            if runs and (len(run) != len(runs[0]) or len(runs) * length >= BATCH_FRAMES):
                yield np.array(starts), np.stack(runs)
                starts, runs = [], []
            starts.append(int(first) + offset)
            runs.append(run)
    yield np.array(starts), np.stack(runs)


def _spans(starts: np.ndarray, length: int) -> np.ndarray:
    return starts[:, None] + np.arange(length)


def _kept(path: Path, shape: tuple[int, ...], below: int) -> np.ndarray:
    """What was encoded before. ValueError, one line, if it is not of this dataset and this model."""
    array = load_npy(path, MAKE_AGAIN)
    if array.shape != shape or array.dtype.kind != "u" or array.max(initial=0) >= below:
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}, not {list(shape)} below {below}; {MAKE_AGAIN}"
        )
    return array
