"""A decoded frame as it was meant to be seen: upright, with square pixels, opaque, on an ordinary screen.

Dimensions:  h height   w width
"""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, ColorTrc, Interpolation

from minigenie.data.source import Unreadable

COLOR_SPACES, UNSPECIFIED = {0, 1, 2, 4, 5, 6, 7, 9}, 2  # that libswscale converts; it refuses the rare others
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same pixels on every machine
HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
MOST_LONGER = 64  # times a frame's length that a scaled picture may have: all of it is scaled, only the middle kept
WHITE, PEAK = 203, 1000  # candela per square metre: diffuse white in HDR (ITU-R BT.2408), the screen HLG is made for
KNEE = 0.5  # of white, up to which brightness stays as it is
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """xx, xy, yx, yy in -1, 0, 1: pixel (x, y) is to be shown at (x xx + y yx, x xy + y yy).

    A matrix that is no rotation by right angles, nor a flip, counts as none. Ask one frame per file: its side data and
    a frame refer to each other, so it lives on until a garbage collection.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return UPRIGHT
    exact = np.frombuffer(side_data, np.int32)[[0, 1, 3, 4]] / 65536
    xx, xy, yx, yy = (nearest := np.rint(exact).astype(int)).tolist()
    turns = abs(xx) + abs(xy) == abs(yx) + abs(yy) == 1 == abs(xx) + abs(yx)
    return (xx, xy, yx, yy) if turns and np.abs(exact - nearest).max() < 0.01 else UPRIGHT


def place(
    frame: av.VideoFrame, matrix: Matrix, pixel_aspect: Fraction | None, height_width: tuple[int, int], fit: str
) -> np.ndarray:
    """Scale a frame by area averaging, turn it upright, crop or pad it: uint8 [h w 3], full range.

    Unreadable, one line, if nearly nothing of it would be left by the crop.
    """
    xx, xy, yx, yy = matrix
    shape = frame.height, frame.width * float(pixel_aspect or 1)
    ratios = [t / s for t, s in zip(height_width if xx else height_width[::-1], shape, strict=True)]
    if fit == "crop" and max(ratios) > MOST_LONGER * min(ratios):
        raise Unreadable(f"pictures of {shape[1]:.6g}x{shape[0]} are too narrow to crop; take --fit letterbox")
    scale = max(ratios) if fit == "crop" else min(ratios)
    height, width = (max(1, round(side * scale)) for side in shape)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    transfer = HDR.get(frame.color_trc)  # type: ignore[call-overload]
    if frame.colorspace not in COLOR_SPACES:
        frame.colorspace = UNSPECIFIED
    image = frame.reformat(
        width=width,
        height=height,
        format="rgb48le" if transfer else "rgba" if has_alpha else "rgb24",
        interpolation=(Interpolation.AREA if scale < 1 else Interpolation.BICUBIC) | EXACT,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    ).to_ndarray()
    if transfer:
        image = tone_map(image / 65535, transfer)
    elif has_alpha:  # over black
        image = (image[..., :3] * (image[..., 3:] / 255) + 0.5).astype(np.uint8)
    if not xx:
        image, xx, yy = image.swapaxes(0, 1), yx, xy
    image = image[:: -1 if yy < 0 else 1, :: -1 if xx < 0 else 1]
    placed = np.zeros((*height_width, 3), np.uint8)
    overlap = np.minimum(placed.shape, image.shape)
    placed[_middle(placed, overlap)] = image[_middle(image, overlap)]
    return placed


def _middle(image: np.ndarray, shape: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice((side - n) // 2, (side - n) // 2 + n) for side, n in zip(image.shape, shape, strict=True))


def tone_map(signal: np.ndarray, transfer: str) -> np.ndarray:
    """HDR in [0, 1], "PQ" or "HLG" (ITU-R BT.2100), [h w 3] -> uint8 for an ordinary screen.

    Light up to half of diffuse white keeps its brightness; what is brighter nears white without reaching it, in its own
    hue. FFmpeg's `zscale`, which would make the light linear for its `tonemap`, is not in PyAV's wheels.
    """
    if transfer == "PQ":
        root = signal ** (32 / 2523)
        light = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (16384 / 2610)
    else:
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        luminance = scene @ [0.2627, 0.678, 0.0593]
        light = PEAK * luminance[..., None] ** 0.2 * scene
    light = np.maximum(light @ BT2020_TO_BT709.T, 0) / WHITE
    brightest = light.max(-1, keepdims=True)
    above = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    mapped = np.minimum(brightest, KNEE) + (1 - KNEE) * above / (1 + above)
    light *= mapped / np.maximum(brightest, 1e-9)
    return np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)
