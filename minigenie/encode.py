"""A dataset as integers: every frame's tokens and the action that leads on from it, computed once.

Dynamics then trains on them alone: no tokenizer or LAM runs in its step, and 10 million frames of 64x64 are 5 GB of
tokens instead of 120 GB of pixels.

Dimensions:  f frames of the whole dataset   b batch   t frames of a clip   n patches per frame
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from minigenie.data.dataset import Dataset, npy_parts, write_atomic
from minigenie.lam import LatentActionModel
from minigenie.nn.patches import to_float
from minigenie.tokenizer import VideoTokenizer

BATCH_FRAMES = 256
Watch = Callable[[int, int], None]


@torch.no_grad()
def encode_tokens(
    dataset: Dataset, tokenizer: VideoTokenizer, clip_frames: int, path: Path, watch: Watch = lambda done, total: None
) -> np.ndarray:
    """Tokens of every frame, [f n] of the smallest unsigned type, mapped from `path`, which is made if missing.

    A tokenizer with a sense of time reads episodes in clips of `clip_frames`, as it was trained to.
    """
    if path.exists():
        return np.load(path, mmap_mode="r", allow_pickle=False)
    device = next(tokenizer.parameters()).device
    kind = np.uint16 if tokenizer.config.quantizer.num_codes <= 65536 else np.uint32
    tokens = np.zeros((dataset.num_frames, tokenizer.config.num_patches), kind)
    for start, frames in _pieces(dataset, clip_frames, overlap=0):
        clip = to_float(torch.from_numpy(frames).to(device))[None]
        tokens[start : start + len(frames)] = tokenizer.encode(clip)[0].cpu().numpy().astype(kind)
        watch(start + len(frames), dataset.num_frames)
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
        return np.load(path, mmap_mode="r", allow_pickle=False)
    device = next(lam.parameters()).device
    actions = np.zeros(dataset.num_frames, np.uint8)
    for start, frames in _pieces(dataset, clip_frames, overlap=1):
        if len(frames) > 1:
            clip = {
                "frames": torch.from_numpy(frames).to(device)[None],
                "tokens": torch.from_numpy(tokens[start : start + len(frames)].astype(np.int64)).to(device)[None],
            }
            actions[start : start + len(frames) - 1] = lam.infer(lam.video(clip))[0].cpu().numpy()
            watch(start + len(frames), dataset.num_frames)
    return _keep(path, actions)


def _pieces(dataset: Dataset, length: int, overlap: int) -> Iterator[tuple[int, np.ndarray]]:
    """Every episode in runs of `length` frames, the next beginning `overlap` before the end of the last."""
    for i, first in enumerate(dataset.episode_starts):
        frames = dataset.episode_frames(i)
        for offset in range(0, len(frames), length - overlap):
            yield int(first) + offset, np.array(frames[offset : offset + length])


def _keep(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, *npy_parts(array))
    return np.load(path, mmap_mode="r", allow_pickle=False)
