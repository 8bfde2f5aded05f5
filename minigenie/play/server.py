"""The server of live play: one page, a websocket for each player, and a few requests beside it.

A browser says which action is held; the server steps that player's world at the target rate with the newest of them.
One frame is in flight: the next is made when the browser has acknowledged the last, so that nothing queues up.
"""

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from minigenie.pictures import save_video
from minigenie.play.player import to_video
from minigenie.play.room import Room
from minigenie.play.seat import Gone, Seat

PAGE = Path(__file__).with_name("page.html")
MESSAGE_BYTES, UPLOAD_BYTES = 1 << 16, 10 << 20
HEADERS = {  # the page loads nothing from elsewhere, nobody frames it
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
VIDEOS = {"mp4": "video/mp4", "gif": "image/gif"}


class OwnPageOnly:
    """Refuses what another site's page sends: a foreign Origin, or a Host that is a name somebody pointed here."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.names = app, {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "wrong origin"})
        else:
            await _error("refused: this request does not come from the world's own page", 403)(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return self._is_us(host) and ((reads and not origin) or origin in (f"http://{host}", f"https://{host}"))

    def _is_us(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def make_app(room: Room, host: str = "127.0.0.1", ready: Callable[[], Any] = lambda: None) -> Starlette:
    """The whole server of one room. ready: called when it listens."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        room.open()
        ready()
        yield
        room.close()

    async def page(_: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers=HEADERS)

    async def start(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(room.starts):
            return _error("there is no such start picture", 404)
        return Response(room.start_pngs[number], media_type="image/png", headers=HEADERS)

    async def upload(request: Request) -> Response:
        if (seat := room.seats.get(request.query_params.get("player", ""))) is None:
            return _error("there is no such player; load the page again", 404)
        try:
            await seat.upload(await _body(request, UPLOAD_BYTES))
        except ValueError as error:
            return _error(str(error), 400)
        return JSONResponse({})

    async def edit(request: Request) -> Response:
        try:
            await room.edit_actions(json.loads(await _body(request, MESSAGE_BYTES)))
        except (ValueError, RecursionError) as error:
            return _error(f"the actions are not saved: {error}", 400)
        except OSError as error:
            return _error(f"the actions hold until the server stops: {error}", 500)
        return JSONResponse(room.describe_actions())

    async def recording(request: Request) -> Response:
        seat, kind = room.seats.get(request.query_params.get("player", "")), request.path_params["kind"]
        if seat is None or kind not in VIDEOS:
            return _error("there is no such recording", 404)
        if not (frames := list(seat.player.recorded)):
            return _error("nothing is recorded yet; press Record, play, and press it again", 404)
        data = await asyncio.to_thread(_video, frames, kind, room.fps)
        name = f'attachment; filename="minigenie.{kind}"'
        return Response(data, media_type=VIDEOS[kind], headers={**HEADERS, "Content-Disposition": name})

    async def play(socket: WebSocket) -> None:
        await socket.accept()
        if len(room.seats) >= room.max_players:
            places = "the only place is" if room.max_players == 1 else f"all {room.max_players} places are"
            text = f"This world is full: {places} taken. Try again when somebody has left."
            await socket.send_json({"type": "full", "text": text})
            return await socket.close(1013)
        seat = Seat(room, socket)
        room.seats[seat.token] = seat
        try:
            await seat.run()
        except Gone:
            pass
        finally:
            del room.seats[seat.token]
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # closed already
                async with asyncio.timeout(1):
                    await socket.close(1008)

    routes = [
        Route("/", page),
        Route("/start/{number:int}.png", start),
        Route("/start", upload, methods=["POST"]),
        Route("/actions", lambda _: JSONResponse(room.describe_actions(), headers=HEADERS)),
        Route("/actions", edit, methods=["POST"]),
        Route("/recording.{kind}", recording),
        WebSocketRoute("/play", play),
    ]
    return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(OwnPageOnly, host=host)])


async def _body(request: Request, most: int) -> bytes:
    """The request's body, not read further than `most` bytes. ValueError if there is more."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise ValueError(f"that is too large; at most {most / 1e6:.2g} MB are taken")
    return bytes(data)


def _error(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=HEADERS)


def _video(frames: list[Any], kind: str, fps: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_video(to_video(frames), Path(folder) / f"recording.{kind}", fps).read_bytes()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. ValueError, one line, if it cannot."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; choose 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        raise ValueError(f"host {host!r} is no address of this machine; leave it out for 127.0.0.1") from None
    try:
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        advice = f"cannot listen on {host} port {port} ({error.strerror}); choose another --host or --port"
        if error.errno == errno.EADDRINUSE:
            advice = f"port {port} is in use; choose another with --port, or --port 0 for any free one"
        raise ValueError(advice) from None
    return listening


def make_server(app: Starlette) -> uvicorn.Server:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="websockets-sansio", ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    open_browser: bool = True,
    max_players: int = 4,
    fps: float | None = None,
    device: str | None = None,
    seed: int = 0,
    footage: str | Path | None = None,
    compiled: bool = False,
) -> None:
    """Play the world in `folder` until Ctrl-C. ValueError or OSError, one line, if that cannot be."""
    with listen(host, port) as listening:
        room = Room(
            folder, device=device, fps=fps, max_players=max_players, seed=seed, footage=footage, compiled=compiled
        )
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/"

        def ready() -> None:
            print(f"{folder} is at {url} (Ctrl-C stops it)", flush=True)
            if open_browser:
                asyncio.get_running_loop().run_in_executor(None, webbrowser.open, url)

        with contextlib.suppress(KeyboardInterrupt):
            make_server(make_app(room, host, ready)).run(sockets=[listening])
