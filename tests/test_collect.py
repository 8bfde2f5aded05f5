"""Collecting is repeatable and resumable, and every frame is of the level that it says."""

import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from minigenie.data import collect as module
from minigenie.data.collect import GAMES, action_plan, available, collect
from minigenie.data.dataset import Dataset
from minigenie.settings import CollectSettings

GAMES_HERE = ["toy", pytest.param("coinrun", marks=pytest.mark.skipif(bool(available()), reason=str(available())))]


def small(game: str, **change) -> CollectSettings:
    settings = CollectSettings(game=game, frames=600, num_envs=2, levels=3, mode="easy", policy="explore")
    return replace(settings, **change)


def checksums(dataset: Dataset) -> list[str]:
    return [shard[key] for shard in dataset.manifest["shards"] for key in ("sha256", "actions_sha256")]


@pytest.fixture
def short_shards(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 100)


@pytest.mark.parametrize("game", GAMES_HERE)
def test_the_same_call_gives_the_same_frames(tmp_path, short_shards, game):
    runs = [collect(small(game), tmp_path / str(workers), workers=workers) for workers in (1, 3)]
    assert checksums(runs[0]) == checksums(runs[1])
    assert runs[0].num_frames in range(600, 604)
    assert len(runs[0].manifest["shards"]) == 3
    assert checksums(collect(small(game, seed=1), tmp_path / "seed")) != checksums(runs[0])


@pytest.mark.parametrize("game", GAMES_HERE)
def test_an_episode_shows_the_level_it_says(tmp_path, game):
    dataset = collect(small(game, start_level=40), tmp_path / "many")
    levels = {episode.level_seed for episode in dataset.episodes}
    assert levels <= {40, 41, 42}
    assert len(levels) > 1
    for i, episode in enumerate(dataset.episodes):
        alone = tmp_path / str(episode.level_seed)
        only = collect(small(game, levels=1, frames=2, start_level=episode.level_seed), alone)
        np.testing.assert_array_equal(dataset.episode_frames(i)[0], only.episode_frames(0)[0])


def test_splits_share_no_level(tmp_path):
    levels = [{e.level_seed for e in collect(small("toy", split=s), tmp_path / s).episodes} for s in ("train", "test")]
    assert max(levels[0]) < 3
    assert min(levels[1]) >= 1_000_000


