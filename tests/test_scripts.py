"""The scripts in runs/, as they are, only smaller."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minigenie.checkpoint import save_tensors
from minigenie.world import World, read_prompt

RUNS = Path(__file__).parent.parent / "runs"


def start(script, *parts, **settings):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **{k: str(v) for k, v in settings.items()}}
    return subprocess.run(["bash", RUNS / script, *parts], env=environment, capture_output=True, text=True, timeout=800)


def run(script, *parts, **settings):
    ended = start(script, *parts, **settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_case_study_s_footage(tmp_path):
    run("coinrun.sh", FRAMES=500, TEST_FRAMES=500, OUT=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"coinrun-{policy}{split}" for policy in ("random", "explore") for split in ("", "-test")
    }


def unpack(folder, into):
    subprocess.run(f"mkdir -p {into} && cat {folder}/part-* | tar -xJ -C {into}", shell=True, check=True)


@pytest.mark.heavy
def test_all_that_a_gpu_s_owner_would_do_rehearsed_without_one(tmp_path):
    """From footage to a world that was carried away, and plays."""
    shown = run("gpu.sh", DEVICE="cpu", SMALL=1, OUT=tmp_path / "out", WORK=tmp_path / "work")
    for part in ("probe", "world", "tests", "bench"):
        assert f"== {part}" in shown
    assert shown.count("the world is measured") >= 1
    parts = list((tmp_path / "out").iterdir())
    assert len(parts) <= 8
    assert max(path.stat().st_size for path in parts) < 16e6
    unpack(tmp_path / "out", tmp_path / "back")
    results = tmp_path / "back/results"
    made = {str(path.relative_to(results)) for path in results.rglob("*")}
    assert {"probe.json", "steps.json", "frames.json", "tests.txt", "report.html", "world/report.json"} <= made
    frames = torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)
    World.load(results / "world", "cpu").rollout(frames, torch.zeros(1, 2, dtype=torch.long))


def test_a_part_that_fails_stops_no_other_and_what_is_trained_leaves_once(trained, tmp_path):
    (tmp_path / "work").mkdir()
    shutil.copytree(trained, tmp_path / "work/world")
    settings = {"DEVICE": "cpu", "WORK": tmp_path / "work", "OUT": tmp_path / "out", "RECIPE": "none"}
    for turn in ("first", "second"):
        ended = start("gpu.sh", "probe", "tests", **settings)
        assert ended.returncode == 1
        assert "recipe 'none' does not exist" in ended.stdout
        assert "failed: probe\n" in ended.stdout
        assert "tests collected" in ended.stdout
        unpack(tmp_path / "out", tmp_path / turn)
    assert {path.name for path in (tmp_path / "first/results/world").glob("*.safetensors")} == {
        "tokenizer.safetensors",
        "lam.safetensors",
        "dynamics.safetensors",
    }
    assert not list((tmp_path / "second/results/world").glob("*.safetensors"))


def test_the_speedrun_ends_in_time_and_goes_on(tmp_path):
    settings = {"RECIPE": "tiny", "FRAMES": 2_000, "MODE": "easy", "WORK": tmp_path, "PART_SECONDS": 1}
    assert "to be continued" in run("speedrun.sh", "collect", **settings)
    assert "to be continued" not in run("speedrun.sh", "collect", **settings | {"PART_SECONDS": 300, "FRAMES": 2_000})


def walk(world, out, *options):
    command = [sys.executable, RUNS / "walk.py", str(world), str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_walk_is_a_row_of_pictures_for_each_start(trained, tmp_path):
    ended = walk(trained, tmp_path / "walk.png", "--seconds", "10", "--starts", "2", "--walk", "1*3,2")
    assert ended.returncode == 0, ended.stderr
    picture = Image.open(tmp_path / "walk.png")
    assert picture.size == (2 * 66, 2 * 66)
    rows = ended.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["1:", "1:"]
    assert [len(row.split()) for row in rows] == [3, 3]
    start = read_prompt(trained / "prompts/00.png", (64, 64, 3))[0, 0].numpy()
    assert (np.array(picture)[1:65, 1:65] == start).all()


def test_a_walk_begins_anew_where_it_is_over(ending_world, tmp_path):
    """Until it is told not to."""
    options = "--seconds", "5", "--starts", "3", "--walk", "1"
    ended, endless = (walk(ending_world, tmp_path / "walk.png", *options, *more) for more in ((), ("--endless",)))
    began = [[int(row.split(":")[0]) for row in each.stdout.splitlines()[1:]] for each in (ended, endless)]
    assert max(began[0]) > 1
    assert began[1] == [1, 1, 1]


def add_ending(*arguments):
    command = [sys.executable, RUNS / "add_ending.py", *map(str, arguments), "--device", "cpu", "--steps", "3"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_finished_world_learns_when_it_is_over(trained, toy, tmp_path):
    """All else stays as it is; and what was interrupted goes on."""
    ended = add_ending(trained, toy.folder, tmp_path / "world")
    assert ended.returncode == 0, ended.stderr
    world, before = World.load(tmp_path / "world", "cpu"), World.load(trained, "cpu")
    assert (world.ending.knows, world.ending.lost.knows) == (True, True)
    assert world.config == replace(before.config, ending=world.config.ending)
    assert set(json.loads((tmp_path / "world/checksums.json").read_bytes())) >= {"ending.safetensors", "config.json"}
    assert not [path for path in (tmp_path / "world").iterdir() if path.name in ("encoded", "checkpoints", "samples")]


def test_a_world_that_knows_its_ends_learns_when_it_is_lost(ending_world, toy, tmp_path):
    """What it knows stays; and then there is nothing to add."""
    ends = shutil.copytree(ending_world, tmp_path / "ends")
    known = World.load(ends, "cpu").ending.state_dict()
    save_tensors(ends / "ending.safetensors", {name: each for name, each in known.items() if "lost" not in name})
    config = json.loads((ends / "config.json").read_bytes())
    del config["ending"]["lost"]
    (ends / "config.json").write_text(json.dumps(config))
    assert not World.load(ends, "cpu").ending.lost.knows
    ended = add_ending(ends, toy.folder, tmp_path / "world")
    assert ended.returncode == 0, ended.stderr
    learnt = World.load(tmp_path / "world", "cpu").ending
    assert learnt.lost.knows
    for name, weights in learnt.state_dict().items():
        if "lost" not in name:
            torch.testing.assert_close(weights, known[name], rtol=0.01, atol=0.01)  # in half the bytes
    ended = add_ending(tmp_path / "world", toy.folder, tmp_path / "again")
    assert (ended.returncode, list(tmp_path.glob("again"))) == (2, [])
    assert "can teach" in ended.stderr


def test_footage_of_unknown_ends_teaches_when_it_is_lost_and_other_the_rest(trained, toy, unmarked, tmp_path):
    ended = add_ending(trained, unmarked.folder, tmp_path / "lost")
    assert ended.returncode == 0, ended.stderr
    first = World.load(tmp_path / "lost", "cpu").ending
    assert (first.knows, first.lost.knows) == (False, True)
    ended = add_ending(tmp_path / "lost", toy.folder, tmp_path / "both")
    assert ended.returncode == 0, ended.stderr
    both = World.load(tmp_path / "both", "cpu").ending
    assert both.knows
    torch.testing.assert_close(both.lost.state_dict(), first.lost.state_dict())


@pytest.mark.parametrize(("which", "told"), [("dataset", "teach"), ("world", "is not a world")])
def test_a_world_that_cannot_learn_it_is_left_alone(trained, toy, unmarked, tmp_path, which, told):
    given = (trained, unmarked.folder, "--lost", 0) if which == "dataset" else (tmp_path / "none", toy.folder)
    ended = add_ending(*given[:2], tmp_path / "out", *given[2:])
    assert ended.returncode == 2
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("world", "option", "value", "told"),
    [(None, "--walk", "fly*3", "fly"), (None, "--starts", "0", "0 of the start"), ("no", "--seed", "0", "no")],
)
def test_a_walk_that_cannot_be_is_one_line(trained, tmp_path, world, option, value, told):
    ended = walk(world or trained, tmp_path / "walk.png", option, value)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["gpu.sh", "speedrun.sh"])
def test_an_unknown_part_is_one_line(script):
    ended = subprocess.run(["bash", RUNS / script, "dance"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "not dance" in ended.stderr
