"""A policy that learns in a world, and then plays the game: PPO (arXiv:1707.06347) in CoinRun.

    python examples/ppo.py worlds/keys --footage data/coinrun

The world stands in for the game: many copies of it are played side by side, and what a frame is worth is told from the
picture alone, by how far it has moved to the left since the one before. The game is not touched until the policy is
done; then it plays held-out levels, its actions being keys by their names, beside players who do not look.

Dimensions:  n worlds   t steps   f frames seen at once   h w c a frame
"""

import json
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor, nn

from minigenie.console import table, working
from minigenie.data.collect import FPS, PROCGEN_ACTIONS, ProcgenGame, action_plan, check
from minigenie.data.dataset import Dataset
from minigenie.env import WorldVectorEnv
from minigenie.errors import UserError
from minigenie.eval.levels import (
    STEP_LIMIT,
    Act,
    coinrun_look,
    measure_play,
    named_keys,
    play,
    scripted_player,
    side_by_side,
)
from minigenie.nn.motion import motion
from minigenie.nn.patches import to_float
from minigenie.pictures import save_video
from minigenie.settings import CollectSettings, Device
from minigenie.world import locate

WORLDS, STEPS, SEEN = 64, 32, 2
EPOCHS, BATCHES, CLIP = 3, 4, 0.2
GAMMA, LAMBDA, ENTROPY, LR = 0.97, 0.95, 0.01, 5e-4
WAY = 4.0  # pixels a frame to the right that are worth 1


class Policy(nn.Module):
    """uint8 [n f h w c] -> logits of the actions [n a], and what is still to come [n]."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3 * SEEN, 32, 7, stride=4, padding=3), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(256), nn.ReLU(),
        )  # fmt: skip
        self.action, self.value = nn.Linear(256, actions), nn.Linear(256, 1)
        nn.init.normal_(self.action.weight, std=0.01)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(rearrange(to_float(frames) - 0.5, "n f h w c -> n (f c) h w"))
        return self.action(seen), self.value(seen)[:, 0]


def way_to_the_right(before: Tensor, after: Tensor) -> Tensor:
    """How far the player went, as the picture tells: uint8 [n h w c] twice -> [n], from -1 to 1."""
    return (-motion(to_float(before), to_float(after))[:, 1] / WAY).clamp(-1, 1)


def advantages(rewards: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438) of steps that nothing ended: [t n]; last [n] is the value of
    what came after them."""
    found, ahead = torch.zeros_like(rewards), torch.zeros_like(last)
    following = torch.cat((values[1:], last[None]))
    for t in range(len(rewards) - 1, -1, -1):
        ahead = rewards[t] + GAMMA * following[t] - values[t] + GAMMA * LAMBDA * ahead
        found[t] = ahead
    return found


