"""Do the labels make sense? Inverse dynamics learn some clips' labels, and guess the others'.

Dimensions:  n labels
"""

from typing import NamedTuple

import numpy as np
import torch

from minigenie.data.dataset import Dataset
from minigenie.data.labels import Labels
from minigenie.errors import UserError
from minigenie.inverse import controls_seen, fit_pairs

FOLDS, STEPS = 3, 100
MOST_LABELS = 1_500  # that are looked at
CLIP = 32  # labels in a row that are held out together at most


class Agreement(NamedTuple):
    """accuracy: share of the labels that a classifier gives which has not seen their clips. commonest: share of the
    control that has most of them, which is what guessing would reach. labels: how many there were."""

    accuracy: float
    commonest: float
    labels: int


def quick_agreement(dataset: Dataset, labels: Labels, seed: int = 0) -> Agreement:
    """Cross-validated in folds of whole clips. UserError if the labels are of fewer than two clips."""
    runs = np.cumsum(np.diff(labels.frames, prepend=labels.frames[:1]) > 1)  # frames in a row
    _, clips = np.unique(np.stack([runs, labels.frames // CLIP]), axis=1, return_inverse=True)
    if clips.max(initial=0) < 1:
        raise UserError("the labels are all of one clip; give those of another one too")
    order = np.random.default_rng(seed).permutation(clips.max() + 1)[clips]
    kept = np.flatnonzero(order <= max(1, np.searchsorted(np.cumsum(np.bincount(order)), MOST_LABELS)))
    folds, targets = order[kept] % FOLDS, labels.controls[kept]
    pairs, right = torch.from_numpy(dataset.clips(labels.frames[kept], 2)), 0
    for fold in np.unique(folds):
        told = folds != fold
        model = fit_pairs(pairs[told], targets[told], labels.names, STEPS, seed)
        right += int((controls_seen(model, pairs[~told]) == targets[~told]).sum())
    return Agreement(right / len(kept), int(np.bincount(targets).max()) / len(kept), len(labels.frames))
