"""Bad input: one clear line, exit code 2, nothing half-written and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigenie.__main__ import main
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.world import World, locate


def fails(capsys, *arguments, code=2) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == code
    errors = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in errors if line.startswith("error: ")]
    assert len(lines) == 1, errors
    return lines[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(toy, tmp_path) -> Path:
    return shutil.copytree(toy.folder, tmp_path / "data")


def test_a_damaged_shard(data, tmp_path, capsys):
    shard = next(data.glob("shard-*.npy"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    message = fails(capsys, "train", data, "--out", tmp_path / "run", "--max-steps", 1)
    assert "sha256" in message
    assert shard.name in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", ["2", '"new"', "null"])
def test_a_manifest_of_another_version(data, tmp_path, capsys, version):
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', f'"version": {version}'))
    assert "version" in fails(capsys, "train", data, "--out", tmp_path / "run")
    assert "version" in fails(capsys, "info", data)


def test_frames_of_another_size(data, tmp_path, capsys):
    message = fails(capsys, "train", data, "--out", tmp_path / "run", "--set", "tokenizer.frame_size=[32,32]")
    assert "frames of 64x64, the recipe is for 32x32" in message
    assert not (tmp_path / "run").exists()


def test_clips_longer_than_any_episode(data, tmp_path, capsys):
    message = fails(capsys, "train", data, "--out", tmp_path / "run", "--set", "dynamics_fit.clip_frames=100000")
    assert "a window needs 100000" in message


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_an_output_folder_that_holds_something_else(data, tmp_path, capsys, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / content).write_text("{}")
    before = files(out)
    message = fails(capsys, "train", data, "--out", out, "--max-steps", 1)
    assert "config" in message or "already holds other files" in message
    assert files(out) == before


def test_a_demo_in_a_folder_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("mine")
    assert "already holds other files" in fails(capsys, "demo", "--out", tmp_path, "--game", "toy")
    assert files(tmp_path) == {"letters.txt": b"mine"}


def test_a_run_with_another_recipe(data, trained, capsys):
    before = files(trained)
    message = fails(capsys, "train", data, "--out", trained, "--recipe", "tiny")
    assert "holds a run with another" in message
    assert files(trained) == before


def test_an_output_that_is_a_file(data, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert "is a file" in fails(capsys, "train", data, "--out", tmp_path / "out")
    assert "is a file" in fails(capsys, "collect", "toy", "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--recipe", "huge"),
        ("--set", "dynamics.depth=3"),
        ("--set", "dynamics.transformer.num_heads=7"),
        ("--set", "tokenizer.patch=7"),
        ("--set", "lam.quantizer.num_codes=65"),
        ("--max-steps", "0"),
        ("--save-every", "0"),
        ("--max-minutes", "0"),
        ("--device", "abacus"),
    ],
)
def test_recipes_that_cannot_be(data, tmp_path, capsys, arguments):
    fails(capsys, "train", data, "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_folders_that_are_not_there(tmp_path, capsys):
    for arguments in (
        ("train", tmp_path / "no", "--out", tmp_path / "run"),
        ("train", "--recipe", "tiny"),
        ("rollout", tmp_path / "no", "--actions", "0"),
        ("eval", tmp_path / "no", tmp_path / "no"),
        ("eval", "--compare"),
        ("info", tmp_path / "no"),
        ("info", tmp_path),
        ("ingest", tmp_path / "no", "--out", tmp_path / "data"),
        ("collect", "tetris", "--out", tmp_path / "data"),
        ("collect", "toy", "--out", tmp_path / "data", "--frames", "0"),
        ("demo", "--out", tmp_path / "demo", "--minutes", "0"),
    ):
        fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("actions", ["", "sideways", "0,x", "8", "-1", "1*0", "1*x", "1*99999999", "*3"])
def test_actions_that_are_none(trained, tmp_path, capsys, actions):
    fails(capsys, "rollout", trained, f"--actions={actions}", "--out", tmp_path / "clip.mp4", "--device", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_actions_by_name_and_how_often(capsys, tmp_path):
    names = [entry["name"] for entry in json.loads((locate("coinrun") / "actions.json").read_text())]
    clip = tmp_path / "clip.gif"
    said = fails(capsys, "rollout", "coinrun", "--actions", f"{names[1]},sideways", "--out", clip)
    assert said.endswith(f"no action 'sideways'; use 0 to {len(names) - 1}, or a name: {', '.join(names)}")
    chosen = f"{names[1]},{names[3].upper()},3*2"
    main(["rollout", "coinrun", "--actions", chosen, "--out", str(clip), "--device", "cpu"])
    assert "5 frames in" in capsys.readouterr().out


def test_a_clip_of_an_unknown_kind(trained, tmp_path, capsys):
    assert ".mp4 or .gif" in fails(capsys, "rollout", trained, "--actions", "0", "--out", tmp_path / "clip.avi")


def test_a_prompt_that_is_no_picture(trained, tmp_path, capsys):
    (tmp_path / "prompt.png").write_bytes(b"junk")
    for prompt in ("prompt.png", "none.png"):
        fails(capsys, "rollout", trained, "--prompt", tmp_path / prompt, "--actions", "0", "--out", tmp_path / "c.gif")
    Image.fromarray(np.zeros((10, 300), np.uint8)).save(tmp_path / "odd.png")
    main(
        [
            "rollout",
            str(trained),
            "--prompt",
            str(tmp_path / "odd.png"),
            "--actions",
            "0",
            "--out",
            str(tmp_path / "c.gif"),
        ]
    )
    assert (tmp_path / "c.gif").exists()


def test_no_usable_video(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "junk.mp4").write_bytes(b"junk")
    with pytest.raises(SystemExit) as caught:
        main(["ingest", str(tmp_path / "videos"), "--out", str(tmp_path / "data")])
    assert caught.value.code == 1
    assert not (tmp_path / "data").exists()


def test_an_unknown_option_or_command(capsys):
    for arguments in (["train", "x", "--rescipe", "tiny"], ["paly"], ["collect", "toy"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small file system")
@pytest.mark.parametrize("command", ["collect", "train"])
def test_a_full_disk_loses_nothing(toy, tmp_path, command):
    """A file system of 3 MB fills up on the way; with room made, the same command ends well."""
    small, out = tmp_path / "small", tmp_path / "small" / "out"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes more rights than this container has")
    arguments = {
        "collect": ["toy", "--out", str(out), "--frames", "1000"],
        "train": [str(toy.folder), "--out", str(out), "--max-steps", "4", "--device", "cpu"],
    }[command]
    full = [sys.executable, "-m", "minigenie", command, *arguments]
    try:
        ended = subprocess.run(full, capture_output=True, text=True)
        assert ended.returncode == 2
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "make room" in errors[0]
        assert not list(out.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        assert subprocess.run(full, capture_output=True).returncode == 0
        if command == "collect":
            assert Dataset.open(out).num_frames >= 1000
        else:
            assert World.load(out, "cpu").num_actions == 8
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("bug", [KeyError("size"), ValueError("not the user's"), AssertionError(), RuntimeError("x")])
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
    def buggy(folder):
        raise bug

    monkeypatch.setattr("minigenie.info.describe", buggy)
    with pytest.raises(type(bug)) as caught:
        main(["info"])
    assert caught.value is bug


def test_what_the_user_can_mend_is_one_line_whoever_raises_it(monkeypatch, capsys):
    def refusing(folder):
        raise UserError(f"{folder} is\nnot right; mend it")

    monkeypatch.setattr("minigenie.info.describe", refusing)
    assert fails(capsys, "info", "it") == "error: it is not right; mend it"


def test_debug_shows_where_an_error_comes_from(tmp_path, monkeypatch, capsys):
    def traced(*arguments):
        with pytest.raises(FileNotFoundError):
            main(["info", str(tmp_path / "no"), *arguments])

    fails(capsys, "info", tmp_path / "no")
    traced("--debug")
    monkeypatch.setenv("MINIGENIE_DEBUG", "1")
    traced()


def test_help_is_light():
    """torch alone takes seconds to import."""
    code = (
        "import sys, minigenie.__main__ as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'av', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_bfloat16_where_it_is_slow_is_done_and_said(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minigenie.runtime.fast_bfloat16", lambda device: False)
    small = ["--max-steps", "1", "--set", "tokenizer_fit.batch_size=4", "--device", "cpu"]
    main(["train", str(data), "--out", str(tmp_path / "run"), "--precision", "bfloat16", *small])
    seen = capsys.readouterr()
    assert seen.err.count("slow at bfloat16") == 1
    assert "is a world" in seen.out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert {config[f"{stage}_fit"]["execution"]["precision"] for stage in ("tokenizer", "lam", "dynamics")} == {
        "bfloat16"
    }
