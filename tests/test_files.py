"""What is read from JSON is of the kind that was asked for, or one line says where it is not, with the value there."""

import math
from typing import Annotated, Any

import numpy as np
import pytest
from msgspec import Meta, Struct

from minigenie.files import convert, fits, load_npy, npy_parts, parse_json, write_atomic


class Part(Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1)]


class Whole(Struct, forbid_unknown_fields=True):
    name: str
    parts: list[Part]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "it is 3, expected `object`, got `int`"),
        ({"parts": []}, "object missing required field `name`"),
        ({"name": "a", "parts": [], "b\nc": 1}, "object contains unknown field `b c`"),
        ({"name": 4, "parts": []}, "name is 4, expected `str`, got `int`"),
        ({"name": "a", "parts": [{"size": 1}, {"size": 0}]}, "parts[1].size is 0, expected `int` >= 1"),
        ({"name": "a", "parts": [{"size": True}]}, "parts[0].size is True, expected `int`, got `bool`"),
        ({"name": "a", "parts": [{"size": math.nan}]}, "parts[0].size is nan, expected `int`, got `float`"),
        ({"name": "a", "parts": [{}]}, "object missing required field `size` in parts[0]"),
        ({"name": "a", "parts": [[2]]}, "expected `object`, got `array` in parts[0]"),
    ],
)
def test_what_is_of_another_kind_is_one_line_with_the_value(value, message):
    with pytest.raises(ValueError, match=r"\S") as caught:
        convert(value, Whole)
    assert str(caught.value) == message


def test_what_fits_is_converted():
    assert convert({"name": "a", "parts": [{"size": 2}]}, Whole) == Whole("a", [Part(2)])
    assert convert(3, float) == 3.0
    assert fits([1, 2], tuple[int, int])


@pytest.mark.parametrize("value", [None, "1", True, 1.0, [1, 2, 3], 10**400])
def test_what_does_not_fit(value: Any):
    assert not fits([1, value], tuple[int, Annotated[int, Meta(lt=2**62)]])


def test_a_write_makes_the_folder_and_leaves_nothing_else(tmp_path):
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    path = tmp_path / "new" / "folder" / "a.npy"
    write_atomic(path, *npy_parts(array))
    assert list(path.parent.iterdir()) == [path]
    np.testing.assert_array_equal(load_npy(path, "make it again"), array)
    with pytest.raises(OSError, match=r"cannot write .*make room"):
        write_atomic(path / "below", b"")


@pytest.mark.parametrize("data", ["[" * 100_000, "{", "", "nul"])
def test_no_json_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(data)
