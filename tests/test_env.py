"""The world behind Gymnasium's interface, alone and as a batch."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from PIL import Image

from minigenie.env import WorldVectorEnv  # which registers minigenie/World-v0
from minigenie.maskgit import SamplingConfig
from minigenie.runtime import can_compile
from minigenie.world import World

ROOT = Path(__file__).parent.parent
ID = "minigenie/World-v0"


@pytest.fixture(scope="module")
def env(trained):
    return gymnasium.make(ID, world=trained, device="cpu", render_mode="rgb_array", max_episode_steps=3)


@pytest.fixture(scope="module")
def envs(trained):
    return gymnasium.make_vec(ID, 3, world=trained, device="cpu", reward=brightness, max_episode_steps=2)


def brightness(frame, next_frame):
    return next_frame.mean() - frame.mean()


def play(env, actions, **reset):
    """The first frame and every one after it, and the rewards."""
    first, _ = env.reset(**reset)
    steps = [env.step(action) for action in actions]
    return np.stack([first, *(step[0] for step in steps)]), np.array([step[1] for step in steps])


def test_gymnasium_finds_nothing_to_complain_about(trained):
    check_env(gymnasium.make(ID, world=trained, device="cpu").unwrapped)


@pytest.mark.parametrize("imports", ["import gymnasium, minigenie.env", "import minigenie.env, gymnasium"])
def test_it_is_registered_in_either_order(imports):
    code = f"{imports}; assert gymnasium.spec({ID!r}).max_episode_steps == 500"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_its_id_may_name_the_module_instead():
    code = (
        f"import gymnasium; assert {ID!r} not in gymnasium.registry\n"
        f"try: gymnasium.make('minigenie.env:{ID}', world='no/such/world')\n"
        f"except FileNotFoundError as error: assert 'is not a world' in str(error)\n"
        f"assert gymnasium.spec({ID!r}).max_episode_steps == 500"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_the_same_seed_and_actions_give_the_same_frames(env):
    one, again, other = (play(env, [1, 5, 2], seed=seed)[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_the_seed_chooses_among_the_worlds_own_prompts(env, trained):
    prompts = [np.array(Image.open(path)) for path in sorted((trained / "prompts").glob("*.png"))]
    seen = [env.reset(seed=seed)[0] for seed in range(12)]
    assert all(any((frame == prompt).all() for prompt in prompts) for frame in seen)
    assert len({frame.tobytes() for frame in seen}) > 1


def test_a_prompt_is_what_the_agent_first_sees(env, toy, tmp_path):
    video = np.array(toy.episode_frames(0)[:4])
    Image.fromarray(video[0]).save(tmp_path / "start.png")
    for prompt, frame in ((tmp_path / "start.png", 0), (str(tmp_path / "start.png"), 0), (video[2], 2), (video, 3)):
        np.testing.assert_array_equal(env.reset(options={"prompt": prompt})[0], video[frame])


def test_it_ends_by_truncation_alone(env):
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_what_it_renders_is_what_the_agent_sees(env):
    frame, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frame)
    frame = env.step(3)[0]
    np.testing.assert_array_equal(env.render(), frame)
    frame[:] = 0  # the agent's own copy
    assert env.render().any()


def test_the_reward_is_of_the_frames_before_and_after(trained):
    env = gymnasium.make(ID, world=trained, device="cpu", reward=brightness)
    frames, rewards = play(env, [0, 3, 3], seed=1)
    np.testing.assert_allclose(rewards, np.diff(frames.mean(axis=(1, 2, 3))))
    assert play(gymnasium.make(ID, world=trained, device="cpu"), [0], seed=1)[1] == 0.0


def test_a_batch_is_seeded_and_rewarded_alike(envs):
    frames, rewards = play(envs, [[0, 1, 2], [7, 0, 7]], seed=4)
    assert frames.shape == (3, 3, 64, 64, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_allclose(rewards, np.diff(frames.mean(axis=(2, 3, 4)), axis=0))
    np.testing.assert_array_equal(frames, play(envs, [[0, 1, 2], [7, 0, 7]], seed=4)[0])


def test_members_begin_where_they_are_told(envs, toy):
    video = np.array(toy.episode_frames(0)[:6])
    np.testing.assert_array_equal(envs.reset(options={"prompt": video[1]})[0], video[[1, 1, 1]])
    np.testing.assert_array_equal(envs.reset(options={"prompt": video.reshape(3, 2, 64, 64, 3)})[0], video[1::2])


def test_members_end_together_and_begin_anew(envs, toy):
    prompt = np.array(toy.episode_frames(0)[5])
    envs.reset(seed=0, options={"prompt": prompt})
    ended = [envs.step([0, 1, 2])[3].tolist() for _ in range(2)]
    assert ended == [[False] * 3, [True] * 3]
    frames, rewards, terminated, truncated, _ = envs.step([0, 1, 2])
    np.testing.assert_array_equal(frames, np.stack([prompt] * 3))
    assert not rewards.any() and not terminated.any() and not truncated.any()  # noqa: PT018
    assert [envs.step([0, 1, 2])[3].all() for _ in range(2)] == [False, True]


def test_a_member_begins_anew_while_the_others_go_on(envs, toy):
    prompt, again = (np.array(toy.episode_frames(0)[i]) for i in (5, 20))
    envs.reset(seed=0, options={"prompt": prompt})
    before = envs.step([0, 1, 2])[0]
    frames, _ = envs.reset(options={"prompt": again, "reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(frames, np.stack([before[0], again, before[2]]))
    assert envs.step([0, 1, 2])[3].tolist() == [True, False, True]
    frames, rewards, _, truncated, _ = envs.step([0, 1, 2])
    np.testing.assert_array_equal(frames[[0, 2]], np.stack([again, again]))
    assert truncated.tolist() == [False, True, False]
    assert rewards[[0, 2]].tolist() == [0, 0]
    with pytest.raises(ValueError, match="give 3 booleans"):
        envs.reset(options={"reset_mask": np.array([True])})


def test_a_batch_of_environments_made_one_by_one(trained):
    envs = gymnasium.make_vec(ID, 2, vectorization_mode="sync", world=trained, device="cpu")
    assert envs.reset(seed=0)[0].shape == (2, 64, 64, 3)
    assert envs.step(np.array([0, 7]))[0].shape == (2, 64, 64, 3)


@pytest.mark.parametrize("action", [8, -1, 0.5, "left", None, [1]])
def test_an_action_that_there_is_not(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"is out of range; use an integer 0 to 7"):
        env.step(action)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (np.zeros((64, 64, 3)), r"the prompt is float64 \[64, 64, 3\]; give .* uint8 \[64 64 3\] or \[t 64 64 3\]$"),
        (np.zeros((32, 64, 3), np.uint8), r"the prompt is uint8 \[32, 64, 3\]"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"the prompt is uint8 \[0, 64, 64, 3\]"),
        (np.zeros((2, 1, 64, 64, 3), np.uint8), r"the prompt is uint8 \[2, 1, 64, 64, 3\]"),
        (7, r"the prompt is int64 \[\]"),
        ("nowhere.png", "prompt nowhere.png does not exist"),
        (__file__, "cannot be read as a picture"),
    ],
)
def test_a_prompt_of_the_wrong_kind(env, prompt, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        env.reset(options={"prompt": prompt})
    assert "\n" not in str(caught.value)


def test_other_refusals(trained, envs, tmp_path):
    for arguments, message in (
        ({"world": tmp_path / "none"}, "is not a world, it has no config.json"),
        ({"world": trained, "num_envs": 0}, "num_envs is 0"),
        ({"world": trained, "num_envs": 2.5}, "num_envs is 2.5; it must be an integer of at least 1"),
        ({"world": trained, "num_envs": 2, "part": 0}, "part is 0; it must be an integer of at least 1"),
        ({"world": trained, "output": "jax"}, "output is 'jax'; use 'numpy' or 'torch'"),
        ({"world": trained, "precision": "int8"}, "precision is 'int8'; use 'auto', 'float32' or 'bfloat16'"),
        ({"world": trained, "autoreset_mode": "never"}, "autoreset_mode is 'never'; use 'NextStep', 'SameStep' or 'Di"),
        ({"world": trained, "max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"world": trained, "render_mode": "ascii"}, "render_mode is 'ascii'; use 'rgb_array' or None"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            gymnasium.make_vec(ID, **arguments)
    envs.reset()
    with pytest.raises(ValueError, match="out of range; use 0 to 7"):
        envs.step(np.array([0, 8, 0]))
    with pytest.raises(ValueError, match="3 integers, one per world"):
        envs.step(np.array([0]))
    with pytest.raises(ValueError, match="unknown reset options .'promt'.; there are 'prompt'"):
        envs.reset(options={"promt": "start.png"})


def test_a_world_without_prompts_still_plays_from_a_given_one(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "world", ignore=shutil.ignore_patterns("prompts"))
    env = gymnasium.make(ID, world=folder, device="cpu").unwrapped
    with pytest.raises(ValueError, match=r"has no pictures in prompts/; give one: reset\(options="):
        env.reset()
    env.reset(options={"prompt": np.zeros((64, 64, 3), np.uint8)})
    assert env.observation_space.contains(env.step(0)[0])


def test_the_page_runs(trained, tmp_path, monkeypatch):
    """Every python block of docs/env.md, one after the other."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "worlds/toy")
    Image.new("RGB", (100, 80)).save("start.png")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "env.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 4
    assert names["frames"].shape == (16, 64, 64, 3)


