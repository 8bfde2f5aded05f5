"""The toy world is repeatable, scrolls, and shows a different picture for each action."""

import numpy as np

from minigenie.data.toy import ToyWorld

NOOP, LEFT, RIGHT, JUMP, JUMP_LEFT, JUMP_RIGHT = range(6)


def play(actions: list[int], **options) -> np.ndarray:
    """Frames [t h w c] of one game, the first one before any action."""
    world = ToyWorld(1, **options)
    frames = [world.frames()[0]]
    for action in actions:
        world.step(np.array([action]))
        frames.append(world.frames()[0])
    return np.stack(frames)


def test_same_seed_same_frames():
    actions = np.random.default_rng(0).integers(6, size=60).tolist()
    np.testing.assert_array_equal(play(actions, seed=3), play(actions, seed=3))
    assert (play(actions, seed=3) != play(actions, seed=4)).any()


def test_every_action_moves_the_picture_in_its_own_way():
    away = [RIGHT] * 2 + [JUMP_RIGHT] * 30  # from the wall on the left
    after = [play([*away, action, action], seed=1)[-1] for action in range(6)]
    assert len({frame.tobytes() for frame in after}) >= 3  # in the air, jumping does nothing
    start = [play([action], seed=1)[-1] for action in range(6)]
    assert len({frame.tobytes() for frame in start}) == 6


def test_the_camera_scrolls_with_the_agent():
    before, after = play([RIGHT], seed=0)
    row = slice(40, 64)  # below the agent
    np.testing.assert_array_equal(after[row, :-2], before[row, 2:])


def test_gravity_brings_a_jump_back_to_the_ground():
    frames = play([JUMP] + [NOOP] * 20, seed=0)
    assert (frames[5] != frames[0]).any()
    np.testing.assert_array_equal(frames[-1], frames[0])


def test_episodes_end_and_the_next_level_begins():
    world = ToyWorld(8, seed=0, num_levels=5, start_level=100)
    rng = np.random.default_rng(0)
    ends, wins = 0, 0
    for _ in range(401):
        levels = world.level_seed.copy()
        world.step(rng.choice([RIGHT, JUMP_RIGHT], size=8))
        assert (world.level_seed[~world.first] == levels[~world.first]).all()
        ends += world.first.sum()
        wins += world.won.sum()
        assert not world.won[~world.first].any()
    assert ends >= 8
    assert 0 < wins <= ends
    assert world.level_seed.min() >= 100
    assert world.level_seed.max() < 105


def test_a_level_looks_the_same_each_time():
    worlds = [ToyWorld(4, seed=seed, num_levels=1, start_level=9) for seed in (0, 1)]
    assert (worlds[0].frames() == worlds[1].frames()[0]).all()
