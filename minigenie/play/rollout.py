"""All of `minigenie rollout`: a clip that a world imagines from one picture."""

import torch

from minigenie.console import working
from minigenie.errors import UserError
from minigenie.pictures import save_video
from minigenie.play.actions import load_actions, resolve_actions
from minigenie.settings import RolloutSettings
from minigenie.world import World, locate, read_prompt, world_config


def run(settings: RolloutSettings) -> None:
    """UserError or OSError, one line, if that cannot be; then no file is written."""
    if settings.out.suffix not in (".mp4", ".gif"):
        raise UserError(f"cannot write {settings.out}; choose a name that ends in .mp4 or .gif")
    folder = locate(settings.world)
    actions = resolve_actions(settings.actions, load_actions(folder, world_config(folder).num_actions))
    if not actions:
        raise UserError("there are no actions to take; give some, as in --actions right*8,jump or 0,0,3,1")
    world = World.load(folder, settings.device)
    prompts = [settings.prompt] if settings.prompt else sorted((folder / "prompts").glob("*.png"))
    if not prompts:
        raise FileNotFoundError(f"{folder} has no pictures in prompts/; give one with --prompt")
    start = read_prompt(prompts[0], world.frame_shape)
    world.reset(start, settings.seed)
    frames, last = [start[0, 0]], 0
    with working("rollout", "frames") as progress:
        for done, action in enumerate(actions, 1):
            frames.append(world.step([action])[0])
            last = last or done * int(world.told().over)
            progress(done, len(actions))
    over = f", over at frame {last} by what the world knows" if last else ""
    print(f"{len(frames)} frames in {save_video(torch.stack(frames), settings.out, world.fps)}{over}")
