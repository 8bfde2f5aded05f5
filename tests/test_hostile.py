"""Players who mean harm, at a real server in a process of its own: the honest ones play on, and nothing grows.

In full, with the counts of docs/reliability.md: pytest -m heavy tests/test_hostile.py -n 0 -s
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_browser import serving as in_this_process
from test_play import HOST, OWN, SOCKET, Browser, started
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from minigenie.play import limits
from minigenie.play import server as server_module
from minigenie.settings import PlaySettings, ServerSettings

SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", 3600))
TEXT, BINARY, CONTINUED, PING = 1, 2, 0, 9
PATHS = (
    "/../config.json", "/%2e%2e/config.json", "/..%2fconfig.json", "/..%5cconfig.json", "//config.json", "/config.json",
    "/start/../../config.json", "/start/%2e%2e%2f%2e%2e%2fconfig.json", "/%252e%252e/config.json", "/./config.json",
    "/%c0%ae%c0%ae/config.json", "/start/0.png/../../config.json", "/start/0%00.png", "/recording.mp4/../config.json",
    "/recording.%2e%2e%2fconfig.json", "/start/99999999999999999999999.png", "/start/-1.png", "file:///etc/passwd",
    "http://127.0.0.1/../config.json", "/actions/..%2f..%2fetc%2fpasswd", "/..;/config.json",
)  # fmt: skip


def request(path: str, method: str = "GET", host: str = "127.0.0.1", **headers: str) -> bytes:
    given = {"host": host, "origin": f"http://{host}", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade(**headers: str) -> bytes:
    key = base64.b64encode(bytes(16)).decode()
    asked = {"upgrade": "websocket", "connection": "Upgrade", "sec_websocket_version": "13", "sec_websocket_key": key}
    return request("/play", **{**asked, **headers})


def frame(opcode: int, data: bytes = b"", first: int = 0x80, length: int | None = None) -> bytes:
    """A websocket frame under a mask of zeros. first: FIN and the reserved bits. length: what it says it has."""
    length = len(data) if length is None else length
    size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 127]) + length.to_bytes(8, "big")
    return bytes([first | opcode]) + size + bytes(4) + data


def say(kind: str, **fields) -> bytes:
    return frame(TEXT, json.dumps({"type": kind, **fields}).encode())


class Visit(NamedTuple):
    """What somebody sends first, what then again and again, and the seconds between. Nobody reads the answers, but that
    a websocket is open. PLAYER in it is a player's own token."""

    first: bytes
    again: bytes = b""
    pause: float = 0.0
    opening: bytes = b""


def ws(first: bytes, again: bytes = b"", pause: float = 0.0, **headers: str) -> Visit:
    return Visit(first, again, pause, upgrade(**headers))


def post(path: str, **headers: str) -> bytes:
    return request(path, "POST", **headers)


