"""The loop: exact resume, signals, divergence; and the optimisers."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.checkpoint import Checkpoints, load_tensors, save_tensors
from minigenie.metrics import read_metrics
from minigenie.nn.model import Model, Sample
from minigenie.nn.st_transformer import STBlock
from minigenie.optim import OptimConfig, learning_rate_share, make_optimizers, orthogonal, set_learning_rate
from minigenie.runtime import autotuned_threads, can_compile, parallel_map
from minigenie.train import Diverged, Execution, FitConfig, Interrupted, OutOfMemory, fit, prepare_stacks


class Line(Model):
    """y = 2x, learnt with some randomness of its own. `at_step` sees the number of each step."""

    def __init__(self, at_step=lambda step: None):
        super().__init__()
        self.body = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
        self.at_step = at_step

    def forward(self, batch, progress):
        self.at_step(int(batch["step"]))
        loss = (self.body["blocks"][0](batch["x"] + 0.01 * torch.randn(4)) - 2 * batch["x"]).square().mean()
        return loss, {"progress_seen": torch.tensor(progress)}


def batch_of(step, clips):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return {"x": x[clips.start : clips.stop], "step": torch.tensor(step)}


def config(**changes):
    optim = OptimConfig(optimizer="muon", lr=1e-2, warmup=2)
    how = {name: changes.pop(name) for name in Execution.__dataclass_fields__ if name in changes}
    execution = Execution(**({"save_every": 3, "sample_every": 5} | how))
    return FitConfig(**({"steps": 12, "batch_size": 8, "optim": optim, "execution": execution} | changes))


def run(folder, config=config(), batch_of=batch_of, at_step=lambda step: None, **settings):  # noqa: B008
    torch.manual_seed(0)
    model = Line(at_step)
    fit(model, batch_of, config, folder, stage="line", seed=0, device=torch.device("cpu"), **settings)
    return model


def stopping_at(step_to_stop):
    return lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == step_to_stop else None


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 10])
def test_stopped_and_resumed_is_never_stopped(tmp_path, stop):
    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"stopped at step {stop + 1} and is saved"):
        run(tmp_path / "halves", at_step=stopping_at(stop))
    resumed = run(tmp_path / "halves")
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    one, other = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "halves")
    )
    assert one == other


def test_it_learns(tmp_path):
    run(tmp_path, config(steps=200, optim=OptimConfig(lr=0.05, warmup=2)))
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 10


def test_a_batch_in_parts_is_the_whole_batch(tmp_path):
    """Of unequal parts too."""
    whole, parts = (
        run(tmp_path / str(part), config(part=part, steps=1, optim=OptimConfig(lr=1e-2, warmup=0))) for part in (8, 3)
    )
    # the model's own noise differs between one draw and three, hence the tolerance
    assert_close(whole.state_dict(), parts.state_dict(), rtol=0, atol=1e-3)


def test_a_batch_splits_over_any_number_of_processes():
    """Every clip once, as many parts for each process, none of more clips than allowed."""
    for size, processes, part in ((36, 8, 1024), (36, 8, 2), (8, 1, 3), (8, 4, 2), (5, 5, 1)):
        parts = config(batch_size=size, part=part).parts(processes)
        assert [clip for clips in parts for clip in clips] == list(range(size))
        assert len(parts) % processes == 0
        assert 1 <= min(map(len, parts)) <= max(map(len, parts)) <= part
    with pytest.raises(ValueError, match="batch_size 4 does not split over 5 processes"):
        config(batch_size=4).parts(5)


def test_batches_are_made_beforehand_on_another_thread(tmp_path):
    made, seen = {}, []

    def noted(step, clips):
        made[step] = threading.current_thread()
        return batch_of(step, clips)

    def at_step(step):
        seen.append(step)
        while step + 1 not in made:  # else the test hangs
            time.sleep(0.001)

    run(tmp_path, config(steps=4), batch_of=noted, at_step=at_step)
    assert seen == [0, 1, 2, 3]
    assert threading.main_thread() not in made.values()


def test_the_clock_starts_after_the_first_step(tmp_path):
    """Which may take a minute to compile."""
    run(tmp_path, config(steps=10**6), at_step=lambda step: time.sleep(1.0 if step == 0 else 0.02), max_seconds=0.4)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "progress_seen" in line]
    assert lines[-1]["step"] >= 10


def test_a_stage_does_not_end_before_its_codes_are_placed(tmp_path):
    model = small_recipe().make_lam()
    frames = torch.randint(256, (8, 2, 64, 64, 3), dtype=torch.uint8)
    fit(model, lambda step, clips: {"frames": frames[clips.start : clips.stop]}, config(steps=1), tmp_path,
        stage="lam", seed=0, device=torch.device("cpu"))  # fmt: skip
    assert model.quantizer.placed
    assert model.infer(frames.float() / 255).unique().numel() > 1


def test_too_little_memory_says_what_to_set(tmp_path):
    def at_step(step):
        if step == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(OutOfMemory, match=r"line: out of memory with 8 clips at a time.*line_fit.execution.part=4"):
        run(tmp_path, at_step=at_step)
    assert Checkpoints(tmp_path / "checkpoints" / "line").load().step == 6


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no compiler")
def test_blocks_of_one_size_are_compiled_once_and_nothing_runs_eager(tmp_path):
    """In a process of its own: the type checks of these tests are no code to compile."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILED_ONCE], check=True, env=environment)


