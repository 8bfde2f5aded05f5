"""What is in a video file: its frames one by one, `Reader`, and the takes that they make, `split_takes`.

Files are streamed: decoded packet by packet, thinned to `fps`, each kept frame scaled at once, each finished take
handed on. An hour of full HD needs no more memory than a few minutes, and a damaged file gives whatever still decodes.

- Time: for each 1/fps second the frame nearest to it. None is ever repeated, since that would teach a world to stand
  still: a video slower than `fps` keeps every frame once, at its own pace, and its row says so.
- Cuts: a take ends where a frame matches nothing near it in the frame before. Thumbnails of 16x16 are compared at all
  shifts up to 4; the best match must still differ by 12 of 255 on average, and by 4 times the running level of that.
  The shifts tell scrolling from a cut: in random play of 8 Procgen games, 64x64 at 15 and 7.5 frames per second, it
  found 298 of 318 level changes (the rest looked too much alike), and none among 28,400 other pairs of frames.
- Stillness: frames within 8 of 255 of one frame, in all cells of a 32x32 thumbnail, for over a second are dropped.

Dimensions:  t frames   h height   w width
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, Interpolation
from av.video.stream import VideoStream
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from minigenie.errors import UserError
from minigenie.settings import IngestSettings

EXTENSIONS = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
KNOWN_STARTS = b"ftyp", b"\x1aE\xdf\xa3", b"RIFF", b"GIF8", b"FLV", b"OggS"  # of files that are, or were, video
CUT_DIFFERENCE, CUT_RATIO, CUT_SHIFT = 12, 4, 4
STILL_DIFFERENCE, STILL_SECONDS = 8, 1.0
MAX_FAULTS = 100  # in reading one file, before giving up on the rest of it
COLOR_SPACES, UNSPECIFIED = {0, 1, 2, 4, 5, 6, 7, 9}, 2  # that libswscale converts; it refuses the rare others
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same pixels on every machine


class Unreadable(UserError):
    """The reason why a file has no frames to give."""


def find_videos(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Files named in `paths`, whatever their extension, and videos anywhere in folders named there; sorted, each once.

    In folders, files count that end in one of `EXTENSIONS` and are not hidden. FileNotFoundError if a path is missing.
    """
    found: set[Path] = set()
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; name video files, or folders of them")
        inside = path.rglob("*") if path.is_dir() else ()
        videos = (p for p in inside if p.suffix.lower() in EXTENSIONS.split() and p.name[0] != "." and p.is_file())
        found.update(p.absolute() for p in (videos if path.is_dir() else [path]))
    return sorted(found)


def check_options(settings: IngestSettings) -> tuple[int, int]:
    """Height and width of the frames. ValueError for settings that cannot be."""
    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    if min(height, width) < 1:
        raise UserError(f"size should be positive, one number or (height, width), got {settings.size}")
    if not 0 < settings.fps < math.inf:
        raise UserError(f"fps should be a positive number of frames per second, got {settings.fps}")
    if settings.fit not in ("crop", "letterbox"):
        raise UserError(f'fit should be "crop" or "letterbox", got {settings.fit!r}')
    return height, width


