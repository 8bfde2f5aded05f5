"""Who may come in, and what a connection may cost. uvicorn gives one that is slow, silent or endless all the time and
memory that it takes; here such a one is cut, so that others play on."""

import asyncio
import ipaddress
import secrets
import socket
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit
from weakref import WeakKeyDictionary

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

HEADERS = {  # the page loads nothing from elsewhere, nobody frames it
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MESSAGE_BYTES = 4096  # of a player: an acknowledgement has 40
BURST_BYTES, BYTES_A_SECOND = 4 * MESSAGE_BYTES, 16_384  # what a player may say; 240 frames a second make 9,600
FRAGMENTS = 16  # of a message
UNREAD_BYTES = 1 << 20  # what a player may leave unread
STRANGER_SECONDS = 120.0  # how long a connection lasts that is not, or no longer, a player's
STRANGERS = 256  # such connections at once; of more, the oldest are cut
SWITCH_SECONDS = 2e-4  # the worker asks for the interpreter between any two tensor operations: 5 ms each is Python's


class OwnPageOnly:
    """Refuses what another site's page sends: a foreign Origin, or a Host that is a name somebody pointed here. And,
    where there is a token, who does not have it: it comes with the page's address and stays in a cookie."""

    def __init__(self, app: ASGIApp, host: str, token: str | None = None) -> None:
        self.app, self.token = app, token
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not self._allowed(scope, headers):
            refusal = "refused: this request does not come from this server's own page"
        elif not self._knows_token(scope, headers):
            refusal = "refused: there is no right token; open the whole address that minigenie has printed"
        else:
            return await self.app(scope, receive, self._with_cookie(scope, send) if self.token else send)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            await error_response(refusal, 403)(scope, receive, send)

    def _allowed(self, scope: Scope, headers: dict[bytes, str]) -> bool:
        host, origin = (headers.get(name, "") for name in (b"host", b"origin"))
        reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        return self._is_us(host) and ((reads and not origin) or origin in (f"http://{host}", f"https://{host}"))

    def _is_us(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _knows_token(self, scope: Scope, headers: dict[bytes, str]) -> bool:
        if self.token is None:
            return True
        told = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        try:
            kept = SimpleCookie(headers.get(b"cookie", "")).get(_cookie(scope))
        except CookieError:
            kept = None
        guesses = [*told, kept.value if kept else ""]
        return any(secrets.compare_digest(guess.encode(), self.token.encode()) for guess in guesses)

    def _with_cookie(self, scope: Scope, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                cookie = f"{_cookie(scope)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                MutableHeaders(scope=message).append("Set-Cookie", cookie)
            await send(message)

        return sending


def _cookie(scope: Scope) -> str:
    """Its name: browsers keep cookies by host alone, and several worlds may be played on one."""
    return f"minigenie-{scope['server'][1]}"


def error_response(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=HEADERS)


class PlayerSocket(WebSocketsSansIOProtocol):
    """A player's connection; one who floods it is cut before the flood is read."""

    heard, allowance = 0.0, float(BURST_BYTES)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self.allowance = min(BURST_BYTES, self.allowance + (now - self.heard) * BYTES_A_SECOND) - len(data)
        self.heard = now
        if self.allowance < 0 or len(self.frames) > FRAGMENTS:
            self.transport.abort()
        else:
            super().data_received(data)

    def handle_text(self, event: Frame) -> None:
        """As bytes, of which a seat says what is wrong: uvicorn prints a traceback for text that is no UTF-8."""
        self.handle_bytes(event)

    @property
    def plays(self) -> bool:
        return self.handshake_complete and not self.close_sent and not self.transport.is_closing()


class Server(uvicorn.Server):
    """uvicorn's, which now and then looks around for connections to cut."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.since: WeakKeyDictionary[asyncio.Protocol, float] = WeakKeyDictionary()

    async def on_tick(self, counter: int) -> bool:
        now, strangers = time.monotonic(), []
        for connection in list(self.server_state.connections):
            if not isinstance(connection, PlayerSocket) or not connection.plays:
                strangers.append((self.since.setdefault(connection, now), connection.transport))
            elif connection.transport.get_write_buffer_size() > UNREAD_BYTES:
                connection.transport.abort()
        strangers.sort(key=lambda stranger: -stranger[0])
        for i, (since, transport) in enumerate(strangers):
            if i >= STRANGERS or now - since > STRANGER_SECONDS:
                transport.abort()
        return await super().on_tick(counter)
