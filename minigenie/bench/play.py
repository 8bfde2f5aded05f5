"""What a frame costs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from minigenie.bench.machine import Call, Item, count_flops, dtypes_of
from minigenie.dynamics import DynamicsConfig
from minigenie.lam import LAMConfig
from minigenie.maskgit import SamplingConfig
from minigenie.nn.st_transformer import STConfig
from minigenie.runtime import Precision
from minigenie.tokenizer import TokenizerConfig
from minigenie.world import World, WorldConfig, read_config

CONTEXTS, BATCH, MANY = (1, 4, 8, 15), 16, (1024, 4096)
SMALL = STConfig(num_blocks=4, dim=128, num_heads=4)
REFERENCE = STConfig(num_blocks=12)  # of the paper, at patch 4


def play_items(folder: Path | None, device: torch.device, compiled: bool, large: bool) -> list[Item]:
    """One frame at the small size at which other implementations were measured, at several contexts and batches, and
    as the naive reference computes it; at the reference size if `large`; and of the world in `folder`, if any."""
    most, dtypes, small = torch.get_num_threads(), dtypes_of(device), partial(common_size, device)

    def frame(name: str, world: Callable[..., World], b: int = 1, compiled: bool = False, **of: Any) -> Item:
        make = lambda: step_call(world(precision=of.get("dtype", "float32")), b, compiled)  # noqa: E731
        return Item(name=name, make=make, frames=b, **of)

    items = [frame(f"W3s frame, context {c}", partial(small, c), dtype=dtype) for dtype in dtypes for c in CONTEXTS]
    for dtype, c in product(dtypes, (1, 8)) if compiled else ():
        items.append(frame(f"W3s frame, context {c}, compiled", partial(small, c), compiled=True, dtype=dtype))
    items.append(Item(name="W3s frame, context 8, naive", make=lambda: naive_call(small(8)), frames=1))
    for b in (1, BATCH, *MANY) if device.type == "cuda" else (1, BATCH):
        items.append(frame(f"W3s frame, context 8, batch {b}", partial(small, 8), b, threads=most))
    for c in CONTEXTS if large else ():
        world: Callable[..., World] = partial(small, c, REFERENCE, 4)
        items.append(frame(f"W3 frame, context {c}", world, compiled=compiled, dtype=dtypes[-1]))
    if folder is not None:
        read_config(folder)
        world = partial(World.load, folder, str(device))
        for dtype in dtypes:
            for threads, b in ((1, 1), (most, 1), (1, BATCH), (most, BATCH)):
                items.append(frame(f"{folder.name} frame, batch {b}", world, b, threads=threads, dtype=dtype))
            if compiled:
                items.append(frame(f"{folder.name} frame, batch 1, compiled", world, compiled=True, dtype=dtype))
    return items


def common_size(
    device: torch.device, context_frames: int, stack: STConfig = SMALL, patch: int = 8, precision: Precision = "float32"
) -> World:
    """25 MaskGIT steps, random weights; small: width 128, 4 blocks, 4 heads, 64 tokens a frame."""
    decoder = replace(stack, num_blocks=min(8, stack.num_blocks))
    config = WorldConfig(
        tokenizer=TokenizerConfig(patch=patch, encoder=SMALL, decoder=decoder),
        lam=LAMConfig(patch=16, encoder=SMALL, decoder=SMALL),
        dynamics=DynamicsConfig(transformer=stack),
        sampling=SamplingConfig(steps=25),
        context_frames=context_frames,
    )
    models = config.make_tokenizer(), config.make_lam(), config.make_dynamics()
    return World(config, *models, device=device, precision=precision)


def step_call(world: World, b: int = 1, compiled: bool = False) -> Call:
    """A frame with all of the context behind it."""
    world.reset(_noise(world, b, world.config.context_frames))
    run = partial(world.step, [0] * b)
    flops = count_flops(run)
    if compiled:
        world.compile()
    return Call(run, flops)


def naive_call(world: World) -> Call:
    frames = _noise(world, 1, world.config.context_frames)
    run = partial(world.rollout, frames, torch.zeros(1, 1, dtype=torch.long), cached=False)
    return Call(run, count_flops(run))


def _noise(world: World, b: int, t: int) -> torch.Tensor:
    return torch.randint(256, (b, t, *world.frame_shape), dtype=torch.uint8)
