"""How near pictures are to the truth: PSNR and SSIM (Wang et al. 2004), per frame.

Dimensions:  * any leading axes   h w c a frame
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LEAST_ERROR = 1e-10  # 100 dB: what a frame that is exactly right counts as


def mse(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    return (frames - truth).square().mean(dim=(-3, -2, -1))


def psnr(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each frame in dB; frames in [0, 1]."""
    return -10 * mse(frames, truth).clamp(min=LEAST_ERROR).log10()


def decibels(error: np.ndarray) -> np.ndarray:
    """PSNR of mean squared errors that were averaged first: large errors count as what they are."""
    return -10 * np.log10(np.maximum(error, LEAST_ERROR))


def ssim(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Structural similarity of each frame in [-1, 1]: Gaussian window of 11 pixels, sigma 1.5, frames in [0, 1] and
    mirrored at their borders, as torchmetrics has it. Sides of 6 pixels at least."""
    lead, (height, width, channels) = frames.shape[:-3], frames.shape[-3:]
    x, y = (
        F.pad(f.reshape(-1, height, width, channels).permute(0, 3, 1, 2), (5, 5, 5, 5), mode="reflect")
        for f in (frames, truth)
    )
    offsets = torch.arange(11, device=frames.device) - 5.0
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window, groups=channels), window.mT, groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3)).reshape(lead)