def test_a_killed_collection_resumes(tmp_path, short_shards):
    whole = collect(small("toy"), tmp_path / "whole")

    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(small("toy"), tmp_path / "killed", workers=1, progress=kill)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        Dataset.open(tmp_path / "killed")
    seen = []
    resumed = collect(small("toy"), tmp_path / "killed", progress=lambda *counts: seen.append(counts))
    assert checksums(resumed) == checksums(whole)
    assert seen[-1] == (600, 600)
    assert collect(small("toy"), tmp_path / "killed").manifest == resumed.manifest  # nothing left to do


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_collection_says_so(tmp_path, how):
    sizes = ["--frames", "40_000", "--num-envs", "4"]
    command = [sys.executable, "-m", "minigenie", "collect", "toy", "--out", str(tmp_path / "stopped"), *sizes]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("stopped/*shard-*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; to go on with a demo, collect, ingest or train, run it again" in said
    assert "Traceback" not in said
    assert collect(CollectSettings(game="toy", frames=40_000, num_envs=4), tmp_path / "stopped").num_frames >= 40_000


def explored(game, steps, n=8, stands=lambda step: False):
    """Actions of an explorer who sees a new picture at every step, but where it stands: int [steps n]."""
    player, picture, plan = module.Explorer(game, n, np.random.default_rng(0)), 0, []
    for step in range(steps):
        picture += not stands(step)
        plan.append(player.act(np.full((n, 2, 2, 3), picture % 256, np.uint8)))
    return np.array(plan)


@pytest.mark.parametrize("game", ["coinrun", "toy"])
def test_explore_runs_right_and_still_does_everything(game):
    plan = explored(game, 4000)
    names = module.TOY_ACTIONS if game == "toy" else module.PROCGEN_ACTIONS
    share = {name: (plan == action).mean() for name, action in names.items()}
    assert min(share.values()) > 0.07
    left, right = (share[side] + share[f"jump-{side}"] for side in ("left", "right"))
    assert 0.2 < left < right < 0.6


def test_explore_holds_its_keys_and_turns_round():
    plan = explored("coinrun", 4000)
    changes = np.flatnonzero(np.diff(plan[:, 0]))
    assert 5 < np.diff(changes).mean() < 12  # the same key may be chosen twice
    sideways = np.select([np.isin(plan, (7, 8)), np.isin(plan, (1, 2))], [1, -1])
    position = sideways.cumsum(axis=0)
    furthest = np.maximum.accumulate(position, axis=0)
    assert ((furthest - position).max(axis=0) > 10).all()
    assert (position[-1] > 200).all()


def test_explore_does_not_push_against_a_wall():
    """Where the picture stands, a sideways key is soon let go; who presses none rests a while."""
    plan = explored("coinrun", 2000, stands=lambda step: True)[:, 0]
    ends = np.flatnonzero(np.diff(plan, append=-1))
    held = {int(plan[end]): [] for end in ends}
    for before, end in zip([-1, *ends[:-1]], ends, strict=True):
        held[int(plan[end])].append(end - before)
    assert np.mean(held[7] + held[1]) < 3 < np.mean(held[4])


def test_a_climber_goes_both_ways_alike():
    plan = explored("climber", 4000, n=16)
    right, left = np.isin(plan, (7, 8)).mean(), np.isin(plan, (1, 2)).mean()
    assert abs(right - left) < 0.05


def test_a_ninja_throws_every_star():
    plan = explored("ninja", 4000)
    assert all((plan == star).mean() > 0.005 for star in range(9, 13))
    assert not (explored("coinrun", 1000) > 8).any()


def test_random_is_uniform_over_all_actions():
    plan = action_plan("coinrun", "random", 3000, 16, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(plan.ravel(), minlength=15) / plan.size, 1 / 15, atol=0.005)


def test_actions_are_those_that_were_played(tmp_path):
    dataset = collect(small("toy", frames=60, levels=1), tmp_path)
    world = module.ToyWorld(1, num_levels=1)
    for frame, action in zip(dataset.episode_frames(0), dataset.episode_actions(0), strict=True):
        np.testing.assert_array_equal(world.frames()[0], frame)
        world.step(np.array([action]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"game": "pong"}, f"unknown game 'pong'; choose from {', '.join(GAMES)}"),
        ({"policy": "clever"}, "choose from random, explore"),
        ({"frames": 0}, "frames is 0, should be at least 1"),
        ({"levels": 2_000_000}, "levels should stay below 1,000,000"),
    ],
)
def test_impossible_settings_are_explained(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        collect(CollectSettings(**{"game": "toy", **wrong}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("python", "platform", "machine", "packages"),
    [
        ("3.11", "linux", "x86_64", ["procgen-mirror"]),
        ("3.12", "linux", "x86_64", ["procgen-mirror"]),
        ("3.13", "linux", "x86_64", ["procgen-gym"]),
        ("3.13", "linux", "aarch64", []),
        ("3.12", "darwin", "arm64", []),
        ("3.13", "win32", "AMD64", []),
    ],
)
def test_the_extra_installs_what_there_is_for_each_python(python, platform, machine, packages):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extra = [Requirement(line) for line in project["optional-dependencies"]["coinrun"]]
    here = {"python_version": python, "sys_platform": platform, "platform_machine": machine}
    assert [package.name for package in extra if package.marker.evaluate(here)] == packages


@pytest.mark.skipif(bool(available()), reason=str(available()))
def test_the_manifest_names_the_generator_of_this_python(tmp_path):
    dataset = collect(small("coinrun", frames=60), tmp_path / "out")
    assert dataset.manifest["generator"] == (
        "procgen-gym 0.1.1" if sys.version_info >= (3, 13) else "procgen-mirror 0.10.7"
    )


@pytest.mark.parametrize(
    ("platform", "machine", "message"),
    [
        ("linux", "x86_64", "Procgen is not installed: run `pip install '.[coinrun]'`, or play the game toy"),
        ("linux", "aarch64", "Procgen is for Linux on x86-64, this is linux on aarch64: play the game toy"),
        ("darwin", "arm64", "Procgen is for Linux on x86-64, this is darwin on arm64: play the game toy"),
    ],
)
def test_without_procgen_one_line_says_what_to_do(tmp_path, monkeypatch, platform, machine, message):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    assert available() == message
    with pytest.raises(ValueError, match=r"cannot play coinrun: .* play the game toy"):
        collect(CollectSettings(game="coinrun"), tmp_path / "out")


@pytest.mark.skipif(bool(available()), reason="needs Procgen's own library")
def test_without_a_system_library_the_debian_package_is_named(monkeypatch):
    def missing(path):
        raise OSError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    assert "apt-get install libgl1 libx11-6" in available()


@pytest.mark.skipif(bool(available()), reason=str(available()))
def test_importing_the_games_is_silent():
    code = "from minigenie.data.collect import generator_of; print(generator_of('coinrun'))"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
