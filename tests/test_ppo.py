"""The example that learns in a world: its arithmetic against the definitions, and that it learns what pays."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

EXAMPLE = Path(__file__).parent.parent / "examples" / "ppo.py"


@pytest.fixture(scope="module")
def ppo():
    return runpy.run_path(str(EXAMPLE))


def test_advantages_are_the_sums_that_define_them(ppo):
    """Of every step the discounted sum of what each later one did better than its value said."""
    t, n = 6, 3
    rewards, values, last = torch.rand(t, n), torch.rand(t, n), torch.rand(n)
    following = [*values[1:], last]
    better = [rewards[i] + ppo["GAMMA"] * following[i] - values[i] for i in range(t)]
    shrink = ppo["GAMMA"] * ppo["LAMBDA"]
    wanted = torch.stack([sum(shrink ** (j - i) * better[j] for j in range(i, t)) for i in range(t)])
    assert_close(ppo["advantages"](rewards, values, last), wanted)


def test_the_picture_tells_the_way(ppo):
    ground = torch.randint(0, 255, (1, 40, 60, 3), dtype=torch.uint8).repeat_interleave(2, 1).repeat_interleave(2, 2)
    before, after = ground[:, :64, 20:84], ground[:, :64, 22:86]  # the view moved to the right, the picture to the left
    assert_close(ppo["way_to_the_right"](before, after), torch.tensor([2 / ppo["WAY"]]), atol=0.05, rtol=0)
    assert ppo["way_to_the_right"](after, before) < 0


class Bandit:
    """A world of noise in which action 1 pays."""

    num_envs, world = 8, SimpleNamespace(device=torch.device("cpu"))

    def reset(self, options):
        assert options["prompt"].shape == (8, 2, 64, 64, 3)

    def step(self, actions):
        frames = torch.randint(0, 255, (8, 64, 64, 3), dtype=torch.uint8)
        return frames, (actions == 1).float(), None, None, {}


def test_it_learns_what_pays(ppo, toy):
    torch.manual_seed(0)
    policy, frames = ppo["Policy"](4), torch.randint(0, 255, (16, 2, 64, 64, 3), dtype=torch.uint8)
    policy(frames)
    curve: list[float] = []

    def watch(done, total):
        if len(curve) >= 12:
            raise KeyboardInterrupt

    class Counted(Bandit):
        def reset(self, options):
            super().reset(options)
            curve.append(0.0)

    with pytest.raises(KeyboardInterrupt):
        ppo["learn"](policy, Counted(), toy, 1e9, 0, watch)
    chances = policy(frames)[0].softmax(-1).mean(0)
    assert chances.argmax() == 1
    assert chances[1] > 0.5


def test_a_world_of_another_game_is_refused_in_one_line(trained, toy, tmp_path):
    command = [sys.executable, EXAMPLE, trained, "--footage", toy.folder, "--out", tmp_path / "ppo"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.strip() == f"error: {trained} is a world of toy; take one of coinrun"
    assert not (tmp_path / "ppo").exists()
