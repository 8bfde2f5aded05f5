"""The server of live play: one page, a websocket for each player, and a few requests beside it.

A browser says which action is held; the server steps that player's world at the target rate with the newest of them.
One frame is in flight: the next is made when the browser has acknowledged the last, so that nothing queues up.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from minigenie.errors import UserError
from minigenie.files import parse_json
from minigenie.pictures import encode_video
from minigenie.play.auth import AuthMiddleware
from minigenie.play.connection import Connection, Disconnected
from minigenie.play.limits import MAX_MESSAGE_BYTES, LimitedServer, LimitedWebSocket
from minigenie.play.session import Session
from minigenie.settings import PlaySettings, ServerSettings

PAGE = Path(__file__).with_name("page.html")
SHARED = [PAGE.with_name("shared.css"), PAGE.with_name("shared.js")]  # by this page and that of teach
ENGINE = PAGE.with_name("engine.js")
MAX_JSON_BYTES, MAX_UPLOAD_BYTES = 1 << 16, 10 << 20
SWITCH_SECONDS = 2e-4  # the worker asks for the interpreter between any two tensor operations: 5 ms each is Python's
VIDEOS = {"mp4": "video/mp4", "gif": "image/gif"}


def make_app(
    session: Session,
    host: str = "127.0.0.1",
    token: str | None = None,
    ready: Callable[[], Any] = lambda: None,
    allow: Sequence[str] = (),
) -> Starlette:
    """The server of one session; `page_app` says what the rest is."""

    def connection_of(request: Request) -> Connection:
        connection = session.connections.get(request.query_params.get("player", ""))
        if connection is None:
            raise HTTPException(404, "there is no such player; load the page again")
        return connection

    async def start(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(session.starts):
            raise HTTPException(404, "there is no such start picture")
        return Response(session.start_pngs[number], media_type="image/png")

    async def upload(request: Request) -> Response:
        connection = connection_of(request)
        with contextlib.suppress(Disconnected):
            async with connection.busy:
                await connection.upload(await read_body(request, MAX_UPLOAD_BYTES))
        return JSONResponse({})

    async def edit(request: Request) -> Response:
        with refusing("the actions are not saved", "the actions hold until the server stops"):
            await session.edit_actions(await read_json(request))
        return JSONResponse(session.describe_actions())

    async def recording(request: Request) -> Response:
        connection, kind = connection_of(request), request.path_params["kind"]
        if kind not in VIDEOS:
            raise HTTPException(404, f"recordings are {' or '.join(VIDEOS)}")
        if not (frames := list(connection.player.recorded)):
            raise HTTPException(404, "nothing is recorded yet; press Record, play, and press it again")
        async with connection.busy:
            data = await asyncio.get_running_loop().run_in_executor(
                session.media_pool, lambda: encode_video(torch.from_numpy(np.stack(frames)), kind, session.fps)
            )
        name = f'attachment; filename="minigenie.{kind}"'
        return Response(data, media_type=VIDEOS[kind], headers={"Content-Disposition": name})

    async def play(socket: WebSocket) -> None:
        await socket.accept()
        if len(session.connections) >= session.max_players:
            places = "the only place is" if session.max_players == 1 else f"all {session.max_players} places are"
            text = f"This world is full: {places} taken. Try again when somebody has left."
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # gone already
                await socket.send_json({"type": "full", "text": text})
                await socket.close(1013)
            return
        connection = Connection(session, socket)
        session.connections[connection.token] = connection
        try:
            with contextlib.suppress(Disconnected):
                await connection.run()
        finally:
            del session.connections[connection.token]
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # closed already
                async with asyncio.timeout(1):
                    await socket.close(1008)

    routes = [
        Route("/start/{number:int}.png", start),
        Route("/start", upload, methods=["POST"]),
        Route("/actions", lambda _: JSONResponse(session.describe_actions())),
        Route("/actions", edit, methods=["POST"]),
        Route("/recording.{kind}", recording),
        WebSocketRoute("/play", play),
    ]
    return page_app(PAGE, routes, session.open, session.close, host, token, ready, allow)


def page_text(page: Path, engine: Path = ENGINE) -> str:
    """A whole page. engine: what answers it."""
    text = page.read_text()
    for part in (*SHARED, engine):
        text = text.replace(f"/* {part.name} */", part.read_text())
    return text


def page_app(
    page: Path, routes: Sequence[BaseRoute], begin: Callable[[], Any], end: Callable[[], Any], host: str,
    token: str | None, ready: Callable[[], Any], allow: Sequence[str],
) -> Starlette:  # fmt: skip
    """The whole server of one page. begin, end: what runs behind it. token: without it every request is refused. ready:
    called when it listens. allow: names of proxies."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        begin()
        ready()
        yield
        end()

    async def show(_: Request) -> Response:
        return HTMLResponse(page_text(page))

    async def refuse(_: Request, error: Any) -> Response:  # async, as all here: others take a thread each in a flood
        text, status = (error.detail, error.status_code) if isinstance(error, HTTPException) else (str(error), 400)
        return JSONResponse({"error": text}, status)

    return Starlette(
        routes=[Route("/", show), *routes],
        lifespan=lifespan,
        middleware=[Middleware(AuthMiddleware, host=host, token=token, allow=allow)],
        exception_handlers=dict.fromkeys((HTTPException, ValueError, ClientDisconnect), refuse),
    )


