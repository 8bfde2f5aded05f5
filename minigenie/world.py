"""The three models joined into a world: give it some frames, then step it with latent actions.

Every frame is computed once: tokenizer and dynamics keep its keys and values as long as the world remembers it, for
`context_frames` frames. The naive way, which runs all of them again for every pass, stays beside it as the reference
(`rollout(cached=False)`).

Dimensions:  b batch (worlds side by side)   t frames   n patches per frame   h w c a frame
"""

import sys
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie.camera import History
from minigenie.checkpoint import load_model
from minigenie.config import from_dict
from minigenie.dynamics import Dynamics, DynamicsConfig, Given
from minigenie.ending import SURE, Ending, EndingConfig, Told
from minigenie.errors import UserError
from minigenie.files import cache_root, is_url, parse_json
from minigenie.inverse import InverseConfig, InverseDynamics
from minigenie.lam import LAMConfig, LatentActionModel
from minigenie.maskgit import Filled, SamplingConfig, fill_most_confident, sample_frame
from minigenie.nn.mosaic import Mosaic
from minigenie.nn.motion import clip_motions
from minigenie.nn.patches import patch_grid, to_float, to_uint8
from minigenie.nn.st_transformer import TimeCache
from minigenie.past import CapturedStep, Past, Snapshot
from minigenie.remote import fetch_world
from minigenie.runtime import can_compile, compiled, dtype_of, pick_device
from minigenie.settings import Actions, Precision
from minigenie.tokenizer import TokenizerConfig, VideoTokenizer

FORMAT, VERSION = "minigenie-world", 1
ActionModel = LatentActionModel | InverseDynamics
SHIPPED = Path(__file__).parent / "worlds"  # those that come with the package


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The models, how frames are sampled, and how many past frames the world remembers.

    actions: what they are. "latent" ones a latent action model finds (`lam`); with "labels" they are controls, which an
    inverse dynamics model (`inverse`) learns from some labelled frames and tells of all others; with "found" it learns
    them from what the scene does out of rest (minigenie.found), and nothing is labelled; with "true" they are controls
    recorded with the footage, and that model only serves to read other footage."""

    actions: Actions = "latent"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    lam: LAMConfig = field(default_factory=LAMConfig)
    inverse: InverseConfig = field(default_factory=InverseConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    ending: EndingConfig = field(default_factory=EndingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    context_frames: int = 15

    def __post_init__(self) -> None:
        if not 1 <= self.context_frames <= 10_000:
            raise UserError(f"context_frames is {self.context_frames}; a world must remember 1 to 10000 frames")
        if self.actions != "latent" and self.num_actions < 2:
            raise UserError(f"actions={self.actions} needs the names of two controls or more in inverse.controls")
        if self.lam.input == "pixels":
            patch_grid(self.lam.patch, self.tokenizer.frame_size)
        rows, columns = self.tokenizer.grid
        if rows % self.dynamics.group or columns % self.dynamics.group:
            raise UserError(f"group {self.dynamics.group} does not divide a frame's {rows}x{columns} tokens")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of those that it has: attributes of a World, and files in its folder."""
        ends = self.ending.dim or self.ending.lost
        return ("tokenizer", "lam", "dynamics", "ending") if ends else ("tokenizer", "lam", "dynamics")

    @property
    def sees_tokens(self) -> bool:
        """Whether actions are read off tokens, not frames."""
        return self.actions == "latent" and self.lam.input == "tokens"

    def make_tokenizer(self) -> VideoTokenizer:
        return VideoTokenizer(self.tokenizer)

    @property
    def num_actions(self) -> int:
        return self.lam.num_actions if self.actions == "latent" else self.inverse.num_actions

    def make_lam(self) -> ActionModel:
        """What reads the actions off a video."""
        if self.actions == "latent":
            return LatentActionModel(self.lam, self.tokenizer)
        return InverseDynamics(self.inverse, self.tokenizer.frame_size)

    def make_dynamics(self) -> Dynamics:
        return Dynamics(self.dynamics, self.tokenizer, self.num_actions)

    def make_ending(self) -> Ending:
        return Ending(self.ending, self.tokenizer)


