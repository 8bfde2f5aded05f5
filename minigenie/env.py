"""A learned world as a Gymnasium environment: `minigenie/World-v0`, alone or as a batch in one forward.

Importing this module registers it; so does the id "minigenie.env:minigenie/World-v0".

Dimensions:  b batch (worlds side by side)   t frames   h w c a frame
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from minigenie.errors import UserError
from minigenie.world import World, locate, read_prompt

Reward = Callable[[np.ndarray, np.ndarray], float]  # a frame and the next one, uint8 [h w c]


def no_reward(frame: np.ndarray, next_frame: np.ndarray) -> float:
    return 0.0


class WorldEnv(gymnasium.Env[np.ndarray, np.int64]):
    """
    ## Description

    A world learned from video without labels (Genie, arXiv:2402.15391). The agent is given a picture and every step
    imagines the next one. Nothing here knows the game: what the world does is what its footage did, mistakes and all.

    ## Action Space

    `Discrete(num_actions)`: the latent actions that the world found by itself, `0` to `num_actions - 1`. What each of
    them does differs from world to world; the world folder's `actions.json` names them.

    ## Observation Space

    `Box(0, 255, (h, w, 3), uint8)`: the newest frame, RGB. The first is the prompt itself, the others are imagined.

    ## Rewards

    A learned world has none of its own. `reward(frame, next_frame)` is called with the frames before and after each
    step, both uint8 `[h w 3]`, and what it returns is the reward; without it the reward is `0.0`.

    ## Starting State

    One of the pictures in the world folder's `prompts/`, chosen by the seed; or
    `reset(options={"prompt": prompt})`, where the prompt is a picture's path (cropped and scaled to fit), a frame
    uint8 `[h w 3]`, or some true frames in a row, uint8 `[t h w 3]`, of which the last is observed. The same seed,
    prompt and actions give the same frames, on the same machine.

    ## Episode End

    The episode never terminates. It is truncated after 500 steps, or `gymnasium.make(..., max_episode_steps=...)`.

    ## Arguments

    After `import minigenie.env`, `gymnasium.make("minigenie/World-v0", world="worlds/toy")` takes:

    | Parameter | Type | Default | Description |
    |---|---|---|---|
    | `world` | **str or Path** | | The world's folder, made by `minigenie train` |
    | `reward` | **callable** | `0.0` always | `reward(frame, next_frame) -> float` |
    | `render_mode` | **str** | `None` | `"rgb_array"`: `render()` returns a copy of the newest frame |
    | `device` | **str** | `None` | Where the world runs; `None` takes CUDA, MPS or CPU, the first there is |

    `info["certainty"]` after a step: how sure the world was of the frame, 0 to 1 (`World.step`).

    ## Vectorized environment

    `gymnasium.make_vec("minigenie/World-v0", num_envs=16, world=...)`: `WorldVectorEnv`, one forward for all.

    ## Version History

    * v0: Initial version.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012  # as Gymnasium has it

    def __init__(
        self, world: str | Path, reward: Reward = no_reward, render_mode: str | None = None, device: str | None = None
    ) -> None:
        self._batch = batch = WorldVectorEnv(1, world, reward, render_mode, device, max_episode_steps=-1)
        self.world, self.render_mode = batch.world, render_mode
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space
        self.metadata = {**self.metadata, "render_fps": self.world.fps}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._batch.np_random = self.np_random
        return self._batch.reset(options=options)[0][0], {}

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise UserError(f"action {action!r} is out of range; use an integer 0 to {self.world.num_actions - 1}")
        frames, rewards, *_, infos = self._batch.step(np.array([action]))
        return frames[0], float(rewards[0]), False, False, {"certainty": float(infos["certainty"][0])}

    def render(self) -> np.ndarray | None:
        return self._batch.frames[0].copy() if self.render_mode else None


class WorldVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A batch of `WorldEnv`, stepped in one forward.

    ## Description, Action Space, Observation Space, Rewards, Arguments

    `WorldEnv`'s, batched: frames uint8 `[b h w 3]`, actions int `[b]`; `reward` is called with one member's frames.

    ## Starting State

    Each member draws its own prompt. `reset(options={"prompt": ...})` takes what `WorldEnv` takes, for all members, or
    uint8 `[b t h w 3]`, for each its own. One seed for the batch: a member is not the `WorldEnv` of that seed.

    ## Episode End

    No episode terminates; a member is truncated after `max_episode_steps` (`-1`: never). The step after that takes no
    notice of its action: it begins anew with reward 0 (Gymnasium's `AutoresetMode.NEXT_STEP`), from the prompt of the
    last `reset` or, without one, a newly drawn one. `reset(options={"reset_mask": ...})`, booleans `[b]`, begins some
    members anew while the others go on."""

    metadata = {**WorldEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        world: str | Path,
        reward: Reward = no_reward,
        render_mode: str | None = None,
        device: str | None = None,
        max_episode_steps: int = 500,
    ) -> None:
        if num_envs < 1:
            raise UserError(f"num_envs is {num_envs}; it must be at least 1")
        if max_episode_steps < 1 and max_episode_steps != -1:
            raise UserError(f"max_episode_steps is {max_episode_steps}; give at least 1, or -1 for no limit")
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode is {render_mode!r}; use 'rgb_array' or None")
        self.folder, self.reward, self.render_mode = locate(world), reward, render_mode
        self.world = World.load(self.folder, device)
        shape = self.world.frame_shape
        self.single_observation_space = Box(0, 255, shape, np.uint8)
        self.single_action_space = Discrete(self.world.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.metadata = {**self.metadata, "render_fps": self.world.fps}
        self.prompts = [read_prompt(path, shape)[0].numpy() for path in sorted((self.folder / "prompts").glob("*.png"))]
        self.frames = np.zeros((num_envs, *shape), dtype=np.uint8)
        self._steps = np.zeros(num_envs, dtype=int)
        self._prompt: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options, b = options or {}, self.num_envs
        if unknown := options.keys() - {"prompt", "reset_mask"}:
            raise UserError(
                f"unknown reset options {sorted(map(str, unknown))}; there are 'prompt' and, for a batch, 'reset_mask'"
            )
        some = np.asarray(options.get("reset_mask", np.ones(b, dtype=bool)))
        if some.shape != (b,) or some.dtype != bool:
            raise UserError(f"the reset_mask is {some!r}; give {b} booleans, one for each member")
        prompt = options.get("prompt")
        videos = self._draw_prompts() if prompt is None else self._prompt_videos(prompt)
        if some.all():
            self.world.reset(videos, seed=int(self.np_random.integers(2**31)))
        elif some.any():
            self.world.reset_some(np.flatnonzero(some).tolist(), videos[some])
        self.frames = np.where(some[:, None, None, None], videos[:, -1], self.frames)
        self._prompt, self._steps[some] = prompt, 0
        return self.frames.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        before, (frames, certainty) = self.frames, self.world.step(actions, certainty=True)
        self.frames = frames.numpy()
        rewards = np.array([self.reward(*pair) for pair in zip(before, self.frames, strict=True)], dtype=float)
        over = self._steps == self.max_episode_steps
        self._steps += 1
        if over.any():
            self.reset(options={"prompt": self._prompt, "reset_mask": over})
            rewards[over] = 0
        never = np.zeros(self.num_envs, dtype=bool)
        infos = {"certainty": certainty.numpy()}
        return self.frames.copy(), rewards, never, self._steps == self.max_episode_steps, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        return tuple(self.frames.copy()) if self.render_mode else None

    def _draw_prompts(self) -> np.ndarray:
        if not self.prompts:
            raise UserError(f'{self.folder} has no pictures in prompts/; give one: reset(options={{"prompt": ...}})')
        return np.stack([self.prompts[i] for i in self.np_random.integers(len(self.prompts), size=self.num_envs)])

    def _prompt_videos(self, prompt: Any) -> np.ndarray:
        """A path, [h w c], [t h w c] or, for each its own, [b t h w c] -> uint8 [b t h w c]."""
        b, shape = self.num_envs, self.world.frame_shape
        given = read_prompt(prompt, shape)[0].numpy() if isinstance(prompt, str | Path) else np.array(prompt)
        video = given[None] if given.ndim == 3 else given
        videos = np.repeat(video[None], b, axis=0) if video.ndim == 4 else video
        if videos.dtype != np.uint8 or videos.shape[2:] != shape or len(videos) != b or not videos.shape[1]:
            size = " ".join(map(str, shape))
            raise UserError(
                f"the prompt is {given.dtype} {list(given.shape)}; give a picture's path or frames, "
                f"uint8 [{size}] or [t {size}]" + (f" or [{b} t {size}]" if b > 1 else "")
            )
        return videos


gymnasium.register(
    "minigenie/World-v0",
    entry_point="minigenie.env:WorldEnv",
    vector_entry_point="minigenie.env:WorldVectorEnv",
    max_episode_steps=500,
)
