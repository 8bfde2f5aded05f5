"""Published weights, read without running anything that their files ask for.

A .pth file is a pickle, and loading a pickle may call any function. `read_weights` walks its opcodes instead: names of
functions stay text, so there is nothing to call, and tensors are views of the numbers that follow.
"""

import hashlib
import io
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from pickletools import genops
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor

DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
}
LEGACY = 0x1950A86A20F9469CFC6C  # what torch wrote first, before its files were zip archives


class MissingWeights(ValueError):
    """Weights are not on this machine; the message says how to get them."""


class WeightFile(NamedTuple):
    """One published file, known by its checksum.

    name: its path in the pip package `package`, or, without one, in the folder where torch keeps weights. sha256: of
    the file, or "" where no checksum is known. how: what to do to have it; {folder} stands for that folder.
    """

    name: str
    sha256: str
    how: str
    package: str = ""

    def load(self) -> dict[str, Tensor]:
        """MissingWeights if the file is not there or is another one."""
        folder = Path(torch.hub.get_dir(), "checkpoints")
        path = folder / self.name
        home = Path.home()  # reports are shared: they say ~, not whose home it is
        how = self.how.format(folder=Path("~", folder.relative_to(home)) if folder.is_relative_to(home) else folder)
        if self.package:
            try:
                path = Path(str(distribution(self.package).locate_file(self.name)))
            except PackageNotFoundError:
                raise MissingWeights(f"{path.name} is not on this machine; {how}") from None
        if not path.is_file():
            raise MissingWeights(f"{path.name} is not on this machine; {how}")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if self.sha256 and found != self.sha256:
            raise MissingWeights(f"{path} is not the published file: sha256 {found}, not {self.sha256}; {how}")
        return read_weights(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that torch.save wrote, in either of its formats. ValueError for anything else."""
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"
            file.seek(0)
            return _read_zip(file) if zipped else _read_legacy(file)
    except OSError:
        raise
    except Exception as error:  # a damaged file may go wrong anywhere on the way
        raise ValueError(f"{path} does not hold weights that can be read: {error or type(error).__name__}") from None


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    length: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, data: bytes) -> Tensor:
        numbers = torch.frombuffer(bytearray(data), dtype=self.storage.dtype)
        return numbers.as_strided(self.shape, self.stride, self.offset).clone()


def _read_zip(file: BinaryIO) -> dict[str, Tensor]:
    with ZipFile(file) as archive:
        index = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        views = _walk(io.BytesIO(archive.read(index)))
        return {name: view.of(archive.read(f"{index[:-4]}/{view.storage.key}")) for name, view in views.items()}


def _read_legacy(file: BinaryIO) -> dict[str, Tensor]:
    magic, _, _, views, keys = (_walk(file) for _ in range(5))
    if magic != LEGACY:
        raise ValueError("it is not a file of torch.save")
    storages = {view.storage.key: view.storage for view in views.values()}
    data = {}
    for key in keys:
        file.read(8)  # the length once more
        data[key] = file.read(storages[key].length * storages[key].dtype.itemsize)
    return {name: view.of(data[view.storage.key]) for name, view in views.items()}


def _walk(file: BinaryIO) -> Any:
    """What the next pickle of `file` describes, of plain values, storages and views; ValueError for anything more."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(count: int) -> list[Any]:
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    for op, value, _ in genops(file):
        match op.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "NONE" | "BINUNICODE" | "SHORT_BINSTRING" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "GLOBAL":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(op.name == "NEWTRUE")
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op.name]())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = len(stack) - marks.pop() if op.name == "TUPLE" else int(op.name[-1])
                stack.append(tuple(pop(count)))
            case "APPEND" | "APPENDS":
                items = pop(1 if op.name == "APPEND" else len(stack) - marks.pop())
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(2 if op.name == "SETITEM" else len(stack) - marks.pop())
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPERSID":
                _, kind, key, _, length, *_ = stack.pop()
                stack.append(_Storage(key, DTYPES[kind], length))
            case "REDUCE":
                stack.append(_build(*pop(2)))
            case "BUILD":  # the versions of the modules that the weights came from
                stack.pop()
            case other:
                raise ValueError(f"opcode {other} has no place in weights")
    return stack.pop()


def _build(name: str, arguments: Iterable[Any]) -> Any:
    """The two things that weights are made of: an ordered dict, and a tensor as a view of a storage."""
    if name == "collections OrderedDict":
        return dict(*arguments)
    if name == "torch._utils _rebuild_tensor_v2":
        return _View(*tuple(arguments)[:4])
    raise ValueError(f"it calls {name!r}")
