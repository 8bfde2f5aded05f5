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
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from minigenie.data import robots
from minigenie.data.frames import HDR, display_matrix, place
from minigenie.data.source import HOLE_GAPS, NUMBERED, Unreadable, as_unreadable, is_animated, open_source
from minigenie.errors import UserError
from minigenie.settings import IngestSettings

EXTENSIONS = ".3gp .apng .avi .avif .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .webp .wmv"
CUT_DIFFERENCE, CUT_RATIO, CUT_SHIFT = 12, 4, 4
STILL_DIFFERENCE, STILL_SECONDS = 8, 1.0


class Kept(NamedTuple):
    """picture: uint8 [h w 3]. after_hole: whether frames are missing before it. number: of the frame in its file."""

    picture: np.ndarray
    after_hole: bool
    number: int


class Take(NamedTuple):
    """frames: uint8 [t h w 3], no cut inside. numbers: of these frames in their file, int [t]."""

    frames: np.ndarray
    numbers: np.ndarray


def find_videos(
    paths: str | Path | Iterable[str | Path],
    skip: Callable[[Path, str], None] = lambda path, why: None,
    settings: IngestSettings = IngestSettings(),
) -> list[Path]:
    """Files named in `paths`, whatever their extension, and videos anywhere in folders named there; sorted, each once.

    In folders, files count that end in one of `EXTENSIONS` and are not hidden. Two or more pictures that differ in a
    number are one video, stem*.ending. Linked folders are followed, each is read once. A robot dataset gives its videos
    alone, as `settings` say, and may be named as Minari does. `skip` is told of other files, and why a folder cannot be
    read. FileNotFoundError if a path is missing; UserError if a robot dataset cannot be read.
    """
    found: dict[str, Path] = {}  # by where it really is
    seen: set[str] = set()
    for path in sorted(map(Path, [paths] if isinstance(paths, str | Path) else paths)):
        named, path = path, path if path.exists() else robots.local_dataset(path)
        if not path.exists():
            raise FileNotFoundError(f"{named} does not exist; name video files, or folders of them")
        for video in _videos_in(path.absolute(), seen, skip, settings) if path.is_dir() else [path.absolute()]:
            found.setdefault(os.path.realpath(video), video)
    return sorted(found.values())


def _videos_in(
    folder: Path, seen: set[str], skip: Callable[[Path, str], None], settings: IngestSettings
) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        skip(Path(os.fsdecode(error.filename)), error.strerror or str(error))

    for top, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        if os.path.realpath(top) in seen:  # links in circles end here
            folders.clear()
            continue
        seen.add(os.path.realpath(top))
        if videos := robots.videos_in(Path(top), settings):
            yield from videos
            folders.clear()
            continue
        folders.sort()
        groups: dict[str, list[Path]] = {}
        for path in (Path(top, name) for name in sorted(files) if name[0] != "."):
            if parts := NUMBERED.fullmatch(path.name):
                groups.setdefault(parts["stem"] + "*" + parts["ending"], []).append(path)
            else:
                groups[path.name] = [path]
        for name, alike in groups.items():
            if len(alike) > 1 and not is_animated(alike[0]):
                yield Path(top, name)
                continue
            for path in alike:
                if path.suffix.lower() in EXTENSIONS.split() or (path.suffix.lower() == ".png" and is_animated(path)):
                    yield path
                else:
                    skip(path, "")


def check_options(settings: IngestSettings) -> tuple[int, int]:
    """Height and width of the frames. ValueError for settings that cannot be."""
    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    if min(height, width) < 1:
        raise UserError(f"size should be positive, one number or (height, width), got {settings.size}")
    if not 0 < settings.fps < math.inf:
        raise UserError(f"fps should be a positive number of frames per second, got {settings.fps}")
    if settings.bins is not None and (settings.bins < 0 or settings.bins == 1):
        raise UserError(f"bins is {settings.bins}; take 2 or more, or 0 to leave actions out")
    if settings.fit not in ("crop", "letterbox"):
        raise UserError(f'fit should be "crop" or "letterbox", got {settings.fit!r}')
    return height, width


def split_takes(
    frames: Iterable[Kept], fps: float, min_frames: int, max_frames: int, known: bool = False
) -> Iterator[Take]:
    """Cut frames into takes of min to max frames, at holes, shot cuts and stillness; if those are `known`, at holes."""
    patience = max(1, round(STILL_SECONDS * fps))
    take: list[Kept] = []
    thumbnail = anchor = np.full((32, 32, 3), np.inf, np.float32)
    level, num_still = 0.0, 0
    is_cut = is_still = False

    def finished() -> Iterator[Take]:
        if len(take) >= min_frames:
            yield Take(np.stack([kept.picture for kept in take]), np.array([kept.number for kept in take]))

    for frame in frames:
        if not known:
            before, thumbnail = thumbnail, _thumbnail(frame.picture)
            difference, threshold = _difference(before, thumbnail), max(CUT_DIFFERENCE, CUT_RATIO * level)
            level += (min(difference, threshold) - level) / 8
            is_cut = difference > threshold

            num_still = num_still + 1 if np.abs(thumbnail - anchor).max() <= STILL_DIFFERENCE else 0
            anchor = anchor if num_still else thumbnail
            is_still = num_still > patience
        if is_still:
            del take[-patience:]  # those that waited to see whether they are
        if is_still or is_cut or frame.after_hole or len(take) == max_frames:
            yield from finished()
            take = []
        if not is_still:
            take.append(frame)
    yield from finished()


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BOX), np.float32)


