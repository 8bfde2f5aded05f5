"""The control test: does a held action lead where the game's own key leads?

From states of held-out levels each key is held in the game and each action in the world. Where the camera follows the
player, both begin at rest and are seen through the same search for the camera's motion: they agree if they lead to the
same place. Where it stands still an action agrees with the key whose future in the game its own looks most like; others
than the player move in both. Only for Procgen games, with the game here. For every key the action that fits it best on
one half of the states is judged on the other half, so an action needs no name and none is rewarded for chance.

Dimensions:  n states   k keys   a actions   t frames   h w c a frame
Paths are pixels [right, up] from the start, where the player goes: the picture goes the other way.
"""

from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from minigenie.data.collect import ProcgenGame, available, generator_of, player_for, procgen_game
from minigenie.data.controls import FOLLOWED, procgen_action, procgen_controls
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.eval.controllability import Rollout, hold_actions, shifts
from minigenie.eval.evaluator import PROMPT, UNMEASURED, Evaluator, Report, bootstrap, interval_of_columns
from minigenie.inverse import InverseDynamics, controls_seen
from minigenie.runtime import parallel_map
from minigenie.settings import CollectSettings

STATES, FEWEST = 32, 2
HELD = 24  # frames for which a key is held: a jump takes 15, and lands
HELD_IN_VIEW = 12  # where the camera stands still: what else moves goes its own way, and a player soon meets a wall
UP, DOWN = 8, 24  # frames of the jump key, then of none
SIDEWAYS_AT, HEIGHT_AT = 16, (8, 24)  # frames after which the paths are compared
SIDEWAYS, HEIGHT = 3.0, 4.0  # pixels: less is no way to a side; more is another height
WANDER, REST, PATIENCE = (10, 120), 6, 40  # steps before a rest, frames that are equal in it, steps to wait for it
ROUNDS = 20
JUMPS_LATE = ("ninja",)  # when the key is let go: held, it is like none, and which action serves it cannot be told
PROBED = 8  # pairs of each rollout that the inverse dynamics see
SHOWN = 10  # frames of each key in the picture

Trajectory = Float[np.ndarray, "n t 2"]
Paths = Float[np.ndarray, "n x steps 2"]
Videos = UInt8[Tensor, "n _ t h w c"]
Counted = Bool[np.ndarray, "n k"]  # by state and key
Some = Bool[np.ndarray, " n"]  # of the states


class Scene(NamedTuple):
    """One state: every key in the game, and the action that serves it in the world."""

    names: list[str]
    game: UInt8[Tensor, "k t h w c"]
    world: UInt8[Tensor, "k t h w c"]


class Start(NamedTuple):
    """Resting states of a game, their frames and levels."""

    states: list[bytes]
    frames: UInt8[Tensor, "n t h w c"]
    levels: list[int]


class Impossible(UserError):
    """There can be no control test, for the reason given."""


def why_impossible(dataset: Dataset) -> str | None:
    """Why there can be no control test on this footage, here; None if there can."""
    generator, game = dataset.manifest["generator"], dataset.manifest["source"]
    if not generator.startswith("procgen"):
        return "the footage is of no Procgen game"
    if why := available():
        return why
    return None if generator == generator_of(game) else f"the footage is of {generator}, here is {generator_of(game)}"


def frames_to_imagine(evaluator: Evaluator) -> int:
    if why_impossible(evaluator.dataset):
        return 0
    followed = evaluator.dataset.manifest["source"] in FOLLOWED
    frames = evaluator.world.num_actions * (HELD if followed else HELD_IN_VIEW) + (UP + DOWN) * followed
    return min(evaluator.max_clips, STATES) * frames


def measure(evaluator: Evaluator, inverse: InverseDynamics | None) -> tuple[Report, Scene | None]:
    """The report's part on the control test, where there can be one."""
    world, states = evaluator.world, min(evaluator.max_clips, STATES)
    try:
        report, scene = measure_control(
            evaluator.rollout, world.num_actions, evaluator.dataset, states, evaluator.seed, inverse
        )
    except Impossible as why:
        evaluator.notes.append(f"{UNMEASURED}the control test ({why})")
        return {}, None
    return {"control": report}, scene


