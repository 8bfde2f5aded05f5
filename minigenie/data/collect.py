"""Play games and keep the video: CoinRun, the case study of Genie (arXiv:2402.15391), and its kin.

The 16 Procgen games (arXiv:1912.01588) come from the wheel of `procgen-mirror` (Python 3.11 and 3.12) or `procgen-gym`
(3.13), for Linux on x86-64; "toy" is our own and needs neither. The manifest names the generator.
Levels are numbered: training plays those below `levels`, testing those from 1,000,000, so the two never meet.
Every shard is a function of (seed, split, its number) alone, so collecting is parallel, resumable and repeatable.

Dimensions:  n games played side by side   s steps   h w c a frame
"""

import contextlib
import ctypes
import importlib.metadata
import io
import platform
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import numpy as np

from minigenie.data.controls import FIRES, PROCGEN_NAMES, TOY_NAMES, procgen_action
from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.data.expert import Expert
from minigenie.data.toy import ToyWorld
from minigenie.data.workers import cores
from minigenie.errors import UserError
from minigenie.settings import FIRST_TEST_LEVEL, CollectSettings

PROCGEN_GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
GAMES = (*PROCGEN_GAMES, "toy")
PROCGEN_PACKAGES = {"procgen": "procgen-mirror", "procgen_gym": "procgen-gym"}  # by the module that each brings
FPS = 15  # Procgen's own
MAX_WORKERS = 16  # each takes 200 MB
MAX_STATE = 2**20  # bytes of a saved Procgen game, at most
STEPS = 512  # per shard and game
SPARE = 16  # steps played beyond that, to make up for episodes of one frame, which are dropped
HOLD = 5  # steps that the explore policy keeps to a choice, on average: a third of a second

# What explore does in platformers: trips on and back by turns, and on each the keys of its own direction more often
# than the others. Whoever stands before a wall tries something else, and who presses nothing waits until all stands,
# which takes some ten steps. So every control has its share, from rest and in motion, and the levels are seen.
EXPLORE = {"noop": 0.17, "on": 0.31, "back": 0.07, "jump": 0.10, "jump-on": 0.29, "jump-back": 0.06}
AT_A_WALL = {"noop": 0.10, "on": 0.0, "back": 0.15, "jump": 0.10, "jump-on": 0.50, "jump-back": 0.15}
FROM_REST = {"noop": 0.0, "on": 0.30, "back": 0.15, "jump": 0.20, "jump-on": 0.25, "jump-back": 0.10}
TURN_AT_A_WALL = 0.3  # how often
STANDS = 2  # steps without any change of the picture
REST_ENDS = 0.25  # how often, at each step of standing there
KEY_STEPS, WAIT_STEPS = (2, 12), (4, 30)  # that a key is held, or none, at least and at most
FIRE = 0.05  # how often a choice is to fire, in platformers that know it
TRIPS = {"on": (40, 120), "back": (15, 50)}  # steps; where no direction leads on, those on are as short as those back
RUN_RIGHT = ("coinrun", "ninja", "toy")
CLIMB = ("climber", "jumper")
TOY_ACTIONS = {name: number for number, name in enumerate(TOY_NAMES)}
PROCGEN_ACTIONS = {name: procgen_action(name) for name in TOY_NAMES}


