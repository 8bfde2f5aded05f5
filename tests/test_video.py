"""Video files of every kind become the same frames; damage, cuts and stillness cost only themselves."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from minigenie.data import ingest as ingesting
from minigenie.data.dataset import Dataset
from minigenie.data.ingest import NoUsableVideo, ingest
from minigenie.data.video import Reader, find_videos
from minigenie.settings import IngestSettings


def scroll(time, height, width, hue=0.0):
    """A picture of any size that moves to the left, about half its width per second: uint8 [h w 3]."""
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = (x + 0.5) / width + 0.47 * time, (y + 0.5) / height
    phases = [x + y / 2 + hue, x - y - hue, 2 * x + y + 3 * hue]
    waves = np.sin(2 * np.pi * np.stack(phases, -1))
    return np.round(127.5 + 100 * waves).astype(np.uint8)


def save(
    path, pictures, *, rate=10, codec="libx264", pix_fmt="yuv420p", times=None, turn=None, aspect=None, full=False
):
    """Write pictures uint8 [h w 3] to a video file; `times` in milliseconds make its rate vary."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"deadline": "realtime", "cpu-used": "8", "g": "10"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.bit_rate = 2_000_000
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


def read_video(path, *, size, fps, fit="crop"):
    """All frames of a file, uint8 [t h w 3], and what was lost to damage, None if nothing was."""
    reader = Reader(Path(path), IngestSettings(size=size, fps=fps, fit=fit))
    return np.stack([frame for frame, _, _ in reader]), reader.damage()


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


def cut_short(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


KINDS = {
    "h264_30.mp4": {"rate": 30, "height": 120, "width": 160},
    "h264_24.mkv": {"rate": 24, "height": 96, "width": 128},
    "h264_30.ts": {"rate": 30, "height": 96, "width": 128},
    "mpeg4.mov": {"codec": "mpeg4", "height": 90, "width": 120},
    "odd.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "full": True, "height": 121, "width": 161},
    "vp9.webm": {"codec": "libvpx-vp9", "rate": 24, "height": 96, "width": 128},
    "vp8.webm": {"codec": "libvpx", "rate": 20, "height": 48, "width": 64},
    "anim.gif": {"codec": "gif", "pix_fmt": "rgb8", "height": 192, "width": 256},
    "small.mp4": {"height": 24, "width": 32},
    "ten_bit.mkv": {"pix_fmt": "yuv420p10le"},
    "alpha.mkv": {"codec": "ffv1", "pix_fmt": "bgra", "height": 97, "width": 129},
}


@pytest.mark.parametrize("name", KINDS)
def test_any_encoding_gives_the_same_frames(tmp_path, name):
    frames, warning = read_video(clip(tmp_path / name, 2, **KINDS[name]), size=(48, 64), fps=10)
    assert warning is None
    assert frames.shape == (20, 48, 64, 3)
    assert distance(frames, np.stack([scroll(tick / 10, 48, 64) for tick in range(20)])) < 8


def test_gray_video_stays_gray(tmp_path):
    frames, _ = read_video(clip(tmp_path / "gray.mkv", 1, codec="ffv1", pix_fmt="gray"), size=32, fps=10)
    assert np.ptp(frames, axis=-1).max() <= 1
    assert frames.std() > 20


def test_transparent_is_black(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "bgra"
        picture = np.full((32, 32, 4), 200, np.uint8)
        picture[:16, :, 3] = 0
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "bgra")))
        container.mux(stream.encode(None))
    frame = read_video(tmp_path / "a.mkv", size=32, fps=10)[0][0]
    assert frame[:15].max() == 0
    assert abs(int(frame[17:].mean()) - 157) <= 1  # 200 at 200 / 255


def test_limited_and_full_range_agree(tmp_path):
    limited, full = (clip(tmp_path / f"{full}.mp4", 1, full=full) for full in (False, True))
    limited, full = (read_video(path, size=(48, 64), fps=10)[0] for path in (limited, full))
    assert distance(limited, full) < 2
    assert limited.min() < 40
    assert limited.max() > 215


@pytest.mark.parametrize(
    ("turn", "upright"),
    [
        ((90, False, False), lambda picture: np.rot90(picture, 1)),
        ((-90, False, False), lambda picture: np.rot90(picture, -1)),
        ((180, False, False), lambda picture: picture[::-1, ::-1]),
        ((0, True, False), lambda picture: picture[:, ::-1]),
        ((0, False, True), lambda picture: picture[::-1]),
    ],
)
def test_rotation_is_honoured(tmp_path, turn, upright):
    stored = scroll(0, 48, 64)
    path = save(tmp_path / "a.mp4", [stored] * 3, turn=turn)
    expected = upright(stored)
    assert distance(read_video(path, size=expected.shape[:2], fps=10)[0][0], expected) < 8


