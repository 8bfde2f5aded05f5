"""What a run stands on, each decided once: device, precision, seed, processes."""

import ctypes
import hashlib
import os
import shutil
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minigenie.errors import UserError
from minigenie.settings import Precision

Result = TypeVar("Result")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, or the first there is of CUDA, MPS, CPU. ValueError if it is not on this machine. On
    CUDA, float32 products of this process round as TF32 does from then on."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if name == "cuda" else torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
    except (RuntimeError, AssertionError):
        raise UserError(f"device {name!r} is not on this machine; leave it out to take the best there is") from None
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Does the device multiply bfloat16 faster than float32? On CPUs with AMX or AVX512-BF16 five times and more, and
    steps of any width gain; on others they lose."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def dtype_of(device: torch.device, precision: Precision) -> torch.dtype:
    """What transformers compute in; "auto" takes bfloat16 where it is fast."""
    low = precision == "bfloat16" or (precision == "auto" and fast_bfloat16(device))
    return torch.bfloat16 if low else torch.float32


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager:
    """bfloat16 products over float32 weights, if `dtype_of` says so; weights are cast once for all in it."""
    low = dtype_of(device, precision) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16) if low else nullcontext()


def can_compile(device: torch.device) -> bool:
    """On a CPU: are there a C++ compiler and Python's headers?"""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return device.type != "cpu" or (any(map(shutil.which, compilers)) and headers.exists())


def compiled(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`call`, to be compiled as one graph for each of the shapes it meets; what cannot be, raises."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # many models, one code
    return torch.compile(call, fullgraph=True, dynamic=False, options=options)


def parallel_map(call: Callable[..., Result], *parts: Iterable[Any], device: torch.device) -> Iterator[Result]:
    """As `map`, without gradients. On a CPU as many calls at once as torch has threads, each on one of them: small
    models gain little from threads within an operation."""
    threads = torch.get_num_threads()
    workers = threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(torch.no_grad()(call), *parts)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def autotuned_threads(choosing: bool, every: int = 40, trial: int = 2) -> Iterator[Callable[[], None]]:
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
def deferred_signals() -> Iterator[Callable[[], bool]]:
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


def keep_memory() -> None:
    """Let this process keep the memory that it frees, to use it again. Else glibc hands most of what a training step
    used back to the system, and the next step waits for it page by page. Nothing where there is no glibc."""
    _glibc("mallopt", M_MMAP_MAX, 0)  # no tensor on pages of its own, which are unmapped with it
    _glibc("mallopt", M_TRIM_THRESHOLD, -1)  # never


def release_memory() -> None:
    """Give the system back what `keep_memory` has kept so far."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *numbers: int) -> None:
    if sys.platform == "linux" and (call := getattr(ctypes.CDLL(None), function, None)):
        call(*numbers)


def seed_step(seed: int, stage: str, step: int, part: int = 0) -> None:
    """All of a step's randomness follows from (seed, stage, step, part of the batch): there is no random state to save,
    and it does not matter which process a part falls to."""
    torch.manual_seed(hash_text(f"{seed}/{stage}/{step}/{part}"))


def hash_text(text: str) -> int:
    """A stable 63-bit number for a text (Python's own hash changes from run to run)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[int, int]]:
    """Join the other processes of `torchrun`, if it started this one. Yields (rank, world_size)."""
    if "RANK" not in os.environ:
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # a process may have hours more to encode than another
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # numbers on the CPU wait for no GPU
    dist.init_process_group(backend, timeout=timedelta(hours=24))
    try:
        yield dist.get_rank(), dist.get_world_size()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"process {dist.get_rank()} lost touch with the others ({str(error).splitlines()[0]}); see what ended them "
            "and start the same command again, it goes on from the last checkpoint"
        ) from None
    finally:
        dist.destroy_process_group()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP has sharded, on every process; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(pattern: Tensor, tensor: Tensor) -> Tensor:
    """A full tensor that is the same on every process, sharded as `pattern` is."""
    if not hasattr(pattern, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers of this process, as their mean over all processes."""
    together = torch.stack([full_tensor(value).float() for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(together)
        together /= dist.get_world_size()
    return dict(zip(values, together.tolist(), strict=True))


def max_over_ranks(value: float) -> float:
    """The largest of all processes' values, the same on each."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def any_rank(condition: bool) -> bool:
    """Whether it is true on one of them, so that all stop together."""
    return max_over_ranks(float(condition)) > 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
