"""What is being labelled, by whoever has the page open: the footage in short clips, the controls, the labels so far.

Clips do not overlap, and their order is a function of the seed alone: a later session goes on with those that have no
labels yet. Every change is on disk before it counts.
"""

import math
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from minigenie.data.controls import KEYS, TOY_NAMES, controls_of
from minigenie.data.dataset import Dataset
from minigenie.data.labels import FEWEST, FILE, Labels, check_names, read_labels, write_labels
from minigenie.errors import UserError
from minigenie.inverse import controls_seen, fit_pairs
from minigenie.pictures import encode

CLIP_FRAMES, FEWEST_FRAMES = 32, 12
LEAD_SECONDS = 0.2  # of footage, before anyone has seen what goes on
COLUMNS = 8  # frames side by side in the picture of a clip: some browsers draw nothing wider than 4,096 pixels
EVERY = 100  # labels, after which the classifier learns anew
FOLDS, STEPS = 3, 100  # of the check whether the labels can be learnt
MOST_LABELS = 1_500  # that it looks at
LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "1234567890"


class Session:
    """clips: the frames of each, counted through all shards. names: of the controls, none yet if nobody has said.
    labels: control by frame. Methods may be called from any thread; they raise UserError, one line, if what is asked
    makes no sense, and OSError if it cannot be written."""

    def __init__(self, dataset: Dataset, controls: str | None = None, seed: int = 0) -> None:
        if dataset.url:
            raise UserError(f"labels cannot be written to {dataset.name}; copy the dataset to this machine first")
        self.dataset, self.lock = dataset, threading.Lock()
        self.clips = clips_of(dataset, seed)
        self.lead = max(2, math.ceil(LEAD_SECONDS * dataset.fps))
        self.names: tuple[str, ...] = ()
        self.labels: dict[int, int] = {}
        self.saved: list[int] = []
        self.next = self.checked = 0
        self.stored = self._stored()
        if self.stored is not None:
            there = read_labels(dataset)
            self.names = there.names
            self.labels = dict(zip(there.frames.tolist(), there.controls.tolist(), strict=True))
        elif recorded := controls_of(dataset):
            self.names = recorded.names
        if controls is not None:
            named = [name.strip() for name in controls.split(",")]
            self.names, self.labels = self._renamed(named, {name: name for name in self.names if name in named})

    def describe(self) -> dict[str, Any]:
        with self.lock:
            counts = self._labels().counts
            return {
                "dataset": self.dataset.name,
                "fps": self.dataset.fps,
                "size": self.dataset.frame_size,
                "columns": COLUMNS,
                "lead": self.lead,
                "controls": [
                    {"name": name, "keys": keys, "count": counts[name]}
                    for name, keys in zip(self.names, keys_of(self.names), strict=True)
                ],
                "suggested": TOY_NAMES,
                "labels": len(self.labels),
                "last": self.describe_clip(self.saved[-1]) if self.saved else None,
                "enough": len(self.labels) >= FEWEST and all(counts.values()),
            }

    def describe_clip(self, number: int | None) -> dict[str, int | None]:
        """A clip as a page is told of it."""
        return {"clip": number, "frames": None if number is None else len(self.clips[number])}

    def next_clip(self) -> int | None:
        """A clip without labels: the next, and after the last those that were left out. None if all have some."""
        with self.lock:
            for number in (*range(self.next, len(self.clips)), *range(self.next)):
                if self.labels.keys().isdisjoint(self.clips[number][:-1]):
                    self.next = number + 1
                    return number
            return None

    def picture(self, number: Any) -> bytes:
        """The frames of a clip as one PNG, COLUMNS side by side."""
        clip = self._clip(number)
        frames = self.dataset.clips(np.array([clip.start]), len(clip))[0]
        full = np.pad(frames, ((0, -len(clip) % COLUMNS), (0, 0), (0, 0), (0, 0)))
        return encode(rearrange(full, "(y x) h w c -> (y h) (x w) c", x=COLUMNS), "PNG", compress_level=1)

    def save(self, number: Any, names: Any) -> None:
        """names: of the control held at each transition of the clip, or None; in place of those it had."""
        clip = self._clip(number)
        if not isinstance(names, list) or len(names) != len(clip[:-1]):
            raise UserError(f"labels of clip {number} must be a list of {len(clip[:-1])}")
        with self.lock:
            if unknown := [name for name in names if name is not None and name not in self.names]:
                raise UserError(f"there is no control {unknown[0]!r}; if they have changed, load the page again")
            given = zip(clip[:-1], names, strict=True)
            labels = self._without(clip) | {i: self.names.index(name) for i, name in given if name is not None}
            self._write(self.names, labels)
            self.saved = [*(each for each in self.saved if each != number), number]

    def undo(self, number: Any) -> None:
        """Take the labels of a clip back that were given since the server began."""
        clip = self._clip(number)
        with self.lock:
            if number not in self.saved:
                raise UserError("there is nothing to undo")
            self._write(self.names, self._without(clip))
            self.saved.remove(number)

    def rename(self, controls: Any) -> None:
        """controls: a list of {"name": ..., "was": the name that this control had, or null}."""
        if not isinstance(controls, list) or not all(isinstance(entry, dict) for entry in controls):
            raise UserError("controls must be a list of objects with a name")
        was = {entry["was"]: entry.get("name") for entry in controls if isinstance(entry.get("was"), str)}
        with self.lock:
            if unknown := was.keys() - set(self.names):
                raise UserError(f"there is no control {min(unknown)!r} any more; load the page again")
            self._write(*self._renamed([entry.get("name") for entry in controls], was))

    def _renamed(self, names: list[Any], was: dict[str, Any]) -> tuple[tuple[str, ...], dict[int, int]]:
        checked = check_names(names)
        if len(names) < 2:
            raise UserError(f"{names[0]!r} is the only control; give at least two, such as noop,{names[0]}")
        for name, count in self._labels().counts.items():
            if count and name not in was:
                raise UserError(f"{name!r} has {count} labels and cannot be left out; it may have another name")
        place = {i: names.index(was[name]) for i, name in enumerate(self.names) if name in was}
        return checked, {frame: place[control] for frame, control in self.labels.items()}

    def labels_to_check(self) -> Labels | None:
        """The labels, whenever another EVERY of them are there, of two controls at least."""
        with self.lock:
            hundreds = len(self.labels) // EVERY
            if hundreds <= self.checked or len(set(self.labels.values())) < 2:
                return None
            self.checked = hundreds
            return self._labels()

    def _labels(self) -> Labels:
        frames = np.array(sorted(self.labels), np.int64)
        return Labels(self.names, frames, np.array([self.labels[frame] for frame in frames.tolist()], np.int64))

    def _clip(self, number: Any) -> range:
        if type(number) is not int or not 0 <= number < len(self.clips):
            raise UserError(f"clip must be a number from 0 to {len(self.clips) - 1}")
        return self.clips[number]

    def _without(self, clip: range) -> dict[int, int]:
        return {frame: control for frame, control in self.labels.items() if frame not in clip[:-1]}

    def _write(self, names: tuple[str, ...], labels: dict[int, int]) -> None:
        if self._stored() != self.stored:
            raise UserError(f"{FILE} was changed by something else; stop the server and start it again")
        write_labels(self.dataset.folder, names, labels)
        self.names, self.labels, self.stored = names, labels, self._stored()

    def _stored(self) -> bytes | None:
        """The file as it is now, which shows when something else has written it."""
        path = self.dataset.folder / FILE
        return path.read_bytes() if path.is_file() else None


