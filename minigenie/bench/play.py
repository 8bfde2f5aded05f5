"""What a frame costs: `minigenie bench play`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from minigenie.bench.machine import Item, Measurement, Watch, count_flops, measure
from minigenie.dynamics import DynamicsConfig
from minigenie.lam import LAMConfig
from minigenie.maskgit import SamplingConfig
from minigenie.nn.st_transformer import STConfig
from minigenie.runtime import pick_device
from minigenie.tokenizer import TokenizerConfig
from minigenie.world import World, WorldConfig

CONTEXTS, BATCH = (1, 8, 15), 16
SMALL = STConfig(num_blocks=4, dim=128, num_heads=4)


def bench_play(
    folder: Path | None,
    *,
    rounds: int,
    compiled: bool = False,
    device: str | None = None,
    watch: Watch = lambda done, total: None,
) -> list[Measurement]:
    """One frame at the small size at which other implementations were measured, at several contexts and batches, and
    as the naive reference computes it; then one frame of the world in `folder`, if there is one."""
    where, most = pick_device(device), torch.get_num_threads()
    own = []
    if folder is not None:
        for threads, b in ((1, 1), (most, 1), (1, BATCH), (most, BATCH)):
            own.append(_frame(f"{folder.name}, batch {b}", World.load(folder, device), b, threads))
    items = [_frame(f"small, context {c}", common_size(c, where)) for c in CONTEXTS]
    if compiled:
        items.append(_frame("small, context 8, compiled", common_size(8, where), compiled=True))
    naive = partial(_naive, common_size(8, where))
    items.append(Item(name="small, context 8, naive", call=naive, frames=1, flops=count_flops(naive)))
    items += [_frame(f"small, context 8, batch {b}", common_size(8, where), b, most) for b in (1, BATCH)]
    return measure(items + own, where, rounds, watch)


def common_size(context_frames: int, device: torch.device) -> World:
    """Patch 8, width 128, 4 blocks, 4 heads, 64 tokens a frame, 25 MaskGIT steps, random weights."""
    config = WorldConfig(
        tokenizer=TokenizerConfig(patch=8, encoder=SMALL, decoder=SMALL),
        lam=LAMConfig(patch=16, encoder=SMALL, decoder=SMALL),
        dynamics=DynamicsConfig(transformer=SMALL),
        sampling=SamplingConfig(steps=25),
        context_frames=context_frames,
    )
    return World(config, config.make_tokenizer(), config.make_lam(), config.make_dynamics(), device)


def _frame(name: str, world: World, b: int = 1, threads: int = 1, compiled: bool = False) -> Item:
    """A frame with all of the context behind it."""
    world.reset(_noise(world, b, world.config.context_frames))
    call = partial(world.step, [0] * b)
    flops = count_flops(call)
    if compiled:
        world.compile()
    return Item(name=name, call=call, frames=b, flops=flops, threads=threads)


def _naive(world: World) -> Any:
    frames = _noise(world, 1, world.config.context_frames)
    return world.rollout(frames, torch.zeros(1, 1, dtype=torch.long), cached=False)


def _noise(world: World, b: int, t: int) -> torch.Tensor:
    return torch.randint(256, (b, t, *world.frame_shape), dtype=torch.uint8)
