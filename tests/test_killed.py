"""Killed at random moments, again and again until it is done, a command leaves what it would have left undisturbed.

Each command runs in a process of its own, which strikes itself with SIGKILL in some stage of its work: before a random
one of the file operations of its folder (opening, renaming and removing are all there are between two states of disk),
in the middle of writing a file, or after a random time. After each kill every file must be whole; at the end no byte
may differ.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import command

from minigenie.checkpoint import load_tensors
from minigenie.pictures import save_video

TRAINING = {  # each stage, and the file that ends it
    "tokenizer": "tokenizer.safetensors",
    "encoding tokens": "encoded/tokens.npy",
    "lam": "lam.safetensors",
    "encoding actions": "encoded/actions.npy",
    "dynamics": "dynamics.safetensors",
    "finishing": "checksums.json",
}


class Blow(NamedTuple):
    """To fall in `stage`: at its operation number `at`, within the writing of a file opened from there on, or `at`
    seconds after its first operation."""

    stage: str
    kind: str
    at: float


def stage_of(folder: str | Path, stages: dict[str, str]) -> str:
    return next((stage for stage, made in stages.items() if not (Path(folder) / made).exists()), "done")


def struck(arguments: list[str], folder: str, stages: dict[str, str], blow: Blow | None, tally: str) -> None:
    """`minigenie` with these arguments, in this process, until the blow falls. tally: file for how many operations
    each stage had, if it does not."""
    from minigenie import encode
    from minigenie.__main__ import main
    from minigenie.data import collect, ingest

    collect.STEPS, ingest.SHARD_FRAMES, encode.SAVE_EVERY = 100, 64, 0
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(tally + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    counts: Counter[str] = Counter()

    def see(event: str, args: tuple) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.mkdir")) and str(args[0]).startswith(folder):
            stage = stage_of(folder, stages)
            counts[stage] += 1
            if not blow or blow.stage != stage:
                return
            if blow.kind == "time" and counts[stage] == 1:
                threading.Timer(blow.at, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if blow.kind == "operation" and counts[stage] == blow.at:
                os.kill(os.getpid(), signal.SIGKILL)
            if blow.kind == "write" and counts[stage] >= blow.at and writes:  # the kernel kills at the byte after that
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(10 ** random.uniform(0, 4)), resource.RLIM_INFINITY))

    sys.addaudithook(see)
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            os._exit(stop.code)
    Path(tally).write_text(json.dumps(counts))
    os._exit(0)


@pytest.fixture(scope="module")
def strike(tmp_path_factory):
    """strike(arguments, folder, stages, blow) -> the operations of each stage, or None if it was killed. A server that
    has torch loaded forks a process for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"minigenie.{name}" for name in ("pipeline", "recipes", "console", "data.ingest")])
    tally = tmp_path_factory.mktemp("tally") / "operations"

    def strike(
        arguments: list[str], folder: Path, stages: dict[str, str], blow: Blow | None = None
    ) -> dict[str, int] | None:
        process = context.Process(target=struck, args=(arguments, str(folder), stages, blow, str(tally)))
        process.start()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGXFSZ), Path(f"{tally}.log").read_text()
        return json.loads(tally.read_text()) if process.exitcode == 0 else None

    return strike


def check_whole(folder: Path) -> None:
    """No file is half there, but for those that say so and the last line of a log."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.suffix == ".tmp":
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        elif path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".safetensors":
            load_tensors(path)


def contents(folder: Path) -> dict[str, object]:
    """Every file's bytes, less the times of day that training notes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif "checkpoints" in name and path.is_file():
            tensors, notes = load_tensors(path)
            found[name] = notes["step"], {key: value.numpy().tobytes() for key, value in tensors.items()}
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def kill_and_resume(count: int, aims: list[str], stages: dict[str, str], arguments_for, tmp_path, strike) -> None:
    """Kill and resume, run after run, until each stage of `aims` was struck `count` times."""
    rng, kills, runs, lost = random.Random(0), Counter[str](), 0, 0
    random.seed(0)
    operations = strike(arguments_for(tmp_path / "undisturbed"), tmp_path / "undisturbed", stages)
    assert operations
    expected = contents(tmp_path / "undisturbed")
    while lacking := [stage for stage in aims if kills[stage] < count]:
        folder, ended = tmp_path / f"run-{runs}", None
        while not ended:
            stage, kind = rng.choice(lacking), rng.choice(("operation", "operation", "write", "write", "time"))
            at = rng.expovariate(5.0) if kind == "time" else rng.randrange(1, max(3, operations[stage] // 3))
            blow = Blow(stage, kind, at) if rng.random() < 0.75 else None
            ended = strike(arguments_for(folder), folder, stages, blow)
            if not ended:
                kills[stage_of(folder, stages)] += 1
                check_whole(folder)
        found = contents(folder)
        assert found.keys() == expected.keys()
        if differ := [name for name in found if found[name] != expected[name]]:
            print("\n".join(f"{name}: {found[name]!r}, not {expected[name]!r}"[:20_000] for name in differ))
        else:
            shutil.rmtree(folder)
        lost += len(differ)
        runs += 1
        print(f"{kills.total()} kills in {runs} runs, {lost} files differ: {dict(kills)}", flush=True)
    assert not lost


COUNTS = [3, pytest.param(50, marks=[pytest.mark.heavy, pytest.mark.timeout(7200)])]


@pytest.mark.parametrize("count", COUNTS)
def test_train(toy, tmp_path, strike, count):
    def arguments(out: Path) -> list[str]:
        return command(toy.folder, out, steps=6)[3:]

    kill_and_resume(count, ["tokenizer", "lam", "dynamics"], TRAINING, arguments, tmp_path, strike)


@pytest.mark.parametrize("count", COUNTS)
def test_collect(tmp_path, strike, count):
    def arguments(out: Path) -> list[str]:
        return ["collect", "toy", "--out", str(out), "--frames", "1500", "--num-envs", "4"]

    kill_and_resume(count, ["data"], {"data": "manifest.json"}, arguments, tmp_path, strike)


@pytest.mark.parametrize("count", COUNTS)
def test_ingest(toy, tmp_path, strike, count):
    videos = tmp_path / "videos"
    for number in range(4):
        frames = np.concatenate([toy.episode_frames(i)[:40] for i in (number, number + 1)])
        save_video(torch.from_numpy(frames), videos / f"{number}.mp4", 10.0)
        (videos / f"{number}.actions.csv").write_text("".join(f"{i % 5}\n" for i in range(len(frames))))
    (videos / "0.episodes.csv").write_text("0,40\n40,80\n")

    def arguments(out: Path) -> list[str]:
        return ["ingest", str(videos), "--out", str(out), "--size", "32", "--split", "0.2", "--workers", "1"]

    kill_and_resume(count, ["data"], {"data": "manifest.json"}, arguments, tmp_path, strike)
