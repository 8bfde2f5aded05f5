"""A learned world as a Gymnasium environment: `minigenie/World-v0`, alone or as a batch in one forward.

Importing this module registers it; so does the id "minigenie.env:minigenie/World-v0".

Dimensions:  b batch (worlds side by side)   t frames   h w c a frame
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from minigenie.ending import Told
from minigenie.errors import UserError
from minigenie.runtime import pick_device
from minigenie.settings import Precision
from minigenie.world import World, load_compiled, locate, read_prompt

Output = Literal["numpy", "torch"]
Array = Any  # by `output`: np.ndarray, or Tensor on the world's device
# of the frames before and after a step, uint8: as numpy of one member, [h w c], as torch of all, [b h w c] -> [b]
Reward = Callable[[Any, Any], Any]
PART = {"cpu": 64}  # worlds computed at a time; beyond that a CPU's caches no longer hold what a pass works on
PART_ELSEWHERE = 1024


class WorldEnv(gymnasium.Env[Array, np.int64]):
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

    `1.0` at the step that ends the episode if the world says that it is won, else `0.0`. Or
    `reward(frame, next_frame)`: called with the frames before and after each step, both uint8 `[h w 3]`, and what it
    returns is the reward. With `output="torch"` both are tensors `[1 h w 3]`, and so is what it returns, `[1]`.

    ## Starting State

    One of the pictures in the world folder's `prompts/`, chosen by the seed; or
    `reset(options={"prompt": prompt})`, where the prompt is a picture's path (cropped and scaled to fit), a frame
    uint8 `[h w 3]`, or some true frames in a row, uint8 `[t h w 3]`, of which the last is observed. The same seed,
    prompt and actions give the same frames, on the same machine.

    ## Episode End

    It terminates where the world says that its newest frame is the last one, as the game's own would be (`World.told`),
    or that it is lost; the first only a world knows whose footage said which episodes ended. It is truncated after 500
    steps, or `gymnasium.make(..., max_episode_steps=...)`.

    ## Arguments

    After `import minigenie.env`, `gymnasium.make("minigenie/World-v0", world="worlds/toy")` takes:

    | Parameter | Type | Default | Description |
    |---|---|---|---|
    | `world` | **str or Path** | | The world's folder, made by `minigenie train` |
    | `reward` | **callable** | `None` | `reward(frame, next_frame) -> float`; `None`: the world's |
    | `render_mode` | **str** | `None` | `"rgb_array"`: `render()` returns a copy of the newest frame |
    | `device` | **str** | `None` | Where the world runs; `None` takes CUDA, MPS or CPU, the first there is |
    | `output` | **str** | `"numpy"` | `"torch"`: all that `reset` and `step` give stays on the device, as tensors |
    | `precision` | **str** | `"float32"` | What the world computes in: `"float32"`, `"bfloat16"` or `"auto"` |
    | `compiled` | **bool** | `False` | Compile the world first, which takes about a minute |
    | `ends` | **bool** | `True` | Terminate where the world says that it is over; else never |

    Gymnasium's own checks want numpy: with tensors, `gymnasium.make(..., disable_env_checker=True)`.

    `info["certainty"]` after a step: how sure the world was of the frame, 0 to 1 (`World.step`).

    ## Vectorized environment

    `gymnasium.make_vec("minigenie/World-v0", num_envs=16, world=...)`: `WorldVectorEnv`, one forward for all.

    ## Version History

    * v0: Initial version.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10.0}  # noqa: RUF012  # as Gymnasium has it

    def __init__(
        self,
        world: str | Path,
        reward: Reward | None = None,
        render_mode: str | None = None,
        device: str | None = None,
        output: Output = "numpy",
        precision: Precision = "float32",
        compiled: bool = False,
        ends: bool = True,
    ) -> None:
        self._batch = batch = WorldVectorEnv(
            1, world, reward, render_mode, device, -1, AutoresetMode.DISABLED, output, precision, compiled, ends=ends
        )
        self.world, self.render_mode = batch.world, render_mode
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space
        self.metadata = {**self.metadata, "render_fps": self.world.fps}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._batch.np_random = self.np_random
        return self._batch.reset(options=options)[0][0], {}

    def step(self, action: int | np.int64 | Tensor) -> tuple[Array, Any, Any, Any, dict[str, Any]]:
        number = np.asarray(action.cpu())[()] if isinstance(action, Tensor) else action
        if not self.action_space.contains(number):
            raise UserError(f"action {number!r} is out of range; use an integer 0 to {self.world.num_actions - 1}")
        frames, rewards, over, truncated, infos = self._batch.step(np.array([number]))
        certainty = infos["certainty"][0]
        if self._batch.output == "torch":
            return frames[0], rewards[0], over[0], truncated[0], {"certainty": certainty}
        return frames[0], float(rewards[0]), bool(over[0]), False, {"certainty": float(certainty)}

    def render(self) -> np.ndarray | None:
        return self._batch.frames[0].numpy(force=True).copy() if self.render_mode else None


class WorldVectorEnv(VectorEnv[Array, Array, Array]):
    """A batch of `WorldEnv`, stepped in one forward, or in one for each `part` members.

    ## Description, Action Space, Observation Space, Rewards, Arguments

    `WorldEnv`'s, batched: frames uint8 `[b h w 3]`, actions int `[b]`; `reward` is called with one member's frames.

    With `output="torch"` it is called once, with those of all, and gives `[b]`; frames, rewards (float32), terminated,
    truncated (bool) and `infos["certainty"]` are tensors on the world's device; which members are at their end is known
    elsewhere too. Actions may be a tensor there.

    `part` is how many members are computed at a time, 64 on a CPU and 1,024 elsewhere by default. Each part has random
    numbers of its own: the same seed, prompts, actions and `part` give the same frames.

    ## Starting State

    Each member draws its own prompt. `reset(options={"prompt": ...})` takes what `WorldEnv` takes, for all members, or
    uint8 `[b t h w 3]`, for each its own. One seed for the batch: a member is not the `WorldEnv` of that seed.

    ## Episode End

    A member terminates as a `WorldEnv` does, and is truncated after `max_episode_steps` (`-1`: never). Then it begins
    anew from the prompt of the last `reset` or, without one, a newly drawn one: by Gymnasium's `autoreset_mode`, at the
    next step, which takes no notice of its action and gives reward 0 (`NEXT_STEP`, the default), at the same one
    (`SAME_STEP`, with the last frame in `infos["final_obs"]`), or when told to (`DISABLED`).
    `reset(options={"reset_mask": ...})`, booleans `[b]`, begins some members anew while the others go on."""

    metadata = {**WorldEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        world: str | Path,
        reward: Reward | None = None,
        render_mode: str | None = None,
        device: str | None = None,
        max_episode_steps: int = 500,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: Output = "numpy",
        precision: Precision = "float32",
        compiled: bool = False,
        part: int | None = None,
        ends: bool = True,
    ) -> None:
        for name, number in {"num_envs": num_envs, "part": 1 if part is None else part}.items():
            if not isinstance(number, int | np.integer) or number < 1:
                raise UserError(f"{name} is {number!r}; it must be an integer of at least 1")
        if not isinstance(max_episode_steps, int | np.integer) or (max_episode_steps < 1 and max_episode_steps != -1):
            raise UserError(f"max_episode_steps is {max_episode_steps!r}; give at least 1, or -1 for no limit")
        _check_choice("render_mode", render_mode, ("rgb_array", None))
        _check_choice("output", output, get_args(Output))
        _check_choice("precision", precision, get_args(Precision))
        _check_choice("autoreset_mode", autoreset_mode, (*AutoresetMode, *(mode.value for mode in AutoresetMode)))
        self.folder, self.reward, self.render_mode, self.output = locate(world), reward, render_mode, output
        part = part or PART.get(pick_device(device).type, PART_ELSEWHERE)
        self._members = [slice(i, min(i + part, num_envs)) for i in range(0, num_envs, part)]
        if compiled:
            self.world = load_compiled(self.folder, device, precision, min(part, num_envs))
        else:
            self.world = World.load(self.folder, device, precision)
        self._parts = [self.world, *(self.world.fresh_copy() for _ in self._members[1:])]
        shape = self.world.frame_shape
        self.single_observation_space = Box(0, 255, shape, np.uint8)
        self.single_action_space = Discrete(self.world.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_envs, self.max_episode_steps, self.ends = num_envs, max_episode_steps, ends
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "render_fps": self.world.fps, "autoreset_mode": self.autoreset_mode}
        self._where = self.world.device if output == "torch" else torch.device("cpu")
        prompts = [read_prompt(path, shape)[0] for path in sorted((self.folder / "prompts").glob("*.png"))]
        self.prompts = torch.stack(prompts).to(self._where) if prompts else None  # uint8 [prompts 1 h w c]
        self.frames = torch.zeros(num_envs, *shape, dtype=torch.uint8, device=self._where)
        self._steps, self._ended = np.zeros(num_envs, dtype=int), np.zeros(num_envs, dtype=bool)
        self._prompt: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        options, b = options or {}, self.num_envs
        if unknown := options.keys() - {"prompt", "reset_mask"}:
            raise UserError(
                f"unknown reset options {sorted(map(str, unknown))}; there are 'prompt' and, for a batch, 'reset_mask'"
            )
        mask = options.get("reset_mask", np.ones(b, dtype=bool))
        some = mask.numpy(force=True) if isinstance(mask, Tensor) else np.asarray(mask)
        if some.shape != (b,) or some.dtype != bool:
            raise UserError(f"the reset_mask is {some!r}; give {b} booleans, one for each member")
        prompt = options.get("prompt")
        videos = self._draw_prompts() if prompt is None else self._prompt_videos(prompt)
        if some.all():
            seeds = self.np_random.integers(2**31, size=len(self._parts)).tolist()
            for world, members, own in zip(self._parts, self._members, seeds, strict=True):
                world.reset(videos[members], seed=own)
        else:
            for world, members in zip(self._parts, self._members, strict=True):
                if some[members].any():
                    due = np.flatnonzero(some[members])
                    world.reset_some(due.tolist(), videos[members][due])
        # not in place: the agent may hold these frames
        self.frames = torch.where(self._tensor(some)[:, None, None, None], videos[:, -1], self.frames)
        self._prompt, self._steps[some], self._ended[some] = prompt, 0, False
        return self._give(self.frames), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        over = self._ended.copy()  # before this step
        if over.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            members = np.flatnonzero(over).tolist()
            how = "reset and a reset_mask" if self.num_envs > 1 else "reset"
            raise UserError(f"members {members} are at their end; begin them anew with {how}")
        chosen, before = self.world.check_actions(actions, self.num_envs), self.frames
        parts = zip(self._parts, self._members, strict=True)
        stepped = [world.step_on_device(chosen[members]) for world, members in parts]
        frames, certainty = (torch.cat(each).to(self._where) for each in zip(*stepped, strict=True))
        told = self._told()
        self.frames, rewards = frames, self._rewards(before, frames, told.won)
        infos: dict[str, Any] = {"certainty": self._give(certainty)}
        self._steps += 1
        terminated = told.over.numpy(force=True).copy()
        if over.any():
            self._begin_anew(over)
            rewards[self._tensor(over)] = 0
            terminated[over] = False
        truncated = self._steps == self.max_episode_steps
        self._ended = terminated | truncated
        if self._ended.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            ended = self._give(self._tensor(self._ended))
            infos |= {"final_obs": self._last_frames(self._ended), "_final_obs": ended}
            infos |= {"final_info": {"certainty": infos["certainty"]}, "_final_info": ended}
            self._begin_anew(self._ended.copy())
        flags = (self._give(self._tensor(each)) for each in (terminated, truncated))
        return self._give(self.frames), self._give(rewards), *flags, infos

    def _told(self) -> Told:
        """On the CPU, where it is decided who begins anew."""
        if self.world.ending is None or not self.ends:  # then nothing waits for the device
            return Told(*torch.zeros(2, self.num_envs, dtype=torch.bool))
        told = zip(*(world.told() for world in self._parts), strict=True)
        return Told(*(torch.cat(each).cpu() for each in told))

    def _rewards(self, before: Tensor, after: Tensor, won: Tensor) -> Tensor:
        """[b] of uint8 [b h w c]; float64 of numpy, as Gymnasium has it."""
        b = self.num_envs
        if self.reward is None:
            return won.to(self._where, torch.float32 if self.output == "torch" else torch.float64)
        if self.output == "numpy":
            pairs = zip(before.numpy(), after.numpy(), strict=True)
            return torch.tensor([float(self.reward(*pair)) for pair in pairs], dtype=torch.float64)
        rewards = self.reward(before, after)
        if not isinstance(rewards, Tensor) or rewards.shape != (b,):
            got = f"a tensor {list(rewards.shape)}" if isinstance(rewards, Tensor) else repr(rewards)
            raise UserError(f"the reward of {b} members is {got}; with output='torch' give a tensor [{b}]")
        return rewards.detach().to(self._where, torch.float32, copy=True)

    def _last_frames(self, ended: np.ndarray) -> Array:
        """Of those that ended: as Gymnasium has it, or, as torch, [b h w c] of all."""
        if self.output == "torch":
            return self.frames
        last = np.full(self.num_envs, None, dtype=object)
        for member in np.flatnonzero(ended):
            last[member] = self.frames[member].numpy().copy()
        return last

    def _tensor(self, flags: np.ndarray) -> Tensor:
        return torch.from_numpy(flags).to(self._where)

    def _give(self, values: Tensor) -> Array:
        """To the agent, as its own copy."""
        own = values.to(self._where, copy=True)
        return own if self.output == "torch" else own.numpy()

    def _begin_anew(self, some: np.ndarray) -> None:
        self.reset(options={"prompt": self._prompt, "reset_mask": some})

    def render(self) -> tuple[np.ndarray, ...] | None:
        return tuple(self.frames.numpy(force=True).copy()) if self.render_mode else None

    def _draw_prompts(self) -> Tensor:
        if self.prompts is None:
            raise UserError(f'{self.folder} has no pictures in prompts/; give one: reset(options={{"prompt": ...}})')
        return self.prompts[self.np_random.integers(len(self.prompts), size=self.num_envs)]

    def _prompt_videos(self, prompt: Any) -> Tensor:
        """A path, [h w c], [t h w c] or, for each its own, [b t h w c] -> uint8 [b t h w c]."""
        b, shape = self.num_envs, self.world.frame_shape
        if isinstance(prompt, Tensor):
            given = prompt
        elif isinstance(prompt, str | Path):
            given = read_prompt(prompt, shape)[0]
        else:
            given = torch.as_tensor(np.array(prompt))
        video = given[None] if given.ndim == 3 else given
        videos = video.expand(b, *video.shape) if video.ndim == 4 else video
        if videos.dtype != torch.uint8 or videos.shape[2:] != shape or len(videos) != b or not videos.shape[1]:
            size = " ".join(map(str, shape))
            raise UserError(
                f"the prompt is {str(given.dtype).removeprefix('torch.')} {list(given.shape)}; give a picture's path "
                f"or frames, uint8 [{size}] or [t {size}]" + (f" or [{b} t {size}]" if b > 1 else "")
            )
        return videos.to(self._where)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        *others, last = (repr(each) for each in choices if not isinstance(each, AutoresetMode))
        raise UserError(f"{name} is {value!r}; use {', '.join(others)} or {last}")


gymnasium.register(
    "minigenie/World-v0",
    entry_point="minigenie.env:WorldEnv",
    vector_entry_point="minigenie.env:WorldVectorEnv",
    max_episode_steps=500,
)
