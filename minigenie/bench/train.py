"""What a training step costs: forward and backward of each part of the batch, and optimizer."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minigenie.bench.machine import Call, Item, Measurement, count_flops, dtypes_of, timed
from minigenie.bench.play import REFERENCE, SMALL
from minigenie.camera import PAST
from minigenie.dynamics import DynamicsConfig, Joint
from minigenie.lam import LAMConfig, LatentActionModel
from minigenie.nn.model import Model
from minigenie.nn.quantize import QuantizerConfig
from minigenie.nn.st_transformer import STConfig
from minigenie.optim import make_optimizers, set_learning_rate
from minigenie.pipeline import STEPS, Recipe
from minigenie.recipes import paper, recipe_named
from minigenie.runtime import autocast
from minigenie.settings import BenchSettings
from minigenie.tokenizer import TokenizerConfig
from minigenie.train import Execution, FitConfig, Part, backward, prepare_stacks, update


def train_items(settings: BenchSettings, device: torch.device) -> list[Item]:
    """Steps of each recipe's stages, and of the sizes at which other implementations were measured: W1 and W2 are the
    reference's, W1s and W2s small. Or, with `settings.parts`, of the recipes alone, so many clips at a time at most."""
    sizes = {"s": small()} | ({"": reference()} if settings.large else {})
    common = [
        step_item(f"{name}{suffix} {stage} step", recipe, stage, device, dtype, threads=1)
        for dtype in dtypes_of(device)
        for suffix, recipe in sizes.items()
        for name, stage in (("W1", "tokenizer"), ("W2", "joint"))
    ]
    dtype = dtypes_of(device)[-1]  # what they are trained in
    if settings.large:
        common.append(step_item("8 x 512 dynamics step", wide(), "dynamics", device, dtype))
    own = [
        step_item(f"{name} {stage} step", recipe_named(name), stage, device, dtype, part=part)
        for name in settings.recipes
        for stage in (("tokenizer", "joint") if recipe_named(name).joint else ("tokenizer", "lam", "dynamics"))
        for part in settings.parts or (None,)
    ]
    own = list({item.name: item for item in own}.values())  # batches may be cut alike
    return own if settings.parts else common + own


def fastest_parts(measurements: list[Measurement]) -> list[str]:
    """Settings for `train`: for each recipe's stages, as many clips at a time as were the fastest."""
    best: dict[str, str] = {}
    for each in sorted(measurements, key=lambda each: each.frames_per_s):
        if found := re.match(r"(\w+) (\w+) step, (?:\d+ times )?(\d+) x ", each.item):
            recipe, stage, clips = found.groups()
            stage = "dynamics" if stage == "joint" else stage
            best[f"{recipe} {stage}"] = f"{recipe:<13} --set {stage}_fit.execution.part={clips}"
    return list(best.values())


def small() -> Recipe:
    """4 clips of 16 frames of 64x64, patch 8, width 128, 4 heads, 4+4 blocks; the LAM on pixels at patch 16."""
    return _common(SMALL, SMALL, 8, 4, Execution())


def reference() -> Recipe:
    """2 clips of 16 frames of 64x64, patch 4, width 512, 8 heads, 8+8 blocks; dynamics 12; saving memory."""
    return _common(STConfig(), REFERENCE, 4, 2, Execution(part=1, recompute="cheap"))


def wide() -> Recipe:
    """`laptop` with dynamics of 8 blocks of width 512, on 4 clips of 8 frames of 64 positions; two streams, Muon."""
    recipe = recipe_named("laptop")
    dynamics = replace(recipe.dynamics, transformer=STConfig(num_blocks=8, dim=512, num_heads=8))
    return replace(recipe, dynamics=dynamics, dynamics_fit=replace(recipe.dynamics_fit, batch_size=4))


