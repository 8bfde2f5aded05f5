"""Teach a finished world when it is over: for worlds whose footage did not say which of its episodes ended.

    python runs/add_ending.py worlds/mine data/more worlds/mine-that-ends

Only the ending learns, all else is copied; in a world that knows its ends, only that which tells when it is lost. The
footage is to be of the same game, made by minigenie collect. Called again it goes on with what it began.
"""

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro

from minigenie.checkpoint import save_tensors
from minigenie.config import to_dict
from minigenie.console import training
from minigenie.data.dataset import Dataset
from minigenie.encode import encode_tokens
from minigenie.ending import EndingConfig
from minigenie.errors import UserError
from minigenie.files import to_json, write_atomic
from minigenie.finish import export_world, files_beside, halved
from minigenie.pipeline import ending_batch, ending_fit, ending_moments
from minigenie.remote import write_checksums
from minigenie.runtime import pick_device
from minigenie.train import fit
from minigenie.world import World, locate, read_config, world_config

TRACES = ("encoded", "checkpoints", "samples")


def main(
    world: tyro.conf.Positional[str],
    dataset: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    dim: int = 64,
    lost: int = 48,
    steps: int = ending_fit().steps,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Write a copy of `world` that knows its ends to `out`.

    Args:
        world: Folder made by train, or the address of a world.
        dataset: Footage that says which of its episodes ended.
        out: A new folder.
        dim: Channels of the network that tells ends.
        lost: Channels of the network that tells when the world is lost; 0 for none.
        steps: To learn for.
        seed: Of its weights and its batches.
        device: Where; CUDA, MPS or CPU by default, the first there is.
    """
    footage, where = Dataset.open(dataset), pick_device(device)
    if not footage.knows_ends:
        raise UserError(f"{footage.name} does not say that any of its episodes ended; collect some with this version")
    known = world_config(locate(world)).ending
    if known.lost or (known.dim and not lost):
        raise UserError(f"{world} knows when it is over already; there is nothing to add")
    if not (out / "checkpoints").exists():
        export_world(world, out)
        (out / "checkpoints").mkdir()
    base = World.load(out, device)
    if base.frame_shape[:2] != footage.frame_size:
        raise UserError(f"{footage.name} has frames of {footage.frame_size}, the world makes {base.frame_shape[:2]}")
    config = world_config(out)
    config = replace(config, ending=EndingConfig(dim=config.ending.dim or dim, lost=lost))
    schedule = replace(ending_fit(), steps=steps)
    torch.manual_seed(seed)
    model = config.make_ending()
    model.init_from_codebook(base.tokenizer.quantizer.codebook.cpu())
    if base.ending is not None and model.lost is not None:
        model.load_state_dict(base.ending.state_dict(), strict=False)
        model.requires_grad_(False).lost.requires_grad_(True)
    with training() as watcher:
        tokens = encode_tokens(
            footage, base.tokenizer, config.context_frames, out / "encoded/tokens.npy", partial(watcher.work, "tokens")
        )
        batch = partial(ending_batch, ending_moments(footage), tokens, seed, schedule)
        fit(model, batch, schedule, out, stage="ending", seed=seed, device=where, watch=watcher.progress)
    save_tensors(out / "ending.safetensors", halved(model.state_dict()))
    write_atomic(out / "config.json", to_json(read_config(out) | {"ending": to_dict(config.ending)}))
    for trace in TRACES:
        shutil.rmtree(out / trace, ignore_errors=True)
    write_checksums(out, [out / f"{name}.safetensors" for name in config.models] + files_beside(out))
    print(f"{out} knows when it is over, from {sum(each.ended for each in footage.episodes):,} ends")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
