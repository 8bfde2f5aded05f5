"""A player who looks ahead: it tries out a plan in a copy of the game and follows the first that does well.

Made for CoinRun, where the way leads right. It cheats, since it searches in the game itself; what it leaves is footage
of somebody who walks, jumps when there is something to jump over, and could have jumped a little later.

Dimensions:  n games played side by side
"""

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from minigenie.data.collect import ProcgenGame

AHEAD = 24  # steps that a plan is tried for: a jump takes 15, and lands
COMMIT = 2  # steps of it that are played before the next search
STILL = 0.05  # tiles: who walks no further stands before a wall
ENOUGH = 3.0  # tiles to the right that make a plan a good one; walking makes 12
Plan = tuple[tuple[str, int], ...]  # actions, each with its number of steps; every plan goes on to the right
WALK: Plan = ()
JUMP: Plan = (("jump-right", 6),)
JUMPS: list[Plan] = [JUMP, (("right", 2), *JUMP), (("right", 4), *JUMP)]
WAYS_OUT: list[Plan] = [(("left", 4), *JUMP), (("left", 8), *JUMP), (("left", AHEAD),), (("noop", AHEAD),)]
RANDOM_PLANS = 4  # for where none of these leads anywhere
SOLVED, DEAD = 1000.0, -1000.0
BODY = struct.pack("<2f", 0.5, 0.5787)  # the agent's half width and height, by which a saved game shows where it is


class Expert:
    """Plays `game`; `trial` is a single one of the same kind, to search in. The same `rng`, the same actions."""

    def __init__(
        self, game: "ProcgenGame", trial: "ProcgenGame", actions: dict[str, int], rng: np.random.Generator
    ) -> None:
        self._game, self._trial, self._actions, self._rng = game, trial, actions, rng
        self._plans: list[list[int]] = [[] for _ in game.first]

    def act(self, playing: np.ndarray | None = None) -> np.ndarray:
        """The next action of every game, int [n]; those not `playing` (bool [n]) do nothing."""
        idle = np.zeros(len(self._plans), bool) if playing is None else ~playing
        due = [i for i, plan in enumerate(self._plans) if (not plan or self._game.first[i]) and not idle[i]]
        for i in due:
            self._plans[i] = self._steps(self._choose(self._game.save(i)))[:COMMIT]
        return np.array([self._actions["noop"] if idle[i] else plan.pop(0) for i, plan in enumerate(self._plans)])

    def _choose(self, state: bytes) -> Plan:
        """Walk on while that does well. Then jump, as late as can be without the next chance being the last: whoever
        learns from the footage will be late now and then."""
        gains = {WALK: self._gain(state, WALK)}
        if gains[WALK] >= ENOUGH:
            return WALK
        gains |= {plan: self._gain(state, plan) for plan in JUMPS}
        at_a_wall = abs(gains[WALK]) < STILL  # where waiting leads nowhere
        for plan, later in ((JUMPS[1], JUMPS[2]), (JUMPS[0], JUMPS[1]))[at_a_wall:]:
            if min(gains[plan], gains[later]) >= ENOUGH:
                return plan
        for plan in (*WAYS_OUT, *(self._random_plan() for _ in range(RANDOM_PLANS))):
            if max(gains.values()) < ENOUGH:
                gains[plan] = self._gain(state, plan)
        return max(gains, key=gains.__getitem__)

    def _gain(self, state: bytes, plan: Plan) -> float:
        """Tiles to the right that `plan` brings; more if it solves the level, less if it ends badly."""
        self._trial.restore([state])
        for step, action in enumerate(self._steps(plan)):
            self._trial.step(np.array([action]))
            if self._trial.first[0]:
                return SOLVED - step if self._trial.reward[0] > 0 else DEAD + step
        return tiles_from_left(self._trial.save(0)) - tiles_from_left(state)

    def _steps(self, plan: Plan) -> list[int]:
        return [self._actions[name] for name, count in (*plan, ("right", AHEAD)) for _ in range(count)][:AHEAD]

    def _random_plan(self) -> Plan:
        names = list(self._actions)
        return tuple((names[self._rng.integers(len(names))], int(self._rng.integers(3, 12))) for _ in range(2))


def tiles_from_left(state: bytes) -> float:
    """Where the agent of a saved CoinRun is: its x stands four floats before its size."""
    (x,) = struct.unpack_from("<f", state, state.index(BODY) - 16)
    return x
