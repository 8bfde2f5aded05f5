"""Object storage, read through fsspec: s3://, gs://, https://, memory:// and whatever else has a package for it."""

import hashlib
import os
import re
from pathlib import Path

CACHE = "MINIGENIE_CACHE"  # the environment variable that says where copies go, if not into the home folder


def is_url(path: object) -> bool:
    return "://" in str(path)


def cache_folder(url: str) -> Path:
    """Where copies from this address lie."""
    root = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "minigenie")
    name = re.sub(r"[^A-Za-z0-9.]+", "-", url)[-60:].strip("-.")
    return root / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def read(url: str) -> bytes:
    """What lies there. FileNotFoundError if nothing does, OSError for all else that fails: one line, with the cure."""
    import fsspec

    try:
        storage, path = fsspec.core.url_to_fs(url)
        return storage.cat_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {url}; check the address") from None
    except ImportError as error:
        extra = "'.[s3]'" if url.startswith("s3:") else "the package for it"
        raise OSError(f"cannot read {url} ({error}): run `pip install {extra}`") from None
    except Exception as error:  # every kind of storage raises its own
        cure = "check the address, the credentials and the network"
        raise OSError(f"cannot read {url} ({type(error).__name__}: {error}); {cure}") from None
