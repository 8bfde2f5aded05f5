"""What the machine can do, and how long things take on it.

Machines are shared and noisy: things to compare are timed in turns within one run, and medians are reported.
"""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Watch = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One item of `minigenie bench`. flops: of the matrix products, each product and sum counted. ceiling_share: of the
    rate at which this machine, in this run, multiplied large matrices. peak_gb: of the process, or of the GPU."""

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
    ceiling_share: float
    peak_gb: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe_machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def matmul_ceiling(device: torch.device, dtype: torch.dtype = torch.float32, side: int | None = None) -> float:
    """FLOP/s of a large matrix product: the floor of everything else."""
    side = side or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = [_seconds(lambda: a @ b, device)[0] for _ in range(12)]
    return 2 * side**3 / statistics.median(seconds[2:])


def copy_ceiling(device: torch.device, megabytes: int = 256) -> float:
    """Bytes/s read and written by a large copy."""
    a = torch.zeros(megabytes << 18, device=device)
    b = torch.empty_like(a)
    seconds = [_seconds(lambda: b.copy_(a), device)[0] for _ in range(8)]
    return 2 * a.nbytes / statistics.median(seconds[2:])


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something to time: `call`, which makes `frames` frames with `flops` operations."""

    name: str
    call: Callable[[], Any]
    frames: int
    flops: int
    threads: int = 1


def count_flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def measure(
    items: list[Item], device: torch.device, rounds: int, watch: Watch = lambda done, total: None
) -> list[Measurement]:
    """Time the items in turns, `rounds` times after a first that does not count, beside the machine's ceiling."""
    threads_before = torch.get_num_threads()
    taken: list[list[tuple[float, float]]] = [[] for _ in items]
    ceilings: dict[int, list[float]] = {item.threads: [] for item in items}
    try:
        for item in items:
            torch.set_num_threads(item.threads)
            item.call()
        for done in range(rounds):
            for threads, found in ceilings.items():
                torch.set_num_threads(threads)
                found.append(matmul_ceiling(device))
            for item, seconds in zip(items, taken, strict=True):
                torch.set_num_threads(item.threads)
                seconds.append(_seconds(item.call, device))
            watch(done + 1, rounds)
    finally:
        torch.set_num_threads(threads_before)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident()
    results = []
    for item, seconds in zip(items, taken, strict=True):
        wall, cpu = (sorted(column) for column in zip(*seconds, strict=True))
        median = statistics.median(wall)
        results.append(
            Measurement(
                item=item.name,
                device=device.type,
                dtype="float32",
                threads=item.threads,
                seconds_median=median,
                seconds_min=wall[0],
                seconds_max=wall[-1],
                cpu_seconds_median=statistics.median(cpu),
                frames_per_s=item.frames / median,
                flops=item.flops,
                ceiling_share=item.flops / median / statistics.median(ceilings[item.threads]),
                peak_gb=peak / 1e9,
            )
        )
    return results


def rows(measurements: Iterable[Measurement]) -> list[list[str]]:
    """For `console.table` under `HEADINGS`."""
    return [
        [
            m.item,
            str(m.threads),
            f"{1e3 * m.seconds_median:.1f} ({1e3 * m.seconds_min:.1f} to {1e3 * m.seconds_max:.1f})",
            f"{m.cpu_seconds_median:.3f}",
            f"{m.frames_per_s:.1f}",
            f"{m.flops / 1e9:.2f}",
            f"{m.ceiling_share:.0%}",
        ]
        for m in measurements
    ]


HEADINGS = ["item", "threads", "ms (range)", "CPU s", "frames/s", "GFLOP", "of matmul peak"]


def _seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of one call, the device waited for."""
    began, cpu = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, time.process_time() - cpu


def _resident() -> int:
    """Peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