def test_the_example_plans(trained, tmp_path):
    out = tmp_path / "best.gif"
    command = [sys.executable, ROOT / "examples" / "plan.py", trained, trained / "prompts" / "00.png", "--out", out]
    sizes = ["--horizon", "2", "--plans", "4", "--rounds", "2"]
    ended = subprocess.run([*command, *sizes], capture_output=True, text=True)
    assert re.search(r"round 1: mean -?\d\.\d\d px, best", ended.stdout), ended.stderr
    assert out.stat().st_size


@pytest.mark.parametrize("pixels", [-4, -1, 0, 3])
def test_the_examples_reward_sees_the_view_move(pixels):
    moved_right = runpy.run_path(str(ROOT / "examples" / "plan.py"))["moved_right"]
    wide = np.random.default_rng(0).integers(0, 256, (64, 72, 3), np.uint8)
    assert moved_right(wide[:, 4:68], wide[:, 4 + pixels : 68 + pixels]) == pixels


def made(trained, mode, **options):
    return WorldVectorEnv(3, trained, device="cpu", max_episode_steps=4, autoreset_mode=mode, **options)


def test_members_that_begin_anew_at_once_show_their_last_frame(trained, toy):
    """The same frames as those of members that begin anew a step later."""
    start = np.stack([toy.episode_frames(0)[:1]] * 3)
    late, soon = (made(trained, mode, reward=lambda *frames: 1.0) for mode in ("NextStep", "SameStep"))
    for envs in (late, soon):
        envs.reset(seed=3, options={"prompt": start})
    for _ in range(4):
        wanted, _, _, over, _ = late.step(np.array([0, 1, 2]))
        frames, rewards, _, truncated, infos = soon.step(np.array([0, 1, 2]))
        np.testing.assert_array_equal(over, truncated)
        assert rewards.tolist() == [1, 1, 1]
        if not truncated.any():
            np.testing.assert_array_equal(frames, wanted)
            assert "final_obs" not in infos
    np.testing.assert_array_equal(np.stack(infos["final_obs"]), wanted)
    assert infos["_final_obs"].all()
    np.testing.assert_array_equal(frames, start[:, 0])
    assert not soon.step(np.array([0, 1, 2]))[3].any()


