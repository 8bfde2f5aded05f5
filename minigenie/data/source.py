"""Where frames come from: a video file, an animated picture, a folder of numbered pictures. All look the same.

A source is iterated over once. It gives frames with their times, in the sizes and colours that they have, and None
where something was lost to damage. Files are streamed: nothing but a few frames is held.
"""

import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path

import av
import av.filter
import av.logging
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image, ImageOps, ImageSequence

from minigenie.errors import UserError

KNOWN_STARTS = b"ftyp", b"\x1aE\xdf\xa3", b"RIFF", b"GIF8", b"FLV", b"OggS"  # of files that are, or were, video
POINTERS = {
    b"version https://git-lfs": "a Git LFS pointer, fetch it with `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer, fetch it with `git annex get`",
}
NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)(?P<ending>\.(?:bmp|jpe?g|png|ppm|tga|tiff?|webp))", re.I | re.S)
MOST_PIXELS = 2**25  # of a frame: 7680x4320 are fewer, and a damaged header declares what takes all memory
MOST_ANIMATED_PIXELS = 2**23  # of an animated picture, all of which is drawn anew for each: 3840x2160 are fewer
MOST_PICTURE_PIXELS = 2**26  # of a numbered picture: cameras take 61 million
MAX_FAULTS = 100  # in reading one file, before giving up on the rest of it
HOLE_GAPS = 8  # usual gaps from a frame to the next, from which on frames are missing
TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that know of transparency: FFmpeg's own do not
MEDIAN_PACKETS = 2**17  # an hour at 30 frames a second
SHORTEST, USUAL = 0.011, 0.1  # seconds of a frame in an animated picture: shorter ones browsers show for the usual time


class Unreadable(UserError):
    """The reason why a file has no frames to give."""


@contextmanager
def as_unreadable() -> Iterator[None]:
    """Whatever reading one file raises, in one line: it is to end that file only."""
    try:
        yield
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or 'damaged'}") from None  # Pillow gives no reason
    except Exception as error:
        raise Unreadable(f"cannot be read: {type(error).__name__}: {error}".replace("\n", " ")) from None


class Source:
    """period: usual seconds from a frame to the next. total: seconds in all as far as known, else 0, and `declared`
    those that the file promises. lacks_end: it was cut off for sure. repeated: the time up to which the last frame is
    said to stay. notes: what a person should know of how it was read.
    """

    period: float
    total = 0.0
    declared: float | None = None
    lacks_end = False
    pixel_aspect: Fraction | None = None
    repeated = float("-inf")

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[av.VideoFrame | None]:
        raise NotImplementedError

    @cached_property
    def median_gap(self) -> float:
        """Seconds between two frames, in the median over the file."""
        return self.period


def open_source(path: Path, fps: float) -> Source:
    """`path` is a file, or stands for numbered pictures, as `numbered_pictures` reads it; these come at `fps`.

    Unreadable, one line, if there is nothing to get from it.
    """
    with as_unreadable():
        if stands_for_many(path):
            return _Pictures(numbered_pictures(path), fps)
        first, last = _ends(path)
        if first.startswith(b"RIFF") and first[8:12] == b"WEBP":
            return _Animation(path)
        return _Video(path, first, last)


def stands_for_many(path: Path) -> bool:
    """Whether it is no file, but the name of numbered pictures."""
    return "*" in path.name and not os.path.lexists(path)


def numbered_pictures(path: Path) -> dict[Path, int]:
    """The files that `folder/stem*.ending` stands for, where * is a number, with these numbers, in their order."""
    found = []
    for file in path.parent.iterdir():
        parts = NUMBERED.fullmatch(file.name)
        if parts and parts["stem"] + "*" + parts["ending"] == path.name:
            found.append((int(parts["number"]), file))
    return {file: number for number, file in sorted(found)}


def is_animated(path: Path) -> bool:
    try:
        with _open_picture(path, MOST_PICTURE_PIXELS) as picture:
            return getattr(picture, "is_animated", False)
    except (OSError, ValueError, SyntaxError):
        return False


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first 32 bytes of a file, and the last one."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("not a regular file")
    with open(path, "rb") as file:
        first = file.read(32)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        last = file.read()
    if not first:
        raise Unreadable("empty file")
    for start, reason in POINTERS.items():
        if first.startswith(start):
            raise Unreadable(reason)
    return first, last


