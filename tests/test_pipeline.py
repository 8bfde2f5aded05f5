"""The journeys from end to end, through the commands, on small data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.__main__ import main
from minigenie.batches import motions_around, seen_by_camera
from minigenie.camera import PAST
from minigenie.checkpoint import load_tensors
from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.data.labels import write_labels
from minigenie.dynamics import Joint
from minigenie.encode import encode_motions
from minigenie.metrics import read_metrics
from minigenie.nn.patches import to_float
from minigenie.pipeline import STEPS, Run, Watcher, train_world, with_actions
from minigenie.train import ENDLESS, Interrupted
from minigenie.world import World

MODELS = ("tokenizer", "lam", "dynamics")
CPU = torch.device("cpu")
SMALL = ["--recipe", "tiny", "--max-steps", "3", "--save-every", "2", "--device", "cpu"]
for field in (
    "dynamics.transformer.dim=48",
    "dynamics.transformer.num_heads=2",
    "tokenizer_fit.batch_size=4",
    "lam_fit.batch_size=4",
):
    SMALL += ["--set", field]


def without_camera(recipe, **changes):
    return replace(recipe, dynamics=replace(recipe.dynamics, motions=0), **changes)


def weights(folder):
    return {name: load_tensors(folder / f"{name}.safetensors")[0] for name in MODELS}


@pytest.fixture(scope="module")
def seen_once(toy, tmp_path_factory):
    """The folder of a run that has looked at its dataset with a camera, and no more."""
    out = tmp_path_factory.mktemp("seen") / "run"
    torch.manual_seed(0)
    camera_of(toy, out)
    return out


def camera_of(toy, out):
    recipe = small_recipe()
    return Run(toy, recipe, out, CPU, None, False, Watcher()).camera(recipe.make_tokenizer())


def write_video(path, frames, fps, codec):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())


def test_a_folder_of_videos_becomes_a_world(toy, tmp_path, capsys):
    """mp4, webm and gif of other sizes and rates, one of them truncated: ingest, train, rollout, eval, info."""
    videos = tmp_path / "videos"
    videos.mkdir()
    play = toy.episode_frames(int(np.argmax([episode.length for episode in toy.episodes])))
    play = np.concatenate([play, play[::-1]])
    kinds = [
        ("a.mp4", "libx264", 30, 2),
        ("b.webm", "libvpx-vp9", 24, 3),
        ("c.gif", "gif", 10, 1),
        ("d.mp4", "libx264", 25, 2),
    ]
    for name, codec, fps, zoom in kinds:
        slow = np.repeat(play, max(1, fps // 10), axis=0)
        write_video(videos / name, slow.repeat(zoom, 1).repeat(zoom, 2), fps, codec)
    truncated = videos / "b.webm"
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 2 // 3])
    (videos / "empty.mp4").write_bytes(b"")

    main(["ingest", str(videos), "--out", str(tmp_path / "data"), "--fps", "10", "--split", "0.25"])
    shown = capsys.readouterr().out
    assert "empty.mp4" in shown
    assert "skipped" in shown
    main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "world"), *SMALL])
    clip = tmp_path / "clip.mp4"
    main(["rollout", str(tmp_path / "world"), "--actions", "0,0,3,1", "--out", str(clip), "--device", "cpu"])
    with av.open(str(clip)) as container:
        assert len(list(container.decode(video=0))) == 5
    main(["eval", str(tmp_path / "world"), str(tmp_path / "data-test"), "--clips", "4", "--device", "cpu"])
    report = json.loads((tmp_path / "world" / "report.json").read_text())
    assert len(report["rollout"]["delta_psnr"]["4"]["ci95"]) == 2
    capsys.readouterr()
    main(["info", str(tmp_path / "world")])
    assert "a world" in capsys.readouterr().out
    main(["info", str(tmp_path / "data")])
    assert (tmp_path / "data" / "contact-sheet.png").exists()


def test_a_world_folder_has_what_a_player_needs(trained):
    for name in ("config.json", "actions.json", "README.md", "metrics.jsonl", "prompts/00.png"):
        assert (trained / name).exists(), name
    assert len(json.loads((trained / "actions.json").read_text())) == 8
    assert list((trained / "samples").glob("*.png"))


def test_the_same_seed_trains_the_same_world(toy, trained, tmp_path):
    train_world(toy, small_recipe(), tmp_path / "again", device=CPU)
    assert_close(weights(tmp_path / "again"), weights(trained), rtol=0, atol=0)


def test_a_finished_run_is_left_as_it_is(toy, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    train_world(toy, small_recipe(), trained, device=CPU)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_goes_on_however_it_is_executed_and_for_longer(toy, tmp_path):
    """In other parts, another precision, with more steps; not with another batch."""
    out, first, second = tmp_path / "run", small_recipe(), small_recipe(steps=6)
    train_world(toy, first, out, device=CPU)
    (out / "dynamics.safetensors").unlink()
    how = replace(second.dynamics_fit.execution, part=3, precision="bfloat16", recompute="blocks")
    train_world(toy, replace(second, dynamics_fit=replace(second.dynamics_fit, execution=how)), out, device=CPU)
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl") if line["stage"] == "dynamics"]
    assert max(steps) == 6
    assert json.loads((out / "config.json").read_text())["dynamics_fit"]["execution"]["part"] == 3
    with pytest.raises(FileExistsError, match=r"another dynamics_fit.batch_size"):
        train_world(toy, replace(first, dynamics_fit=replace(first.dynamics_fit, batch_size=2)), out, device=CPU)


def test_a_field_that_is_new_orphans_no_run_and_one_that_is_gone_is_named(toy, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    values = json.loads((out / "config.json").read_text())
    del values["shares"], values["dynamics_fit"]["optim"]["clip"]
    (out / "config.json").write_text(json.dumps(values))
    train_world(toy, small_recipe(), out, device=CPU)
    values["lam_fit"]["accumulate"] = 4
    (out / "config.json").write_text(json.dumps(values | {"minigenie": "0.0.9"}))
    with pytest.raises(FileExistsError, match=r"begun by MiniGenie 0.0.9, .*'accumulate'.* only be played") as caught:
        train_world(toy, small_recipe(), out, device=CPU)
    assert "\n" not in str(caught.value)
    assert World.load(out).num_actions == 8


def test_held_out_footage_beside_the_dataset_is_measured_on_the_way(toy, tmp_path):
    """Each model's own metrics, on clips that it does not learn from; the LAM's once its codes are placed."""
    for name in ("train", "test"):
        shutil.copytree(toy.folder, tmp_path / name)
    train_world(Dataset.open(tmp_path / "train"), small_recipe(), tmp_path / "run", device=CPU)
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    found = {(line["stage"], name) for line in lines for name in line if name.startswith("held_out_")}
    assert found == {
        ("tokenizer", "held_out_psnr"),
        ("lam", "held_out_psnr"),
        ("dynamics", "held_out_cross_entropy"),
        ("dynamics", "held_out_accuracy"),
    }


def test_killed_while_it_noted_what_the_footage_is_like(toy, trained, tmp_path):
    def begin():
        Run(toy, small_recipe(), tmp_path / "run", CPU, None, False, Watcher())

    whole = (trained / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
    assert b'"data"' in whole
    begin()
    for torn in (b"", whole[:20], whole):
        (tmp_path / "run/metrics.jsonl").write_bytes(torn)
        begin()
        assert (tmp_path / "run/metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_resumed_is_never_interrupted(toy, trained, tmp_path, how):
    """A real process, struck in the middle of some stage; the world that comes of it is the same, bit for bit."""
    out = tmp_path / "run"
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import conftest, torch\n"
        "import minigenie.train as train\nfrom pathlib import Path\nfrom minigenie.data.dataset import Dataset\n"
        "from minigenie.pipeline import train_world\ntorch.set_num_threads(1)\n"
        "share = train.learning_rate_share\n"
        "def slow(*a): time.sleep(0.2); return share(*a)\n"
        "train.learning_rate_share = slow\n"
        "data, out = Dataset.open(sys.argv[2]), Path(sys.argv[3])\n"
        "train_world(data, conftest.small_recipe(), out, device=torch.device('cpu'))\n"
    )
    arguments = [os.path.dirname(__file__), str(toy.folder), str(out)]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True)
    while not any(line["stage"] == "lam" for line in read_metrics(out / "metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert "is saved; the same command goes on from there" in errors
    assert not (out / "dynamics.safetensors").exists()
    train_world(toy, small_recipe(), out, device=CPU)
    assert_close(weights(out), weights(trained), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"joint": True, "dynamics": without_camera(small_recipe()).dynamics},
        {"dynamics": without_camera(small_recipe()).dynamics},
        {"lam": replace(small_recipe().lam, input="tokens")},
        {"lam": replace(small_recipe().lam, pairs=False), "lam_fit": replace(small_recipe().lam_fit, clip_frames=5)},
        {"dynamics": replace(small_recipe().dynamics, context="masked", group=1, motions=0)},
    ],
    ids=["joint", "no-camera", "lam-on-tokens", "lam-with-history", "masked-context"],
)
def test_other_ways_to_train(toy, tmp_path, change):
    world = train_world(toy, replace(small_recipe(), **change), tmp_path / "run", device=CPU)
    video = torch.from_numpy(toy.clips(toy.windows(4)[:2], 4))
    again = World.load(tmp_path / "run", "cpu")
    actions = again.infer_actions(video)
    assert_close(again.rollout(video, actions), world.rollout(video, actions))


def test_a_recipe_without_an_end_wants_a_time(toy, tmp_path):
    recipe = replace(small_recipe(), lam_fit=replace(small_recipe().lam_fit, steps=ENDLESS))
    with pytest.raises(ValueError, match="^this recipe goes on until its time is over; give it some, as in --max-min"):
        train_world(toy, recipe, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_joint_knows_no_camera():
    with pytest.raises(ValueError, match=r"^dynamics.motions is 256, but joint knows no camera; set it and d"):
        replace(small_recipe(), joint=True)


def test_what_is_seen_of_clips_is_what_is_known_of_the_dataset(toy, tmp_path):
    """Held-out clips are seen on the spot, the dataset's are read from the run's folder: the same but for near things,
    which sums in the order of another batch may decide otherwise."""
    run = Run(toy, small_recipe(), tmp_path / "run", CPU, None, False, Watcher())
    tokenizer = small_recipe().make_tokenizer()
    camera, known = run.camera(tokenizer)
    starts = toy.windows(6)[::37]
    seen = seen_by_camera(camera, tokenizer, torch.from_numpy(toy.clips(starts, 6)))
    frames = starts[:, None] + np.arange(5)
    same = torch.from_numpy(known["motions"][frames].astype(np.int64)) == seen["motions"]
    assert same.float().mean() > 0.97
    moved = torch.from_numpy(known["moved"][frames].astype(np.int64))
    assert (moved == seen["moved"])[same].float().mean() > 0.99
    assert len(seen["motions"].unique()) > 10
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/encoded").iterdir()}
    again = run.camera(tokenizer)[1]
    assert all((again[name] == known[name]).all() for name in known)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/encoded").iterdir()} == before


def test_motions_around_labels_are_looked_up_where_they_are_known(toy, tmp_path):
    """As they are measured, but for near things; beyond an episode's ends nothing moves."""
    frames, known = toy.windows(2)[::41], encode_motions(toy, tmp_path / "motions.npy", CPU)
    recipe = with_actions(small_recipe(), toy, "true")
    looked_up, measured = (motions_around(toy, frames, recipe, motions=each) for each in (known, None))
    assert ((looked_up - measured).abs().amax(-1) < 0.05).float().mean() > 0.97
    assert (measured.abs().amax(-1) > 0.5).any()


