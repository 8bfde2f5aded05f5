"""Tensors on disk: safetensors written atomically, the last few checkpoints of a run, never a pickle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from minigenie.config import parse_json
from minigenie.data.dataset import write_atomic

Module = TypeVar("Module", bound=nn.Module)


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, Any] | None = None) -> None:
    """Write `tensors`, and `notes` as JSON beside them, so that the file holds all or is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(tensors, {"notes": json.dumps(notes or {})}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes. FileNotFoundError or ValueError with one line if the file is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the folder again, or train it again")
    try:
        with safe_open(path, "pt") as file:
            notes = parse_json((file.metadata() or {}).get("notes", "{}"))
            if not isinstance(notes, dict):
                raise ValueError("its notes are no object")
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}); copy the folder again, or train it again"
        ) from None


def save_model(path: Path, model: nn.Module) -> None:
    save_tensors(path, model.state_dict())


def load_model(path: Path, make: Callable[[], Module]) -> Module:
    """The model that `make` makes, with the weights of `path`, ready for use: evaluating, without gradients."""
    tensors, _ = load_tensors(path)
    with torch.device("meta"):  # what a config that lies asks for may be larger than any memory
        expected = make().state_dict()
    if {name: each.shape for name, each in tensors.items()} != {name: each.shape for name, each in expected.items()}:
        raise ValueError(f"{path} does not fit the config.json beside it; copy both from one world")
    model = make()
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


class Checkpoints:
    """The last `keep` training states of one stage: step-00000120.safetensors and so on."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], notes: dict[str, Any]) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for i, optimizer in enumerate(optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{i}/{parameter}/{name}": tensor for name, tensor in state.items()}
        save_tensors(self.folder / f"step-{step:08d}.safetensors", tensors, {"step": step, **notes})
        for old in self.paths()[: -self.keep]:
            old.unlink()

    def load(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """Restore the newest state, into both. Returns its notes, {} if there is none yet."""
        path, tensors, notes = self._newest()
        if not notes:
            return {}
        try:
            model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")})
            for i, optimizer in enumerate(optimizers):
                states: dict[int, dict[str, Tensor]] = {}
                for name, tensor in tensors.items():
                    if name.startswith(f"optimizer/{i}/"):
                        parameter, key = name.split("/")[2:]
                        states.setdefault(int(parameter), {})[key] = tensor
                optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
            return {"step": int(notes["step"]), **notes}
        except (RuntimeError, ValueError, KeyError, TypeError):
            cure = "delete it to go on from the one before, or begin again in a new --out"
            raise ValueError(f"{path} is no state of this training; {cure}") from None

    def _newest(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
        """The newest state that can be read: that is what the others are kept for. ValueError if none of them can."""
        damage: ValueError | None = None
        for path in reversed(self.paths()):
            try:
                return path, *load_tensors(path)
            except ValueError as error:
                damage = damage or error
        if damage:
            raise damage
        return self.folder, {}, {}
