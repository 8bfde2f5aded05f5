"""Whatever a file, a message or an upload holds: it is read, or one line says what is wrong with which file.

In full, with the counts of docs/reliability.md: pytest -m heavy tests/test_fuzz.py -n 0 -s
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_dataset import make
from test_play import Browser, bomb, picture, started

from minigenie.checkpoint import Checkpoints
from minigenie.data.dataset import Dataset
from minigenie.data.ingest import Row, read_log
from minigenie.data.sidecars import read_sidecars
from minigenie.encode import encode_actions, encode_tokens
from minigenie.eval.doctor import as_damage, diagnose, read_report, read_run
from minigenie.eval.report import summary
from minigenie.pictures import fit_picture
from minigenie.play.actions import load_actions
from minigenie.world import World, locate, read_prompt

REPORT = json.loads((locate("coinrun") / "report.json").read_text())  # without what takes most of it
REPORT["tokenizer"] = {name: value for name, value in REPORT["tokenizer"].items() if name != "usage"}
REPORT["long_rollouts"] = {
    "frames": REPORT["long_rollouts"]["frames"],
    "from_1": {name: each for name, each in REPORT["long_rollouts"]["from_1"].items() if "first_10" in name},
}
REPORT["notes"] = ["a note"]
CASES = int(os.environ.get("FUZZ_CASES", 1000))
SECONDS = 20  # for a case: a hang, on a busy machine too
STRANGE = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**18, 10**400, -(10**18), 0.0, 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "x", "../../etc/passwd", "/etc/passwd", "\x00", "\ud800", "a\nb",
    "e" * 5000, "64", [], [[]], [1, 2], [0, 0], [-1, 64], [10**9, 10**9], {}, {"": {}}, {"format": 1},
]  # fmt: skip
PIECES = [
    b"", b"\x00", b"\xff", b"\x80\x04", b"{", b"}", b"[" * 5000, b'{"a":' * 5000, b'"', b"NaN", b"1" * 5000, b"1e999",
    b"\n\n{}\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"null", b"-", b"9999999999999999", b'"format": 0, ', b"\r",
]  # fmt: skip


def strange_json(value: Any, chance: random.Random) -> Any:
    """The same, but for something in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key, kind = chance.choice([*value]), chance.randrange(12)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, chance.choice(["", "x", "__class__", key + " "]): chance.choice(STRANGE)}
        return {**value, key: strange_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        i, kind = chance.randrange(len(value)), chance.randrange(12)
        if kind == 0:
            return value[:i] + value[i + 1 :]
        if kind == 1:
            return value * chance.choice([0, 2, 50])
        return [*value[:i], strange_json(value[i], chance), *value[i + 1 :]]
    number = isinstance(value, int | float) and chance.random() < 0.3
    return chance.choice([value + 1, value - 1, value * 2, -value, str(value)]) if number else chance.choice(STRANGE)


def strange_bytes(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, cut short, a piece taken out, repeated or put in; more often near the beginning, in the header."""
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at = chance.randrange(1 + min(len(data), chance.choice([16, 300, len(data)])))
        to = at + chance.choice([0, 1, 8, 100])
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + chance.choice([*PIECES, chance.randbytes(8)]) + data[to:]
        elif kind == 3:
            data = data[:at] + data[at:to] * 3 + data[to:]
        else:
            data = data[:at] + data[to:]
    return data


def strange_tensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header is JSON of another kind, or lies about its own length."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(strange_json(json.loads(data[8 : 8 + length]), chance)).encode()
    said = chance.choice([len(header)] * 9 + [0, 2**63, 2**64 - 1, len(data), 10**18])
    return said.to_bytes(8, "little") + header + data[8 + length :]


def strange_array(data: bytes, chance: random.Random) -> bytes:
    """An .npy file of another type or shape than its data has, or of pickled objects."""
    shape = chance.choice(
        ["(10**18,)", "(1000000000000000000, 3)", "()", "(-1,)", "(2, 8, 8, 3)", "(0,)", "(True,)", "{}"]
    )
    kind = chance.choice(["'|u1'", "'<i8'", "'|O'", "'<f8'", "'|V8'", "'<M8[ns]'", "'|S100'", "[('a', '|O')]", "0"])
    header = f"{{'descr': {kind}, 'fortran_order': {chance.choice(['False', 'True', '0'])}, 'shape': {shape}, }}"
    if chance.random() < 0.1:
        header = chance.choice(["(" * 3000, "__import__('os')", "{}", "[]", "{'descr': 1}", header + " " * 70_000])
    text = header.encode() + b"\n"
    rest = chance.choice([data[128:], b"", pickle.dumps(Harm(Path("/nowhere/harm")))])
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(text), 65_535)) + text + rest


class Harm:
    """What runs when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def strange(path: Path, data: bytes, chance: random.Random) -> bytes:
    own: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": lambda data, chance: json.dumps(strange_json(json.loads(data), chance)).encode(),
        ".jsonl": lambda data, chance: b"\n".join(
            json.dumps(strange_json(json.loads(line), chance)).encode() for line in data.splitlines()
        ),
        ".safetensors": strange_tensors,
        ".npy": strange_array,
    }
    if chance.random() < 0.5 or path.suffix not in own:
        return strange_bytes(data, chance)
    return own[path.suffix](data, chance)


class Target(NamedTuple):
    """A file that is read, and what reads it."""

    path: Path
    read: Callable[[], Any]


def read_dataset(folder: Path, verify: bool) -> None:
    dataset = Dataset.open(folder, verify)
    starts = dataset.windows(2)[:3]
    dataset.clips(starts, 2)
    dataset.clip_actions(starts, 2)
    for i in range(len(dataset.episodes)):
        dataset.episode_frames(i).sum(), dataset.episode_actions(i)


def read_world(folder: Path) -> None:
    world = World.load(folder, "cpu")
    if world.frame_shape == (64, 64, 3) and world.config.context_frames < 100:
        world.reset(np.zeros((1, 1, *world.frame_shape), np.uint8))
        world.step([0])


def doctor(folder: Path) -> None:
    """As `minigenie doctor` and `minigenie info`."""
    diagnose(read_run(folder))
    report = read_report(folder)
    with as_damage(folder / "report.json"):
        summary(report)


@pytest.fixture(scope="module")
def targets(trained, toy, tmp_path_factory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    data = make(folder / "data").folder
    world = folder / "world"
    shutil.copytree(trained, world, ignore=shutil.ignore_patterns("samples"))
    (world / "report.json").write_text(json.dumps(REPORT))
    (world / "large.png").write_bytes(picture(size=(300, 200), mode="RGBA"))
    (world / "start.jpg").write_bytes(picture("JPEG"))
    (world / "start.webp").write_bytes(picture("WEBP"))
    (world / "start.gif").write_bytes(picture("GIF", mode="P"))
    rows = [Row(f"{i}.mp4", "ok", 1, 20, "") for i in range(3)]
    (folder / "videos.jsonl").write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    loaded = World.load(world, "cpu")
    checkpoints = Checkpoints(world / "checkpoints" / "lam", keep=1)
    for old in checkpoints.paths()[:-1]:
        old.unlink()

    def resume() -> None:
        model = loaded.config.make_lam()
        latest = checkpoints.load()
        latest.restore_model(model)
        latest.restore_optimizers([torch.optim.AdamW(model.parameters())])

    sidecars = {
        "episodes of a video": folder / "clip.episodes.csv",
        "actions of a video, csv": folder / "walk.actions.csv",
        "actions of a video, npy": folder / "climb.actions.npy",
    }
    sidecars["episodes of a video"].write_text("first,end\n0,40\n45,80\n100,110\n120,200\n")
    sidecars["actions of a video, csv"].write_text("action\n" + "".join(f"{i % 15}\n" for i in range(200)))
    np.save(sidecars["actions of a video, npy"], np.arange(200, dtype=np.int16))

    def tokens() -> None:
        encode_tokens(toy, loaded.tokenizer, 8, world / "encoded" / "tokens.npy")

    def actions() -> None:
        encode_actions(toy, loaded.lam, np.zeros((toy.num_frames, 0)), 8, world / "encoded" / "actions.npy")

    shapes = (64, 64, 3)
    pictures = {
        name: Target(world / name, lambda name=name: read_prompt(world / name, shapes))
        for name in ("large.png", "start.jpg", "start.webp", "start.gif")
    }
    uploads = {
        f"upload of {name}": Target(
            world / name, lambda name=name: fit_picture((world / name).read_bytes(), shapes, name)
        )
        for name in pictures
    }
    return {
        "manifest.json": Target(data / "manifest.json", lambda: read_dataset(data, True)),
        "shard": Target(data / "shard-00000.npy", lambda: read_dataset(data, False)),
        "actions of a shard": Target(data / "actions-00000.npy", lambda: read_dataset(data, False)),
        "config.json": Target(world / "config.json", lambda: read_world(world)),
        "tokenizer.safetensors": Target(world / "tokenizer.safetensors", lambda: read_world(world)),
        "lam.safetensors": Target(world / "lam.safetensors", lambda: read_world(world)),
        "dynamics.safetensors": Target(world / "dynamics.safetensors", lambda: read_world(world)),
        "checkpoint": Target(checkpoints.paths()[-1], resume),
        "metrics.jsonl": Target(world / "metrics.jsonl", lambda: doctor(world)),
        "report.json": Target(world / "report.json", lambda: doctor(world)),
        "config.json, doctor": Target(world / "config.json", lambda: doctor(world)),
        "actions.json": Target(world / "actions.json", lambda: load_actions(world, 8)),
        "videos.jsonl": Target(folder / "videos.jsonl", lambda: read_log(folder / "videos.jsonl")),
        "tokens.npy": Target(world / "encoded" / "tokens.npy", tokens),
        "actions.npy": Target(world / "encoded" / "actions.npy", actions),
        **{
            name: Target(path, lambda path=path: read_sidecars(path.with_suffix("").with_suffix(".mp4")).check(200))
            for name, path in sidecars.items()
        },
        **pictures,
        **uploads,
    }


PICTURES = ["large.png", "start.jpg", "start.webp", "start.gif"]
NAMES = [
    "manifest.json", "shard", "actions of a shard", "config.json", "tokenizer.safetensors", "lam.safetensors",
    "dynamics.safetensors", "checkpoint", "metrics.jsonl", "report.json", "config.json, doctor", "actions.json",
    "videos.jsonl", "tokens.npy", "actions.npy", "episodes of a video", "actions of a video, csv",
    "actions of a video, npy", *PICTURES, *(f"upload of {name}" for name in PICTURES),
]  # fmt: skip
TRIED: dict[str, Counter] = {}


@pytest.fixture
def little_memory():
    """A gigabyte more than there is now, and no more."""
    before, now = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (now * resource.getpagesize() + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(name: str, target: Target, cases: int, derandomize: bool) -> None:
    good, tried = target.path.read_bytes(), TRIED.setdefault(name, Counter())

    @settings(
        max_examples=cases, derandomize=derandomize, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def case(chance: random.Random) -> None:
        data = strange(target.path, good, chance)
        target.path.write_bytes(data)
        names, began = sorted(target.path.parent.iterdir()), time.monotonic()
        said = ""
        try:
            target.read()
        except (ValueError, OSError) as error:
            said = str(error)
        tried["refused" if said else "read"] += 1
        assert not said or target.path.name in said or str(target.path.parent) in said, f"{said} does not name the file"
        assert "\n" not in said
        assert target.path.read_bytes() == data or name == "videos.jsonl"  # which drops a line that is cut short
        assert sorted(target.path.parent.iterdir()) == names
        assert time.monotonic() - began < SECONDS

    try:
        target.read()  # as it is
        case()
    finally:
        target.path.write_bytes(good)
    print(f"{name}: {tried.total():,} cases, {tried['read']:,} read, {tried['refused']:,} refused")


@pytest.mark.parametrize("name", NAMES)
def test_a_strange_file_is_read_or_refused_in_one_line(targets, little_memory, name):
    fuzz(name, targets[name], 30, derandomize=True)


@pytest.mark.heavy
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_strange_files(targets, little_memory, name):
    fuzz(name, targets[name], CASES, derandomize=False)


def test_a_malicious_pickle_under_any_name_does_nothing(targets, tmp_path):
    harm = Harm(tmp_path / "harm")
    objects = np.empty(1, object)
    objects[0] = harm
    np.save(array := io.BytesIO(), objects, allow_pickle=True)
    torch.save({"codebook": harm}, zipped := io.BytesIO())
    pickle.loads(pickle.dumps(harm))
    (tmp_path / "harm").unlink()  # so it does work
    for target in targets.values():
        good = target.path.read_bytes()
        for data in (pickle.dumps(harm), array.getvalue(), zipped.getvalue()):
            target.path.write_bytes(data)
            with pytest.raises((ValueError, OSError), match=r"\."):
                target.read()
        target.path.write_bytes(good)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_a_picture_that_unpacks_to_more_than_memory_is_not_unpacked(little_memory, kind):
    if kind == "PNG":
        data = bomb(100_000)
    else:
        data = bytearray(picture(kind, size=(40, 40), mode="P" if kind == "GIF" else "RGB"))
        at, size = {"WEBP": (26, b"\xff\x3f\xff\x3f"), "GIF": (6, b"\xff" * 4), "BMP": (18, b"\xff\xff\xff\x0f" * 2)}[
            kind
        ]
        data[at : at + len(size)] = size
    with pytest.raises(ValueError, match="this (has more than|cannot be read)"):
        fit_picture(bytes(data), (64, 64, 3))


KINDS = ["held", "step", "ack", "reset", "pause", "undo", "sampling", "record", "watch", "hello", "", None, 3, ["held"]]
FIELDS = ["action", "serial", "start", "seed", "on", "steps", "temperature", "clip", "type", "x"]


def strange_message(chance: random.Random) -> bytes | str:
    if chance.random() < 0.2:
        return strange_bytes(b'{"type": "reset", "start": 1}', chance)
    said = {"type": chance.choice(KINDS)}
    for field in chance.sample(FIELDS, chance.randrange(4)):
        said[field] = chance.choice([0, 1, 2, True, 0.5, *STRANGE])
    text = json.dumps(said)
    return text if chance.random() < 0.8 else strange_bytes(text.encode(), chance)


def message_fuzz(folder: Path, cases: int) -> None:
    tried, chance = Counter(), random.Random(cases)
    for client in started(folder, max_players=2):
        honest, other = Browser(client), Browser(client)
        for case in range(cases):
            message = strange_message(chance)
            other.socket.send_text(message) if isinstance(message, str) else other.socket.send_bytes(message)
            tried[type(message).__name__] += 1
            if case % 10 == 9:  # both go on: what was said is answered, frames come
                other.say("reset", start=0, seed=10_000 + case)  # no other answer has this seed: all before it is read
                while other.hear("state")["seed"] != 10_000 + case:
                    pass
                assert honest.frame()
        for browser in (honest, other):
            browser.say("reset", start=0)
            browser.say("pause", on=False)
            browser.frame(number=1)
    print(f"messages: {tried.total():,} cases: {dict(tried)}")


@pytest.fixture
def folder(trained, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints", "encoded", "samples")
    return shutil.copytree(trained, tmp_path / "world", ignore=ignored)


def test_strange_messages_are_answered_and_play_goes_on(folder, caplog):
    message_fuzz(folder, 200)
    assert not caplog.records


@pytest.mark.heavy
@pytest.mark.timeout(0)
def test_thousands_of_strange_messages(folder, caplog):
    message_fuzz(folder, 10 * CASES)
    assert not caplog.records
