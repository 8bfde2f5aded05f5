"""Killed at random moments, again and again until it is done, a command leaves what it would have left undisturbed.

Each command runs in a process of its own, which strikes itself with SIGKILL: before a random one of the file operations
of the folder it works on (opening, renaming and removing are all there are between two states of a disk), in the middle
of writing a file, or after a random time. After each kill every file must be whole; at the end no byte may differ.
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

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import command

from minigenie.checkpoint import load_tensors
from minigenie.pictures import save_video

STAGES = {
    "tokenizer": "tokenizer.safetensors",
    "encoding tokens": "encoded/tokens.npy",
    "lam": "lam.safetensors",
    "encoding actions": "encoded/actions.npy",
    "dynamics": "dynamics.safetensors",
    "finishing": "README.md",
}


def struck(arguments: list[str], folder: str, blow: tuple[str, float] | None, tally: str) -> None:
    """`minigenie` with these arguments, in this process, until the blow falls. tally: file for how many operations
    there were, if it does not."""
    from minigenie import encode
    from minigenie.__main__ import main
    from minigenie.data import collect, ingest

    collect.STEPS, ingest.SHARD_FRAMES, encode.SAVE_EVERY = 100, 64, 0
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(tally + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    count = 0

    def see(event: str, args: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.mkdir")) and str(args[0]).startswith(folder):
            count += 1
            if blow and blow[0] == "operation" and count == blow[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            if blow and blow[0] == "write" and count == blow[1] and writes:  # the kernel kills at the byte after that
                resource.setrlimit(resource.RLIMIT_FSIZE, (random.randrange(1, 20_000), resource.RLIM_INFINITY))

    sys.addaudithook(see)
    if blow and blow[0] == "time":
        threading.Timer(blow[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            os._exit(stop.code)
    Path(tally).write_text(str(count))
    os._exit(0)


@pytest.fixture(scope="module")
def strike(tmp_path_factory):
    """strike(arguments, folder, blow) -> whether the command ended, and after how many operations. A server that has
    torch loaded forks a process for each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"minigenie.{name}" for name in ("pipeline", "recipes", "console", "data.ingest")])
    tally = tmp_path_factory.mktemp("tally") / "operations"

    def strike(arguments: list[str], folder: Path, blow: tuple[str, float] | None = None) -> tuple[bool, int]:
        process = context.Process(target=struck, args=(arguments, str(folder), blow, str(tally)))
        process.start()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGXFSZ), Path(f"{tally}.log").read_text()
        return process.exitcode == 0, int(tally.read_text()) if process.exitcode == 0 else 0

    yield strike
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


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


def stage_of(folder: Path) -> str:
    return next((stage for stage, made in STAGES.items() if not (folder / made).exists()), "done")


def kill_until(enough, arguments_for, tmp_path, strike) -> Counter:
    """Kill and resume, run after run, until `enough(kills by stage)`."""
    folder, rng, kills, lost = tmp_path / "undisturbed", random.Random(0), Counter(), 0
    random.seed(0)
    ended, operations = strike(arguments_for(folder), folder)
    assert ended
    expected, number = contents(folder), 0
    while not enough(kills):
        number += 1
        folder = tmp_path / f"run-{number}"
        ended = False
        while not ended:
            kind = rng.choice(("operation", "operation", "write", "write", "time"))
            blow = (kind, rng.expovariate(1.0) if kind == "time" else rng.randrange(1, max(2, operations // 4)))
            ended, _ = strike(arguments_for(folder), folder, blow)
            if not ended:
                kills[stage_of(folder)] += 1
                check_whole(folder)
        found = contents(folder)
        assert found.keys() == expected.keys()
        lost += sum(found[name] != expected[name] for name in found)
        shutil.rmtree(folder)
    print(f"{sum(kills.values())} kills in {number} runs, {lost} files differ: {dict(kills)}")
    assert not lost
    return kills


COUNTS = [3, pytest.param(50, marks=[pytest.mark.heavy, pytest.mark.timeout(7200)])]


@pytest.mark.parametrize("count", COUNTS)
def test_train(toy, tmp_path, strike, count):
    def arguments(out: Path) -> list[str]:
        return command(toy.folder, out, steps=6)[3:]

    kill_until(
        lambda kills: min(kills[stage] for stage in ("tokenizer", "lam", "dynamics")) >= count,
        arguments,
        tmp_path,
        strike,
    )


@pytest.mark.parametrize("count", COUNTS)
def test_collect(tmp_path, strike, count):
    def arguments(out: Path) -> list[str]:
        return ["collect", "toy", "--out", str(out), "--frames", "1500", "--num-envs", "4"]

    kill_until(lambda kills: sum(kills.values()) >= count, arguments, tmp_path, strike)


@pytest.mark.parametrize("count", COUNTS)
def test_ingest(toy, tmp_path, strike, count):
    videos = tmp_path / "videos"
    for number in range(4):
        frames = np.concatenate([toy.episode_frames(i)[:40] for i in (number, number + 1)])
        save_video(torch.from_numpy(frames), videos / f"{number}.mp4", 10.0)

    def arguments(out: Path) -> list[str]:
        return ["ingest", str(videos), "--out", str(out), "--size", "32", "--split", "0.2", "--workers", "1"]

    kill_until(lambda kills: sum(kills.values()) >= count, arguments, tmp_path, strike)
