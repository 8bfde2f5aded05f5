"""Tensors on disk: safetensors written atomically, the last few checkpoints of a run, never a pickle."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from minigenie.errors import UserError
from minigenie.files import parse_json, write_atomic
from minigenie.runtime import full_tensor, shard_like

Module = TypeVar("Module", bound=nn.Module)


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, Any] | None = None) -> None:
    """Write `tensors`, and `notes` as JSON beside them, so that the file holds all or is not there."""
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
                raise UserError("its notes are no object")
            return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(
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
        raise UserError(f"{path} does not fit the config.json beside it; copy both from one world")
    model = make()
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


class Checkpoints:
    """The last `keep` training states of one stage: step-00000120.safetensors and so on."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(
        self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], notes: dict[str, Any], write: bool
    ) -> None:
        """On every process, since a sharded model has a part of its state on each; the one that is to `write` does."""
        tensors = {f"model/{name}": full_tensor(tensor) for name, tensor in model.state_dict().items()}
        for i, optimizer in enumerate(optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{i}/{parameter}/{name}": full_tensor(tensor) for name, tensor in state.items()}
        if write:
            save_tensors(self.folder / f"step-{step:08d}.safetensors", tensors, {"step": step, **notes})
            for old in self.paths()[: -self.keep]:
                old.unlink()

    def load(self) -> "Checkpoint":
        """The newest state that can be read: that is what the others are kept for. ValueError if none of them can."""
        damage: ValueError | None = None
        for path in reversed(self.paths()):
            try:
                return Checkpoint(path, *load_tensors(path))
            except ValueError as error:
                damage = damage or error
        if damage:
            raise damage
        return Checkpoint(self.folder, {}, {})


class Checkpoint(NamedTuple):
    """Whole tensors by name, and notes; both are empty before the first checkpoint."""

    path: Path
    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.notes.get("step", 0))

    def restore_model(self, model: nn.Module) -> None:
        """Before it is sharded. ValueError, one line, if this is the state of something else; below too."""
        if self.tensors:
            with self._of_this_training():
                weights = {name[6:]: tensor for name, tensor in self.tensors.items() if name.startswith("model/")}
                model.load_state_dict(weights)

    def restore_optimizers(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Each tensor on the processes where its parameter is."""
        for i, optimizer in enumerate(optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            states: dict[int, dict[str, Tensor]] = {}
            with self._of_this_training():
                for name, tensor in self.tensors.items():
                    if name.startswith(f"optimizer/{i}/"):
                        number, key = name.split("/")[2:]
                        pattern = parameters[int(number)]
                        if tensor.shape == pattern.shape:
                            tensor = shard_like(pattern, tensor.to(pattern.device))
                        states.setdefault(int(number), {})[key] = tensor
                if states:
                    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})

    @contextmanager
    def _of_this_training(self) -> Iterator[None]:
        try:
            self.step  # noqa: B018
            yield
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError):
            cure = "delete it to go on from the one before, or begin again in a new --out"
            raise UserError(f"{self.path} is no state of this training; {cure}") from None
