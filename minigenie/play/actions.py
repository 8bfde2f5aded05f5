"""What the actions are: named and on keys by training, or measured as the motion of the picture and named after it.

    [{"name": "right", "key": "ArrowRight", "motion": [0.1, -1.8], "noop": false}, ...]    an entry per action

Kept in `actions.json`. key: "" for none, "ArrowUp+ArrowRight" for two held together.

motion: [dy, dx], pixels a frame by which the picture shifts. A camera follows its player, so that a picture which moves
left is a player who goes right. noop: the one action that is taken when nothing is pressed.

Dimensions:  t frames   h w c a frame
"""

import math
import sys
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from msgspec import UNSET, Meta, Struct, UnsetType

from minigenie.data.controls import DIGITS
from minigenie.errors import UserError
from minigenie.files import convert, parse_json, to_json
from minigenie.remote import write_listed

DIRECTIONS = {  # where the player goes: the picture goes the other way
    "right": ((0, -1), "ArrowRight"),
    "left": ((0, 1), "ArrowLeft"),
    "up": ((1, 0), "ArrowUp"),
    "down": ((-1, 0), "ArrowDown"),
    "up right": ((1, -1), "ArrowUp+ArrowRight"),
    "up left": ((1, 1), "ArrowUp+ArrowLeft"),
    "down right": ((-1, -1), "ArrowDown+ArrowRight"),
    "down left": ((-1, 1), "ArrowDown+ArrowLeft"),
}
STILL = 0.25  # pixels a frame at 64 pixels: less is no direction
MOST_CHOSEN = 100_000
Text = Annotated[str, Meta(max_length=40)]
Pixels = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


class Action(Struct):
    """What an entry must be; whatever else is in it is kept."""

    name: Text
    key: Text
    noop: bool = False
    motion: tuple[Pixels, Pixels] | UnsetType = UNSET


def describe(
    actions: list[dict[str, Any]], motions: Float[np.ndarray, "a 2"], changes: Float[np.ndarray, " a"], side: int
) -> list[dict[str, Any]]:
    """`actions` with their motions; those which nobody has named yet, named and put on keys. A name that was given
    stays, and its key too.

    changes: how much the picture changes at all under each action: of two that do not move it, the no-op changes less.
    side: of a frame, in pixels.

    A direction is what an action does beyond the no-op, each axis against the action that moves furthest along it: in a
    platformer a jump is several times as fast as a run, and yet a jump to the right goes right. An axis along which no
    action moves counts for nothing."""
    still = STILL * side / 64
    lengths = np.hypot(*motions.T)
    given = [a for a, entry in enumerate(actions) if entry.get("noop")]
    noop = given[0] if given else min(range(len(actions)), key=lambda a: (max(lengths[a], still), changes[a]))
    described = [
        {**entry, "motion": [round(float(value), 3) for value in motions[a]], "noop": a == noop}
        for a, entry in enumerate(actions)
    ]
    relative = motions - motions[noop]
    furthest = np.abs(relative).max(axis=0)
    directions = relative / np.where(furthest < still, np.inf, furthest)
    taken = {entry["key"] for entry in actions}
    for a in sorted(range(len(actions)), key=lambda a: -np.hypot(*relative[a])):
        entry, name = described[a], _direction(directions[a]) if np.hypot(*relative[a]) >= still else None
        if entry["name"] != f"action {a}":
            continue
        if entry["key"] == str(a + 1) and a != noop and name and DIRECTIONS[name][1] not in taken:
            entry["key"] = DIRECTIONS[name][1]
            taken.add(entry["key"])
        entry["name"] = "stay" if a == noop else _unused(name or "stay", described)
    return described


def _direction(shift: Float[np.ndarray, "2"]) -> str:
    return max(DIRECTIONS, key=lambda name: float(shift @ DIRECTIONS[name][0]) / math.hypot(*DIRECTIONS[name][0]))


def _unused(name: str, actions: list[dict[str, Any]]) -> str:
    names = {"stay", *(entry["name"] for entry in actions)}
    numbered = (name if number == 1 else f"{name} {number}" for number in count(1))
    return next(each for each in numbered if each not in names)


def load_actions(folder: Path, num_actions: int) -> list[dict[str, Any]]:
    """The world's actions.json, or plain numbers where it has none. UserError, one line, if it is damaged."""
    path = folder / "actions.json"
    if not path.exists():
        return [{"name": f"action {a}", "key": DIGITS[a : a + 1]} for a in range(num_actions)]
    try:
        actions = parse_json(path.read_bytes())
        check_actions(actions, num_actions)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); mend it, or delete it to have the actions measured") from None
    return actions


def resolve_actions(text: str, actions: list[dict[str, Any]]) -> list[int]:
    """Comma-separated names and numbers, each with `*times` or without, as in "right*8,jump,0": the actions' numbers.
    Case does not count, and "jump right" is "jump-right". UserError, one line, for one that there is not."""
    numbers = {str(a): a for a in range(len(actions))}
    by_name = {_plain(entry["name"]): a for a, entry in reversed(list(enumerate(actions)))}
    chosen: list[int] = []
    for part in filter(None, map(str.strip, text.split(","))):
        what, _, times = map(str.strip, part.partition("*"))
        action, times = by_name.get(_plain(what), numbers.get(what)), times or "1"
        repeat = int(times) if times.isdecimal() and len(times) < 10 else 0
        if action is None:
            names = ", ".join(entry["name"] for entry in actions)
            raise UserError(f"there is no action {what.strip()!r}; use 0 to {len(actions) - 1}, or a name: {names}")
        if not repeat or len(chosen) + repeat > MOST_CHOSEN:
            raise UserError(f"{part!r} says how often after the *: 1 to {MOST_CHOSEN:,}, all actions together")
        chosen += [action] * repeat
    return chosen


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").split())


def check_actions(actions: Any, num_actions: int) -> None:
    """UserError that says what is wrong, if this is not an entry per action."""
    convert(actions, Annotated[list[Action], Meta(min_length=num_actions, max_length=num_actions)])


def save_actions(folder: Path, actions: list[dict[str, Any]]) -> None:
    write_listed(folder / "actions.json", to_json(actions))
