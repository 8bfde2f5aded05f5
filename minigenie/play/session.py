"""What all players share: the world and the worker that runs it, start pictures, actions and previews."""

import asyncio
import hashlib
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.eval.controllability import mean_shift
from minigenie.pictures import encode
from minigenie.play.actions import check_actions, describe, load_actions, save_actions
from minigenie.play.player import View
from minigenie.runtime import Result
from minigenie.settings import PlaySettings
from minigenie.world import World, load_compiled, locate, read_prompt, try_step

# kind, format, action, serial, number, ms, width, height, parts, certainty of 65,535: what a picture says of itself
PICTURE_HEADER = struct.Struct("<BBHIIfHHHH")
FRAME, PREVIEW = 0, 1
RGBA, JPEG = 0, 1
NO_ACTION = 0xFFFF
RAW_SIDE = 64  # pixels: frames up to here travel raw, larger ones as JPEG

PREVIEW_FRAMES, PREVIEW_STEPS, PREVIEW_SIDE = 6, 4, 96
PREVIEWS_KEPT = 512
MEASURED_STARTS = 4
MAX_STARTS = 48
BACKGROUND_SHARE = 0.25  # of the worker's time, while somebody plays


class Session:
    """A world folder that is being played."""

    def __init__(self, folder: str | Path, settings: PlaySettings) -> None:
        if settings.max_players < 1:
            raise UserError(f"max_players is {settings.max_players}; let at least 1 play")
        self.folder, self.max_players, self.seed = locate(folder), settings.max_players, settings.seed
        # The one thread in which the models load and run. Load too: where a second thread has ever run them, torch has
        # two pools of threads that fight over the cores (measured on 2 of them: 288 ms a frame instead of 117).
        self.worker, self.background_turn = ThreadPoolExecutor(1), asyncio.Lock()
        if settings.compiled:
            print("compiling the world; this takes a minute", flush=True)
        load = load_compiled if settings.compiled else World.load
        self.world = self.worker.submit(load, self.folder, settings.device, settings.precision).result()
        self.worker.submit(choose_threads, self.world).result()
        self.fps = float(settings.fps or self.world.fps)
        if not 0 < self.fps <= 240:
            raise UserError(f"fps is {self.fps:g}; choose a rate between 0 and 240 frames a second")
        self.actions = load_actions(self.folder, self.world.num_actions)
        paths = sorted((self.folder / "prompts").glob("*.png"))[:MAX_STARTS]
        self.starts = [read_prompt(path, self.world.frame_shape)[0, 0].numpy() for path in paths]
        self.start_pngs = [encode(start, "PNG") for start in self.starts]
        self.footage = self._open_footage(settings.footage) if settings.footage else None
        self.connections: dict[str, Any] = {}
        self.previews: dict[tuple[bytes, int], asyncio.Task[bytes]] = {}
        self.measurements: dict[bytes, dict[int, np.ndarray]] = {}  # by start and action: a shift, and a change
        self.saving = asyncio.Lock()
        self.media_pool = ThreadPoolExecutor(1)  # what decodes pictures and encodes videos: each may take 500 MB

    def _open_footage(self, folder: str) -> Dataset:
        footage, shape = Dataset.open(folder), self.world.frame_shape
        if footage.frame_size != shape[:2]:
            sizes = f"{footage.frame_size[0]}x{footage.frame_size[1]}, this world imagines {shape[0]}x{shape[1]}"
            raise UserError(f"{folder} has frames of {sizes}; ingest with --size {shape[0]}")
        if max(episode.length for episode in footage.episodes) < 2:
            raise UserError(f"{folder} has no episode of 2 frames or more; give other held-out footage")
        return footage

    @property
    def noop(self) -> int:
        return next((a for a, entry in enumerate(self.actions) if entry.get("noop")), 0)

    @property
    def measured(self) -> bool:
        return all("motion" in entry for entry in self.actions)

    def open(self) -> None:
        """Begin to work; in a running event loop."""
        self.background = asyncio.create_task(self._measure_actions())

    def close(self) -> None:
        self.background.cancel()
        for task in self.previews.values():
            task.cancel()
        for pool in (self.worker, self.media_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[[], Result]) -> Result:
        """In the worker's thread, after what it was asked before."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, call)

    def describe(self) -> dict[str, Any]:
        """What a player is told first."""
        height, width, _ = self.world.frame_shape
        return {
            "world": self.folder.resolve().name,
            "width": width,
            "height": height,
            "fps": self.fps,
            "starts": len(self.starts),
            "clips": len(self.footage.episodes) if self.footage else 0,
            "preview_frames": PREVIEW_FRAMES + 1,
        }

    def describe_actions(self) -> dict[str, Any]:
        return {"type": "actions", "actions": self.actions, "noop": self.noop, "measured": self.measured}

    async def edit_actions(self, entries: Any) -> None:
        """Names, keys and the no-op from a person, kept in the folder. UserError or OSError, one line."""
        check_actions(entries, self.world.num_actions)
        if sum(entry.get("noop", False) for entry in entries) > 1:
            raise UserError("only one action can be the one that is taken when nothing is pressed")
        chosen = [{name: entry[name] for name in ("name", "key", "noop") if name in entry} for entry in entries]
        await self._set_actions([before | after for before, after in zip(self.actions, chosen, strict=True)])

    async def _set_actions(self, actions: list[dict[str, Any]]) -> None:
        async with self.saving:
            self.actions = actions
            for connection in self.connections.values():
                connection.send_soon(self.describe_actions())
            await asyncio.to_thread(save_actions, self.folder, actions)

    async def preview(self, start: np.ndarray, action: int) -> bytes:
        """What an action does from `start`, held for a few frames: one picture of them in a row, ready to be sent.
        Imagined when first asked for, while the players leave the worker time, then remembered."""
        key = (hashlib.sha256(start.tobytes()).digest(), action)
        preview = self.previews.pop(key, None) or asyncio.create_task(self._make_preview(start, *key))
        self.previews[key] = preview  # the last one asked for is the last to be forgotten
        if len(self.previews) > PREVIEWS_KEPT:
            self.previews.pop(next(iter(self.previews))).cancel()
        return await asyncio.shield(preview)

    async def _make_preview(self, start: np.ndarray, digest: bytes, action: int) -> bytes:
        world = with_fewer_steps(self.world, PREVIEW_STEPS)
        await self._in_background(partial(world.reset, start[None, None], self.seed))
        frames = [start]
        for _ in range(PREVIEW_FRAMES):
            frames.append((await self._in_background(partial(world.step, [action])))[0].numpy())
        if not self.measured:
            await self._add_measurement(np.stack(frames), digest, action)
        strip = preview_strip(np.stack(frames))
        header = PICTURE_HEADER.pack(PREVIEW, JPEG, action, 0, 0, 0, strip.shape[1], strip.shape[0], len(frames), 0)
        return header + encode(strip, "JPEG", quality=85)

    async def _in_background(self, call: Callable[[], Result]) -> Result:
        async with self.background_turn:  # one at a time, so that a player's frame waits for one of them at most
            result, seconds = await self.run(partial(timed, call))
            if any(connection.is_playing for connection in self.connections.values()):
                await asyncio.sleep(seconds * (1 / BACKGROUND_SHARE - 1))
            return result

    async def _measure_actions(self) -> None:
        for start in self.starts[:MEASURED_STARTS]:
            for action in range(self.world.num_actions):
                if not self.measured:
                    await self.preview(start, action)

    async def _add_measurement(self, frames: np.ndarray, digest: bytes, action: int) -> None:
        """Once the actions have been seen from a few starts, it is known what they do."""
        shift = await self._in_background(partial(mean_shift, frames))
        change = float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())
        self.measurements.setdefault(digest, {})[action] = np.append(shift, change)
        seen = [by_action for by_action in self.measurements.values() if len(by_action) == self.world.num_actions]
        if len(seen) < max(1, min(MEASURED_STARTS, len(self.starts))) or self.measured:
            return
        order = range(self.world.num_actions)
        means = np.mean([[by_action[a] for a in order] for by_action in seen], axis=0)
        try:
            await self._set_actions(describe(self.actions, means[:, :2], means[:, 2], min(self.world.frame_shape[:2])))
        except OSError as error:
            print(f"the measured actions are known until the server stops: {error}")


def preview_strip(frames: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "H W c"]:
    """Small copies of frames, side by side."""
    size = [min(side, PREVIEW_SIDE) for side in (frames.shape[2], frames.shape[1])]
    return np.hstack([np.array(Image.fromarray(frame).resize(size)) for frame in frames])


def with_fewer_steps(world: World, steps: int) -> World:
    """The same world, at no frame yet, with no more than `steps` MaskGIT steps a frame."""
    sampling = world.config.sampling
    return world.fresh_copy(replace(sampling, steps=min(steps, sampling.steps)), cuda_graph=False)


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and the seconds it took."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def choose_threads(world: World) -> None:
    """On CPU, have torch use one thread or all, whichever is faster: small layers only lose by being split. One also
    if it is almost as fast: the browser wants a core too."""
    most = torch.get_num_threads()
    if world.device.type != "cpu" or most == 1:
        return
    trial = try_step(world)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        trial.step([0])
        return min(timed(partial(trial.step, [0]))[1] for _ in range(3))

    torch.set_num_threads(most if seconds(most) < 0.8 * seconds(1) else 1)


def pack_frame(view: View, serial: int, ms: float) -> bytes:
    """A frame for the wire; in the split view with the truth below it."""
    pictures = [view.frame] if view.truth is None else [view.frame, view.truth]
    picture, action = np.vstack(pictures), NO_ACTION if view.action is None else view.action
    height, width, _ = picture.shape
    raw = max(view.frame.shape[:2]) <= RAW_SIDE
    form = RGBA if raw else JPEG
    header = PICTURE_HEADER.pack(
        FRAME, form, action, serial, view.number, ms, width, height, len(pictures), round(65_535 * view.certainty)
    )
    if raw:
        return header + np.dstack((picture, np.full((height, width, 1), 255, np.uint8))).tobytes()
    return header + encode(picture, "JPEG", quality=90)
