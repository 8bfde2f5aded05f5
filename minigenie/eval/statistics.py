"""How sure a mean is, and how evenly things are used."""

from typing import Any

import numpy as np

DRAWS = 2000


def interval(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of `values` [clips], over resampled groups of clips. groups: [clips] which clips
    are no independent ones, such as the windows of one episode; by default, or where all are one group, each clip is
    its own."""
    which = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if which.max() == 0:
        which = np.arange(len(values))
    sums, counts = np.bincount(which, weights=np.asarray(values, float)), np.bincount(which)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def interval_of_columns(values: np.ndarray, seed: int, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of the columns' means, over resampled rows; NaN where a row has no value."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    columns = np.ma.masked_invalid(values)[picks].mean(axis=1)
    low, high = np.percentile(columns.mean(axis=1).compressed(), [2.5, 97.5])
    return [float(low), float(high)]


def bootstrap(values: np.ndarray, seed: int, groups: np.ndarray | None = None, draws: int = DRAWS) -> dict[str, Any]:
    """Mean of `values` [clips] with its 95 % interval and the count. groups: see `interval`."""
    return {"mean": float(values.mean()), "ci95": interval(values, seed, groups, draws), "clips": len(values)}


def by_horizon(name: str, values: np.ndarray, seed: int, groups: np.ndarray | None = None) -> dict[str, Any]:
    """values [clips t] -> {name: {"1": mean, ...}, name_ci95: {"1": [low, high], ...}}. groups: see `interval`."""
    columns = dict(enumerate(values.T, 1))
    return {
        name: {str(t): float(column.mean()) for t, column in columns.items()},
        f"{name}_ci95": {str(t): interval(column, seed, groups) for t, column in columns.items()},
    }


def entropy(share: np.ndarray) -> float:
    """Entropy of a distribution, in nats."""
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())


def perplexity(codes: np.ndarray) -> float:
    """exp(entropy) of how often each code occurs: so many, if they were used evenly."""
    counts = np.bincount(np.asarray(codes).ravel())
    return float(np.exp(entropy(counts / counts.sum())))
