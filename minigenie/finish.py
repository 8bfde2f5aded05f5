"""What a finished world's folder holds beside its weights, and a smaller copy of it to share."""

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from torch import Tensor, nn

from minigenie import __version__
from minigenie.checkpoint import Checkpoints, load_model, save_tensors
from minigenie.data.controls import entries
from minigenie.data.dataset import Dataset
from minigenie.files import write_atomic
from minigenie.pictures import save_picture
from minigenie.remote import CHECKSUMS, write_checksums
from minigenie.world import World, locate, read_config, world_config

KEYS = "1234567890qwertyuiopasdfghjklzxcvbnm"


def finish(world: World, dataset: Dataset, out: Path, prompts: int = 8) -> None:
    """Add to the world's folder what a player needs: start pictures, the actions' names and keys, a model card; then
    list it all with checksums."""
    if not (out / "README.md").exists():
        _write_beside(world, dataset, out, prompts)
    if not (out / CHECKSUMS).exists():
        write_checksums(out, [out / f"{name}.safetensors" for name in world.config.models] + files_beside(out))


def _write_beside(world: World, dataset: Dataset, out: Path, prompts: int) -> None:
    chosen = np.random.default_rng(0).permutation(len(dataset.episodes))[:prompts]
    for number, episode in enumerate(chosen):
        frames = dataset.episode_frames(int(episode))
        save_picture(np.asarray(frames[len(frames) // 3]), out / "prompts" / f"{number:02d}.png", zoom=1)
    write_atomic(out / "actions.json", json.dumps(plain_actions(world), indent=1).encode())
    write_atomic(out / "README.md", model_card(world, dataset).encode())


def plain_actions(world: World) -> list[dict[str, Any]]:
    """Names and keys before anybody has chosen some: those of the controls, or numbers."""
    if world.config.actions != "latent":
        return entries(world.config.inverse.controls)
    return [{"name": f"action {i}", "key": KEYS[i] if i < len(KEYS) else None} for i in range(world.num_actions)]


def files_beside(folder: Path) -> list[Path]:
    """What a player needs of the world in `folder` beside its weights."""
    names = ("config.json", "actions.json", "README.md", "report.json", "metrics.jsonl")
    return [folder / name for name in names if (folder / name).exists()] + sorted((folder / "prompts").glob("*.png"))


def export_world(folder: str | Path, out: Path, unfinished: bool = False) -> list[str]:
    """A copy of the world `folder` without the traces of its training, its weights `halved`. unfinished: of a run
    that goes on, models that are not trained yet as they were last saved. Gives the names of those that are missing.
    Raises FileExistsError if `out` is there, or as World.load does."""
    folder = locate(folder)
    models = {name: _weights(folder, name, unfinished) for name in world_config(folder).models}
    if out.exists():
        raise FileExistsError(f"{out} exists; choose a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unready = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    for name, weights in models.items():
        if weights:
            save_tensors(unready / f"{name}.safetensors", halved(weights))
    for path in files_beside(folder):
        copy = unready / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    missing = [name for name, weights in models.items() if not weights]
    if not missing:
        write_checksums(unready, [unready / f"{name}.safetensors" for name in models] + files_beside(unready))
    unready.chmod(0o755)
    unready.rename(out)
    return missing


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as bfloat16, but codebooks as they are, since codes lie close together."""
    exact = {key for key, value in weights.items() if "quantizer" in key or value.ndim < 2}
    return {key: value if key in exact else value.bfloat16() for key, value in weights.items()}


def _weights(folder: Path, name: str, unfinished: bool) -> dict[str, Tensor]:
    """Of a model that is trained; if `unfinished`, else as last saved, or none."""
    path = folder / f"{name}.safetensors"
    if path.exists() or not unfinished:
        return load_model(path, getattr(world_config(folder), f"make_{name}")).state_dict()
    joint = name in ("lam", "dynamics") and read_config(folder).get("joint")
    prefix = f"model/{name}." if joint else "model/"
    saved = Checkpoints(folder / "checkpoints" / ("dynamics" if joint else name)).load().tensors
    return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}


def model_card(world: World, dataset: Dataset) -> str:
    height, width, _ = world.frame_shape
    sizes = ", ".join(f"{name} {count_parameters(getattr(world, name)) / 1e6:.1f} M" for name in world.config.models)
    return f"""# A MiniGenie world

Learned from video by the method of [Genie](https://arxiv.org/abs/2402.15391): frames of {height}x{width},
{describe_actions(world)}, {world.fps:g} frames per second.

- Footage: {dataset.manifest["source"]} ({dataset.manifest["generator"]}), split {dataset.manifest["split"]},
  {dataset.num_frames:,} frames. Settings: `{json.dumps(dataset.manifest["settings"])}`
- Parameters: {sizes}
- Made with MiniGenie {__version__}; `config.json` has the recipe, `metrics.jsonl` the training curves,
  `report.json` the measurements once `minigenie eval` has run.

Imagine from it: `minigenie rollout . --prompt prompts/00.png --actions 0,0,3,1 --out clip.mp4`

It repeats what it saw and invents the rest; it is no faithful copy of the game. Weights are safetensors.
"""


def describe_actions(world: World) -> str:
    names = ", ".join(world.config.inverse.controls)
    return {
        "latent": f"{world.num_actions} latent actions",
        "found": f"{world.num_actions} actions ({names}) found by what the scene does out of rest, nothing labelled",
        "labels": f"{world.num_actions} actions ({names}) learnt from a few labelled frames",
        "true": f"{world.num_actions} actions ({names}) recorded with the footage",
    }[world.config.actions]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
