"""Teach a finished world when it is over: for worlds whose footage did not say which of its episodes ended, or that do
not know when they are lost.

    python runs/add_ending.py worlds/mine data/more worlds/mine-that-ends

Only that learns which the world does not know yet, all else is copied. The footage is to be of the same game. Ends are
in that of minigenie collect; other footage teaches only when the world is lost. Called again it goes on with what it
began.
"""

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import tyro

from minigenie.batches import ending_batch, ending_moments
from minigenie.checkpoint import save_tensors
from minigenie.config import to_dict
from minigenie.console import training
from minigenie.data.dataset import Dataset
from minigenie.encode import encode_tokens
from minigenie.ending import EndingConfig
from minigenie.errors import UserError
from minigenie.files import to_json, write_atomic
from minigenie.finish import export_world, files_beside, halved
from minigenie.pipeline import ending_fit
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
    """Write a copy of `world` that knows when it is over to `out`.

    Args:
        world: Folder made by train, or the address of a world.
        dataset: Footage, if possible such as says which of its episodes ended.
        out: A new folder.
        dim: Channels of the network that tells ends.
        lost: Channels of the network that tells when the world is lost; 0 for none.
        steps: To learn for.
        seed: Of its weights and its batches.
        device: Where; CUDA, MPS or CPU by default, the first there is.
    """
    footage, where = Dataset.open(dataset), pick_device(device)
    known = world_config(locate(world)).ending
    wanted = EndingConfig(dim=known.dim or dim * footage.knows_ends, lost=known.lost or lost)
    if wanted == known:
        raise UserError(f"{footage.name} can teach {world} nothing new about when it is over; leave it as it is")
    if not (out / "checkpoints").exists():
        export_world(world, out)
        (out / "checkpoints").mkdir()
    base = World.load(out, device)
    if base.frame_shape[:2] != footage.frame_size:
        raise UserError(f"{footage.name} has frames of {footage.frame_size}, the world makes {base.frame_shape[:2]}")
    config = replace(world_config(out), ending=wanted)
    schedule = replace(ending_fit(), steps=steps)
    torch.manual_seed(seed)
    model = config.make_ending()
    model.init_from_codebook(base.tokenizer.quantizer.codebook.cpu())
    before = base.ending.state_dict() if base.ending else {}
    model.load_state_dict(before, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in before)
    with training() as watcher:
        tokens = encode_tokens(
            footage, base.tokenizer, config.context_frames, out / "encoded/tokens.npy", partial(watcher.work, "tokens")
        )
        batch = partial(ending_batch, ending_moments(footage), tokens, seed, schedule)
        fit(model, batch, schedule, out, stage="ending", seed=seed, device=where, watch=watcher.progress)
    save_tensors(out / "ending.safetensors", halved(model.state_dict()))
    write_atomic(out / "config.json", to_json(read_config(out) | {"ending": to_dict(wanted)}))
    for trace in TRACES:
        shutil.rmtree(out / trace, ignore_errors=True)
    write_checksums(out, [out / f"{name}.safetensors" for name in config.models] + files_beside(out))
    ends = sum(each.ended for each in footage.episodes)
    print(f"{out} knows when it is over, from {footage.num_frames:,} frames and {ends:,} ends")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