def _difference(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two thumbnails [32 32 3] in [0, 255], at the best shift of one against the other."""
    before, after = (thumbnail.reshape(16, 2, 16, 2, 3).mean((1, 3)) for thumbnail in (before, after))
    margin = (CUT_SHIFT, CUT_SHIFT)
    shifted = sliding_window_view(np.pad(after, (margin, margin, (0, 0)), constant_values=np.nan), after.shape)
    return float(np.nanmean(np.abs(shifted[:, :, 0] - before), axis=(2, 3, 4)).min())


class Reader:
    """One file, or numbered pictures. Iterate over it once."""

    def __init__(self, path: Path, settings: IngestSettings, report: Callable[[float], None] = lambda share_read: None):
        self.height_width, self.fps, self.fit, self.report = check_options(settings), settings.fps, settings.fit, report
        self.source = robots.MinariSource(path, settings) if path.is_dir() else open_source(path, settings.fps)
        self.broken, self.failure = False, ""
        self.num_frames = self.num_given = self.num_lost = self.num_decoded = 0
        self.end = self.shown = 0.0  # seconds read so far, with and without the holes
        self.hdr: str | None = None

    def __iter__(self) -> Iterator[Kept]:
        try:
            with as_unreadable():
                yield from self._placed()
        except Unreadable as reason:
            if not self.num_given:
                raise
            self.failure = str(reason)
        if not self.num_given:
            tried = f"not one of its frames can be decoded, {self.num_lost} were tried"
            raise Unreadable(tried if self.num_lost > 1 else "truncated before the first frame")

    def _placed(self) -> Iterator[Kept]:
        source, matrix = self.source, None
        for frame, number, after_hole in self._sampled():
            matrix = matrix or display_matrix(frame)
            self.hdr = self.hdr or HDR.get(frame.color_trc)  # type: ignore[call-overload]
            try:
                placed = place(frame, matrix, source.pixel_aspect, self.height_width, self.fit)
            except av.FFmpegError:
                self.num_lost += 1
                continue
            self.num_given += 1
            self.report(min(self.end / source.total, 1.0) if source.total > 0 else 0.0)
            yield Kept(placed, after_hole, number)

    @property
    def rate(self) -> float:
        """Frames per second of the file itself, as far as read."""
        return self.num_decoded / self.shown if self.shown else math.inf

    @property
    def notes(self) -> list[str]:
        """How it was read, where that is not as usual."""
        return self.source.notes + ([f"HDR ({self.hdr}), mapped to ordinary brightness"] if self.hdr else [])

    def damage(self) -> str | None:
        """What was lost, once all is read; None if nothing was."""
        notes = [f"damaged frames left out: {self.num_lost}"] if self.num_lost else []
        if self.failure:
            notes.append(f"after {self.end:.1f} s {self.failure}")
        elif self.source.declared and self.end < 0.97 * self.source.declared - 0.2:
            notes.append(f"ends after {self.end:.1f} of {self.source.declared:.1f} s")
        elif self.source.lacks_end:
            notes.append(f"cut off after {self.end:.1f} s")
        return ", ".join(notes) or None

    def _sampled(self) -> Iterator[tuple[av.VideoFrame, int, bool]]:
        """The frames nearest to the ticks of a clock of `fps`, each once."""
        held, held_time, held_number, tick, hole = None, 0.0, 0, -1, False
        for frame, time, after_hole in self._timed():
            last_tick = math.floor((held_time + time) / 2 * self.fps)  # the last one nearer to `held` than to `frame`
            if held is not None and last_tick > tick:
                yield held, held_number, hole
                tick, hole = last_tick, False
            held, held_time, held_number, hole = frame, time, self.num_frames - 1, hole or after_hole
        if held is not None and math.floor((held_time + self.source.period / 2) * self.fps) > tick:
            yield held, held_number, hole

    def _timed(self) -> Iterator[tuple[av.VideoFrame, float, bool]]:
        """Undamaged frames, seconds since the first, and whether others are missing before."""
        source, start = self.source, None
        time = -source.period
        for frame in source:
            self.num_frames += 1
            self.broken |= frame is None or frame.is_corrupt
            # damage spreads up to the next key frame
            if frame is None or (self.broken and (frame.is_corrupt or not frame.key_frame)):
                self.num_lost += 1
                continue
            start = frame.time if start is None else start
            before, time = time, 0.0 if frame.time is None or start is None else frame.time - start
            if time <= before:  # no times, or those of recordings joined without care
                time = before + source.period
            repeated = source.repeated - (start or 0.0)
            hole = self.broken or self._is_hole(time - max(before, min(repeated, time)))
            self.broken = False
            self.num_decoded += 1
            self.shown += 0.0 if hole else time - before
            self.end = time + max(source.period, frame.duration * float(frame.time_base or 0))
            yield frame, time, hole
        self.end = max(self.end, source.repeated - (start or 0.0) + source.period)

    def _is_hole(self, gap: float) -> bool:
        """Far above the file's own: recordings that store a frame only when the screen changes have long gaps."""
        return gap > max(1.0, 4 * self.source.period) and gap > HOLE_GAPS * self.source.median_gap
