"""The world that comes with the package: small, whole, and it answers to its actions."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minigenie.__main__ import main
from minigenie.play.actions import load_actions
from minigenie.world import World, locate, read_prompt

FOLDER = locate("coinrun")


@pytest.fixture(scope="module")
def world():
    return World.load("coinrun", "cpu")


def test_it_is_small_and_has_all_that_a_player_needs(world):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 48e6
    assert {"config.json", "README.md", "report.json", "actions.json"} <= {path.name for path in files}
    assert world.frame_shape == (64, 64, 3)
    assert len(list((FOLDER / "prompts").glob("*.png"))) >= 8
    names = [entry["name"] for entry in load_actions(FOLDER, world.num_actions)]
    assert names == ["noop", "left", "right", "jump", "jump-left", "jump-right"]


def test_its_report_is_of_held_out_levels():
    report = json.loads((FOLDER / "report.json").read_text())
    assert report["dataset"]["split"] == "test"
    assert report["dataset"]["settings"]["mode"] == "hard"
    assert report["tokenizer"]["psnr"] > 30
    assert report["rollout"]["delta_psnr"]["4"]["ci95"][0] > 1
    assert report["control"]["share_ci95"][0] > 0.7 > report["control"]["still"]
    assert report["control"]["gravity"]["ci95"][0] > 0.7


def test_its_actions_lead_apart_and_its_frames_are_pictures(world):
    """Held for six frames from each start, no two actions lead to the same picture, and these have about its detail."""
    apart, detail = [], []
    for prompt in sorted((FOLDER / "prompts").glob("*.png")):
        start = read_prompt(prompt, world.frame_shape)
        actions = torch.arange(world.num_actions)[:, None].expand(-1, 6)
        last = world.rollout(start.expand(world.num_actions, -1, -1, -1, -1), actions)[:, -1].float()
        apart.append((last[:, None] - last[None]).abs().mean(dim=(2, 3, 4)))
        detail.append(last.diff(dim=2).abs().mean() / start.float().diff(dim=3).abs().mean())
    between = torch.stack(apart).mean(0)[~torch.eye(world.num_actions, dtype=torch.bool)]
    assert between.min() > 5  # of 255
    assert 0.3 < torch.stack(detail).mean() < 3


def test_its_name_stands_for_it_where_nothing_else_has_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["info", "coinrun"])
    assert "6 actions, frames (64, 64, 3)" in capsys.readouterr().out
    (tmp_path / "coinrun").mkdir()
    assert locate("coinrun") == Path("coinrun")
    assert locate(tmp_path / "else" / "coinrun") == tmp_path / "else" / "coinrun"


@pytest.mark.parametrize("command", [["eval", "coinrun", "no/data"], ["eval", "coinrun", "--compare"]])
def test_nothing_is_written_beside_it(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "give a folder with --out" in capsys.readouterr().err


def test_it_stands_beside_other_worlds(tmp_path, capsys):
    shutil.copytree(FOLDER, tmp_path / "mine")
    main(["eval", "coinrun", str(tmp_path / "mine"), "--compare", "--out", str(tmp_path / "page")])
    assert "coinrun" in capsys.readouterr().out
    assert (tmp_path / "page" / "compare.html").stat().st_size > 1000
