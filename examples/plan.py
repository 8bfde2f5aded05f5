"""Plan inside a learned world: the cross-entropy method, over sequences of latent actions.

    python examples/plan.py worlds/toy worlds/toy/prompts/03.png --out best.gif

The agent never meets the game. A batch of imagined episodes begins at one picture; the plans that did best make the
next round's plans more like themselves.
"""

from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro

import minigenie.env  # noqa: F401  # registers minigenie/World-v0
from minigenie.pictures import save_video

REACH = 4  # pixels that a view may move in a step


def moved_right(frame: np.ndarray, next_frame: np.ndarray) -> float:
    """Pixels that the view moved to the right: the shift of `frame` that explains `next_frame` best."""
    middle, width = next_frame[:, REACH:-REACH] / 255, frame.shape[1] - 2 * REACH
    errors = [np.abs(middle - frame[:, left : left + width] / 255).mean() for left in range(2 * REACH + 1)]
    return float(np.argmin(errors) - REACH)


def main(
    world: tyro.conf.Positional[Path],
    prompt: tyro.conf.Positional[Path],
    horizon: int = 12,
    plans: int = 16,
    rounds: int = 5,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Search for the actions that move the view to the right. Prints each round's mean and best return."""
    envs = gymnasium.make_vec("minigenie/World-v0", plans, world=world, reward=moved_right, ends=False)
    rng, num_actions = np.random.default_rng(seed), envs.single_action_space.n
    likely = np.full((horizon, num_actions), 1 / num_actions)  # of each action at each step
    for number in range(rounds):
        actions = (np.log(likely) + rng.gumbel(size=(plans, horizon, num_actions))).argmax(axis=-1)
        envs.reset(seed=seed, options={"prompt": prompt})
        frames, rewards = zip(*(envs.step(column)[:2] for column in actions.T), strict=True)
        returns = np.sum(rewards, axis=0)
        order = returns.argsort()[::-1]
        likely = 0.9 * np.eye(num_actions)[actions[order[: plans // 4]]].mean(axis=0) + 0.1 / num_actions
        print(f"round {number}: mean {returns.mean():.2f} px, best {returns.max():.0f} px {actions[order[0]].tolist()}")
    if out:
        save_video(torch.from_numpy(np.stack(frames)[:, order[0]]), out, fps=envs.metadata["render_fps"])


if __name__ == "__main__":
    tyro.cli(main)