class _Pictures(Source):
    def __init__(self, numbers: dict[Path, int], fps: float):
        super().__init__()
        self.files, self.period = list(numbers), 1 / fps
        steps = np.diff(list(numbers.values()))
        steps = steps / max(1.0, float(np.median(steps)))
        self.times = np.cumsum([0.0, *np.where(steps > HOLE_GAPS, steps, 1)]) * self.period
        self.total = float(self.times[-1])
        _ends(self.files[0])

    def __iter__(self) -> Iterator[av.VideoFrame | None]:
        for file, time in zip(self.files, self.times.tolist(), strict=True):
            try:
                with _open_picture(file, MOST_PICTURE_PIXELS) as picture:
                    frame = as_frame(ImageOps.exif_transpose(picture), time)
            except (OSError, ValueError, SyntaxError):
                yield None
            else:
                yield frame


class _Animation(Source):
    period = USUAL
    median_gap = math.inf  # a picture is never missing

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def __iter__(self) -> Iterator[av.VideoFrame | None]:
        time = 0.0
        with _open_picture(self.path, MOST_ANIMATED_PIXELS) as pictures:
            for picture in ImageSequence.Iterator(pictures):
                frame = as_frame(picture, time)  # decoded, and only then Pillow knows how long it stays
                seconds = picture.info.get("duration", 0) / 1000
                self.period = seconds if seconds >= SHORTEST else USUAL
                yield frame
                time += self.period


@contextmanager
def _open_picture(path: Path, most: int) -> Iterator[Image.Image]:
    """Unreadable, before anything is decoded, if it has more pixels than that."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
        try:
            picture = Image.open(path)
        except Image.DecompressionBombError:
            raise Unreadable(f"more than {most:,} pixels; scale it down") from None
    with picture:
        _check_size(picture.width, picture.height, most)
        yield picture


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise Unreadable(f"{width}x{height} are more than {most:,} pixels; scale it down")


def as_frame(picture: Image.Image, time: float) -> av.VideoFrame:
    """A picture as if it were decoded, `time` in seconds."""
    if picture.mode.startswith("I"):
        frame = av.VideoFrame.from_ndarray(np.asarray(picture).astype(np.uint16), "gray16le")
    else:
        mode, form = ("RGBA", "rgba") if picture.has_transparency_data else ("RGB", "rgb24")
        converted = picture if picture.mode == mode else picture.convert(mode)
        frame = av.VideoFrame.from_ndarray(np.asarray(converted), form)
    frame.pts, frame.time_base = round(time * 1e6), Fraction(1, 10**6)
    frame.key_frame = True  # type: ignore[misc]
    return frame


class _Video(Source):
    def __init__(self, path: Path, first: bytes, last: bytes):
        super().__init__()
        self.path = path
        self.container = _open(path, first)
        described = _describe(self.container)
        self.stream = self._choose(described)
        self.decoder = self.stream.codec_context
        most = MOST_ANIMATED_PIXELS if self.container.format.name in ("gif", "apng") else MOST_PIXELS
        _check_size(self.decoder.width, self.decoder.height, most)
        if self.stream.metadata.keys() & {"alpha_mode", "ALPHA_MODE"} and self.decoder.name in TRANSPARENT:
            self.decoder = av.VideoCodecContext.create(TRANSPARENT[self.decoder.name], "r")  # type: ignore[assignment]
        self.decoder.options = {"max_pixels": str(most)}
        declared = self.decoder.field_order > 1 and self.decoder.codec.intra_only  # others say it of each frame
        self.interlaced, self.fields = declared, "all" if declared else "interlaced"
        self.decoder.thread_count = 1  # on several, H.264 finds damage by chance or, in slices, never
        self.period = 1 / float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.total = (self.container.duration or 0) / av.time_base
        self.declared = _declared_seconds(self.container, self.stream)
        self.lacks_end = self.container.format.name == "gif" and last != b";"  # GIF's alone is sure to be there
        self.pixel_aspect = self.stream.sample_aspect_ratio
        self.crop = _cropping(described.get(self.stream.index, ""), self.decoder.width, self.decoder.height)

    def _choose(self, described: dict[int, str]) -> VideoStream:
        """The largest track of moving pictures."""
        tracks = [track for track in self.container.streams.video if not track.disposition & Disposition.attached_pic]
        if not tracks:
            raise Unreadable("no video stream")
        decoded = [track for track in tracks if track.codec_context is not None]
        if not decoded:
            codec = re.search(r"Video: (\w+)(?:.*?\((\S+) / 0x)?", described.get(tracks[0].index, ""))
            known, tag = codec.groups() if codec else ("none", None)
            name = known if known != "none" else tag or "unknown"
            raise Unreadable(f"no decoder for its codec ({name}); convert it to H.264")
        moving = [track for track in decoded if track.frames != 1] or decoded
        largest = max(moving, key=lambda track: track.codec_context.width * track.codec_context.height)
        if (count := sum(track.frames != 1 for track in tracks)) > 1:
            size = f"{largest.codec_context.width}x{largest.codec_context.height}"
            self.notes.append(f"the largest ({size}) of its {count} video tracks")
        return largest

    @cached_property
    def median_gap(self) -> float:
        times: list[float] = []
        with _open(self.path, b"") as container, suppress(av.FFmpegError):
            for packet in islice(container.demux(container.streams[self.stream.index]), MEDIAN_PACKETS):
                if (time := _time(packet)) is not None:
                    times.append(time)
        gaps = np.diff(np.unique(times))
        return float(np.median(gaps)) if len(gaps) else self.period

    def __iter__(self) -> Iterator[av.VideoFrame | None]:
        with self.container:
            yield from self._filtered(self._decoded())
        if self.interlaced:
            self.notes.append("deinterlaced")

    def _filtered(self, frames: Iterable[av.VideoFrame | None]) -> Iterator[av.VideoFrame | None]:
        """Cropped as the container says, and deinterlaced from the first interlaced frame on, by FFmpeg's filters."""
        graph, made_for = None, None
        for frame in frames:
            wanted = None
            if frame is not None:
                self.interlaced |= frame.interlaced_frame
                if self.interlaced or self.crop:
                    wanted = frame.width, frame.height, frame.format.name, self.interlaced
            if wanted != made_for:
                yield from _through(graph, None)
                graph, made_for = self._graph(frame) if frame is not None and wanted else None, wanted
            yield from _through(graph, frame) if graph else [frame]
        yield from _through(graph, None)

    def _graph(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        ]
        nodes += [graph.add("bwdif", f"mode=send_frame:deint={self.fields}")] if self.interlaced else []
        nodes += [graph.add("crop", self.crop)] if self.crop else []
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph

    def _decoded(self) -> Iterator[av.VideoFrame | None]:
        """Faults are stepped over. A packet of no bytes says that the last frame stays; to a decoder it is the end."""
        for _ in range(MAX_FAULTS):
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size:
                        yield from self._decode(packet)
                    elif (time := _time(packet)) is not None:
                        self.repeated = time
                break
            except av.FFmpegError:
                yield None
        end = av.Packet()
        end.time_base = self.stream.time_base or Fraction(1)
        yield from self._decode(end)

    def _decode(self, packet: av.Packet) -> Iterator[av.VideoFrame | None]:
        try:
            yield from self.decoder.decode(packet)
        except av.FFmpegError:
            yield None


