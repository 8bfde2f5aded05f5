"""What was seen around the frame at hand, put together as the camera went: a mosaic of the last frames.

What leaves the picture and comes back is then still known, however long ago that was. The mosaic is a torus on which
the frame moves by whole pixels, so that nothing blurs or has to be moved; each pixel has its place written beside it,
and counts only where it is of the place that is looked at.

Dimensions:  m worlds   h w c a frame   H W the torus
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minigenie.nn.motion import warp


class Mosaic(NamedTuple):
    """seen: pixels, each with the row and the column of the scene that it was seen at. at: where in the scene the frame
    at hand begins, [row, column]. rest: what of the motion so far is less than a pixel, [down, right]."""

    seen: Float[Tensor, "m H W c+2"]
    at: Int[Tensor, "m 2"]
    rest: Float[Tensor, "m 2"]

    @staticmethod
    def begin(frames: Float[Tensor, "m h w c"], margin: int) -> "Mosaic":
        """Nothing is known but a frame. margin: pixels beside it, on each side, that are remembered."""
        m, h, w, c = frames.shape
        seen = frames.new_zeros(m, h + 2 * margin, w + 2 * margin, c + 2)
        seen[..., -2:] = torch.inf  # of no place
        mosaic = Mosaic(seen, torch.zeros(m, 2, dtype=torch.long, device=frames.device), frames.new_zeros(m, 2))
        mosaic._paste(frames)
        return mosaic

    def look(self, frames: Float[Tensor, "m h w c"], motion: Float[Tensor, "m 2"]) -> Float[Tensor, "m h w c"]:
        """The frame at hand moved by [down, right] pixels. What comes into the picture is as it was seen before, or, if
        it never was, as the edge is."""
        moved, inside = warp(frames, motion)
        whole = (-motion).floor()
        index, places = self._index(self.at + whole.long(), frames.shape[1] + 1, frames.shape[2] + 1)
        around = self.seen[index]
        known = (around[..., -2:] == places).all(-1)
        down, right = ((-motion - whole)[:, None, None, i, None] for i in (0, 1))
        between = torch.lerp(around[:, :-1, :, :-2], around[:, 1:, :, :-2], down)
        between = torch.lerp(between[:, :, :-1], between[:, :, 1:], right)
        known = known[:, :-1] & (known[:, 1:] | (down == 0)[..., 0])
        known = known[:, :, :-1] & (known[:, :, 1:] | (right == 0)[..., 0])
        return torch.where(((inside == 0) & known)[..., None], between, moved)

    def move(self, motion: Float[Tensor, "m 2"], frames: Float[Tensor, "m h w c"]) -> None:
        """Go on by a motion to the frames that came of it, in place."""
        far = self.rest + motion
        self.at.sub_(far.round().long())
        self.rest.copy_(far - far.round())
        self._paste(frames)

    def _paste(self, frames: Float[Tensor, "m h w c"]) -> None:
        index, places = self._index(self.at, *frames.shape[1:3])
        self.seen[index] = torch.cat((frames, places.to(frames.dtype)), dim=-1)

    def _index(
        self, at: Int[Tensor, "m 2"], h: int, w: int
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Int[Tensor, "m h w 2"]]:
        """Where on the torus a rectangle of the scene is, and the row and column of each of its pixels."""
        rows = at[:, :1] + torch.arange(h, device=at.device)
        columns = at[:, 1:] + torch.arange(w, device=at.device)
        places = torch.stack((rows[:, :, None].expand(-1, h, w), columns[:, None].expand(-1, h, w)), dim=-1)
        worlds = torch.arange(len(at), device=at.device)[:, None, None]
        return (worlds, rows[:, :, None] % self.seen.shape[1], columns[:, None] % self.seen.shape[2]), places