def test_members_that_are_begun_anew_by_hand(trained):
    envs = made(trained, AutoresetMode.DISABLED)
    envs.reset(seed=0)
    for _ in range(4):
        *_, truncated, _ = envs.step(np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"members \[0, 1, 2\] are at their end; begin them anew with reset"):
        envs.step(np.array([0, 1, 2]))
    envs.reset(options={"reset_mask": truncated})
    assert not envs.step(np.array([0, 1, 2]))[3].any()


def test_how_sure_the_world_was_is_in_the_infos(env, envs):
    env.reset(seed=0)
    assert 0 < env.step(0)[4]["certainty"] <= 1
    envs.reset(seed=0)
    assert envs.step(np.zeros(envs.num_envs, int))[4]["certainty"].shape == (envs.num_envs,)


# Tensors, and parts.


@pytest.mark.parametrize("mode", AutoresetMode)
def test_tensors_are_the_same_frames_rewards_and_flags(trained, mode):
    """Beside numpy, whose reward sees one member at a time; with an end, after which all begin anew."""
    calls = []

    def brightness_of_all(frames, next_frames):
        calls.append(len(frames))
        return next_frames.double().mean((1, 2, 3)) - frames.double().mean((1, 2, 3))

    numpy = made(trained, mode, reward=brightness)
    torched = made(trained, mode, reward=brightness_of_all, output="torch")
    np.testing.assert_array_equal(torched.reset(seed=5)[0].numpy(), numpy.reset(seed=5)[0])
    for step in range(4 if mode == AutoresetMode.DISABLED else 7):
        frames, rewards, over, truncated, infos = numpy.step(np.array([0, 1, step % 8]))
        got = torched.step(torch.tensor([0, 1, step % 8]))
        assert [each.dtype for each in got[:4]] == [torch.uint8, torch.float32, torch.bool, torch.bool]
        wanted = (frames, rewards, over, truncated, infos["certainty"])
        for mine, its in zip((*got[:4], got[4]["certainty"]), wanted, strict=True):
            np.testing.assert_allclose(mine.numpy(), its, rtol=1e-6, atol=1e-5)
        assert got[4].keys() == infos.keys()
        if "final_obs" in infos:
            np.testing.assert_array_equal(got[4]["final_obs"].numpy(), np.stack(infos["final_obs"]))
    assert truncated.all() == (mode == AutoresetMode.DISABLED)
    assert set(calls) == {3}


