"""Minutes of play as a person plays, in pictures: does the level stay itself?

    python runs/walk.py coinrun walk.png

From some start pictures side by side it walks on, leaps gaps, goes back and stands, over and over: a row of pictures
for each, one every ten seconds of play. Where the world says that it is over, it begins anew from the start picture, as
the page does.
"""

import sys
from pathlib import Path

import torch
import tyro

from minigenie.console import working
from minigenie.errors import UserError
from minigenie.nn.patches import to_float
from minigenie.pictures import grid, save_picture
from minigenie.play.actions import load_actions, resolve_actions
from minigenie.world import World, load_compiled, locate, read_prompt, world_config

WALK = "right*60,jump-right*18,right*30,noop*15,jump-right*22,noop*20,left*45,jump-left*18,noop*45,jump*15,noop*22"
EVERY = 10  # seconds


def main(
    world: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    seconds: int = 300,
    starts: int = 4,
    seed: int = 0,
    walk: str = WALK,
    compiled: bool = False,
    endless: bool = False,
) -> None:
    """Walk through `world` and leave pictures in `out`.

    Args:
        world: Folder made by train, or the address of a world.
        out: The PNG to write.
        seconds: Of play, at the world's own rate.
        starts: How many of its start pictures.
        seed: Of the sampling.
        walk: What is pressed for how many frames, as in minigenie rollout.
        compiled: Compile the world first, which takes about a minute.
        endless: Go on where it is over.
    """
    folder = locate(world)
    paths = sorted((folder / "prompts").glob("*.png"))[: max(0, starts)]
    if not paths:
        raise UserError(f"{starts} of the start pictures in {folder / 'prompts'} are none to walk from")
    pressed = resolve_actions(walk, load_actions(folder, world_config(folder).num_actions))
    made = load_compiled(folder, None, "auto", len(paths)) if compiled else World.load(folder, precision="auto")
    starts_at = torch.cat([read_prompt(path, made.frame_shape) for path in paths])
    made.reset(starts_at, seed)
    shown, frames, every = [starts_at[:, 0]], round(seconds * made.fps), round(EVERY * made.fps)
    lived, lives = torch.zeros(len(paths), dtype=torch.long), torch.ones(len(paths), dtype=torch.long)
    with working("walk", "frames") as watch:
        for number in range(1, frames + 1):
            over = made.told().over.cpu() & (not endless)
            picture = made.step(torch.tensor(pressed)[lived % len(pressed)])
            lived += 1
            if over.any():
                made.reset_some(over.nonzero()[:, 0].tolist(), starts_at[over])
                picture[over], lived[over], lives[over] = starts_at[over, 0], 0, lives[over] + 1
            if number % every == 0:
                shown.append(picture)
                watch(number, frames)
    save_picture(grid([torch.stack(row) for row in zip(*shown, strict=True)]), out, zoom=1)
    codes = [made.tokenizer.encode(to_float(each)[:, None].to(made.device)) for each in shown]
    print(f"{out}: {len(paths)} walks of {seconds} s. How often each began, different codes in each picture of it:")
    for began, row in zip(lives.tolist(), zip(*codes, strict=True), strict=True):
        print(f"{began:3}:", *(len(tokens.unique()) for tokens in row))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
