"""A dataset as integers: what play would compute, in full batches, by as many processes as there are."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_recipe

from minigenie import encode
from minigenie.camera import Camera, typical_motions
from minigenie.data.dataset import DatasetWriter, Episode
from minigenie.encode import encode_actions, encode_motions, encode_moved, encode_tokens
from minigenie.nn.motion import motion, warp
from minigenie.nn.patches import to_float
from minigenie.nn.st_transformer import STConfig, TimeCache
from minigenie.tokenizer import VideoTokenizer

CONTEXT = 3
CPU = torch.device("cpu")


def shaken(model):
    """Blocks start as the identity; these do something."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


def tokenizer(attend_time: bool) -> VideoTokenizer:
    stack = STConfig(num_blocks=2, dim=32, num_heads=2, attend_time=attend_time)
    return shaken(VideoTokenizer(replace(small_recipe().tokenizer, encoder=stack)))


@pytest.fixture(scope="module")
def footage(toy, tmp_path_factory):
    """Episodes of all lengths in no order."""
    about = {"frame_size": (64, 64), "fps": 10, "source": "x", "generator": "x", "split": "test", "settings": {}}
    writer = DatasetWriter(tmp_path_factory.mktemp("data") / "footage", **about)
    lengths = np.random.default_rng(0).permutation([1, 2, *range(3, 40), 150])
    starts = toy.windows(150)[::7][: len(lengths)]
    for i, (start, length) in enumerate(zip(starts, lengths.tolist(), strict=True)):
        writer.write(i, toy.clips(np.array([start]), length)[0], [Episode(0, 0, length)])
    return writer.close()


@torch.no_grad()
def by_hand(dataset, model, i: int) -> np.ndarray:
    """Episode `i`, frame by frame from its first on, as a world's memory is made."""
    past = TimeCache(model.encoder, 1, CONTEXT)
    frames = to_float(torch.from_numpy(dataset.episode_frames(i).copy()))
    return torch.cat([model.encode_next(frame[None], past) for frame in frames]).numpy()


def in_file(dataset, array, i: int) -> np.ndarray:
    start = dataset.episode_starts[i]
    return array[start : start + dataset.episodes[i].length]


