"""The map from latent actions to keys, the expert, and the experiment around them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from conftest import small_recipe
from imitate import Sizes, count_keys, draw_keys, imitate, main, measure_map
from PIL import Image

from minigenie.data import collect as module
from minigenie.data.collect import PROCGEN_ACTIONS, available, collect, expert_for, procgen_game
from minigenie.data.dataset import Dataset
from minigenie.data.expert import tiles_from_left
from minigenie.eval.levels import named_keys, play, wilson
from minigenie.pipeline import train_world
from minigenie.settings import CollectSettings
from minigenie.world import World

needs_procgen = pytest.mark.skipif(bool(available()), reason=str(available()))
LOOK = {"mode": "easy", "backgrounds": False, "themes": False}
HELD_OUT = CollectSettings(game="coinrun", split="test", policy="expert", **LOOK)
SMALL = Sizes(expert_frames=150, labels=20, levels=3, steps=2)


@pytest.fixture(scope="session")
def coinrun_world(tmp_path_factory):
    """A world of CoinRun, trained for a step or two."""
    folder = tmp_path_factory.mktemp("coinrun")
    data = collect(CollectSettings(game="coinrun", frames=600, policy="explore", num_envs=4, **LOOK), folder / "data")
    train_world(data, small_recipe(steps=2), folder / "world", device=torch.device("cpu"))
    return folder / "world"


# The map.


def named_world(actions, controls):
    recipe = small_recipe()
    config = replace(recipe, actions=actions, inverse=replace(recipe.inverse, controls=controls))
    return World(config, config.make_tokenizer(), config.make_lam(), config.make_dynamics(), "cpu")


def test_actions_that_are_named_after_keys_need_no_map():
    table = named_keys(named_world("labels", ("noop", "jump-right", "left")))
    assert table.argmax(1).tolist() == [4, 8, 1]
    assert (table.sum(1) == 1).all()
    assert named_keys(named_world("found", ("noop", "up-right"))) is None
    assert named_keys(named_world("latent", ())) is None


def test_latent_actions_that_are_keys_by_other_names_are_all_understood():
    rng = np.random.default_rng(0)
    keys = rng.choice([1, 4, 7, 8], size=2000)
    names = rng.permutation(15)
    told, untold = np.split(np.arange(2000), [200])
    measured = measure_map(count_keys(names[keys[told]], keys[told], 15), names[keys], keys, told, untold)
    assert measured["accuracy"] == 1.0
    assert measured["accuracy_of_commonest_key"] < 0.3
    assert measured["mutual_information"] == pytest.approx(1.0)


def test_latent_actions_that_mean_nothing_say_no_more_than_the_commonest_key():
    rng = np.random.default_rng(0)
    keys = rng.choice([7, 8], p=[0.7, 0.3], size=20_000)
    latents = rng.integers(4, size=len(keys))
    told, untold = np.split(np.arange(len(keys)), [2000])
    measured = measure_map(count_keys(latents[told], keys[told], 4), latents, keys, told, untold)
    assert measured["accuracy"] == measured["accuracy_of_commonest_key"] == pytest.approx(0.7, abs=0.01)


def test_a_latent_action_without_labels_takes_the_commonest_key():
    table = count_keys(np.array([0, 0, 1, 1, 1]), np.array([7, 7, 8, 8, 7]), 3)
    np.testing.assert_array_equal(table.argmax(1), [7, 8, 7])


def test_keys_are_drawn_as_often_as_they_were_told():
    table = count_keys(np.array([0] * 4 + [1] * 4), np.array([7, 7, 7, 8, 14, 14, 14, 14]), 2)
    drawn = draw_keys(table, np.repeat([0, 1], 10_000), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn[:10_000], minlength=15)[[7, 8]] / 10_000, [0.75, 0.25], atol=0.02)
    assert set(drawn[10_000:]) == {14}


def test_wilson_covers_the_true_share_and_stays_between_0_and_1():
    solved = np.random.default_rng(0).binomial(50, 0.9, size=2000)
    covered = [low < 0.9 < high for low, high in (wilson(int(n), 50) for n in solved)]
    assert 0.92 < np.mean(covered) < 0.98
    assert wilson(0, 10)[0] == pytest.approx(0)
    assert wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


# The game.


@needs_procgen
def test_the_expert_solves_what_luck_does_not():
    rng = np.random.default_rng(0)
    expert = play(HELD_OUT, 24, lambda game: expert_for(HELD_OUT, game, rng).act)
    lucky = play(HELD_OUT, 24, lambda game: lambda playing: rng.integers(15, size=24))
    np.testing.assert_array_equal(expert.video[0], lucky.video[0])  # on the same levels
    assert expert.solved.sum() >= 22
    assert lucky.solved.sum() <= 14
    assert (expert.steps < 200).sum() >= 22  # and hardly ever stands before a wall for ever


@needs_procgen
def test_a_saved_game_goes_on_as_it_would_have_and_says_where_the_agent_is():
    game, copy = procgen_game(HELD_OUT, 2, 0), procgen_game(HELD_OUT, 1, 5)
    for _ in range(3):
        game.step(np.full(2, PROCGEN_ACTIONS["right"]))
    before = game.save(1)
    copy.restore([before])
    for _ in range(5):
        game.step(np.full(2, PROCGEN_ACTIONS["right"]))
        copy.step(np.full(1, PROCGEN_ACTIONS["right"]))
        np.testing.assert_array_equal(copy.frames()[0], game.frames()[1])
    assert 1 < tiles_from_left(game.save(1)) - tiles_from_left(before) < 5 * 0.5


@needs_procgen
def test_who_stands_still_runs_out_of_time():
    played = play(HELD_OUT, 2, lambda game: lambda playing: np.full(2, PROCGEN_ACTIONS["noop"]))
    assert not played.solved.any()
    assert set(played.steps) == {1000}


@needs_procgen
def test_expert_footage_is_repeatable_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 40)
    wanted = CollectSettings(game="coinrun", frames=160, num_envs=2, policy="expert", **LOOK)
    alone, threaded = (collect(wanted, tmp_path / str(n), workers=n) for n in (1, 2))
    assert [shard["sha256"] for shard in alone.manifest["shards"]] == [
        shard["sha256"] for shard in threaded.manifest["shards"]
    ]
    actions = np.concatenate([alone.episode_actions(i) for i in range(len(alone.episodes))])
    assert set(actions) <= set(PROCGEN_ACTIONS.values())
    assert (actions == PROCGEN_ACTIONS["right"]).mean() > 0.4


# The experiment.


def command(*arguments):
    tyro.cli(main, args=arguments)


@needs_procgen
def test_the_experiment_from_a_world_to_a_table(coinrun_world, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--expert-frames", "150", "--labels", "20", "--levels", "3", "--steps", "2"]
    command(str(coinrun_world), "--out", str(out), *options)
    printed = capsys.readouterr().out
    report = json.loads((out / "imitation.json").read_text())
    assert len(report["players"]) == 8
    for name, of in report["players"].items():
        assert name in printed
        assert of["ci95"][0] <= of["solved"] <= of["ci95"][1]
        assert of["mean_return"] == pytest.approx(10 * of["solved"])
        assert of["levels"] == 3
    assert np.sum(report["map"]["counts"]) == report["expert_video"]["transitions"]
    assert report["map"]["labels"] == 20
    with Image.open(out / "imitation.gif") as picture:
        assert picture.n_frames > 10
    before = Dataset.open(out / "expert").manifest
    assert imitate(coinrun_world, out, SMALL) == report  # from what is saved
    assert imitate(coinrun_world, tmp_path / "again", SMALL) == report  # and from nothing
    assert Dataset.open(out / "expert").manifest == before
    with pytest.raises(FileExistsError, match="other settings"):
        imitate(coinrun_world, out, Sizes(expert_frames=150, labels=21, levels=3, steps=2))


def test_a_world_of_another_game(trained, tmp_path):
    script = Path(__file__).parent.parent / "runs" / "imitate.py"
    ended = subprocess.run([sys.executable, script, trained, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"error: {trained} is a world of toy; take one of coinrun"
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_beside_the_shipped_world():
    with pytest.raises(ValueError, match="give a folder with --out"):
        command("coinrun")


@needs_procgen
def test_a_folder_that_holds_something_else(coinrun_world, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds other things"):
        imitate(coinrun_world, tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_the_expert_plays_no_other_game(tmp_path):
    with pytest.raises(ValueError, match="the expert plays coinrun, not toy; take explore"):
        collect(CollectSettings(game="toy", policy="expert"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["expert_frames", "labels", "levels", "steps"])
def test_nothing_of_something_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, should be at least 1"):
        Sizes(**{name: 0})
