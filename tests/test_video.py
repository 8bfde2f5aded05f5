"""Video files of every kind become the same frames; damage, cuts and stillness cost only themselves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from minigenie.data.video import read_video


def scroll(time, height, width, hue=0.0):
    """A picture of any size that moves to the left, half its width per second: uint8 [h w 3]."""
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = (x + 0.5) / width + time / 2, (y + 0.5) / height
    waves = [
        np.sin(2 * np.pi * (x + y / 2 + hue)),
        np.cos(2 * np.pi * (x - y + hue)),
        np.sin(2 * np.pi * (2 * x + y + hue)),
    ]
    return np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def save(
    path, pictures, *, rate=10, codec="libx264", pix_fmt="yuv420p", times=None, turn=None, aspect=None, full=False
):
    """Write pictures uint8 [h w 3] to a video file; `times` in milliseconds make its rate vary."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"deadline": "realtime", "cpu-used": "8", "g": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.color_range = pix_fmt, 2 if full else 1
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(*turn)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                format=pix_fmt, dst_color_range=2 if full else 1
            )
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, Fraction(1, rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clip(path, seconds=3.0, *, rate=10, height=48, width=64, hue=0.0, **how):
    return save(path, [scroll(i / rate, height, width, hue) for i in range(round(seconds * rate))], rate=rate, **how)


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


def cut_short(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize(
    ("name", "rate", "height", "width", "how"),
    [
        ("a.mp4", 30, 240, 320, {}),
        ("a.mkv", 24, 96, 128, {}),
        ("a.mov", 10, 90, 160, {"codec": "mpeg4"}),
        ("a.avi", 10, 121, 161, {"codec": "mjpeg", "pix_fmt": "yuvj420p", "full": True}),
        ("a.webm", 24, 96, 128, {"codec": "libvpx-vp9"}),
        ("a.gif", 10, 192, 256, {"codec": "gif", "pix_fmt": "rgb8"}),
        ("ten_bit.mkv", 10, 96, 128, {"pix_fmt": "yuv420p10le"}),
        ("alpha.mkv", 10, 97, 129, {"codec": "ffv1", "pix_fmt": "bgra"}),
    ],
)
def test_any_encoding_gives_the_same_frames(tmp_path, name, rate, height, width, how):
    path = clip(tmp_path / name, 2, rate=rate, height=height, width=width, **how)
    frames, warning = read_video(path, size=(48, 64), fps=10, fit="letterbox")
    assert warning is None
    assert frames.shape == (20, 48, 64, 3)
    original = height / width
    shown = [scroll(time / 10, 48, 64) for time in range(20)]
    inside = slice(8, 40) if original < 0.7 else slice(None)
    ...
