"""How a training step and a frame grow with their sizes: one size at a time, doubled again and again.

python runs/bench_size.py --rounds 5
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import tyro

from minigenie.bench.machine import COLUMNS, Call, Item, Measurement, describe_machine, measure, rows
from minigenie.bench.play import common_size, step_call
from minigenie.bench.train import small, step_item
from minigenie.console import table, working
from minigenie.pipeline import Recipe
from minigenie.runtime import pick_device

AXES = {
    "batch": (2, 4, 8, 16),
    "frames": (4, 8, 16, 32),
    "patches": (16, 64, 256),
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
}
CONTEXTS = (2, 4, 8, 16)
GROWTH = ["of", "sizes", "ms", "time grows as", "operations as"]


def size_items(device: torch.device) -> list[Item]:
    """Dynamics steps around 4 clips of 8 frames of 64 patches, width 128, 4 blocks, and frames after longer pasts."""
    steps = [
        step_item(name(axis, size), recipe_of_size(axis, size), "dynamics", device, "float32", threads=1)
        for axis, sizes in AXES.items()
        for size in sizes
    ]
    frames = [Item(name=name("context", c), make=partial(_frame, device, c), frames=1) for c in CONTEXTS]
    return steps + frames


def _frame(device: torch.device, context: int) -> Call:
    return step_call(common_size(device, context))


def name(axis: str, size: int) -> str:
    return f"{'frame' if axis == 'context' else 'dynamics step'}, {axis} {size}"


def recipe_of_size(axis: str, size: int) -> Recipe:
    recipe = replace(small(), context_frames=1)
    fit = replace(recipe.dynamics_fit, batch_size=4, clip_frames=8)
    stack, tokenizer = recipe.dynamics.transformer, recipe.tokenizer
    if axis == "batch":
        fit = replace(fit, batch_size=size)
    elif axis == "frames":
        fit = replace(fit, clip_frames=size)
    elif axis == "patches":
        tokenizer = replace(tokenizer, frame_size=(8 * round(size**0.5),) * 2)
    elif axis == "width":
        stack = replace(stack, dim=size, num_heads=size // 32)
    else:
        stack = replace(stack, num_blocks=size)
    return replace(recipe, tokenizer=tokenizer, dynamics=replace(recipe.dynamics, transformer=stack), dynamics_fit=fit)


def growth_rows(measurements: Iterable[Measurement]) -> list[list[str]]:
    """A row for each size that was doubled: exponents fitted to the medians, on a CPU of its own time, which other
    programs disturb less; 1 is linear, 0 costs nothing."""
    measured = list(measurements)
    by_axis = {
        axis: {size: each for size in sizes for each in measured if f"{each.item},".startswith(name(axis, size) + ",")}
        for axis, sizes in {**AXES, "context": CONTEXTS}.items()
    }
    return [
        [
            axis,
            ", ".join(map(str, points)),
            ", ".join(f"{1e3 * seconds(point):.0f}" for point in points.values()),
            f"size^{exponent({size: seconds(point) for size, point in points.items()}):.2f}",
            f"size^{exponent({size: point.flops for size, point in points.items()}):.2f}",
        ]
        for axis, points in by_axis.items()
        if len(points) > 1
    ]


def seconds(measured: Measurement) -> float:
    return measured.cpu_seconds_median if measured.device == "cpu" else measured.seconds_median


def exponent(values: dict[int, float]) -> float:
    """p of the best size^p through the values."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def main(rounds: int = 7, device: str | None = None) -> None:
    """A table of what was measured, and one of how it grows.

    Args:
        rounds: How often each size is timed; the sizes take turns.
        device: cuda, mps or cpu; the best there is by default.
    """
    where = pick_device(device)
    with working("bench sizes", "rounds") as progress:
        measured = measure(size_items(where), where, rounds, progress)
    print(describe_machine(where))
    table(COLUMNS, rows(measured))
    table(GROWTH, growth_rows(measured))


if __name__ == "__main__":
    tyro.cli(main)
