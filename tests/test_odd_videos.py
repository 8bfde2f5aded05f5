"""The files that people really have: each gives what a person sees in it, or one line that says why not."""

import os
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_play import bomb
from test_video import clip, distance, read_video, save, scroll

from minigenie.__main__ import main
from minigenie.console import table
from minigenie.data import source
from minigenie.data.frames import tone_map
from minigenie.data.ingest import NoUsableVideo, ingest
from minigenie.data.video import Reader, find_videos
from minigenie.pictures import save_video
from minigenie.settings import IngestSettings

SCENE = [scroll(i / 10, 48, 64) for i in range(40)]


def rows_of(paths, out, **settings):
    """Rows by file; none usable is no error here."""
    try:
        rows = ingest(paths, out, IngestSettings(**settings)).rows
    except NoUsableVideo as error:
        rows = error.rows
    return {row.file: row for row in rows}


def row_of(path, **settings):
    (row,) = rows_of(path, path.with_name(path.name + "-out"), **settings).values()
    return row


def notes_of(path):
    reader = Reader(Path(path), IngestSettings())
    assert sum(1 for _ in reader) > 0
    return reader.notes


def patch(path, box, offset, data):
    """Overwrite what lies so many bytes behind the name of an mp4 box."""
    whole = bytearray(path.read_bytes())
    at = whole.index(box) + offset
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


# one bad file is a row


def test_a_codec_without_a_decoder_is_a_row_and_the_rest_goes_on(tmp_path):
    (tmp_path / "in").mkdir()
    path = clip(tmp_path / "in/bad.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"brst"))
    clip(tmp_path / "in/good.mp4")
    rows = rows_of(tmp_path / "in", tmp_path / "out")
    assert rows["bad.mp4"][1:5] == ("skipped", 0, 0, "no decoder for its codec (brst); convert it to H.264")
    assert rows["good.mp4"].frames == 30


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_a_file_raises_is_its_row(tmp_path, workers):
    (tmp_path / "in").mkdir()
    for i in range(2):
        clip(tmp_path / f"in/{i}.mp4", hue=i / 3)
    (tmp_path / "in/0.actions.npy").write_bytes(b"\x93NUMPY\x01\x00")
    rows = ingest(tmp_path / "in", tmp_path / "out", workers=workers).rows
    assert [row.status for row in rows] == ["skipped", "kept"]
    assert "0.actions.npy is damaged" in rows[0].reason


def test_a_fault_of_any_kind_in_the_middle_keeps_what_was_read(tmp_path, monkeypatch):
    frames = source._Video._decoded

    def failing(self):
        for i, frame in enumerate(frames(self)):
            if i == 20:
                raise RuntimeError("a surprise\nof two lines")
            yield frame

    monkeypatch.setattr(source._Video, "_decoded", failing)
    row = row_of(clip(tmp_path / "a.mp4", 4))
    assert row[1:5] == ("partly", 19, 1, row.reason)
    assert "cannot be read: RuntimeError: a surprise of two lines" in row.reason
    monkeypatch.setattr(source._Video, "__init__", lambda *_: 1 / 0)
    assert row_of(clip(tmp_path / "b.mp4")).reason == "cannot be read: ZeroDivisionError: division by zero"


def test_only_what_cannot_be_read_at_all_is_said_to_be_cut(tmp_path):
    path = clip(tmp_path / "a.mp4")
    patch(path, b"mdat", 4, np.random.default_rng(0).bytes(path.stat().st_size - path.read_bytes().index(b"mdat") - 4))
    assert re.fullmatch(r"not one of its frames can be decoded, \d+ were tried", row_of(path).reason)


def declare(path, before, sides):
    """Write what a file says of its size, which is behind the bytes `before`."""
    data = path.read_bytes()
    at = data.index(before) + len(before)
    path.write_bytes(data[:at] + sides + data[at + len(sides) :])
    return path


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (3000, "3000x3000 are more than 8,388,608 pixels; scale it down"),
        (16383, "not one of its frames can be decoded, 40 were tried"),
    ],
)
def test_a_gif_that_says_to_be_huge_is_not_decoded(tmp_path, side, reason):
    path = save_video(torch.from_numpy(np.stack(SCENE)), tmp_path / "a.gif", 10.0)
    assert row_of(declare(path, b"GIF89a", struct.pack("<HH", side, side))).reason == reason


