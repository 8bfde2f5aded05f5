"""A dataset as integers: every frame's tokens and the action that leads on from it, computed once.

Dynamics then trains on them alone: no tokenizer or LAM runs in its step, and 10 million frames of 64x64 are 5 GB of
tokens instead of 120 GB of pixels.

Dimensions:  f frames of the whole dataset   b batch   t frames of a clip   n patches per frame
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from minigenie.data.dataset import Dataset, load_npy, npy_parts, write_atomic
from minigenie.lam import LatentActionModel
from minigenie.nn.patches import to_float
from minigenie.tokenizer import VideoTokenizer

BATCH_FRAMES = 256
MAKE_AGAIN = "delete it, and it is made again"
Watch = Callable[[int, int], None]


@torch.no_grad()
def encode_tokens(
    dataset: Dataset, tokenizer: VideoTokenizer, clip_frames: int, path: Path, watch: Watch = lambda done, total: None
) -> np.ndarray:
    """Tokens of every frame, [f n] of the smallest unsigned type, mapped from `path`, which is made if missing.

    A tokenizer with a sense of time reads episodes in clips of `clip_frames`, as it was trained to.
    """
    if path.exists():
        return _kept(path, (dataset.num_frames, tokenizer.config.num_patches), tokenizer.config.quantizer.num_codes)
    device = next(tokenizer.parameters()).device
    kind = np.uint16 if tokenizer.config.quantizer.num_codes <= 65536 else np.uint32
    tokens = np.zeros((dataset.num_frames, tokenizer.config.num_patches), kind)
    for starts, frames in _pieces(dataset, clip_frames, overlap=0):
        clips = to_float(torch.from_numpy(frames).to(device))
        tokens[_spans(starts, frames.shape[1])] = tokenizer.encode(clips).cpu().numpy().astype(kind)
        watch(int(starts[-1]) + frames.shape[1], dataset.num_frames)
    return _keep(path, tokens)


@torch.no_grad()
def encode_actions(
    dataset: Dataset,
    lam: LatentActionModel,
    tokens: np.ndarray,
    clip_frames: int,
    path: Path,
    watch: Watch = lambda done, total: None,
) -> np.ndarray:
    """actions[i] leads from frame i to frame i + 1: uint8 [f], mapped from `path`; an episode's last one is 0."""
    if path.exists():
        return _kept(path, (dataset.num_frames,), lam.config.num_actions)
    device = next(lam.parameters()).device
    actions = np.zeros(dataset.num_frames, np.uint8)
    for starts, frames in _pieces(dataset, clip_frames, overlap=1):
        length = frames.shape[1]
        if length > 1:
            clips = {
                "frames": torch.from_numpy(frames).to(device),
                "tokens": torch.from_numpy(tokens[_spans(starts, length)].astype(np.int64)).to(device),
            }
            actions[_spans(starts, length - 1)] = lam.infer(lam.video(clips)).cpu().numpy()
            watch(int(starts[-1]) + length, dataset.num_frames)
    return _keep(path, actions)


def _pieces(dataset: Dataset, length: int, overlap: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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


def _keep(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, *npy_parts(array))
    return load_npy(path, MAKE_AGAIN)


def _kept(path: Path, shape: tuple[int, ...], below: int) -> np.ndarray:
    """What was encoded before. ValueError, one line, if it is not of this dataset and this model."""
    array = load_npy(path, MAKE_AGAIN)
    if array.shape != shape or array.dtype.kind != "u" or array.max(initial=0) >= below:
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}, not {list(shape)} below {below}; {MAKE_AGAIN}"
        )
    return array