MESSAGES = [
    say("reset", start=0), say("undo"), say("record", on=True), say("step", action=1), say("held", action=2),
    say("sampling", steps=64, temperature=2.0), say("pause", on=False), say("nothing"), frame(BINARY, bytes(100)),
]  # fmt: skip
UPLOAD = "/start?player=PLAYER"
Image.new("RGB", (5600, 5600)).save(large := io.BytesIO(), "PNG")  # 90 kB that unpack to as much as is taken
LARGE = post(UPLOAD, content_length=str(len(large.getvalue()))) + large.getvalue()
BOMB = zlib.compress(bytes(1 << 26), wbits=-12)
VISITS = {
    "says nothing": Visit(b"", b"", 1),
    "slow header": Visit(b"GET / HTTP/1.1\r\n", b"X: y\r\n", 0.2),
    "endless header": Visit(b"GET / HTTP/1.1\r\nX: ", b"y" * 65_536),
    "no HTTP": Visit(bytes(range(256)) * 16, bytes(1000), 0.1),
    "half a handshake": Visit(upgrade()[:90], b"", 1),
    "wrong origin": ws(b"", say("undo"), 0.1, origin="http://evil.example"),
    "wrong host": ws(b"", say("undo"), 0.1, host="evil.example"),
    "wrong token": Visit(b"".join(request(f"/recording.mp4?player={guess}") for guess in ("", "x", "%00", "x" * 900))),
    "path traversal": Visit(b"".join(request(path) for path in PATHS)),
    "requests without end": Visit(b"", request("/") * 50),
    "pictures without end": Visit(b"", request("/start/0.png") * 50),
    "never reads, never acknowledges": ws(b"", b"", 1),
    "paused and gone": ws(say("pause", on=True), b"", 1),
    "pings": ws(b"", frame(PING, b"x" * 125) * 500),
    "empty pings": ws(b"", frame(PING) * 10_000),
    "empty fragments": ws(frame(TEXT, first=0), frame(CONTINUED, first=0) * 10_000),
    "fragments": ws(frame(TEXT, first=0), frame(CONTINUED, b"x" * 999, first=0)),
    "giant frame": ws(frame(BINARY, length=(1 << 63) - 1), bytes(65_536)),
    "compressed bomb": ws(frame(TEXT, BOMB, 0xC0), say("undo"), 0.1, sec_websocket_extensions="permessage-deflate"),
    "junk": ws(b"", random.Random(0).randbytes(65_536)),
    "all messages": ws(b"", b"".join(MESSAGES) * 20),
    "resets": ws(b"", say("reset", start=1) * 100),
    "no JSON": ws(b"", frame(TEXT, b"[" * 60_000)),
    "no text": ws(frame(TEXT, b"\xff\xfe"), b"", 0.1),
    "endless upload": Visit(post(UPLOAD, transfer_encoding="chunked"), b"10000\r\n" + bytes(65_536) + b"\r\n"),
    "huge upload": Visit(post(UPLOAD, content_length=str(10**15)), bytes(65_536)),
    "slow upload": Visit(post(UPLOAD, content_length="100000"), b"x", 0.2),
    "half an upload": Visit(post(UPLOAD, content_length="100000") + bytes(5000)),
    "large pictures": Visit(b"", LARGE),
    "edits": Visit(b"", post("/actions", content_length="60000") + b"[" * 60_000),
}  # fmt: skip


class Use(NamedTuple):
    """What a process holds."""

    megabytes: float
    threads: int
    files: int


def use(pid: int) -> Use:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Use(round(resident, 1), *(len(os.listdir(f"/proc/{pid}/{what}")) for what in ("task", "fd")))


class Server(NamedTuple):
    url: str
    pid: int

    @property
    def origin(self) -> str:
        return self.url[:-1]

    @property
    def socket(self) -> str:
        return self.url.replace("http", "ws") + "play"

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.split("/")[2].partition(":")
        return host, int(port)


