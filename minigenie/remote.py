"""A world at an address: its files are listed with their checksums, and copied whole into the cache.

    checksums.json      each file that a player needs, with its sha256; the last that is written of a finished world

A folder here is never held to its list, so one may edit it. What comes from an address is.
"""

import hashlib
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from msgspec import Meta

from minigenie.errors import UserError
from minigenie.files import (
    THREADS,
    Checksum,
    cache_folder,
    convert,
    copy_url,
    damaged,
    parse_json,
    read_url,
    sha256_of,
    to_json,
    write_atomic,
)

CHECKSUMS = "checksums.json"
FileName = Annotated[str, Meta(pattern=r"\A(prompts/)?[^./\\:][^/\\:]*\Z")]  # in the world's own folder
COPY_AGAIN = "copy the world there again, as `minigenie export` makes it"


def write_checksums(folder: Path, files: list[Path]) -> None:
    """List these files of the world in `folder`."""
    listed = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    write_atomic(folder / CHECKSUMS, to_json(listed))


def write_listed(file: Path, data: bytes) -> None:
    """Write a file of a world's folder, and its checksum to the list there, if there is one that can be read."""
    sha256, checksums = write_atomic(file, data), file.with_name(CHECKSUMS)
    with suppress(FileNotFoundError, ValueError):
        write_atomic(checksums, to_json(_read(checksums.read_bytes(), checksums) | {file.name: sha256}))


def fetch_world(address: str) -> Path:
    """The folder of a whole copy of the world at `address`, in the cache. It is made anew when what lies there has
    changed, and serves as it is while that cannot be reached.

    FileNotFoundError, OSError or UserError, one line, if there is no world, none that can be read, or a damaged one."""
    address = address.rstrip("/")
    cache = cache_folder(address)
    try:
        checksums = read_url(f"{address}/{CHECKSUMS}")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no finished world at {address}, which would have a {CHECKSUMS}; check the address and who may "
            f"read it, or {COPY_AGAIN}"
        ) from None
    except OSError as error:
        copies = [copy for copy in cache.glob("[0-9a-f]*/*") if _is_whole(copy, address)]
        if not copies:
            raise
        print(f"note: {error}; going on with the copy in the cache", file=sys.stderr, flush=True)
        return copies[0]
    name = re.sub(r"[^\w.-]+", "-", address.rpartition("/")[2].partition("@")[0]).strip("-.")
    folder = cache / hashlib.sha256(checksums).hexdigest()[:16] / (name or "world")
    if not _is_whole(folder, address):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):  # what one process copies the others wait for
            if not _is_whole(folder, address):
                _copy(address, checksums, folder)
    return folder


def _is_whole(folder: Path, address: str) -> bool:
    """Whether the copy has its list, which comes last, and the weights that this says: the rest may be edited."""
    with suppress(OSError, ValueError):
        listed = _read((folder / CHECKSUMS).read_bytes(), folder / CHECKSUMS)
        return not damaged(address, [(folder / file, listed[file]) for file in listed if file.endswith(".safetensors")])
    return False


def _copy(address: str, checksums: bytes, folder: Path) -> None:
    listed = _read(checksums, f"{address}/{CHECKSUMS}")
    print(f"copying {address} into the cache", file=sys.stderr, flush=True)
    cache, unready = folder.parents[1], folder.parents[1] / ".unready"
    shutil.rmtree(unready, ignore_errors=True)  # of a process that was killed

    def copy(file: str) -> None:
        try:
            copy_url(f"{address}/{file}", unready / folder.name / file, listed[file], COPY_AGAIN)
        except FileNotFoundError:
            raise UserError(f"{address} is damaged ({file} is missing); {COPY_AGAIN}") from None

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, listed))
        write_atomic(unready / folder.name / CHECKSUMS, checksums)
        shutil.rmtree(folder.parent, ignore_errors=True)  # the same, but damaged
        unready.rename(folder.parent)
        for old in set(cache.glob("[0-9a-f]*/")) - {folder.parent}:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(unready, ignore_errors=True)


def _read(checksums: bytes, where: Path | str) -> dict[str, str]:
    try:
        return convert(parse_json(checksums), dict[FileName, Checksum])
    except ValueError as error:
        raise UserError(f"{where} is damaged ({error}); {COPY_AGAIN}") from None