@pytest.mark.parametrize(
    ("side", "reason"),
    [
        (5000, "5000x5000 are more than 8,388,608 pixels; scale it down"),
        (16384, "more than 8,388,608 pixels; scale it down"),
    ],
)
def test_a_webp_that_says_to_be_huge_is_not_decoded(tmp_path, side, reason):
    path = tmp_path / "a.webp"
    first, *others = map(Image.fromarray, SCENE)
    first.save(path, save_all=True, append_images=others, duration=100)
    assert (
        row_of(declare(path, b"VP8X" + struct.pack("<II", 10, 2), 2 * struct.pack("<I", side - 1)[:3])).reason == reason
    )


@pytest.mark.parametrize("sides", [(65535, 4), (4, 65535)])
def test_a_gif_that_says_to_be_a_line_is_not_scaled(tmp_path, sides):
    path = save_video(torch.from_numpy(np.stack(SCENE)), tmp_path / "a.gif", 10.0)
    row = row_of(declare(path, b"GIF89a", struct.pack("<HH", *sides)))
    assert re.fullmatch("pictures of .* are too narrow to crop; take --fit letterbox", row.reason)
    assert len(read_video(path, size=64, fps=10, fit="letterbox")[0]) == 40


def test_numbered_pictures_that_say_to_be_huge_are_not_decoded(tmp_path):
    for i, picture in enumerate(SCENE):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    for i, side in ((0, 100_000), (20, 12_000)):
        (tmp_path / f"{i}.png").write_bytes(bomb(side))
    (row,) = rows_of(tmp_path, tmp_path.with_suffix(".out") / "out", keep_duplicates=True).values()
    assert row[:5] == ("*.png", "partly", 38, 2, "damaged frames left out: 2")


# names and folders


