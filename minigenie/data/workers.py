"""Where files are decoded: in this process, in others on its cores, or on a Ray cluster. All three look the same.

`submit(call, *args)` begins a call and gives a function that waits for its result; `ahead` says how many to begin
before waiting for the first, which bounds what lies finished and waiting.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from minigenie.errors import UserError

AHEAD = 4  # calls begun per core: the next ones need not wait for a long file before them
DIED = "a worker was killed, most likely for want of memory: run the same command with fewer workers, it goes on"


class Workers(NamedTuple):
    submit: Callable[..., Callable[[], Any]]
    ahead: int


def workers(count: int, ray: str | None = None) -> AbstractContextManager[Workers]:
    """`count` processes, for one this one; or with `ray` all cores of the cluster at that address, "auto" or "local".

    However the block ends, or the process dies, nothing runs on. OSError if a worker is killed; ValueError without Ray.
    """
    if ray:
        return _cluster(ray)
    return _pool(count) if count > 1 else nullcontext(Workers(partial, 1))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(count: int) -> Iterator[Workers]:
    lifeline, held = multiprocessing.Pipe(duplex=False)
    spawn = multiprocessing.get_context("spawn")  # not fork: decoders and NumPy have threads
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_exit_with_parent, initargs=(lifeline,))
    try:
        yield Workers(lambda call, *args: pool.submit(call, *args).result, AHEAD * count)
    except BrokenProcessPool:
        raise OSError(DIED) from None
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


def _exit_with_parent(lifeline: Connection) -> None:
    """A worker lives as long as the other end of `lifeline` is open, and leaves Ctrl-C to the process that holds it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (wait([lifeline]), os._exit(1)), daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: run `pip install '.[ray]'`, or leave --ray out") from None
    try:
        ray.init(address, log_to_driver=False)
    except ConnectionError as error:
        raise OSError(f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`") from None

    def submit(call: Callable, *args: Any) -> Callable[[], Any]:
        return partial(result, ray.remote(call).remote(*args))

    def result(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(f"{DIED} ({str(error).splitlines()[0]})") from None

    try:
        yield Workers(submit, AHEAD * int(ray.cluster_resources()["CPU"]))
    finally:
        ray.shutdown()
