"""What was seen around the frame at hand, put together as the camera went: a mosaic of the last frames.

What leaves the picture and comes back is then still known, however long ago that was. The mosaic moves by whole pixels,
so that nothing blurs however often it does; what is left over is kept and added to the next motion.

Dimensions:  m worlds   h w c a frame   H W the mosaic: a frame and a margin on each side
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minigenie.nn.motion import warp


class Mosaic(NamedTuple):
    """seen: the frame at hand, and around it what is remembered, its last channel 1, or nothing. left: of the motion so
    far, what is less than a pixel, [down, right]."""

    seen: Float[Tensor, "m H W c+1"]
    left: Float[Tensor, "m 2"]

    @staticmethod
    def begin(frames: Float[Tensor, "m h w c"], margin: int) -> "Mosaic":
        """Nothing is known but a frame. margin: pixels around it that are remembered."""
        m, h, w, c = frames.shape
        mosaic = Mosaic(frames.new_zeros(m, h + 2 * margin, w + 2 * margin, c + 1), frames.new_zeros(m, 2))
        mosaic.paste(frames)
        return mosaic

    def paste(self, frames: Float[Tensor, "m h w c"]) -> None:
        h, w, c = frames.shape[1:]
        top, left = (self.seen.shape[1] - h) // 2, (self.seen.shape[2] - w) // 2
        self.seen[:, top : top + h, left : left + w, :c] = frames
        self.seen[:, top : top + h, left : left + w, c] = 1

    def look(self, frames: Float[Tensor, "m h w c"], motion: Float[Tensor, "m 2"]) -> Float[Tensor, "m h w c"]:
        """The frame at hand moved by [down, right] pixels. What comes into the picture is as it was seen before, or, if
        it never was, as the edge is."""
        margin = (self.seen.shape[1] - frames.shape[1]) // 2
        (moved, within), (around, known) = warp(frames, motion), warp(self.seen, motion, margin)
        comes_back = (within == 0) & (known == 1) & (around[..., -1] > 0.999)
        return torch.where(comes_back[..., None], around[..., :-1], moved)

    def move(self, motion: Float[Tensor, "m 2"], frames: Float[Tensor, "m h w c"]) -> None:
        """Go on by a motion to the frames that came of it, in place."""
        far = self.left + motion
        shift = far.round().long()
        rows, columns = (torch.arange(side, device=shift.device) - shift[:, i, None] for i, side in self._sides())
        inside = [(at >= 0) & (at < side) for at, (_, side) in zip((rows, columns), self._sides(), strict=True)]
        rows, columns = (at.clamp(0, side - 1) for at, (_, side) in zip((rows, columns), self._sides(), strict=True))
        worlds = torch.arange(len(shift), device=shift.device)[:, None, None]
        moved = self.seen[worlds, rows[:, :, None], columns[:, None]]
        moved[..., -1] *= inside[0][:, :, None] & inside[1][:, None]
        self.seen.copy_(moved)
        self.left.copy_(far - shift)
        self.paste(frames)

    def _sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (0, self.seen.shape[1]), (1, self.seen.shape[2])
