"""The server of live play: one page, a websocket for each player, and a few requests beside it.

A browser says which action is held; the server steps that player's world at the target rate with the newest of them.
One frame is in flight: the next is made when the browser has acknowledged the last, so that nothing queues up.
"""

import asyncio
import contextlib
import errno
import ipaddress
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from minigenie.config import parse_json
from minigenie.errors import UserError
from minigenie.pictures import save_video
from minigenie.play.auth import PAGE_HEADERS, AuthMiddleware, error_response
from minigenie.play.connection import Connection, Disconnected
from minigenie.play.limits import MAX_MESSAGE_BYTES, LimitedServer, LimitedWebSocket
from minigenie.play.player import to_video
from minigenie.play.session import Session
from minigenie.settings import PlaySettings, ServerSettings

PAGE = Path(__file__).with_name("page.html")
MAX_EDIT_BYTES, MAX_UPLOAD_BYTES = 1 << 16, 10 << 20
SWITCH_SECONDS = 2e-4  # the worker asks for the interpreter between any two tensor operations: 5 ms each is Python's
VIDEOS = {"mp4": "video/mp4", "gif": "image/gif"}


def make_app(
    session: Session, host: str = "127.0.0.1", token: str | None = None, ready: Callable[[], Any] = lambda: None
) -> Starlette:
    """The whole server of one session. token: without it every request is refused. ready: called when it listens."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        session.open()
        ready()
        yield
        session.close()

    async def page(_: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers=PAGE_HEADERS)

    async def start(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(session.starts):
            return error_response("there is no such start picture", 404)
        return Response(session.start_pngs[number], media_type="image/png", headers=PAGE_HEADERS)

    async def upload(request: Request) -> Response:
        if (connection := session.connections.get(request.query_params.get("player", ""))) is None:
            return error_response("there is no such player; load the page again", 404)
        try:
            async with connection.busy:
                await connection.upload(await read_body(request, MAX_UPLOAD_BYTES))
        except (ClientDisconnect, Disconnected):
            return Response()  # to nobody
        except ValueError as error:
            return error_response(str(error), 400)
        return JSONResponse({})

    async def edit(request: Request) -> Response:
        try:
            await session.edit_actions(parse_json(await read_body(request, MAX_EDIT_BYTES)))
        except ClientDisconnect:
            return Response()
        except ValueError as error:
            return error_response(f"the actions are not saved: {error}", 400)
        except OSError as error:
            return error_response(f"the actions hold until the server stops: {error}", 500)
        return JSONResponse(session.describe_actions())

    async def recording(request: Request) -> Response:
        connection, kind = session.connections.get(request.query_params.get("player", "")), request.path_params["kind"]
        if connection is None or kind not in VIDEOS:
            return error_response("there is no such recording", 404)
        if not (frames := list(connection.player.recorded)):
            return error_response("nothing is recorded yet; press Record, play, and press it again", 404)
        async with connection.busy:
            encode = partial(_video, frames, kind, session.fps)
            data = await asyncio.get_running_loop().run_in_executor(session.media_pool, encode)
        name = f'attachment; filename="minigenie.{kind}"'
        return Response(data, media_type=VIDEOS[kind], headers={**PAGE_HEADERS, "Content-Disposition": name})

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
            await connection.run()
        except Disconnected:
            pass
        finally:
            del session.connections[connection.token]
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # closed already
                async with asyncio.timeout(1):
                    await socket.close(1008)

    routes = [
        Route("/", page),
        Route("/start/{number:int}.png", start),
        Route("/start", upload, methods=["POST"]),
        Route("/actions", lambda _: JSONResponse(session.describe_actions(), headers=PAGE_HEADERS)),
        Route("/actions", edit, methods=["POST"]),
        Route("/recording.{kind}", recording),
        WebSocketRoute("/play", play),
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(AuthMiddleware, host=host, token=token)])


async def read_body(request: Request, most: int) -> bytes:
    """The request's body, not read further than `most` bytes. UserError if there is more."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise UserError(f"that is too large; at most {most / 1e6:.2g} MB are taken")
    return bytes(data)


def _video(frames: list[Any], kind: str, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_video(to_video(frames), Path(folder) / f"recording.{kind}", fps).read_bytes()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. UserError, one line, if it cannot."""
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; choose 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        raise UserError(f"host {host!r} is no address of this machine; leave it out for 127.0.0.1") from None
    try:
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        advice = f"cannot listen on {host} port {port} ({error.strerror}); choose another --host or --port"
        if error.errno == errno.EADDRINUSE:
            advice = f"port {port} is in use; choose another with --port, or --port 0 for any free one"
        raise UserError(advice) from None
    return listening


def make_server(app: Starlette) -> LimitedServer:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, http="h11", ws=LimitedWebSocket, ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return LimitedServer(config)


def run(
    make_app: Callable[[str, str | None, Callable[[], Any]], Starlette],
    listening: socket.socket,
    what: Path,
    server: ServerSettings,
) -> None:
    """Serve the app of `make_app(host, token, ready)` until Ctrl-C, and say where `what` is. Beyond this machine it
    wants a token."""
    host = server.host
    shown, (address, number) = f"[{host}]" if ":" in host else host, listening.getsockname()[:2]
    token = None if ipaddress.ip_address(address).is_loopback else secrets.token_urlsafe(16)
    url = f"http://{shown}:{number}/" + (f"?token={token}" if token else "")

    def ready() -> None:
        print(f"{what} is at {url} (Ctrl-C stops it)", flush=True)
        if server.open:
            asyncio.get_running_loop().run_in_executor(None, webbrowser.open, url)

    sys.setswitchinterval(SWITCH_SECONDS)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(make_app(host, token, ready)).run(sockets=[listening])


def serve(folder: Path, settings: PlaySettings, server: ServerSettings) -> None:
    """Play the world in `folder` until Ctrl-C. UserError or OSError, one line, if that cannot be."""
    with listen(server.host, server.port) as listening:
        run(partial(make_app, Session(folder, settings)), listening, folder, server)
