"""Does a world stay itself while it is played on and on?

Nobody knows the true frame 200 frames after a player took over, but the frames of a sound world go on looking like real
ones: as sharp, built from as many codes, near them as a distribution. A world that drifts goes blurred, empty or noisy.
Real ones means true clips that are as many and as long: frames of one clip are alike, and 8 clips have fewer codes than
80 frames from everywhere.

Dimensions:  b clips   t frames   m frames measured of each clip   r true clips   h w c a frame   d features
"""

from collections.abc import Callable
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie.data.dataset import Dataset
from minigenie.eval.evaluator import Clips, Evaluator, Report, bootstrap, perplexity
from minigenie.eval.perceptual import frechet
from minigenie.nn.patches import to_float
from minigenie.world import World

CLIPS, HORIZON = 8, 200
ENDS = (10, 50, 100, 200, 500, 1000)  # of the stretches of horizon: 1-10, 11-50, ...
MEASURED = 10  # frames of each clip in a stretch: equal counts, since perplexity and Frechet distance depend on them
LEAST_GRADIENT = 1e-8  # footage of nothing but flat colour
HOLD = 8  # frames that an action is held on average, as a player holds a key
Advance = Callable[[int], None]  # told of so many new frames
Frames = UInt8[Tensor, "b h w c"]
Played = dict[int, UInt8[Tensor, "b h w c"]]  # frames, by horizon
OF_LEVEL = 200  # frames of an episode at most, that tell which codes it has
SETS = 8  # of true clips: one to show what true clips score, the others to compare with


def frames_to_imagine(evaluator: Evaluator) -> int:
    return min(evaluator.max_clips, CLIPS) * min(10 * evaluator.max_clips, HORIZON)


