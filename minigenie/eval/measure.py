"""One evaluation of a world on held-out data, as numbers and as scenes to look at. docs/measure.md says what each is.

Everything follows from the seed. What cannot be measured is said in `report["notes"]`, and the rest still comes.

Dimensions:  b clips   t frames   a actions   m start frames   h w c a frame
"""

import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie import __version__
from minigenie.config import to_dict
from minigenie.data.controls import Controls, controls_of
from minigenie.data.dataset import Dataset
from minigenie.eval.control import STATES, Impossible, Scene, frames_to_imagine, measure_control
from minigenie.eval.controllability import effects as measure_effects
from minigenie.eval.controllability import hold_actions, information, meaning, usage
from minigenie.eval.drift import Features, Watch, measure_drift, play_long, stretches, true_clips
from minigenie.eval.fidelity import decibels, mse, psnr, ssim
from minigenie.eval.statistics import bootstrap, by_horizon, entropy, interval, perplexity
from minigenie.inverse import InverseDynamics, controls_seen, fit_pairs
from minigenie.nn.patches import to_float, to_uint8
from minigenie.pipeline import seen_by_camera
from minigenie.runtime import Result, parallel_map
from minigenie.world import CONFIG_KEYS, MODELS, World

VERSION = 3  # of the report; 2 had a motion search of its own, 1 resampled single clips, drift beside single frames
BATCH = 16
PROMPT, HORIZON = 4, 8  # frames given and imagined of every clip
LONG_HORIZON = 15
STARTS, HELD = 8, 4  # start frames for the actions' effects, and how long an action is held
LOSS_CLIPS = 64  # for dynamics' loss, at most
GALLERY = 12  # frames of the action gallery
DRIFT_CLIPS, DRIFT_HORIZON = 8, 200
INVERSE_PAIRS, INVERSE_STEPS = 6000, 400  # at most
PERCEPTUAL = {  # by key in the report: what it is called, how it is loaded, whether it compares pairs
    "st_lpips": ("ST-LPIPS", "load_stlpips", True),
    "frechet": ("Frechet distance (efficientnet-lite0)", "load_features", False),
}
UNMEASURED = "not measured: "
COLLAPSED = 2.0  # perplexity of the actions: fewer than two do all the work

Distance = Callable[[Tensor, Tensor], Tensor]


class Scenes(NamedTuple):
    """What a person looks at."""

    originals: UInt8[Tensor, "b h w c"]
    reconstructions: UInt8[Tensor, "b h w c"]
    truth: UInt8[Tensor, "b t h w c"]
    imagined: UInt8[Tensor, "b t h w c"]  # its first `PROMPT` frames are given
    held: UInt8[Tensor, "a t h w c"]  # one start frame, then every action held
    drifting: dict[int, UInt8[Tensor, "b h w c"]]  # by horizon
    control: Scene | None  # of the control test, where there can be one


class Evaluation(NamedTuple):
    report: dict[str, Any]
    scenes: Scenes


