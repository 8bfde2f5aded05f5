"""The control test, on worlds whose score is known: the game itself, and a picture that stands still."""

import json

import numpy as np
import pytest
import torch
from test_eval import Rolling, footage
from torch.testing import assert_close

from minigenie.data.collect import (
    PROCGEN_ACTIONS,
    PROCGEN_GAMES,
    action_plan,
    available,
    collect,
)
from minigenie.data.collect import procgen_game as start_game
from minigenie.data.controls import FOLLOWED, procgen_action, procgen_controls
from minigenie.data.dataset import Dataset
from minigenie.eval import control
from minigenie.eval.control import agree, compare, find_rest, judge, measure_control, same_jump, settings_of
from minigenie.eval.controllability import shifts
from minigenie.eval.measure import evaluate
from minigenie.eval.report import headline, summary, write_report
from minigenie.inverse import controls_seen, fit_pairs
from minigenie.settings import FIRST_TEST_LEVEL, CollectSettings

needs_games = pytest.mark.skipif(bool(available()), reason=str(available()))
STATES = 8
CONTROLS = procgen_controls("coinrun")


@pytest.fixture(scope="module")
def coinrun(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("data") / "coinrun"
    easy = {"mode": "easy", "backgrounds": False, "themes": False, "levels": 500, "policy": "explore"}
    return collect(CollectSettings(game="coinrun", frames=2_000, split="test", num_envs=4, **easy), folder)


@pytest.fixture(scope="module")
def start(coinrun):
    settings = settings_of(coinrun)
    return find_rest(start_game(settings, STATES, 0), settings, STATES, seed=0)


def of_game(coinrun, game) -> Dataset:
    """As if that were the footage."""
    settings = coinrun.manifest["settings"] | {"game": game}
    return Dataset(coinrun.folder, coinrun.manifest | {"source": game, "settings": settings})


def the_game(dataset, start, order):
    """A world that is the game: from a state's frame it plays the control order[action]."""
    names = procgen_controls(settings_of(dataset).game).names
    states = {frames[-1].numpy().tobytes(): state for frames, state in zip(start.frames, start.states, strict=True)}
    recorded = np.array([procgen_action(names[key]) for key in order])

    def rollout(frames, actions):
        game = start_game(settings_of(dataset), len(frames), 0)
        game.restore([states[clip[-1].numpy().tobytes()] for clip in frames])
        seen = []
        for column in actions.T:
            game.step(recorded[column.numpy()])
            seen.append(torch.from_numpy(game.frames().copy()))
        return torch.stack(seen, dim=1)

    return rollout


def frozen(frames, actions):
    return frames[:, -1:].expand(-1, actions.shape[1], -1, -1, -1)


# The camera's motion.


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-7, 1), (0, 5)])
def test_the_search_finds_a_shift(shift):
    tiles = torch.randint(0, 255, (50, 50, 3), dtype=torch.uint8)
    ground = tiles.repeat_interleave(2, 0).repeat_interleave(2, 1)
    clip = torch.stack([ground[18 - i * shift[0] :, 18 - i * shift[1] :][:64, :64] for i in (0, 1)])
    assert_close(shifts(clip[None])[0, 0], torch.tensor(shift).float(), atol=0.1, rtol=0)


def test_the_search_sees_between_pixels():
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40), scale_factor=10, mode="bicubic").clamp(0, 1)
    frames = [ground[:, :, 40 + 6 * i : 360 + 6 * i, 40 - 9 * i : 360 - 9 * i] for i in range(4)]
    clip = torch.cat([torch.nn.functional.avg_pool2d(frame, 5) for frame in frames]).permute(0, 2, 3, 1)
    seen = shifts((clip * 255).byte()[None])[0]
    assert_close(seen, torch.tensor([[-1.2, 1.8]] * 3), atol=0.15, rtol=0)


def test_a_player_in_the_centre_does_not_hold_the_picture():
    ground = torch.randint(100, 130, (80, 80, 3), dtype=torch.uint8)
    clip = torch.stack([ground[8 + 2 * i : 72 + 2 * i, 8:72] for i in range(3)])
    clip[:, 28:36, 29:35] = 255
    assert_close(shifts(clip[None])[0], torch.tensor([[-2.0, 0.0]] * 2), atol=0.1, rtol=0)