@contextlib.contextmanager
def refusing(refused: str, failed: str) -> Iterator[None]:
    """How a request is answered that asks for what cannot be, or that cannot be written."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, f"{refused}: {error}") from None
    except OSError as error:
        raise HTTPException(500, f"{failed}: {error}") from None


async def read_json(request: Request) -> Any:
    return parse_json(await read_body(request, MAX_JSON_BYTES))


async def read_body(request: Request, most: int) -> bytes:
    """The request's body, not read further than `most` bytes. UserError if there is more."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise UserError(f"that is too large; at most {most / 1e6:.2g} MB are taken")
    return bytes(data)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError, one line, if it cannot."""
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; choose 0 (any free one) to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise UserError(f"host {host!r} is no address of this machine; leave it out for 127.0.0.1") from None
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, backlog=64, dualstack_ipv6=both)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        advice = f"cannot listen on {host} port {port} ({why}); choose another --host or --port"
        if error.errno == errno.EADDRINUSE:
            advice = f"port {port} is in use; choose another with --port, or --port 0 for any free one"
        raise UserError(advice) from None


def make_server(app: Starlette) -> LimitedServer:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, http="h11", ws=LimitedWebSocket, ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return LimitedServer(config)


def run(
    make_app: Callable[[str, str | None, Callable[[], Any], Sequence[str]], Starlette],
    listening: socket.socket,
    what: str | Path,
    server: ServerSettings,
) -> None:
    """Serve the app of `make_app(host, token, ready, allow)` until Ctrl-C, and say where `what` is. Beyond this machine
    it wants a token."""
    host, (address, number) = server.host, listening.getsockname()[:2]
    here = ipaddress.ip_address(address)
    token = None if here.is_loopback else secrets.token_urlsafe(16)
    names = ["127.0.0.1", _own_address()] if here.is_unspecified else [f"[{host}]" if ":" in host else host]
    urls = [f"http://{name}:{number}/" + (f"?token={token}" if token else "") for name in dict.fromkeys(names)]

    def ready() -> None:
        print(f"{what} is at {' or '.join(urls)} (Ctrl-C stops it)", flush=True)
        if server.open and can_show_pages():  # a daemon, as a browser may take as long as it likes
            threading.Thread(target=webbrowser.open, args=urls[:1], daemon=True).start()

    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(make_app(host, token, ready, server.allow)).run(sockets=[listening])


def can_show_pages() -> bool:
    """Whether there is a display: without one, a browser in the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _own_address() -> str:
    """This machine's, as others see it; 127.0.0.1 if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # of no machine, and nothing is sent
        return probe.getsockname()[0]
    return "127.0.0.1"


def serve(folder: str | Path, settings: PlaySettings, server: ServerSettings) -> None:
    """Play the world, as World.load takes it, until Ctrl-C. UserError or OSError, one line, if that cannot be."""
    with listen(server.host, server.port) as listening:
        run(partial(make_app, Session(folder, settings)), listening, folder, server)
