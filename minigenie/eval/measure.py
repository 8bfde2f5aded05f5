"""One evaluation of a world on held-out data, as numbers and as scenes to look at. docs/measure.md says what each is.

Each part of the report has a file: fidelity.py (tokenizer, rollout, long_rollouts, dynamics), controllability.py
(actions), control.py (the control test), drift.py, ending.py. Everything follows from the seed. What cannot be
measured is said in `report["notes"]`, and the rest still comes.

Dimensions:  b clips   t frames   a actions   h w c a frame
"""

import platform
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from minigenie import __version__
from minigenie.config import to_dict
from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.eval import control, controllability, drift, ending, fidelity, perceptual
from minigenie.eval.evaluator import PROMPT, UNMEASURED, Evaluator, Watch
from minigenie.settings import EvalSettings
from minigenie.world import CONFIG_KEYS, World

VERSION = 3  # of the report; 2 had a motion search of its own, 1 resampled single clips, drift beside single frames
HORIZON, LONG_HORIZON = 8, 15  # frames imagined of every clip


class Scenes(NamedTuple):
    """What a person looks at."""

    originals: UInt8[Tensor, "b h w c"]
    reconstructions: UInt8[Tensor, "b h w c"]
    truth: UInt8[Tensor, "b t h w c"]
    imagined: UInt8[Tensor, "b t h w c"]  # its first `PROMPT` frames are given
    held: UInt8[Tensor, "a t h w c"]  # one start frame, then every action held
    drifting: dict[int, UInt8[Tensor, "b h w c"]]  # by horizon
    control: control.Scene | None  # of the control test, where there can be one


class Evaluation(NamedTuple):
    report: dict[str, Any]
    scenes: Scenes


@torch.no_grad()
def evaluate(
    world: World,
    dataset: Dataset,
    *,
    clips: int = EvalSettings.clips,
    seed: int = EvalSettings.seed,
    watch: Watch = lambda done, total: None,
) -> Evaluation:
    """Measure on `clips` clips of held-out data, on fewer where it has fewer. watch: frames imagined, done and in all.
    Raises ValueError if the world's weights are not finite or no episode has 5 frames."""
    check_finite(world)
    longest = max(episode.length for episode in dataset.episodes)
    if longest <= PROMPT:
        advice = f"give footage with episodes of {PROMPT + 1}"
        raise UserError(f"{dataset.name}: longest episode has {longest} frames; {advice}")
    horizon, long_horizon = min(HORIZON, longest - PROMPT), min(LONG_HORIZON, longest - PROMPT)
    evaluator = Evaluator(world, dataset, clips, seed, watch)
    starts = evaluator.clips(clips, PROMPT + horizon, salt=0)
    long_starts = evaluator.clips(clips, PROMPT + long_horizon, salt=1)
    evaluator.total = 2 * len(starts) * horizon + 2 * len(long_starts) * long_horizon + sum(
        part.frames_to_imagine(evaluator) for part in (controllability, drift, control)
    )  # fmt: skip
    episodes = dataset.episodes_of(starts)
    if len(starts) < clips:
        why = f"{dataset.name} has no more of {PROMPT + horizon} frames"
        evaluator.notes.append(f"{len(starts)} clips were measured, not {clips}: {why}")
    if episodes.min() == episodes.max():
        evaluator.notes.append("all clips are of one episode, so the intervals do not say how others would score")
    load_perceptual(evaluator)
    video, truth = evaluator.frames(starts, PROMPT + horizon), dataset.clip_actions(starts, PROMPT + horizon)
    actions, controls = evaluator.infer_actions(video), controls_of(dataset)
    tokens, tokenizer, pictures = fidelity.measure_tokenizer(evaluator, video, episodes)
    rollout = fidelity.measure_rollout(evaluator, video, actions, episodes)
    long, dreams = fidelity.measure_long_rollouts(evaluator, long_starts, long_horizon)
    effects, held = controllability.measure_effects(evaluator)
    drifted, drifting = drift.measure(evaluator)
    pairs, inverse = controllability.measure_inverse(evaluator, controls)
    tested, scene = control.measure(evaluator, inverse)
    meaning = controllability.measure_actions(evaluator, actions.numpy(), truth, controls, episodes)
    about = {key: dataset.manifest[key] for key in ("source", "generator", "split", "settings")}
    config, precision = to_dict(world.config), str(world.dtype).removeprefix("torch.")
    report = {
        "version": VERSION,
        "clips": len(starts),
        "seed": seed,
        "dataset": about | {"frames": dataset.num_frames, "episodes": len(dataset.episodes)},
        "tokenizer": tokenizer,
        "actions": {**meaning, **pairs, **effects},
        **tested,
        "dynamics": fidelity.measure_dynamics(evaluator, video, tokens, actions),
        "rollout": rollout,
        "long_rollouts": long,
        "drift": drifted,
        **ending.measure(evaluator),
        "world": {key: config[key] for key in CONFIG_KEYS},
        "fps": world.fps,
        "made_with": made_with(world.device) | {"precision": precision},
        "notes": evaluator.notes,
    }
    watch(evaluator.total, evaluator.total)
    return Evaluation(report, Scenes(*pictures, *dreams, held, drifting, scene))


def check_finite(world: World) -> None:
    for name in world.config.models:
        for weight, values in getattr(world, name).state_dict().items():
            if values.is_floating_point() and not values.isfinite().all():
                raise UserError(f"the world's {name} has weights that are no numbers, in {weight}; train it again")


def load_perceptual(evaluator: Evaluator) -> None:
    """Networks that see as people do: optional, since their weights are."""
    world = evaluator.world
    try:
        distance = perceptual.load_stlpips(world.device)
        distance(*torch.zeros(2, 1, *world.frame_shape))  # some frames are too small for it
        evaluator.distances["st_lpips"] = distance
    except ValueError as error:
        evaluator.notes.append(f"{UNMEASURED}{perceptual.ST_LPIPS_NAME} ({error})")
    try:
        evaluator.features = perceptual.load_features(world.device)
    except ValueError as error:
        evaluator.notes.append(f"{UNMEASURED}{perceptual.FRECHET_NAME} ({error})")


def made_with(device: torch.device) -> dict[str, Any]:
    """What the figures may depend on besides the seed: code and machine."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # installed without its history
    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = re.search(r"^model name\s*: (.*\S)", names, re.M)
    return {
        "minigenie": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