@dataclass
class Evaluator:
    """What every measurement shares."""

    world: World
    dataset: Dataset
    max_clips: int
    seed: int
    watch: Watch
    total: int = 0
    done: int = 0
    notes: list[str] = field(default_factory=list)
    distances: dict[str, Distance] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    def advance(self, frames: int) -> None:
        with self.lock:  # parts run side by side
            self.done += frames
            self.watch(min(self.done, self.total), self.total)

    def rollout(self, frames: Tensor, actions: Tensor) -> UInt8[Tensor, "b t h w c"]:
        """As the world's own, in small batches, with progress."""

        def play(prompt: Tensor, choice: Tensor, seed: int) -> Tensor:
            video = self.world.fresh_copy().rollout(prompt, choice, seed)
            self.advance(choice.numel())
            return video

        return torch.cat(self.each(play, frames.split(BATCH), actions.split(BATCH), count(self.seed)))

    def each(self, call: Callable[..., Result], *parts: Iterable[Any]) -> list[Result]:
        return list(parallel_map(call, *parts, device=self.world.device))

    def infer_actions(self, video: UInt8[Tensor, "b t h w c"]) -> Int[Tensor, "b steps"]:
        return torch.cat(self.each(self.world.infer_actions, video.split(BATCH)))

    def clips(self, count: int, length: int, salt: int) -> np.ndarray:
        """Where `count` clips begin, drawn without repetition; all there are, if they are fewer."""
        windows = self.dataset.windows(length)
        chosen = np.random.default_rng([self.seed, salt]).choice(windows, min(count, len(windows)), replace=False)
        return np.sort(chosen)

    def frames(self, starts: np.ndarray, length: int) -> UInt8[Tensor, "b t h w c"]:
        return torch.from_numpy(self.dataset.clips(starts, length))

    def episodes(self, starts: np.ndarray) -> Int[np.ndarray, " b"]:
        """Which episode each of `starts` lies in: windows of one are no independent clips."""
        return np.searchsorted(self.dataset.episode_starts, starts, side="right")

    def compare(
        self, distance: Distance, frames: UInt8[Tensor, "b t h w c"], truth: UInt8[Tensor, "b t h w c"]
    ) -> Float[Tensor, "b t"]:
        """A distance of each pair of frames; a few clips at a time, as it takes many times their memory."""

        def between(some: Tensor, true: Tensor) -> Tensor:
            values = distance(to_float(some.flatten(0, 1)), to_float(true.flatten(0, 1)))
            return values.unflatten(0, some.shape[:2])

        return torch.cat(self.each(between, frames.split(BATCH), truth.split(BATCH)))


@torch.no_grad()
def evaluate(
    world: World, dataset: Dataset, *, clips: int = 128, seed: int = 0, watch: Watch = lambda done, total: None
) -> Evaluation:
    """Measure on `clips` clips of held-out data, on fewer where it has fewer. watch: frames imagined, done and in all.

    Raises ValueError if the world's weights are not finite or no episode has 5 frames.
    """
    check_finite(world)
    longest = max(episode.length for episode in dataset.episodes)
    horizon, long_horizon = min(HORIZON, longest - PROMPT), min(LONG_HORIZON, longest - PROMPT)
    if horizon < 1:
        raise ValueError(
            f"{dataset.name}: longest episode has {longest} frames; give footage with episodes of {PROMPT + 1}"
        )
    evaluator = Evaluator(world, dataset, clips, seed, watch)
    starts = evaluator.clips(clips, PROMPT + horizon, salt=0)
    long_starts = evaluator.clips(clips, PROMPT + long_horizon, salt=1)
    evaluator.total = (
        2 * len(starts) * horizon
        + 2 * len(long_starts) * long_horizon
        + min(clips, STARTS) * world.num_actions * HELD
        + world.num_actions * (GALLERY - 1)
        + min(clips, DRIFT_CLIPS) * min(10 * clips, DRIFT_HORIZON)
        + frames_to_imagine(dataset, min(clips, STATES), world.num_actions)
    )
    if len(starts) < clips:
        evaluator.notes.append(
            f"{len(starts)} clips were measured, not {clips}: {dataset.name} has no more of {PROMPT + horizon} frames"
        )
    episodes = evaluator.episodes(starts)
    if episodes.min() == episodes.max():
        evaluator.notes.append("all clips are of one episode, so the intervals do not say how others would score")
    _load_perceptual(evaluator)
    video, truth = evaluator.frames(starts, PROMPT + horizon), dataset.clip_actions(starts, PROMPT + horizon)
    actions = evaluator.infer_actions(video)
    tokens, tokenizer, pictures = _tokenizer(evaluator, video, episodes)
    rollout = _rollout(evaluator, video, actions, episodes)
    long, dreams = _long_rollouts(evaluator, long_starts, long_horizon)
    effects, held = _effects(evaluator)
    drift, drifting = _drift(evaluator)
    controls = controls_of(dataset)
    pairs, inverse = _inverse(evaluator, controls)
    control, scene = _control(evaluator, inverse)
    config = to_dict(world.config)
    source = {key: dataset.manifest[key] for key in ("source", "generator", "split", "settings")}
    report = {
        "version": VERSION,
        "clips": len(starts),
        "seed": seed,
        "dataset": {**source, "frames": dataset.num_frames, "episodes": len(dataset.episodes)},
        "tokenizer": tokenizer,
        "actions": {**_actions(evaluator, actions.numpy(), truth, controls, episodes), **pairs, **effects},
        **control,
        "dynamics": _dynamics(world, video, tokens, actions, seed),
        "rollout": rollout,
        "long_rollouts": long,
        "drift": drift,
        "world": {key: config[key] for key in CONFIG_KEYS},
        "fps": world.fps,
        "made_with": made_with(world.device) | {"precision": str(world.dtype).removeprefix("torch.")},
        "notes": evaluator.notes,
    }
    watch(evaluator.total, evaluator.total)
    return Evaluation(report, Scenes(*pictures, *dreams, held, drifting, scene))


