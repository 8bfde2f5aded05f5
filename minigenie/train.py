"""The training loop: one for every model. `loss, metrics = model(batch, progress)`.

What a step does follows from (seed, stage, step) alone, so a run that was killed and resumed is, bit for bit on a CPU
with fixed threads, the run that never was; and several processes do what one does that goes through the same parts of
each batch one after the other, up to the order in which gradients are added. A time limit bends the schedule to the
clock and is exempt from that.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minigenie.checkpoint import Checkpoints
from minigenie.config import parse_json
from minigenie.data.dataset import write_atomic
from minigenie.nn.quantize import VectorQuantizer
from minigenie.nn.st_transformer import Recompute, STTransformer
from minigenie.optim import OptimConfig, learning_rate_share, make_optimizers, set_learning_rate
from minigenie.pictures import save_picture
from minigenie.runtime import (
    Precision,
    autocast,
    give_memory_back,
    keep_memory,
    mean_of_all,
    on_any_process,
    seed_step,
    slowest,
    whole,
)

LOG_EVERY = 10  # steps


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """steps: optimizer steps. batch_size: clips a step, over all processes. clip_frames: frames of a clip. accumulate:
    parts that a batch is cut into to save memory, shared out over the processes (one for each at least). compile:
    torch.compile the transformers, on CUDA. recompute: what to compute again for the gradients, to save memory: "cheap"
    (norm and GELU of the feed-forwards) or "blocks" (whole ones: the least memory, the most time).
    sample_every, save_every: steps between pictures and between checkpoints,
    of which the last `keep` stay."""

    steps: int
    batch_size: int
    clip_frames: int = 16
    accumulate: int = 1
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Precision = "auto"
    compile: bool = False
    recompute: Recompute = "nothing"
    sample_every: int = 1000
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.clip_frames < 1:
            raise ValueError(f"clip_frames is {self.clip_frames}; it must be at least 1")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not split into accumulate={self.accumulate} parts")


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM) and has saved its state."""


class Diverged(ValueError):
    """The loss is no longer a number."""


class Progress(NamedTuple):
    """What a step tells whoever watches. fraction: of this stage, 0 to 1. seconds: spent on it, over all sittings."""

    stage: str
    step: int
    fraction: float
    seconds: float
    metrics: dict[str, float]


class Sample(NamedTuple):
    """What a model shows of itself while it trains: numbers, and a picture uint8 [h w 3] or None."""

    metrics: dict[str, float]
    picture: np.ndarray | None = None