def _time(packet: av.Packet) -> float | None:
    stamp = packet.dts if packet.pts is None else packet.pts
    return None if stamp is None else float(stamp * packet.time_base)


def _through(graph: av.filter.Graph | None, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    """What the filters give for one frame more, or at the end, for None."""
    if graph:
        graph.vpush(frame)
        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                yield graph.vpull()


def _open(path: Path, first: bytes) -> InputContainer:
    # "file:" and the whitelist, so that no name, nor playlist inside, makes it open anything else or go online
    options = {"protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS)}
    try:
        container = av.open(f"file:{path}", metadata_errors="ignore", options=options)
    except av.FFmpegError:
        was_video = any(magic in first for magic in KNOWN_STARTS)
        raise Unreadable("truncated before the first frame" if was_video else "not a video") from None
    if container.format.name == "tty":  # how it takes a text file
        raise Unreadable("not a video")
    if container.format.name.endswith("_pipe"):
        raise Unreadable("a single picture; numbered ones are read as a video if their folder is named")
    return container


def _describe(container: InputContainer) -> dict[int, str]:
    """By track, what FFmpeg prints of it: the only way to what PyAV has no names for."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        parts = re.split(r"^ +Stream #0:(\d+)", container.dumps_format(), flags=re.M)  # type: ignore[attr-defined]
    finally:
        av.logging.set_level(level)
    return {int(index): text for index, text in zip(parts[1::2], parts[2::2], strict=True)}


def _cropping(described: str, width: int, height: int) -> str | None:
    """What to tell FFmpeg's filter of that name; None if the container crops nothing, or more than there is."""
    found = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", described, re.M)
    left, right, top, bottom = map(int, found.groups()) if found else (0, 0, 0, 0)
    if top + bottom + left + right == 0 or top + bottom >= height or left + right >= width:
        return None
    return f"iw-{left + right}:ih-{top + bottom}:{left}:{top}:exact=1"


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