def check_finite(world: World) -> None:
    for name in MODELS:
        for weight, values in getattr(world, name).state_dict().items():
            if values.is_floating_point() and not values.isfinite().all():
                raise ValueError(f"the world's {name} has weights that are no numbers, in {weight}; train it again")


def made_with(device: torch.device) -> dict[str, Any]:
    """What the figures may depend on besides the seed: code and machine."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # installed without its history
    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in names.splitlines() if line.startswith("model name")), "")
    return {
        "minigenie": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu or platform.processor(),
        "threads": torch.get_num_threads(),
    }


def _load_perceptual(evaluator: Evaluator) -> None:
    """Networks that see as people do: optional, since their weights are."""
    blank = torch.zeros(1, *evaluator.world.frame_shape)
    for name, (title, loader, pairs) in PERCEPTUAL.items():
        try:
            from minigenie.eval import perceptual

            network = getattr(perceptual, loader)(evaluator.world.device)
            if pairs:
                network(blank, blank)  # some frames are too small for it
        except (ImportError, ValueError) as error:
            evaluator.notes.append(f"{UNMEASURED}{title} ({error})")
        else:
            (evaluator.distances if pairs else evaluator.features)[name] = network


# The measurements, each a part of the report.


def _tokenizer(
    evaluator: Evaluator, video: UInt8[Tensor, "b t h w c"], episodes: np.ndarray
) -> tuple[Tensor, dict[str, Any], tuple[Tensor, Tensor]]:
    """Frames through the tokenizer and back. Returns tokens too, and pictures: originals and what became of them."""
    world = evaluator.world

    def reconstruct(part: Tensor) -> tuple[Tensor, Tensor]:
        truth = to_float(part)
        tokens = world.tokenizer.encode(truth.to(world.device))
        decoded = world.tokenizer.decode(tokens).clamp(0, 1).cpu()
        return tokens.cpu(), torch.stack((psnr(decoded, truth), ssim(decoded, truth)), dim=-1).mean(dim=1)

    tokens, quality = zip(*evaluator.each(reconstruct, video.split(BATCH)), strict=True)
    per_clip, codes, some = torch.cat(quality).numpy(), torch.cat(tokens), _evenly_spaced(video)
    num_codes = world.config.tokenizer.quantizer.num_codes
    shown = video[some, 0], to_uint8(world.tokenizer.decode(codes[some].to(world.device)))[:, 0].cpu()
    return (
        codes,
        {
            "psnr": float(per_clip[:, 0].mean()),
            "psnr_ci95": interval(per_clip[:, 0], evaluator.seed, episodes),
            "ssim": float(per_clip[:, 1].mean()),
            "ssim_ci95": interval(per_clip[:, 1], evaluator.seed, episodes),
            "codes_used": len(codes.unique()),
            "num_codes": num_codes,
            "perplexity": perplexity(codes.numpy()),
            "usage": np.sort(usage(codes.numpy(), num_codes))[::-1].round(6).tolist(),  # commonest first
            "frames": codes.shape[0] * codes.shape[1],
        },
        shown,
    )


def _actions(
    evaluator: Evaluator,
    actions: Int[np.ndarray, "b t"],
    truth: Int[np.ndarray, "b t"] | None,
    controls: Controls | None,
    episodes: np.ndarray,
) -> dict[str, Any]:
    share = usage(actions, evaluator.world.num_actions)
    report: dict[str, Any] = {
        "usage": share.tolist(),
        "above_2_percent": int((share > 0.02).sum()),
        "entropy": entropy(share),
        "perplexity": float(np.exp(entropy(share))),
        "transitions": actions.size,
    }
    if report["perplexity"] < COLLAPSED:
        evaluator.notes.append(
            f"the latent actions have collapsed (perplexity {report['perplexity']:.2f} of {len(share)}), so little of "
            "what follows means anything; see minigenie doctor"
        )
    if truth is None or controls is None:
        evaluator.notes.append(f"{UNMEASURED}what the latent actions mean (the dataset has no true actions)")
        return report
    keys = controls.join(truth)
    return report | {
        "controls": list(controls.names),
        "information": {name: information(actions, part[keys]) for name, part in controls.parts.items()},
        **meaning(actions, keys, evaluator.world.num_actions, evaluator.seed, episodes),
    }


def _inverse(evaluator: Evaluator, controls: Controls | None) -> tuple[dict[str, Any], InverseDynamics | None]:
    """What could be known of the keys from a pair of frames: learnt on three quarters of the episodes, judged on the
    others. Returns what learnt it, too."""
    if controls is None:
        return {}, None
    starts = evaluator.clips(min(INVERSE_PAIRS, 64 * evaluator.max_clips), 2, salt=5)
    episodes = evaluator.dataset.episode_starts
    judged = np.searchsorted(episodes, starts, side="right") % min(4, len(episodes)) == 0
    if judged.all() or not judged.any():
        evaluator.notes.append(
            f"{UNMEASURED}what a pair of frames tells of the keys (the dataset has too few episodes)"
        )
        return {}, None
    pairs, truth = evaluator.frames(starts, 2), evaluator.dataset.clip_actions(starts, 2)
    assert truth is not None
    keys, steps = controls.join(truth)[:, 0], min(INVERSE_STEPS, 4 * evaluator.max_clips)
    fit = partial(fit_pairs, names=controls.names, steps=steps, seed=evaluator.seed)
    (model,) = evaluator.each(fit, [pairs[~judged]], [keys[~judged]])
    seen, keys = controls_seen(model, pairs[judged]), keys[judged]
    report = {
        name: {
            "accuracy": float((part[seen] == part[keys]).mean()),
            "majority": float(np.bincount(part[keys]).max() / len(keys)),
            "information": information(seen, part[keys]),
        }
        for name, part in controls.parts.items()
    }
    return {"inverse_dynamics": {"pairs": len(keys), "steps": steps, **report}}, model


def _control(evaluator: Evaluator, inverse: InverseDynamics | None) -> tuple[dict[str, Any], Scene | None]:
    """The control test, where there can be one."""
    world, states = evaluator.world, min(evaluator.max_clips, STATES)
    try:
        report, scene = measure_control(
            evaluator.rollout, world.num_actions, evaluator.dataset, states, evaluator.seed, world.device, inverse
        )
    except Impossible as why:
        evaluator.notes.append(f"{UNMEASURED}the control test ({why})")
        return {}, None
    return {"control": report}, scene


def _dynamics(
    world: World,
    video: UInt8[Tensor, "b t h w c"],
    tokens: Int[Tensor, "b t n"],
    actions: Int[Tensor, "b s"],
    seed: int,
) -> dict[str, Any]:
    """The training loss of dynamics, of tokens, on clips it never saw."""
    length = min(tokens.shape[1], world.config.context_frames + 1)
    video, tokens, actions = (
        video[:LOSS_CLIPS, :length],
        tokens[:LOSS_CLIPS, :length],
        actions[:LOSS_CLIPS, : length - 1],
    )
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(seed)
        losses, weights = [], []
        for frames, some, choice in zip(*(each.split(BATCH) for each in (video, tokens, actions)), strict=True):
            batch = {"tokens": some.to(world.device), "actions": choice.to(world.device)}
            if world.dynamics.camera is not None:
                batch |= seen_by_camera(world.dynamics.camera, world.tokenizer, frames.to(world.device))
            losses.append(float(world.dynamics(batch)[1]["cross_entropy"]))
            weights.append(len(some))
    return {"cross_entropy": float(np.average(losses, weights=weights)), "clips": len(tokens), "clip_frames": length}


def _rollout(
    evaluator: Evaluator, video: UInt8[Tensor, "b t h w c"], actions: Int[Tensor, "b steps"], episodes: np.ndarray
) -> dict[str, Any]:
    """From the same true frames with inferred and with random actions: delta-PSNR (arXiv:2402.15391, sec. 3)."""
    seed, future, inferred = evaluator.seed, video[:, PROMPT:], actions[:, PROMPT - 1 :]
    random = torch.randint(evaluator.world.num_actions, inferred.shape, generator=torch.Generator().manual_seed(seed))
    imagined, astray = (evaluator.rollout(video[:, :PROMPT], choice) for choice in (inferred, random))
    right, wrong = (evaluator.compare(psnr, frames, future) for frames in (imagined, astray))
    repeated = video[:, PROMPT - 1 : PROMPT].expand_as(future)
    return {
        "prompt_frames": PROMPT,
        "clips": len(video),
        "sampling": vars(evaluator.world.config.sampling),
        **quality(evaluator, imagined, future, episodes),
        **pooled(evaluator, "repeat_last_pooled_psnr", repeated, future, episodes),
        "delta_psnr": {
            str(t): bootstrap(column, seed, episodes) for t, column in enumerate((right - wrong).numpy().T, 1)
        },
    }


def _long_rollouts(
    evaluator: Evaluator, starts: np.ndarray, horizon: int
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """From 1 and from 4 true frames, beside the last true frame repeated. Returns scenes too: truth and imagination."""
    video, episodes = evaluator.frames(starts, PROMPT + horizon), evaluator.episodes(starts)
    actions = evaluator.infer_actions(video)[:, PROMPT - 1 :]
    future = video[:, PROMPT:]
    repeated = video[:, PROMPT - 1 : PROMPT].expand_as(future)
    seen = {f"from_{prompt}": evaluator.rollout(video[:, PROMPT - prompt : PROMPT], actions) for prompt in (1, PROMPT)}
    ways = {**seen, "repeat_last": repeated}
    report = {name: quality(evaluator, frames, future, episodes, evaluator.distances) for name, frames in ways.items()}
    for name, features in evaluator.features.items():
        for way, distance in _frechet(evaluator, ways, future, features).items():
            report[way][name] = distance
    some = _evenly_spaced(video)
    imagined = torch.cat((video[some, :PROMPT], seen[f"from_{PROMPT}"][some]), dim=1)
    return {"clips": len(video), "frames": future.shape[1], **report}, (video[some], imagined)


def _evenly_spaced(video: Tensor) -> Tensor:
    """Eight to show, from all over the footage."""
    return torch.linspace(0, len(video) - 1, min(8, len(video))).round().long()


def quality(
    evaluator: Evaluator,
    frames: UInt8[Tensor, "b t h w c"],
    truth: UInt8[Tensor, "b t h w c"],
    episodes: np.ndarray,
    distances: dict[str, Distance] | None = None,
) -> dict[str, Any]:
    """How near `frames` are to the truth, by horizon."""
    seed, report = evaluator.seed, pooled(evaluator, "pooled_psnr", frames, truth, episodes)
    for name, distance in {"psnr": psnr, "ssim": ssim, **(distances or {})}.items():
        values = evaluator.compare(distance, frames, truth).numpy()
        report |= by_horizon(name, values, seed, episodes)
        report[f"{name}_first_10"] = bootstrap(values[:, :10].mean(axis=1), seed, episodes)
    return report


def _frechet(
    evaluator: Evaluator,
    ways: dict[str, UInt8[Tensor, "b t h w c"]],
    truth: UInt8[Tensor, "b t h w c"],
    features: Features,
) -> dict[str, float]:
    """Distance of all frames to the true ones as distributions."""
    from minigenie.eval.perceptual import frechet

    def seen(clips: Tensor) -> np.ndarray:
        return torch.cat(evaluator.each(lambda clip: features(to_float(clip)), clips)).numpy()

    real, *others = map(seen, (truth, *ways.values()))
    return {way: frechet(other, real) for way, other in zip(ways, others, strict=True)}


def pooled(
    evaluator: Evaluator,
    name: str,
    frames: UInt8[Tensor, "b t h w c"],
    truth: UInt8[Tensor, "b t h w c"],
    episodes: np.ndarray,
) -> dict[str, Any]:
    """PSNR of the mean squared error over all clips, by horizon: large errors count as what they are."""
    errors = evaluator.compare(mse, frames, truth).numpy()
    ends = [decibels(np.array(interval(column, evaluator.seed, episodes)))[::-1] for column in errors.T]
    return {
        name: {str(t): float(value) for t, value in enumerate(decibels(errors.mean(0)), 1)},
        f"{name}_ci95": {str(t): values.tolist() for t, values in enumerate(ends, 1)},
    }


def _effects(evaluator: Evaluator) -> tuple[dict[str, Any], UInt8[Tensor, "a t h w c"]]:
    """What each action does to the picture, from frames at rest: in the middle of a jump gravity decides. Returns a
    gallery too, from where the actions lead furthest apart: not every place has room for left, right and up."""
    candidates = evaluator.clips(256, PROMPT, salt=2)
    clips = evaluator.frames(candidates, PROMPT)
    moving = clips.float().std(dim=1).mean(dim=(1, 2, 3)).numpy()
    order = np.argsort(moving, kind="stable")
    _, first = np.unique(evaluator.episodes(candidates)[order], return_index=True)  # the stillest of each episode
    rest = clips[order[np.sort(first)[: min(evaluator.max_clips, STARTS)]]]
    num_actions = evaluator.world.num_actions
    held = hold_actions(evaluator.rollout, rest, num_actions, HELD)
    each, together = measure_effects(held.numpy(), evaluator.seed)
    apart = held[:, :, -1].float().std(dim=1).mean(dim=(1, 2, 3))
    gallery = hold_actions(evaluator.rollout, rest[apart.argmax()][None], num_actions, GALLERY - 1)[0]
    return {"effects": each, "effects_together": together}, gallery


def _drift(evaluator: Evaluator) -> tuple[dict[str, Any], dict[int, Tensor]]:
    clips, horizon = min(evaluator.max_clips, DRIFT_CLIPS), min(10 * evaluator.max_clips, DRIFT_HORIZON)
    at = evaluator.clips(clips, 1, salt=3)
    starts, truth = evaluator.frames(at, 1)[:, 0], true_clips(evaluator.dataset, horizon, len(at), evaluator.seed)
    spans = {name: picks[-1] - picks[0] + 1 for name, picks in stretches(horizon).items()}
    if short := {name: truth[name].length for name, span in spans.items() if truth[name].length < span}:
        name, length = max(short.items(), key=lambda each: spans[each[0]])
        evaluator.notes.append(
            f"drift over frames {name} stands beside true clips of {length} frames: too few episodes are longer"
        )

    def play(some: Tensor, seed: int) -> dict[int, Tensor]:
        return play_long(
            evaluator.world.fresh_copy(), some, horizon, seed, lambda done, total: evaluator.advance(len(some))
        )

    played = evaluator.each(play, starts.split(max(1, len(starts) // 2)), count(evaluator.seed))
    frames = {t: torch.cat([each[t] for each in played]) for t in played[0]}
    features, episodes = evaluator.features.get("frechet"), evaluator.episodes(at)
    report = measure_drift(evaluator.world, frames, truth, evaluator.seed, features, episodes)
    return report, {0: starts} | frames
