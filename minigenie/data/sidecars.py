"""What lies beside a video and says more of it: its episodes and its actions, by the numbers of its frames.

    clip.episodes.csv                  a line per episode: its first frame, the frame after its last
    clip.actions.csv, clip.actions.npy an integer per frame: what was done at it
    clip.csv                           the episodes too, if every line holds two integers

Frames are counted from 0 as they are stored in the file. For a folder of numbered pictures the files lie beside it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigenie.data.controls import MOST_ACTIONS
from minigenie.data.source import Unreadable, as_unreadable, stands_for_many
from minigenie.data.video import Kept
from minigenie.errors import UserError
from minigenie.files import load_npy


class Sidecars(NamedTuple):
    """episodes: int64 [n 2], in order. actions: int64 [frames]. None for what there is not. names: of the files with
    either; "" for actions that are known inside of episodes only.
    """

    episodes: np.ndarray | None
    actions: np.ndarray | None
    names: tuple[str, str]
    notes: list[str]

    def within(self, frames: Iterable[Kept]) -> Iterator[Kept]:
        """The frames inside of episodes, with a hole before each episode."""
        if self.episodes is None:
            yield from frames
            return
        last = -1
        for frame in frames:
            episode = int(np.searchsorted(self.episodes[:, 0], frame.number, side="right")) - 1
            if episode >= 0 and frame.number < self.episodes[episode, 1]:
                yield frame._replace(after_hole=frame.after_hole or episode != last)
                last = episode

    def check(self, num_frames: int) -> None:
        """Unreadable, one line, if the video does not have as many frames as they say."""
        if self.episodes is not None and (end := self.episodes[-1, 1]) > num_frames:
            raise Unreadable(f"{self.names[0]} has an episode up to frame {end}, the video has {num_frames} frames")
        if self.names[1] and self.actions is not None and len(self.actions) != num_frames:
            raise Unreadable(f"{self.names[1]} has {len(self.actions)} actions, the video {num_frames} frames")


def sidecar_paths(video: Path) -> list[Path]:
    """Those that there are."""
    base = video.parent if stands_for_many(video) else video.with_suffix("")
    endings = ".episodes.csv", ".csv", ".actions.csv", ".actions.npy"
    return [path for ending in endings if os.path.isfile(path := base.with_name(base.name + ending))]


def read_sidecars(video: Path) -> Sidecars:
    """Unreadable, one line with the file and the value, if one is not as it should be."""
    episodes, actions, names, notes = None, None, ["", ""], []
    for path in sidecar_paths(video):
        name = path.name.encode(errors="surrogateescape").decode(errors="replace")
        if ".actions." in path.name:
            if actions is not None:
                raise Unreadable(f"there are {names[1]} and {name}; leave one")
            actions, names[1] = _actions(path, name), name
            notes.append(f"actions of {name}")
        elif path.name.endswith(".episodes.csv") or (episodes is None and _is_pairs(path)):
            episodes, names[0] = _episodes(path, name), name
            notes.append(f"episodes of {name}")
        else:
            notes.append(f"{name} is not read as a list of episodes")
    return Sidecars(episodes, actions, (names[0], names[1]), notes)


def _is_pairs(path: Path) -> bool:
    with suppress(Unreadable):
        return bool(len(_integers(path, path.name, 2)))
    return False


def _episodes(path: Path, name: str) -> np.ndarray:
    episodes = _integers(path, name, 2)
    before = 0
    for first, end in episodes.tolist():
        if not before <= first < end:
            raise Unreadable(f"{name}: {first},{end} is no episode after frame {before}; give first,end in order")
        before = end
    return episodes


def _actions(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            actions: np.ndarray = load_npy(path, "save it again with numpy.save")
        except UserError as error:
            raise Unreadable(str(error).replace(str(path), name)) from None
        if actions.ndim != 1 or actions.dtype.kind not in "iu":
            raise Unreadable(f"{name} holds {actions.dtype} {list(actions.shape)}, should be integers [frames]")
    else:
        actions = _integers(path, name, 1)[:, 0]
    unknown = actions[(actions < 0) | (actions >= MOST_ACTIONS)]
    if len(unknown):
        raise Unreadable(f"{name}: action {unknown[0]} is outside of 0 to {MOST_ACTIONS - 1}")
    return np.asarray(actions, np.int64)


def _integers(path: Path, name: str, columns: int) -> np.ndarray:
    """Lines of so many integers: int64 [lines columns]. A first line without a digit is a heading."""
    rows = []
    with as_unreadable():
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and not re.search(r"\d", line)):
            continue
        try:
            rows.append([int(cell) for cell in line.split(",")])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != columns or max(map(abs, rows[-1])) >= 2**62:
            wanted = "an integer" if columns == 1 else "two integers, first,end"
            raise Unreadable(f"{name}, line {number}: {line.strip()[:40]!r} should be {wanted}")
    if not rows:
        raise Unreadable(f"{name} holds no integers")
    return np.array(rows, np.int64)