def collect(
    settings: CollectSettings,
    out: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Write at least `settings.frames` frames to the folder `out`; the same call resumes, or finds all done.

    `workers` is the number of threads, by default one per core up to 16; the frames do not depend on it.
    `progress(frames done, frames in all)` is called after each shard, in their order. Raises ValueError for settings
    that cannot be, FileExistsError if `out` holds anything else."""
    check(settings)
    writer = DatasetWriter(
        out,
        frame_size=(64, 64),
        fps=FPS,
        source=settings.game,
        generator=generator_of(settings.game),
        split=settings.split,
        settings=asdict(settings) | {"start_level": settings.first_level},
    )
    if not writer.finished:
        sizes = _shard_sizes(settings)
        frames = [n * steps for n, steps in sizes]
        todo = [k for k in range(len(sizes)) if k not in writer]
        total, left = sum(frames), sum(frames[k] for k in todo)
        progress(total - left, total)
        # threads will do: the games, the checksum and the disk all run outside of Python's lock
        pool = ThreadPoolExecutor(workers or min(cores(), MAX_WORKERS))
        try:
            written = pool.map(lambda k: writer.write(k, *_play(settings, k, *sizes[k])), todo)
            for k, _ in zip(todo, written, strict=True):
                left -= frames[k]
                progress(total - left, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return writer.close()


def available() -> str | None:
    """None if the Procgen games can be played here, else one line that says why not and what to do."""
    if module := _procgen_module():
        folder = find_spec(module).submodule_search_locations[0]  # type: ignore[union-attr, index]
        library = Path(folder, "data", "prebuilt", "libenv.so")
        if library.exists():
            try:
                ctypes.CDLL(str(library))
            except OSError as error:
                return f"Procgen cannot start ({error}): run `apt-get install libgl1 libx11-6`, or play the game toy"
        return None
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"Procgen is for Linux on x86-64, this is {sys.platform} on {platform.machine()}: play the game toy"
    return "Procgen is not installed: run `pip install '.[coinrun]'`, or play the game toy"


def action_plan(game: str, policy: str, steps: int, num_envs: int, rng: np.random.Generator) -> np.ndarray:
    """Actions of a policy that looks at nothing: int [s n]."""
    shape = (steps, num_envs)
    if policy == "random":
        return rng.integers(len(TOY_NAMES if game == "toy" else PROCGEN_NAMES), size=shape)
    choices = rng.integers(10, size=shape)  # the nine directions and the fire button
    changed = rng.random(shape) < 1 / HOLD
    since = np.maximum.accumulate(np.where(changed, np.arange(steps)[:, None], 0), axis=0)
    return np.take_along_axis(choices, since, axis=0)


class Explorer:
    """Plays n games of a platformer: see EXPLORE. It looks at the picture only to notice that it stands."""

    def __init__(self, game: str, n: int, rng: np.random.Generator) -> None:
        self._fires = PROCGEN_NAMES[9 : 9 + FIRES.get(game, 0)]
        fires = {name: procgen_action(name) for name in self._fires}
        self._names = TOY_ACTIONS if game == "toy" else PROCGEN_ACTIONS | fires
        self._trips = {**TRIPS, **({} if game in RUN_RIGHT else {"on": TRIPS["back"]})}
        self._rng, self._seen = rng, np.zeros((n, 0))
        self._trip, self._trip_steps = ["back"] * n, [0] * n
        self._key, self._key_steps, self._still = ["noop"] * n, [0] * n, np.zeros(n, int)

    def act(self, frames: np.ndarray) -> np.ndarray:
        """The next action of every game, int [n], from what it shows, uint8 [n h w c]."""
        same = (frames == self._seen).all((1, 2, 3)) if frames.shape == self._seen.shape else False
        self._still, self._seen = np.where(same, self._still + 1, 0), frames.copy()
        for i in range(len(frames)):
            stands, pressed = bool(self._still[i] >= STANDS), self._key[i] != "noop"
            stuck = stands and ("left" in self._key[i] or "right" in self._key[i])
            if not self._trip_steps[i] or (stuck and self._rng.random() < TURN_AT_A_WALL):
                self._trip[i] = "back" if self._trip[i] == "on" else "on"
                self._trip_steps[i] = int(self._rng.integers(*self._trips[self._trip[i]], endpoint=True))
            rested = stands and not pressed and self._rng.random() < REST_ENDS
            if not self._key_steps[i] or stuck or rested:
                shares = EXPLORE if not stands else AT_A_WALL if pressed else FROM_REST
                self._key[i], self._still[i] = self._choose(shares, self._trip[i]), 0
                steps = WAIT_STEPS if self._key[i] == "noop" else KEY_STEPS
                self._key_steps[i] = int(self._rng.integers(*steps, endpoint=True))
            self._trip_steps[i] -= 1
            self._key_steps[i] -= 1
        return np.array([self._names[key] for key in self._key])

    def _choose(self, shares: dict[str, float], trip: str) -> str:
        if self._fires and self._rng.random() < FIRE:
            return str(self._rng.choice(self._fires))
        on, back = ("right", "left") if trip == "on" else ("left", "right")
        return self._rng.choice(list(shares), p=list(shares.values())).replace("on", on).replace("back", back)


def _play(settings: CollectSettings, k: int, n: int, steps: int) -> tuple[np.ndarray, list[Episode], np.ndarray]:
    """Shard `k`: at least `steps` frames from each of `n` games in turn [f h w c], their episodes, and actions [f]."""
    seeds = np.random.SeedSequence([settings.seed, settings.split == "test", k])
    seed = int(seeds.generate_state(1)[0]) % 2**31
    if settings.game == "toy":
        game: ToyWorld | ProcgenGame = ToyWorld(n, seed, settings.levels, settings.first_level)
    else:
        game = procgen_game(settings, n, seed)
    played, rng = steps + SPARE, np.random.default_rng(seeds)
    act, plan = player_for(settings, game, rng, played), np.empty((played, n), np.int64)
    frames = np.empty((n, played, 64, 64, 3), np.uint8)
    first, won = np.empty((2, n, played), bool)
    level_seed = np.empty((n, played), np.int64)
    for s in range(played):
        frames[:, s], first[:, s], level_seed[:, s] = game.frames(), game.first, game.level_seed
        won[:, s] = game.won
        plan[s] = act()
        game.step(plan[s])

    pieces: list[tuple[int, slice]] = []
    episodes: list[Episode] = []
    total = 0
    for i in range(n):
        wanted = total + steps
        for start, stop in pairwise([0, *(np.flatnonzero(first[i, 1:]) + 1).tolist(), played]):
            length = min(stop - start, max(wanted - total, 2))
            if length >= 2 and total < wanted:
                pieces.append((i, slice(start, start + length)))
                ended = start + length == stop < played
                level, done = int(level_seed[i, start]), ended and bool(won[i, stop])
                episodes.append(Episode(k, total, length, level_seed=level, ended=ended, won=done))
                total += length
    actions = np.concatenate([plan[piece, i] for i, piece in pieces]).astype(np.uint8)
    return np.concatenate([frames[piece] for piece in pieces]), episodes, actions


def _shard_sizes(settings: CollectSettings) -> list[tuple[int, int]]:
    """(n, steps) of each shard. The last plays fewer games, not shorter ones: clips need length."""
    full, rest = divmod(settings.frames, settings.num_envs * STEPS)
    sizes = [(settings.num_envs, STEPS)] * full
    if rest:
        n = -(-rest // STEPS)
        sizes.append((n, max(2, -(-rest // n))))
    return sizes


def check(settings: CollectSettings) -> None:
    kinds = get_type_hints(CollectSettings)
    options = {"game": GAMES, **{name: get_args(kinds[name]) for name in ("split", "mode", "policy")}}
    for name, known in options.items():
        if getattr(settings, name) not in known:
            raise UserError(f"unknown {name} {getattr(settings, name)!r}; choose from {', '.join(known)}")
    for name, least in {"frames": 1, "levels": 1, "num_envs": 1, "seed": 0}.items():
        if getattr(settings, name) < least:
            raise UserError(f"{name} is {getattr(settings, name)}, should be at least {least}")
    if not 0 <= settings.first_level < 2**31 - settings.levels:
        raise UserError(f"start_level is {settings.first_level}, should be from 0 to 2**31 - levels")
    if settings.split == "train" and settings.first_level + settings.levels > FIRST_TEST_LEVEL:
        raise UserError(f"levels should stay below {FIRST_TEST_LEVEL:,}, where the test levels begin; play fewer")
    if settings.game != "toy" and (why := available()):
        raise UserError(f"cannot play {settings.game}: {why}")
    if settings.policy == "expert" and settings.game != "coinrun":
        raise UserError(f"the expert plays coinrun, not {settings.game}; take explore")


def generator_of(game: str) -> str:
    if game == "toy":
        return f"minigenie toy {ToyWorld.VERSION}"
    package = PROCGEN_PACKAGES[_import_procgen().__name__]  # imported here, because it is not safe in a thread
    return f"{package} {importlib.metadata.version(package)}"


def player_for(
    settings: CollectSettings, game: "ToyWorld | ProcgenGame", rng: np.random.Generator, steps: int
) -> Callable[[], np.ndarray]:
    """What the settings' policy does next in every game, for up to `steps` steps: () -> int [n]."""
    if settings.policy == "expert":
        return expert_for(settings, game, rng).act
    if settings.policy == "explore" and settings.game in RUN_RIGHT + CLIMB:
        explorer = Explorer(settings.game, len(game.first), rng)
        return lambda: explorer.act(game.frames())
    plan = iter(action_plan(settings.game, settings.policy, steps, len(game.first), rng))
    return lambda: next(plan)


def expert_for(settings: CollectSettings, game: "ToyWorld | ProcgenGame", rng: np.random.Generator) -> Expert:
    """An expert at `game`, with a copy of its own to search in."""
    assert isinstance(game, ProcgenGame)
    return Expert(game, procgen_game(settings, 1, 0), PROCGEN_ACTIONS, rng)


def procgen_game(settings: CollectSettings, n: int, seed: int) -> "ProcgenGame":
    return (ProcgenGame if _procgen_module() == "procgen" else ProcgenGymGame)(settings, n, seed)


class ProcgenGame:
    """n Procgen games side by side, from procgen-mirror; one that ends starts its next level by itself.

    first: bool [n], this frame begins an episode; won: and the one before it was won. reward: float [n], of the last
    step. level_seed: int [n], the level that this frame shows."""

    def __init__(self, settings: CollectSettings, n: int, seed: int):
        options = {
            "env_name": settings.game,
            "rand_seed": seed,
            "distribution_mode": settings.mode,
            "num_levels": settings.levels,  # never 0, with which start_level would be ignored
            "start_level": settings.first_level,
            "use_backgrounds": settings.backgrounds,
            "restrict_themes": not settings.themes,
            "num_threads": 0,
        }
        self._open(n, options)
        self._observe()

    def _open(self, n: int, options: dict[str, Any]) -> None:
        self._env = _import_procgen().ProcgenGym3Env(n, **options)
        self._buffer = self._env._ffi.new("char[]", MAX_STATE)

    def frames(self) -> np.ndarray:
        """What all show now: uint8 [n h w c]."""
        return self._frames

    def step(self, actions: np.ndarray) -> None:
        """Play `actions`, int [n] in 0..14."""
        self._env.act(actions)
        self._observe()

    def save(self, i: int) -> bytes:
        """All there is to know about game `i`, to go on from; the expert reads it. `get_state` would save all games."""
        size = self._env.call_c_func("get_state", i, self._buffer, MAX_STATE)
        return bytes(self._env._ffi.buffer(self._buffer, size))

    def restore(self, states: list[bytes]) -> None:
        self._env.set_state(states)
        self._observe()

    def _observe(self) -> None:
        self.reward, observation, self.first = self._env.observe()
        self._frames = observation["rgb"]
        infos = self._env.get_info()
        self.level_seed = np.array([info["level_seed"] for info in infos])
        self.won = self.first & [info["prev_level_complete"] > 0 for info in infos]


class ProcgenGymGame(ProcgenGame):
    """The same from procgen-gym, which calls the same library another way."""

    def _open(self, n: int, options: dict[str, Any]) -> None:
        self._env = _import_procgen().ProcgenVecEnv(n, **options)
        self._buffer = ctypes.create_string_buffer(MAX_STATE)

    def step(self, actions: np.ndarray) -> None:
        self._env._clib.act(actions)  # its own `step` would not say which frames are first
        self._observe()

    def save(self, i: int) -> bytes:
        return ctypes.string_at(self._buffer, self._env._clib.call_c_func("get_state", i, self._buffer, MAX_STATE))

    def _observe(self) -> None:
        first, observation, self.reward, info = self._env._clib.observe()
        self.first, self._frames, self.level_seed = first.astype(bool), observation["rgb"], info["level_seed"]
        self.won = self.first & (info["prev_level_complete"] > 0)


def _procgen_module() -> str | None:
    return next((module for module in PROCGEN_PACKAGES if find_spec(module)), None)


def _import_procgen() -> ModuleType:
    """Procgen's module, without the notice that an old `gym` prints to everyone, and the warnings that it causes."""
    module = _procgen_module()
    assert module
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
