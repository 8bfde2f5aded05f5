"""The one thread that runs a world for all its players, and how many threads torch has in it."""

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from minigenie.runtime import Result
from minigenie.world import World


class Worker:
    """The one thread in which the models load and run: urgent jobs first, then in the order they came.

    Load too: where a second thread has ever run the models, torch has two pools of threads that fight over the cores
    (measured on 2 of them: 288 ms a frame instead of 117)."""

    def __init__(self) -> None:
        self.jobs: queue.PriorityQueue[tuple[int, int, Any]] = queue.PriorityQueue()
        self.order = itertools.count()
        self.thread = threading.Thread(target=self._work, name="minigenie-worlds", daemon=True)
        self.thread.start()

    def ask(self, call: Callable[[], Result], urgent: bool = True) -> "Future[Result]":
        future: Future[Result] = Future()
        self.jobs.put((0 if urgent else 1, next(self.order), (future, call)))
        return future

    async def run(self, call: Callable[[], Result], urgent: bool = True) -> Result:
        return await asyncio.wrap_future(self.ask(call, urgent))

    def close(self) -> None:
        self.jobs.put((-1, 0, None))
        self.thread.join(timeout=10)

    def _work(self) -> None:
        while (job := self.jobs.get()[2]) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except Exception as error:
                    future.set_exception(error)


def with_fewer_steps(world: World, steps: int) -> World:
    """The same world, at no frame yet, with no more than `steps` MaskGIT steps a frame."""
    sampling = world.config.sampling
    return world.fresh_copy(replace(sampling, steps=min(steps, sampling.steps)), cuda_graph=False)


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and the seconds it took."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def choose_threads(world: World) -> None:
    """On CPU, have torch use one thread or all, whichever is faster: small layers only lose by being split. One also
    if it is almost as fast: the browser wants a core too."""
    most = torch.get_num_threads()
    if world.device.type != "cpu" or most == 1:
        return
    trial = with_fewer_steps(world, 1)
    trial.reset(np.zeros((1, 1, *world.frame_shape), np.uint8))

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        trial.step([0])
        return min(timed(partial(trial.step, [0]))[1] for _ in range(3))

    torch.set_num_threads(most if seconds(most) < 0.8 * seconds(1) else 1)
