"""What a connection may cost. uvicorn gives one that is slow, silent or endless all the time and memory that it takes;
here such a one is cut, so that others play on."""

import asyncio
import time
from weakref import WeakKeyDictionary

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

MAX_MESSAGE_BYTES = 4096  # of a player: an acknowledgement has 40
BURST_BYTES, BYTES_PER_SECOND = 4 * MAX_MESSAGE_BYTES, 16_384  # what a player may say; 240 frames a second make 9,600
MAX_FRAGMENTS = 16  # of a message
MAX_UNREAD_BYTES = 1 << 20  # what a player may leave unread
MAX_NON_PLAYER_SECONDS = 120.0  # how long a connection lasts that is not, or no longer, a player's
MAX_NON_PLAYERS = 256  # such connections at once; of more, the oldest are cut


class LimitedWebSocket(WebSocketsSansIOProtocol):
    """A player's connection; one who floods it is cut before the flood is read."""

    heard, allowance = 0.0, float(BURST_BYTES)

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self.allowance = min(BURST_BYTES, self.allowance + (now - self.heard) * BYTES_PER_SECOND) - len(data)
        self.heard = now
        if self.allowance < 0 or len(self.frames) > MAX_FRAGMENTS:
            self.transport.abort()
        else:
            super().data_received(data)

    def handle_text(self, event: Frame) -> None:
        """As bytes, of which `Connection` says what is wrong: uvicorn prints a traceback for text that is no UTF-8."""
        self.handle_bytes(event)

    @property
    def is_open(self) -> bool:
        return self.handshake_complete and not self.close_sent and not self.transport.is_closing()


class LimitedServer(uvicorn.Server):
    """uvicorn's, which now and then looks for connections to cut."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.since: WeakKeyDictionary[asyncio.Protocol, float] = WeakKeyDictionary()

    async def on_tick(self, counter: int) -> bool:
        now, others = time.monotonic(), []
        for connection in list(self.server_state.connections):
            if not isinstance(connection, LimitedWebSocket) or not connection.is_open:
                others.append((self.since.setdefault(connection, now), connection.transport))
            elif connection.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                connection.transport.abort()
        others.sort(key=lambda other: -other[0])
        for i, (since, transport) in enumerate(others):
            if i >= MAX_NON_PLAYERS or now - since > MAX_NON_PLAYER_SECONDS:
                transport.abort()
        return await super().on_tick(counter)
