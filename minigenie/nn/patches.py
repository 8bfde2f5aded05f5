"""Frames to patches and back (arXiv:2010.11929).

Dimensions:  b batch   t frames   h w pixels   c channels   p patch side   n patches per frame, row by row
"""

from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from minigenie.errors import UserError

MOST_PIXELS, MOST_PATCHES = 2**24, 2**16  # of a frame; far beyond what a world can be trained on


def patchify(frames: Float[Tensor, "b t h w c"], patch: int) -> Float[Tensor, "b t n values"]:
    return rearrange(frames, "b t (h p1) (w p2) c -> b t (h w) (p1 p2 c)", p1=patch, p2=patch)


def unpatchify(patches: Float[Tensor, "b t n values"], patch: int, height: int) -> Float[Tensor, "b t h w c"]:
    return rearrange(patches, "b t (h w) (p1 p2 c) -> b t (h p1) (w p2) c", p1=patch, p2=patch, h=height // patch)


def to_float(frames: UInt8[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """uint8 0..255 to float in [0, 1]: the one way into the models."""
    return frames.float() / 255


def to_uint8(frames: Float[Tensor, "*s"]) -> UInt8[Tensor, "*s"]:
    """Float in [0, 1] (clamped) to uint8 0..255: the one way out."""
    return (frames.clamp(0, 1) * 255).round().byte()


def patch_grid(patch: int, frame_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a frame's patches. ValueError if they do not fill it."""
    height, width = frame_size
    if height < 1 or width < 1:
        raise UserError(f"frame_size is {height}x{width}; give height and width in pixels")
    if patch < 1 or height % patch or width % patch:
        raise UserError(f"patch {patch} does not divide the frame of {height}x{width}; choose a patch that does")
    if height * width > MOST_PIXELS or height * width // patch**2 > MOST_PATCHES:
        most = f"at most {MOST_PIXELS} pixels and {MOST_PATCHES} patches"
        raise UserError(f"a frame of {height}x{width} in patches of {patch} is too large; use {most}")
    return height // patch, width // patch
