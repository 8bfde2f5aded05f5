"""How sure a mean is, and how evenly things are used."""

from collections.abc import Callable
from typing import Any

import numpy as np

DRAWS = 2000


def interval(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of `values` [clips], over resampled groups of clips. groups: [clips] which clips
    are no independent ones, such as the windows of one episode; by default, or where all are one group, each clip is
    its own."""
    which = np.zeros(len(values), int) if groups is None else np.unique(groups, return_inverse=True)[1]
    which = which if which.any() else np.arange(len(values))
    sums, counts = np.bincount(which, weights=np.asarray(values, float)), np.bincount(which)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    return np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5]).tolist()


def interval_of_columns(values: np.ndarray, seed: int, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of the columns' means, over resampled rows; NaN where a row has no value."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    columns = np.ma.masked_invalid(values)[picks].mean(axis=1)
    return np.percentile(columns.mean(axis=1).compressed(), [2.5, 97.5]).tolist()


def bootstrap(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> dict[str, Any]:
    """Mean of `values` [clips] with its 95 % interval and the count. groups: see `interval`."""
    return {"mean": float(values.mean()), "ci95": interval(values, seed, groups, draws), "clips": len(values)}


def by_horizon(
    name: str, values: np.ndarray, seed: int, groups: np.ndarray | None = None, scale: Callable = np.asarray
) -> dict[str, Any]:
    """values [clips t] -> {name: {"1": mean, ...}, name_ci95: {"1": [low, high], ...}}, on another `scale` if given.
    groups: see `interval`."""
    columns = {str(t): column for t, column in enumerate(values.T, 1)}
    ends = {t: scale(np.array(interval(column, seed, groups))) for t, column in columns.items()}
    return {
        name: {t: float(scale(column.mean())) for t, column in columns.items()},
        f"{name}_ci95": {t: sorted(pair.tolist()) for t, pair in ends.items()},
    }


def entropy(share: np.ndarray) -> float:
    """Entropy of a distribution, in nats."""
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())


def perplexity(codes: np.ndarray) -> float:
    """exp(entropy) of how often each code occurs: so many, if they were used evenly."""
    counts = np.bincount(np.asarray(codes).ravel())
    return float(np.exp(entropy(counts / counts.sum())))