def _common(stack: STConfig, dynamics: STConfig, patch: int, clips: int, how: Execution) -> Recipe:
    fit = FitConfig(steps=1, batch_size=clips, clip_frames=16, execution=how)
    codes = QuantizerConfig(num_codes=1024, code_dim=32)
    models: dict[str, Any] = {
        "tokenizer": TokenizerConfig(patch=patch, encoder=stack, decoder=stack, quantizer=codes),
        "lam": LAMConfig(pairs=False, relative=False, encoder=stack, decoder=stack),
        "dynamics": DynamicsConfig(transformer=dynamics, context="masked"),
    }
    return replace(paper(), **models, tokenizer_fit=fit, lam_fit=fit, dynamics_fit=fit)


def step_item(
    name: str, recipe: Recipe, stage: str, device: torch.device, dtype: Any, threads: int = 0, part: int | None = None
) -> Item:
    """threads: all, if it is 0. part: clips at a time, in place of the recipe's own."""
    config: FitConfig = getattr(recipe, f"{'dynamics' if stage == 'joint' else stage}_fit")
    execution = replace(config.execution, precision=dtype, part=part or config.execution.part)
    config = replace(config, execution=execution)

    def make() -> Model:
        if stage == "joint":
            return Joint(LatentActionModel(recipe.lam, recipe.tokenizer), recipe.make_dynamics())
        return getattr(recipe, f"make_{stage}")()

    parts, frames = len(config.parts()), torch.Size((len(config.parts()[0]), config.clip_frames))
    times = "" if parts == 1 else f"{parts} times "
    return Item(
        name=f"{name}, {times}{frames[0]} x {frames[1]} frames",
        make=lambda: step_call(make(), _noise(recipe, frames, device), config, device),
        frames=parts * frames.numel(),
        threads=threads or torch.get_num_threads(),
        dtype=dtype,
    )


def step_call(model: Model, batch: dict[str, Tensor], config: FitConfig, device: torch.device) -> Call:
    model.to(device).train()
    optimizers = make_optimizers(model, config.optim)
    set_learning_rate(optimizers, config.optim, 1e-3)

    precision, count = config.execution.precision, len(config.parts())
    parts, one = [Part(batch, 1 / count)] * count, [Part({name: tensor[:1] for name, tensor in batch.items()})]

    def run() -> None:
        backward(model, parts, precision, device, 1.0)
        update(model, optimizers, config)

    for _ in range(2):  # the first step places codes by k-means
        flops = config.batch_size * count_flops(lambda: backward(model, one, precision, device, 1.0))
        flops += count_flops(lambda: update(model, optimizers, config))
    prepare_stacks(model, config.execution, device)
    run()

    def stages() -> dict[str, float]:
        losses = []

        def forward() -> None:
            with autocast(device, precision):
                losses.append(model(batch, 1.0)[0])

        return {
            "forward": count * timed(forward, device)[0],
            "backward": count * timed(lambda: losses[0].backward(), device)[0],
            "optimizer": timed(partial(update, model, optimizers, config), device)[0],
        }

    return Call(run, flops, stages)


def _noise(recipe: Recipe, frames: torch.Size, device: torch.device) -> dict[str, Tensor]:
    tokenizer, before, rows = recipe.tokenizer, (frames[0], frames[1] - 1), STEPS * frames[0]
    camera = {
        "motions": torch.randint(max(1, recipe.dynamics.motions), before, device=device),
        "moved": torch.randint(tokenizer.quantizer.num_codes, (*before, tokenizer.num_patches), device=device),
        "step_tokens": torch.randint(tokenizer.quantizer.num_codes, (rows, tokenizer.num_patches), device=device),
        "step_motions": torch.randint(max(1, recipe.dynamics.motions), (rows, PAST + 1), device=device),
        "step_actions": torch.randint(recipe.num_actions, (rows, PAST + 1), device=device),
    }
    return (camera if recipe.dynamics.motions else {}) | {
        "frames": torch.randint(256, (*frames, *tokenizer.frame_size, 3), dtype=torch.uint8, device=device),
        "tokens": torch.randint(tokenizer.quantizer.num_codes, (*frames, tokenizer.num_patches), device=device),
        "actions": torch.randint(recipe.num_actions, before, device=device),
    }