def test_the_camera_learns_from_single_steps_of_the_footage(toy, tmp_path):
    """Each with the steps before it, as far as its episode goes back; parts of a batch are parts of them."""
    run, config = Run(toy, small_recipe(), tmp_path / "run", CPU, None, False, Watcher()), small_recipe().dynamics_fit
    frames, camera = np.arange(toy.num_frames), small_recipe().make_dynamics().camera
    tokens = np.repeat(frames[:, None], 64, axis=1)
    make = partial(run._steps, tokens, frames % 8, frames % 256, camera, config)
    steps = make(3, range(config.batch_size))
    for at_hand, motions, actions in zip(
        *(steps[f"step_{name}"] for name in ("tokens", "motions", "actions")), strict=True
    ):
        t = int(at_hand[0])
        first = max(start for start in toy.episode_starts if start <= t)
        before = range(t - PAST, t + 1)
        assert motions.tolist() == [i % 256 if i >= first else camera.unknown for i in before]
        assert actions.tolist() == [i % 8 if i >= first else camera.no_action for i in before]
        assert t + 1 in frames
        assert t + 1 not in toy.episode_starts
    assert len(steps["step_tokens"]) == STEPS * config.batch_size
    parts = [make(3, range(i, i + 1)) for i in range(config.batch_size)]
    assert all((torch.cat([part[name] for part in parts]) == steps[name]).all() for name in steps)
    assert (make(4, range(config.batch_size))["step_tokens"] != steps["step_tokens"]).any()


