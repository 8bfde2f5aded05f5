"""Frozen dataclasses to JSON and back, and one-field overrides: every model is rebuilt from what its file says."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from minigenie.errors import UserError
from minigenie.files import parse_json

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[Config], values: Any, where: str = "config") -> Config:
    """The dataclass that `to_dict` wrote. ValueError naming the field if one is unknown or of another kind."""
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; it should be an object")
    kinds = typing.get_type_hints(cls)
    if unknown := set(values) - set(kinds):
        raise UserError(f"{where} has no field {sorted(unknown)[0]!r}; it has {', '.join(kinds)}")
    return cls(**{name: _parse(kinds[name], value, f"{where}.{name}") for name, value in values.items()})


def override(config: Config, assignments: Iterable[str]) -> Config:
    """`config` with "field.field=value" applied to it, values read as the field's type.

    ValueError if the field does not exist, the value is of another kind, or the config rejects it.
    """
    values = to_dict(config)
    fields = dict(_leaves(values))
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"override {assignment!r} has no value; write it as FIELD=VALUE")
        if (place := path.strip().replace("-", "_")) not in fields:
            near = difflib.get_close_matches(path, fields, 1, 0.4) or list(fields)
            raise UserError(f"override {path!r} does not exist; did you mean {near[0]!r}?")
        inside, last = fields[place]
        try:
            inside[last] = parse_json(text)
        except ValueError:
            inside[last] = {"True": True, "False": False, "None": None}.get(text, text)
    return from_dict(type(config), values, "override")


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[dict[str, Any], str]]]:
    """Every field that is no object itself: its path, and the object and the name that it is under."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, (values, name)


def _parse(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    try:
        json.dumps(value, allow_nan=False)
        return msgspec.convert(value, kind)
    except ValueError:
        choices = " or ".join(map(repr, typing.get_args(kind)))
        named = "a finite number" if kind is float else kind.__name__ if isinstance(kind, type) else kind
        expected = choices if typing.get_origin(kind) is typing.Literal else named
        raise UserError(f"{where} is {value!r}; it should be {expected}") from None
