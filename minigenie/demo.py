"""The whole journey in one command: footage, a world, how good it is, pictures."""

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from minigenie.console import training, working
from minigenie.data.collect import available, collect
from minigenie.eval.measure import evaluate
from minigenie.eval.report import summary, write_report
from minigenie.pipeline import train_world
from minigenie.recipes import tiny
from minigenie.runtime import pick_device
from minigenie.world import World

FULL_MINUTES = 8.0  # a shorter demo has less of everything
TRAINING_SHARE = 0.8  # of the time; the rest collects, encodes, measures and draws


def run_demo(out: Path, minutes: float, game: Literal["coinrun", "toy"], seed: int) -> None:
    """Raises ValueError if `minutes` is not positive, FileExistsError if `out` holds something else."""
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes}; give the demo some time, such as --minutes {FULL_MINUTES:g}")
    world_folder = out / "world"
    if (world_folder / "report.json").exists():
        print(f"{out} is done: see {world_folder}, or choose another --out")
        return
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (there and not there & {"train", "test", "world"}):
        raise FileExistsError(f"{out} already holds other files; choose a new or an empty folder with --out")
    stamps = {"start": time.monotonic()}
    if game == "coinrun" and (why := available()):
        print(f"playing the toy world instead of CoinRun: {why}")
        game = "toy"
    scale = min(1.0, minutes / FULL_MINUTES)
    recipe = replace(tiny(), seed=seed)
    for name in ("tokenizer_fit", "lam_fit", "dynamics_fit"):  # the clock decides, not the steps
        recipe = replace(recipe, **{name: replace(getattr(recipe, name), steps=1_000_000)})
    easy = {"mode": "easy", "backgrounds": False, "themes": False, "policy": "explore", "levels": 500, "seed": seed}
    datasets = {}
    for split, frames in (("train", 64_000), ("test", 8_000)):
        with working(f"collect {game}, {split}", "frames") as progress:
            frames = max(2_000, int(frames * scale))
            datasets[split] = collect(game, out / split, split=split, frames=frames, progress=progress, **easy)  # type: ignore[arg-type]
    stamps["collect"] = time.monotonic()
    budget = minutes * 60 * TRAINING_SHARE
    with training() as watcher:
        device = pick_device(None)
        train_world(datasets["train"], recipe, world_folder, device=device, max_seconds=budget, watcher=watcher)
    stamps["train"] = time.monotonic()
    world = World.load(world_folder, precision="auto")
    with working("measure", "frames") as progress:
        report, scenes = evaluate(world, datasets["test"], clips=max(8, int(128 * scale)), seed=seed, watch=progress)
    metrics = world_folder / "metrics.jsonl"
    pictures = write_report(world_folder, report, scenes, title=f"{out.resolve().name}/world", metrics=metrics)
    stamps["measure"] = time.monotonic()
    print("\n".join(summary(report)))
    spent = [f"{name} {stamps[name] - stamps[before]:.0f} s" for before, name in pairwise(stamps)]
    print(f"time          {', '.join(spent)}, together {stamps['measure'] - stamps['start']:.0f} s")
    print(f"report        {world_folder / 'report.html'}")
    print(f"pictures      {', '.join(str(path) for path in pictures)}")
    print(f"next          minigenie play {world_folder}")