@pytest.mark.parametrize("name", ["motions", "camera", "moved"])
@pytest.mark.parametrize("damage", ["truncated", "junk", "empty", "of other footage", "of another kind", "not finite"])
def test_a_damaged_view_of_the_camera_says_which_file(toy, seen_once, tmp_path, name, damage):
    out = shutil.copytree(seen_once, tmp_path / "run")
    path = out / "encoded" / f"{name}.npy"
    content, array = path.read_bytes(), np.load(path)
    wrong = {
        "of other footage": array[: len(array) // 2],
        "of another kind": array.astype(np.complex64),
        "not finite": np.full_like(array, np.nan if array.dtype.kind == "f" else 32),  # or of no code
    }
    if damage in wrong:
        np.save(path, wrong[damage])
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "junk": b"\x80\x04junk", "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"{name}\.npy .*delete it, and it is made again$") as caught:
        camera_of(toy, out)
    assert "\n" not in str(caught.value)


def test_training_brings_the_loss_down(toy, tmp_path):
    train_world(toy, small_recipe(steps=60), tmp_path / "run", device=CPU)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for stage in MODELS:
        losses = [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
        assert losses[-1] < 0.8 * losses[0], stage
    assert [line["control"] for line in lines if line["stage"] == "lam" and "control" in line]


@pytest.mark.parametrize("joint", [False, True])
def test_codes_are_not_told_of_before_they_are_placed(toy, tmp_path, joint):
    recipe = without_camera(small_recipe(steps=20), joint=joint)
    train_world(toy, recipe, tmp_path / "run", device=CPU)
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "progress" in line]
    lam, prefix = ("dynamics", "lam_") if joint else ("lam", "")
    for stage, warmup, names in (
        ("tokenizer", recipe.tokenizer.quantizer.warmup, ["perplexity", "codes_alive"]),
        (lam, recipe.lam.quantizer.warmup, [prefix + name for name in ("perplexity", "control", "commonest_action")]),
    ):
        for name in names:
            told = [line["progress"] for line in lines if line["stage"] == stage and name in line]
            assert told, name
            assert min(told) >= warmup, name
    if joint:
        assert min(line["progress"] for line in lines if "control" in line) >= recipe.lam.quantizer.warmup


def test_what_actions_are_worth_to_dynamics_is_the_same_number_for_the_same_model(toy):
    """On as many clips as there are, and every frame of each."""
    recipe = without_camera(small_recipe())
    batch = {"tokens": torch.randint(32, (6, 5, 64)), "actions": torch.randint(8, (6, 4))}
    model, joint = recipe.make_dynamics(), Joint(recipe.make_lam(), recipe.make_dynamics())
    one, again = (model.control_metrics(batch)["control"] for _ in range(2))
    assert one == again != model.control_metrics({name: each[:3] for name, each in batch.items()})["control"]
    assert recipe.make_lam().control_metrics(batch) == {}
    frames = {"frames": torch.from_numpy(toy.clips(toy.windows(5)[:6], 5)), "tokens": batch["tokens"]}
    assert joint.control_metrics(frames) == {}
    joint.lam.quantizer.ready = True
    assert set(joint.control_metrics(frames)) == {"control", "lam_control"}


def test_the_demo_of_the_toy_world(tmp_path, capsys):
    main(["demo", "--out", str(tmp_path / "demo"), "--minutes", "0.15", "--game", "toy", "--no-play"])
    out = capsys.readouterr().out
    assert "delta-PSNR" in out
    assert "without labels" in out
    world, unlabelled = tmp_path / "demo" / "world", tmp_path / "demo" / "unlabelled"
    assert [entry["name"] for entry in json.loads((world / "actions.json").read_text())][:2] == ["noop", "left"]
    assert World.load(unlabelled, "cpu").num_actions == 8
    assert (world / "tokenizer.safetensors").read_bytes() == (unlabelled / "tokenizer.safetensors").read_bytes()
    for picture in ("reconstructions", "rollouts", "actions", "curves"):
        assert (world / "pictures" / f"{picture}.png").stat().st_size > 1000
    train, test = (Dataset.open(tmp_path / "demo" / split) for split in ("train", "test"))
    seeds = [{episode.level_seed for episode in split.episodes} for split in (train, test)]
    assert not seeds[0] & seeds[1]
    main(["demo", "--out", str(tmp_path / "demo"), "--minutes", "0.15", "--game", "toy", "--no-play"])
    assert "is done" in capsys.readouterr().out


# Export.


def test_an_exported_world_is_half_as_large_and_imagines_much_the_same(trained, toy, tmp_path, capsys):
    main(["export", str(trained), "--out", str(tmp_path / "small")])
    assert "is a world of" in capsys.readouterr().out
    small = tmp_path / "small"
    sizes = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (trained, small)]
    assert sizes[1] < 0.7 * sizes[0]
    one, other = World.load(trained, "cpu"), World.load(small, "cpu")
    frames = toy.clips(toy.windows(4)[:8], 4)
    tokens = [world.tokenizer.encode(to_float(torch.from_numpy(frames))) for world in (one, other)]
    assert (tokens[0] == tokens[1]).float().mean() > 0.9
    decoded = [world.tokenizer.decode(tokens[0]) for world in (one, other)]
    assert (decoded[0] - decoded[1]).abs().mean() < 0.01
    assert sorted(path.name for path in small.iterdir()) == sorted(
        path.name for path in trained.iterdir() if path.name not in ("samples", "checkpoints", "encoded")
    )
    with pytest.raises(SystemExit):
        main(["export", str(trained), "--out", str(tmp_path / "small")])
    assert "exists; choose a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("joint", [False, True])
