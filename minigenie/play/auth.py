"""Who may come in: requests of this server's own page, and those that have its token, where there is one."""

import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (  # the page loads nothing from elsewhere
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors "
)


class AuthMiddleware:
    """Refuses what another site's page sends: a foreign Origin, or a Host that is a name somebody pointed here. And,
    where there is a token, who does not have it: it comes with the page's address and stays in a cookie. allow: names
    of proxies that this server is behind, whose pages may frame this one."""

    def __init__(self, app: ASGIApp, host: str, token: str | None = None, allow: Sequence[str] = ()) -> None:
        self.app, self.token, self.allowed = app, token, {name.lower() for name in allow}
        self.names = {"localhost", host.lower(), socket.gethostname().lower(), *self.allowed}
        framing = " ".join(f"http://{name}:* https://{name}:*" for name in sorted(self.allowed))
        self.headers = {
            "Content-Security-Policy": POLICY + (f"'self' {framing}" if framing else "'none'"),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        connection = HTTPConnection(scope)
        if (stranger := self._stranger(connection)) is not None:
            refusal = "refused: this request does not come from this server's own page"
            if re.fullmatch(r"[a-z0-9.-]+", stranger):
                refusal += f"; if {stranger} is a proxy of yours, start minigenie with --allow {stranger}"
        elif not self._has_token(connection):
            refusal = "refused: there is no right token; open the whole address that minigenie has printed"
        else:
            return await self.app(scope, receive, self._with_headers(scope, send))
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            response = JSONResponse({"error": refusal}, 403)
            await response(scope, receive, self._with_headers(scope, send, cookie=False))

    def _stranger(self, connection: HTTPConnection) -> str | None:
        """The name that a request comes by which is none of this server's; "" if it has none at all."""
        host, origin = (connection.headers.get(name, "") for name in ("host", "origin"))
        reads = connection.scope.get("method") in ("GET", "HEAD")  # a websocket has no method
        if not self._is_own(name := _name(f"//{host}")):
            return name
        if (reads and not origin) or origin in (f"http://{host}", f"https://{host}") or _name(origin) in self.allowed:
            return None
        return _name(origin)

    def _is_own(self, name: str) -> bool:
        try:
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _has_token(self, connection: HTTPConnection) -> bool:
        if self.token is None:
            return True
        kept = connection.cookies.get(_cookie_name(connection.scope), "")
        guesses = [*connection.query_params.getlist("token"), kept]
        return any(secrets.compare_digest(guess.encode(), self.token.encode()) for guess in guesses)

    def _with_headers(self, scope: Scope, send: Send, cookie: bool = True) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.headers)
                if self.token and cookie:
                    kept = f"{_cookie_name(scope)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    headers.append("Set-Cookie", kept)
            await send(message)

        return sending


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _cookie_name(scope: Scope) -> str:
    """Its name: browsers keep cookies by host alone, and several worlds may be played on one."""
    return f"minigenie-{scope['server'][1]}"
