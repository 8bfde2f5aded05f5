"""The training loop: one for every model. `loss, metrics = model(batch, progress)`.

What a step does follows from (seed, stage, step) alone, so a run that was killed and resumed is, bit for bit on a CPU
with fixed threads, the run that never was; and several processes do what one does that goes through the same parts of
each batch one after the other, up to the order in which gradients are added. A time limit bends the schedule to the
clock and is exempt from that.

Nothing in a step waits for the device: batches are made beforehand by a thread of their own, and numbers are read every
few steps only.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minigenie.checkpoint import Checkpoints
from minigenie.errors import UserError
from minigenie.metrics import MetricsLog
from minigenie.nn.model import Model, Sample
from minigenie.nn.st_transformer import Recompute
from minigenie.optim import OptimConfig, learning_rate_share, make_optimizers, set_learning_rate
from minigenie.pictures import save_picture
from minigenie.runtime import (
    Precision,
    any_rank,
    autocast,
    autotuned_threads,
    can_compile,
    compiled,
    deferred_signals,
    full_tensor,
    keep_memory,
    max_over_ranks,
    mean_over_ranks,
    release_memory,
    seed_step,
)

LOG_EVERY = 10  # steps
ENDLESS = 1_000_000  # steps of a stage that only a time limit ends
AHEAD = 2  # batches


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a stage runs on the machine at hand, which may change on the way. part: clips that go through the model at
    once at most; a batch of more goes in parts. precision: see `runtime.dtype_of`. compile: the transformers' blocks,
    which takes a minute and pays back in hours. recompute: what to compute again for the gradients, to save memory:
    "cheap" (norm and GELU of the feed-forwards) or "blocks" (whole ones: the least memory, the most time).
    sample_every, save_every: steps between pictures and between checkpoints, of which the last `keep` stay."""

    part: int = 1024
    precision: Precision = "auto"
    compile: bool = False
    recompute: Recompute = "nothing"
    sample_every: int = 1000
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("part", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What a stage learns from, and how it runs. steps: optimizer steps. batch_size: clips a step, over all processes.
    clip_frames: frames of a clip."""

    steps: int
    batch_size: int
    clip_frames: int = 16
    optim: OptimConfig = field(default_factory=OptimConfig)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "clip_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def parts(self, processes: int = 1) -> list[range]:
        """A batch's clips as they go through the model: as many parts for each process, and as few as `part` allows.
        ValueError if there are more processes than clips."""
        if self.batch_size < processes:
            raise UserError(f"batch_size {self.batch_size} does not split over {processes} processes; set it to more")
        number = processes * math.ceil(self.batch_size / processes / self.execution.part)
        ends = [i * self.batch_size // number for i in range(number + 1)]
        return [range(*pair) for pair in pairwise(ends)]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved its state."""


class Diverged(UserError):
    """The loss is no longer a number."""


class OutOfMemory(UserError):
    """A step does not fit."""


class Progress(NamedTuple):
    """What a step tells whoever watches. fraction: of this stage, 0 to 1. seconds: spent on it, breaks left out."""

    stage: str
    step: int
    fraction: float
    seconds: float
    metrics: dict[str, float]


def fit(
    model: Model,
    batch_of: Callable[[int, range], dict[str, Tensor]],
    config: FitConfig,
    folder: Path,
    *,
    stage: str,
    seed: int,
    device: torch.device,
    max_seconds: float | None = None,
    shard: bool = False,
    sample: Callable[[Any], Sample] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `model` in place, resuming from `folder` what was begun there, be it by more processes or fewer.

    batch_of(step, clips): some of the clips that make up a step's batch, on the CPU; a thread of its own calls it.
    max_seconds: end by then, with the whole schedule run through; what the first step takes, be it to compile, does not
    count. shard: weights, gradients and optimizer state over the processes. Writes folder/metrics.jsonl,
    folder/samples, folder/checkpoints/STAGE.
    The process keeps the memory that it frees (runtime.keep_memory), and at the end gives back what it kept by then.
    Raises Interrupted after a signal, Diverged if the loss is not finite, OutOfMemory: the last good checkpoint stays.
    """
    keep_memory()
    how = config.execution
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = config.parts(processes)
    mine = parts[rank * len(parts) // processes : (rank + 1) * len(parts) // processes]
    checkpoints = Checkpoints(folder / "checkpoints" / stage, how.keep)
    latest = checkpoints.load()
    latest.restore_model(model)
    model.to(device).train()
    trained = shard_model(model) if shard else model
    optimizers = make_optimizers(trained, config.optim)
    latest.restore_optimizers(optimizers)
    step, spent, began = latest.step, float(latest.notes.get("seconds", 0.0)), math.inf
    saved = step
    del latest
    log = MetricsLog(folder / "metrics.jsonl", stage, step, rank)
    prepare_stacks(trained, how, device)
    replicated = dist.is_initialized() and not shard
    runner = DistributedDataParallel(trained) if replicated else trained

    def seconds() -> float:
        """Of training, breaks left out; after each start from the end of the first step on."""
        return spent + max(0.0, time.monotonic() - began)

    def make_batch(step: int) -> list[dict[str, Tensor]]:
        batch = [batch_of(step, clips) for clips in mine]
        return [{k: v.pin_memory() for k, v in part.items()} for part in batch] if device.type == "cuda" else batch

    def parts_of_step(batch: list[dict[str, Tensor]]) -> Iterator[Part]:
        for clips, part in zip(mine, batch, strict=True):
            seed_step(seed, stage, step, clips.start)
            placed = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
            yield Part(placed, len(clips) * processes / config.batch_size, clips is mine[-1])

    def check() -> dict[str, float]:
        """The step's metrics; not at every step, since on a GPU it waits for what was only asked for."""
        numbers = mean_over_ranks(metrics)
        if not math.isfinite(numbers["loss"]) or not math.isfinite(numbers["grad_norm"]):
            name = "muon_lr" if config.optim.optimizer == "muon" else "lr"
            raise Diverged(
                f"{stage}: the loss is {numbers['loss']} at step {step}; the last good checkpoint is kept. Start again "
                f"in a new --out with a lower rate: --set {stage}_fit.optim.{name}="
                f"{getattr(config.optim, name) / 3:.1e}"
            )
        return numbers

    def save() -> None:
        nonlocal saved
        if saved != step:
            check()
            checkpoints.save(step, trained, optimizers, {"seconds": seconds()}, write=rank == 0)
        saved = step

    def gather() -> Model:
        """The model with all of its latest weights."""
        if trained is not model:
            model.load_state_dict({name: full_tensor(tensor) for name, tensor in trained.state_dict().items()})
        return model

    choosing = max_seconds is not None and device.type == "cpu" and not dist.is_initialized()
    with deferred_signals() as stopping, autotuned_threads(choosing) as lap, prefetch(make_batch, step) as batches:
        while (fraction := _fraction(step, config.steps, seconds(), max_seconds)) < 1 or not trained.ready:
            set_learning_rate(optimizers, config.optim, learning_rate_share(config.optim, step, fraction))
            try:
                metrics = backward(runner, parts_of_step(next(batches)), how.precision, device, fraction)
                metrics["grad_norm"] = update(trained, optimizers, config)
            except RuntimeError as error:
                raise _explain_memory_error(error, stage, config) from None
            step += 1
            if step % LOG_EVERY == 0 or step == 1:
                numbers = check()
                log.add(step, fraction, seconds(), numbers)
                watch(Progress(stage, step, fraction, seconds(), numbers))
            began = min(began, time.monotonic())
            if sample and (step % how.sample_every == 0 or step == 1):
                whole_model = gather()
                if rank == 0:
                    picture = folder / "samples" / f"{stage}-{step:08d}.png"
                    shown = _sample(whole_model, sample, picture, log, step, fraction)
                    watch(Progress(stage, step, fraction, seconds(), shown))
            if step % how.save_every == 0:
                save()
            lap()
            if any_rank(stopping()):
                save()
                raise Interrupted(f"{stage} stopped at step {step} and is saved; the same command goes on from there")
    save()
    watch(Progress(stage, step, 1.0, seconds(), {}))
    gather().eval().requires_grad_(False)
    release_memory()


def shard_model(model: Model) -> Model:
    """A copy whose weights, gradients and optimizer state are sharded over the processes (FSDP2): a transformer is put
    together while it runs, the rest for the whole pass."""
    if not dist.is_initialized():
        raise UserError("there is one process only, nothing to shard over; start several with torchrun")
    from torch.distributed.fsdp import fully_shard

    copy = deepcopy(model)
    for part in [*copy.stacks, copy]:
        fully_shard(part)
    return copy


class Part(NamedTuple):
    """Clips that go through the model at once. weight: of its loss, such that the mean over processes of their sums is
    the batch's. exchange: gradients with the other processes, after the last one."""

    batch: dict[str, Tensor]
    weight: float = 1.0
    exchange: bool = True


def backward(
    runner: nn.Module, parts: Iterable[Part], precision: Precision, device: torch.device, fraction: float
) -> dict[str, Tensor]:
    """Gradients of this process's parts of a batch, one after the other; the means of loss and metrics over them."""
    total: dict[str, Tensor] = {}
    for batch, weight, exchange in parts:
        with nullcontext() if exchange or not isinstance(runner, DistributedDataParallel) else runner.no_sync():
            with autocast(device, precision):
                loss, metrics = runner(batch, fraction)
            (loss * weight).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            total[name] = total.get(name, 0) + value * weight
    return total


@contextmanager
def prefetch(make: Callable[[int], Any], first: int) -> Iterator[Iterator[Any]]:
    """make(first), make(first + 1), ..., made by a thread of its own, some of them before they are asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = deque(pool.submit(make, first + i) for i in range(AHEAD))

        def made() -> Iterator[Any]:
            for number in count(first + AHEAD):
                coming.append(pool.submit(make, number))
                yield coming.popleft().result()

        try:
            yield made()
        finally:
            pool.shutdown(cancel_futures=True)


def update(model: Model, optimizers: list[torch.optim.Optimizer], config: FitConfig) -> Tensor:
    """One step of the optimizers along clipped gradients, whose norm it was before, and of the codebooks."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.after_step()
    return norm


def prepare_stacks(model: Model, how: Execution, device: torch.device) -> None:
    """What the transformers recompute, and compile their blocks: blocks of one size share what is compiled."""
    if how.compile and not can_compile(device):
        raise UserError("there is nothing to compile with; install g++ and python3-dev, or leave compile false")
    for stack in model.stacks:
        stack.set_recompute(how.recompute)
        for block in stack.blocks if how.compile else ():
            block.forward = compiled(block.forward)


def _explain_memory_error(error: RuntimeError, stage: str, config: FitConfig) -> Exception:
    """What to do where a step found too little memory; any other error as it is."""
    if "out of memory" not in str(error) and "not enough memory" not in str(error):
        return error
    part = min(config.execution.part, config.batch_size)
    smaller = f"--set {stage}_fit.execution.part={part // 2}" if part > 1 else "a smaller recipe"
    return OutOfMemory(
        f"{stage}: out of memory with {part} clips at a time; the same command with {smaller}, or --set "
        f"{stage}_fit.execution.recompute=blocks, goes on from the last checkpoint"
    )


def _fraction(step: int, steps: int, seconds: float, max_seconds: float | None) -> float:
    """How far training has come, by steps or by the clock of the slowest process."""
    return min(1.0, max(step / steps, max_over_ranks(seconds) / max_seconds if max_seconds else 0.0))


def _sample(
    model: Model, sample: Callable[[Any], Sample], path: Path, log: "MetricsLog", step: int, fraction: float
) -> dict[str, float]:
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a few shapes, seen now and then
        metrics, picture = sample(model)
    model.train()
    log.add(step, fraction, None, metrics)
    if picture is not None:
        save_picture(picture, path)
    return metrics
