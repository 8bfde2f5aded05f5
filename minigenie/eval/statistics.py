"""How sure a mean is, and how evenly things are used."""

from typing import Any

import numpy as np

DRAWS = 2000


def interval(values: np.ndarray, seed: int, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of `values` [clips], over resampled clips."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(np.asarray(values, float)[picks].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def interval_of_columns(values: np.ndarray, seed: int, draws: int = DRAWS) -> list[float]:
    """The 95 % interval of the mean of the columns' means, over resampled rows; NaN where a row has no value."""
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    columns = np.ma.masked_invalid(values)[picks].mean(axis=1)
    low, high = np.percentile(columns.mean(axis=1).compressed(), [2.5, 97.5])
    return [float(low), float(high)]


def bootstrap(values: np.ndarray, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """Mean of `values` [clips] with its 95 % interval and the count."""
    return {"mean": float(values.mean()), "ci95": interval(values, seed, draws), "clips": len(values)}


def by_horizon(name: str, values: np.ndarray, seed: int) -> dict[str, Any]:
    """values [clips t] -> {name: {"1": mean, ...}, name_ci95: {"1": [low, high], ...}}."""
    columns = dict(enumerate(values.T, 1))
    return {
        name: {str(t): float(column.mean()) for t, column in columns.items()},
        f"{name}_ci95": {str(t): interval(column, seed) for t, column in columns.items()},
    }


def entropy(share: np.ndarray) -> float:
    """Entropy of a distribution, in nats."""
    return float(-(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum())


def perplexity(codes: np.ndarray) -> float:
    """exp(entropy) of how often each code occurs: so many, if they were used evenly."""
    counts = np.bincount(np.asarray(codes).ravel())
    return float(np.exp(entropy(counts / counts.sum())))
