"""What the machine can do, and how long things take on it: timed in turns within one run, as medians, since machines
are shared and noisy."""

import contextlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from minigenie.eval.measure import made_with
from minigenie.runtime import dtype_of, fast_bfloat16, keep_memory, release_memory

Watch = Callable[[float, float], None]
PRODUCTS = 10  # a time: one is over too soon to be timed


@dataclass
class Call:
    """Something to time. flops: of the matrix products in it. stages: runs it once more, with what each part took.
    Measured: taken, wall and CPU seconds of each round; spent, seconds of each stage; peak, bytes of memory."""

    run: Callable[[], Any]
    flops: int = 0
    stages: Callable[[], dict[str, float]] = dict
    taken: list[tuple[float, float]] = field(default_factory=list)
    spent: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0


@dataclass(frozen=True, kw_only=True)
class Item:
    """make: builds what is timed, so that what is not asked for costs nothing. frames: that one call makes or sees."""

    name: str
    make: Callable[[], Call]
    frames: int
    threads: int = 1
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One item of `minigenie bench`. flops: products and sums of matrix products. ceiling_share: of the rate at which
    this machine, in this run, multiplied large matrices of that dtype; None for what multiplies none. peak_gb: what the
    item adds to the memory of the process, or of the GPU. stages: share of the time of each part."""

    item: str
    device: str
    dtype: str
    threads: int
    seconds_median: float
    seconds_min: float
    seconds_max: float
    cpu_seconds_median: float
    frames_per_s: float
    flops: int
    ceiling_share: float | None
    peak_gb: float
    stages: dict[str, float] = field(default_factory=dict)


def describe_machine(device: torch.device) -> str:
    made = made_with(device)
    if device.type == "cuda":
        return made["device"]
    auto = str(dtype_of(device, "auto")).removeprefix("torch.")
    return f"{made['cpu']}, {made['threads']} threads; precision auto is {auto}"


def dtypes_of(device: torch.device) -> list[str]:
    """float32, and bfloat16 where the machine multiplies it faster than that."""
    return ["float32", "bfloat16"] if fast_bfloat16(device) else ["float32"]


def ceilings(items: list[Item], device: torch.device) -> list[Item]:
    """The machine itself, for all that `items` use: large matrix products of each dtype, and a large copy."""
    side = 1024 if device.type == "cpu" else 8192

    def product(dtype: str) -> Call:
        a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
        return Call(lambda: [a @ a for _ in range(PRODUCTS)], PRODUCTS * 2 * side**3)

    def copy() -> Call:
        a = torch.zeros(64 << 20, device=device)
        b = torch.empty_like(a)
        return Call(lambda: b.copy_(a))

    kinds = sorted({(item.dtype, item.threads) for item in items}, reverse=True)
    name = f"{PRODUCTS} products of {side}x{side}"
    return [
        *(Item(name=name, make=partial(product, dtype), frames=0, threads=n, dtype=dtype) for dtype, n in kinds),
        Item(name="copy of 256 MB", make=copy, frames=0, threads=torch.get_num_threads()),
    ]


def count_flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measure(
    items: list[Item], device: torch.device, rounds: int, watch: Watch = lambda done, total: None
) -> list[Measurement]:
    """The machine's ceilings and the items in turns, `rounds` times after a first one, memory kept as in training."""
    keep_memory()
    threads = torch.get_num_threads()
    made: list[tuple[Item, Call]] = []
    try:
        for item in [*ceilings(items, device), *items]:
            torch.set_num_threads(item.threads)
            reset_peak(device)
            before = peak_bytes(device)
            try:
                call = item.make()
                reset_peak(device)  # that of counting operations
                call.run()
            except torch.OutOfMemoryError:
                print(f"{item.name}, {item.dtype}: left out, it does not fit in memory", file=sys.stderr)
            else:  # the kernel counts in batches, so that a small item may seem to take less than nothing
                call.peak = max(0, peak_bytes(device) - before)
                made.append((item, call))
        for done in range(rounds):
            for item, call in made:
                torch.set_num_threads(item.threads)
                call.taken.append(timed(call.run, device))
                call.spent.append(call.stages())
            watch(done + 1, rounds)
    finally:
        torch.set_num_threads(threads)
    rates: dict[tuple[str, int], float] = {}  # of the large products, which come first
    return [_summary(item, call, device, rates) for item, call in made]


def _summary(item: Item, call: Call, device: torch.device, rates: dict[tuple[str, int], float]) -> Measurement:
    wall, cpu = (sorted(column) for column in zip(*call.taken, strict=True))
    median = statistics.median(wall)
    ceiling = rates.setdefault((item.dtype, item.threads), call.flops / median)
    spent = {name: statistics.median(each[name] for each in call.spent) for name in call.spent[0]}
    return Measurement(
        item=item.name,
        device=device.type,
        dtype=item.dtype,
        threads=item.threads,
        seconds_median=median,
        seconds_min=wall[0],
        seconds_max=wall[-1],
        cpu_seconds_median=statistics.median(cpu),
        frames_per_s=item.frames / median,
        flops=call.flops,
        ceiling_share=call.flops / median / ceiling if call.flops else None,
        peak_gb=call.peak / 1e9,
        stages={name: part / sum(spent.values()) for name, part in spent.items()},
    )


COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "item": lambda m: m.item,
    "threads": lambda m: f"{m.dtype} x{m.threads}",
    "ms (range)": lambda m: f"{1e3 * m.seconds_median:.1f} ({1e3 * m.seconds_min:.1f} to {1e3 * m.seconds_max:.1f})",
    "CPU s": lambda m: f"{m.cpu_seconds_median:.3f}",
    "frames/s": lambda m: f"{m.frames_per_s:,.1f}" if m.frames_per_s else "",
    "GFLOP": lambda m: f"{m.flops / 1e9:.2f}" if m.flops else "",
    "GFLOP/s": lambda m: f"{m.flops / m.seconds_median / 1e9:,.1f}" if m.flops else "",
    "of matmul peak": lambda m: "" if m.ceiling_share is None else f"{m.ceiling_share:.0%}",
    "peak GB": lambda m: f"{m.peak_gb:.2f}",
}


def rows(measurements: Iterable[Measurement]) -> list[list[str]]:
    """For `console.table` under `COLUMNS`."""
    return [[column(measured) for column in COLUMNS.values()] for measured in measurements]


def stage_rows(measurements: Iterable[Measurement]) -> list[list[str]]:
    """Where the time of a step goes."""
    return [[m.item, ", ".join(f"{k} {share:.0%}" for k, share in m.stages.items())] for m in measurements if m.stages]


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of wall clock and of CPU, all threads together."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Where the system can, so that the next item's peak is its own and not that of one before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    release_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
