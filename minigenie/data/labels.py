"""A few frames of a dataset with the control that was held there: a sidecar, `labels.json`, that anyone may edit.

    {"format": "minigenie-labels", "version": 1,
     "controls": ["noop", "left", "right", "jump"],
     "labels": [[120, 2], [121, 2], [4711, 0]]}

A label is [frame, control]: the control that leads from that frame to the next, frames counted through all shards.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Int
from msgspec import Meta

from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.files import fits, parse_json, write_atomic

FORMAT, VERSION = "minigenie-labels", 1
FILE = "labels.json"
FEWEST = 20  # labels, with fewer of which training is not begun
MOST_CONTROLS = 64
LONGEST = 40  # characters of a control's name
Name = Annotated[str, Meta(max_length=LONGEST, pattern=r"\A[^,]+\Z")]
Names = Annotated[list[Name], Meta(min_length=1, max_length=MOST_CONTROLS)]
Integer = Annotated[int, Meta(gt=-(2**62), lt=2**62)]


class Labels(NamedTuple):
    """names: of the controls. frames: int64 [n], in order; controls: int64 [n], which one was held there."""

    names: tuple[str, ...]
    frames: Int[np.ndarray, " n"]
    controls: Int[np.ndarray, " n"]

    @property
    def counts(self) -> dict[str, int]:
        """How many labels each control has."""
        return dict(zip(self.names, np.bincount(self.controls, minlength=len(self.names)).tolist(), strict=True))


def label_files(dataset: Dataset) -> list[Path]:
    """Those beside the dataset, or beside the parts that it is made of."""
    return [part.folder / FILE for part in dataset.parts if (part.folder / FILE).is_file()]


def read_labels(dataset: Dataset) -> Labels:
    """The labels of a dataset. FileNotFoundError if there are none, ValueError, one line, if they make no sense."""
    found: list[Labels] = []
    first = 0
    for part in dataset.parts:
        if (path := part.folder / FILE).is_file():
            try:
                labels = _parse(parse_json(path.read_bytes()), part)
            except ValueError as error:
                raise UserError(f"{path}: {error}") from None
            if found and found[0].names != labels.names:
                raise UserError(f"{path} has other controls than {label_files(dataset)[0]}; label both with the same")
            found.append(labels._replace(frames=labels.frames + first))
        first += part.num_frames
    if not found:
        raise FileNotFoundError(f"{dataset.name} has no {FILE}; make some with `minigenie teach {dataset.name}`")
    frames, controls = (np.concatenate([getattr(each, name) for each in found]) for name in ("frames", "controls"))
    return Labels(found[0].names, frames, controls)


def write_labels(folder: Path, names: tuple[str, ...], labels: dict[int, int]) -> None:
    """labels: control by frame. Atomic."""
    content = {"format": FORMAT, "version": VERSION, "controls": names, "labels": sorted(labels.items())}
    write_atomic(folder / FILE, json.dumps(content).encode())


def recorded_labels(dataset: Dataset, number: int, seed: int) -> Labels:
    """`number` transitions of a dataset whose actions were recorded, drawn at random: what a person who labels by hand
    would have given."""
    controls = controls_of(dataset)
    if controls is None:
        raise UserError(
            f"{dataset.name} has no recorded actions to learn from; make some with `minigenie teach {dataset.name}`"
        )
    frames = dataset.windows(2)
    if not FEWEST <= number <= len(frames):
        raise UserError(f"labels is {number}; {dataset.name} can give {FEWEST} to {len(frames)}")
    frames = np.sort(np.random.default_rng(seed).choice(frames, number, replace=False))
    actions = dataset.clip_actions(frames, 2)
    assert actions is not None
    return check_labels(Labels(controls.names, frames, controls.join(actions[:, 0])))


def check_labels(labels: Labels) -> Labels:
    """Labels that a model can learn from: enough, and some of every control. ValueError if not."""
    if len(labels.frames) < FEWEST:
        raise UserError(f"there are {len(labels.frames)} labels; give at least {FEWEST}")
    if lacking := [name for name, count in labels.counts.items() if not count]:
        raise UserError(f"no label says {lacking[0]!r}; give every control some labels, or leave it out")
    return labels


def check_names(names: Any) -> tuple[str, ...]:
    """ValueError if these cannot be the names of controls."""
    if not fits(names, Names) or not "".join(names).isprintable() or not all(map(str.strip, names)):
        raise UserError(f"controls must be 1 to {MOST_CONTROLS} names of at most {LONGEST} characters, without commas")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two controls have the same name, {repeated[0]!r}")
    return tuple(names)


def _parse(content: Any, dataset: Dataset) -> Labels:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError("this is no file of labels; make it again with `minigenie teach`")
    if content.get("version") != VERSION:
        raise UserError(f"it has version {content.get('version')!r}, this MiniGenie reads {VERSION}; update one")
    names, labels = check_names(content.get("controls")), content.get("labels")
    if not fits(labels, list[tuple[Integer, Integer]]):
        raise UserError("labels must be a list of [frame, control], two integers each")
    frames, controls = np.array(labels, np.int64).reshape(-1, 2).T
    if repeated := [frame for frame, count in Counter(frames.tolist()).items() if count > 1]:
        raise UserError(f"frame {repeated[0]} has two labels; leave one of them")
    if beyond := sorted(set(controls.tolist()) - set(range(len(names)))):
        raise UserError(f"a label names control {beyond[0]}; there are 0 to {len(names) - 1}")
    if len(absent := np.setdiff1d(frames, dataset.windows(2))):
        raise UserError(f"frame {absent[0]} is labelled, but {dataset.name} has no such frame with one after it")
    order = np.argsort(frames)
    return Labels(names, frames[order], controls[order])
