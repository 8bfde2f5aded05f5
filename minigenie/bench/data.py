"""What data costs: clips out of a dataset, and a dataset out of video."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from minigenie.bench.machine import Call, Item
from minigenie.data.collect import collect
from minigenie.data.dataset import sample_batch
from minigenie.pictures import save_video
from minigenie.settings import CollectSettings

CLIPS, CLIP_FRAMES, FRAMES = 64, 16, 2_000


def data_items(folder: Path) -> list[Item]:
    """Random clips of a dataset in memory, and ingest of one mp4 file at 64x64; from the toy world, 2,000 frames, which
    are written to `folder`."""
    load, read = partial(load_call, folder), partial(ingest_call, folder)
    return [
        Item(name=f"load {CLIPS} clips of {CLIP_FRAMES} frames", make=load, frames=CLIPS * CLIP_FRAMES),
        Item(name="ingest an mp4", make=read, frames=FRAMES),
    ]


def load_call(folder: Path) -> Call:
    dataset = collect(CollectSettings(game="toy", frames=FRAMES), folder / "toy")
    windows, step = dataset.windows(CLIP_FRAMES), 0

    def load() -> torch.Tensor:
        nonlocal step
        step += 1
        starts = windows[sample_batch(len(windows), seed=0, step=step, batch_size=CLIPS)]
        return torch.from_numpy(dataset.clips(starts, CLIP_FRAMES))

    return Call(load)


def ingest_call(folder: Path) -> Call:
    from minigenie.data.ingest import ingest  # wants PyAV, which measuring the rest does without

    toy = collect(CollectSettings(game="toy", frames=FRAMES), folder / "toy")
    frames = np.concatenate([toy.episode_frames(i) for i in range(len(toy.episodes))])[:FRAMES]
    save_video(torch.from_numpy(frames), folder / "toy.mp4", 10.0)
    count = 0

    def run() -> None:
        nonlocal count
        count += 1
        ingest(folder / "toy.mp4", folder / f"ingested-{count}")

    return Call(run)