def test_of_a_run_that_goes_on_what_there_is_is_exported(joint, toy, tmp_path, capsys):
    """The tokenizer is trained, dynamics were saved on the way: a world to play already, if the LAM is there too."""
    run, recipe = tmp_path / "run", without_camera(small_recipe(), joint=joint)

    def stop(progress):
        if (progress.stage, progress.step) == ("dynamics", 4):  # and saved at 2
            raise Interrupted

    with pytest.raises(Interrupted):
        train_world(toy, recipe, run, device=torch.device("cpu"), watcher=Watcher(stop))
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(tmp_path / "strict")])
    assert f"{'lam' if joint else 'dynamics'}.safetensors is missing" in capsys.readouterr().err
    main(["export", str(run), "--out", str(tmp_path / "small"), "--unfinished"])
    frames = torch.from_numpy(toy.clips(toy.windows(4)[:2], 4))
    assert World.load(tmp_path / "small", "cpu").rollout(frames, torch.zeros(2, 2, dtype=torch.long)).shape[1] == 2
    saved = load_tensors(sorted((run / "checkpoints/dynamics").iterdir())[-1])[0]
    name = "model/dynamics.place" if joint else "model/place"
    assert torch.equal(load_tensors(tmp_path / "small/dynamics.safetensors")[0]["place"], saved[name].bfloat16())
    (run / "tokenizer.safetensors").unlink()
    for path in (run / "checkpoints/tokenizer").iterdir():
        path.unlink()
    main(["export", str(run), "--out", str(tmp_path / "less"), "--unfinished"])
    assert "still without tokenizer" in capsys.readouterr().out
    assert not (tmp_path / "less/tokenizer.safetensors").exists()


