"""From a dataset to a world: tokenizer, tokens, ending, latent actions, dynamics. Each stage is skipped when its file
is there.

A run's folder is the world's folder: config.json (the whole recipe), metrics.jsonl, samples/, checkpoints/, encoded/,
and the models as they are finished.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minigenie import __version__
from minigenie.batches import (
    MOST_MOTIONS,
    ending_batch,
    ending_moments,
    found_labels,
    label_batch,
    motions_around,
    recorded_controls,
    seen_by_camera,
)
from minigenie.camera import PAST, Camera, typical_motions
from minigenie.checkpoint import load_model, save_model
from minigenie.config import from_dict, to_dict
from minigenie.data.controls import controls_of
from minigenie.data.dataset import MANIFEST, Dataset, sample_batch
from minigenie.data.joined import JoinedDataset
from minigenie.data.labels import Labels, check_labels, label_files, read_labels, recorded_labels
from minigenie.dynamics import Dynamics, Joint
from minigenie.encode import CLIP, encode_actions, encode_motions, encode_moved, encode_tokens, load_motions
from minigenie.ending import Ending
from minigenie.errors import UserError
from minigenie.files import write_atomic
from minigenie.finish import finish
from minigenie.inverse import InverseDynamics
from minigenie.lam import LatentActionModel
from minigenie.metrics import MetricsLog, read_metrics
from minigenie.nn.model import Model, Sample
from minigenie.nn.patches import to_float
from minigenie.optim import OptimConfig
from minigenie.runtime import autocast, barrier
from minigenie.tokenizer import VideoTokenizer
from minigenie.train import ENDLESS, Execution, FitConfig, Progress, fit
from minigenie.world import FORMAT, VERSION, ActionModel, Actions, World, WorldConfig, read_config

MEASURES = ("psnr", "cross_entropy", "accuracy")  # of a model's metrics, those that footage decides
HELD_OUT_CLIPS = 32
HELD_OUT_LABELS = 512
ENCODED = ("tokens", "motions", "camera", "moved")
REUSED = ("tokenizer.safetensors", "ending.safetensors", *(f"encoded/{name}.npy" for name in ENCODED))
STEPS = 32  # of the footage, from which the camera learns beside each clip
MOST_LABELS = 20_000  # that inverse dynamics learns from
HELD = 0.5  # share of the likeliest control's chance above which one stays that was held before
FOCUSING = 1_024  # pairs of frames that tell it where to look
ENDING_SHARE = 0.06  # of a time limit, beside the shares of all else
SURVEYED = 8  # shards, or as many as it takes to find enough pairs of frames


def ending_fit() -> FitConfig:
    """How an ending learns: two minutes on one core where a frame has 256 tokens."""
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.2, warmup=50, decay="late", final_lr=0.0)
    return FitConfig(steps=1_000, batch_size=256, clip_frames=1, optim=optim, execution=Execution(save_every=100))


@dataclass(frozen=True, kw_only=True)
class Recipe(WorldConfig):
    """A world, and how to train it. joint: LAM and dynamics in one model, as in the paper, trained as dynamics_fit
    says; else the LAM first. shares: of a time limit, for tokenizer, LAM and dynamics, beside what the ending takes.
    labels: with actions="labels", how many are taken from the recorded actions; 0 takes the dataset's sidecar, whose
    sha256 is `sidecar`."""

    tokenizer_fit: FitConfig
    lam_fit: FitConfig
    dynamics_fit: FitConfig
    ending_fit: FitConfig = field(default_factory=ending_fit)
    joint: bool = False
    labels: int = 0
    sidecar: str = ""
    shares: tuple[float, float, float] = (0.22, 0.13, 0.65)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dynamics_fit.clip_frames < 2 or self.lam_fit.clip_frames < 2:
            raise UserError("clip_frames of lam_fit and dynamics_fit must be at least 2: actions lie between frames")
        if self.context_frames >= self.dynamics_fit.clip_frames:
            raise UserError(
                f"context_frames {self.context_frames} is more than dynamics learns to use; set it to at most "
                f"dynamics_fit.clip_frames - 1 = {self.dynamics_fit.clip_frames - 1}"
            )
        if self.joint and self.actions != "latent":
            raise UserError(f"joint trains latent actions; leave it out with actions={self.actions}")
        if self.joint and self.dynamics.motions:
            advice = "set it and dynamics.memory to 0"
            raise UserError(f"dynamics.motions is {self.dynamics.motions}, but joint knows no camera; {advice}")
        if self.ending_fit.clip_frames != 1:
            raise UserError(f"clip_frames of ending_fit is {self.ending_fit.clip_frames}; it tells of single frames")
        if self.ending_fit.batch_size < 2:
            raise UserError(f"batch_size of ending_fit is {self.ending_fit.batch_size}; it takes at least 2")
        if self.seed < 0 or not all(share > 0 for share in self.shares):
            raise UserError(f"seed {self.seed} must be 0 or more, shares {self.shares} above 0")

    def share(self, *stages: str) -> float:
        """Of a time limit."""
        shares = dict(zip(("tokenizer", "lam", "dynamics"), self.shares, strict=True), ending=ENDING_SHARE)
        return sum(shares[stage] for stage in stages) / sum(shares[model] for model in self.models)


def with_ending(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe; without ends, if the dataset does not say which of its episodes ended."""
    return recipe if dataset.knows_ends else replace(recipe, ending=replace(recipe.ending, dim=0))


