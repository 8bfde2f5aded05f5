"""The whole journey in one command: footage, a world that nobody labelled, what a few labels make of it, pictures."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from minigenie.console import table, training, working
from minigenie.data.collect import available, collect
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.eval.run import measure, rows
from minigenie.pipeline import Recipe, train_world, with_actions, with_ending
from minigenie.recipes import tiny
from minigenie.runtime import pick_device
from minigenie.settings import CollectSettings
from minigenie.world import World

FULL_MINUTES = 8.0  # a shorter demo has less of everything
TRAINING_SHARE = 0.78  # of the time; the rest collects, encodes, measures and draws
FRAMES: dict[Literal["train", "test"], int] = {"train": 64_000, "test": 8_000}
LABELS = 1_000  # of 64,000 frames
GIVEN = {"world": "with labels", "unlabelled": "without labels"}
SHARES = {"world": 0.62, "unlabelled": 0.38}  # of the time of training; the second takes over the first one's tokenizer


def run_demo(out: Path, minutes: float, game: Literal["coinrun", "toy"], seed: int) -> None:
    """Raises ValueError if `minutes` is not positive, FileExistsError if `out` holds something else."""
    if not minutes > 0:
        raise UserError(f"minutes is {minutes}; give the demo some time, such as --minutes {FULL_MINUTES:g}")
    if all((out / name / "report.json").exists() for name in SHARES):
        print(f"{out} is done: see {out / 'world'}, or choose another --out")
        return
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (there and not there & {"train", "test", "world"}):
        raise FileExistsError(f"{out} already holds other files; choose a new or an empty folder with --out")
    stamps = {"start": time.monotonic()}
    if game == "coinrun" and (why := available()):
        print(f"playing the toy world instead of CoinRun: {why}")
        game = "toy"
    scale = min(1.0, minutes / FULL_MINUTES)
    footage = {split: _collect(game, out, split, max(2_000, int(FRAMES[split] * scale)), seed) for split in FRAMES}
    stamps["collect"] = time.monotonic()
    recipe = with_ending(replace(tiny(), seed=seed), footage["train"])
    for name in ("tokenizer_fit", "lam_fit", "dynamics_fit", "ending_fit"):  # the clock decides, not the steps
        recipe = replace(recipe, **{name: replace(getattr(recipe, name), steps=1_000_000)})
    labels = min(LABELS, footage["train"].num_frames // 8)
    recipes = {
        "world": with_actions(replace(recipe, shares=(0.22, 0.07, 0.71)), footage["train"], "labels", labels),
        "unlabelled": _unlabelled(recipe, footage["train"]),
    }
    for name, share in SHARES.items():
        seconds = minutes * 60 * TRAINING_SHARE * share
        beside = out / "world" if name == "unlabelled" else None
        with training() as watcher:
            train_world(
                footage["train"], recipes[name], out / name, device=pick_device(None), max_seconds=seconds,
                watcher=watcher, beside=beside,
            )  # fmt: skip
        stamps[f"train {name}"] = time.monotonic()
    clips = max(2, int(128 * scale))
    reports = {}
    for name, given in GIVEN.items():
        world = World.load(out / name, precision="auto")
        reports[given] = measure(out / name, world, footage["test"], out / name, clips, seed)
    stamps["measure"] = time.monotonic()
    print(f"The actions of this world were learnt from {labels:,} labelled frames. Beside it is one that had none:")
    table(["", *reports], rows(reports))
    spent = [f"{name} {stamps[name] - stamps[before]:.0f} s" for before, name in pairwise(stamps)]
    print(f"time          {', '.join(spent)}, together {stamps['measure'] - stamps['start']:.0f} s")
    print(f"next          minigenie play {out / 'world'}")


def _unlabelled(recipe: Recipe, footage: Dataset) -> Recipe:
    """Controls found by what the scene does out of rest; where it has no camera that moves, latent actions."""
    try:
        return with_actions(replace(recipe, shares=(0.01, 0.12, 0.87)), footage, "found")  # the tokenizer is there
    except ValueError:
        return replace(recipe, shares=(0.01, 0.4, 0.59))


def _collect(game: str, out: Path, split: Literal["train", "test"], frames: int, seed: int) -> Dataset:
    """Simple footage in which every control has its share."""
    with working(f"collect {game}, {split}", "frames") as progress:
        settings = CollectSettings(
            game=game, split=split, frames=frames, mode="easy", backgrounds=False, themes=False, policy="explore",
            levels=500, seed=seed,
        )  # fmt: skip
        return collect(settings, out / split, progress=progress)