@pytest.mark.parametrize("source", ["labels", "true"])
def test_a_world_of_controls(toy, tmp_path, source, capsys):
    """Its actions carry the controls' names and keys, from train to rollout."""
    labels = ["--labels", "200"] if source == "labels" else []
    main(["train", str(toy.folder), "--out", str(tmp_path / "world"), "--actions", source, *labels, *SMALL])
    actions = json.loads((tmp_path / "world" / "actions.json").read_text())
    assert [entry["name"] for entry in actions] == ["noop", "left", "right", "jump", "jump-left", "jump-right"]
    assert [entry["noop"] for entry in actions] == [True, *[False] * 5]
    assert actions[5]["key"] == "ArrowUp+ArrowRight"
    world = World.load(tmp_path / "world", "cpu")
    assert world.num_actions == 6
    assert world.infer_actions(toy.clips(toy.windows(5)[:2], 5)).shape == (2, 4)
    clip = tmp_path / "clip.gif"
    main(["rollout", str(tmp_path / "world"), "--actions", "right*2,jump", "--out", str(clip), "--device", "cpu"])
    assert "4 frames" in capsys.readouterr().out


def test_true_actions_are_those_that_were_recorded(toy, recipe, tmp_path):
    run = Run(toy, with_actions(recipe, toy, "true"), tmp_path / "run", CPU, None, False, Watcher())
    found = run.actions(None, None)
    for i, first in enumerate(toy.episode_starts):
        length = toy.episodes[i].length
        np.testing.assert_array_equal(found[first : first + length - 1], toy.episode_actions(i)[:-1])