def with_actions(recipe: Recipe, dataset: Dataset, source: Actions, labels: int = 0) -> Recipe:
    """The recipe with actions from where they are to come from. ValueError or FileNotFoundError, one line, if the
    dataset has none there."""
    if source in ("latent", "found"):
        if labels:
            raise UserError(f"labels is {labels}, but {source} actions take none; add --actions labels")
        if source == "latent":
            return recipe
        # motion is what they are named by: who sees it learns no more than that
        inverse = replace(
            recipe.inverse,
            controls=found_labels(dataset, recipe.seed).names,
            motion=False,
            past=0,
            future=0,
            held=HELD,
        )
        return replace(recipe, actions=source, inverse=inverse)
    if source == "true":
        if labels:
            raise UserError(f"labels is {labels}, but with --actions true all are known; leave --labels out")
        if not dataset.has_actions:
            raise UserError(
                f"{dataset.name} has no recorded actions; take --actions latent, or label some with `minigenie teach`"
            )
        names, sidecar = recorded_labels(dataset, _labels_of_all(dataset), recipe.seed).names, ""
    elif labels:
        names, sidecar = recorded_labels(dataset, labels, recipe.seed).names, ""
    else:
        names = check_labels(read_labels(dataset)).names
        sidecar = hashlib.sha256(b"".join(path.read_bytes() for path in label_files(dataset))).hexdigest()
    inverse = replace(recipe.inverse, controls=names, held=0.0 if source == "true" else HELD)
    return replace(recipe, actions=source, inverse=inverse, labels=labels, sidecar=sidecar)


def _labels_of_all(dataset: Dataset) -> int:
    """How many recorded actions inverse dynamics learns from, where all are known."""
    return min(MOST_LABELS, len(dataset.windows(2)))


@dataclass
class Watcher:
    """Who looks on: `progress` during training, `work(what, done, total)` between."""

    progress: Callable[[Progress], None] = lambda progress: None
    work: Callable[[str, int, int], None] = lambda what, done, total: None

    def also(self, watch: Callable[[Progress], None]) -> None:
        """Tell it of progress, too."""
        shown = self.progress

        def both(progress: Progress) -> None:
            shown(progress)
            watch(progress)

        self.progress = both


def train_world(
    dataset: Dataset,
    recipe: Recipe,
    out: Path,
    *,
    device: torch.device,
    max_seconds: float | None = None,
    shard: bool = False,
    watcher: Watcher | None = None,
    beside: Path | None = None,
) -> World:
    """Train whatever of the world in `out` is not trained yet. max_seconds: for all stages together, by their shares.
    shard: cut the state of training up over the processes. beside: another run on this dataset, whose tokenizer and
    tokens this one takes over.

    Raises FileExistsError if `out` holds another run or other things, ValueError if the dataset does not fit.
    """
    run = Run(dataset, recipe, out, device, max_seconds, shard, watcher or Watcher())
    if beside and run.rank == 0:
        reuse_stages(beside, out)
    barrier()
    tokenizer = run.tokenizer()
    tokens = run.tokens(tokenizer)
    ending = run.ending(tokenizer, tokens)
    lam: ActionModel
    if recipe.joint:
        lam, dynamics = run.joint(tokenizer, tokens)
    else:
        lam = run.lam(tokenizer, tokens)
        dynamics = run.dynamics(tokenizer, lam, tokens, run.actions(lam, tokens))
    world = World(recipe, tokenizer, lam, dynamics, device, float(dataset.fps), ending=ending)
    if run.rank == 0:
        finish(world, dataset, out)
    return world