def measure(evaluator: Evaluator) -> tuple[Report, Played]:
    """The report's part on drift, and frames to show, by horizon."""
    clips, horizon = min(evaluator.max_clips, CLIPS), min(10 * evaluator.max_clips, HORIZON)
    at = evaluator.clips(clips, 1, salt=3)
    starts, truth = evaluator.frames(at, 1)[:, 0], true_clips(evaluator.dataset, horizon, len(at), evaluator.seed)
    short = {p[-1] - p[0]: name for name, p in stretches(horizon).items() if truth[name].length <= p[-1] - p[0]}
    if short:
        span = f"{short[max(short)]} stands beside true clips of {truth[short[max(short)]].length} frames"
        evaluator.notes.append(f"drift over frames {span}: too few episodes are longer")
    play = lambda some, seed: play_long(evaluator.world, some, horizon, seed, evaluator.advance)  # noqa: E731
    played = evaluator.each(play, starts.split(max(1, len(starts) // 2)), count(evaluator.seed))
    frames = {t: torch.cat([each[t] for each in played]) for t in played[0]}
    return measure_drift(evaluator, frames, truth, evaluator.dataset.episodes_of(at)), {0: starts} | frames


def play_long(world: World, starts: Frames, horizon: int, seed: int, advance: Advance = lambda frames: None) -> Played:
    """Roll out from `starts` under random held actions: the frames that are measured, by horizon, in order."""
    wanted = {t for picks in stretches(horizon).values() for t in picks}
    world, frames = world.fresh_copy(), {}
    world.reset(starts[:, None], seed)
    for t, column in enumerate(held_actions(len(starts), horizon, world.num_actions, seed).unbind(1), 1):
        frame = world.step(column)
        if t in wanted:
            frames[t] = frame
        advance(len(frame))
    return frames


class Truth(NamedTuple):
    """Of a stretch: `SETS` times as many true clips as were played, evenly spaced frames of `length` of each."""

    frames: UInt8[Tensor, "r m h w c"]
    length: int


def true_clips(dataset: Dataset, horizon: int, clips: int, seed: int) -> dict[str, Truth]:
    """By stretch: frames of true clips at the spacing at which those of `clips` rollouts are measured. Where fewer than
    `clips` episodes are as long as a stretch, clips are as long as so many are, and their frames closer together."""
    rng, lengths = np.random.default_rng(seed), np.array([episode.length for episode in dataset.episodes])

    def enough(length: int) -> bool:
        of_episode = np.maximum(lengths - length + 1, 0)
        return bool((of_episode > 0).sum() >= min(clips, len(lengths)) and of_episode.sum() >= SETS * clips)

    found = {}
    for name, picks in stretches(horizon).items():
        length = next((length for length in range(picks[-1] - picks[0] + 1, 1, -1) if enough(length)), 1)
        windows = dataset.windows(length)
        starts = rng.choice(windows, SETS * clips, replace=len(windows) < SETS * clips)
        at = np.linspace(0, length - 1, len(picks)).round().astype(int)
        frames = torch.from_numpy(dataset.clips((starts[:, None] + at).ravel(), 1))
        found[name] = Truth(frames[:, 0].unflatten(0, (len(starts), len(at))), length)
    return found


def measure_drift(evaluator: Evaluator, frames: Played, truth: dict[str, Truth], episodes: Clips) -> Report:
    """frames: as from `play_long`. truth: as from `true_clips`. episodes: where each clip began.

    -> {"clips", "horizon", "stretches": {"1-10": SCORES, ...}, "real": {"1-10": SCORES, ...}, "level"} with SCORES
    {"frames", "sharpness": {"mean", "ci95", "clips"}, "perplexity", "perplexity_share", "frechet"}. sharpness is the
    gradient energy over that of true clips, perplexity_share likewise: both are 1 in a sound world. frechet only
    where it can be measured. real: what as many other true clips score. Of what was played also "own_codes": the share
    of its tokens that are among those of the episode that it began in. level: what that is among true frames, {"own":
    of an episode's later half among those of its earlier one, "other": of an episode's among those of another}."""
    played, real = {}, {}
    levels = {int(at): _tokens_of_episode(evaluator, int(at)) for at in np.unique(episodes)}
    for name, picks in stretches(max(frames)).items():
        video = torch.stack([frames[t] for t in picks], dim=1)
        sets = [_measure(evaluator, part) for part in truth[name].frames.split(len(video))]
        seen = _measure(evaluator, video)
        own = [_among(each, levels[at]) for each, at in zip(seen["tokens"], episodes, strict=True)]
        played[name] = _score(seen, sets[1:], evaluator.seed, episodes)
        played[name]["own_codes"] = bootstrap(np.array(own), evaluator.seed, episodes)
        real[name] = _score(sets[0], sets[1:], evaluator.seed)
    level = _compare_levels(list(levels.values()))
    return {"clips": len(frames[1]), "horizon": max(frames), "real": real, "stretches": played, "level": level}


def _tokens_of_episode(evaluator: Evaluator, episode: int) -> Int[Tensor, "m n"]:
    """Of true frames, evenly spaced, in order."""
    frames = evaluator.dataset.episode_frames(episode)
    at = np.unique(np.linspace(0, len(frames) - 1, min(OF_LEVEL, len(frames))).round().astype(int))
    return _encode(evaluator.world, torch.from_numpy(frames[at]))


def _among(tokens: Tensor, others: Tensor) -> float:
    """The share of tokens that are among the others."""
    return float(torch.isin(tokens, others).float().mean())


def _compare_levels(levels: list[Tensor]) -> Report:
    """See measure_drift. What a single frame or a single episode does not tell is not there."""
    halves = [tokens.tensor_split(2) for tokens in levels if len(tokens) > 1]
    ways = {
        "own": [_among(later, earlier) for earlier, later in halves],
        "other": [_among(tokens, other) for tokens, other in pairwise(levels)],
    }
    return {way: float(np.mean(shares)) for way, shares in ways.items() if shares}


def _score(seen: Report, sets: list[Report], seed: int, episodes: Clips | None = None) -> Report:
    """Of what was seen, beside the mean over sets of true clips."""
    gradient, codes = (float(np.mean([each[name] for each in sets])) for name in ("gradient", "perplexity"))
    report: Report = {
        "frames": seen["frames"],
        "sharpness": bootstrap(seen["gradient"] / max(gradient, LEAST_GRADIENT), seed, episodes),
        "perplexity": seen["perplexity"],
        "perplexity_share": seen["perplexity"] / codes,
    }
    if seen["features"] is not None:
        report["frechet"] = float(np.mean([frechet(seen["features"], each["features"]) for each in sets]))
    return report


def stretches(horizon: int) -> dict[str, list[int]]:
    """The stretches of a horizon, each with those of its frames that are measured, evenly spaced."""
    ends = (0, *(end for end in ENDS if end < horizon), horizon)
    return {
        f"{before + 1}-{end}": np.unique(np.linspace(before + 1, end, MEASURED).round()).astype(int).tolist()
        for before, end in pairwise(ends)
    }


def held_actions(clips: int, horizon: int, num_actions: int, seed: int) -> Int[Tensor, "b t"]:
    """Random actions, each held for a random time of `HOLD` frames on average."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randint(num_actions, (clips, horizon), generator=generator)
    change = torch.rand(clips, horizon, generator=generator) < 1 / HOLD
    change[:, 0] = True
    since = torch.where(change, torch.arange(horizon), 0).cummax(dim=1).values
    return fresh.gather(1, since)


def gradient_energy(frames: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Mean squared difference between neighbouring pixels: what blur takes away and noise adds."""
    down, right = frames.diff(dim=-3).square(), frames.diff(dim=-2).square()
    return down.mean(dim=(-3, -2, -1)) + right.mean(dim=(-3, -2, -1))


@torch.no_grad()
def _measure(evaluator: Evaluator, video: UInt8[Tensor, "b m h w c"]) -> Report:
    """Gradient energy of each clip [b], its tokens [b m*n], their perplexity, features [b*m d]. Frames are encoded one
    at a time: those between them are not there."""
    flat, features = video.flatten(0, 1), evaluator.features
    tokens = _encode(evaluator.world, flat)
    return {
        "frames": len(flat),
        "gradient": gradient_energy(to_float(video)).mean(dim=1).numpy(),
        "tokens": tokens.view(len(video), -1),
        "perplexity": perplexity(tokens.numpy()),
        "features": features(to_float(flat)).numpy() if features else None,
    }


def _encode(world: World, frames: UInt8[Tensor, "m h w c"]) -> Int[Tensor, "m n"]:
    parts = (to_float(part)[:, None].to(world.device) for part in frames.split(64))
    return torch.cat([world.tokenizer.encode(part)[:, 0].cpu() for part in parts])