def test_a_name_that_is_not_utf_8_is_read_and_shown(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    os.rename(clip(tmp_path / "a.mp4"), os.fsencode(folder) + b"/caf\xe9.mp4")
    os.rename(clip(tmp_path / "b.mp4", hue=0.5), folder / "two\nlines\x1b[31m.mp4")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.actions.csv")).write_text("1\n" * 30)
    main(["ingest", str(folder), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "caf\ufffd.mp4" in printed
    assert "two\ufffdlines\ufffd[31m.mp4" in printed
    assert "actions of caf\ufffd.actions.csv" in printed


def test_a_table_shows_every_cell_as_it_is(capsys):
    cells = ["run [dqw4w9wgxcq] :cat:.mp4", "[/]", "[bold]x[/bold]"]
    table(["[id]", ":dog:", "c"], [cells])
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in [*cells, "[id]", ":dog:"])


def test_linked_folders_are_followed_once(tmp_path):
    for name in ("in/sub", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    clip(tmp_path / "elsewhere/deep/linked.mp4")
    (tmp_path / "in/link").symlink_to("../elsewhere", target_is_directory=True)
    (tmp_path / "in/again").symlink_to("../elsewhere/deep", target_is_directory=True)
    (tmp_path / "in/sub/circle").symlink_to("..", target_is_directory=True)
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in/itself").symlink_to("itself")
    (tmp_path / "in/copy.mp4").symlink_to("../elsewhere/deep/linked.mp4")
    (tmp_path / "in/gone.mp4").symlink_to("nowhere.mp4")
    rows = rows_of(tmp_path / "in", tmp_path / "out")
    assert sum(row.frames for row in rows.values()) == 30
    assert sum(row.status == "kept" for row in rows.values()) == 1
    assert rows["gone.mp4"].reason == "cannot be read: No such file or directory"


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "in/secret").mkdir(parents=True)
    clip(tmp_path / "in/a.mp4")
    scandir = os.scandir

    def guarded(path):
        if isinstance(path, str) and path.endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    rows = rows_of(tmp_path / "in", tmp_path / "out")
    assert rows[str(tmp_path / "in/secret")][1:5] == ("skipped", 0, 0, "folder cannot be read: Permission denied")
    assert rows["a.mp4"].status == "kept"


def test_other_endings_are_counted_and_named(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    clip(folder / "a.mp4")
    for name in ("x.vob", "x.mxf", "notes.txt", "more.TXT", "README", "one.png", ".hidden.txt", "a.episodes.csv"):
        (folder / name).write_text("0,30\n")
    main(["ingest", str(folder), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.search(r"^ 6 other files +passed over +0 +0 +2 \.txt, 1 ", printed, re.M)
    assert all(f"1 {ending}" in printed for ending in (".mxf", ".png", ".vob", "no ending"))
    assert re.search(r"^files +1: 1 kept$", printed, re.M)
    (folder / "a.mp4").unlink()
    with pytest.raises(NoUsableVideo, match="no video in") as error:
        ingest(folder, tmp_path / "none")
    assert error.value.rows[0].file == "7 other files"  # the sidecar has no video now


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer, fetch it with `git"),
        ("/annex/objects/SHA256E-s9--0.mp4\n", "a git-annex pointer, fetch it with `git annex get`"),
    ],
)
@pytest.mark.parametrize("names", [["a.mp4"], ["a.webp"], ["f1.png", "f2.png"]])
def test_pointers_are_named(tmp_path, start, reason, names):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text(start)
    (row,) = rows_of(tmp_path / "in", tmp_path / "out").values()
    assert row.status == "skipped"
    assert row.reason.startswith(reason)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/pipe.mp4")
    assert rows_of(tmp_path / "in", tmp_path / "out")["pipe.mp4"].reason == "not a regular file"


# folders of pictures and animated pictures


@pytest.mark.parametrize("name", ["frame_{:04d}.png", "{}.jpg", "shot-{:02d}.webp", "a{:03d}.TIFF", "x{}.bmp"])
def test_numbered_pictures_are_one_video(tmp_path, name):
    folder = tmp_path / "in/sequence"
    folder.mkdir(parents=True)
    for i, picture in enumerate(SCENE):
        Image.fromarray(picture).save(folder / name.format(3 + 2 * i), quality=95)
    result = ingest(tmp_path / "in", tmp_path / "out", IngestSettings(size=(48, 64), fps=12))
    assert [episode.length for episode in result.dataset.episodes] == [40]
    assert result.rows[0].file == re.sub(r"\{.*\}", "*", name)
    assert distance(result.dataset.episode_frames(0), np.stack(SCENE)) < 8
    (folder / name.format(3)).unlink()
    with pytest.raises(FileExistsError, match="listing"):  # other pictures are another dataset
        ingest(tmp_path / "in", tmp_path / "out", IngestSettings(size=(48, 64), fps=12))


def test_pictures_of_every_mode(tmp_path):
    picture = Image.fromarray(scroll(0, 48, 64))
    gray = picture.convert("L")
    deep = Image.fromarray(np.asarray(gray, np.uint16) * 257)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat([[0], [255]], [24, 24], 0).astype(np.uint8).repeat(64, 1)))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x112] = 6  # to be turned back by a right angle
    kinds = [picture, gray, deep, clear, picture.convert("P"), picture.convert("CMYK")]
    for i, each in enumerate(kinds):
        each.save(tmp_path / f"{i}.{'tif' if each.mode == 'CMYK' else 'png'}")
    Image.open(tmp_path / "5.tif").convert("RGB").save(tmp_path / "5.png")
    turned.save(tmp_path / "6.png", exif=exif)
    seen, damage = read_video(tmp_path / "*.png", size=(48, 64), fps=10)
    assert damage is None
    bright = np.asarray(gray.convert("RGB"))
    for i, expected in enumerate([picture, bright, bright, None, kinds[4].convert("RGB"), picture, picture]):
        if expected is not None:
            assert distance(seen[i], np.asarray(expected)) < 8, i
    assert seen[3][:23].max() == 0
    assert distance(seen[3][25:], np.asarray(picture)[25:]) < 1


def test_a_bad_picture_and_a_gap_cost_only_themselves(tmp_path):
    for i, picture in enumerate(SCENE):
        Image.fromarray(picture).save(tmp_path / f"{i if i < 20 else i + 100}.png")
    (tmp_path / "5.png").write_bytes(b"junk")
    (row,) = rows_of(tmp_path, tmp_path / "out", min_frames=4, keep_duplicates=True).values()
    assert row[1:4] == ("partly", 39, 3)
    assert row.reason.startswith("damaged frames left out: 1")


@pytest.mark.parametrize(("name", "form"), [("a.webp", "WEBP"), ("a.apng", "PNG"), ("a.png", "PNG"), ("a1.png", "PNG")])
def test_animated_pictures(tmp_path, name, form):
    slow = [scroll(i / 20, 48, 64) for i in range(40)]
    pictures = [Image.fromarray(picture) for picture in slow]
    (tmp_path / "in").mkdir()
    pictures[0].save(tmp_path / "in" / name, form, save_all=True, append_images=pictures[1:], duration=50, quality=95)
    result = ingest(tmp_path / "in", tmp_path / "out", IngestSettings(size=(48, 64)))
    assert [episode.length for episode in result.dataset.episodes] == [20]
    assert distance(result.dataset.episode_frames(0), np.stack(slow[::2])) < 8


@pytest.mark.parametrize("name", ["a.webp", "a.apng"])
def test_a_damaged_or_single_picture_is_no_video(tmp_path, name):
    form = "WEBP" if name == "a.webp" else "PNG"
    pictures = [Image.fromarray(picture) for picture in SCENE]
    pictures[0].save(tmp_path / name, form, save_all=True, append_images=pictures[1:], duration=100)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    row = row_of(tmp_path / name)
    assert "truncated" not in row.reason or row.status == "partly"
    pictures[0].save(tmp_path / f"still-{name}", form)
    assert row_of(tmp_path / f"still-{name}").status == "skipped"


# pictures as they were meant


def turn(a, b, c, d):
    """A matrix as mp4 stores it, in fixed point."""
    return struct.pack(">9i", *(round(65536 * value) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)


@pytest.mark.parametrize(("box", "offset"), [(b"tkhd", 44), (b"mvhd", 40)])
@pytest.mark.parametrize(
    "matrix",
    [bytes(36), turn(0.5, 0, 0, 0.5), turn(2, 0, 0, 2), turn(0.7, 0.7, -0.7, 0.7), turn(1, 0, 0, 0), turn(0, 1, 0, 1)],
)
def test_a_matrix_that_is_no_rotation_counts_as_none(tmp_path, box, offset, matrix):
    path = save(tmp_path / "a.mp4", SCENE)
    expected, _ = read_video(path, size=(48, 64), fps=10)
    patch(path, box, offset, matrix)
    np.testing.assert_array_equal(read_video(path, size=(48, 64), fps=10)[0], expected)


def test_the_largest_track_is_taken_and_the_others_named(tmp_path):
    sizes = (24, 32), (96, 128), (48, 64)
    for name in ("a.mkv", "a.mp4", "a.ts"):
        with av.open(str(tmp_path / name), "w") as container:
            streams = [container.add_stream("libx264", rate=10) for _ in sizes]
            for stream, (stream.height, stream.width) in zip(streams, sizes, strict=True):
                stream.pix_fmt = "yuv420p"
            for i in range(30):
                for stream, (height, width), hue in zip(streams, sizes, (0.5, 0.0, 0.3), strict=True):
                    frame = av.VideoFrame.from_ndarray(scroll(i / 10, height, width, hue), "rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, 10)
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode())
        frames, damage = read_video(tmp_path / name, size=(48, 64), fps=10)
        assert damage is None
        assert distance(frames, np.stack(SCENE[:30])) < 8
        assert notes_of(tmp_path / name) == ["the largest (128x96) of its 3 video tracks"]


def cropped(path, left, right, top, bottom):
    """Declare a clean aperture in an mp4 of 64x48 pixels."""
    width, height = 64 - left - right, 48 - top - bottom
    aperture = struct.pack(">I4s4I4i", 40, b"clap", width, 1, height, 1, left - right, 2, top - bottom, 2)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"avc1", whole.index(b"stsd")) - 4
    end = entry + struct.unpack_from(">I", whole, entry)[0]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = entry if name == b"avc1" else whole.rindex(name, 0, entry) - 4
        struct.pack_into(">I", whole, at, struct.unpack_from(">I", whole, at)[0] + 40)
    whole[end:end] = aperture
    for chunk in re.finditer(b"stco....", bytes(whole), re.S):  # the frames lie behind, by as much
        struct.pack_into(">I", whole, chunk.end() + 4, struct.unpack_from(">I", whole, chunk.end() + 4)[0] + 40)
    path.write_bytes(whole)
    return path


def test_cropping_that_the_container_declares(tmp_path):
    expected = read_video(save(tmp_path / "a.mp4", SCENE), size=(48, 64), fps=10)[0][:, 2:36, 4:42]
    path = cropped(save(tmp_path / "b.mp4", SCENE), 4, 22, 2, 12)
    assert distance(read_video(path, size=(34, 38), fps=10)[0], expected) < 2
    path = save(tmp_path / "c.mkv", SCENE)
    colours, crops = bytes.fromhex("54b2810455b08455b98101"), bytes.fromhex("54bb810254cc8104ec8100")
    assert colours in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(colours, crops))  # top 2, left 4; the player's shape stays
    seen = read_video(path, size=(46, 60), fps=10)[0]
    assert distance(seen, np.stack(SCENE)[:, 2:, 4:]) < 8
    nothing_left = cropped(save(tmp_path / "d.mp4", SCENE), 40, 24, 0, 0)
    assert len(read_video(nothing_left, size=(48, 64), fps=10)[0]) == 40


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
def test_transparency_of_webm_is_black(tmp_path, codec, name):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for i in range(20):
            picture = np.full((64, 64, 4), 200, np.uint8)
            picture[:32, :, 3], picture[..., 0] = 0, 8 * i
            frame = av.VideoFrame.from_ndarray(picture, "rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames, damage = read_video(tmp_path / name, size=64, fps=10)
    assert (len(frames), damage) == (20, None)
    assert frames[:, :30].max() < 8
    assert np.abs(frames[10, 40].mean(0) - (63, 157, 157)).max() < 12  # at an opacity of 200


def interlaced(path, codec, pix_fmt):
    """A bar that moves between the two fields of each frame: a comb, wherever it is not taken for interlaced."""
    with av.open(str(path), "w") as container:
        options = {"flags": "+ilme+ildct"} if codec != "mjpeg" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.bit_rate = 4_000_000
        stream.height, stream.width, stream.pix_fmt = 96, 128, pix_fmt
        stream.codec_context.field_order = 2
        graph = av.filter.Graph()
        form = av.VideoFormat(pix_fmt, 128, 96)
        nodes = [graph.add_buffer(width=128, height=96, format=form, time_base=Fraction(1, 25))]
        graph.link_nodes(*nodes, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
        for i in range(50):
            picture = np.zeros((96, 128, 3), np.uint8)
            for field in range(2):
                left = 4 * i % 100 + 2 * field
                picture[field::2, left : left + 16] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            graph.vpush(frame)
            container.mux(stream.encode(graph.vpull()))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.ts", "mpeg2video", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("b.mov", "mjpeg", "yuvj420p"),  # of which the container alone knows
    ],
)
def test_interlaced_footage_is_deinterlaced(tmp_path, name, codec, pix_fmt):
    path = interlaced(tmp_path / name, codec, pix_fmt)
    frames, damage = read_video(path, size=(96, 128), fps=25)
    assert (len(frames), damage) == (50, None)
    gray = frames[1:-1].mean(-1)
    assert np.abs(gray[:, ::2] - gray[:, 1::2]).mean() < 1
    assert notes_of(path) == ["deinterlaced"]
    assert notes_of(clip(tmp_path / "progressive.mp4")) == []


PQ = [0.0, 0.1497, 0.3024, 0.5081, 0.5807, 0.7518]  # 0, 1, 10, 100, 203 and 1,000 candela
HLG = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx265"), ("a.mkv", "libx264")])
@pytest.mark.parametrize(("transfer", "kind", "signal"), [(16, "PQ", PQ), (18, "HLG", HLG)])
def test_hdr_looks_as_it_did(tmp_path, name, codec, transfer, kind, signal):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"x265-params": "log-level=none"} if "5" in codec else {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p10le"
        luma = np.rint(64 + 876 * np.tile(np.repeat(signal, 16), (64, 1)))
        planes = np.concatenate([luma, np.full((32, 96), 512)]).astype(np.uint16)
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p10le")
            for each in (frame, stream.codec_context):
                each.color_trc, each.color_primaries, each.colorspace, each.color_range = transfer, 9, 9, 1
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = read_video(tmp_path / name, size=(64, 96), fps=10)[0][0, 32, 8::16]
    assert np.ptp(seen, axis=-1).max() <= 3  # gray stays gray
    bright = seen.mean(-1)
    assert (np.diff(bright) > 8).all()
    if kind == "PQ":  # as (light / 203) ** (1 / 2.2), but for what is brighter than half of white
        assert np.abs(bright[:3] - 255 * (np.array([0, 1, 10]) / 203) ** (1 / 2.2)).max() < 5
        assert 215 < bright[4] < 235
    else:
        assert 215 < bright[4] < 235  # diffuse white
    assert bright[-1] < 255
    assert notes_of(tmp_path / name) == [f"HDR ({kind}), mapped to ordinary brightness"]


def test_tone_mapping_keeps_the_hue_and_its_limits():
    red = np.array([[[0.58, 0.3, 0.3]]])
    assert tone_map(red, "PQ")[0, 0, 0] > 2 * tone_map(red, "PQ")[0, 0, 1]
    for transfer in ("PQ", "HLG"):
        ends = tone_map(np.array([[[0.0] * 3, [1.0] * 3]]), transfer)
        assert ends[0, 0].tolist() == [0, 0, 0]
        assert ends[0, 1].min() >= 245


# time as it was


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mov", "mpeg4"), ("a.ts", "libx264")],
)
@pytest.mark.parametrize("pace", ["even", "uneven"])
def test_a_recording_of_changes_keeps_its_pace(tmp_path, name, codec, pace):
    gaps = [1200] * 39 if pace == "even" else np.random.default_rng(0).integers(300, 4000, 39)
    times = [0, *np.cumsum(gaps).tolist()]
    row = row_of(save(tmp_path / name, SCENE, rate=30, codec=codec, times=times))
    assert row[1:4] == ("kept", 40, 1)
    assert "frames per second are below 10: each kept once" in row.reason


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_gap_far_above_the_usual_is_a_hole(tmp_path, name):
    times = [100 * i + (5000 if i >= 20 else 0) for i in range(40)]
    result = ingest(save(tmp_path / name, SCENE, times=times), tmp_path / "out", IngestSettings(keep_duplicates=True))
    assert [episode.length for episode in result.dataset.episodes] == [20, 20]
    times = [1200 * i + (40_000 if i >= 20 else 0) for i in range(40)]
    path = save(tmp_path / f"slow-{name}", SCENE, times=times)
    result = ingest(path, tmp_path / "slow", IngestSettings(keep_duplicates=True))
    assert [episode.length for episode in result.dataset.episodes] == [20, 20]


class Repeating:
    """Packets of a container, with empty ones between."""

    def __init__(self, container, every):
        self.container, self.every = container, every

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.container.close()

    def demux(self, stream):
        for packet in self.container.demux(stream):
            if packet.size:
                packet.pts, packet.dts = ((time or 0) * self.every for time in (packet.pts, packet.dts))
                yield packet
                for repeat in range(1, self.every):
                    empty = av.Packet()
                    empty.time_base = packet.time_base
                    empty.pts = empty.dts = packet.pts + repeat * (packet.duration or 1)
                    yield empty
            else:
                yield packet


@pytest.mark.parametrize(("codec", "every"), [("mjpeg", 2), ("mpeg4", 2), ("mjpeg", 15)])
def test_a_packet_of_no_bytes_is_a_repeat(tmp_path, codec, every):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = save(tmp_path / "a.avi", SCENE, codec=codec, pix_fmt=pix_fmt, rate=10)
    reader = Reader(path, IngestSettings(fps=5))
    reader.source.container = Repeating(reader.source.container, every)
    kept = list(reader)
    assert len(kept) == 40
    assert not any(each.after_hole for each in kept)
    assert reader.damage() is None
    assert reader.end == pytest.approx(4 * every, abs=0.2)


def test_gifs_that_we_write_last_as_long_as_they_should(tmp_path):
    video = torch.from_numpy(np.stack(SCENE))
    for fps, expected in ((15.0, [60, 70, 70]), (10.0, [100] * 3), (60.0, [20] * 3), (100.0, [20] * 3)):
        with Image.open(save_video(video, tmp_path / "a.gif", fps)) as gif:
            lasting = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
        assert lasting[:3] == expected
        assert min(lasting) >= 20
        if fps <= 50:
            assert sum(lasting) == pytest.approx(40_000 / fps, abs=10)


# what lies beside a video


def fixed_camera():
    """Five episodes whose resets are no cut: a square that goes to the right of a gray room."""
    pictures = []
    for _ in range(5):
        for i in range(40):
            pictures.append(np.full((64, 64, 3), 90, np.uint8))
            pictures[-1][26:38, 2 + i : 14 + i] = (220, 60, 40)
    return pictures


@pytest.mark.parametrize("ending", [".episodes.csv", ".csv"])
@pytest.mark.parametrize("heading", ["", "first,end\n"])
def test_episodes_beside_a_video(tmp_path, ending, heading):
    path = save(tmp_path / "clip.mp4", fixed_camera())
    assert ingest(path, tmp_path / "one").dataset.episodes[0].length == 200
    lines = "".join(f"{first},{first + 40}\n" for first in range(0, 200, 40))
    path.with_name("clip" + ending).write_text(heading + lines)
    result = ingest(path, tmp_path.with_suffix(".out") / "five")
    assert [episode.length for episode in result.dataset.episodes] == [40] * 5
    assert result.rows[0].reason == f"episodes of clip{ending}"
    path.with_name("clip" + ending).write_text("0,50\n60,200\n")
    with pytest.raises(FileExistsError, match="another dataset"):  # other episodes are another dataset
        ingest(path, tmp_path.with_suffix(".out") / "five")
    assert [e.length for e in ingest(path, tmp_path.with_suffix(".out") / "two").dataset.episodes] == [50, 140]


@pytest.mark.parametrize("ending", [".actions.csv", ".actions.npy"])
def test_actions_beside_a_video_are_thinned_with_its_frames(tmp_path, ending):
    path = save(tmp_path / "clip.mkv", [scroll(i / 30, 48, 64) for i in range(90)], rate=30)
    actions = np.arange(90) % 7
    if ending.endswith("csv"):
        path.with_name("clip" + ending).write_text("\n".join(map(str, actions)))
    else:
        np.save(path.with_name("clip" + ending), actions.astype(np.int16))
    result = ingest(path, tmp_path / "out", IngestSettings(split=0.3, min_frames=4))
    parts = result.dataset, result.test_dataset
    stored = [part.episode_actions(i) for part in parts for i in range(len(part.episodes))]
    assert np.concatenate(stored).tolist() == actions[::3].tolist()
    assert result.rows[0].reason == f"actions of clip{ending}"


def test_actions_and_episodes_go_together(tmp_path, capsys):
    path = save(tmp_path / "clip.mp4", fixed_camera())
    (tmp_path / "clip.episodes.csv").write_text("0,40\n45,80\n100,110\n120,200\n")
    (tmp_path / "clip.actions.csv").write_text("\n".join(str(i % 5) for i in range(200)))
    main(["ingest", str(path), "--out", str(tmp_path / "out"), "--fps", "5"])
    assert "true actions  yes" in capsys.readouterr().out
    dataset, _, (row,) = ingest(path, tmp_path / "out", IngestSettings(fps=5))
    assert row.reason.endswith("23 of 100 frames left out: outside of its episodes, or in takes of fewer than 16")
    numbers = [range(0, 40, 2), range(46, 80, 2), range(120, 200, 2)]
    assert [e.length for e in dataset.episodes] == [len(each) for each in numbers]
    for i, each in enumerate(numbers):
        assert dataset.episode_actions(i).tolist() == [number % 5 for number in each]


def test_numbered_pictures_have_theirs_beside_the_folder(tmp_path):
    (tmp_path / "walk").mkdir()
    for i, picture in enumerate(SCENE):
        Image.fromarray(picture).save(tmp_path / f"walk/{i}.png")
    (tmp_path / "walk.actions.csv").write_text("3\n" * 40)
    (row,) = (result := ingest(tmp_path, tmp_path.with_suffix(".out") / "out")).rows
    assert (row.file, row.reason) == ("*.png", "actions of walk.actions.csv")
    assert result.dataset.episode_actions(0).tolist() == [3] * 40


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.actions.csv", "1\n" * 29, "a.actions.csv has 29 actions, the video 30 frames"),
        ("a.actions.csv", "1\n" * 31, "a.actions.csv has 31 actions, the video 30 frames"),
        ("a.actions.csv", "1\n2.5\n", "a.actions.csv, line 2: '2.5' should be an integer"),
        ("a.actions.csv", "action\nleft\n", "a.actions.csv, line 2: 'left' should be an integer"),
        ("a.actions.csv", "1,2\n", "a.actions.csv, line 1: '1,2' should be an integer"),
        ("a.actions.csv", "1\n-1\n" * 15, "a.actions.csv: action -1 is outside of 0 to 65535"),
        ("a.actions.csv", "", "a.actions.csv holds no integers"),
        ("a.actions.csv", "9" * 30, "a.actions.csv, line 1: '999999999999999999999999999999' should be an integer"),
        ("a.episodes.csv", "0,20\n15,30\n", "a.episodes.csv: 15,30 is no episode after frame 20; give first,end in"),
        ("a.episodes.csv", "0,31\n", "a.episodes.csv has an episode up to frame 31, the video has 30 frames"),
        ("a.episodes.csv", "20,20\n", "a.episodes.csv: 20,20 is no episode after frame 0; give first,end in order"),
        ("a.episodes.csv", "0,x\n", "a.episodes.csv, line 1: '0,x' should be two integers, first,end"),
        ("a.csv", "0,20\n15,30\n", "a.csv: 15,30 is no episode after frame 20; give first,end in order"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_the_row_of_its_video(tmp_path, capsys, name, text, reason):
    (tmp_path / "in").mkdir()
    clip(tmp_path / "in/a.mp4")
    (tmp_path / "in" / name).write_text(text)
    with pytest.raises(SystemExit):
        main(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "none")])
    assert f"a.mp4: {reason}" in capsys.readouterr().err
    clip(tmp_path / "in/b.mp4", hue=0.5)
    rows = rows_of(tmp_path / "in", tmp_path / "out")
    assert (rows["a.mp4"].status, rows["b.mp4"].status) == ("skipped", "kept")
    assert rows["a.mp4"].reason.startswith(reason)


def test_arrays_of_other_kinds_are_no_actions(tmp_path):
    path = clip(tmp_path / "a.mp4")
    for array in (np.zeros(30), np.zeros((30, 2), int), np.array(["left"] * 30), np.zeros(30, bool)):
        np.save(tmp_path / "a.actions.npy", array)
        assert "should be integers [frames]" in row_of(path).reason
    np.save(tmp_path / "a.actions.npy", np.array([object()] * 30), allow_pickle=True)
    assert "a.actions.npy is damaged" in row_of(path).reason
    (tmp_path / "a.actions.csv").write_text("1\n" * 30)
    assert "a.actions" in row_of(path).reason


def test_a_table_of_something_else_beside_a_video_is_said_and_left_alone(tmp_path):
    path = clip(tmp_path / "a.mp4")
    (tmp_path / "a.csv").write_text("time,speed\n0.0,1.5\n")
    assert row_of(path)[1:5] == ("kept", 30, 1, "a.csv is not read as a list of episodes")


def test_footage_with_actions_is_no_mere_copy(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        clip(tmp_path / name)
    (tmp_path / "b.actions.csv").write_text("1\n" * 30)
    rows = rows_of(tmp_path, tmp_path.with_suffix(".out") / "out")
    assert [rows[name].frames for name in ("a.mp4", "b.mp4", "c.mp4")] == [30, 30, 0]


def test_videos_are_found_in_one_order(tmp_path):
    for name in ("b/2.mp4", "a/1.mp4", "a/x10.png", "a/x9.png", "c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a/1.mp4", "a/x*.png", "b/2.mp4", "c.mp4"]
    assert [path.name for path in source.numbered_pictures(tmp_path / "a/x*.png")] == ["x9.png", "x10.png"]