COMPILED_ONCE = """
from dataclasses import replace

import torch
from minigenie.bench.train import _noise
from minigenie.nn.st_transformer import STConfig
from minigenie.recipes import tiny
from minigenie.train import Execution, Part, backward, prepare_stacks, update

graphs = []
recipe = tiny()
recipe = replace(recipe, dynamics=replace(recipe.dynamics, transformer=STConfig(num_blocks=4, dim=32, num_heads=2)))
cpu, batch = torch.device("cpu"), _noise(recipe, torch.Size((2, 4)), torch.device("cpu"))
losses = []
for how in (Execution(), Execution(compile=True)):
    torch.manual_seed(0)
    model = recipe.make_dynamics()
    prepare_stacks(model, how, cpu)
    torch._dynamo.utils.counters.clear()
    for step in range(3):
        torch.manual_seed(step)
        losses.append(float(backward(model, [Part(batch)], "float32", cpu, 1.0)["loss"]))
        update(model, [torch.optim.AdamW(model.parameters(), lr=1e-3)], recipe.dynamics_fit)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, torch._dynamo.utils.counters["stats"]
torch.testing.assert_close(losses[:3], losses[3:], rtol=1e-4, atol=1e-4)
"""


def test_what_is_to_be_computed_again_reaches_every_block():
    model = small_recipe().make_tokenizer()
    prepare_stacks(model, Execution(recompute="cheap"), torch.device("cpu"))
    blocks = [part for part in model.modules() if isinstance(part, STBlock)]
    assert len(blocks) > 1
    assert all(block.recompute == "cheap" for block in blocks)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(tmp_path):
    def batch(step, clips):
        made = batch_of(step, clips)
        return made | {"x": made["x"] * (float("nan") if step == 7 else 1)}

    with pytest.raises(Diverged, match=r"line: the loss is nan at step \d.*lower rate: --set line_fit.optim.muon_lr="):
        run(tmp_path, batch_of=batch)
    tensors, notes = load_tensors(Checkpoints(tmp_path / "checkpoints" / "line").paths()[-1])
    assert notes["step"] == 6
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_last_checkpoints_stay_and_load(tmp_path):
    run(tmp_path, config(steps=20, keep=2))
    paths = Checkpoints(tmp_path / "checkpoints" / "line").paths()
    assert [path.stem for path in paths] == ["step-00000018", "step-00000020"]
    for path in paths:
        load_tensors(path)


def test_a_time_limit_runs_the_whole_schedule(tmp_path):
    run(tmp_path, config(steps=10**6), at_step=lambda step: time.sleep(0.01), max_seconds=0.5)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "progress_seen" in line]
    assert lines[-1]["progress"] > 0.5
    assert lines[-1]["seconds"] < 5


def test_metrics_cut_short_by_a_kill_are_mended(tmp_path):
    run(tmp_path, config(steps=6))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "line", "step": 9')
    run(tmp_path)
    steps = [line["step"] for line in read_metrics(path)]
    assert steps == sorted(steps)
    assert 9 not in steps


