"""From latent actions to real ones: the imitation experiment of Genie (arXiv:2402.15391, appendix E), in CoinRun.

    python runs/imitate.py worlds/mine

An expert plays, and nobody writes down its keys. The world's latent action model labels the video, a policy learns to
predict these labels from the screen, and a few labelled transitions say which key each latent action stands for. Beside
it: a policy that was told every key, one that was told those few and no more, and players who do not look.

Dimensions:  b batch   f frames seen at once   l levels   n of them still played   t steps   h w c a frame
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor, nn

from minigenie.console import table as show_table
from minigenie.console import working
from minigenie.data.collect import (
    FPS,
    PROCGEN_ACTIONS,
    Explorer,
    ProcgenGame,
    action_plan,
    check,
    collect,
    expert_for,
)
from minigenie.data.dataset import Dataset, sample_batch
from minigenie.encode import CLIP, encode_actions, encode_tokens
from minigenie.eval.controllability import confusion, mutual_information
from minigenie.eval.levels import (
    NUM_KEYS,
    STEP_LIMIT,
    Act,
    Player,
    coinrun_look,
    measure_play,
    named_keys,
    play,
    scripted_player,
    side_by_side,
)
from minigenie.files import write_atomic
from minigenie.nn.model import Model
from minigenie.nn.patches import to_float
from minigenie.optim import OptimConfig
from minigenie.pictures import save_video
from minigenie.settings import CollectSettings, Device
from minigenie.train import Execution, FitConfig, fit
from minigenie.world import World, locate, output_folder

SEEN = 2  # frames: where things are, and how they move
BATCH = 64

ToKeys = Callable[[np.ndarray], np.ndarray]  # what a policy chose, int [n] -> keys, int [n]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the imitation experiment.

    Args:
        expert_frames: Frames of an expert's play to learn from.
        labels: Transitions of which the true action is told, to map latent actions to keys.
        levels: Held-out levels that everyone plays.
        steps: Training steps of each policy.
        seed: Of everything random.
    """

    expert_frames: int = 20_000
    labels: int = 200
    levels: int = 200
    steps: int = 1_500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("expert_frames", "labels", "levels", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, should be at least 1")


class Policy(Model):
    """What would the expert do here?"""

    def __init__(self, num_choices: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3 * SEEN, 32, 7, stride=4, padding=3), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 8 * 8, 256), nn.ReLU(), nn.Linear(256, num_choices),
        )  # fmt: skip

    def logits(self, frames: Tensor) -> Tensor:
        """uint8 [b f 64 64 3] -> [b num_choices]."""
        return self.layers(rearrange(to_float(frames) - 0.5, "b f h w c -> b (f c) h w"))

    def forward(self, batch: dict[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(batch["frames"])
        accuracy = (logits.argmax(-1) == batch["choices"]).float().mean()
        return F.cross_entropy(logits, batch["choices"]), {"accuracy": accuracy}


def imitate(world_folder: Path, out: Path, sizes: Sizes, device: str | None = None) -> dict[str, Any]:
    """The experiment, into the folder `out`: what it returns is also in imitation.json; imitation.gif shows it.

    The same call goes on from what is saved. Raises ValueError if the world is not of CoinRun or the expert cannot play
    on this machine, FileExistsError if `out` holds another experiment or other things.
    """
    settings = CollectSettings(
        game="coinrun", frames=sizes.expert_frames, split="test", policy="expert", seed=sizes.seed,
        **coinrun_look(world_folder),
    )  # fmt: skip
    check(settings)
    world = World.load(world_folder, device)
    about = prepare_folder(out, world_folder, sizes)
    with working("the expert plays", "frames") as progress:
        video = collect(replace(settings, split="train"), out / "expert", progress=progress)
    starts = video.windows(SEEN + 1)
    latents = infer(world, video, out / "encoded")[starts + SEEN - 1].astype(np.int64)
    if sizes.labels >= len(starts):
        raise ValueError(f"labels is {sizes.labels}, the expert's video has {len(starts)} transitions; take fewer")
    true_keys = video.clip_actions(starts, SEEN + 1)
    assert true_keys is not None
    keys = true_keys[:, -1]
    told, untold = np.split(np.random.default_rng(sizes.seed).permutation(len(starts)), [sizes.labels])
    named = named_keys(world)
    table = count_keys(latents[told], keys[told], world.num_actions) if named is None else named
    clone = partial(train_policy, video, sizes, out, world.device)
    oracle = clone("oracle", starts, keys, NUM_KEYS)
    latent = clone("latent", starts, latents, world.num_actions)
    few = clone("few", starts[told], keys[told], NUM_KEYS)
    rng = np.random.default_rng(sizes.seed)
    players: dict[str, Player] = {
        "expert": lambda game: expert_for(settings, game, rng).act,
        "true actions": policy_player(oracle, lambda choices: choices, sizes.seed),
        "latent, most frequent key": policy_player(latent, lambda choices: table.argmax(1)[choices], sizes.seed),
        "latent, key drawn": policy_player(latent, lambda choices: draw_keys(table, choices, rng), sizes.seed),
        f"{len(told)} true actions": policy_player(few, lambda choices: choices, sizes.seed),
        "jump-right held": scripted_player(repeat(np.full(sizes.levels, PROCGEN_ACTIONS["jump-right"]))),
        "explore": lambda game: explorer_player(game, sizes.levels, rng),
        "random": scripted_player(iter(action_plan("coinrun", "random", STEP_LIMIT, sizes.levels, rng))),
    }
    games = {}
    for name, player in players.items():
        with working(f"play: {name}", "levels") as progress:
            games[name] = play(settings, sizes.levels, player, progress)
    report = {
        "settings": about,
        "generator": video.manifest["generator"],
        "expert_video": {"frames": video.num_frames, "episodes": len(video.episodes), "transitions": len(starts)},
        "map": measure_map(table, latents, keys, told, untold) | ({} if named is None else {"labels": 0}),
        "players": {name: measure_play(played) for name, played in games.items()},
    }
    write_atomic(out / "imitation.json", json.dumps(report, indent=1).encode())
    save_video(torch.from_numpy(side_by_side(games)), out / "imitation.gif", float(FPS))
    return report


def prepare_folder(out: Path, world_folder: Path, sizes: Sizes) -> dict[str, Any]:
    """What the experiment is of, in settings.json in a new or empty folder; the one there must be of this very one."""
    with open(world_folder / "lam.safetensors", "rb") as file:
        about = {**asdict(sizes), "lam_sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    path, data = out / "settings.json", json.dumps(about, indent=1).encode()
    if path.exists():
        if path.read_bytes() != data:
            raise FileExistsError(f"{out} holds an experiment with other settings; choose another --out or delete it")
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} already holds other things; choose a new or an empty folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return about


def infer(world: World, video: Dataset, folder: Path) -> np.ndarray:
    """The latent action that leads on from each frame of `video`: uint8 [frames]."""
    tokens = np.zeros((video.num_frames, 0), np.uint8)
    clip_frames = world.config.context_frames + 1 if world.lam.looks_back else CLIP
    with working("infer latent actions", "frames") as progress:
        if world.config.sees_tokens:
            tokens = encode_tokens(video, world.tokenizer, world.config.context_frames, folder / "tokens.npy")
        path = folder / "actions.npy"
        return encode_actions(video, world.lam, tokens, clip_frames, path, progress, likeliest=True)


# From latent actions to keys.


def count_keys(latents: np.ndarray, keys: np.ndarray, num_latents: int) -> np.ndarray:
    """How often each key went with each latent action: int [num_latents NUM_KEYS]. A latent action that never occurs
    is given the counts of all together."""
    counts = confusion(latents, keys, num_latents, NUM_KEYS)
    return np.where(counts.any(1, keepdims=True), counts, counts.sum(0))


def draw_keys(table: np.ndarray, choices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A key for each latent action, as often as it went with it: int [n]."""
    reached = (table / table.sum(1, keepdims=True)).cumsum(1)[choices]
    return (rng.random((len(choices), 1)) > reached).sum(1).clip(max=NUM_KEYS - 1)


def measure_map(
    table: np.ndarray, latents: np.ndarray, keys: np.ndarray, told: np.ndarray, untold: np.ndarray
) -> dict[str, Any]:
    """How well the map, made of the transitions `told`, does on those `untold`."""
    commonest = np.bincount(keys[told]).argmax()
    return {
        "labels": len(told),
        "keys": table.argmax(1).tolist(),
        "accuracy": float((table.argmax(1)[latents[untold]] == keys[untold]).mean()),
        "accuracy_of_commonest_key": float((keys[untold] == commonest).mean()),
        "mutual_information": mutual_information(latents, keys),
        "counts": confusion(latents, keys, len(table), NUM_KEYS).tolist(),
    }


# Policies and players.


def train_policy(
    video: Dataset, sizes: Sizes, out: Path, device: torch.device,
    name: str, windows: np.ndarray, choices: np.ndarray, num_choices: int,
) -> Policy:  # fmt: skip
    """Behavioural cloning by cross-entropy: `choices` [windows] in 0..num_choices-1, made at the last of the frames
    seen from each of `windows`."""
    torch.manual_seed(sizes.seed)
    policy = Policy(num_choices)

    def batch(step: int, clips: range) -> dict[str, Tensor]:
        mine = sample_batch(len(windows), seed=sizes.seed, step=step, batch_size=BATCH)[clips.start : clips.stop]
        arrays = {"frames": video.clips(windows[mine], SEEN), "choices": choices[mine]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    optim = OptimConfig(lr=1e-3, betas=(0.9, 0.95), warmup=50, decay="linear", final_lr=0.05)
    config = FitConfig(steps=sizes.steps, batch_size=BATCH, optim=optim, execution=Execution(save_every=500, keep=1))
    with working(f"train {name}", "steps") as progress:
        watch = lambda step: progress(step.step, sizes.steps)  # noqa: E731
        fit(policy, batch, config, out, stage=name, seed=sizes.seed, device=device, watch=watch)
    return policy


def policy_player(policy: Policy, to_keys: ToKeys, seed: int) -> Player:
    """Draws from what the policy predicts: who always takes the likeliest may stand before a wall for ever."""

    def player(game: ProcgenGame) -> Act:
        device = next(policy.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        seen = [game.frames().copy()] * SEEN

        @torch.no_grad()
        def act(playing: np.ndarray) -> np.ndarray:
            seen[:] = [*seen[1:], game.frames().copy()]
            frames = torch.from_numpy(np.stack([frames[playing] for frames in seen], axis=1))
            chances = policy.logits(frames.to(device)).softmax(-1).cpu()
            keys = np.full(len(playing), PROCGEN_ACTIONS["noop"])
            keys[playing] = to_keys(torch.multinomial(chances, 1, generator=generator)[:, 0].numpy())
            return keys

        return act

    return player


def explorer_player(game: ProcgenGame, levels: int, rng: np.random.Generator) -> Act:
    player = Explorer("coinrun", levels, rng)
    return lambda playing: player.act(game.frames())


def show(report: dict[str, Any]) -> None:
    """Print what came of it."""
    video, known = report["expert_video"], report["map"]
    print(f"expert video  {video['frames']:,} frames, {video['episodes']} levels")
    print(
        f"map           from {known['labels']} labels: right in {known['accuracy']:.1%} of the other transitions; "
        f"always the commonest key {known['accuracy_of_commonest_key']:.1%}"
    )
    print(f"              mutual information of latent action and key {known['mutual_information']:.3f}")
    show_table(["player", "levels solved", "95 % interval", "mean return", "mean steps"], (
        [name, f"{of['solved']:.1%}", "{:.1%} to {:.1%}".format(*of["ci95"]), f"{of['mean_return']:.1f}",
         f"{of['mean_steps']:.0f}"]
        for name, of in report["players"].items()
    ))  # fmt: skip


def main(
    world: tyro.conf.Positional[str],
    sizes: tyro.conf.OmitArgPrefixes[Sizes],
    out: Path | None = None,
    device: Device = None,
) -> None:
    """Learn to play CoinRun from video without keys, through the world's latent actions, and see how far it gets.

    Args:
        world: Folder made by train, of CoinRun footage, or the address of one.
        out: Folder for imitation.json and imitation.gif; WORLD/imitation by default. What is there is gone on from.
    """
    played = locate(world)
    folder = output_folder(played, out, "imitation")
    show(imitate(played, folder, sizes, device))
    print(f"report        {folder / 'imitation.json'}")
    print(f"picture       {folder / 'imitation.gif'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