@needs_games
def test_the_cameras_that_follow_are_known():
    """Every direction held for a while, less what the picture does by itself: backgrounds show when it moves."""
    found = {}
    for game in PROCGEN_GAMES:
        settings = CollectSettings(game=game, split="test", mode="easy", themes=False, levels=500)
        played, ways = start_game(settings, 12, 0), []
        for actions in action_plan(game, "explore", 30, 12, np.random.default_rng(0)):
            played.step(actions)
        start = control.Start([played.save(i) for i in range(12)], torch.empty(0), [])
        for action in (4, 1, 7, 5, 3):
            seen, whole = control.play(played, start, [action] * 8)
            ways.append(torch.where(torch.from_numpy(whole)[:, None], shifts(seen).sum(1), torch.nan))
        beside = (torch.stack(ways[1:]) - ways[0]).norm(dim=-1)
        found[game] = float(beside.nanmedian(dim=1).values.nan_to_num(0).max())
    assert {game for game, moves in found.items() if moves > 2} == set(FOLLOWED), str(found)


@pytest.mark.parametrize("game", FOLLOWED)
def test_a_control_is_played_by_the_action_of_its_name(game):
    controls = procgen_controls(game)
    assert [controls.of_recorded[procgen_action(name)] for name in controls.names] == list(range(len(controls)))
    if "jump" in controls.names:
        played = {name: procgen_action(name) for name in PROCGEN_ACTIONS}
        assert played == {"noop": 4, "left": 1, "right": 7, "jump": 5, "jump-left": 2, "jump-right": 8}


# Rest.


@needs_games
def test_resting_states_rest_on_held_out_levels(coinrun, start):
    assert len(start.states) == STATES
    assert min(start.levels) >= FIRST_TEST_LEVEL
    assert len(set(start.levels)) == STATES
    game = start_game(settings_of(coinrun), STATES, 1)
    game.restore(start.states)
    for _ in range(8):
        game.step(np.full(STATES, 4))
        np.testing.assert_array_equal(game.frames(), start.frames[:, -1])


@needs_games
def test_rest_follows_from_the_seed(coinrun, start):
    settings = settings_of(coinrun)
    again, other = (find_rest(start_game(settings, STATES, 0), settings, STATES, seed) for seed in (0, 1))
    assert again.states == start.states
    assert other.states != start.states


@needs_games
def test_training_footage_is_tested_on_held_out_levels(coinrun):
    manifest = coinrun.manifest | {"settings": coinrun.manifest["settings"] | {"split": "train", "start_level": 0}}
    assert settings_of(Dataset(coinrun.folder, manifest)).first_level == FIRST_TEST_LEVEL


# Scores.


def test_paths_agree_on_the_side_and_the_height():
    t = np.arange(1, 25)[None, :, None]
    right, slower, left, up = (t * step for step in ([0.5, 0], [0.2, 0], [-0.5, 0], [0, 0.5]))
    assert agree(right, slower)  # both go right
    assert not agree(right, left)
    assert not agree(right, 0 * right)
    assert not agree(up, 0 * up)
    assert agree(0.1 * right, 0 * right)  # neither goes anywhere
    back = up.copy()
    back[:, 12:] = 0
    assert not agree(up, back)  # one comes down


def test_the_action_of_a_key_is_chosen_on_the_other_half():
    """Each half has an action of its own that is right: what is chosen on one is wrong on the other."""
    game, world = np.zeros((8, 1, 24, 2)), np.zeros((8, 2, 24, 2))
    for i in range(8):
        world[i, i % 2, :, 1] = 20
    fit = compare(game, world, np.ones((8, 1), bool))
    assert judge(fit).mean() == 0
    assert fit.agrees[:, 0].mean() == 0.5
    assert fit.best_action(0, np.arange(8) % 2 == 0) == 1


def test_a_state_in_which_the_episode_ends_does_not_count():
    game, world = np.zeros((4, 2, 24, 2)), np.zeros((4, 1, 24, 2))
    counts = np.array([[True, True], [True, False], [False, True], [True, False]])
    scores = judge(compare(game, world, counts))
    assert np.isnan(scores[:, 0]).tolist() == [False, False, True, False]
    assert np.isnan(scores[:, 1]).all()  # nothing is left in the other half to choose on


def test_what_goes_up_comes_down_where_the_game_does():
    jump = np.zeros((4, 32, 2))
    jump[:, :20, 1] = 9 - abs(np.arange(20) - 9)
    floating, still = np.maximum.accumulate(jump, axis=1), np.zeros_like(jump)
    everywhere = np.ones(4, bool)
    assert same_jump(jump, jump, everywhere).mean() == 1
    assert same_jump(jump, floating, everywhere).mean() == same_jump(jump, still, everywhere).mean() == 0
    assert np.isnan(same_jump(still, jump, everywhere)).all()
    assert np.isnan(same_jump(jump, jump, ~everywhere)).all()


@needs_games
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 5, 0, 2, 4, 1, 0]])
def test_the_game_itself_has_full_control(coinrun, start, order):
    world = the_game(coinrun, start, order)
    report, scene = measure_control(world, len(order), coinrun, STATES, 0)
    assert report["share"] == report["gravity"]["mean"] == 1
    assert report["share_ci95"] == [1, 1]
    assert report["still"] < 0.6
    assert list(report["keys"]) == list(CONTROLS.names) == scene.names
    assert [order[key["action"]] for key in report["keys"].values()] == list(range(6))
    assert torch.equal(scene.game, scene.world)
    json.dumps(report, allow_nan=False)


