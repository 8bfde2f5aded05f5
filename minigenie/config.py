"""Frozen dataclasses to JSON and back, and one-field overrides: every model is rebuilt from what its file says."""

import dataclasses
import difflib
import json
import sys
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

Config = TypeVar("Config")


def parse_json(data: bytes | str) -> Any:
    """json.loads, whose only error is ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_dict(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[Config], values: Any, where: str = "config") -> Config:
    """The dataclass that `to_dict` wrote. ValueError naming the field if one is unknown or of another kind."""
    return _parse(cls, values, where)


def override(config: Config, assignments: Iterable[str]) -> Config:
    """`config` with "field.field=value" applied to it, values read as the field's type.

    ValueError if the field does not exist, the value is of another kind, or the config rejects it.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"override {assignment!r} has no value; write it as FIELD=VALUE")
        *parents, last = path.strip().replace("-", "_").split(".")
        inside: Any = values
        for name in parents:
            inside = inside.get(name) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or last not in inside or isinstance(inside[last], dict):
            known = list(_paths(to_dict(config)))
            near = difflib.get_close_matches(path, known, 1, 0.4) or known[:1]
            raise ValueError(f"override {path!r} does not exist; did you mean {near[0]!r}?")
        try:
            inside[last] = parse_json(text)
        except ValueError:
            inside[last] = {"True": True, "False": False, "None": None}.get(text, text)
    return from_dict(type(config), values, "override")


def _paths(values: dict[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; it should be an object")
        kinds = typing.get_type_hints(kind)
        if unknown := set(value) - set(kinds):
            raise ValueError(f"{where} has no field {sorted(unknown)[0]!r}; it has {', '.join(kinds)}")
        return kind(  # type: ignore[operator]
            **{name: _parse(kinds[name], v, f"{where}.{name}") for name, v in value.items()}
        )
    if origin is typing.Literal:
        fits = value in arguments
    elif origin is tuple:
        if arguments[1:] == (...,) and isinstance(value, list | tuple):
            arguments = arguments[:1] * len(value)
        fits = isinstance(value, list | tuple) and len(value) == len(arguments)
        if fits:
            return tuple(_parse(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and abs(value) <= sys.float_info.max  # neither NaN nor infinite, and no integer beyond floats
        value = float(value) if fits else value
    else:
        fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not fits:
        named = "a finite number" if kind is float else getattr(kind, "__name__", kind)
        expected = " or ".join(map(repr, arguments)) if origin is typing.Literal else named
        raise ValueError(f"{where} is {value!r}; it should be {expected}")
    return value
