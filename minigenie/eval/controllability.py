"""Do the latent actions control the world, and what do they mean?"""

from typing import Any

import numpy as np


def usage(actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Share of transitions that each action explains: [num_actions]."""
    return np.bincount(actions.ravel(), minlength=num_actions) / actions.size


def entropy(share: np.ndarray) -> float:
    """Entropy of a distribution, in nats."""
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())


def mutual_information(actions: np.ndarray, truth: np.ndarray) -> float:
    """Normalised mutual information of two labellings, over the geometric mean of their entropies: 0 unrelated, 1 the
    same up to names."""
    joint = np.zeros((actions.max() + 1, truth.max() + 1))
    np.add.at(joint, (actions.ravel(), truth.ravel()), 1 / actions.size)
    rows, columns = entropy(joint.sum(1)), entropy(joint.sum(0))
    shared = rows + columns - entropy(joint.ravel())
    return float(shared / np.sqrt(rows * columns)) if rows * columns > 0 else 0.0


def bootstrap(values: np.ndarray, seed: int, draws: int = 2000) -> dict[str, Any]:
    """Mean of `values` [clips] with its 95 % interval over resampled clips."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)], "clips": len(values)}
