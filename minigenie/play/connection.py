"""One player's connection: what the browser says, and the loop that steps the player's world.

To the server, as JSON: held, step, ack, reset, pause, undo, sampling, record, watch (`Connection.on_...`).
To the browser, as JSON: hello, actions, state, over, error. Binary: frames and previews (`PICTURE_HEADER`, pixels).
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine
from functools import partial
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from minigenie.errors import UserError
from minigenie.files import parse_json
from minigenie.pictures import fit_picture
from minigenie.play.player import Clip, Player, footage_clip
from minigenie.play.session import Session, pack_frame

STALL_SECONDS = 10.0  # a browser that acknowledges nothing for so long is dropped
log = logging.getLogger("uvicorn.error")


class Disconnected(Exception):
    """The browser has left, or does not read."""


class Connection:
    """One player's connection. Every method named `on_...` answers the message of that type."""

    def __init__(self, session: Session, socket: WebSocket) -> None:
        self.session, self.socket, self.token = session, socket, secrets.token_urlsafe(16)
        self.player, self.seed = Player(session.world), session.seed
        self.start_index = 0 if session.starts else None  # None: the player's own picture
        self.start: np.ndarray | None = session.starts[0] if session.starts else None
        self.clip_index: int | None = None  # None: playing, no split view
        self.clip: Clip | None = None
        self.held: int | None = None  # the newest input; None is nothing pressed
        self.tapped: int | None = None  # pressed since the last frame, and perhaps released again
        self.single_step: int | None = None  # a step asked for, paused or not
        self.paused, self.redraw = False, False
        self.sent, self.acknowledged = 0, 0
        self.changed, self.busy = asyncio.Event(), asyncio.Lock()
        self.tasks: set[asyncio.Task[None]] = set()
        self.sending_previews: asyncio.Task[None] | None = None
        self.sending_soon: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Play until one side leaves."""
        hello = {"type": "hello", "player": self.token, "most_steps": self.player.most_steps}
        await self._send({**hello, **self.session.describe()})
        await self._send(self.session.describe_actions())
        both = {self._spawn(self._read_loop()), self._spawn(self._play_loop())}
        try:
            await self._restart()
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self.tasks:
                task.cancel()

    @property
    def is_playing(self) -> bool:
        """Frames of its own follow each other."""
        return self.player.view is not None and not self.paused

    def send_soon(self, message: dict[str, Any]) -> None:
        """Send it when there is time, if nothing newer has come until then."""
        if self.sending_soon:
            self.sending_soon.cancel()
        self.sending_soon = self._spawn(self._send(message))

    async def upload(self, data: bytes) -> None:
        """Begin anew from a picture. UserError if it is none."""
        decode = partial(fit_picture, data, self.session.world.frame_shape)
        self.start = await asyncio.get_running_loop().run_in_executor(self.session.media_pool, decode)
        self.start_index = self.clip_index = self.clip = None
        await self._restart()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Disconnected):
            log.error("a player's task failed", exc_info=error)

    async def _restart(self) -> None:
        if self.start is not None:
            await self.session.run(partial(self.player.reset, self.start, self.seed, self.clip))
            self._redraw()
            if self.sending_previews:
                self.sending_previews.cancel()
            self.sending_previews = self._spawn(self._send_previews(self.start))
        await self._send_state()

    def _redraw(self) -> None:
        self.redraw, self.single_step, self.tapped = True, None, None
        self.changed.set()

    async def _send_previews(self, start: np.ndarray) -> None:
        for action in range(self.session.world.num_actions):
            await self._send(await self.session.preview(start, action))

    async def _send_state(self) -> None:
        player, sampling = self.player, self.player.world.config.sampling
        await self._send(
            {
                "type": "state",
                "playing": player.view is not None,
                "paused": self.paused,
                "recording": player.recording,
                "recorded": len(player.recorded),
                "start": self.start_index,
                "clip": self.clip_index,
                "seed": self.seed,
                "steps": sampling.steps,
                "temperature": sampling.temperature,
            }
        )

    async def _play_loop(self) -> None:
        """The loop: wait until a frame is due, make it with the newest input, send it, wait until it has arrived.

        One whose input is new is due at once, half an interval after the last at the soonest."""
        due, interval, now = 0.0, 1 / self.session.fps, asyncio.get_running_loop().time
        while True:
            began, running = now(), self.is_playing
            # a key tapped between two frames is played for one
            view, pressed = self.player.view, [a for a in (self.held, self.tapped) if a is not None]
            action = pressed[0] if pressed else self.session.noop
            is_new = view is not None and self.clip is None and view.action != action
            soonest = due - interval / 2 if is_new else due
            if self.redraw:
                self.redraw = False
            elif self.single_step is not None:
                action, self.single_step = self.single_step, None
                await self._step(action)
            elif running and began >= soonest:
                self.tapped = None
                await self._step(action)
                due = min(began, max(due, began - interval / 2)) + interval
            else:
                await self._wait(soonest - began if running else None)
                continue
            await self._send_frame(1000 * (now() - began))

    async def _step(self, action: int) -> None:
        was_recording = self.player.recording
        if outcome := await self.session.run(partial(self.player.step, action)):
            await self._send({"type": "over", "outcome": outcome})
        if was_recording and not self.player.recording:
            await self._send({"type": "error", "text": "the recording is full; download it, or record anew"})
            await self._send_state()

    async def _wait(self, seconds: float | None) -> None:
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()

    async def _send_frame(self, ms: float) -> None:
        view = self.player.view
        assert view is not None
        self.sent += 1
        await self._send(pack_frame(view, self.sent, ms))
        try:
            async with asyncio.timeout(STALL_SECONDS):
                while self.acknowledged < self.sent:
                    await self._wait(None)
        except TimeoutError:
            raise Disconnected(f"no frame was acknowledged for {STALL_SECONDS:g} s") from None

    async def _send(self, message: dict[str, Any] | bytes) -> None:
        sending = self.socket.send_bytes(message) if isinstance(message, bytes) else self.socket.send_json(message)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await sending
        except (WebSocketDisconnect, RuntimeError, TimeoutError):  # starlette's RuntimeError: already closed
            raise Disconnected("the browser does not read") from None

    async def _read_loop(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._handle(message.get("text") or message.get("bytes"))
            except ValueError as error:
                await self._send({"type": "error", "text": str(error)})

    async def _handle(self, text: str | bytes | None) -> None:
        try:
            message = parse_json(text or "")
        except ValueError:
            raise UserError("a message must be JSON") from None
        kind = message.get("type") if isinstance(message, dict) else None
        handler = getattr(self, f"on_{kind}", None) if kind in MESSAGES else None
        if handler is None:
            raise UserError(f"a message needs a type, one of {', '.join(MESSAGES)}")
        await handler(message)

    async def on_held(self, message: dict[str, Any]) -> None:
        """action: what is pressed now, or null."""
        self.held = _integer_or_none(message, "action", self.session.world.num_actions - 1)
        if self.held is not None:
            self.tapped = self.held
        self.changed.set()

    async def on_step(self, message: dict[str, Any]) -> None:
        """One frame on, with `action` or the no-op, though it be paused."""
        action = _integer_or_none(message, "action", self.session.world.num_actions - 1)
        self._require_start()
        self.single_step = self.session.noop if action is None else action
        self.changed.set()

    async def on_ack(self, message: dict[str, Any]) -> None:
        """serial: of the frame that has arrived."""
        self.acknowledged = max(self.acknowledged, _integer(message, "serial", self.sent))
        self.changed.set()

    async def on_reset(self, message: dict[str, Any]) -> None:
        """Begin anew; start: number of a start picture, or null for the last one; seed: or null for the last one."""
        seed = _integer_or_none(message, "seed", 2**32 - 1)
        index = _integer_or_none(message, "start", len(self.session.starts) - 1)
        if index is None:
            self._require_start()
        else:
            self.start, self.start_index = self.session.starts[index], index
            self.clip_index = self.clip = None
        self.seed = self.seed if seed is None else seed
        await self._restart()

    async def on_pause(self, message: dict[str, Any]) -> None:
        self.paused, self.tapped = _flag(message), None
        self.changed.set()
        await self._send_state()

    async def on_undo(self, message: dict[str, Any]) -> None:
        """One frame back, and pause there."""
        self._require_start()
        self.paused = True
        if await self.session.run(self.player.undo):
            self._redraw()
        await self._send_state()

    async def on_sampling(self, message: dict[str, Any]) -> None:
        """steps: of MaskGIT, per frame; temperature."""
        temperature = message.get("temperature")
        if not isinstance(temperature, int | float):
            raise UserError("temperature must be a number")
        steps = _integer(message, "steps", self.player.most_steps)
        await self.session.run(partial(self.player.sample, steps, float(temperature)))
        await self._send_state()

    async def on_record(self, message: dict[str, Any]) -> None:
        self._require_start()
        await self.session.run(partial(self.player.record, _flag(message)))
        await self._send_state()

    async def on_watch(self, message: dict[str, Any]) -> None:
        """The split view; clip: number of a held-out clip, or null to play again."""
        world, footage = self.session.world, self.session.footage
        if footage is None:
            raise UserError("there is no held-out footage; start minigenie play with --footage FOLDER")
        index = _integer_or_none(message, "clip", len(footage.episodes) - 1)
        clip = None if index is None else await self.session.run(partial(footage_clip, world, footage, index))
        self.clip_index, self.clip = index, clip
        if clip is not None:
            self.start, self.start_index, self.paused = clip.frames[0], None, False
        await self._restart()

    def _require_start(self) -> None:
        if self.start is None:
            raise UserError("there is no picture to begin with yet; choose or upload one")


MESSAGES = [name.removeprefix("on_") for name in vars(Connection) if name.startswith("on_")]


def _integer(message: dict[str, Any], field: str, most: int) -> int:
    value = message.get(field)
    if type(value) is not int or not 0 <= value <= most:
        raise UserError(f"{field} must be an integer from 0 to {most}")
    return value


def _integer_or_none(message: dict[str, Any], field: str, most: int) -> int | None:
    return None if message.get(field) is None else _integer(message, field, most)


def _flag(message: dict[str, Any]) -> bool:
    if not isinstance(message.get("on"), bool):
        raise UserError("on must be true or false")
    return message["on"]