@contextlib.contextmanager
def serving(trained: Path, folder: Path, *options: str):
    """`minigenie play` as a person starts it. At the end it must be there still, and have printed no traceback."""
    shutil.copytree(trained, folder / "world", ignore=shutil.ignore_patterns("checkpoints", "encoded", "samples"))
    command = [sys.executable, "-m", "minigenie", "play", str(folder / "world"), "--no-open", "--port", "0", *options]
    with (
        open(folder / "log", "w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield Server(process.stdout.readline().partition(" is at ")[2].split()[0], process.pid)
            assert process.poll() is None, f"the server ended with {process.returncode}"
        finally:
            process.terminate()
        said = (folder / "log").read_text()
        assert "Traceback" not in said, said[said.index("Traceback") :][:3000]


async def honest(server: Server, until: asyncio.Event, arrivals: list[float], moods: Iterable[list[dict]] = ()) -> None:
    """Plays, and notes when frames came. moods: what it says besides, one every few frames."""
    moods = iter(moods)
    async with connect(server.socket, origin=server.origin) as player:
        while not until.is_set():
            message = await asyncio.wait_for(player.recv(), 60)
            if isinstance(message, bytes) and message[0] == 0:
                arrivals.append(time.monotonic())
                await player.send(json.dumps({"type": "ack", "serial": int.from_bytes(message[4:8], "little")}))
                held = [{"type": "held", "action": len(arrivals) // 8 % 8}]
                for said in next(moods, held) if len(arrivals) % 50 == 0 else held:
                    await player.send(json.dumps(said))


async def visitor(server: Server, until: asyncio.Event, waits: list[float]) -> None:
    """Loads the page now and then, and notes how long it took."""
    while not until.is_set():
        began = time.monotonic()
        await asyncio.to_thread(lambda: urllib.request.urlopen(server.url, timeout=60).read())
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.3)


async def harm(server: Server, name: str, seconds: float) -> None:
    """One visit, which ends without a word."""
    visit, loop = VISITS[name], asyncio.get_running_loop()
    with socket.socket() as link, contextlib.suppress(OSError, TimeoutError, WebSocketException):
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.setblocking(False)
        async with asyncio.timeout(seconds), contextlib.AsyncExitStack() as left:
            me = b"nobody"
            if b"PLAYER" in visit.first + visit.again:
                player = await left.enter_async_context(connect(server.socket, origin=server.origin))
                me = json.loads(await player.recv()).get("player", "nobody").encode()
            await loop.sock_connect(link, server.address)
            if visit.opening:
                await loop.sock_sendall(link, visit.opening)
                await loop.sock_recv(link, 100)
            await loop.sock_sendall(link, visit.first.replace(b"PLAYER", me))
            again = visit.again.replace(b"PLAYER", me)
            while True:
                await loop.sock_sendall(link, again)
                await asyncio.sleep(visit.pause if again else 3600)


async def attack(server: Server, seconds: float, clients: int, stay: float) -> Counter:
    """`clients` at once, each of one kind after the other, each visit up to `stay` seconds. How many of each kind."""
    visits, ends = Counter(), time.monotonic() + seconds

    async def client(number: int) -> None:
        chance, names = random.Random(number), [*VISITS]
        name = names[number % len(names)]
        while (left := ends - time.monotonic()) > 0:
            visits[name] += 1
            await harm(server, name, min(left, chance.uniform(0, stay)))
            name = chance.choice(names)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return visits


def attack_in_a_process(*arguments) -> Counter:
    return asyncio.run(attack(*arguments))


async def storm(server: Server, seconds: float, clients: int, stay: float) -> "Storm":
    until, arrivals, waits, held = asyncio.Event(), ([], []), [], []
    good = [asyncio.create_task(honest(server, until, each)) for each in arrivals]
    good.append(asyncio.create_task(visitor(server, until, waits)))
    while not all(arrivals):
        await asyncio.sleep(0.1)
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:  # or this process is what the floods slow down
        arguments = (attack_in_a_process, server, seconds, clients, stay)
        bad = asyncio.get_running_loop().run_in_executor(elsewhere, *arguments)
        while not bad.done():
            held.append(use(server.pid))
            await asyncio.sleep(0.5)
    seen = [len(each) for each in arrivals]
    while any(len(each) < before + 5 for each, before in zip(arrivals, seen, strict=True)):
        await asyncio.sleep(0.1)
    until.set()
    await asyncio.gather(*good)
    gaps = [later - earlier for each in arrivals for earlier, later in pairwise(each)]
    return Storm(await bad, gaps, waits, held)


class Storm(NamedTuple):
    """Visits of each kind; seconds between honest players' frames; seconds that the page took; what the server held."""

    visits: Counter
    gaps: list[float]
    waits: list[float]
    held: list[Use]


def withstand(server: Server, seconds: float, clients: int, stay: float) -> None:
    asyncio.run(storm(server, 3, len(VISITS), 3))  # one of each: the allocator has settled, threads are there
    before = use(server.pid)
    visits, gaps, waits, held = asyncio.run(storm(server, seconds, clients, stay))
    ends = time.monotonic() + 60
    while (after := use(server.pid)) > Use(before.megabytes + 250, 99, 0) or after.files > before.files:
        assert time.monotonic() < ends, f"the server held {before}, and now {after}"
        time.sleep(0.5)
    peak, kinds = Use(*map(max, zip(*held, strict=True))), f"{len(visits)} kinds: {dict(visits)}"
    print(f"\n{visits.total():,} visits by {clients} clients at once in {seconds:g} s, {kinds}")
    print(f"honest players: {len(gaps):,} frames, {statistics.median(gaps):.3f} s apart, at most {max(gaps):.2f}")
    print(f"the page: {len(waits)} times, {statistics.median(waits):.3f} s, at most {max(waits):.2f}")
    print(f"the server before: {before}, at most: {peak}, after: {after}")
    assert len(visits) == len(VISITS)
    assert max(gaps + waits) < 10
    assert peak.threads <= before.threads + 8
    assert peak.megabytes < before.megabytes + 800


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    with serving(trained, tmp_path_factory.mktemp("hostile"), "--fps", "20", "--max-players", "6") as server:
        yield server


def test_honest_players_play_on_beside_a_hundred_hostile_ones(server):
    withstand(server, seconds=6, clients=100, stay=3)


@pytest.mark.heavy
@pytest.mark.timeout(0)
def test_honest_players_play_on_for_ten_minutes(server):
    withstand(server, seconds=float(os.environ.get("STORM_SECONDS", 600)), clients=100, stay=30)


@pytest.fixture
def folder(trained, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints", "encoded", "samples")
    return shutil.copytree(trained, tmp_path / "world", ignore=ignored)


@pytest.mark.parametrize("name", ["pings", "empty pings", "empty fragments", "fragments", "giant frame", "junk"])
def test_a_flood_is_cut_before_it_fills_the_memory(server, name):
    before, visit = use(server.pid).megabytes, VISITS[name]
    with socket.create_connection(server.address, timeout=10) as link:
        link.sendall(visit.opening)
        link.recv(100)
        link.sendall(visit.first)
        again = visit.again * (1 + 65_536 // len(visit.again))
        flood = again * 500
        with pytest.raises(OSError):  # noqa: PT011
            link.sendall(flood)
    assert use(server.pid).megabytes < before + 20


def test_who_says_nothing_or_never_ends_is_cut(folder, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NON_PLAYER_SECONDS", 0.5)
    with in_this_process(folder, max_players=1) as url:
        address = Server(url, 0).address
        for visit in (Visit(b""), VISITS["slow header"], VISITS["half a handshake"], VISITS["half an upload"]):
            with socket.create_connection(address, timeout=20) as link:
                link.sendall(visit.first)
                while link.recv(1000):
                    pass


def test_of_too_many_connections_the_oldest_are_cut(folder, monkeypatch):
    monkeypatch.setattr(limits, "MAX_NON_PLAYERS", 3)
    with in_this_process(folder) as url, contextlib.ExitStack() as opened:
        links = []
        for _ in range(6):
            links.append(opened.enter_context(socket.create_connection(Server(url, 0).address, timeout=20)))
            time.sleep(0.25)
        assert [link.recv(1) for link in links[:3]] == [b""] * 3
        assert urllib.request.urlopen(url).status == 200


def test_pictures_are_unpacked_one_at_a_time(folder, monkeypatch):
    now = [0, 0]  # at once, at most

    def slowly(data, shape):
        now[0], now[1] = now[0] + 1, max(now[1], now[0] + 1)
        time.sleep(0.3)
        now[0] -= 1
        return np.zeros(shape, np.uint8)

    monkeypatch.setattr("minigenie.play.connection.fit_picture", slowly)
    for client in started(folder, max_players=3):
        players = [Browser(client).hello["player"] for _ in range(3)]
        with ThreadPoolExecutor() as pool:
            post = partial(client.post, "/start", content=b"x")
            answers = pool.map(lambda player, post=post: post(params={"player": player}), players * 2)
            assert {answer.status_code for answer in answers} == {200}
    assert now == [0, 1]


@pytest.mark.parametrize(("host", "open_to_all"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_beyond_this_machine_a_token_is_needed(folder, monkeypatch, capsys, host, open_to_all):
    made = []
    monkeypatch.setattr(server_module, "make_server", lambda app: SimpleNamespace(run=lambda sockets: made.append(app)))
    server_module.serve(folder, PlaySettings(device="cpu"), ServerSettings(host=host, port=0, open=False))
    with TestClient(made[0], base_url=HOST, headers=OWN) as client:
        token = parse_qs(urlsplit(capsys.readouterr().out.split()[3]).query).get("token", [""])[0]
        assert bool(token) != open_to_all
        for guess in ("", "?token=", "?token=x", "?token=%ff", f"?token={token[:-1]}"):
            for path in ("/", "/start/0.png", "/actions"):
                assert (client.get(path + guess).status_code == 200) == open_to_all
        if not open_to_all:
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(SOCKET, headers=OWN):
                pass
            assert "open the whole address" in client.get("/").json()["error"]
            assert client.get(f"/?token={token}").status_code == 200  # from here on a cookie says it
        assert client.get("/start/0.png").status_code == 200
        with client.websocket_connect(SOCKET, headers=OWN) as player:
            assert player.receive_json()["type"] == "hello"


def lively(chance: random.Random) -> Iterator[list[dict]]:
    """What a player does besides, without end."""
    while True:
        yield [{"type": "reset", "start": chance.randrange(3), "seed": chance.randrange(99)}]
        yield [{"type": "record", "on": chance.random() < 0.5}]
        yield [{"type": "sampling", "steps": chance.randint(1, 8), "temperature": chance.random()}]
        yield [{"type": "undo"}, {"type": "pause", "on": False}]


async def soak(server: Server, seconds: float, every: float) -> tuple[list[Use], int, int]:
    """Two play all the time, two places change hands: what the server held every few seconds, frames, players."""
    until, ends, arrivals, held, came = asyncio.Event(), time.monotonic() + seconds, [[] for _ in range(4)], [], 0

    async def place(number: int) -> None:
        nonlocal came
        chance = random.Random(number)
        while not until.is_set():
            left, came = asyncio.Event(), came + 1
            playing = asyncio.create_task(honest(server, left, arrivals[number], lively(chance)))
            stay = seconds if number < 2 else chance.uniform(1, 20)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), stay)
            left.set()
            await playing

    places = [asyncio.create_task(place(number)) for number in range(4)]
    places.append(asyncio.create_task(visitor(server, until, [])))
    while time.monotonic() < ends and not any(each.done() for each in places):
        held.append(use(server.pid))
        print(f"{time.strftime('%T')} {held[-1]}, {sum(map(len, arrivals))} frames, {came} players", flush=True)
        await asyncio.sleep(every)
    until.set()
    await asyncio.gather(*places)
    return held, sum(map(len, arrivals)), came


@pytest.mark.heavy
@pytest.mark.timeout(0)
def test_an_hour_of_play_does_not_grow(trained, tmp_path):
    with serving(trained, tmp_path, "--fps", "30", "--max-players", "5") as server:
        held, frames, came = asyncio.run(soak(server, SOAK_SECONDS, every=min(10, SOAK_SECONDS / 20)))
    warm = held[len(held) // 5 :]
    quarter = len(warm) // 4
    early, late = (Use(*map(statistics.median, zip(*part, strict=True))) for part in (warm[:quarter], warm[-quarter:]))
    most = Use(*map(max, zip(*held, strict=True)))
    print(f"{frames:,} frames for {came:,} players in {SOAK_SECONDS:g} s; early {early}, late {late}, most {most}")
    assert late.megabytes < early.megabytes + 20
    assert late.threads <= early.threads
    assert late.files <= early.files + 2
