"""Real levels of CoinRun, played to see how many a player solves: what a policy learnt of a world is worth.

Dimensions:  l levels   t steps   h w c a frame
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigenie.data.collect import PROCGEN_ACTIONS, ProcgenGame, procgen_game
from minigenie.errors import UserError
from minigenie.pictures import label
from minigenie.settings import CollectSettings
from minigenie.world import World, read_config

NUM_KEYS = 15  # what Procgen calls actions
STEP_LIMIT = 1000  # of a CoinRun level
SHOWN_LEVELS, SHOWN_STEPS = 6, 120  # in the picture
PLAYING, SOLVED, FAILED = (255, 255, 255), (40, 180, 60), (220, 40, 40)

Act = Callable[[np.ndarray], np.ndarray]  # which levels are still played, bool [l] -> keys, int [l]
Player = Callable[[ProcgenGame], Act]


class Played(NamedTuple):
    solved: np.ndarray  # bool [l]
    steps: np.ndarray  # int [l]
    video: np.ndarray  # uint8 [t levels h w c]: the first few levels; one that is over keeps its last frame


def coinrun_look(world_folder: Path) -> dict[str, Any]:
    """How the world's own footage looked: mode, backgrounds, themes. UserError if it was not CoinRun."""
    source = read_config(world_folder)["dataset"]
    if source.get("source") != "coinrun":
        raise UserError(f"{world_folder} is a world of {source.get('source')}; take one of coinrun")
    return {name: source["settings"][name] for name in ("mode", "backgrounds", "themes")}


def named_keys(world: World) -> np.ndarray | None:
    """A table as `count_keys` makes it, where the world's actions are named after keys, so that none need be told."""
    names = world.config.inverse.controls
    if world.config.actions == "latent" or not set(names) <= set(PROCGEN_ACTIONS):
        return None
    return np.eye(NUM_KEYS, dtype=np.int64)[[PROCGEN_ACTIONS[name] for name in names]]


def scripted_player(plan: Iterator[np.ndarray]) -> Player:
    """Plays what was laid down before, keys int [l] a step, and looks at nothing."""
    return lambda game: lambda playing: next(plan)


def play(
    settings: CollectSettings,
    levels: int,
    player: Player,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Played:
    """One attempt of `player` at each of `levels` levels. Which they are follows from the settings alone."""
    game = procgen_game(settings, levels, settings.seed)
    act = player(game)
    playing, solved, steps = np.ones(levels, bool), np.zeros(levels, bool), np.zeros(levels, np.int64)
    video = [game.frames()[:SHOWN_LEVELS].copy()]
    while playing.any():
        game.step(act(playing))
        steps += playing
        ended = playing & game.first
        solved |= ended & (game.reward > 0)
        playing &= ~ended
        if len(video) < SHOWN_STEPS:
            still = playing[:SHOWN_LEVELS, None, None, None]
            video.append(np.where(still, game.frames()[:SHOWN_LEVELS], video[-1]))
        progress(levels - int(playing.sum()), levels)
    return Played(solved, steps, np.stack(video))


def measure_play(played: Played) -> dict[str, Any]:
    solved, levels = int(played.solved.sum()), len(played.solved)
    return {
        "solved": solved / levels,
        "ci95": list(wilson(solved, levels)),
        "levels": levels,
        "mean_return": 10 * solved / levels,  # the coin's worth
        "mean_steps": float(played.steps.mean()),
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.959964, successes / trials
    centre, scale = share + z**2 / (2 * trials), 1 + z**2 / trials
    reach = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return (centre - reach) / scale, (centre + reach) / scale


def side_by_side(games: dict[str, Played]) -> np.ndarray:
    """A row per player, a column per level, a frame that turns green when the level is solved and red when it is not:
    uint8 [t H W 3]."""
    length = max(len(played.video) for played in games.values())
    return np.concatenate([_row(name, played, length) for name, played in games.items()], axis=1)


def _row(name: str, played: Played, length: int) -> np.ndarray:
    times = np.minimum(np.arange(length), len(played.video) - 1)
    cells = [np.broadcast_to(label(name, (164, 68), (4, 28)), (length, 68, 164, 3))]
    for level in range(played.video.shape[1]):
        cell = np.full((length, 68, 68, 3), PLAYING, np.uint8)
        cell[np.arange(length) >= played.steps[level]] = SOLVED if played.solved[level] else FAILED
        cell[:, 2:-2, 2:-2] = played.video[times, level]
        cells.append(cell)
    return np.concatenate(cells, axis=2)