def settings_of(dataset: Dataset) -> CollectSettings:
    """The game as in the dataset, on held-out levels."""
    names = [each.name for each in fields(CollectSettings)]
    settings = {name: value for name, value in dataset.manifest["settings"].items() if name in names}
    held_out = {} if settings.get("split") == "test" else {"split": "test", "start_level": None}
    return CollectSettings(**({"game": dataset.manifest["source"]} | settings | held_out))


def find_rest(game: ProcgenGame, settings: CollectSettings, count: int, seed: int) -> Start:
    """Up to `count` states in which the player stands still: each `game` wanders for a while, then nothing is pressed
    until the last frames are equal. Levels differ as far as there are enough. Raises Impossible if hardly one rests."""
    n, rng = len(game.first), np.random.default_rng([seed, 6])
    found: list[tuple[bytes, np.ndarray, int]] = []
    for _ in range(ROUNDS):
        if len(found) == count:
            break
        wander = rng.integers(*WANDER, size=n, endpoint=True)
        steps = WANDER[1] + PATIENCE
        act = player_for(replace(settings, policy="explore"), game, rng, steps)
        equal, taken, before = np.zeros(n, int), np.zeros(n, bool), game.frames().copy()
        for step in range(steps):
            game.step(np.where(step < wander, act(), procgen_action("noop")))
            now = game.frames().copy()
            same = (now == before).all(axis=(1, 2, 3)) & ~game.first & (step >= wander)
            equal, before = np.where(same, equal + 1, 0), now
            for i in np.flatnonzero((equal >= REST) & ~taken & (step < wander + PATIENCE)):
                level = int(game.level_seed[i])
                of_level = sum(level == other for _, _, other in found)
                if len(found) < count and of_level < -(-count // settings.levels):
                    taken[i] = True
                    found.append((game.save(int(i)), now[i], level))
    if len(found) < FEWEST:
        raise Impossible(f"{len(found)} resting states found, {FEWEST} wanted")
    states, stills, levels = zip(*found, strict=True)
    frames = torch.from_numpy(np.stack(stills))[:, None].expand(-1, PROMPT, -1, -1, -1)
    return Start(list(states), frames, list(levels))


def find_play(game: ProcgenGame, settings: CollectSettings, count: int, seed: int) -> Start:
    """Up to `count` states in the midst of play: each `game` wanders for a while. Raises Impossible for hardly any."""
    n, rng = len(game.first), np.random.default_rng([seed, 6])
    wander = rng.integers(*WANDER, size=n, endpoint=True)
    act = player_for(replace(settings, policy="explore"), game, rng, WANDER[1])
    seen: list[np.ndarray] = []
    since, states = np.zeros(n, int), [b""] * n
    videos, levels = [np.empty(0)] * n, [0] * n
    for step in range(WANDER[1]):
        seen = [*seen[1 - PROMPT :], game.frames().copy()]
        since = np.where(game.first, 1, since + 1)  # frames of this episode
        for i in np.flatnonzero((step + 1 >= wander) & (since >= PROMPT)):
            if not states[i]:
                states[i], levels[i] = game.save(int(i)), int(game.level_seed[i])
                videos[i] = np.stack([frames[i] for frames in seen])
        game.step(act())
    found = [i for i in range(n) if states[i]][:count]
    if len(found) < FEWEST:
        raise Impossible(f"{len(found)} states in play found, {FEWEST} wanted")
    frames = torch.from_numpy(np.stack([videos[i] for i in found]))
    return Start([states[i] for i in found], frames, [levels[i] for i in found])


def play(game: ProcgenGame, start: Start, actions: list[int]) -> tuple[UInt8[Tensor, "n t h w c"], Some]:
    """What the game shows from each state, the first frame included, and in which of them no episode ended."""
    game.restore(start.states)
    seen, whole = [game.frames().copy()], np.ones(len(start.states), bool)
    for action in actions:
        game.step(np.full(len(start.states), action))
        seen.append(game.frames().copy())
        whole &= ~game.first
    return torch.from_numpy(np.stack(seen, axis=1)), whole


def paths(video: UInt8[Tensor, "n x t h w c"]) -> Paths:
    """Where the player is after each frame but the first."""
    moved = torch.cat(list(parallel_map(shifts, video, device=video.device))).unflatten(0, video.shape[:2])
    return (moved.cumsum(2).flip(-1) * torch.tensor([-1, 1])).numpy()


def agree(one: Float[np.ndarray, "... t 2"], other: Float[np.ndarray, "... t 2"]) -> Bool[np.ndarray, "..."]:
    """Whether two paths lead to the same side and as high."""
    one, other = np.broadcast_arrays(one, other)
    side = [np.sign(p[..., SIDEWAYS_AT - 1, 0]) * (abs(p[..., SIDEWAYS_AT - 1, 0]) >= SIDEWAYS) for p in (one, other)]
    high = [abs(one[..., t - 1, 1] - other[..., t - 1, 1]) <= HEIGHT for t in HEIGHT_AT]
    return (side[0] == side[1]) & high[0] & high[1]


def unlike(game: Videos, world: Videos) -> Float[np.ndarray, "n k a"]:
    """How far each key's future in the game is from each action's in the world: mean difference of pixels."""
    rows = [
        torch.stack([(true.int() - each.int()).abs().float().mean() for each in seen])
        for of_keys, seen in zip(game, world, strict=True)
        for true in of_keys
    ]
    return torch.stack(rows).unflatten(0, game.shape[:2]).numpy()


def nearest(distance: Float[np.ndarray, "n k a"]) -> Bool[np.ndarray, "n k a"]:
    """Whether no other key is nearer; several may be as near, where a wall makes them alike."""
    return distance <= distance.min(axis=1, keepdims=True)


class Fit(NamedTuple):
    """How well each action serves each key."""

    agrees: Bool[np.ndarray, "n k a"]
    distance: Float[np.ndarray, "n k a"]  # of the paths: it decides between actions that agree as often
    counts: Counted  # where no episode ends under the key

    def best_action(self, key: int, states: Some) -> int | None:
        """The action that fits best on some states; None if the key counts in none of them."""
        some = states & self.counts[:, key]
        if not some.any():
            return None
        share, distance = (values[some, key].mean(axis=0) for values in (self.agrees, self.distance))
        return int(np.lexsort((distance, -share))[0])


def compare(game: Paths, world: Float[np.ndarray, "n a steps 2"], counts: Counted) -> Fit:
    true, seen = game[:, :, None], world[:, None]
    return Fit(agree(true, seen), abs(true - seen).mean(axis=(-2, -1)), counts)


def halves(n: int) -> list[Some]:
    return [np.arange(n) % 2 == half for half in (0, 1)]


def judge(fit: Fit) -> Float[np.ndarray, "n k"]:
    """1 or 0 for every state and key: the action chosen on the other half; NaN where the key does not count."""
    scores = np.full(fit.counts.shape, np.nan)
    for half in halves(len(scores)):
        for key in range(fit.counts.shape[1]):
            if (action := fit.best_action(key, ~half)) is not None:
                mine = half & fit.counts[:, key]
                scores[mine, key] = fit.agrees[mine, key, action]
    return scores


def same_jump(game: Trajectory, world: Trajectory, counts: Some) -> Float[np.ndarray, " n"]:
    """1 or 0: does the world go up as the game does, and end as high? NaN where the game does not go up."""
    up, also_up = (path[:, :, 1].max(axis=1) >= HEIGHT for path in (game, world))
    back = abs(game[:, -1, 1] - world[:, -1, 1]) <= HEIGHT
    return np.where(counts & up, also_up & back, np.nan)


def measure_control(
    rollout: Rollout, num_actions: int, dataset: Dataset, states: int, seed: int, inverse: InverseDynamics | None = None
) -> tuple[Report, Scene]:
    """The control test from up to `states` states. inverse: trained on this footage, it then looks at the frames too.
    Raises Impossible if this footage does not allow it."""
    if why := why_impossible(dataset):
        raise Impossible(why)
    settings = settings_of(dataset)
    followed = settings.game in FOLLOWED
    find, held = (find_rest, HELD) if followed else (find_play, HELD_IN_VIEW)
    game, names = procgen_game(settings, states, seed), procgen_controls(settings.game).names
    start = find(game, settings, states, seed)
    if len(start.states) < states:
        game = procgen_game(settings, len(start.states), seed)
    real, whole = zip(*(play(game, start, [procgen_action(name)] * held) for name in names), strict=True)
    played, counts = torch.stack(real, dim=1), np.stack(whole, axis=1)
    imagined = hold_actions(rollout, start.frames, num_actions, held)
    if followed:
        true = paths(played)
        fit, still = compare(true, paths(imagined), counts), agree(true, np.zeros_like(true))
        spread = true[:, :, -1].std(axis=1).sum(axis=1)
    else:
        distance = unlike(played, imagined)
        fit = Fit(nearest(distance), distance, counts)
        still = nearest(unlike(played, start.frames[:, None, -1:].expand(-1, -1, held + 1, -1, -1, -1)))[..., 0]
        spread = played.float().std(dim=1).mean((1, 2, 3, 4)).numpy()
    best_actions = [fit.best_action(key, np.ones(len(counts), bool)) for key in range(len(names))]
    scores = judge(fit)
    judged = ~np.isnan(scores)
    keys: dict[str, Report] = {
        name: {
            "share": float(scores[mine, key].mean()),
            "still": float(still[mine, key].mean()),
            "states": int(mine.sum()),
            "action": best_actions[key],
        }
        for key, (name, mine) in enumerate(zip(names, judged.T, strict=True))
        if mine.any()
    }
    report = {
        "game": settings.game,
        "states": len(counts),
        "levels": len(set(start.levels)),
        "frames": held,
        "seen": "camera" if followed else "picture",
        "share": float(np.mean([key["share"] for key in keys.values()])),
        "share_ci95": interval_of_columns(scores[:, judged.any(axis=0)], seed),
        "still": float(np.mean([key["still"] for key in keys.values()])),
        "keys": keys,
    }
    if "jump" in names and settings.game not in JUMPS_LATE:
        report["gravity"] = _gravity(rollout, game, start, fit, names, seed)
    if inverse:
        report |= _probe(inverse, played, imagined, counts, best_actions)
    shown = int(np.where(counts.all(axis=1), spread, -1).argmax())
    world = imagined[shown, [action or 0 for action in best_actions]]
    return report, Scene(list(names), played[shown], world)


def _gravity(
    rollout: Rollout, game: ProcgenGame, start: Start, fit: Fit, names: tuple[str, ...], seed: int
) -> Report | None:
    """Up with the jump key, then nothing pressed: is the player where the game's is? None if it never goes up."""
    keys, steps = ("jump", "noop"), [UP, DOWN]
    actions = torch.zeros(len(start.states), UP + DOWN, dtype=torch.long)
    for half in halves(len(actions)):
        chosen = torch.tensor([fit.best_action(names.index(key), ~half) or 0 for key in keys])
        actions[torch.from_numpy(half)] = chosen.repeat_interleave(torch.tensor(steps))
    played, counts = play(game, start, np.repeat([procgen_action(key) for key in keys], steps).tolist())
    imagined = torch.cat((start.frames[:, -1:], rollout(start.frames, actions)), dim=1)
    true, seen = (paths(video[:, None])[:, 0] for video in (played, imagined))
    scores = same_jump(true, seen, counts)
    scores = scores[~np.isnan(scores)]
    return bootstrap(scores, seed) if len(scores) else None


def _probe(
    inverse: InverseDynamics, played: Videos, imagined: Videos, counts: Counted, best_actions: list[int | None]
) -> dict[str, float]:
    """Mean over the keys of how often the inverse dynamics see the key that is held: in the world, and in the game."""

    def seen(video: UInt8[Tensor, "n t h w c"], key: int) -> float:
        pairs = torch.stack((video[:, :PROBED], video[:, 1 : PROBED + 1]), dim=2).flatten(0, 1)
        return float((controls_seen(inverse, pairs) == key).mean())

    found = [
        (seen(imagined[counts[:, key], action], key), seen(played[counts[:, key], key], key))
        for key, action in enumerate(best_actions)
        if action is not None
    ]
    return dict(zip(("probe_imagined", "probe_real"), np.mean(found, axis=0).tolist(), strict=True))
