"""Play behind a proxy that has a name and a path of its own, and on machines without a display."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_browser import arrived, frames_on, serving

from minigenie.play import server as servers
from minigenie.play import session as sessions
from minigenie.play.server import can_show_pages, listen, make_app
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
        with client.websocket_connect("/play", headers=headers) as connection:
            assert connection.receive_json()["type"] == "hello"


def test_who_may_frame_the_page(session):
    policy = client_of(session).get("/").headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    policy = client_of(session, ["hub.example.org"]).get("/", headers=HUB).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' http://hub.example.org:* https://hub.example.org:*")


def test_a_name_that_is_none_is_not_said_again(session):
    answer = client_of(session).get("/", headers={"host": "<script>"})
    assert answer.status_code == 403
    assert "script" not in answer.text


NGINX = """
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{outer};
        {location}
    }}
}}
"""


@contextlib.contextmanager
def nginx(folder, inner):
    """Debian's nginx before a port, with the lines of docs/play.md; its own port."""
    if not (program := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")):
        assert not os.environ.get("CI"), "no nginx is installed; apt-get install nginx-light"
        pytest.skip("no nginx is installed")
    with listen("127.0.0.1", 0) as free:
        outer = free.getsockname()[1]
    text = Path(__file__).parents[1].joinpath("docs/play.md").read_text()
    location = (
        re.search(r"```nginx\n(.*?)```", text, re.DOTALL).group(1).replace("127.0.0.1:8000", f"127.0.0.1:{inner}")
    )
    conf = folder / "nginx.conf"
    conf.write_text(("user root;" if os.getuid() == 0 else "") + NGINX.format(outer=outer, location=location))
    with subprocess.Popen([program, "-p", folder, "-c", conf, "-e", "stderr"], stderr=subprocess.PIPE) as running:
        try:
            while running.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", outer)):
                    break
            assert running.poll() is None, running.stderr.read().decode()
            yield outer
        finally:
            running.terminate()


def test_the_page_plays_under_a_path(trained, visit, tmp_path):
    """All its addresses are relative."""
    with serving(trained) as url, nginx(tmp_path, urlsplit(url).port) as port:
        page = visit(f"http://127.0.0.1:{port}/world/")
        arrived(page)
        frames_on(page)
        pictures = "[...document.querySelectorAll('#starts img')]"
        assert page.evaluate(f"{pictures}.every(image => image.complete && image.naturalWidth)")
        assert page.evaluate(f"{pictures}.length")


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


def test_a_compiler_that_fails_does_not_end_play(trained, broken_compiler, capsys):
    session = Session(trained, PlaySettings(device="cpu", compiled=True))
    assert capsys.readouterr().err == broken_compiler
    sessions.try_step(session.world)


def test_a_world_whose_compiler_works_is_compiled(trained, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("minigenie.world.compiled", lambda call, **options: seen.append(call) or call)
    monkeypatch.setattr("minigenie.world.can_compile", lambda device: True)
    session = Session(trained, PlaySettings(device="cpu", compiled=True))
    assert seen
    assert session.world.frame_shape
    assert "fails" not in capsys.readouterr().err