def test_labels_of_a_sidecar(toy, recipe, tmp_path):
    """Names and labels of other footage; another file of labels is another run."""
    folder = shutil.copytree(toy.folder, tmp_path / "toy")
    dataset = Dataset.open(folder)
    frames = dataset.windows(2)[::20]
    write_labels(folder, ("back", "on"), {int(frame): i % 2 for i, frame in enumerate(frames)})
    chosen = with_actions(recipe, dataset, "labels")
    assert chosen.inverse.controls == ("back", "on")
    world = train_world(dataset, chosen, tmp_path / "world", device=CPU)
    assert world.num_actions == 2
    write_labels(folder, ("back", "on"), {int(frame): i % 2 for i, frame in enumerate(frames[1:])})
    with pytest.raises(FileExistsError, match="another sidecar"):
        train_world(dataset, with_actions(recipe, dataset, "labels"), tmp_path / "world", device=CPU)


def bad_labels(folder, dataset, what):
    frames = dataset.windows(2)[:40].tolist()
    labels = [[frame, i % 2] for i, frame in enumerate(frames)]
    labels = {
        "a frame that is not there": [*labels, [10**9, 0]],
        "a label beyond the controls": [*labels, [frames[0] + 100, 7]],
        "two labels for one frame": [*labels, [frames[0], 1]],
        "too few": labels[:5],
        "a control without any": [[frame, 0] for frame in frames],
    }[what]
    content = {"format": "minigenie-labels", "version": 1, "controls": ["a", "b"], "labels": labels}
    (folder / "labels.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a frame that is not there", "no such frame"),
        ("a label beyond the controls", "control 7; there are 0 to 1"),
        ("two labels for one frame", "has two labels"),
        ("too few", "there are 5 labels; give at least 20"),
        ("a control without any", "no label says 'b'"),
    ],
)
def test_labels_that_make_no_sense_end_in_one_line(toy, tmp_path, capsys, what, said):
    folder = shutil.copytree(toy.folder, tmp_path / "toy")
    bad_labels(folder, toy, what)
    with pytest.raises(SystemExit) as end:
        main(["train", str(folder), "--out", str(tmp_path / "world"), "--actions", "labels", *SMALL])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "world").exists()


def test_a_control_that_the_footage_never_shows_is_said_before_training(tmp_path, capsys):
    writer = DatasetWriter(
        tmp_path / "data", frame_size=(64, 64), fps=10, source="x", generator="x", split="train",
        settings={"controls": ["stay", "go", "fly"]},
    )  # fmt: skip
    writer.write(0, np.zeros((40, 64, 64, 3), np.uint8), [Episode(0, 0, 40)], np.arange(40) % 2)
    writer.close()
    with pytest.raises(SystemExit) as end:
        main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "world"), "--actions", "true", *SMALL])
    assert end.value.code == 2
    assert "no label says 'fly'" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--actions", "true"], "has no recorded actions"),
        (["--actions", "labels", "--labels", "100"], "has no recorded actions to learn from"),
        (["--actions", "labels"], "make some with `minigenie teach"),
        (["--labels", "100"], "add --actions labels"),
        (["--actions", "true", "--labels", "100"], "leave --labels out"),
    ],
)
def test_actions_that_are_not_there_end_in_one_line(tmp_path, capsys, arguments, said):
    writer = DatasetWriter(
        tmp_path / "data", frame_size=(64, 64), fps=10, source="x", generator="x", split="train", settings={}
    )
    writer.write(0, np.zeros((40, 64, 64, 3), np.uint8), [Episode(0, 0, 40)])
    writer.close()
    with pytest.raises(SystemExit) as end:
        main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "world"), *arguments, *SMALL])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "world").exists()