class World:
    """`reset(frames)`, then `step(actions)` as long as you like; b worlds at once. Frames are uint8 on the CPU.

    precision: what the transformers compute in, and keep of the past. "auto" takes bfloat16 where the device is fast at
    it: a frame then takes two thirds of the time, and tokens that were a near thing come out differently.
    """

    def __init__(
        self,
        config: WorldConfig,
        tokenizer: VideoTokenizer,
        lam: ActionModel,
        dynamics: Dynamics,
        device: torch.device | str | None = None,
        fps: float = 10.0,
        precision: Precision = "float32",
        ending: Ending | None = None,
    ) -> None:
        self.config, self.fps = config, fps
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        self.dtype = dtype_of(self.device, precision)
        self.tokenizer = tokenizer.to(self.device).eval()
        self.lam = lam.to(self.device).eval()
        self.dynamics = dynamics.to(self.device).eval()
        self.ending = ending.to(self.device).eval() if ending else None
        stacks = (stack for model in (self.tokenizer, self.lam, self.dynamics) for stack in model.stacks)
        for parameter in (p for stack in stacks for p in stack.parameters()):
            parameter.data = parameter.data.to(self.dtype)
        self._past: Past | None = None
        self._generator = torch.Generator(self.device)
        self._use_cuda_graph = False
        self._captured_step: CapturedStep | None = None

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, precision: Precision = "float32") -> "World":
        """A world folder, rebuilt from its own config; or a world that comes with the package, by its name; or the
        world at an address, such as hf://user/name or s3://bucket/folder. device: None takes CUDA, MPS or CPU, the
        first there is. precision: see the class.

        Raises FileNotFoundError or ValueError, one line, if a file is missing, damaged or of another version; OSError,
        if an address cannot be read.
        """
        folder = locate(folder)
        config, values = world_config(folder), read_config(folder)
        models = {
            name: load_model(folder / f"{name}.safetensors", getattr(config, f"make_{name}")) for name in config.models
        }
        return cls(config, **models, device=device, fps=float(values["fps"]), precision=precision)

    def compile(self) -> "World":
        """Have the passes of `step` compiled by their first calls, which then take about a minute; for long sessions.
        On CUDA a whole frame then becomes one graph.

        Raises ValueError on a CPU without a C++ compiler and Python's headers.
        """
        if not can_compile(self.device):
            raise UserError("there is nothing to compile the world with; install g++ and python3-dev, or do without")
        self._use_cuda_graph = self.device.type == "cuda"
        options = {"cpp_wrapper": True} if self.device.type == "cpu" else {}  # else Python calls every product
        self.dynamics.fill = compiled(self.dynamics.fill, **options)  # type: ignore[method-assign]
        for stack in (self.dynamics.transformer, self.tokenizer.decoder):
            stack.step = compiled(stack.step, **options)  # type: ignore[method-assign]
        return self

    @property
    def num_actions(self) -> int:
        return self.config.num_actions

    def told(self) -> Told:
        """Of every world [b] whether its newest frame is the last of its episode, and whether that was won; on its
        device. It is drawn by its chance as tokens are, or at temperature 0 the likelier; never a true frame, nor in a
        world that knows no end. A world that has been lost for a while is over, too, if it knows of that
        (minigenie.ending). `step` goes on all the same."""
        told = self._current_past().told
        return Told(told > 0, told > 1)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return (*self.config.tokenizer.frame_size, 3)

    @torch.no_grad()
    def reset(self, frames: UInt8[Tensor, "b t h w c"] | np.ndarray, seed: int = 0) -> None:
        """Begin anew from true frames, uint8 [b t h w c] with t >= 1. seed: of all the sampling that follows."""
        self._set_past(self.encode_past(self._check_frames(frames)))
        self._generator.manual_seed(seed)

    @torch.no_grad()
    def reset_some(self, worlds: list[int], frames: UInt8[Tensor, "k t h w c"] | np.ndarray) -> None:
        """Begin some worlds of the batch anew, each from its own frames; the others go on undisturbed."""
        past = self._current_past()
        video = self._check_frames(frames)
        if len(set(worlds)) != len(video) or not all(0 <= world < past.b for world in worlds):
            raise UserError(f"worlds are {worlds}; give one of 0 to {past.b - 1} for each of {len(video)} clips")
        past.put(torch.tensor(worlds, device=self.device), self.encode_past(video, int(past.dynamics.slot)))

    @overload
    def step(self, actions: Int[Tensor, " b"] | np.ndarray | list[int]) -> Tensor: ...
    @overload
    def step(
        self, actions: Int[Tensor, " b"] | np.ndarray | list[int], certainty: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @torch.no_grad()
    def step(
        self, actions: Int[Tensor, " b"] | np.ndarray | list[int], certainty: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Imagine the next frame of every world: actions int [b] in 0..num_actions-1 -> frames uint8 [b h w c].

        certainty: give float [b] too, how sure the world was of each frame's tokens: the mean of their probabilities
        when they were filled in, 1 if there was no doubt."""
        frames, sure = self.step_on_device(actions)
        return (frames.cpu(), sure.cpu()) if certainty else frames.cpu()

    @torch.no_grad()
    def step_on_device(
        self, actions: Int[Tensor, " b"] | np.ndarray | list[int]
    ) -> tuple[UInt8[Tensor, "b h w c"], Float[Tensor, " b"]]:
        """As `step` with certainty, but both stay on the world's device."""
        past = self._current_past()
        leading_in = self.check_actions(actions, past.b)
        if not self._use_cuda_graph:
            return self._imagine(leading_in, past)
        if self._captured_step is None or not self._captured_step.matches(past, self.config.sampling):
            with torch.cuda.device(self.device):
                self._captured_step = CapturedStep(
                    self._imagine, leading_in, past, self.config.sampling, self._generator
                )
        frames, sure = self._captured_step(leading_in)
        return frames.clone(), sure.clone()  # the next replay writes over the graph's own

    def _imagine(self, action: Int[Tensor, " b"], past: Past) -> tuple[Tensor, Tensor]:
        given = self.next_given(action, past.history, past.frame, past.mosaic)
        tokens, sure = self._sample(partial(self.dynamics.fill, given, past.dynamics), past.b)
        return self.commit(tokens, given, past, self._luck(past.b)), sure.exp().mean(-1)

    def commit(
        self, tokens: Int[Tensor, "b n"], given: Given, past: Past, luck: Float[Tensor, " b"] | None = None
    ) -> UInt8[Tensor, "b h w c"]:
        """The frame of these tokens, which joins the past. luck: by which is told whether it is the last."""
        self.dynamics.commit(tokens, given, past.dynamics)
        past.frame.copy_(self.tokenizer.decode_next(tokens, past.decoder))
        self._go_on(past.mosaic, given, past.frame)
        past.remember(tokens, given)
        if self.ending is not None:
            over, won = self.ending.tell(past.tokens, luck)
            past.doubt.copy_(self.ending.doubt(past.tokens, past.doubt))
            past.told.copy_((over | (past.doubt > 0)).long() + won.long())
        return to_uint8(past.frame)

    def next_given(
        self, action: Int[Tensor, " b"], history: History, frame: Float[Tensor, "b h w c"], mosaic: Mosaic
    ) -> Given:
        """What is given of the next frame: the action, and what follows from it and from what was seen."""
        camera = self.dynamics.camera
        if camera is None:
            return Given(action)
        code = camera.likeliest_motion(history, action)
        moved = mosaic.look(frame, camera.motions[code])
        return Given(action, code, self.tokenizer.encode(moved[:, None])[:, 0])

    def _go_on(self, mosaic: Mosaic, given: Given, frame: Float[Tensor, "b h w c"]) -> None:
        if self.dynamics.camera is not None and given.motion is not None:
            mosaic.move(self.dynamics.camera.motions[given.motion], frame)

    def _history(self, tokens: Int[Tensor, "b n"], given: Given) -> History:
        """given: of the frame that these tokens are, and of those before."""
        if self.dynamics.camera is None or given.motion is None:
            return History(tokens, given.action[:, :0], given.action[:, :0])
        return self.dynamics.camera.history(tokens, given.motion, given.action)

    @torch.no_grad()
    def rollout(
        self,
        frames: UInt8[Tensor, "b p h w c"] | np.ndarray,
        actions: Int[Tensor, "b t"] | np.ndarray,
        seed: int = 0,
        cached: bool = True,
    ) -> UInt8[Tensor, "b t h w c"]:
        """Imagine a frame for every action after the true `frames`. cached=False: the naive reference, which computes
        all that the world remembers anew for every pass. Up to there the two are equal."""
        actions = torch.as_tensor(actions)
        if actions.ndim != 2:
            raise UserError(f"actions are {list(actions.shape)}; a rollout takes [worlds, steps]")
        if not actions.shape[1]:
            return torch.zeros(len(self._check_frames(frames)), 0, *self.frame_shape, dtype=torch.uint8)
        if not cached:
            return self._naive_rollout(self._check_frames(frames), actions, seed)
        self.reset(frames, seed)
        return torch.stack([self.step(column) for column in actions.unbind(1)], dim=1)

    def _naive_rollout(self, video: Tensor, actions: Tensor, seed: int) -> Tensor:
        self._generator.manual_seed(seed)
        keep, imagined = self.config.context_frames, []
        tokens = self.tokenizer.encode(to_float(video[:, -keep:]))
        given, mosaic = self._look_at(video[:, -keep:], tokens)
        frame = self.tokenizer.decode(tokens)[:, -1]
        for column in actions.unbind(1):
            past = tokens[:, -keep:]
            chosen = self.check_actions(column, len(video))
            coming = self.next_given(chosen, self._history(tokens[:, -1], given), frame, mosaic)
            given = given.then(coming)
            seen = given.map(lambda each: each[:, -keep - 1 :])

            def fill(filled: Filled, *rest: Any, past: Tensor = past, given: Given = seen) -> Filled:
                logits = self.dynamics.logits(torch.cat((past, filled.tokens[:, None]), dim=1), given)[:, -1]
                return fill_most_confident(filled, self.dynamics.mask_id, logits, *rest)

            tokens = torch.cat((tokens, self._sample(fill, len(video)).tokens[:, None]), dim=1)
            frame = self.tokenizer.decode(tokens[:, -keep - 1 :])[:, -1]
            self._go_on(mosaic, coming, frame)
            self._luck(len(video))
            imagined.append(to_uint8(frame).cpu())
        return torch.stack(imagined, dim=1)

    def fresh_copy(self, sampling: SamplingConfig | None = None, cuda_graph: bool = True) -> "World":
        """Another world of the same weights, at no frame yet. sampling: if not as in this one. cuda_graph: False for
        a few frames, which are not worth one of their own."""
        other = copy(self)
        other._use_cuda_graph = self._use_cuda_graph and cuda_graph
        other.config = replace(self.config, sampling=sampling or self.config.sampling)
        other._past, other._captured_step, other._generator = None, None, torch.Generator(self.device)
        return other

    def snapshot(self) -> Snapshot:
        """All that the next frames depend on, to come back to: for undo, or to plan."""
        return Snapshot(deepcopy(self._current_past()), self._generator.get_state())

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, as often as you like."""
        self._set_past(snapshot.past)
        self._generator.set_state(snapshot.generator)

    @torch.no_grad()
    def infer_actions(self, frames: UInt8[Tensor, "b t h w c"] | np.ndarray) -> Int[Tensor, "b steps"]:
        """The latent actions that lead from each true frame to the next: uint8 [b t h w c] -> int [b t-1]."""
        video = self._check_frames(frames)
        if video.shape[1] < 2:
            raise UserError("actions lie between frames; give at least 2 of them")
        return self._infer(video, self.tokenizer.encode(to_float(video)) if self.config.sees_tokens else None).cpu()

    def _check_frames(self, frames: Tensor | np.ndarray) -> Tensor:
        video = torch.as_tensor(frames)
        if video.ndim != 5 or tuple(video.shape[2:]) != self.frame_shape or video.dtype != torch.uint8:
            expected = f"uint8 [b t {' '.join(map(str, self.frame_shape))}]"
            raise UserError(f"frames are {video.dtype} {list(video.shape)}; this world takes {expected}")
        if not video.shape[0] or not video.shape[1]:
            raise UserError(f"frames are {list(video.shape)}; a world begins with at least one frame")
        return video.to(self.device)

    def check_actions(self, actions: Tensor | np.ndarray | list[int], b: int) -> Int[Tensor, " b"]:
        """Actions of b worlds on this world's device. UserError if they are not."""
        leading_in = torch.as_tensor(actions, device=self.device)
        if leading_in.shape != (b,) or leading_in.is_floating_point():
            raise UserError(f"actions are {list(leading_in.shape)}; give {b} integers, one per world")
        if leading_in.min() < 0 or leading_in.max() >= self.num_actions:
            raise UserError(f"actions {leading_in.tolist()} are out of range; use 0 to {self.num_actions - 1}")
        return leading_in.long()

    def _set_past(self, past: Past) -> None:
        """In place where it fits, so that what was recorded of the world's tensors goes on being of them."""
        if self._past is not None and self._past.b == past.b:
            self._past.copy_(past)
        else:
            self._past = deepcopy(past)

    def _current_past(self) -> Past:
        if self._past is None:
            raise UserError("the world has no frame to go on from; call reset(frames) first")
        return self._past

    def encode_past(self, video: UInt8[Tensor, "b t h w c"], slot: int = 0) -> Past:
        """The past that true frames make. slot: where the next frame is to be written."""
        video = video[:, -self.config.context_frames :]
        b, t = video.shape[:2]
        encoder, dynamics, decoder = (
            TimeCache(stack, b, self.config.context_frames, slot - t)
            for stack in (self.tokenizer.encoder, self.dynamics.transformer, self.tokenizer.decoder)
        )
        tokens = torch.stack([self.tokenizer.encode_next(frame, encoder) for frame in to_float(video).unbind(1)], 1)
        given, mosaic = self._look_at(video, tokens)
        for i in range(t):
            self.dynamics.commit(tokens[:, i], given.map(itemgetter((slice(None), i))), dynamics)
            frame = self.tokenizer.decode_next(tokens[:, i], decoder)
        _, motions, steps = self._history(tokens[:, -1], given)
        told, doubt = torch.zeros(b, dtype=torch.long, device=self.device), torch.full((b,), -SURE, device=self.device)
        return Past(dynamics, decoder, frame, told, doubt, tokens[:, [-min(t, 2), -1]], motions, steps, *mosaic)

    def _look_at(self, video: UInt8[Tensor, "b t h w c"], tokens: Int[Tensor, "b t n"]) -> tuple[Given, Mosaic]:
        """Of true frames: the actions that lead into them, inferred ones, how far the camera went, and what it saw."""
        frames, camera = to_float(video), self.dynamics.camera
        action = torch.full(tokens.shape[:2], self.dynamics.no_action, device=self.device)
        if video.shape[1] > 1:
            action[:, 1:] = self._infer(video, tokens)
        if camera is None:
            return Given(action), Mosaic.begin(frames[:, -1], 0)
        codes, seen = torch.full_like(action, camera.unknown), clip_motions(frames)
        if video.shape[1] > 1:
            codes[:, 1:] = camera.nearest(seen)
        # what moved is of no account, as none of the tokens is hidden
        return Given(action, codes, moved=tokens), camera.remember(frames, seen)

    def _infer(self, video: Tensor, tokens: Tensor | None) -> Int[Tensor, "b steps"]:
        return self.lam.infer(to_float(video) if tokens is None or not self.config.sees_tokens else tokens)

    def _sample(self, fill: Callable[..., Filled], b: int) -> Filled:
        masked = torch.full((b, self.config.tokenizer.num_patches), self.dynamics.mask_id, device=self.device)
        return sample_frame(fill, masked, self.config.sampling, self._generator)

    def _luck(self, b: int) -> Float[Tensor, " b"] | None:
        if self.ending is None or not self.config.sampling.temperature:
            return None
        return torch.rand(b, generator=self._generator, device=self.device)


def load_compiled(folder: str | Path, device: str | None, precision: Precision, b: int = 1) -> World:
    """As World.load, compiled for b worlds side by side, which takes about a minute. Where the compiler fails, not
    compiled, and a line on stderr says so. UserError where there is no compiler."""
    world = World.load(folder, device, precision).compile()
    try:
        try_step(world, b)
    except Exception as error:  # whatever a compiler fails with
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        print(f"note: the compiler fails ({why}); going on without", file=sys.stderr, flush=True)
        return World.load(folder, device, precision)
    return world


def try_step(world: World, b: int = 1) -> World:
    """A copy that has made a frame, in one MaskGIT step, and so has compiled what there is to compile."""
    trial = world.fresh_copy(replace(world.config.sampling, steps=1), cuda_graph=False)
    trial.reset(np.zeros((b, 1, *world.frame_shape), np.uint8))
    trial.step([0] * b)
    return trial


def locate(world: str | Path) -> Path:
    """A world's folder. What is no folder may be the name of a world that comes with the package, or the address of
    one, as text: then it is a copy in the cache, and errors are those of fetch_world."""
    if is_url(world):
        return fetch_world(str(world))
    folder = Path(world)
    named = len(folder.parts) == 1 and not folder.exists()
    return SHIPPED / folder if named and (SHIPPED / folder).is_dir() else folder


def output_folder(folder: Path, out: Path | None, name: str = "") -> Path:
    """Where to write about a world: `out`, or else its own folder. ValueError if that belongs to the package, or is a
    copy in the cache."""
    if out is None and (folder.parent == SHIPPED or folder.is_relative_to(cache_root())):
        where = "comes with the package" if folder.parent == SHIPPED else "lies in the cache"
        raise UserError(f"{folder.name} {where}, which is no place to write to; give a folder with --out")
    return out or folder / name


CONFIG_KEYS = ("actions", "tokenizer", "lam", "inverse", "dynamics", "ending", "sampling", "context_frames")


def read_config(folder: Path) -> dict[str, Any]:
    """The world's config.json. Raises FileNotFoundError or ValueError, one line."""
    path = folder / "config.json"
    if not path.is_file():
        names = ", ".join(sorted(shipped.name for shipped in SHIPPED.glob("*")))
        raise FileNotFoundError(
            f"{folder} is not a world, it has no config.json; make one with `minigenie train`, or take {names}, which "
            "comes with the package"
        )
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); copy the folder again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is not a world's config; give a folder made by `minigenie train`")
    if values.get("version") != VERSION:
        raise UserError(f"{path} has version {values.get('version')!r}, this MiniGenie reads {VERSION}; update one")
    fps: Any = values.get("fps")
    if type(fps) not in (int, float) or not 0 < fps <= 1000 or not isinstance(values.get("dataset"), dict):
        raise UserError(f"{path} is damaged (its fps is {fps!r}, or it lacks dataset); copy the folder again")
    return values


def world_config(folder: Path) -> WorldConfig:
    """What config.json says of the world itself. Raises FileNotFoundError or ValueError, one line."""
    values = read_config(folder)
    try:
        return from_dict(WorldConfig, {name: values[name] for name in CONFIG_KEYS if name in values})
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is damaged ({error}); copy the folder again") from None


def read_prompt(path: str | Path, frame_shape: tuple[int, int, int]) -> UInt8[Tensor, "1 1 h w c"]:
    """A picture of any size and mode as a world's first frame: cropped to its shape, scaled, transparency on black.

    Raises FileNotFoundError or ValueError, one line, if there is no such picture.
    """
    from minigenie.pictures import fit_picture

    if not Path(path).is_file():
        raise FileNotFoundError(f"prompt {path} does not exist; give a picture (png, jpg, ...)")
    return torch.from_numpy(fit_picture(path, frame_shape, f"prompt {path}"))[None, None]
