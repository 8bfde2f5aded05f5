"""What the models learn from besides tokens: moments of an ending, motions around labels, the controls of clips."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minigenie.camera import Camera
from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset, sample_batch
from minigenie.data.labels import Labels, check_labels
from minigenie.encode import CLIP
from minigenie.ending import LAST
from minigenie.found import found_controls
from minigenie.inverse import InverseDynamics
from minigenie.nn.motion import clip_motions, motion
from minigenie.nn.patches import to_float
from minigenie.tokenizer import VideoTokenizer
from minigenie.train import FitConfig
from minigenie.world import WorldConfig

MOST_MOTIONS = 2**16  # from which the typical ones, and controls, are taken


class Moments(NamedTuple):
    """Frames of a dataset, and the one before each: the last ones of episodes that ended, which of these were won, and
    all others but those where an episode was cut off, of which nobody knows."""

    ended: Int[np.ndarray, "m 2"]
    won: Bool[np.ndarray, " m"]
    others: Int[np.ndarray, "k 2"]


def ending_moments(dataset: Dataset) -> Moments:
    first, frames = dataset.episode_starts, np.arange(dataset.num_frames)
    last = first + np.array([episode.length for episode in dataset.episodes]) - 1
    pairs = np.stack((np.maximum(frames - 1, first[dataset.episodes_of(frames)]), frames), axis=1)
    ended = last[[episode.ended for episode in dataset.episodes]]
    won = np.array([episode.won for episode in dataset.episodes if episode.ended], bool)
    return Moments(pairs[ended], won, np.delete(pairs, last, axis=0))


def ending_batch(
    moments: Moments, tokens: np.ndarray, seed: int, config: FitConfig, step: int, some: range
) -> dict[str, Tensor]:
    """What an ending learns from: `some` of a step's moments, by tokens of the whole dataset, [f n]."""
    few = math.ceil(LAST * config.batch_size) if len(moments.ended) else 0
    many = config.batch_size - few
    ended, others = (
        sample_batch(len(kind), seed=seed, step=step, batch_size=number) if number else np.zeros(0, int)
        for kind, number in ((moments.ended, few), (moments.others, many))
    )
    pairs = np.concatenate((moments.ended[ended], moments.others[others]))[some.start : some.stop]
    won = np.concatenate((moments.won[ended], np.zeros(many, bool)))[some.start : some.stop]
    odds = few / many * len(moments.others) / max(1, len(moments.ended))
    return {
        "tokens": torch.from_numpy(tokens[pairs].astype(np.int64)),
        "last": torch.arange(some.start, some.stop) < few,
        "won": torch.from_numpy(won),
        "odds": torch.full((len(some),), odds),
    }


def seen_by_camera(camera: Camera, tokenizer: VideoTokenizer, frames: Tensor) -> dict[str, Tensor]:
    """Of clips, uint8 [b t h w c], what `Run.camera` knows of the dataset: "motions" [b t-1], "moved" [b t-1 n]."""
    video = to_float(frames)
    seen = clip_motions(video)
    codes = camera.nearest(seen)
    moved = tokenizer.encode(camera.move(video[:, :-1], codes, seen).flatten(0, 1)[:, None])
    return {"motions": codes, "moved": moved.view(*codes.shape, -1)}


def recorded_controls(dataset: Dataset, starts: np.ndarray, length: int) -> Tensor:
    """The controls that were recorded with some clips: int64 [b length-1]."""
    controls, actions = controls_of(dataset), dataset.clip_actions(starts, length)
    assert controls is not None
    assert actions is not None
    return torch.from_numpy(controls.join(actions))


@lru_cache(maxsize=1)
def found_labels(dataset: Dataset, seed: int) -> Labels:
    """Controls that nobody labelled, and some transitions that show them (minigenie.found). Of a large dataset some
    episodes are looked at."""
    motions, looked_at = np.full((dataset.num_frames, 2), np.inf, np.float32), 0
    for number in np.random.default_rng(seed).permutation(len(dataset.episodes)):
        first, length = dataset.episode_starts[number], dataset.episodes[number].length
        for begin in range(first, first + length - 1, CLIP):
            frames = np.arange(begin, min(begin + CLIP, first + length - 1))
            before, after = to_float(torch.from_numpy(dataset.clips(frames, 2))).unbind(1)
            motions[frames] = motion(before, after)
        looked_at += length
        if looked_at >= MOST_MOTIONS:
            break
    return check_labels(found_controls(dataset, motions, seed))


def label_batch(dataset: Dataset, labels: Labels, rows: np.ndarray, around: Tensor) -> dict[str, Tensor]:
    """Some labels, as a batch of inverse dynamics. around: the motions around all of them."""
    return {
        "frames": torch.from_numpy(dataset.clips(labels.frames[rows], 2)),
        "around": around[rows],
        "controls": torch.from_numpy(labels.controls[rows]),
    }


@torch.no_grad()
def motions_around(
    dataset: Dataset,
    frames: np.ndarray,
    recipe: WorldConfig,
    watch: Callable[[int, int], None] = lambda done, total: None,
    motions: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The motions of the picture at the steps around those that lead on from `frames`: [frames s 2], on the CPU. Beyond
    an episode's ends nothing moves. motions: those of `encode_motions`, if they are known. device: where others are
    measured."""
    model = InverseDynamics(recipe.inverse, recipe.tokenizer.frame_size).to(device)
    first, episode = dataset.episode_starts, dataset.episodes_of(frames)
    last = first + np.array([each.length for each in dataset.episodes]) - 1
    steps = frames[:, None] + np.arange(-recipe.inverse.past, recipe.inverse.future + 1)
    inside = (steps >= first[episode][:, None]) & (steps < last[episode][:, None])
    seen, place = np.unique(steps[inside], return_inverse=True)
    found = torch.zeros(len(seen), 2) if motions is None else torch.from_numpy(motions[seen]) / model.scale
    piece = CLIP if torch.device(device).type == "cpu" else 16 * CLIP
    for begin in range(0, len(seen) if motions is None else 0, piece):
        some = slice(begin, begin + piece)
        found[some] = model.motions(to_float(torch.from_numpy(dataset.clips(seen[some], 2)).to(device)))[:, 0].cpu()
        watch(min(begin + piece, len(seen)), len(seen))
    around = torch.zeros(*steps.shape, 2)
    around[torch.from_numpy(inside)] = found[torch.from_numpy(place)]
    return around
