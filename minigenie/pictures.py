"""Frames as files to look at, PNG grids, GIF and MP4; and pictures of all kinds as frames.

Dimensions:  t frames   h w c a frame   H W a whole picture
"""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.files import write_atomic

ZOOM = 2  # small frames are hard to see
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 32_000_000


def grid(rows: list[UInt8[Tensor, "t h w c"]]) -> np.ndarray:
    """Each row's frames side by side, the rows below each other, white gaps of 2 px: uint8 [H W 3]."""
    padded = [F.pad(row, (0, 0, 1, 1, 1, 1), value=255) for row in rows]
    return torch.cat([rearrange(row, "t h w c -> h (t w) c") for row in padded]).cpu().numpy()


def contact_sheet(dataset: Dataset, rows: int = 6, columns: int = 10) -> np.ndarray:
    """A picture of the dataset, as of `grid`: a row per episode, evenly spaced frames in it."""
    episodes = np.random.default_rng(0).permutation(len(dataset.episodes))[:rows].tolist()
    videos = [torch.from_numpy(np.array(dataset.episode_frames(i))) for i in episodes]
    return grid([video[torch.linspace(0, len(video) - 1, columns).round().long()] for video in videos])


def label(text: str, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """Text in black on white, a picture of `size` (width, height): uint8 [H W 3]."""
    drawn = Image.new("RGB", size, "white")
    ImageDraw.Draw(drawn).text(at, text, "black")
    return np.array(drawn)


def save_picture(picture: np.ndarray, path: Path, zoom: int = ZOOM) -> Path:
    """Write uint8 [H W 3] as PNG, every pixel a square of `zoom`."""
    write_atomic(path, encode(picture.repeat(zoom, 0).repeat(zoom, 1), "PNG"))
    return path


def encode(picture: np.ndarray, kind: str, **options: int) -> bytes:
    """uint8 [H W 3] as a file of a kind and with options that Pillow knows."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **options)
    return out.getvalue()


def save_video(video: UInt8[Tensor, "t h w c"], path: Path, fps: float) -> Path:
    """Write `video` as .mp4 (H.264) or .gif, as the path's ending says. ValueError for any other ending."""
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"cannot write {path}; choose a name that ends in .mp4 or .gif")
    write_atomic(path, encode_video(video, path.suffix[1:], fps))
    return path


def encode_video(video: UInt8[Tensor, "t h w c"], kind: str, fps: float) -> bytes:
    """The content of an "mp4" or "gif" file."""
    frames = [Image.fromarray(frame.repeat(ZOOM, 0).repeat(ZOOM, 1)) for frame in video.numpy()]
    encoded = io.BytesIO()
    if kind == "gif":
        # whole hundredths of a second that add up, none under two: a browser takes ten in the place of those
        ends = np.arange(len(frames) + 1)
        lasting = (10 * np.diff(np.maximum(100 * ends / fps, 2 * ends).astype(int))).tolist()
        frames[0].save(encoded, "GIF", save_all=True, append_images=frames[1:], duration=lasting, loop=0)
    else:
        _write_mp4(frames, encoded, fps)
    return encoded.getvalue()


def fit_picture(
    source: str | Path | bytes, frame_shape: tuple[int, int, int], name: str = "this"
) -> UInt8[np.ndarray, "h w c"]:
    """A picture of any size and mode as a frame: cropped to its shape, scaled, transparency on black.

    source: a file, or what somebody uploaded, of which only the usual formats are read. Its size is looked up before
    anything is decoded: a small file can unpack to a huge picture. ValueError, one line that calls it `name`, if it is
    no picture or too large."""
    height, width, _ = frame_shape
    file, formats = (io.BytesIO(source), FORMATS) if isinstance(source, bytes) else (source, None)
    try:
        with Image.open(file, formats=formats) as opened:
            opened.draft("RGB", (4 * width, 4 * height))  # a JPEG is decoded at a fraction of its size
            if opened.width * opened.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(opened, in_place=True)  # a copy more of 32 million pixels is 128 MB
            picture, mode = _eight_bit(opened), "RGBA" if opened.has_transparency_data else "RGB"
            picture = picture if picture.mode == mode else picture.convert(mode)
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = f"{MOST_PIXELS / 1e6:.0f} million pixels"
        raise UserError(f"{name} has more than {most}; scale it down and try again") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError):  # Pillow's, of damaged files
        raise UserError(f"{name} cannot be read as a picture; save it as png or jpg and try again") from None
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.BOX))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Modes of 16 and 32 bits in 0..255, which Pillow would clip instead."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float64)
    white = 65535 if values.max() > 255 else 255 if values.max() > 1 or picture.mode != "F" else 1
    return Image.fromarray((values / white * 255).clip(0, 255).astype(np.uint8))


def _write_mp4(frames: list[Image.Image], file: io.BytesIO, fps: float) -> None:
    import av

    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = (side // 2 * 2 for side in frames[0].size)  # H.264 wants even sides
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "15"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
