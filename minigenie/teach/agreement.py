"""Do the labels make sense? A classifier learns some clips' labels from how the picture moves, and guesses others.

It is linear, over where the blocks of one frame are found again in the next, and so need not learn from a few hundred
labels what motion is. On 336 true labels of the toy world it is right in 58 %; a small convolutional network from
scratch, tried once with as many steps, was in 31 %, less than the commonest control's 36 %.

Dimensions:  n labels   k blocks of a frame   s shifts of a block   h w of a frame, in pixels
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minigenie.data.dataset import Dataset
from minigenie.data.labels import Labels

FOLDS, STEPS = 3, 150
MOST_LABELS = 1_500  # that are looked at: it takes seconds, however many there are
CLIP = 32  # labels in a row that are held out together at most
SIDE = 64  # pixels to which larger frames are shrunk
FURTHEST = 7  # pixels that a block is looked for in each direction
BLOCKS = 4  # along each side
SHARPNESS = 100.0  # how much likelier is the shift at which a block, of values in [0, 1], fits better


class Agreement(NamedTuple):
    """accuracy: share of the labels that a classifier gives which has not seen their clips. commonest: share of the
    control that has most of them, which is what guessing would reach. labels: how many there were."""

    accuracy: float
    commonest: float
    labels: int


def quick_agreement(dataset: Dataset, labels: Labels, seed: int = 0) -> Agreement:
    """Cross-validated in folds of whole clips. ValueError if the labels are of fewer than two clips."""
    runs = np.cumsum(np.diff(labels.frames, prepend=labels.frames[:1]) > 1)  # frames in a row
    _, clips = np.unique(np.stack([runs, labels.frames // CLIP]), axis=1, return_inverse=True)
    if clips.max(initial=0) < 1:
        raise ValueError("the labels are all of one clip; give those of another one too")
    order = np.random.default_rng(seed).permutation(clips.max() + 1)[clips]
    kept = np.flatnonzero(order <= max(1, np.searchsorted(np.cumsum(np.bincount(order)), MOST_LABELS)))
    folds, targets = torch.from_numpy(order[kept] % FOLDS), torch.from_numpy(labels.controls[kept])
    motion = _motion(dataset, labels.frames[kept])
    right = 0
    for fold in folds.unique():
        told = folds != fold
        guesses = _fitted(motion[told], targets[told], len(labels.names))(motion[~told]).argmax(1)
        right += int((guesses == targets[~told]).sum())
    return Agreement(right / len(kept), int(targets.bincount().max()) / len(kept), len(labels.frames))


def _fitted(motion: Float[Tensor, "n s"], targets: Int[Tensor, " n"], num_controls: int) -> nn.Module:
    scale = nn.BatchNorm1d(motion.shape[1], eps=1e-4, momentum=None, affine=False)
    linear = nn.Linear(motion.shape[1], num_controls)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    model = nn.Sequential(scale, linear)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(motion), targets).backward()
        optimizer.step()
    return model.eval()


def _motion(dataset: Dataset, frames: Int[np.ndarray, " n"]) -> Float[Tensor, "n s"]:
    """Of each transition from t to t+1, the one before and the one after, as far as they are of the same take: how
    likely each shift is, for all blocks alike and for each as much as it changes."""
    by_start = np.argsort(dataset.episode_starts)
    starts = dataset.episode_starts[by_start]
    ends = starts + np.array([episode.length for episode in dataset.episodes])[by_start]
    take = np.searchsorted(starts, frames, side="right")[:, None] - 1
    around = np.clip(frames[:, None] + np.arange(-1, 3), starts[take], ends[take] - 1)
    return torch.cat([_shifts(_grey(dataset, part)) for part in np.array_split(around, len(around) // 100 + 1)])


def _grey(dataset: Dataset, around: Int[np.ndarray, "n 4"]) -> Float[Tensor, "n 4 h w"]:
    clips = torch.from_numpy(dataset.clips(around.ravel(), 1)).float().mean((1, 4)) / 255
    scale = SIDE / max(clips.shape[-2:])
    if scale < 1:
        clips = F.interpolate(clips[:, None], scale_factor=scale, mode="area")[:, 0]
    return rearrange(clips, "(n t) h w -> n t h w", t=4)


def _shifts(frames: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n s"]:
    height, width = frames.shape[-2:]
    before, after = frames[:, :-1], F.pad(frames[:, 1:], (FURTHEST,) * 4, mode="replicate")
    moves = range(2 * FURTHEST + 1)
    errors = torch.stack(
        [
            F.adaptive_avg_pool2d((before - after[..., y : y + height, x : x + width]).abs(), BLOCKS).flatten(2)
            for y in moves
            for x in moves
        ],
        -1,
    )
    likely = (-SHARPNESS * errors).softmax(-1)
    change = errors[..., errors.shape[-1] // 2, None] + 1e-4
    return torch.cat([likely.mean(2), (likely * change).sum(2) / change.sum(2)], 1).flatten(1)