def test_tensors_are_the_agents_own(trained):
    envs = made(trained, AutoresetMode.NEXT_STEP, output="torch", render_mode="rgb_array")
    envs.reset(seed=0)[0].zero_()
    assert envs.render()[0].any()
    envs.step(torch.zeros(3, dtype=torch.long))[0].zero_()
    assert envs.render()[0].any()


def test_one_world_as_tensors(trained):
    options = {"device": "cpu", "output": "torch", "reward": lambda before, after: after.float().mean((1, 2, 3))}
    env = gymnasium.make(ID, world=trained, disable_env_checker=True, **options).unwrapped
    numpy = gymnasium.make(ID, world=trained, device="cpu").unwrapped
    np.testing.assert_array_equal(env.reset(seed=1)[0].numpy(), numpy.reset(seed=1)[0])
    frame, reward, terminated, truncated, info = env.step(torch.tensor(3))
    np.testing.assert_array_equal(frame.numpy(), numpy.step(3)[0])
    assert float(reward) == pytest.approx(float(frame.float().mean()))
    assert not terminated
    assert not truncated
    assert 0 < info["certainty"] <= 1
    with pytest.raises(ValueError, match=r"action 8 is out of range|action np.int64\(8\) is out of range"):
        env.step(torch.tensor(8))


@pytest.mark.parametrize(
    ("reward", "said"), [(lambda *_: 0.5, "0.5"), (lambda _, after: after.float().mean(), r"a tensor \[\]")]
)
def test_a_reward_that_is_not_one_for_each_member(trained, reward, said):
    envs = made(trained, AutoresetMode.NEXT_STEP, output="torch", reward=reward)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=f"the reward of 3 members is {said}; with output='torch' give a tensor"):
        envs.step(np.zeros(3, int))


