"""Each disease is found on metrics made up to have it, and none on healthy ones."""

import json
import shutil
from copy import deepcopy

import numpy as np
import pytest
from conftest import small_recipe

from minigenie.__main__ import main
from minigenie.data import collect as collecting
from minigenie.data.dataset import DatasetWriter, Episode
from minigenie.eval.doctor import Run, diagnose, read_run
from minigenie.pipeline import survey
from minigenie.settings import CollectSettings

LINES = [
    {"stage": "data", "step": 0, "progress": 0, "frames": 64_000, "episodes": 300, "teleports": 0.001},
    *({"stage": "tokenizer", "step": s, "progress": s / 9, "psnr": 20.0 + s, "codes_alive": 25.0} for s in range(10)),
    *({"stage": "lam", "step": s, "progress": s / 9, "psnr": 20.0, "perplexity": 6.5} for s in range(10)),
    *({"stage": "lam", "step": s, "progress": s / 9, "control": 3.0} for s in (3, 6, 9)),
    *({"stage": "dynamics", "step": s, "progress": s / 9, "cross_entropy": 3.0 - s / 5} for s in range(10)),
    *({"stage": "dynamics", "step": s, "progress": s / 9, "control": 0.6} for s in (3, 6, 9)),
]
REPORT = {
    "tokenizer": {"psnr": 29.0, "codes_used": 25},
    "actions": {"perplexity": 6.4, "usage": [0.125] * 8},
    "dynamics": {"cross_entropy": 2.4},
    "rollout": {"delta_psnr": {"1": {"mean": 2.0, "ci95": [1.0, 3.0]}, "4": {"mean": 2.0, "ci95": [1.0, 3.0]}}},
}
ALL = {
    "collapsed actions", "empty actions", "dead codes", "blurry tokenizer", "ignored actions", "overfitting",
    "teleporting windows",
}  # fmt: skip


def altered(stage=None, path=(), **values):
    """Healthy lines and report, but for some values: of a stage's lines, or of the report at `path`."""
    lines, report = deepcopy(LINES), deepcopy(REPORT)
    for line in lines:
        line.update({name: value for name, value in values.items() if line["stage"] == stage and name in line})
    inside = report
    for key in path:
        inside = inside[key]
    if path:
        inside.update(values)
    return lines, report


def ill(lines, report):
    return {finding.disease for finding in diagnose(Run(small_recipe(), lines, report)) if finding.verdict == "ill"}


def test_nothing_is_found_on_a_healthy_run():
    findings = diagnose(Run(small_recipe(), LINES, REPORT))
    assert {finding.disease for finding in findings} == ALL
    assert {finding.verdict for finding in findings} == {"healthy"}
    assert not any(finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("disease", "altered"),
    [
        ("collapsed actions", altered(path=["actions"], perplexity=1.1)),
        ("empty actions", altered("lam", control=0.05)),
        ("dead codes", altered(path=["tokenizer"], codes_used=3)),
        ("blurry tokenizer", altered(path=["tokenizer"], psnr=17.0)),
        ("ignored actions", altered(path=["rollout", "delta_psnr", "4"], mean=0.1, ci95=[-0.2, 0.4])),
        ("overfitting", altered(path=["dynamics"], cross_entropy=4.0)),
        ("teleporting windows", altered("data", teleports=0.18)),
    ],
)
def test_each_disease_is_found_and_no_other(disease, altered):
    lines, report = altered
    assert ill(lines, report) == {disease}
    (finding,) = (f for f in diagnose(Run(small_recipe(), lines, report)) if f.verdict == "ill")
    assert finding.advice
    assert "wanted" in finding.measured


@pytest.mark.parametrize(
    ("disease", "stage", "values"),
    [
        ("collapsed actions", "lam", {"perplexity": 1.2}),
        ("dead codes", "tokenizer", {"codes_alive": 2.0}),
        ("blurry tokenizer", "tokenizer", {"psnr": 15.0}),
        ("ignored actions", "dynamics", {"control": 0.001}),
    ],
)
def test_training_alone_tells_most_of_it(disease, stage, values):
    assert ill(altered(stage, **values)[0], {}) == {disease}
    unknown = [f for f in diagnose(Run(small_recipe(), LINES, {})) if f.verdict == "unknown"]
    assert [finding.disease for finding in unknown] == ["overfitting"]


def test_lam_and_dynamics_trained_together_are_understood():
    joint = [
        {**line, "stage": "dynamics"} | {f"lam_{k}": v for k, v in line.items()}
        for line in LINES
        if line["stage"] == "lam"
    ]
    joint = [{k: v for k, v in line.items() if k not in ("psnr", "perplexity", "control")} for line in joint]
    lines = [line for line in LINES if line["stage"] != "lam"] + joint
    assert ill(lines, {}) == set()
    assert ill([line | ({"lam_perplexity": 1.0} if "lam_perplexity" in line else {}) for line in lines], {}) == {
        "collapsed actions"
    }


def test_cuts_inside_episodes_are_teleports_and_honest_motion_is_not(toy, tmp_path):
    assert survey(toy, seed=0)["teleports"] == 0
    frames = toy.clips(toy.episode_starts.repeat(3), 4).reshape(-1, 64, 64, 3)  # a cut every fourth frame
    about = {"frame_size": (64, 64), "fps": 10, "source": "x", "generator": "x", "split": "test", "settings": {}}
    writer = DatasetWriter(tmp_path / "cut", **about)
    order = np.random.default_rng(0).permutation(len(frames) // 4)
    writer.write(0, frames.reshape(-1, 4, 64, 64, 3)[order].reshape(-1, 64, 64, 3), [Episode(0, 0, len(frames))])
    found = survey(writer.close(), seed=0)
    assert found["teleports"] > 0.05
    assert (found["frames"], found["episodes"]) == (len(frames), 1)


def test_a_few_shards_are_surveyed_for_all(tmp_path, monkeypatch):
    """Those of a dataset in object storage are copied whole, so eight of them have to do, if they are not tiny."""
    monkeypatch.setattr(collecting, "STEPS", 64)
    footage = collecting.collect(
        CollectSettings(game="toy", frames=3000, policy="explore", levels=20, num_envs=4), tmp_path, workers=1
    )
    read, map_file = set(), footage._map
    monkeypatch.setattr(footage, "_map", lambda kind, shard: read.add(shard) or map_file(kind, shard))
    assert survey(footage, seed=0)["teleports"] == 0
    assert len(read) == 8 < len(footage.manifest["shards"])
    survey(footage, seed=0, pairs=10 * 250)
    assert len(read) > 8


def test_the_command_says_what_it_found(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, altered("lam", perplexity=1.0)[0])))
    (run / "report.json").unlink(missing_ok=True)
    main(["doctor", str(run)])
    shown = capsys.readouterr().out
    assert "ill       collapsed actions" in shown
    assert "warmup=0.6" in shown
    assert "7 checks: collapsed actions, 1 unknown" in shown


def test_a_real_run_can_be_examined(trained):
    findings = diagnose(read_run(trained))
    assert {finding.disease for finding in findings} == ALL
    assert next(f for f in findings if f.disease == "teleporting windows").verdict == "healthy"


def test_bad_input_is_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text("{")
    (tmp_path / "bare").mkdir()
    shutil.copy(trained / "config.json", tmp_path / "bare")
    for folder, said in ((tmp_path, "is not a world"), (tmp_path / "run", "damaged"), (tmp_path / "bare", "neither")):
        with pytest.raises(SystemExit) as caught:
            main(["doctor", str(folder)])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
