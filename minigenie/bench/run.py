"""All of `minigenie bench`: measure what is asked for, and print it. The items here are what data costs."""

from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from minigenie.bench.machine import COLUMNS, Call, Item, describe_machine, measure, rows, stage_rows
from minigenie.bench.play import play_items
from minigenie.bench.train import fastest_parts, train_items
from minigenie.console import table, working
from minigenie.data.collect import collect
from minigenie.data.dataset import sample_batch
from minigenie.errors import UserError
from minigenie.files import to_json, write_atomic
from minigenie.pictures import save_video
from minigenie.runtime import pick_device
from minigenie.settings import BenchSettings, CollectSettings
from minigenie.world import locate

CLIPS, CLIP_FRAMES, FRAMES = 64, 16, 2_000


def run(settings: BenchSettings) -> None:
    """UserError, one line, if there is nothing of the kind to measure."""
    what, world, device = (
        settings.what,
        locate(settings.world) if settings.world else None,
        pick_device(settings.device),
    )
    with TemporaryDirectory(prefix="minigenie-bench-") as scratch, working(f"bench {what}", "rounds") as progress:
        kinds = {
            "train": lambda: train_items(settings, device),
            "play": lambda: play_items(world, device, settings.compiled, settings.large),
            "data": lambda: data_items(Path(scratch)),
        }
        items = [item for kind, make in kinds.items() if what in (kind, "all") for item in make()]
        items = [item for item in items if settings.only in item.name]
        if not items:
            lacking = f"nothing that bench {what} measures has {settings.only!r} in its name"
            raise UserError(f"{lacking}; leave --only out to see all")
        measured = measure(items, device, settings.rounds, progress)
    print(describe_machine(device))
    table(COLUMNS, rows(measured))
    if shares := stage_rows(measured):
        table(["item", "where its time goes"], shares)
    if settings.parts:
        print("fastest parts", *fastest_parts(measured), sep="\n")
    if settings.json is not None:
        write_atomic(settings.json, to_json([asdict(each) for each in measured]))


def data_items(folder: Path) -> list[Item]:
    """Random clips of a dataset in memory, and ingest of one mp4 file: of the toy world, written to `folder`."""
    name, frames = f"load {CLIPS} clips of {CLIP_FRAMES} frames", CLIPS * CLIP_FRAMES
    return [
        Item(name=name, make=partial(load_call, folder), frames=frames),
        Item(name="ingest an mp4", make=partial(ingest_call, folder), frames=FRAMES),
    ]


def load_call(folder: Path) -> Call:
    dataset = collect(CollectSettings(game="toy", frames=FRAMES), folder / "toy")
    windows, steps = dataset.windows(CLIP_FRAMES), count(1)

    def load() -> torch.Tensor:
        starts = windows[sample_batch(len(windows), seed=0, step=next(steps), batch_size=CLIPS)]
        return torch.from_numpy(dataset.clips(starts, CLIP_FRAMES))

    return Call(load)


def ingest_call(folder: Path) -> Call:
    from minigenie.data.ingest import ingest  # wants PyAV, which measuring the rest does without

    toy = collect(CollectSettings(game="toy", frames=FRAMES), folder / "toy")
    frames = np.concatenate([toy.episode_frames(i) for i in range(len(toy.episodes))])[:FRAMES]
    save_video(torch.from_numpy(frames), folder / "toy.mp4", 10.0)
    rounds = count()
    return Call(lambda: ingest(folder / "toy.mp4", folder / f"ingested-{next(rounds)}"))