def test_parts_are_worlds_of_their_own_seeds(trained, toy):
    """Beside the naive way: a world for each part. Members that begin anew in one part leave the others alone."""
    starts = np.stack([toy.episode_frames(i)[:2] for i in range(5)])
    envs = WorldVectorEnv(5, trained, device="cpu", part=2, max_episode_steps=-1)
    envs.reset(seed=3, options={"prompt": starts})
    seeds = np.random.default_rng(3).integers(2**31, size=3).tolist()
    naive = [World.load(trained, "cpu") for _ in seeds]
    members = [slice(0, 2), slice(2, 4), slice(4, 5)]
    for world, own, seed in zip(naive, members, seeds, strict=True):
        world.reset(starts[own], seed)
    for step in range(4):
        actions = np.array([0, 1, 2, 3, step])
        if step == 2:
            envs.reset(options={"prompt": starts[0], "reset_mask": np.array([False, False, False, True, True])})
            naive[1].reset_some([1], starts[:1])
            naive[2].reset_some([0], starts[:1])
        wanted = [world.step(actions[own]).numpy() for world, own in zip(naive, members, strict=True)]
        np.testing.assert_array_equal(envs.step(actions)[0], np.concatenate(wanted))


def test_without_chance_parts_are_as_all_at_once(trained, toy, monkeypatch):
    monkeypatch.setattr(World, "load", without_chance(World.load))
    starts = np.stack([toy.episode_frames(i)[:2] for i in range(5)])
    actions = np.random.default_rng(0).integers(8, size=(4, 5))
    played = [
        play(WorldVectorEnv(5, trained, device="cpu", part=part), actions, seed=0, options={"prompt": starts})[0]
        for part in (1, 2, 5)
    ]
    np.testing.assert_array_equal(played[0], played[2])
    np.testing.assert_array_equal(played[1], played[2])


def without_chance(load):
    def loaded(*arguments):
        return load(*arguments).fresh_copy(SamplingConfig(steps=3, temperature=0.0))

    return loaded


def test_a_lower_precision_and_a_compiler_that_fails(trained, broken_compiler, capsys):
    envs = made(trained, AutoresetMode.NEXT_STEP, compiled=True, precision="bfloat16")
    assert capsys.readouterr().err == broken_compiler
    assert envs.world.dtype == torch.bfloat16
    envs.reset(seed=0)
    frames, _, _, _, infos = envs.step(np.zeros(3, int))
    assert frames.shape == (3, 64, 64, 3)
    assert ((infos["certainty"] > 0) & (infos["certainty"] <= 1)).all()


COMPILED = """
import sys
import numpy as np
from minigenie.env import WorldVectorEnv
frames = []
for compiled in (False, True):
    envs = WorldVectorEnv(3, sys.argv[1], device="cpu", part=2, compiled=compiled)
    envs.reset(seed=2)
    frames.append(np.stack([envs.step(actions)[0] for actions in ([0, 1, 2], [3, 4, 5])]).astype(int))
difference = np.abs(frames[0] - frames[1])
assert (difference <= 1).mean() > 0.99, difference.mean()
"""
SPAWNED = """
import sys
import gymnasium, numpy as np
import minigenie.env
if __name__ == "__main__":
    options = {"world": sys.argv[1], "device": "cpu", "vectorization_mode": "async"}
    envs = gymnasium.make_vec("minigenie/World-v0", 2, vector_kwargs={"context": "spawn"}, **options)
    envs.reset(seed=0)
    assert envs.step(np.array([0, 7]))[0].shape == (2, 64, 64, 3)
    envs.close()
"""


def test_compiled_members_imagine_the_same(trained, tmp_path):
    """In a process of its own: the type checks of these tests are no code to compile."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED, str(trained)], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0 if can_compile(torch.device("cpu")) else "install g++" in ended.stderr, ended.stderr


def test_environments_in_processes_of_their_own_are_spawned(trained, tmp_path):
    (tmp_path / "main.py").write_text(SPAWNED)  # a file, as each process imports it anew
    command = [sys.executable, "-W", "error", tmp_path / "main.py", trained]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
