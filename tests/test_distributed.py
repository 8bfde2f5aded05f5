"""Several processes, on one machine and on two: what they do is what one process does.

One process that goes through four parts of each batch, two that go through two each, and four with one each add up the
same gradients in another order. Float sums differ by that in their last bits; optimizers carry it on, Muon hardly and
AdamW by a sign where a gradient is near zero. So losses agree to 1e-3 over the handful of steps taken here.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigenie.metrics import read_metrics
from minigenie.recipes import tiny

TOLERANCE = 1e-3
STAGES = tiny().models
SMALL = (
    {
        "tokenizer.encoder": {"num_blocks": 1, "dim": 32, "num_heads": 2},
        "tokenizer.decoder": {"num_blocks": 1, "dim": 32, "num_heads": 2},
        "tokenizer.quantizer": {"num_codes": 32, "code_dim": 8, "warmup": 0.25},
        "lam.encoder": {"num_blocks": 1, "dim": 32, "num_heads": 2},
        "lam.decoder": {"num_blocks": 1, "dim": 32, "num_heads": 2},
        "dynamics.transformer": {"num_blocks": 2, "dim": 32, "num_heads": 2},
    }
    | {f"{stage}_fit": {"batch_size": 8} for stage in STAGES}
    | {
        f"{stage}_fit.execution": {"part": 2, "precision": "float32", "save_every": 3, "sample_every": 100}
        for stage in STAGES
    }
)


def command(dataset, out, processes=1, *options, port=29511, steps=8):
    """`minigenie train`, as users type it."""
    fields = [f"{part}.{name}={value}" for part, values in SMALL.items() for name, value in values.items()]
    changed = [part for field in fields for part in ("--set", field)]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    train = ["-m", "minigenie", "train", str(dataset), "--out", str(out), "--max-steps", str(steps), "--device", "cpu"]
    return [sys.executable, *(torchrun if processes > 1 else []), *train, *changed, *options]


def run(*args, **options):
    ended = subprocess.run(command(*args, **options), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("is a world") == 1
    return args[1]


def losses(out: Path) -> dict[tuple[str, int], float]:
    return {
        (line["stage"], line["step"]): line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line
    }


def assert_same_training(out: Path, other: Path) -> None:
    assert losses(out).keys() == losses(other).keys()
    assert len(losses(out)) >= len(STAGES)
    for at, loss in losses(out).items():
        assert abs(loss - losses(other)[at]) < TOLERANCE * max(1, abs(loss)), at
    for stage in STAGES:
        ours, theirs = load_file(out / f"{stage}.safetensors"), load_file(other / f"{stage}.safetensors")
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0.02, atol=0.02)


@pytest.fixture(scope="module")
def reference(toy, tmp_path_factory) -> Path:
    """What one process makes of it."""
    return run(toy.folder, tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (4, ()),
        (2, ("--shard",)),
        *(pytest.param(*more, marks=pytest.mark.heavy) for more in ((2, ()), (4, ("--shard",)))),
    ],
)
def test_several_processes_train_as_one(toy, reference, tmp_path, processes, options):
    assert_same_training(run(toy.folder, tmp_path / "run", processes, *options), reference)


def test_a_checkpoint_of_four_goes_on_in_one_and_in_two_sharded(toy, reference, tmp_path):
    """Stopped twice, each time by a signal to torchrun, and taken up by another number of processes."""
    out = tmp_path / "run"
    for processes, options, until in ((4, (), ("lam", 3)), (2, ("--shard",), ("dynamics", 3))):
        started = subprocess.Popen(command(toy.folder, out, processes, *options), stderr=subprocess.PIPE, text=True)
        wait_for(lambda until=until: checkpoint(out, *until).exists(), started)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=120)
        assert started.returncode != 0
    assert not (out / "dynamics.safetensors").exists()
    run(toy.folder, out)
    assert_same_training(out, reference)


def test_one_killed_process_ends_all_and_the_run_goes_on(toy, reference, tmp_path):
    out = tmp_path / "run"
    started = subprocess.Popen(command(toy.folder, out, 2), stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: checkpoint(out, "lam", 3).exists(), started)
    workers = [int(pid) for pid in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)
    _, errors = started.communicate(timeout=120)
    assert started.returncode != 0
    # torchrun may ask the other to stop before it has noticed
    ends = ("error: process 0 lost touch with the others", "run it again", "goes on from there")
    assert any(line in errors for line in ends)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert_same_training(run(toy.folder, out, 2), reference)


@pytest.mark.heavy
def test_two_hosts_train_as_one(toy, reference, tmp_path):
    """Two network namespaces with an address each and a cable between: all they share is the disk. Wants root."""
    address = {"mg-one": "10.77.0.1", "mg-two": "10.77.0.2"}
    hosts = list(address)
    try:
        for host in hosts:
            ip("netns", "add", host)
        ip("link", "add", hosts[0], "type", "veth", "peer", "name", hosts[1])
        for host in hosts:
            ip("link", "set", host, "netns", host)
            for change in (("addr", "add", f"{address[host]}/24", "dev", host), ("link", "set", host, "up")):
                ip("-n", host, *change)
            ip("-n", host, "link", "set", "lo", "up")
        meeting = [
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            f"{address['mg-one']}:29400",
        ]
        started = []
        for host in hosts:
            python, *rest = command(toy.folder, tmp_path / "run", 2, port=29400)
            rest[2:4] = [*meeting, "--local-addr", address[host], "--rdzv-conf", f"is_host={host == hosts[0]}"]
            there = ["ip", "netns", "exec", host, python, *rest]
            interface = {"GLOO_SOCKET_IFNAME": host}
            started.append(subprocess.Popen(there, env=os.environ | interface, stderr=subprocess.PIPE, text=True))
        for process in started:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for host in hosts:
            ip("netns", "del", host)
    assert_same_training(tmp_path / "run", reference)


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


def checkpoint(out: Path, stage: str, step: int) -> Path:
    return out / "checkpoints" / stage / f"step-{step:08d}.safetensors"


def wait_for(fact, process) -> None:
    end = time.monotonic() + 300
    while not fact():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