def split_takes(
    frames: Iterable[tuple[np.ndarray, bool]], fps: float, min_frames: int, max_frames: int
) -> Iterator[np.ndarray]:
    """Cut frames [h w 3], each with whether others are missing before it, into takes [t h w 3] of min to max frames."""
    patience = max(1, round(STILL_SECONDS * fps))
    take: list[np.ndarray] = []
    thumbnail = anchor = np.full((32, 32, 3), np.inf, np.float32)
    level, num_still = 0.0, 0
    for frame, after_hole in frames:
        before, thumbnail = thumbnail, _thumbnail(frame)
        difference, threshold = _difference(before, thumbnail), max(CUT_DIFFERENCE, CUT_RATIO * level)
        level += (min(difference, threshold) - level) / 8

        num_still = num_still + 1 if np.abs(thumbnail - anchor).max() <= STILL_DIFFERENCE else 0
        anchor = anchor if num_still else thumbnail
        is_still = num_still > patience
        if is_still:
            del take[-patience:]  # those that waited to see whether they are
        if is_still or after_hole or difference > threshold or len(take) == max_frames:
            if len(take) >= min_frames:
                yield np.stack(take)
            take = []
        if not is_still:
            take.append(frame)
    if len(take) >= min_frames:
        yield np.stack(take)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BOX), np.float32)


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two thumbnails [32 32 3] in [0, 255], at the best shift of one against the other."""
    before, after = (thumbnail.reshape(16, 2, 16, 2, 3).mean((1, 3)) for thumbnail in (before, after))
    margin = (CUT_SHIFT, CUT_SHIFT)
    shifted = sliding_window_view(np.pad(after, (margin, margin, (0, 0)), constant_values=np.nan), after.shape)
    return float(np.nanmean(np.abs(shifted[:, :, 0] - before), axis=(2, 3, 4)).min())


class Reader:
    """One file. Iterate over it once: frames uint8 [h w 3], each with whether others are missing just before it."""

    def __init__(self, path: Path, settings: IngestSettings, report: Callable[[float], None] = lambda share_read: None):
        self.height_width, self.fps, self.fit, self.report = check_options(settings), settings.fps, settings.fit, report
        self.container, self.stream, self.lacks_end = _open(path)
        self.period = 1 / float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.declared = _declared_seconds(self.container, self.stream)
        self.broken = False
        self.num_given = self.num_lost = self.num_decoded = 0
        self.end = self.shown = 0.0  # seconds read so far, with and without the holes

    def __iter__(self) -> Iterator[tuple[np.ndarray, bool]]:
        with self.container:
            total = (self.container.duration or 0) / av.time_base
            matrix = None
            for frame, after_hole in self._sampled():
                matrix = matrix or _display_matrix(frame)
                try:
                    placed = _place(frame, matrix, self.stream.sample_aspect_ratio, self.height_width, self.fit)
                except av.FFmpegError:
                    self.num_lost += 1
                    continue
                self.num_given += 1
                self.report(min(self.end / total, 1.0) if total > 0 else 0.0)
                yield placed, after_hole
        if not self.num_given:
            raise Unreadable("truncated before the first frame")

    @property
    def rate(self) -> float:
        """Frames per second of the file itself, as far as read."""
        return self.num_decoded / self.shown if self.shown else math.inf

    def damage(self) -> str | None:
        """What was lost, once all is read; None if nothing was."""
        notes = [f"damaged frames left out: {self.num_lost}"] if self.num_lost else []
        if self.declared and self.end < 0.97 * self.declared - 0.2:
            notes.append(f"ends after {self.end:.1f} of {self.declared:.1f} s")
        elif self.lacks_end:
            notes.append(f"cut off after {self.end:.1f} s")
        return ", ".join(notes) or None

    def _sampled(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        """The frames nearest to the ticks of a clock of `fps`, each once."""
        held, held_time, tick, hole = None, 0.0, -1, False
        for frame, time, after_hole in self._timed():
            last_tick = math.floor((held_time + time) / 2 * self.fps)  # the last one nearer to `held` than to `frame`
            if held is not None and last_tick > tick:
                yield held, hole
                tick, hole = last_tick, False
            held, held_time, hole = frame, time, hole or after_hole
        if held is not None and math.floor((held_time + self.period / 2) * self.fps) > tick:
            yield held, hole

    def _timed(self) -> Iterator[tuple[av.VideoFrame, float, bool]]:
        """Undamaged frames, seconds since the first, and whether others are missing before."""
        start, time = None, -self.period
        for frame in self._decoded():
            self.broken |= frame.is_corrupt
            if self.broken and (frame.is_corrupt or not frame.key_frame):  # damage spreads up to the next key frame
                self.num_lost += 1
                continue
            start = frame.time if start is None else start
            before, time = time, 0.0 if frame.time is None or start is None else frame.time - start
            if time <= before:  # no times, or those of recordings joined without care
                time = before + self.period
            hole = self.broken or time - before > max(1.0, 4 * self.period)
            self.broken = False
            self.num_decoded += 1
            self.shown += 0.0 if hole else time - before
            self.end = time + max(self.period, frame.duration * float(frame.time_base or 0))
            yield frame, time, hole

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self._packets():
            try:
                yield from self.stream.decode(packet)
            except av.FFmpegError:
                self.broken = True
                self.num_lost += 1

    def _packets(self) -> Iterator[av.Packet | None]:
        """All packets, then an empty one that makes the decoder give what it holds. Faults are stepped over."""
        for _ in range(MAX_FAULTS):
            try:
                yield from self.container.demux(self.stream)
                return
            except av.FFmpegError:
                self.broken = True
                self.num_lost += 1
        yield None


def _open(path: Path) -> tuple[InputContainer, VideoStream, bool]:
    """Also whether the file lacks the mark that ends its format (GIF's alone is sure to be there)."""
    try:
        with open(path, "rb") as file:
            first = file.read(16)
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            last = file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    if not first:
        raise Unreadable("empty file")
    try:
        # "file:" and the whitelist, so that no name, nor playlist inside, makes it open anything else or go online
        container = av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except av.FFmpegError:
        was_video = any(magic in first for magic in KNOWN_STARTS)
        raise Unreadable("truncated before the first frame" if was_video else "not a video") from None
    if container.format.name == "tty":  # how it takes a text file
        raise Unreadable("not a video")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise Unreadable("no video stream")
    streams[0].codec_context.thread_count = 1  # on several, H.264 finds damage by chance or, in slices, never
    return container, streams[0], container.format.name == "gif" and last != b";"


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """How long the file says its video is; None where that could only be told from what is left of it."""
    kind, unit = container.format.name, float(stream.time_base or 0)
    if kind == "avi":
        return stream.frames * unit
    if kind.startswith("mov"):
        return (stream.duration or 0) * unit
    if kind.startswith("matroska"):
        with suppress(KeyError, ValueError):  # the whole lasts longer where the sound does
            hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
            return (hours * 60 + minutes) * 60 + seconds
        return (container.duration or 0) / av.time_base
    return None


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """xx, xy, yx, yy in -1, 0, 1: pixel (x, y) is to be shown at (x xx + y yx, x xy + y yy).

    Ask one frame per file: its side data and a frame refer to each other, so it lives on until a garbage collection.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    xx, xy, _, yx, yy = np.rint(np.frombuffer(side_data, np.int32)[:5] / 65536).astype(int).tolist()
    return xx, xy, yx, yy


def _place(
    frame: av.VideoFrame,
    matrix: tuple[int, int, int, int],
    pixel_aspect: Fraction | None,
    height_width: tuple[int, int],
    fit: str,
) -> np.ndarray:
    """Scale a frame by area averaging, turn it upright, crop or pad it: uint8 [h w 3], full range."""
    xx, xy, yx, yy = matrix
    shape = frame.height, frame.width * float(pixel_aspect or 1)
    ratios = [t / s for t, s in zip(height_width if xx else height_width[::-1], shape, strict=True)]
    scale = max(ratios) if fit == "crop" else min(ratios)
    height, width = (max(1, round(side * scale)) for side in shape)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if frame.colorspace not in COLOR_SPACES:
        frame.colorspace = UNSPECIFIED
    image = frame.reformat(
        width=width,
        height=height,
        format="rgba" if has_alpha else "rgb24",
        interpolation=(Interpolation.AREA if scale < 1 else Interpolation.BICUBIC) | EXACT,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    ).to_ndarray()
    if has_alpha:  # over black
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
