"""What runs in the one thread that a world has for all its players, and how many threads torch has in it."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from minigenie.runtime import Result
from minigenie.world import World


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