def clips_of(dataset: Dataset, seed: int) -> list[range]:
    """Every take cut into clips, in a random order. UserError if all takes are too short."""
    takes = [
        range(start, start + episode.length)
        for start, episode in zip(dataset.episode_starts.tolist(), dataset.episodes, strict=True)
    ]
    clips = [take[i : i + CLIP_FRAMES] for take in takes for i in range(0, len(take), CLIP_FRAMES)]
    clips = [clip for clip in clips if len(clip) >= FEWEST_FRAMES]
    if not clips:
        raise UserError(f"{dataset.name} has no take of {FEWEST_FRAMES} frames; a clip to label has at least that")
    return [clips[i] for i in np.random.default_rng(seed).permutation(len(clips))]


def keys_of(names: tuple[str, ...]) -> list[list[str]]:
    """The keys to hold for each control: none for noop, both for jump-left, a free letter or digit for brake. Where
    none is free, a name that no key has: that control has a tile only."""
    parts = [_parts(name, names) for name in names]
    keys: dict[str, str] = {}
    for part in dict.fromkeys(part for each in parts for part in each):
        own = sorted((key for key in part.lower() if key in DIGITS + LETTERS), key=str.isalpha)  # "key 4" is 4
        wanted = [*([KEYS[part]] if part in KEYS else []), *own, *DIGITS, *LETTERS, f"tile {part}"]
        keys[part] = next(key for key in wanted if key not in keys.values())
    return [[keys[part] for part in each] for each in parts]


def _parts(name: str, names: tuple[str, ...]) -> list[str]:
    if name == "noop":
        return []
    parts = name.split("-")
    return parts if len(parts) > 1 and all(part in KEYS or part in names for part in parts) else [name]


# Do the labels make sense? Inverse dynamics learn some clips' labels, and guess the others'.


class Agreement(NamedTuple):
    """accuracy: share of the labels that a classifier gives which has not seen their clips. commonest: share of the
    control that has most of them, which is what guessing would reach. labels: how many there were."""

    accuracy: float
    commonest: float
    labels: int


def quick_agreement(dataset: Dataset, labels: Labels, seed: int = 0) -> Agreement:
    """Cross-validated in folds of whole clips. UserError if the labels are of fewer than two clips."""
    runs = np.cumsum(np.diff(labels.frames, prepend=labels.frames[:1]) > 1)  # frames in a row
    _, clips = np.unique(np.stack([runs, labels.frames // CLIP_FRAMES]), axis=1, return_inverse=True)
    if clips.max(initial=0) < 1:
        raise UserError("the labels are all of one clip; give those of another one too")
    order = np.random.default_rng(seed).permutation(clips.max() + 1)[clips]
    kept = np.flatnonzero(order <= max(1, np.searchsorted(np.cumsum(np.bincount(order)), MOST_LABELS)))
    folds, targets = order[kept] % FOLDS, labels.controls[kept]
    pairs, right = torch.from_numpy(dataset.clips(labels.frames[kept], 2)), 0
    for fold in np.unique(folds):
        told = folds != fold
        model = fit_pairs(pairs[told], targets[told], labels.names, STEPS, seed)
        right += int((controls_seen(model, pairs[~told]) == targets[~told]).sum())
    return Agreement(right / len(kept), int(np.bincount(targets).max()) / len(kept), len(labels.frames))