class Run:
    """One training run in its folder."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        max_seconds: float | None,
        shard: bool,
        watcher: Watcher,
    ) -> None:
        check_fits(recipe, dataset)
        if max_seconds is None and any(getattr(recipe, f"{stage}_fit").steps >= ENDLESS for stage in recipe.models):
            raise UserError("this recipe goes on until its time is over; give it some, as in --max-minutes 9")
        self.dataset, self.recipe, self.out, self.device, self.watcher = dataset, recipe, out, device, watcher
        self.max_seconds, self.shard = max_seconds, shard
        self.windows = lru_cache(dataset.training_windows)
        self.rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for stage in recipe.models:
            getattr(recipe, f"{stage}_fit").parts(processes)
        self.held_out = held_out(dataset)
        if self.rank == 0:
            prepare_folder(out, recipe, dataset)
            if all(line["stage"] != "data" for line in read_metrics(out / "metrics.jsonl")):
                MetricsLog(out / "metrics.jsonl", "data", 0, 0).add(0, 0, None, survey(dataset, recipe.seed))
        barrier()

    def tokenizer(self) -> VideoTokenizer:
        model = self._train("tokenizer", self.recipe.make_tokenizer, self._frames)
        assert isinstance(model, VideoTokenizer)
        return model

    def tokens(self, tokenizer: VideoTokenizer) -> np.ndarray:
        watch = partial(self.watcher.work, "tokens")
        path = self.out / "encoded/tokens.npy"
        with autocast(self.device, self.recipe.tokenizer_fit.execution.precision):
            return encode_tokens(self.dataset, tokenizer.to(self.device), self.recipe.context_frames, path, watch)

    def ending(self, tokenizer: VideoTokenizer, tokens: np.ndarray) -> Ending | None:
        if "ending" not in self.recipe.models:
            return None

        def make() -> Ending:
            model = self.recipe.make_ending()
            model.init_from_codebook(tokenizer.quantizer.codebook.cpu())
            return model

        batch = partial(ending_batch, ending_moments(self.dataset), tokens, self.recipe.seed)
        model = self._train("ending", make, batch)
        assert isinstance(model, Ending)
        return model

    def lam(self, tokenizer: VideoTokenizer, tokens: np.ndarray) -> ActionModel:
        if self.recipe.actions != "latent":
            return self.inverse()
        of_tokens = partial(self._integers, {"tokens": tokens})
        batch = self._frames if self.recipe.lam.input == "pixels" else of_tokens
        model = self._train("lam", self.recipe.make_lam, batch, tokenizer)
        assert isinstance(model, LatentActionModel)
        return model

    def inverse(self) -> InverseDynamics:
        def make() -> InverseDynamics:
            model = self.recipe.make_lam()
            assert isinstance(model, InverseDynamics)
            if not (self.out / "lam.safetensors").exists():
                frames = self.labels.frames[:: max(1, len(self.labels.frames) // FOCUSING)]
                model.fit_focus(*to_float(torch.from_numpy(self.dataset.clips(frames, 2))).unbind(1))
            return model

        def batch(config: FitConfig, step: int, clips: range) -> dict[str, Tensor]:
            rows = sample_batch(
                len(self.labels.frames), seed=self.recipe.seed, step=step, batch_size=config.batch_size
            )[clips.start : clips.stop]
            return label_batch(self.dataset, self.labels, rows, self.motions_around_labels)

        model = self._train("lam", make, batch)
        assert isinstance(model, InverseDynamics)
        return model

    @cached_property
    def labels(self) -> Labels:
        """What inverse dynamics learns from."""
        if self.recipe.actions == "labels" and not self.recipe.labels:
            return check_labels(read_labels(self.dataset))
        if self.recipe.actions == "found":
            return found_labels(self.dataset, self.recipe.seed)
        return recorded_labels(self.dataset, self.recipe.labels or _labels_of_all(self.dataset), self.recipe.seed)

    @cached_property
    def motions_around_labels(self) -> Tensor:
        """The motions of the picture around each label: [labels s 2]."""
        watch = partial(self.watcher.work, "motion")
        return motions_around(self.dataset, self.labels.frames, self.recipe, watch, self.motions, self.device)

    @cached_property
    def motions(self) -> np.ndarray | None:
        """How far the picture moves from each frame to the next: [f 2]. None if no camera wants to know."""
        if not self.recipe.dynamics.motions:
            return None
        watch = partial(self.watcher.work, "motions")
        return encode_motions(self.dataset, self.out / "encoded/motions.npy", self.device, watch)

    def actions(self, lam: ActionModel, tokens: np.ndarray) -> np.ndarray:
        path = self.out / "encoded/actions.npy"
        if self.recipe.actions == "true":
            return self._recorded()
        watch = partial(self.watcher.work, "actions")
        clip_frames = self.recipe.lam_fit.clip_frames if lam.looks_back else CLIP
        with autocast(self.device, self.recipe.lam_fit.execution.precision):
            found = encode_actions(
                self.dataset, lam.to(self.device), tokens, clip_frames, path, watch, motions=self.motions
            )
        if self.recipe.actions in ("found", "labels"):  # what is known need not be guessed
            found = found.copy()
            found[self.labels.frames] = self.labels.controls
        return found

    def _recorded(self) -> np.ndarray:
        """The control that leads on from every frame."""
        found = np.zeros(self.dataset.num_frames, np.uint8)
        for frames in np.array_split(windows := self.dataset.windows(2), -(-len(windows) // 2**16)):
            found[frames] = recorded_controls(self.dataset, frames, 2)[:, 0]
        return found

    def dynamics(
        self,
        tokenizer: VideoTokenizer,
        lam: ActionModel,
        tokens: np.ndarray,
        actions: np.ndarray,
    ) -> Dynamics:
        def make() -> Dynamics:
            model = self.recipe.make_dynamics()
            model.init_from_codebook(tokenizer.quantizer.codebook.cpu())
            if model.camera is not None and camera is not None:
                model.camera.set_motions(camera.motions.cpu())
            return model

        camera, seen = self.camera(tokenizer)
        clips = partial(self._integers, {"tokens": tokens, "actions": actions, **seen})

        def batch(config: FitConfig, step: int, some: range) -> dict[str, Tensor]:
            steps = self._steps(tokens, actions, seen["motions"], camera, config, step, some) if camera else {}
            return clips(config, step, some) | steps

        model = self._train("dynamics", make, batch, tokenizer, lam)
        assert isinstance(model, Dynamics)
        return model

    def camera(self, tokenizer: VideoTokenizer) -> tuple[Camera | None, dict[str, np.ndarray]]:
        """The camera's typical motions; and of every frame which of them leads on, and its tokens moved by that."""
        camera = self.recipe.make_dynamics().camera
        if camera is None or self.motions is None:
            return None, {}
        motions, path = self.motions, self.out / "encoded/camera.npy"
        if self.rank == 0 and not path.exists():
            frames = np.random.default_rng(self.recipe.seed).permutation(self.windows(2))[:MOST_MOTIONS]
            content = io.BytesIO()
            np.save(content, typical_motions(torch.from_numpy(motions[frames]), camera.unknown).numpy())
            write_atomic(path, content.getvalue())
        barrier()
        camera.set_motions(torch.tensor(load_motions(path, camera.unknown)))
        parts = np.array_split(motions, -(-len(motions) // MOST_MOTIONS))
        codes = np.concatenate([camera.nearest(torch.tensor(part)).numpy().astype(np.uint16) for part in parts])
        watch = partial(self.watcher.work, "moved tokens")
        camera, path = camera.to(self.device), self.out / "encoded/moved.npy"
        with autocast(self.device, self.recipe.tokenizer_fit.execution.precision):
            moved = encode_moved(self.dataset, tokenizer.to(self.device), camera, codes, motions, path, watch)
        return camera, {"motions": codes, "moved": moved}

    def joint(self, tokenizer: VideoTokenizer, tokens: np.ndarray) -> tuple[LatentActionModel, Dynamics]:
        torch.manual_seed(self.recipe.seed)
        lam, dynamics = LatentActionModel(self.recipe.lam, self.recipe.tokenizer), self.recipe.make_dynamics()
        paths = self.out / "lam.safetensors", self.out / "dynamics.safetensors"
        if all(path.exists() for path in paths):
            return load_model(paths[0], lambda: lam), load_model(paths[1], lambda: dynamics)
        dynamics.init_from_codebook(tokenizer.quantizer.codebook.cpu())
        model = Joint(lam, dynamics)

        def batch(config: FitConfig, step: int, clips: range) -> dict[str, Tensor]:
            return {**self._frames(config, step, clips), **self._integers({"tokens": tokens}, config, step, clips)}

        self._fit("dynamics", model, batch, self.recipe.share("lam", "dynamics"), tokenizer)
        if self.rank == 0:
            save_model(paths[0], lam)
            save_model(paths[1], dynamics)
        barrier()
        return lam, dynamics

    def _train(
        self,
        stage: str,
        make: Callable[[], Model],
        batch: Callable,
        *before: Model,
    ) -> Model:
        """before: the models that make a batch of held-out frames, tokenizer and LAM."""
        path = self.out / f"{stage}.safetensors"
        torch.manual_seed(self.recipe.seed)
        model = make()
        if path.exists():
            return load_model(path, lambda: model).to(self.device)
        self._fit(stage, model, batch, self.recipe.share(stage), *before)
        if self.rank == 0:
            save_model(path, model)
        barrier()
        return model

    def _fit(
        self,
        stage: str,
        model: Model,
        batch: Callable,
        share: float,
        *before: Model,
    ) -> None:
        config: FitConfig = getattr(self.recipe, f"{stage}_fit")
        shown = self._to_device(batch(config, 0, config.parts()[0]))
        unseen = self._held_out_batch(model, config, *before)
        # two passes a clip, where a step takes about three: at most 2 % of the time of training
        asked = min(HELD_OUT_CLIPS, max(1, 3 * config.batch_size * config.execution.sample_every // 100))

        def sample(model: Model) -> Sample:
            found = model.sample(shown, before[0] if before else model)
            some = {name: tensor[:asked] for name, tensor in (unseen or shown).items()}
            with autocast(self.device, config.execution.precision):
                numbers = held_out_metrics(model, unseen) | model.control_metrics(some)
            return Sample(found.metrics | numbers, found.picture)

        fit(
            model,
            partial(batch, config),
            config,
            self.out,
            stage=stage,
            seed=self.recipe.seed,
            device=self.device,
            max_seconds=self.max_seconds and self.max_seconds * share,
            shard=self.shard,
            sample=sample,
            watch=self.watcher.progress,
        )

    @torch.no_grad()
    def _held_out_batch(self, model: Model, config: FitConfig, *before: Model) -> dict[str, Tensor] | None:
        """Some held-out clips, as a batch of what `model` learns from."""
        if self.held_out is None or isinstance(model, Ending):
            return None
        if isinstance(model, InverseDynamics):
            return self._held_out_labels()
        try:
            windows = self.held_out.windows(config.clip_frames)
        except ValueError:  # all of it is shorter
            return None
        number = min(HELD_OUT_CLIPS, len(windows), config.execution.part)
        starts = np.random.default_rng(self.recipe.seed).choice(windows, number, replace=False)
        batch = self._to_device({"frames": torch.from_numpy(self.held_out.clips(starts, config.clip_frames))})
        for earlier in before:
            if isinstance(earlier, VideoTokenizer):
                batch["tokens"] = earlier.to(self.device).encode(to_float(batch["frames"]))
                if isinstance(model, Dynamics) and model.camera is not None:
                    batch |= seen_by_camera(model.camera.to(self.device), earlier, batch["frames"])
            elif isinstance(earlier, ActionModel):
                batch["actions"] = earlier.to(self.device).infer(earlier.video(batch))
        if self.recipe.actions == "true" and "actions" in batch and self._same_controls(self.held_out):
            batch["actions"] = self._to_device({"": recorded_controls(self.held_out, starts, config.clip_frames)})[""]
        return batch

    def _same_controls(self, dataset: Dataset) -> bool:
        """Whether its recorded actions are this run's."""
        controls = controls_of(dataset)
        return controls is not None and controls.names == self.recipe.inverse.controls

    def _held_out_labels(self) -> dict[str, Tensor] | None:
        """Recorded actions of held-out footage, if there are some and they are the same controls."""
        if self.held_out is None or not self._same_controls(self.held_out):
            return None
        number = min(HELD_OUT_LABELS, len(self.held_out.windows(2)))
        labels = recorded_labels(self.held_out, number, self.recipe.seed)
        around = motions_around(self.held_out, labels.frames, self.recipe, device=self.device)
        return self._to_device(label_batch(self.held_out, labels, np.arange(number), around))

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _starts(self, config: FitConfig, step: int, clips: range) -> np.ndarray:
        """First frames of some of the clips of a step's batch."""
        windows = self.windows(config.clip_frames)
        batch = sample_batch(len(windows), seed=self.recipe.seed, step=step, batch_size=config.batch_size)
        return windows[batch[clips.start : clips.stop]]

    def _frames(self, config: FitConfig, step: int, clips: range) -> dict[str, Tensor]:
        return {"frames": torch.from_numpy(self.dataset.clips(self._starts(config, step, clips), config.clip_frames))}

    def _integers(self, arrays: dict[str, np.ndarray], config: FitConfig, step: int, clips: range) -> dict[str, Tensor]:
        """Tokens [b t n] of some clips, and what leads on from all of their frames but the last: actions [b t-1],
        motions [b t-1], moved tokens [b t-1 n]."""
        frames = self._starts(config, step, clips)[:, None] + np.arange(config.clip_frames)
        upto = {name: frames if name == "tokens" else frames[:, :-1] for name in arrays}
        return {name: torch.from_numpy(array[upto[name]].astype(np.int64)) for name, array in arrays.items()}

    def _steps(
        self,
        tokens: np.ndarray,
        actions: np.ndarray,
        motions: np.ndarray,
        camera: Camera,
        config: FitConfig,
        step: int,
        clips: range,
    ) -> dict[str, Tensor]:
        """What the camera learns from beside some clips: single steps of the footage, and those before them."""
        windows = self.windows(2)
        batch = sample_batch(len(windows), seed=self.recipe.seed, step=step, batch_size=STEPS * config.batch_size)
        frames = windows[batch[STEPS * clips.start : STEPS * clips.stop]]
        back = frames[:, None] + np.arange(-PAST, 1)
        before = back < self.dataset.episode_starts[self.dataset.episodes_of(frames)][:, None]
        known = {"motions": (motions, camera.unknown), "actions": (actions, camera.no_action)}
        steps = {name: np.where(before, unknown, of[back].astype(np.int64)) for name, (of, unknown) in known.items()}
        steps["tokens"] = tokens[frames].astype(np.int64)
        return {f"step_{name}": torch.from_numpy(each) for name, each in steps.items()}


def check_fits(recipe: Recipe, dataset: Dataset) -> None:
    """ValueError if the dataset's frames are not the recipe's, or it has no clip that is long enough."""
    if dataset.frame_size != recipe.tokenizer.frame_size:
        here, wanted = ("x".join(map(str, size)) for size in (dataset.frame_size, recipe.tokenizer.frame_size))
        raise UserError(
            f"{dataset.name} has frames of {here}, the recipe is for {wanted}; leave tokenizer.frame_size out, or "
            f"ingest with --size {wanted}"
        )
    for stage in recipe.models:
        dataset.windows(getattr(recipe, f"{stage}_fit").clip_frames)
    if recipe.ending.dim and not dataset.knows_ends:
        raise UserError(f"{dataset.name} does not say that any of its episodes ended; set ending.dim to 0")
    with torch.device("meta"):  # sizes that do not fit together show before anything is written
        recipe.make_tokenizer(), recipe.make_lam(), recipe.make_dynamics()


def prepare_folder(out: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Write config.json into a new or empty folder, or see that the one there is of this very run. How it is executed
    and how long it goes on may have changed."""
    config = {
        "format": FORMAT,
        "version": VERSION,
        "minigenie": __version__,
        "fps": dataset.fps,
        "dataset": {key: dataset.manifest[key] for key in ("source", "generator", "split", "settings")},
        **to_dict(recipe),
    }
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose a folder for the run")
    if (out / "config.json").exists():
        there = read_config(out)
        names = [field.name for field in fields(Recipe)]
        try:
            before = to_dict(from_dict(Recipe, {name: there[name] for name in names if name in there}))
        except (ValueError, TypeError) as error:
            raise FileExistsError(
                f"{out} was begun by MiniGenie {there.get('minigenie')}, whose recipes were other ({error}); it cannot "
                "go on with this version, only be played: choose another folder"
            ) from None
        for key in config:
            old, new = (_without_schedule(key, each.get(key)) for each in ({**there, **before}, config))
            if key != "minigenie" and old != new:
                what = next((f"{key}.{k}" for k in _differing_keys(old, new)), key)
                raise FileExistsError(f"{out} holds a run with another {what}; choose another folder or delete it")
        if before != to_dict(recipe):
            write_atomic(out / "config.json", json.dumps(config, indent=1).encode())
    elif out.exists() and any(path.suffix != ".tmp" for path in out.iterdir()):
        raise FileExistsError(f"{out} already holds other files; choose a new or an empty folder")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "config.json", json.dumps(config, indent=1).encode())


def survey(dataset: Dataset, seed: int, pairs: int = 1024) -> dict[str, float]:
    """What the footage is like: frames, episodes, and the share of transitions that change the picture at least half as
    much as going somewhere else altogether does: cuts that nobody marked, which would teach the world to teleport. Only
    some shards are looked into, as each may have to be copied from object storage first."""
    windows, rng = dataset.windows(2), np.random.default_rng(seed)
    shards, counts = np.unique(dataset.shards_of(windows), return_counts=True)
    order = rng.permutation(len(shards))
    enough = max(SURVEYED, int(np.searchsorted(counts[order].cumsum(), pairs)) + 1)
    windows = windows[np.isin(dataset.shards_of(windows), shards[order[:enough]])]
    chosen = rng.choice(windows, min(pairs, len(windows)), replace=False)
    before, after = dataset.clips(chosen, 2).astype(np.float32).swapaxes(0, 1)
    change, elsewhere = (((before - other) ** 2).mean((1, 2, 3)) for other in (after, np.roll(before, 1, axis=0)))
    teleports = float((change > 0.5 * np.median(elsewhere)).mean()) if np.median(elsewhere) else 0.0
    return {"frames": dataset.num_frames, "episodes": len(dataset.episodes), "teleports": teleports}


def reuse_stages(other: Path, out: Path) -> None:
    """Tokenizer and tokens of a run whose config says that they are the same."""
    here, there = read_config(out), read_config(other)
    same = [here[key] == there[key] for key in ("dataset", "tokenizer", "context_frames", "seed")]
    same += [here.get("ending") == there.get("ending")]
    same += [here["dynamics"][key] == there["dynamics"].get(key, 0) for key in ("motions", "memory")]
    if not all(same):
        raise UserError(f"{other} is a run on other footage or with another tokenizer; train {out} on its own")
    for name in REUSED:
        if (other / name).exists() and not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out / name, (other / name).read_bytes())


def _without_schedule(key: str, value: Any) -> Any:
    """What of a run's config decides its results."""
    return {k: v for k, v in value.items() if k not in ("execution", "steps")} if key.endswith("_fit") else value


def _differing_keys(there: Any, here: Any) -> list[str]:
    both = isinstance(there, dict) and isinstance(here, dict)
    return [key for key in here if there.get(key) != here[key]] if both else []


def held_out(dataset: Dataset) -> Dataset | None:
    """The footage of unseen levels or videos beside a dataset, if there is some: NAME-test, or test beside train. Of
    several that of those which have some."""
    found = []
    for part in dataset.parts:
        folder = part.folder
        for beside in (folder.with_name(f"{folder.name}-test"), folder.with_name(folder.name.replace("train", "test"))):
            if part.url is None and beside != folder and (beside / MANIFEST).exists():
                other = Dataset.open(beside, verify=False)
                found += [other] if other.frame_size == dataset.frame_size else []
                break
    return JoinedDataset(found) if len(found) > 1 else found[0] if found else None


def held_out_metrics(model: Model, batch: dict[str, Tensor] | None) -> dict[str, float]:
    """The model's own metrics on clips that it never learns from, at the same random masks each time."""
    if batch is None or not model.ready:
        return {}
    torch.manual_seed(0)
    _, metrics = model(batch, 1.0)
    return {f"held_out_{name}": float(metrics[name]) for name in MEASURES if name in metrics}
