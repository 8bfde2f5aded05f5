"""However a video is damaged, `ingest` reads it or says in its row why not, and keeps the whole ones beside it.

In full, with the counts of docs/reliability.md: pytest -m heavy tests/test_damaged.py -n 0 -s
"""

import multiprocessing
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from PIL import Image
from test_video import clip, scroll

from minigenie.data import ingest
from minigenie.settings import IngestSettings

CASES = int(os.environ.get("FUZZ_CASES", 2000))
BATCH = 25  # files of one ingest
SECONDS, MEMORY = 30, 2**30  # for one file: a hang; more memory than there was before it
KINDS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "clear.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "apng.apng": {"codec": "apng", "pix_fmt": "rgb24"},
    "vp8.ogv": {"codec": "libvpx"},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25},
    "h264.ts": {},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
}
PARTS = {  # where a part of a file may begin: a box, an element, a chunk, a page, a packet
    ".mp4": rb"(?s)....(?:ftyp|free|mdat|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|vmhd|dinf|stbl|stsd|avc1|"
    rb"avcC|stts|stss|ctts|stsc|stsz|stco|udta|moof|mfhd|traf|tfhd|tfdt|trun|mvex|trex|mfra|tfra)",
    ".mkv": rb"\x1aE\xdf\xa3|\x18S\x80g|\x11M\x9bt|\x15I\xa9f|\x16T\xaek|\xae|\xe0|\x1fC\xb6u|\xa3|\xa0|\x1cS\xbbk",
    ".avi": rb"RIFF|LIST|avih|strh|strf|00dc|idx1|JUNK|vprp",
    ".webp": rb"RIFF|VP8X|ANIM|ANMF|VP8 |VP8L|ALPH",
    ".gif": rb"GIF89a|!\xf9\x04|!\xff\x0b|,",
    ".apng": rb"(?s)....(?:IHDR|acTL|fcTL|IDAT|fdAT|IEND)",
    ".ogv": rb"OggS",
    ".mpg": rb"\x00\x00\x01",
    ".ts": rb"(?s)G.{187}",
    ".wmv": rb"(?s).{4}\xd9\xee|0&\xb2u|\xa1\xdc\xab\x8c|\x91\x07\xdc\xb7|\x82\x00\x00",
    ".flv": rb"\x09\x00|\x12\x00|FLV",
}
PARTS[".webm"] = PARTS[".mkv"]
EXTREMES = [0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


def damaged(data: bytes, suffix: str, chance: random.Random) -> bytes:
    """Bits flipped, cut short, pieces lost, zeroed or put elsewhere, parts swapped, repeated or lost, and numbers that
    say what cannot be; as often near the beginning, where containers describe themselves, as anywhere."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        within = chance.choice([64, 1000, len(data)])
        at, length = chance.randrange(min(len(data), within)), chance.choice([1, 4, 100, 5000])
        to, kind = at + length, chance.randrange(9)
        if kind <= 1:
            flipped = bytearray(data)
            for _ in range(chance.choice([1, 8, 100])):
                flipped[chance.randrange(min(len(data), within))] ^= 1 << chance.randrange(8)
            data = bytes(flipped)
        elif kind == 2:
            data = data[: max(at, 1)]
        elif kind == 3:
            data = data[:at] + chance.choice([b"", bytes(length), chance.randbytes(length)]) + data[to:]
        elif kind == 4:
            elsewhere = chance.randrange(len(data))
            data = data[:at] + data[elsewhere : elsewhere + length] + data[at:]
        elif kind == 5:
            size, order = chance.choice([1, 2, 4, 8]), chance.choice(["little", "big"])
            number = chance.choice(EXTREMES) % 256**size
            data = data[:at] + number.to_bytes(size, order) + data[at + size :]
        else:
            data = rearranged(data, suffix, chance)
        data = data or b"\x00"
    return data


def rearranged(data: bytes, suffix: str, chance: random.Random) -> bytes:
    """Some part repeated, lost, or swapped with another."""
    starts = [match.start() for match in re.finditer(PARTS[suffix], data)]
    parts = [data[first:end] for first, end in zip([0, *starts], [*starts, len(data)], strict=True)]
    one, other = chance.choices(range(len(parts)), k=2)
    kind = chance.randrange(3)
    if kind == 0:
        parts[one] *= chance.choice([0, 2, 50])
    elif kind == 1:
        parts[one], parts[other] = parts[other], parts[one]
    else:
        parts[one] = b"".join(parts[min(one, other) : max(one, other)])
    return b"".join(parts)


class Cost(NamedTuple):
    """Of one file: how long it took, and how many bytes more than before the process held at most."""

    seconds: float
    memory: int


def memory(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def read_all(folder: Path, connection) -> None:
    """Ingest it, in this process, and send the name of each file as it begins, and at the end all rows and costs."""
    os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT), 2)
    costs, stage = [], ingest.stage

    def measured(video: Path, *args):
        connection.send(video.name)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = memory("VmRSS"), time.monotonic()
        staged = stage(video, *args)
        costs.append(Cost(time.monotonic() - began, memory("VmHWM") - before))
        return staged

    ingest.stage = measured
    try:
        rows = ingest.ingest(folder, folder.with_suffix(".out"), IngestSettings(keep_duplicates=True)).rows
    except ingest.NoUsableVideo as error:
        rows = error.rows
    connection.send(list(zip(rows, costs, strict=True)))


def costs_of(folder: Path) -> list[tuple[ingest.Row, Cost]]:
    """In a process of its own, so that whatever ends it is seen."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigenie.data.ingest"])
    process = context.Process(target=read_all, args=(folder, sending))
    process.start()
    sending.close()
    said = "nothing"
    try:
        while receiving.poll(2 * SECONDS):
            said = receiving.recv()
            if isinstance(said, list):
                return said
        raise AssertionError(f"{folder / said}: hangs")
    except EOFError:
        process.join()
        log = folder.with_suffix(".log").read_text(errors="replace")
        raise AssertionError(f"{folder / said}: exit code {process.exitcode}\n{log}") from None
    finally:
        process.kill()
        process.join()