def halves(height, width):
    picture = np.full((height, width, 3), (255, 0, 0), np.uint8)
    picture[:, width // 2 :] = (0, 0, 255)
    return picture


@pytest.mark.parametrize(("width", "aspect"), [(128, None), (64, Fraction(2))])
def test_crop_and_letterbox(tmp_path, width, aspect):
    """A picture shown twice as wide as high, once with square pixels and once with wide ones."""
    path = save(tmp_path / "a.mkv", [halves(64, width)] * 2, pix_fmt="yuv444p", aspect=aspect)
    cropped = read_video(path, size=32, fps=10)[0][0]
    assert distance(cropped, halves(32, 32)) < 8
    boxed = read_video(path, size=32, fps=10, fit="letterbox")[0][0]
    assert distance(boxed[8:24], halves(16, 32)) < 8
    assert boxed[:8].max() == boxed[24:].max() == 0


def test_downscaling_averages(tmp_path):
    """Stripes finer than a pixel become their mean; picking single pixels would give black or white."""
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    frame = read_video(save(tmp_path / "a.mkv", [stripes], codec="ffv1", pix_fmt="bgr0"), size=24, fps=10)[0][0]
    assert np.abs(frame.astype(int) - 127).max() < 25


def gray_levels(path, fps):
    return read_video(path, size=16, fps=fps)[0].mean((1, 2, 3)).round().astype(int).tolist()


def numbered(path, count, **how):
    return save(path, [np.full((16, 16, 3), i, np.uint8) for i in range(count)], codec="ffv1", pix_fmt="bgr0", **how)


def test_the_frame_nearest_to_each_tick_is_taken(tmp_path):
    assert gray_levels(numbered(tmp_path / "a.mkv", 24, rate=24), fps=10) == [0, 2, 5, 7, 10, 12, 14, 17, 19, 22]
    assert gray_levels(numbered(tmp_path / "b.mkv", 60, rate=60), fps=10) == list(range(0, 60, 6))
    assert gray_levels(numbered(tmp_path / "c.mkv", 30, rate=30), fps=30) == list(range(30))


def test_a_slow_video_is_not_filled_up(tmp_path):
    assert gray_levels(numbered(tmp_path / "a.mkv", 20, rate=5), fps=10) == list(range(20))
    row = ingest([clip(tmp_path / "b.mkv", 8, rate=5)], tmp_path / "out").rows[0]
    assert row.status == "kept"
    assert "5 frames per second are below 10" in row.reason


def test_a_varying_rate_goes_by_its_times(tmp_path):
    times = [0, 10, 20, 100, 190, 300, 310, 420, 500]
    assert gray_levels(numbered(tmp_path / "a.mkv", 9, times=times), fps=10) == [0, 3, 4, 5, 7, 8]


@pytest.mark.parametrize("name", ["h264_30.mp4", "vp8.webm", "anim.gif", "h264_30.ts"])
def test_what_a_truncated_file_still_holds_is_kept(tmp_path, name):
    path = cut_short(clip(tmp_path / name, 4, **KINDS[name]))
    (row,) = ingest([path], tmp_path / "out", IngestSettings(min_frames=8)).rows
    frames, warning = read_video(path, size=(48, 64), fps=10)
    assert 12 <= row.frames <= len(frames) <= 30
    assert distance(frames, np.stack([scroll(tick / 10, 48, 64) for tick in range(len(frames))])) < 8
    if not name.endswith(".ts"):  # a transport stream has neither length nor end: what was cut off leaves no trace
        assert row.status == "partly"
        assert row.reason.startswith(warning)
        assert "ends after" in warning or "cut off after" in warning


def test_damage_in_the_middle_is_left_out(tmp_path):
    path = clip(tmp_path / "a.mp4", 6)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = b"x" * 300
    path.write_bytes(data)
    result = ingest([path], tmp_path / "out", IngestSettings(size=(48, 64)))
    assert result.rows[0].status == "partly"
    assert "damaged frames left out: " in result.rows[0].reason
    assert len(result.dataset.episodes) == 2  # no take reaches over the hole
    true = [scroll(tick / 10, 48, 64) for tick in range(60)]
    for i in range(2):
        assert all(min(distance(frame, t) for t in true) < 8 for frame in result.dataset.episode_frames(i))


def test_useless_files_are_skipped_with_the_reason(tmp_path, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    clip(folder / "good.mp4")
    (folder / "empty.mp4").touch()
    (folder / "junk.mkv").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "notes.txt").write_text("a line of text\n" * 200)
    clip(folder / "short.mp4", 1)
    cut_short(clip(folder / "stub.webm", codec="libvpx"), 0.02)
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    rows = ingest([folder, folder / "notes.txt"], tmp_path / "out").rows
    assert {row.file: row.reason for row in rows if row.status == "skipped"} == {
        "empty.mp4": "empty file",
        "junk.mkv": "not a video",
        "notes.txt": "not a video",
        "short.mp4": "10 frames at 10 per second, a take needs 16",
        "sound.mkv": "no video stream",
        "stub.webm": "truncated before the first frame",
    }
    assert [row.file for row in rows if row.status == "kept"] == ["good.mp4"]
    with pytest.raises(ValueError, match=r"empty.mp4: empty file$"):
        ingest(folder / "empty.mp4", tmp_path / "nothing")
    assert capfd.readouterr() == ("", "")


def test_a_shot_cut_ends_the_episode(tmp_path):
    shots = [scroll(i / 10, 48, 64) for i in range(20)] + [255 - scroll(i / 10, 48, 64)[::-1] for i in range(25)]
    dataset = ingest([save(tmp_path / "a.mp4", shots)], tmp_path / "out").dataset
    assert [episode.length for episode in dataset.episodes] == [20, 25]


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_scrolling_is_no_cut(tmp_path, step):
    """A hard-edged world passing by at up to an eighth of its width per frame, starting from rest."""
    world = np.kron(np.random.default_rng(0).integers(64, 192, (4, 40, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    pictures = [world[:, :64]] * 5 + [world[:, i * step : i * step + 64] for i in range(40)]
    dataset = ingest([save(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="bgr0")], tmp_path / "out").dataset
    assert [episode.length for episode in dataset.episodes] == [45]


def test_a_still_stretch_is_dropped(tmp_path):
    moving = [scroll(i / 10, 48, 64) for i in range(40)]
    pictures = moving[:20] + [moving[20]] * 5 + moving[20:40] + [moving[39]] * 30 + moving[::-1][:20]
    result = ingest([save(tmp_path / "a.mp4", pictures)], tmp_path / "out")
    assert [episode.length for episode in result.dataset.episodes] == [45, 19]  # half a second of rest stays
    assert result.rows[0].reason == "31 of 95 frames left out: still, or in takes of fewer than 16"


def test_one_small_thing_moving_is_not_still(tmp_path):
    pictures = [np.full((64, 64, 3), 60, np.uint8) for _ in range(40)]
    for i, picture in enumerate(pictures):
        picture[30:32, i : i + 2] = 255
    assert ingest([save(tmp_path / "a.mp4", pictures)], tmp_path / "out").rows[0].frames == 40


def test_find_videos(tmp_path):
    for name in ["b/z.MP4", "b/a.webm", "b/.hidden.mp4", "b/c/deep.gif", "b/notes.txt", "a.bin"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [
        path.relative_to(tmp_path).as_posix()
        for path in find_videos([tmp_path / "b", tmp_path / "a.bin", tmp_path / "b"])
    ]
    assert found == ["a.bin", "b/a.webm", "b/c/deep.gif", "b/z.MP4"]
    assert find_videos(tmp_path / "b") == find_videos([tmp_path / "b"])
    with pytest.raises(FileNotFoundError, match=r"gone.mp4 does not exist; name"):
        find_videos([tmp_path / "gone.mp4"])


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Eight videos of 4 s, one of them useless."""
    folder = tmp_path_factory.mktemp("footage")
    for i in range(8):
        clip(folder / f"{i}.mp4", 4, hue=i / 8)
    (folder / "3.mp4").write_bytes(b"junk")
    return folder


def all_frames(dataset):
    return {dataset.episode_frames(i)[t].tobytes() for i, e in enumerate(dataset.episodes) for t in range(e.length)}


@pytest.mark.parametrize("split", [0.05, 0.3])
def test_split_shares_no_frame(footage, tmp_path, split):
    result = ingest([footage], tmp_path / "out", IngestSettings(split=split))
    assert result.test_dataset.folder == tmp_path / "out-test"
    assert not all_frames(result.dataset) & all_frames(result.test_dataset)
    assert (
        result.dataset.num_frames + result.test_dataset.num_frames == sum(row.frames for row in result.rows) == 7 * 40
    )
    sources = [{episode.source for episode in dataset.episodes} for dataset in (result.dataset, result.test_dataset)]
    if split == 0.3:  # whole videos: 2 of 8, whatever else they lie with
        assert len(sources[1]) == 2
        assert not sources[0] & sources[1]
        assert [row.test_frames for row in result.rows if row.file in sources[1]] == [40, 40]
    else:  # ends of takes, no shorter than a window, 14 frames owed
        assert [episode.length for episode in result.test_dataset.episodes] == [16]
        assert Dataset.open(tmp_path / "out-test").manifest["split"] == "test"


def test_split_of_a_single_video(tmp_path):
    result = ingest([clip(tmp_path / "a.mp4", 10)], tmp_path / "out", IngestSettings(split=0.2))
    assert (result.dataset.num_frames, result.test_dataset.num_frames) == (80, 20)
    short = ingest([clip(tmp_path / "b.mp4", 2)], tmp_path / "short", IngestSettings(split=0.1))
    assert (short.dataset.num_frames, short.test_dataset) == (20, None)
    assert not (tmp_path / "short-test").exists()


@pytest.mark.parametrize(("split", "killed_at"), [(0.0, 0.5), (0.05, 2.9), (0.3, 2.9), (0.3, 6.2)])
def test_killed_and_resumed_equals_never_killed(footage, tmp_path, monkeypatch, split, killed_at):
    monkeypatch.setattr(ingesting, "SHARD_FRAMES", 32)  # so that a kill leaves a video half written

    def kill(done, total, name):
        if done >= killed_at:
            raise KeyboardInterrupt

    expected = ingest([footage], tmp_path / "whole", IngestSettings(split=split, size=32))
    with pytest.raises(KeyboardInterrupt):
        ingest([footage], tmp_path / "killed", IngestSettings(split=split, size=32), progress=kill)
    log = tmp_path / "killed" / ingesting.LOG
    log.write_bytes((log.read_bytes() if log.exists() else b"") + b'{"file": "torn')
    seen = []
    resumed = ingest(
        [footage], tmp_path / "killed", IngestSettings(split=split, size=32), progress=lambda *args: seen.append(args)
    )
    assert seen[0][0] >= int(killed_at)  # finished videos are not read again
    assert resumed.rows == expected.rows
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    if split:
        assert contents(tmp_path / "killed-test") == contents(tmp_path / "whole-test")
    again = ingest([footage], tmp_path / "killed", IngestSettings(split=split, size=32))
    assert again.rows == expected.rows
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_long_take_is_stored_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(ingesting, "SHARD_FRAMES", 32)
    path = clip(tmp_path / "a.mkv", 10, codec="ffv1", pix_fmt="bgr0")
    settings = IngestSettings(size=(48, 64), keep_duplicates=True)  # it goes round in 2.1 s
    dataset = ingest([path], tmp_path / "out", settings).dataset
    assert [(e.shard, e.offset, e.length) for e in dataset.episodes] == [(0, 0, 32), (1, 0, 32), (2, 0, 32)]
    stored = np.concatenate([dataset.episode_frames(i) for i in range(3)])
    np.testing.assert_array_equal(stored, read_video(path, size=(48, 64), fps=10)[0][:96])


def test_nothing_usable_leaves_nothing_behind(tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    clip(tmp_path / "short.mp4", 0.5)
    with pytest.raises(NoUsableVideo, match=r"none of 2 files can be used; junk.mp4: not a video") as error:
        ingest([tmp_path], tmp_path / "out", IngestSettings(split=0.2))
    assert [row.status for row in error.value.rows] == ["skipped", "skipped"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk.mp4", "short.mp4"]
    (tmp_path / "none").mkdir()
    with pytest.raises(NoUsableVideo, match=r"no video in .*none; files in folders should end in"):
        ingest([tmp_path / "none"], tmp_path / "out")


def test_another_list_of_files_is_refused(tmp_path):
    path = clip(tmp_path / "a.mp4")
    ingest([path], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"videos.*1 files.*2 files"):
        ingest([path, clip(tmp_path / "b.mp4")], tmp_path / "out")
    with pytest.raises(FileExistsError, match="fit"):
        ingest([path], tmp_path / "out", IngestSettings(fit="letterbox"))
    assert contents(tmp_path / "out") == before


def test_progress_grows_to_the_total(footage, tmp_path):
    seen = []
    ingest([footage], tmp_path / "out", IngestSettings(size=16), progress=lambda *args: seen.append(args))
    done = [done for done, _, _ in seen]
    assert done == sorted(done)
    assert len(set(done)) > 100
    assert seen[-1] == (8, 8, "7.mp4")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fps": 0}, "fps should be a positive number of frames per second, got 0"),
        ({"size": 0}, "size should be positive"),
        ({"fit": "squash"}, 'should be "crop" or "letterbox", got \'squash\''),
        ({"split": 1.0}, "split in .0, 1., got 16 and 1.0"),
        ({"min_frames": 1}, "min_frames should be at least 2"),
    ],
)
def test_wrong_settings_are_explained(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        ingest([tmp_path], tmp_path / "out", IngestSettings(**wrong))
    assert not (tmp_path / "out").exists()