@needs_games
def test_where_a_held_jump_is_like_no_key_there_is_no_gravity(coinrun):
    """ninja jumps when the key is let go."""
    report, _ = measure_control(frozen, 2, of_game(coinrun, "ninja"), STATES, 0)
    assert report["keys"]["jump"]["still"] == 1
    assert "gravity" not in report


@needs_games
def test_where_the_camera_stands_the_picture_tells_the_key(coinrun):
    """The game itself scores 1; keys that are swapped are found; one key for all is right where it is that key."""
    bigfish = of_game(coinrun, "bigfish")
    settings, names = settings_of(bigfish), procgen_controls("bigfish").names
    start = control.find_play(start_game(settings, STATES, 0), settings, STATES, 0)
    order = list(range(len(names)))[::-1]
    report, scene = measure_control(the_game(bigfish, start, order), len(order), bigfish, STATES, 0)
    assert report["share"] == 1
    assert report["seen"] == "picture"
    assert [order[key["action"]] for key in report["keys"].values()] == list(range(len(names)))
    assert torch.equal(scene.game, scene.world)
    assert report["still"] < 0.4
    report, _ = measure_control(the_game(bigfish, start, [names.index("left")]), 1, bigfish, STATES, 0)
    assert report["keys"]["left"]["share"] == 1
    assert report["share"] < 0.4


@needs_games
def test_a_world_that_stands_still_scores_as_standing_still(coinrun):
    report, _ = measure_control(frozen, 3, coinrun, STATES, 0)
    assert report["share"] == report["still"] < 1
    assert report["keys"]["noop"]["still"] == 1
    assert report["gravity"]["mean"] == 0
    assert all(key["share"] == key["still"] for key in report["keys"].values())


# In the report.


@needs_games
def test_eval_measures_and_shows_it(coinrun, tmp_path):
    report, scenes = evaluate(Rolling(), coinrun, clips=4)
    assert report["control"]["states"] == 4
    assert 0 <= report["control"]["probe_imagined"] <= 1
    write_report(tmp_path, report, scenes)
    assert (tmp_path / "pictures" / "control.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert "held-out levels of coinrun" in page
    assert headline(report)["control test"] in page
    assert "control test, jump-left" in headline(report)
    assert any(line.startswith("control test  ") for line in summary(report))
    assert report["actions"]["controls"] == list(CONTROLS.names)
    assert set(report["actions"]["information"]) == {"all", "sideways", "jump"}
    assert "Gravity: in" in page
    del report["control"]["gravity"], report["control"]["seen"]  # as of ninja, and of reports before
    write_report(tmp_path, report, scenes)
    assert "Gravity: in" not in (tmp_path / "report.html").read_text()


@needs_games
@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("generator", "minigenie toy 1", "the footage is of no Procgen game"),
        ("generator", "procgen-mirror 0.1", "the footage is of procgen-mirror 0.1, here is procgen-"),
    ],
)
def test_footage_that_does_not_allow_it(coinrun, key, value, why):
    other = Dataset(coinrun.folder, coinrun.manifest | {key: value})
    assert control.why_impossible(other).startswith(why)


def test_without_a_game_a_note_says_so(tmp_path):
    report, scenes = evaluate(Rolling(), footage(tmp_path / "data"), clips=4)
    assert "control" not in report
    assert scenes.control is None
    assert "not measured: the control test (the footage is of no Procgen game)" in report["notes"]


@needs_games
def test_without_the_game_installed(coinrun, monkeypatch):
    monkeypatch.setattr(control, "available", lambda: "Procgen is not installed")
    assert control.why_impossible(coinrun) == "Procgen is not installed"


# What a pair of frames tells.


def test_inverse_dynamics_see_a_key_that_shows_and_not_one_that_does_not():
    rng = np.random.default_rng(0)
    keys = rng.integers(2, size=400)
    pairs = rng.integers(0, 60, (400, 1, 32, 32, 3), np.uint8).repeat(2, 1)
    pairs[keys == 1, 1, 12:18, 12:18] += 150
    pairs = torch.from_numpy(pairs)
    model = fit_pairs(pairs[:300], keys[:300], ("up", "down"), steps=60, seed=0)
    assert (controls_seen(model, pairs[300:]) == keys[300:]).mean() > 0.9
    pairs[:, 1] = pairs[:, 0]
    blind = fit_pairs(pairs[:300], keys[:300], ("up", "down"), steps=60, seed=0)
    assert (controls_seen(blind, pairs[300:]) == keys[300:]).mean() < 0.65