def learn(
    policy: Policy, env: WorldVectorEnv, footage: Dataset, seconds: float, seed: int,
    watch: Callable[[float, float], None],
) -> list[float]:  # fmt: skip
    """Train in the world for so long; -> the mean reward of a step in each update."""
    rng, curve, began = np.random.default_rng(seed), [], time.monotonic()
    starts = footage.windows(SEEN)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LR)
    while (share := (time.monotonic() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = LR * (1 - share)
        prompts = torch.from_numpy(footage.clips(rng.choice(starts, env.num_envs), SEEN)).to(env.world.device)
        env.reset(options={"prompt": prompts})
        seen, steps = prompts, []
        with torch.no_grad():
            for _ in range(STEPS):
                logits, values = policy(seen)
                actions = torch.distributions.Categorical(logits=logits).sample()
                chance = logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
                frames, rewards, *_ = env.step(actions)
                steps.append((seen, actions, chance, values, rewards))
                seen = torch.cat((seen[:, 1:], frames[:, None]), dim=1)
            last = policy(seen)[1]
        inputs, actions, chances, values, rewards = (torch.stack(each) for each in zip(*steps, strict=True))
        gains = advantages(rewards, values, last)
        batch = [each.flatten(0, 1) for each in (inputs, actions, chances, gains, gains + values)]
        for _ in range(EPOCHS):
            for some in torch.from_numpy(rng.permutation(len(batch[0]))).chunk(BATCHES):
                loss = ppo_loss(policy, *(each[some.to(each.device)] for each in batch))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimizer.step()
        curve.append(float(rewards.mean()))
        watch(min(seconds, time.monotonic() - began), seconds)
    return curve


def ppo_loss(policy: Policy, seen: Tensor, actions: Tensor, chances: Tensor, gains: Tensor, returns: Tensor) -> Tensor:
    logits, values = policy(seen)
    logs = logits.log_softmax(-1)
    ratio = (logs.gather(-1, actions[:, None])[:, 0] - chances).exp()
    gains = (gains - gains.mean()) / (gains.std() + 1e-6)
    gain = torch.minimum(ratio * gains, ratio.clamp(1 - CLIP, 1 + CLIP) * gains).mean()
    entropy = -(logs.exp() * logs).sum(-1).mean()
    return 0.5 * F.mse_loss(values, returns) - gain - ENTROPY * entropy


def in_the_game(policy: Policy, keys: np.ndarray, device: torch.device, seed: int) -> Callable[[ProcgenGame], Act]:
    """keys: the game's, of each of the world's actions."""

    def player(game: ProcgenGame) -> Act:
        generator, seen = torch.Generator().manual_seed(seed), [game.frames().copy()] * SEEN

        @torch.no_grad()
        def act(playing: np.ndarray) -> np.ndarray:
            seen[:] = [*seen[1:], game.frames().copy()]
            chances = policy(torch.from_numpy(np.stack(seen, axis=1)).to(device))[0].softmax(-1).cpu()
            return keys[torch.multinomial(chances, 1, generator=generator)[:, 0].numpy()]

        return act

    return player


def main(
    world: tyro.conf.Positional[str],
    footage: Path,
    minutes: float = 10.0,
    levels: int = 200,
    seed: int = 0,
    out: Path = Path("ppo"),
    device: Device = None,
) -> None:
    """Learn to run to the right in a world of CoinRun, then play the game.

    Args:
        world: Folder made by train with --actions true or labels, or the address of one.
        footage: Dataset whose frames the world begins with.
        minutes: Of training.
        levels: Held-out levels that everyone plays.
        out: Folder for ppo.json, curve.png and ppo.gif.
    """
    if minutes <= 0 or levels < 1:
        raise UserError(f"minutes is {minutes} and levels {levels}; both must be above 0")
    folder = locate(world)
    settings = CollectSettings(game="coinrun", split="test", seed=seed, **coinrun_look(folder))
    check(settings)
    dataset = Dataset.open(footage)
    env = WorldVectorEnv(WORLDS, folder, way_to_the_right, None, device, -1, output="torch", ends=False)
    if (named := named_keys(env.world)) is None:
        raise UserError(f"the actions of {world} have no names; train one with --actions true or labels")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    env.np_random = np.random.default_rng(seed)
    policy = Policy(env.world.num_actions).to(env.world.device)
    policy(torch.zeros(1, SEEN, *env.world.frame_shape, dtype=torch.uint8, device=env.world.device))
    with working("learn in the world", "seconds") as progress:
        curve = learn(policy, env, dataset, 60 * minutes, seed, progress)
    rng = np.random.default_rng(seed)
    held = {name: repeat(np.full(levels, PROCGEN_ACTIONS[name])) for name in ("right", "jump-right")}
    players = {
        "learnt in the world": in_the_game(policy, named.argmax(1), env.world.device, seed),
        "random": scripted_player(iter(action_plan("coinrun", "random", STEP_LIMIT, levels, rng))),
        **{f"{name} held": scripted_player(plan) for name, plan in held.items()},
    }
    games = {}
    for name, player in players.items():
        with working(f"play: {name}", "levels") as progress:
            games[name] = play(settings, levels, player, progress)
    measured = {name: measure_play(game) for name, game in games.items()}
    report = {"steps": len(curve) * WORLDS * STEPS, "reward": curve, "players": measured}
    (out / "ppo.json").write_text(json.dumps(report, indent=1))
    save_video(torch.from_numpy(side_by_side(games)), out / "ppo.gif", float(FPS))
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(np.arange(1, len(curve) + 1) * WORLDS * STEPS, curve)
    axes.set(xlabel="steps in the world", ylabel="reward a step")
    figure.savefig(out / "curve.png", dpi=120)
    table(["player", "levels solved", "95 % interval", "mean steps"], (
        [name, f"{of['solved']:.1%}", "{:.1%} to {:.1%}".format(*of["ci95"]), f"{of['mean_steps']:.0f}"]
        for name, of in measured.items()
    ))  # fmt: skip
    print(f"pictures      {out / 'ppo.gif'}, {out / 'curve.png'}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
