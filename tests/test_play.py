"""Live play without a browser: the protocol, bad input, what a player's state is."""

import io
import json
import shutil
import struct
import time
import zlib
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from minigenie.data.controls import entries, procgen_controls
from minigenie.data.toy import ToyWorld
from minigenie.eval.controllability import mean_shift
from minigenie.pictures import fit_picture
from minigenie.play import connection as connection_module
from minigenie.play import session as session_module
from minigenie.play.actions import describe, load_actions, resolve_actions, save_actions
from minigenie.play.player import Clip, Player, View, footage_clip
from minigenie.play.server import MAX_UPLOAD_BYTES, listen, make_app
from minigenie.play.session import NO_ACTION, PICTURE_HEADER, Session, pack_frame
from minigenie.settings import PlaySettings
from minigenie.world import World, read_prompt

HOST = "http://127.0.0.1:8000"
OWN = {"origin": HOST}
SOCKET = "ws://127.0.0.1:8000/play"


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the trained world, to be played and changed."""
    names = ("checkpoints", "encoded", "samples")
    return shutil.copytree(trained, tmp_path / "world", ignore=shutil.ignore_patterns(*names))


@pytest.fixture
def client(folder):
    yield from started(folder)


def started(folder, **options):
    options = {"device": "cpu", "fps": 60, "max_players": 2, **options}
    with (
        TestClient(make_app(Session(folder, PlaySettings(**options))), base_url=HOST, headers=OWN) as client,
        ExitStack() as client.left,
    ):
        yield client


class Browser:
    """What page.html does, without showing it."""

    def __init__(self, client):
        opened = client.left.enter_context(ExitStack())  # a test that fails leaves too
        self.socket, self.leave = opened.enter_context(client.websocket_connect(SOCKET, headers=OWN)), opened.close
        self.hello, self.said, self.frames = self.socket.receive_json(), [], []

    def say(self, kind, **fields):
        self.socket.send_json({"type": kind, **fields})

    def hear(self, kind):
        """The next message of this kind; frames that come before it are acknowledged."""
        while True:
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"])
            if message.get("text"):
                said = json.loads(message["text"])
                if said["type"] == kind:
                    return said
            elif (frame := self.unpack(message["bytes"])) and kind == "frame":
                return frame

    def unpack(self, data):
        what, _, action, serial, number, _, width, height, parts, _ = PICTURE_HEADER.unpack(data[: PICTURE_HEADER.size])
        if what != 0:
            return None
        self.say("ack", serial=serial)
        pixels = np.frombuffer(data[PICTURE_HEADER.size :], np.uint8).reshape(height, width, 4)[..., :3]
        return {"action": None if action == NO_ACTION else action, "number": number, "pixels": pixels, "parts": parts}

    def pause(self):
        self.say("pause", on=True)
        while not self.hear("state")["paused"]:
            pass

    def frame(self, number=None, action=None):
        while True:
            frame = self.hear("frame")
            if number in (None, frame["number"]) and action in (None, frame["action"]):
                return frame


@pytest.fixture
def browser(client):
    return Browser(client)


def test_the_held_action_is_played_and_the_noop_when_nothing_is(browser):
    assert browser.hello["starts"] >= 3
    browser.say("held", action=3)
    assert browser.frame(action=3)["pixels"].shape == (64, 64, 3)
    browser.say("held", action=None)
    assert browser.frame(number=browser.frame()["number"] + 5)["action"] == 0


def known(folder):
    """Its actions as if measured, the no-op being 1."""
    plain = ({"name": f"go {a}", "key": str(a + 1), "motion": [0, 0], "noop": a == 1} for a in range(8))
    save_actions(folder, list(plain))
    return folder


def test_a_key_tapped_between_two_frames_is_played_for_one(folder):
    for client in started(known(folder), fps=4):
        browser = Browser(client)
        assert browser.frame(number=1)["action"] == 1
        browser.say("held", action=3)
        browser.say("held", action=None)
        assert [browser.frame()["action"] for _ in range(2)] == [3, 1]


def test_mashing_keys_runs_the_world_at_twice_its_rate_at_most(folder):
    for client in started(known(folder), fps=6):
        browser = Browser(client)
        browser.frame(number=1)
        began = time.monotonic()
        for i in range(16):
            browser.say("held", action=i % 8)
            browser.frame()
        assert time.monotonic() - began > 14 / (2 * 6)


@pytest.mark.parametrize(("seconds", "expected"), [({1: 3, 8: 1}, 8), ({1: 1.1, 8: 1}, 1), ({1: 1, 8: 3}, 1)])
def test_torch_gets_all_threads_where_they_help(folder, monkeypatch, seconds, expected):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(session_module, "timed", lambda call: (call(), seconds[threads[-1]]))
    session_module.choose_threads(World.load(folder, "cpu"))
    assert threads[-1] == expected


def test_one_frame_is_in_flight(client):
    browser = Browser(client)
    kinds = []
    while "frame" not in kinds:
        message = browser.socket.receive()
        kinds.append("frame" if message.get("bytes", b"\1")[0] == 0 else "other")
    browser.say("sampling", steps=1, temperature=0.0)  # an answer to this must come before any other frame
    while not (message := browser.socket.receive()).get("text") or json.loads(message["text"])["type"] != "state":
        assert message.get("text") or message["bytes"][0] == 1, "a frame was sent before the last was acknowledged"


def test_a_browser_that_acknowledges_nothing_is_dropped(client, monkeypatch):
    monkeypatch.setattr(connection_module, "STALL_SECONDS", 0.2)
    browser = Browser(client)
    while browser.socket.receive()["type"] != "websocket.close":
        pass


@pytest.mark.parametrize(
    "message",
    [
        "no json", "[1]", "{}", "[" * 20_000, '{"type": "__init__"}', '{"type": "held", "action": 99}',
        '{"type": "held", "action": true}', '{"type": "held", "action": -1}', '{"type": "reset", "start": "../x"}',
        '{"type": "reset", "seed": 1e99}', '{"type": "sampling", "steps": 1, "temperature": NaN}',
        '{"type": "sampling", "steps": 0, "temperature": 1}', '{"type": "pause"}', '{"type": "watch", "clip": 0}',
        '{"type": "ack", "serial": 999999}', '{"type": ["held"]}',
    ],
)  # fmt: skip
def test_a_malformed_message_gets_an_error_and_play_goes_on(browser, message):
    browser.socket.send_text(message)
    assert browser.hear("error")["text"]
    assert browser.hear("frame")


def test_binary_messages_are_refused(browser):
    browser.socket.send_bytes(b"\0" * 100)
    assert "JSON" in browser.hear("error")["text"]


def test_a_full_world_says_so_and_a_left_place_is_free_again(client):
    one, _, three = (Browser(client) for _ in range(3))
    assert three.hello["type"] == "full"
    assert "all 2 places are taken" in three.hello["text"]
    three.leave()
    one.leave()
    for _ in range(100):
        again = Browser(client)
        if again.hello["type"] == "hello":
            break
        again.leave()
    assert again.hello["type"] == "hello"


def test_two_players_have_a_world_each(client):
    one, two = Browser(client), Browser(client)
    one.say("reset", start=1, seed=1)
    two.say("reset", start=2, seed=2)
    ours, theirs = (each.frame(number=0)["pixels"] for each in (one, two))
    while (ours == (first := read(client, 0))).all():  # the frame from before the reset
        ours = one.frame(number=0)["pixels"]
    while (theirs == first).all():
        theirs = two.frame(number=0)["pixels"]
    np.testing.assert_array_equal(ours, read(client, 1))
    np.testing.assert_array_equal(theirs, read(client, 2))
    one.say("sampling", steps=2, temperature=0.0)
    assert one.hear("state")["steps"] == 2
    two.pause()
    two.say("pause", on=False)
    assert two.hear("state")["steps"] == 3


def read(client, number):
    return np.array(Image.open(io.BytesIO(client.get(f"/start/{number}.png").content)))


def test_step_and_undo_go_one_frame_on_and_back(client, browser):
    browser.pause()
    browser.say("reset", start=3)
    seen = [read(client, 3)]
    while not (browser.frame(number=0)["pixels"] == seen[0]).all():
        pass
    for number, action in enumerate((2, 5, 1), 1):
        browser.say("step", action=action)
        seen.append(browser.frame(number=number, action=action)["pixels"])
    for number in (2, 1, 0):
        browser.say("undo")
        np.testing.assert_array_equal(browser.frame(number=number)["pixels"], seen[number])


def test_undo_restores_the_very_state(folder):
    world = World.load(folder, "cpu")
    player = Player(world)
    player.reset(read_prompt(folder / "prompts/00.png", world.frame_shape)[0, 0].numpy(), seed=3)
    past = [player.view]
    for action in (1, 2, 3, 4, 5, 6, 7, 0, 1, 2):  # past what the world remembers
        player.step(action)
        past.append(player.view)
    for view in past[-2:3:-1]:
        assert player.undo()
        assert player.view is view
    for view in past[5:]:
        player.step(view.action)
        np.testing.assert_array_equal(player.view.frame, view.frame)
    assert player.view.number == len(past) - 1


def test_the_past_and_the_recording_are_bounded(folder, monkeypatch):
    monkeypatch.setattr("minigenie.play.player.PAST_BYTES", 500_000)
    monkeypatch.setattr("minigenie.play.player.RECORD_FRAMES", 5)
    world = World.load(folder, "cpu")
    player = Player(world)
    player.reset(np.zeros((64, 64, 3), np.uint8), seed=0)
    player.record(True)
    for _ in range(12):
        player.step(0)
    assert 1 <= len(player.past) < 12
    assert sum(before.size for _, before in player.past) <= 500_000
    assert len(player.recorded) == 5
    assert not player.recording
    while player.undo():
        pass
    assert player.view.number > 0


def test_players_share_weights_and_nothing_else(folder):
    world = World.load(folder, "cpu")
    one, two = Player(world), Player(world)
    assert one.world.dynamics is two.world.dynamics
    one.sample(1, 0.0)
    assert two.world.config.sampling.steps == world.config.sampling.steps == 3


def test_recording_is_downloaded_as_mp4_and_gif(client, browser):
    assert client.get(f"/recording.mp4?player={browser.hello['player']}").status_code == 404
    browser.say("record", on=True)
    number = browser.frame()["number"]
    browser.frame(number=number + 5)
    browser.say("record", on=False)
    while browser.hear("state")["recording"]:
        pass
    player = {"player": browser.hello["player"]}
    assert client.get("/recording.mp4", params=player).content[4:8] == b"ftyp"
    gif = Image.open(io.BytesIO(client.get("/recording.gif", params=player).content))
    assert gif.n_frames >= 2
    assert client.get("/recording.exe", params=player).status_code == 404
    assert client.get("/recording.gif?player=guess").status_code == 404


def picture(kind="PNG", size=(90, 50), mode="RGB") -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(out, kind)
    return out.getvalue()


def bomb(side=50_000) -> bytes:
    """A PNG of a few kB that says it is `side` pixels square."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "L"), ("JPEG", "RGB"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_an_uploaded_picture_is_played_from(client, browser, kind, mode):
    browser.pause()
    data = picture(kind, mode=mode)
    answer = client.post("/start", params={"player": browser.hello["player"]}, content=data)
    assert answer.status_code == 200, answer.json()
    expected = fit_picture(data, (64, 64, 3))
    while not (browser.frame()["pixels"] == expected).all():
        pass


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read as a picture"),
        (b"GIF89a nonsense", "cannot be read as a picture"),
        (picture()[:200], "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read as a picture"),
        (bomb(50_000), "pixels; scale it down"),
        (bomb(8_000), "pixels; scale it down"),
        (bytes(MAX_UPLOAD_BYTES + 1), "too large"),
    ],
    ids=["empty", "junk", "truncated", "postscript", "bomb", "small bomb", "huge"],
)
def test_what_is_no_picture_is_refused_and_play_goes_on(client, browser, data, says):
    answer = client.post("/start", params={"player": browser.hello["player"]}, content=data)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert browser.hear("frame")


