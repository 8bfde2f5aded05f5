"""What a run shows of itself is seen where runs are watched, whole and once."""

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from minigenie.__main__ import main
from minigenie.metrics import read_metrics

SMALL = ["--recipe", "tiny", "--device", "cpu", "--save-every", "2"]
SMALL += [word for name in ("tokenizer", "lam", "dynamics") for word in ("--set", f"{name}_fit.batch_size=2")]


def train(toy, out, tracker, steps=2):
    main(["train", str(toy.folder), "--out", str(out), "--track", tracker, "--max-steps", str(steps), *SMALL])


def numbers(out: Path) -> dict[str, dict[int, float]]:
    """The losses of metrics.jsonl, by name and step."""
    found: dict[str, dict[int, float]] = {}
    for line in read_metrics(out / "metrics.jsonl"):
        if "loss" in line:
            found.setdefault(f"{line['stage']}/loss", {})[line["step"]] = line["loss"]
    return found


def test_tensorboard_has_metrics_pictures_and_the_recipe(toy, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(toy, tmp_path / "run", "tensorboard")
    seen = EventAccumulator(str(tmp_path / "run/tensorboard"))
    seen.Reload()
    wanted = numbers(tmp_path / "run")
    assert set(wanted) == {"tokenizer/loss", "ending/loss", "lam/loss", "dynamics/loss"}
    for name, losses in wanted.items():
        shown = {each.step: each.value for each in seen.Scalars(name)}
        assert {step: shown[step] for step in losses} == pytest.approx(losses, rel=1e-4)
    assert {"tokenizer/sample", "dynamics/sample"} <= set(seen.Tags()["images"])
    (recipe,) = seen.Tensors("recipe/text_summary")
    assert b'"tokenizer_fit"' in recipe.tensor_proto.string_val[0]


def test_wandb_gets_the_same_offline(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(toy, tmp_path / "run", "wandb")
    (folder,) = (tmp_path / "run/wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    pictures = [path.name for path in folder.rglob("*.png")]
    assert any("tokenizer" in str(path) for path in folder.rglob("*.png")), pictures


def test_trackio_gets_the_same_on_this_disk(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(toy, tmp_path / "run", "trackio")
    with closing(sqlite3.connect(tmp_path / "trackio/minigenie.db")) as database:
        lines = [json.loads(line) for (line,) in database.execute("select metrics from metrics")]
    for name, losses in numbers(tmp_path / "run").items():
        shown = {line[name.replace("loss", "step")]: line[name] for line in lines if name in line}
        assert {step: shown[step] for step in losses} == pytest.approx(losses, rel=1e-4)
    assert list((tmp_path / "trackio/media").rglob("*.png"))


def test_a_tracker_that_is_not_there(toy, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr("minigenie.track.find_spec", lambda name: None if name == "wandb" else real(name))
    with pytest.raises(SystemExit, match="2"):
        train(toy, tmp_path / "run", "wandb")
    assert "--track wandb needs wandb; run `pip install 'minigenie[wandb]'`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tracking_changes_nothing_of_the_run(toy, tmp_path):
    train(toy, tmp_path / "tracked", "tensorboard")
    main(["train", str(toy.folder), "--out", str(tmp_path / "plain"), "--max-steps", "2", *SMALL])
    assert json.dumps(numbers(tmp_path / "tracked")) == json.dumps(numbers(tmp_path / "plain"))