def fit(
    model: nn.Module,
    batch_of: Callable[[int, int, int], dict[str, Tensor]],
    config: FitConfig,
    folder: Path,
    *,
    stage: str,
    seed: int,
    device: torch.device,
    max_seconds: float | None = None,
    shard: bool = False,
    sample: Callable[[nn.Module], Sample] | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train `model` in place, resuming from `folder` what was begun there, be it by more processes or fewer.

    batch_of(step, part, parts): one of the parts that make up a step's batch; they are shared out over the processes.
    max_seconds: end by then, with the whole schedule run through. shard: cut weights, gradients and optimizer state up
    over the processes. Writes folder/metrics.jsonl, folder/samples, folder/checkpoints/STAGE.
    The process keeps the memory that it frees (runtime.keep_memory), and at the end gives back what it kept by then.
    Raises Interrupted after a signal, Diverged if the loss is not finite: the last good checkpoint stays.
    """
    keep_memory()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = math.lcm(config.accumulate, processes)
    checkpoints = Checkpoints(folder / "checkpoints" / stage, config.keep)
    latest = checkpoints.load()
    latest.restore_model(model)
    model.to(device).train()
    trained = sharded(model) if shard else model
    optimizers = make_optimizers(trained, config.optim)
    latest.restore_optimizers(optimizers)
    step, began = latest.step, time.monotonic() - latest.notes.get("seconds", 0.0)
    saved = step
    del latest
    log = MetricsLog(folder / "metrics.jsonl", stage, step, rank)
    prepare_stacks(trained, config, device)
    replicated = dist.is_initialized() and not shard
    runner = DistributedDataParallel(trained) if replicated else trained

    def part_of_batch(part: int) -> dict[str, Tensor]:
        seed_step(seed, stage, step, part)
        return batch_of(step, part, parts)

    def check() -> dict[str, float]:
        """The step's metrics; not at every step, since on a GPU it waits for what was only asked for."""
        numbers = mean_of_all(metrics)
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
            checkpoints.save(step, trained, optimizers, {"seconds": time.monotonic() - began}, write=rank == 0)
        saved = step

    def gather() -> nn.Module:
        """The model with all of its latest weights."""
        if trained is not model:
            model.load_state_dict({name: whole(tensor) for name, tensor in trained.state_dict().items()})
        return model

    choosing = max_seconds is not None and device.type == "cpu" and not dist.is_initialized()
    with signals_noted() as stopping, fastest_threads(choosing) as lap:
        while (fraction := _fraction(step, config.steps, time.monotonic() - began, max_seconds)) < 1:
            set_learning_rate(optimizers, config.optim, learning_rate_share(config.optim, step, fraction))
            mine = range(rank * parts // processes, (rank + 1) * parts // processes)
            metrics = backward(runner, map(part_of_batch, mine), len(mine), config, device, fraction)
            metrics["grad_norm"] = update(trained, optimizers, config)
            step += 1
            if step % LOG_EVERY == 0 or step == 1:
                seconds, numbers = time.monotonic() - began, check()
                log.add(step, fraction, seconds, numbers)
                watch(Progress(stage, step, fraction, seconds, numbers))
            if sample and (step % config.sample_every == 0 or step == 1):
                whole_model = gather()
                if rank == 0:
                    picture = folder / "samples" / f"{stage}-{step:08d}.png"
                    shown = _sample(whole_model, sample, picture, log, step, fraction)
                    watch(Progress(stage, step, fraction, time.monotonic() - began, shown))
            if step % config.save_every == 0:
                save()
            lap()
            if on_any_process(stopping()):
                save()
                raise Interrupted(f"{stage} stopped at step {step} and is saved; the same command goes on from there")
    save()
    watch(Progress(stage, step, 1.0, time.monotonic() - began, {}))
    gather().eval().requires_grad_(False)
    give_memory_back()


def sharded(model: nn.Module) -> nn.Module:
    """A copy whose weights, gradients and optimizer state are cut up over the processes (FSDP2): a transformer is put
    together while it runs, the rest for the whole pass."""
    if not dist.is_initialized():
        raise ValueError("there is one process only, nothing to shard over; start several with torchrun")
    from torch.distributed.fsdp import fully_shard

    copy = deepcopy(model)
    for part in [*(part for part in copy.modules() if isinstance(part, STTransformer)), copy]:
        fully_shard(part)
    return copy


def backward(
    runner: nn.Module,
    parts: Iterable[dict[str, Tensor]],
    count: int,
    config: FitConfig,
    device: torch.device,
    fraction: float,
) -> dict[str, Tensor]:
    """Gradients of a batch of `count` parts, one after the other; the means of loss and metrics over them."""
    seen: list[dict[str, Tensor]] = []
    for number, batch in enumerate(parts, 1):
        exchange = number == count  # gradients with the other processes, once
        with nullcontext() if exchange or not isinstance(runner, DistributedDataParallel) else runner.no_sync():
            with autocast(device, config.precision):
                loss, metrics = runner(batch, fraction)
            (loss / count).backward()
        seen.append({"loss": loss.detach(), **metrics})
    return {name: torch.stack([each[name] for each in seen]).mean() for name in seen[0]}


def update(model: nn.Module, optimizers: list[torch.optim.Optimizer], config: FitConfig) -> Tensor:
    """One step of the optimizers along clipped gradients, whose norm it was before, and of the codebooks."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for part in model.modules():
        if isinstance(part, VectorQuantizer):
            part.settle()
    return norm


def prepare_stacks(model: nn.Module, config: FitConfig, device: torch.device) -> None:
    """What the transformers recompute, and, on CUDA, compile them: them alone, what surrounds them branches on data."""
    for part in model.modules():
        if isinstance(part, STTransformer):
            part.set_recompute(config.recompute)
            if config.compile and device.type == "cuda":
                part.compile()


def _fraction(step: int, steps: int, seconds: float, max_seconds: float | None) -> float:
    """How far training has come, by steps or by the clock of the slowest process."""
    return min(1.0, max(step / steps, slowest(seconds) / max_seconds if max_seconds else 0.0))


def _sample(
    model: nn.Module, sample: Callable[[nn.Module], Sample], path: Path, log: "MetricsLog", step: int, fraction: float
) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        metrics, picture = sample(model)
    model.train()
    log.add(step, fraction, None, metrics)
    if picture is not None:
        save_picture(picture, path)
    return metrics


class MetricsLog:
    """metrics.jsonl: a line {stage, step, progress, seconds, ...} every few steps. Lines past the step that training
    resumes from are dropped, so that every step stands there once."""

    def __init__(self, path: Path, stage: str, step: int, rank: int) -> None:
        self.path, self.stage, self.rank = path, stage, rank
        if rank == 0 and path.exists():
            lines = [line for line in read_metrics(path) if line["stage"] != stage or line["step"] <= step]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, step: int, progress: float, seconds: float | None, metrics: dict[str, float]) -> None:
        line: dict[str, Any] = {"stage": self.stage, "step": step, "progress": round(progress, 6)}
        if seconds is not None:
            line["seconds"] = round(seconds, 3)
        line |= {name: float(f"{value:.6g}") for name, value in metrics.items()}
        if self.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out. ValueError, one line, if damaged."""
    lines: list[dict[str, Any]] = []
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            if text:
                lines.append(_checked(parse_json(text)))
        except ValueError as error:
            if number < len(texts):  # a whole line
                raise ValueError(f"{path} is damaged (line {number}: {error}); delete that line") from None
    return lines


def _checked(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or type(line.get("step")) is not int or not isinstance(line.get("stage"), str):
        raise ValueError("it is no object with a stage and a step")
    if unfit := [name for name, value in line.items() if name != "stage" and type(value) not in (int, float)]:
        raise ValueError(f"{unfit[0]!r} is no number")
    return line


@contextmanager
def fastest_threads(choosing: bool, every: int = 40, trial: int = 2) -> Iterator[Callable[[], None]]:
    """Call after each step: now and then steps run on one thread and on all of them, those between on whichever was
    faster. Small models hardly gain from threads, and beside a busy program these mostly wait for each other."""
    counts = (torch.get_num_threads(), 1)
    if not choosing or counts[0] == 1:
        yield lambda: None
        return
    laps: list[float] = []
    began = time.monotonic()

    def lap() -> None:
        nonlocal began
        laps.append(time.monotonic() - began)
        turn = len(laps) % every
        if turn >= 2 * trial:
            latest = laps[len(laps) - turn :]
            turn = trial * (min(latest[trial : 2 * trial]) < min(latest[:trial]))
        torch.set_num_threads(counts[turn // trial])
        began = time.monotonic()

    try:
        yield lap
    finally:
        torch.set_num_threads(counts[0])


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM do not strike but are noted, so that a step and a save end whole."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: noted.append(number))
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
