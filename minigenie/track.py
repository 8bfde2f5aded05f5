"""Where runs are watched: their metrics and pictures in TensorBoard, Weights & Biases or Trackio, as they come.

Metrics are called by their stage, as in tokenizer/loss, and counted by its steps.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigenie.config import to_dict
from minigenie.errors import UserError
from minigenie.pipeline import Recipe
from minigenie.settings import Tracker
from minigenie.train import Progress

Log = Callable[[str, int, dict[str, float], np.ndarray | None], None]  # stage, step, metrics, picture


@contextmanager
def tracking(tracker: Tracker, out: Path, recipe: Recipe) -> Iterator[Callable[[Progress], None]]:
    """A callback for the progress of the run in `out`, which begins to track with the first. ValueError, one line, if
    the tracker is not installed."""
    if find_spec(tracker) is None:
        raise UserError(f"--track {tracker} needs {tracker}; run `pip install 'minigenie[{tracker}]'`")
    log: Log | None = None
    with ExitStack() as stack:

        def watch(progress: Progress) -> None:
            nonlocal log
            if not log:
                tracked = _tensorboard(out, recipe) if tracker == "tensorboard" else _runs_of(tracker, out, recipe)
                log = stack.enter_context(tracked)
            path = out / "samples" / f"{progress.stage}-{progress.step:08d}.png"
            log(progress.stage, progress.step, progress.metrics, np.array(Image.open(path)) if path.exists() else None)

        yield watch


@contextmanager
def _tensorboard(out: Path, recipe: Recipe) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    def log(stage: str, step: int, metrics: dict[str, float], picture: np.ndarray | None) -> None:
        for name, value in metrics.items():
            writer.add_scalar(f"{stage}/{name}", value, step)
        if picture is not None:
            writer.add_image(f"{stage}/sample", picture, step, dataformats="HWC")

    with SummaryWriter(str(out / "tensorboard")) as writer:
        writer.add_text("recipe", f"```json\n{json.dumps(to_dict(recipe), indent=1)}\n```")
        yield log


@contextmanager
def _runs_of(tracker: Tracker, out: Path, recipe: Recipe) -> Iterator[Log]:
    """One run for one folder, whoever goes on with it, of wandb or trackio, which speaks its language."""
    module, folder = import_module(tracker), out.resolve()

    def log(stage: str, step: int, metrics: dict[str, float], picture: np.ndarray | None) -> None:
        line: dict[str, Any] = {f"{stage}/{name}": value for name, value in metrics.items()}
        if picture is not None:
            line[f"{stage}/sample"] = module.Image(picture)
        if line:
            run.log({f"{stage}/step": step, **line})

    key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    run = module.init(
        project="minigenie",
        config=to_dict(recipe),
        resume="allow",
        **{"name": folder.name, "id": key, "dir": out} if tracker == "wandb" else {"name": f"{folder.name}-{key}"},
    )
    with ExitStack() as stack:
        if tracker == "wandb":
            stack.enter_context(run)  # which tells a run that failed
            for stage in recipe.models:
                run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        else:
            stack.callback(run.finish)
        yield log
