"""The scripts in runs/, as they are, only smaller."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).parent.parent / "runs"


def run(script, *parts, **settings):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in settings.items()}}
    ended = subprocess.run(
        ["bash", RUNS / script, *parts], env=environment, capture_output=True, text=True, timeout=800
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_case_study_s_footage(tmp_path):
    run("coinrun.sh", FRAMES=500, TEST_FRAMES=500, OUT=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"coinrun-{policy}{split}" for policy in ("random", "explore") for split in ("", "-test")
    }


@pytest.mark.heavy
def test_all_that_a_gpu_s_owner_would_check_rehearsed_without_one(tmp_path):
    """The speedrun too, from footage to report."""
    shown = run("gpu.sh", DEVICE="cpu", SMALL=1, OUT=tmp_path / "out", WORK=tmp_path / "work")
    for part in ("setup", "tests", "bench", "large", "collect", "train", "measure"):
        assert f"== {part}" in shown
    assert shown.count("the world is done") >= 1
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert {"bench.json", "recipes.json", "large.json", "speedrun/report.json", "speedrun/report.html"} <= made
    assert max(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 16e6


@pytest.mark.parametrize("script", ["gpu.sh", "speedrun.sh"])
def test_an_unknown_part_is_one_line(script):
    ended = subprocess.run(["bash", RUNS / script, "dance"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "not dance" in ended.stderr
