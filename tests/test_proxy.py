"""Play behind a proxy that has a name and a path of its own, and on machines without a display."""

import asyncio
import http.client
import re
import sys
import threading
import webbrowser

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_browser import arrived, frames_on
from websockets.asyncio.client import connect

from minigenie.play import server as servers
from minigenie.play import session as sessions
from minigenie.play.server import can_show_pages, listen, make_app, make_server
from minigenie.play.session import Session
from minigenie.settings import PlaySettings, ServerSettings

HUB = {"host": "hub.example.org", "origin": "https://hub.example.org"}


@pytest.fixture(scope="module")
def session(trained):
    return Session(trained, PlaySettings(device="cpu", fps=20))


def client_of(session, allow=()):
    return TestClient(make_app(session, allow=allow), base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "headers",
    [
        HUB,
        {"host": "127.0.0.1:8000", "origin": "https://hub.example.org"},  # a proxy that changes the host
        {"host": "hub.example.org:8443", "origin": "https://hub.example.org:8443"},
    ],
)
def test_a_proxy_that_was_named_is_let_in(trained, headers):
    session = Session(trained, PlaySettings(device="cpu"))
    with client_of(session) as client:
        answer = client.post("/actions", content="[]", headers=headers)
        assert answer.status_code == 403
        assert "start minigenie with --allow hub.example.org" in answer.json()["error"]
    session = Session(trained, PlaySettings(device="cpu"))
    with client_of(session, ["Hub.Example.org"]) as client:
        assert (
            client.post("/actions", content="[]", headers=headers).status_code == 400
        )  # heard, and no list of actions
        assert client.post("/actions", headers={**headers, "origin": "https://evil.example"}).status_code == 403
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/play", headers={"origin": "https://e.vil"}):
            pass
        with client.websocket_connect("/play", headers=headers) as socket:
            assert socket.receive_json()["type"] == "hello"


def test_who_may_frame_the_page(session):
    policy = client_of(session).get("/").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    policy = client_of(session, ["hub.example.org"]).get("/", headers=HUB).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' http://hub.example.org:* https://hub.example.org:*")


def test_a_name_that_is_none_is_not_said_again(session):
    answer = client_of(session).get("/", headers={"host": "<script>"})
    assert answer.status_code == 403
    assert "script" not in answer.text


def forwarding(port: int, prefix: str) -> Starlette:
    """A reverse proxy as a hub has one: everything under a path goes on without it."""

    async def forward(request):
        inner = http.client.HTTPConnection("127.0.0.1", port)
        path = request.url.path.removeprefix(prefix) + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        body = await request.body()
        await asyncio.to_thread(inner.request, request.method, path or "/", body, headers)
        answer = await asyncio.to_thread(inner.getresponse)
        kept = {name: value for name, value in answer.getheaders() if name.lower() != "content-length"}
        content = answer.read()
        inner.close()
        return Response(content, answer.status, kept)

    async def both_ways(socket):
        await socket.accept()
        async with connect(f"ws://127.0.0.1:{port}/play", origin=f"http://127.0.0.1:{port}") as inner:

            async def up():
                while (said := await socket.receive())["type"] == "websocket.receive":
                    await inner.send(said.get("text") or said["bytes"].decode())

            async def down():
                async for said in inner:
                    await (socket.send_text(said) if isinstance(said, str) else socket.send_bytes(said))

            tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    return Starlette(
        routes=[
            WebSocketRoute(f"{prefix}/play", both_ways),
            Route(f"{prefix}/{{rest:path}}", forward, methods=["GET", "POST"]),
        ]
    )


def test_the_page_plays_under_a_path(trained, visit):
    """All its addresses are relative."""
    with listen("127.0.0.1", 0) as inside, listen("127.0.0.1", 0) as outside:
        inner, outer = inside.getsockname()[1], outside.getsockname()[1]
        session = Session(trained, PlaySettings(device="cpu", fps=20))
        running = [
            (make_server(make_app(session)), inside),
            (make_server(forwarding(inner, "/user/me/proxy")), outside),
        ]
        threads = [threading.Thread(target=asyncio.run, args=(each.serve([at]),)) for each, at in running]
        for thread in threads:
            thread.start()
        try:
            page = visit(f"http://127.0.0.1:{outer}/user/me/proxy/")
            arrived(page)
            frames_on(page)
            pictures = (
                "[...document.querySelectorAll('#starts img')].every(image => image.complete && image.naturalWidth)"
            )
            assert page.evaluate(pictures)
            assert page.evaluate("[...document.querySelectorAll('#starts img')].length")
        finally:
            for each, _ in running:
                each.should_exit = True
            for thread in threads:
                thread.join()


def test_addresses_that_work_are_printed(monkeypatch, capsys):
    """Nobody can open 0.0.0.0; and a browser never keeps the server from ending."""
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(servers, "make_server", lambda app: type("Server", (), {"run": lambda self, sockets: app()})())

    def printed(host, **options):
        with listen(host, 0) as listening:
            make = lambda host, token, ready, allow: ready  # noqa: E731
            servers.run(make, listening, "here", ServerSettings(host=host, **options))
            return re.findall(rf"http://(\S+):{listening.getsockname()[1]}/(\S*)", capsys.readouterr().out)

    monkeypatch.setenv("DISPLAY", ":0")
    (loopback, token), *others = printed("0.0.0.0")
    assert loopback == "127.0.0.1"
    assert token.startswith("?token=")
    assert all(name != "0.0.0.0" and its == token for name, its in others)
    assert printed("127.0.0.1", open=False) == [("127.0.0.1", "")]
    while threading.active_count() > 1 and not opened:
        pass
    assert [url.startswith("http://127.0.0.1:") for url in opened] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="others always have a display")
def test_no_browser_is_opened_where_nothing_can_be_seen(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not can_show_pages()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert can_show_pages()


def test_a_compiler_that_fails_does_not_end_play(trained, monkeypatch, capsys):
    def fails(call, **options):
        def compiled(*args):
            raise RuntimeError("cc1plus: internal error\nof many lines")

        return compiled

    monkeypatch.setattr("minigenie.world.compiled", fails)
    monkeypatch.setattr("minigenie.world.can_compile", lambda device: True)
    session = Session(trained, PlaySettings(device="cpu", compiled=True))
    said = capsys.readouterr().err
    assert said == "note: the compiler fails (cc1plus: internal error); playing on without\n"
    sessions.try_step(session.world)


def test_a_world_whose_compiler_works_is_compiled(trained, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("minigenie.world.compiled", lambda call, **options: seen.append(call) or call)
    monkeypatch.setattr("minigenie.world.can_compile", lambda device: True)
    session = Session(trained, PlaySettings(device="cpu", compiled=True))
    assert seen
    assert session.world.frame_shape
    assert "fails" not in capsys.readouterr().err