def test_killed_outright_the_run_goes_on(tmp_path):
    """SIGKILL strikes a real process in the middle; what it saved is whole and the end is the same."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import test_train as t\n"
        "from pathlib import Path\n"
        "slow = lambda step: time.sleep(0.05)\n"
        "t.torch.set_num_threads(1); t.run(Path(sys.argv[2]), t.config(steps=40), at_step=slow)\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "killed")]
    process = subprocess.Popen(command)
    checkpoints = Checkpoints(tmp_path / "killed" / "checkpoints" / "line")
    while len(checkpoints.paths()) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    resumed, whole = run(tmp_path / "killed", config(steps=40)), run(tmp_path / "whole", config(steps=40))
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_an_old_checkpoint_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.ones(3)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="make room"):
        save_tensors(path, {"x": torch.zeros(3)})
    assert_close(load_tensors(path)[0], {"x": torch.ones(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


# Optimisers.


def test_muon_steps_are_orthogonal():
    """In either precision; also of matrices whose largest singular value is a hundred times the least."""
    for shape in ((3, 16, 16), (1, 8, 32), (2, 32, 8)):
        plain = torch.randn(shape)
        u, s, v = torch.linalg.svd(plain, full_matrices=False)
        wide = u @ torch.diag_embed(s.clamp(min=1) * torch.logspace(0, -2, s.shape[-1])) @ v
        for matrices, least in ((plain, 0.3), (wide, 0.1)):
            for dtype in (torch.float32, torch.bfloat16):
                values = torch.linalg.svdvals(orthogonal(matrices.to(dtype)).float())
                assert values.min() > least
                assert values.max() < 1.4


def test_muon_takes_the_blocks_and_adamw_the_rest():
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "head": torch.nn.Linear(4, 2)})
    named = torch.nn.ModuleDict({"transformer": model})
    adamw, muon = make_optimizers(named, OptimConfig(optimizer="muon", lr=1.0, muon_lr=2.0))
    assert [p.shape for group in muon.param_groups for p in group["params"]] == [(4, 4)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 3
    set_learning_rate([adamw, muon], OptimConfig(lr=1.0, muon_lr=2.0), 0.5)
    assert adamw.param_groups[0]["lr"] == 0.5
    assert muon.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear", "late"])
def test_the_learning_rate_warms_up_and_comes_down(decay):
    config = OptimConfig(warmup=9, decay=decay, final_lr=0.1)
    shares = [learning_rate_share(config, step, step / 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(0.1, abs=0.01)
    assert max(shares) == pytest.approx(1.0, abs=0.02)
    assert shares[-1] == pytest.approx(1.0 if decay == "constant" else 0.1, abs=0.01)
    falls = [late <= early + 1e-9 for early, late in pairwise(shares[9:])]
    assert all(falls)


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"part": 0}, {"clip_frames": 0}])
def test_settings_that_cannot_be(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        config(**change)


def test_what_a_model_shows_of_itself_is_seen_by_whoever_watches(tmp_path):
    seen = []
    run(tmp_path, sample=lambda model: Sample({"control": 1.5}), watch=seen.append)
    assert [progress.step for progress in seen if "control" in progress.metrics] == [1, 5, 10]


# Threads.


@pytest.mark.parametrize("faster", [1, 3])
def test_where_the_clock_governs_steps_take_the_faster_number_of_threads(monkeypatch, faster):
    """A step takes one second on the faster number of threads and two on the other."""
    clock = [0.0]
    monkeypatch.setattr("minigenie.runtime.time.monotonic", lambda: clock[0])
    torch.set_num_threads(3)
    used = []
    with autotuned_threads(choosing=True, every=20) as lap:
        for _ in range(60):
            used.append(torch.get_num_threads())
            clock[0] += 1 if used[-1] == faster else 2
            lap()
    assert torch.get_num_threads() == 3
    assert used == [3, 3, 1, 1, *[faster] * 16] * 3


def test_where_steps_are_counted_the_threads_stay():
    torch.set_num_threads(2)
    with autotuned_threads(choosing=False) as lap:
        [lap() for _ in range(10)]
        assert torch.get_num_threads() == 2


def test_parts_side_by_side_come_back_in_order_from_one_thread_each_without_gradients():
    torch.set_num_threads(3)
    weight = torch.ones(1, requires_grad=True)

    def call(part, number):
        time.sleep(0.02 * (5 - number))  # the first is the slowest
        return number, part * weight, torch.get_num_threads()

    found = list(parallel_map(call, torch.arange(5.0), count(), device=torch.device("cpu")))
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4]
    assert not any(product.requires_grad for _, product, _ in found)
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == 3


KEPT = """
import resource, torch
from minigenie.runtime import release_memory, keep_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
held = lambda: int(open("/proc/self/statm").read().split()[1])
use = lambda: [torch.ones(1 << 22) for _ in range(16)] and None
keep_memory(); use(); use()
before = faults(); use(); print(faults() - before)
before = held(); release_memory(); print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_freed_memory_is_kept_for_the_next_step_and_given_back():
    """256 MB, 65,536 pages, freed and used again. In a process of its own, which it changes for good."""
    ended = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    faults, returned = map(int, ended.stdout.split())
    assert faults < 5000  # on Python 3.12 and later one of the 16 tensors, 4,096 pages, may lie in new memory
    assert returned > 60_000