def with_sound(video: Path, path: Path, options: dict[str, str]) -> None:
    """The same pictures in another container, beside seconds of silence."""
    with av.open(video) as source, av.open(path, "w", options=options) as container:
        pictures = container.add_stream_from_template(source.streams.video[0])
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(19):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = pictures
                container.mux(packet)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[Path]:
    """A short video of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for i, (name, how) in enumerate(KINDS.items()):
        clip(folder / name, 2.4, hue=i / len(KINDS), **how)
    with_sound(folder / "h264.mp4", folder / "fragments.mp4", {"movflags": "frag_keyframe+empty_moov"})
    with_sound(folder / "h264.mp4", folder / "sound.mkv", {})
    pictures = [Image.fromarray(scroll(i / 10, 48, 64)) for i in range(24)]
    pictures[0].save(folder / "a.webp", save_all=True, append_images=pictures[1:], duration=100)
    return sorted(folder.iterdir())


def check(whole: list[Path], num_cases: int, tmp_path: Path) -> None:
    """Each case follows from its number alone, and a whole video comes after those of each ingest."""
    undamaged = clip(tmp_path / "undamaged.mp4", hue=0.5)
    found: dict[str, Counter] = {}
    slowest = largest = 0
    for first in range(0, num_cases, BATCH):
        batch = range(first, min(first + BATCH, num_cases))
        folder = tmp_path / f"{first:05}"
        folder.mkdir()
        for number in batch:
            path = whole[number % len(whole)]
            data = damaged(path.read_bytes(), path.suffix, random.Random(number))
            (folder / f"{number:05}-{path.name}").write_bytes(data)
        os.link(undamaged, folder / "undamaged.mp4")
        *costs, (last, _) = costs_of(folder)
        assert (last.status, last.frames) == ("kept", 30), last
        assert len(costs) == len(batch)
        for row, cost in costs:
            assert "\n" not in row.reason
            assert row.status == "kept" or row.reason
            assert cost.seconds < SECONDS, (row, cost)
            assert cost.memory < MEMORY, (row, cost)
            found.setdefault(row.file.split("-")[1], Counter())[row.status] += 1
            slowest, largest = max(slowest, cost.seconds), max(largest, cost.memory)
        shutil.rmtree(folder)
        shutil.rmtree(folder.with_suffix(".out"), ignore_errors=True)
    for name, statuses in sorted(found.items()):
        print(f"{name}: {statuses.total():,} cases, {dict(statuses)}")
    print(f"at most {slowest:.1f} s and {largest / 2**20:.0f} MB for a file")


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's memory in /proc")
def test_a_damaged_video_is_a_row(whole, tmp_path):
    check(whole, 2 * BATCH, tmp_path)


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's memory in /proc")
def test_thousands_of_damaged_videos(whole, tmp_path):
    check(whole, CASES, tmp_path)