def assert_same(found, expected) -> None:
    """But for near things, which sums in the order of another batch may decide otherwise."""
    assert found.shape == expected.shape
    assert (found != expected).sum() <= max(1, found.size // 1000)


@pytest.mark.parametrize("batch_frames", [1, 16, 256])
def test_a_tokenizer_with_a_sense_of_time_sees_episodes_as_play_does(footage, tmp_path, monkeypatch, batch_frames):
    """Each from its first frame on; a long one, begun in several places at once, as if it had been begun in one."""
    monkeypatch.setattr(encode, "BATCH_FRAMES", batch_frames)
    model = tokenizer(attend_time=True)
    tokens = encode_tokens(footage, model, CONTEXT, tmp_path / "tokens.npy")
    for i in range(len(footage.episodes)):
        assert_same(in_file(footage, tokens, i), by_hand(footage, model, i))
    longest = footage.episode_frames(int(np.argmax([episode.length for episode in footage.episodes])))
    alone = model.encode(to_float(torch.from_numpy(longest[:, None].copy())))
    assert (in_file(footage, tokens, i) != alone[:, 0].numpy()[: footage.episodes[i].length]).any()


def test_without_one_every_frame_stands_alone(footage, tmp_path):
    model = tokenizer(attend_time=False)
    tokens = encode_tokens(footage, model, CONTEXT, tmp_path / "tokens.npy")
    for i in range(len(footage.episodes)):
        frames = to_float(torch.from_numpy(footage.episode_frames(i).copy()))
        assert_same(in_file(footage, tokens, i), model.encode(frames[:, None])[:, 0].numpy())


@pytest.mark.parametrize("pairs", [True, False])
def test_actions_are_those_of_their_clips(footage, tmp_path, pairs):
    recipe = small_recipe()
    model, clip = shaken(replace(recipe, lam=replace(recipe.lam, pairs=pairs)).make_lam()), 8
    actions = encode_actions(footage, model, np.zeros((footage.num_frames, 0)), clip, tmp_path / "actions.npy")
    assert len(np.unique(actions)) > 1
    for i, episode in enumerate(footage.episodes):
        frames = to_float(torch.from_numpy(footage.episode_frames(i).copy()))[None]
        clips = [frames[:, at : at + clip] for at in range(0, episode.length - 1, clip - 1)]
        expected = torch.cat([torch.zeros(1, 0), *map(model.infer, clips), torch.zeros(1, 1)], dim=1)
        assert_same(in_file(footage, actions, i), expected[0].numpy())


@pytest.fixture(scope="module")
def seen(footage, tmp_path_factory):
    """The footage's motions, a camera that knows them, and their codes."""
    motions = encode_motions(footage, tmp_path_factory.mktemp("seen") / "motions.npy", CPU)
    camera = Camera(16, 32, num_codes=32, token_dim=16, grid=(8, 8), num_actions=8)
    camera.set_motions(typical_motions(torch.tensor(motions), 16))
    return motions, camera, camera.nearest(torch.tensor(motions)).numpy().astype(np.uint16)


def test_motions_are_those_between_frames(footage, seen):
    assert seen[0].dtype == np.float32
    assert (np.abs(seen[0]).max(0) > 0.5).all()
    for i, episode in enumerate(footage.episodes):
        found, frames = in_file(footage, seen[0], i), to_float(torch.from_numpy(footage.episode_frames(i).copy()))
        assert found.shape == (episode.length, 2)
        assert (found[-1] == 0).all()
        if episode.length > 1:
            expected = motion(frames[:-1], frames[1:]).numpy()
            near = np.abs(found[:-1] - expected).max(1) < 1e-3
            assert near.sum() >= len(near) - max(1, len(near) // 100)  # of two whole pixels alike another may be found


@pytest.mark.parametrize("attend_time", [False, True])
def test_moved_tokens_are_those_of_each_frame_moved(footage, seen, tmp_path, attend_time):
    """On its own, whatever sense of time the tokenizer has: as a world does before a frame is there."""
    model, (motions, camera, codes) = tokenizer(attend_time), seen
    moved = encode_moved(footage, model, camera, codes, motions, tmp_path / "moved.npy")
    for i in range(len(footage.episodes)):
        frames = to_float(torch.from_numpy(footage.episode_frames(i).copy()))
        shifted = warp(frames, camera.motions[torch.from_numpy(in_file(footage, codes, i).astype(np.int64))])[0]
        assert_same(in_file(footage, moved, i), model.encode(shifted[:, None])[:, 0].numpy())


@pytest.mark.parametrize("what", ["motions", "moved"])
def test_what_the_camera_sees_is_the_same_file_if_it_was_stopped_halfway(footage, seen, tmp_path, monkeypatch, what):
    monkeypatch.setattr(encode, "BATCH_FRAMES", 128)
    monkeypatch.setattr(encode, "MOSAICS", 1)
    monkeypatch.setattr(encode, "SAVE_EVERY", -1)
    model = tokenizer(attend_time=False)

    def make(folder, watch):
        path = tmp_path / folder / f"{what}.npy"
        if what == "motions":
            encode_motions(footage, path, CPU, watch)
        else:
            encode_moved(footage, model, *seen[1:], seen[0], path, watch)
        return path.read_bytes()

    def stop(done, total):
        if len(list((tmp_path / "stopped").glob("*.json"))) and done > total // 2:
            raise KeyboardInterrupt

    whole, first, rest = [], [], []
    expected = make("whole", lambda done, total: whole.append(done))
    with pytest.raises(KeyboardInterrupt):
        make("stopped", lambda done, total: first.append(done) or stop(done, total))
    assert not (tmp_path / "stopped" / f"{what}.npy").exists()
    assert make("stopped", lambda done, total: rest.append(done)) == expected
    assert 0 < len(rest) < len(whole)
    assert len(first) + len(rest) == len(whole) + 1  # the one in hand was not noted
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [f"{what}.npy"]


@pytest.mark.parametrize("what", ["motions", "moved"])
@pytest.mark.parametrize("damage", ["junk", "empty", "of other footage", "of another kind", "out of range"])
def test_what_a_camera_did_not_see_is_refused(footage, seen, tmp_path, what, damage):
    path, model = tmp_path / f"{what}.npy", tokenizer(attend_time=False)
    num_codes = model.config.quantizer.num_codes
    width, kind, wrong = (
        (2, np.float32, np.nan) if what == "motions" else (model.config.num_patches, np.uint16, num_codes)
    )
    array = np.zeros((footage.num_frames, width), kind)
    if damage in ("junk", "empty"):
        path.write_bytes(b"\x80\x04junk" if damage == "junk" else b"")
    else:
        array[3] = wrong if damage == "out of range" else 0
        np.save(path, {"of other footage": array[1:], "of another kind": array.astype(np.float64)}.get(damage, array))
    make = {
        "motions": lambda: encode_motions(footage, path, CPU),
        "moved": lambda: encode_moved(footage, model, *seen[1:], seen[0], path),
    }[what]
    with pytest.raises(ValueError, match=rf"{what}\.npy .*delete it, and it is made again$") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("attend_time", "batch_frames", "at_once"), [(False, 256, 256), (True, 64, 32)])
def test_batches_are_full_whatever_the_lengths_of_episodes(
    footage, tmp_path, monkeypatch, attend_time, batch_frames, at_once
):
    """An episode of every length, in no order. With a sense of time as many side by side as fit with their pasts."""
    seen, see = [], encode._load_frames
    monkeypatch.setattr(
        encode, "_load_frames", lambda data, frames, to: seen.append(frames.size) or see(data, frames, to)
    )
    monkeypatch.setattr(encode, "BATCH_FRAMES", batch_frames)
    path = tmp_path / "tokens.npy"
    encode_tokens(footage, tokenizer(attend_time), CONTEXT, path)
    assert np.mean(seen) > 0.7 * at_once
    assert attend_time or sum(seen) < 1.3 * footage.num_frames  # little is read in vain


SHARE = """
import os, signal, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_encode import CONTEXT, tokenizer
from minigenie import encode
from minigenie.camera import Camera, typical_motions
from minigenie.data.dataset import Dataset
from minigenie.runtime import process_group

folder, path, strike = sys.argv[2], encode.Path(sys.argv[3]), int(sys.argv[4])
encode.SAVE_EVERY, encode.BATCH_FRAMES = 0, 8
torch.set_num_threads(1)
torch.manual_seed(0)
with process_group(torch.device("cpu")) as (rank, _):
    mine = []
    def watch(done, total):
        mine.append(done)
        if rank == 1 and len(mine) > strike:
            os.kill(os.getpid(), signal.SIGKILL)
    encode.encode_tokens(Dataset.open(folder), tokenizer(True), CONTEXT, path, watch)
    sys.stdout.write(f"{rank} {len(mine)}\\n")
"""


def test_processes_share_the_work_and_one_that_is_killed_loses_little(footage, tmp_path):
    """The file is the same whoever makes it: three processes, of which one is killed, then two that go on."""
    script = tmp_path / "share.py"
    script.write_text(SHARE)

    def share(count: int, out: str, strike: int = 1000) -> list[int] | None:
        """How many batches each process encoded; None if it went wrong."""
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", "29517", str(script)]
        arguments = [str(Path(__file__).parent), str(footage.folder), str(tmp_path / out / "tokens.npy"), str(strike)]
        ended = subprocess.run([sys.executable, *launch, *arguments], capture_output=True, text=True, timeout=300)
        if ended.returncode:
            assert strike < 1000, ended.stderr
            return None
        return [int(line.split()[1]) for line in sorted(ended.stdout.splitlines())]

    (whole,) = share(1, "whole")
    shares = share(3, "shared")
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1
    assert share(3, "killed", strike=1) is None
    rest = share(2, "killed")
    assert 0 < sum(rest) < whole
    files = [sorted((tmp_path / out).iterdir()) for out in ("whole", "shared", "killed")]
    assert [[path.name for path in each] for each in files] == [["tokens.npy"]] * 3
    assert len({each[0].read_bytes() for each in files}) == 1


def test_what_is_half_there_of_another_plan_begins_anew(footage, tmp_path):
    """Batches of another size, say: what the notes count is not what is in the file."""
    model, path = tokenizer(attend_time=False), tmp_path / "tokens.npy"

    expected = encode_tokens(footage, model, CONTEXT, tmp_path / "expected.npy").copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SAVE_EVERY", -1)
        patch.setattr(encode, "BATCH_FRAMES", 64)
        count = iter(range(3))
        with pytest.raises(StopIteration):
            encode_tokens(footage, model, CONTEXT, path, lambda done, total: next(count) and None)
    assert list(tmp_path.glob("tokens.part*"))
    assert_same(encode_tokens(footage, model, CONTEXT, path), expected)
    assert not list(tmp_path.glob("*tokens.part*"))