def test_a_picture_is_for_a_player(client):
    assert client.post("/start?player=nobody", content=picture()).status_code == 404


@pytest.mark.parametrize("headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"origin": HOST + "1"}, {}])
def test_another_origin_is_refused(client, headers):
    client.headers.pop("origin")
    assert client.post("/actions", content="[]", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=headers):
        pass


def test_a_name_that_somebody_points_here_is_refused(client):
    headers = {"host": "evil.example", "origin": "http://evil.example"}
    assert client.get("/", headers=headers).status_code == 403
    assert client.get("/", headers={"host": "localhost:8000", "origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.parametrize("path", ["/../config.json", "/start/../config.json", "/start/99.png", "/start/-1.png", "/x"])
def test_only_what_there_is_can_be_fetched(client, path):
    assert client.get(path).status_code == 404


def test_the_page_needs_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "//cdn" not in answer.text
    assert 'src="http' not in answer.text


def test_actions_are_measured_once_and_edits_are_kept(folder):
    old = json.loads((folder / "actions.json").read_text())
    old[2] |= {"name": "hop", "note": "mine"}
    save_actions(folder, old)
    for client in started(folder):
        while not client.get("/actions").json()["measured"]:
            time.sleep(0.1)
        actions = client.get("/actions").json()["actions"]
        assert sum(entry["noop"] for entry in actions) == 1
        assert actions[2]["name"] == "hop"
        edited = [{"name": f"go {a}", "key": "x" if a == 1 else "", "noop": a == 4} for a in range(8)]
        assert client.post("/actions", json=edited).json()["noop"] == 4
        assert client.post("/actions", json=edited[:3]).status_code == 400
        assert client.post("/actions", json=[{**each, "noop": True} for each in edited]).status_code == 400
        assert client.post("/actions", content="[" * 30_000).status_code == 400
    kept = json.loads((folder / "actions.json").read_text())
    assert [entry["name"] for entry in kept] == [f"go {a}" for a in range(8)]
    assert kept[2]["note"] == "mine"
    assert all(len(entry["motion"]) == 2 for entry in kept)
    assert load_actions(folder, 8) == kept


def test_a_damaged_actions_file_is_never_overwritten(folder):
    (folder / "actions.json").write_text('[{"name": 3}]')
    with pytest.raises(ValueError, match="actions.json is damaged"):
        Session(folder, PlaySettings(device="cpu", max_players=1))
    assert (folder / "actions.json").read_text() == '[{"name": 3}]'


def test_motion_is_how_far_the_picture_moves():
    ground = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    frames = np.stack([ground[10 + i : 74 + i, 30 - 3 * i : 94 - 3 * i] for i in range(6)])
    np.testing.assert_allclose(mean_shift(frames), [-1, 3], atol=0.05)
    np.testing.assert_array_equal(mean_shift(np.stack([frames[0]] * 3)), [0, 0])


def test_actions_are_named_and_keyed_after_their_motion():
    plain = [{"name": f"action {a}", "key": str(a + 1)} for a in range(6)]
    plain[5]["name"] = "mine"
    motions = np.array([[0, 0.1], [0, -2], [0, 2], [1.5, 0], [0, -1.0], [1, -1]])
    got = describe(plain, motions, np.array([1.0, 5, 5, 5, 3, 3]), 64)
    assert [entry["name"] for entry in got] == ["stay", "right", "left", "up", "right 2", "mine"]
    assert [entry["key"] for entry in got] == ["1", "ArrowRight", "ArrowLeft", "ArrowUp", "5", "6"]
    assert [entry["noop"] for entry in got] == [True] + [False] * 5


def test_actions_that_were_named_stay_as_they_are_whatever_is_measured():
    named = [*entries(procgen_controls("coinrun").names), {"name": "fire-2", "key": "7", "noop": False}]
    motions = np.array([[0, 3.0], [0, -2], [0, 2], [1.5, 0], [0, -1.0], [1, -1], [0, -3]])
    got = describe(named, motions, np.full(7, 5.0), 64)
    assert [{key: entry[key] for key in ("name", "key", "noop")} for entry in got] == named
    assert got[0]["motion"] == [0, 3]
    assert sum(entry["noop"] for entry in got) == 1


def test_every_control_has_a_key_that_keyboards_have(tmp_path):
    """Zero is the tenth; of more than ten the last are played by their tiles."""
    keys = [entry["key"] for entry in entries(procgen_controls("ninja").names)]
    assert keys[-4:] == ["f", "8", "9", "0"]
    keys = [entry["key"] for entry in load_actions(tmp_path, 12)]
    assert keys == [*"1234567890", "", ""]


def test_actions_are_told_by_name_or_number_and_how_often():
    actions = entries(procgen_controls("coinrun").names)
    assert [entry["name"] for entry in actions] == ["noop", "left", "right", "jump", "jump-left", "jump-right"]
    assert resolve_actions("right, 2 ,jump-right,Jump Left*2,noop,left*3,", actions) == [2, 2, 5, 4, 4, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="no action 'up'; use 0 to 5, or a name: noop, left, right, jump, jump-left"):
        resolve_actions("up", actions)
    for text in ("-1", "6", "right*0", "right*-1", "right*x", "right*1000000000"):
        with pytest.raises(ValueError, match="there is no action|how often"):
            resolve_actions(text, actions)


def test_the_toy_world_s_actions_are_named_and_keyed_as_what_they_are():
    """As if a world had learned it perfectly: its six actions, each held for six frames from four starts."""
    run, wait = np.random.default_rng(2).choice([0, 2, 2, 5, 3, 1], (40, 4)), np.zeros((12, 4), int)
    motions, changes = [], []
    for action in range(6):
        games = ToyWorld(4, seed=2)
        for before in (*run, *wait):
            games.step(before)
        seen = [games.frames()]
        for _ in range(6):
            games.step(np.full(4, action))
            seen.append(games.frames())
        held = np.stack(seen, axis=1)
        motions.append(np.mean([mean_shift(frames) for frames in held], axis=0))
        changes.append(np.abs(np.diff(held.astype(int), axis=1)).mean())
    plain = [{"name": f"action {a}", "key": str(a + 1)} for a in range(6)]
    got = describe(plain, np.array(motions), np.array(changes), 64)
    assert [entry["name"] for entry in got] == ["stay", "left", "right", "up", "up left", "up right"]
    arrows = ["1", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowUp+ArrowLeft", "ArrowUp+ArrowRight"]
    assert [entry["key"] for entry in got] == arrows


def test_footage_is_imagined_again_beside_the_truth(folder, toy):
    for client in started(folder, footage=toy.folder):
        browser = Browser(client)
        browser.say("watch", clip=1)
        while (frame := browser.frame())["parts"] == 1:
            pass
        assert frame["pixels"].shape == (128, 64, 3)
        clip = footage_clip(World.load(folder, "cpu"), toy, 1)
        frame = browser.frame(number=3)
        assert frame["action"] == clip.actions[2]
        np.testing.assert_array_equal(frame["pixels"][64:], clip.frames[3])
        browser.say("watch", clip=None)
        while browser.frame()["parts"] == 2:
            pass


def test_a_clip_begins_again_at_its_end(folder):
    world = World.load(folder, "cpu")
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    player = Player(world)
    player.reset(frames[0], 0, Clip(frames, [4, 5]))
    numbers = []
    for _ in range(5):
        player.step(0)
        numbers.append((player.view.number, player.view.action))
    assert numbers == [(1, 4), (2, 5), (0, None), (1, 4), (2, 5)]


def test_a_world_without_prompts_plays_from_an_upload(folder):
    shutil.rmtree(folder / "prompts")
    for client in started(folder):
        browser = Browser(client)
        assert browser.hear("state")["playing"] is False
        for message in ("step", "undo", "reset"):
            browser.say(message)
            assert "no picture" in browser.hear("error")["text"]
        assert client.post("/start", params={"player": browser.hello["player"]}, content=picture()).status_code == 200
        assert browser.frame(number=2)


def test_large_frames_travel_as_jpeg():
    frame = fit_picture(picture(size=(128, 128)), (128, 128, 3))
    data = pack_frame(View(frame, 2, 7), 1, 2.5)
    assert PICTURE_HEADER.unpack(data[: PICTURE_HEADER.size])[:5] == (0, 1, 2, 1, 7)
    assert Image.open(io.BytesIO(data[PICTURE_HEADER.size :])).size == (128, 128)


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is in use; choose another with --port"):
            listen("127.0.0.1", port)
    with pytest.raises(ValueError, match="choose 0"):
        listen("127.0.0.1", 70_000)
    with pytest.raises(ValueError, match="no address of this machine"):
        listen("no such host.invalid", 0)


@pytest.mark.parametrize(("option", "says"), [({"max_players": 0}, "max_players"), ({"fps": 1e9}, "fps is")])
def test_options_out_of_range_are_named(folder, option, says):
    options = {"device": "cpu", "max_players": 1, **option}
    with pytest.raises(ValueError, match=says):
        Session(folder, PlaySettings(**options))
