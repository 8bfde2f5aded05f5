"""What a player can do, by name: the controls that recorded actions and labels stand for.

Games record more actions than they have controls: of Procgen's 15 the last ones do nothing in most games, and a game
that knows no ducking takes left with down for left. Which are equal was found by holding each of the 15 for six steps
from 144 states of each game.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minigenie.data.dataset import Dataset

MOST_ACTIONS = 2**16
PROCGEN_NAMES = (
    "left-down", "left", "left-up", "down", "noop", "up", "right-down", "right", "right-up",
    "fire", "fire-2", "fire-3", "fire-4", "fire-5", "fire-6",
)  # fmt: skip
PLATFORMERS = ("coinrun", "climber", "jumper", "ninja")  # up is a jump, down hardly anything
SIDEWAYS = ("fruitbot", "plunder")  # up and down are nothing
ONE_AT_A_TIME = ("leaper", "maze", "miner")  # left with up is left
FOLLOWED = ("caveflyer", "climber", "coinrun", "jumper", "ninja")  # by the camera; climber's only up and down
FIRES = {"bossfight": 1, "caveflyer": 1, "dodgeball": 1, "fruitbot": 1, "plunder": 1, "starpilot": 2, "ninja": 4}
TOY_NAMES = ("noop", "left", "right", "jump", "jump-left", "jump-right")
ARROWS = {"left": "ArrowLeft", "right": "ArrowRight", "up": "ArrowUp", "down": "ArrowDown"}
DIGITS = "1234567890"  # of a keyboard, from left to right
KEYS = {**ARROWS, "jump": "ArrowUp", "fire": "f"}


@dataclass(frozen=True)
class Controls:
    """names: of the controls. of_recorded: which of them each recorded action is; -1 for one that never occurs."""

    names: tuple[str, ...]
    of_recorded: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """What each control is in part, int [len(self)]: "all" of it; "sideways" none, left or right; "jump" or not."""
        sides = np.array([1 if "left" in name else 2 if "right" in name else 0 for name in self.names])
        jumps = np.array([int("jump" in name) for name in self.names])
        found = {"all": np.arange(len(self)), "sideways": sides, "jump": jumps}
        return {name: part for name, part in found.items() if part.any()}

    def join(self, recorded: np.ndarray) -> np.ndarray:
        """Recorded actions, integer [...] -> controls, int64 [...], 0 to len(self) - 1."""
        return np.asarray(self.of_recorded, np.int64)[recorded]


def entries(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Controls as a world's actions.json lists them: on the keys of a keyboard that mean each, or on a digit."""
    found = []
    for number, name in enumerate(names, 1):
        keys, is_noop = [KEYS.get(part, "") for part in name.split("-")], name == "noop"
        key = "" if is_noop else "+".join(keys) if all(keys) else DIGITS[number - 1 : number]
        found.append({"name": name, "key": key, "noop": is_noop})
    return found


def controls_of(dataset: Dataset) -> Controls | None:
    """What the dataset's recorded actions mean; None if it has none."""
    if not dataset.has_actions:
        return None
    source = dataset.manifest["source"]
    if names := dataset.manifest["settings"].get("controls"):
        return Controls(tuple(names), tuple(range(len(names))))
    if source == "toy":
        return Controls(TOY_NAMES, tuple(range(len(TOY_NAMES))))
    if dataset.manifest["generator"].startswith("procgen"):
        return procgen_controls(source)
    episodes = (dataset.episode_actions(i) for i in range(len(dataset.episodes)))
    found = sorted({int(action) for each in episodes if each is not None for action in np.unique(each[:-1])})
    place = {action: number for number, action in enumerate(found)}
    return Controls(tuple(f"key {action}" for action in found), tuple(place.get(a, -1) for a in range(found[-1] + 1)))


def procgen_controls(game: str) -> Controls:
    joined = [_joined(game, action) for action in range(len(PROCGEN_NAMES))]
    names = tuple(dict.fromkeys(joined[a] for a in (4, 1, 7, 5, 2, 8, 3, 0, 6, *range(9, 15))))
    return Controls(names, tuple(names.index(name) for name in joined))


def procgen_action(control: str) -> int:
    """The Procgen action that has the control's name. Others that count as the same may do more: down, which is a noop
    nearly everywhere, drops CoinRun's player through a crate."""
    return PROCGEN_NAMES.index({"jump": "up", "jump-left": "left-up", "jump-right": "right-up"}.get(control, control))


def _joined(game: str, action: int) -> str:
    """The name of the control that a Procgen action is."""
    name = PROCGEN_NAMES[action]
    if action >= 9:
        return name if action < 9 + FIRES.get(game, 0) else "noop"
    side, _, vertical = name.rpartition("-") if "-" in name else ("", "", name)
    if game in PLATFORMERS:
        name = {"left-down": "left", "right-down": "right", "down": "noop", "up": "jump"}.get(name, name)
        return {"left-up": "jump-left", "right-up": "jump-right"}.get(name, name)
    if game in SIDEWAYS:
        return side or ("noop" if vertical in ("up", "down") else name)
    return side if game in ONE_AT_A_TIME and side else name
