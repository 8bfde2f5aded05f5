"""Several datasets as one: their frames and episodes one after another, in the order given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minigenie.data.controls import controls_of
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError

MOST_TIMES = 100  # that one's windows may come in an epoch, to give it its weight
NO_ACTIONS = {"actions": None, "actions_sha256": None}


def open_datasets(folders: Sequence[str], weights: Sequence[float] = (), verify: bool = True) -> Dataset:
    """One as it is, several as one. Raises what `Dataset.open` and `JoinedDataset` do."""
    parts = [Dataset.open(folder, verify) for folder in folders]
    return JoinedDataset(parts, weights) if len(parts) > 1 or weights else parts[0]


class JoinedDataset(Dataset):
    """parts: datasets of frames of one size, at one rate. weights: what share of the clips of training each gives, in
    any unit; by default each gives all that it has. Recorded actions are controls here, if all parts have the same.

    ValueError, one line, if the parts or the weights do not fit."""

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float] = ()) -> None:
        first = parts[0]
        for part in parts[1:]:
            if (part.frame_size, part.fps) != (first.frame_size, first.fps):
                one, other = (f"{p.name} has frames of {p.frame_size[0]}x{p.frame_size[1]} at {p.fps:g} a second"
                              for p in (first, part))  # fmt: skip
                raise UserError(f"{one}, {other}; ingest both alike")
        if weights and (len(weights) != len(parts) or not all(0 < weight < np.inf for weight in weights)):
            raise UserError(f"weights are {', '.join(map(str, weights))}; give {len(parts)} numbers above 0")
        self._controls = [controls_of(part) for part in parts]
        names = {controls.names if controls else () for controls in self._controls}
        controls = names.pop() if len(names) == 1 else ()
        super().__init__(first.folder, _joined_manifest(parts, weights, controls))
        self.parts, self.weights, self.name = tuple(parts), tuple(weights), " + ".join(part.name for part in parts)
        self._owners = [(part, shard) for part in range(len(parts)) for shard in range(len(parts[part].shards))]

    def training_windows(self, length: int) -> np.ndarray:
        """As `windows`, of some parts several times, so that each has its weight."""
        windows = self.windows(length)
        if not self.weights:
            return windows
        owners = np.searchsorted(np.cumsum([part.num_frames for part in self.parts]), windows, side="right")
        each = [windows[owners == part] for part in range(len(self.parts))]
        for part, found in zip(self.parts, each, strict=True):
            if not len(found):
                raise UserError(f"{part.name} has no {length} frames in a row to give weight to; leave it out")
        whole = max(len(found) / weight for found, weight in zip(each, self.weights, strict=True))
        counts = [round(weight * whole) for weight in self.weights]
        for part, found, count in zip(self.parts, each, counts, strict=True):
            if count > MOST_TIMES * len(found):
                raise UserError(
                    f"with these weights each clip of {part.name} would come {count / len(found):.0f} times an epoch; "
                    f"at most {MOST_TIMES} make sense"
                )
        return np.concatenate([np.resize(found, count) for found, count in zip(each, counts, strict=True)])

    def _map_file(self, kind: str, shard: int) -> np.ndarray:
        part, number = self._owners[shard]
        mapped, controls = self.parts[part]._map_file(kind, number), self._controls[part]
        if kind == "frames" or controls is None:
            return mapped
        return controls.join(mapped.clip(0, len(controls.of_recorded) - 1)).astype(np.uint8)  # an episode's last is any

    def __reduce__(self) -> tuple:
        return JoinedDataset, (self.parts, self.weights)


def _joined_manifest(parts: Sequence[Dataset], weights: Sequence[float], controls: tuple[str, ...]) -> dict[str, Any]:
    """settings: what all parts have alike, and "datasets", what is each one's own."""
    own, first, *others = ("source", "generator", "split", "settings"), *(part.manifest for part in parts)
    joined = {key: " + ".join(dict.fromkeys(part.manifest[key] for part in parts)) for key in own[:3]}
    settings = {
        key: value
        for key, value in first["settings"].items()
        if all(other["settings"].get(key) == value for other in others)
    }
    settings["datasets"] = [{key: part.manifest[key] for key in own} for part in parts]
    settings |= {name: list(each) for name, each in (("controls", controls), ("weights", weights)) if each}
    shards: list[dict[str, Any]] = []
    episodes: list[dict[str, Any]] = []
    for manifest in (first, *others):
        episodes += [{**episode, "shard": episode["shard"] + len(shards)} for episode in manifest["episodes"]]
        shards += [shard if controls else {**shard, **NO_ACTIONS} for shard in manifest["shards"]]
    return {**first, **joined, "settings": settings, "shards": shards, "episodes": episodes}
