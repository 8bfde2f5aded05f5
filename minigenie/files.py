"""Files written whole and checked when they are read: here, or in object storage through fsspec.

Object storage is s3://, gs://, https://, memory:// and whatever else has a package for it. Copies and notes of what was
read lie in a cache, ~/.cache/minigenie by default.
"""

import hashlib
import io
import json
import os
import re
import reprlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Any

import msgspec
import numpy as np

from minigenie.errors import UserError

CACHE = "MINIGENIE_CACHE"  # the environment variable that says where the cache is, if not in the home folder
CACHE_GB = "MINIGENIE_CACHE_GB"  # the one that says how large it may get
THREADS = 8  # files copied or hashed at once
Checksum = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # sha256 in hex
EXTRAS = {"s3": "'.[s3]'", "hf": "'.[hub]'"}  # of this package, by the addresses they are for
SETTLED = 2  # seconds; of a file that was changed later than that, its times need not show the next change


def write_atomic(path: Path, *parts: Any) -> str:
    """Write bytes-like `parts` to `path` so that it holds all of them or is not there. Returns their sha256 in hex.

    Makes the folder if it is missing. OSError, one line with the cure."""
    temporary = path.with_name(f".{path.name}.tmp")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # makes the rename itself safe from a power cut
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        advice = "make room or fix the disk, then run the same command again; what was written before is safe"
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}; {advice}") from None
    return digest.hexdigest()


def to_json(value: Any) -> bytes:
    """Readable JSON of what json or msgspec knows."""
    return json.dumps(value, indent=1, default=msgspec.to_builtins).encode()


def parse_json(data: bytes | str) -> Any:
    """json.loads, whose only error is ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise UserError("it is nested too deeply") from None


def convert(value: Any, kind: Any) -> Any:
    """`value`, as JSON gives it, as a `kind`: a msgspec.Struct or any other type that msgspec knows.

    ValueError, one line, that says where it is of another kind, with the value there."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        fault, _, place = " ".join(str(error).split()).partition(" - at `$")
        place = place.strip("`.")
        for key in re.findall(r"\w+", place):
            value = value[int(key) if isinstance(value, list) else key]
        fault = fault[:1].lower() + fault[1:]
        if isinstance(value, dict | list):
            raise UserError(f"{fault} in {place}" if place else fault) from None
        raise UserError(f"{place or 'it'} is {reprlib.repr(value)}, {fault}") from None


def fits(value: Any, kind: Any) -> bool:
    """Whether `value`, as JSON gives it, is a `kind`."""
    try:
        msgspec.convert(value, kind)
    except ValueError:
        return False
    return True


def load_npy(path: Path, cure: str) -> np.memmap:
    """An .npy file, mapped. ValueError, one line, if it is none; nothing in it is unpickled."""
    try:
        with np.errstate(over="raise"):
            array = np.lib.format.open_memmap(path, mode="r")
        if array.offset + array.nbytes != path.stat().st_size:
            raise UserError(f"its {path.stat().st_size} bytes are not {array.dtype} {list(array.shape)}")
        return array
    except (ValueError, TypeError, ArithmeticError, SyntaxError, EOFError, TokenError, OSError) as error:  # numpy's
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); {cure}") from None


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """The two parts of an .npy file: its header and its data, without a copy."""
    array = np.ascontiguousarray(array)
    return npy_header(array.dtype, array.shape), array.data


def npy_header(kind: np.dtype, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(address: str, files: list[tuple[Path, str]]) -> list[Path]:
    """Those of the `files` of a dataset at `address` whose sha256 is not the one given.

    What was read is noted in the cache, not beside the files: that folder may be read-only, is compared byte by byte
    with another, and a note that is copied along with it would vouch for files that nobody has read. Without a cache
    to write to, all is read every time."""
    note, seen = None, {}
    with suppress(OSError, RuntimeError, TypeError, ValueError):  # no home folder, no note, or nonsense in it
        note = cache_folder(address) / "read.json"
        seen = dict(parse_json(note.read_bytes()))
    looks: dict[Path, list] = {path: [sha256, *_look(path)] for path, sha256 in files}
    unread = [path for path, look in looks.items() if seen.get(path.name) != look]
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(unread, pool.map(sha256_of, unread), strict=True))
    bad = [path for path, sha256 in found.items() if sha256 != looks[path][0]]
    if unread and note:
        settled = (time.time() - SETTLED) * 1e9
        noted = {path.name: look for path, look in looks.items() if path not in bad and max(look[2:4]) < settled}
        with suppress(OSError):
            write_atomic(note, to_json(noted))
    return bad


def _look(path: Path) -> list[int]:
    """What of a file changes with its bytes, in practice."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def is_url(path: object) -> bool:
    return "://" in str(path)


def cache_root() -> Path:
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "minigenie")


def cache_folder(address: str) -> Path:
    """Where copies from this address, and notes of it, lie."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", address)[-60:].strip("-.")
    return cache_root() / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def trim_cache(newest: Path) -> None:
    """If the cache has a limit, MINIGENIE_CACHE_GB, remove copies from it until it holds no more, those first whose
    last use is longest ago, and never the `newest`. ValueError, one line, if the limit is none."""
    if not (limit := os.environ.get(CACHE_GB)):
        return
    try:
        most = 1e9 * float(limit)
    except ValueError:
        most = 0.0
    if not 0 < most < float("inf"):
        raise UserError(f"{CACHE_GB} is {limit!r}; it should be a number of gigabytes above 0")
    found = []
    for path in cache_root().glob("*/*.npy"):
        with suppress(OSError):  # another process has removed it
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > most and path != newest:
            path.unlink(missing_ok=True)
            total -= size


def read_url(url: str) -> bytes:
    """What lies there. FileNotFoundError if nothing does, OSError for all else that fails: one line, with the cure."""
    import fsspec

    try:
        storage, path = fsspec.core.url_to_fs(url)
        storage.invalidate_cache()  # of listings, which some storages ask before they read
        return storage.cat_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {url}; check the address") from None
    except ImportError as error:
        extra = EXTRAS.get(url.partition(":")[0], "the package for it")
        raise OSError(f"cannot read {url} ({error}): run `pip install {extra}`") from None
    except Exception as error:  # every kind of storage raises its own
        cure = "check the address, the credentials and the network"
        raise OSError(f"cannot read {url} ({type(error).__name__}: {error}); {cure}") from None


def copy_url(url: str, path: Path, sha256: str, cure: str) -> None:
    """Write what lies there to `path`. UserError, one line, if its sha256 is another; else as read_url."""
    data = read_url(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{url} is damaged (its {len(data):,} bytes have another sha256 than is listed); {cure}")
    write_atomic(path, data)
