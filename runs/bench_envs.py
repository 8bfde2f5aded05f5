"""How many frames a second many worlds side by side make, and what memory they take.

    python runs/bench_envs.py worlds/keys

Each number of worlds is measured in a process of its own, so that its peak of memory is its own.
"""

import resource
import subprocess
import sys
import time

import torch
import tyro

from minigenie.console import table
from minigenie.env import WorldVectorEnv
from minigenie.settings import Device

NUMBERS, STEPS = (1, 16, 256, 1_024, 4_096), 3


def measure(world: str, number: int, part: int | None, device: str | None) -> str:
    """Frames a second, and the most memory that this process had, in MB."""
    env = WorldVectorEnv(number, world, device=device, max_episode_steps=-1, output="torch", part=part)
    env.reset(seed=0)
    actions = torch.zeros(number, dtype=torch.long, device=env.world.device)
    env.step(actions)
    steps, began = 0, time.perf_counter()
    while steps < STEPS or time.perf_counter() - began < 3:
        float(env.step(actions)[4]["certainty"].sum())  # waits for a GPU
        steps += 1
    rate = number * steps / (time.perf_counter() - began)
    cuda = env.world.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{rate:.0f} {memory / 1e6:.0f}"


def main(
    world: tyro.conf.Positional[str], numbers: tuple[int, ...] = NUMBERS, part: int | None = None,
    device: Device = None, one: bool = False,
) -> None:  # fmt: skip
    """Frames a second of many worlds at once.

    Args:
        world: Folder made by train, or a name or address of one.
        numbers: Of worlds side by side.
        part: How many are computed at a time, if not as the environment chooses.
        one: Measure only the first number, here, and print the bare result.
    """
    if one:
        print(measure(world, numbers[0], part, device))
        return
    rows = []
    for number in numbers:
        command = [sys.executable, __file__, world, "--numbers", str(number), "--one"]
        command += ["--part", str(part)] if part else []
        command += ["--device", device] if device else []
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(ended.stderr.strip().splitlines()[-1])
        rate, memory = ended.stdout.split()
        rows.append([f"{number:,}", rate, f"{int(memory):,}"])
    table(["worlds", "frames/s", "memory, MB"], rows)


if __name__ == "__main__":
    tyro.cli(main)
