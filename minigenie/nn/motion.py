"""The motion of the picture between two frames: how far a camera went, to a fraction of a pixel.

A search over whole pixels of small frames, then, at full size, Gauss-Newton steps on a robust difference (Lucas and
Kanade, 1981), which see parts of a pixel and hardly mind what moves by itself.

Dimensions:  b pairs   h w c a frame
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SEARCHED, REFINED = 32, 64  # pixels of a frame's shorter side, at which the search is done and the steps are taken
REACH = 4  # of these, each way: an eighth of a frame
TURNS = 3
ROBUST = 0.5  # a difference of pixels beyond which they are taken to move by themselves
STILL = 0.08  # pixels a step, below which the picture rests
STIFF = 0.01  # keeps still what has no structure


@torch.no_grad()
def motion(before: Float[Tensor, "b h w c"], after: Float[Tensor, "b h w c"]) -> Float[Tensor, "b 2"]:
    """By how much [down, right] the content moved, in pixels: after(x) looks like before(x - motion)."""
    grey = [frames.mean(-1)[:, None] for frames in (before, after)]
    coarse, fine = (max(1, min(before.shape[1:3]) // side) for side in (SEARCHED, REFINED))
    found = _search(*(F.avg_pool2d(frames, coarse)[:, 0] for frames in grey))
    a, b = (F.avg_pool2d(frames, fine)[:, 0] for frames in grey)
    return _refine(a, b, found * (coarse / fine)) * fine


def clip_motions(video: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t-1 2"]:
    """Of clips, from each frame to the next."""
    if video.shape[1] < 2:
        return video.new_zeros(len(video), 0, 2)
    return motion(video[:, :-1].flatten(0, 1), video[:, 1:].flatten(0, 1)).view(len(video), -1, 2)


def _search(before: Float[Tensor, "b h w"], after: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2"]:
    """The shift by whole pixels at which they differ least; of equal ones the smallest."""
    h, w = before.shape[1:]
    reach = [min(REACH, side // 3) for side in (h, w)]
    best = before.new_full((len(before),), torch.inf)
    shift = before.new_zeros(len(before), 2)
    for dy in sorted(range(-reach[0], reach[0] + 1), key=abs):
        for dx in sorted(range(-reach[1], reach[1] + 1), key=abs):
            a = before[:, max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)]
            b = after[:, max(0, dy) : h - max(0, -dy), max(0, dx) : w - max(0, -dx)]
            error = (a - b).abs().mean((1, 2))
            better = error < best - 1e-4
            best = torch.where(better, error, best)
            shift[better] = shift.new_tensor([dy, dx])
    return shift


def _refine(
    before: Float[Tensor, "b h w"], after: Float[Tensor, "b h w"], shift: Float[Tensor, "b 2"]
) -> Float[Tensor, "b 2"]:
    for _ in range(TURNS):
        moved, inside = warp(before[..., None], shift)
        image = moved[..., 0]
        down, right = (
            F.pad(image[:, 2:] - image[:, :-2], (0, 0, 1, 1)) / 2,
            F.pad(image[:, :, 2:] - image[:, :, :-2], (1, 1)) / 2,
        )
        error = after - image
        weight = inside / (1 + (error / ROBUST).square())
        yy, yx, xx = ((weight * one * two).sum((1, 2)) for one, two in ((down, down), (down, right), (right, right)))
        ye, xe = ((weight * one * error).sum((1, 2)) for one in (down, right))
        yy, xx = yy + STIFF, xx + STIFF
        # what moves down by one pixel grows by minus its gradient
        step = -torch.stack((xx * ye - yx * xe, yy * xe - yx * ye), dim=-1) / (yy * xx - yx.square() + 1e-9)[:, None]
        shift = shift + step.clamp(-1, 1)
    return shift


def warp(
    frames: Float[Tensor, "b h w c"], shift: Float[Tensor, "b 2"]
) -> tuple[Float[Tensor, "b h w c"], Float[Tensor, "b h w"]]:
    """The frames moved by [down, right] pixels, bilinear, edges repeated; and 1 where that is from inside of them."""
    h, w = frames.shape[1:3]
    rows = torch.arange(h, device=frames.device) - shift[:, :1]
    columns = torch.arange(w, device=frames.device) - shift[:, 1:]
    grid = torch.stack(
        (
            (2 * columns / (w - 1) - 1)[:, None, :].expand(-1, h, -1),
            (2 * rows / (h - 1) - 1)[:, :, None].expand(-1, -1, w),
        ),
        dim=-1,
    )
    moved = F.grid_sample(frames.movedim(-1, 1), grid, padding_mode="border", align_corners=True).movedim(1, -1)
    inside = ((rows >= 0) & (rows <= h - 1))[:, :, None] & ((columns >= 0) & (columns <= w - 1))[:, None, :]
    return moved, inside.to(frames.dtype)
