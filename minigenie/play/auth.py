"""Who may come in: requests of this server's own page, and those that have its token, where there is one."""

import ipaddress
import secrets
import socket
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_HEADERS = {  # the page loads nothing from elsewhere, nobody frames it
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class AuthMiddleware:
    """Refuses what another site's page sends: a foreign Origin, or a Host that is a name somebody pointed here. And,
    where there is a token, who does not have it: it comes with the page's address and stays in a cookie."""

    def __init__(self, app: ASGIApp, host: str, token: str | None = None) -> None:
        self.app, self.token = app, token
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        connection = HTTPConnection(scope)
        if not self._is_same_origin(connection):
            refusal = "refused: this request does not come from this server's own page"
        elif not self._has_token(connection):
            refusal = "refused: there is no right token; open the whole address that minigenie has printed"
        else:
            return await self.app(scope, receive, self._with_headers(scope, send))
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})
        else:
            response = JSONResponse({"error": refusal}, 403)
            await response(scope, receive, self._with_headers(scope, send, cookie=False))

    def _is_same_origin(self, connection: HTTPConnection) -> bool:
        host, origin = (connection.headers.get(name, "") for name in ("host", "origin"))
        reads = connection.scope.get("method") in ("GET", "HEAD")  # a websocket has no method
        return self._is_own_host(host) and ((reads and not origin) or origin in (f"http://{host}", f"https://{host}"))

    def _is_own_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
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
                headers.update(PAGE_HEADERS)
                if self.token and cookie:
                    kept = f"{_cookie_name(scope)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                    headers.append("Set-Cookie", kept)
            await send(message)

        return sending


def _cookie_name(scope: Scope) -> str:
    """Its name: browsers keep cookies by host alone, and several worlds may be played on one."""
    return f"minigenie-{scope['server'][1]}"
