"""MiniGenie: turn unlabelled video into a world you can play (Genie, arXiv:2402.15391)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigenie.data.collect import collect
    from minigenie.data.dataset import Dataset
    from minigenie.data.ingest import ingest
    from minigenie.eval.measure import evaluate
    from minigenie.pipeline import train_world
    from minigenie.recipes import recipe_named
    from minigenie.settings import CollectSettings, IngestSettings
    from minigenie.world import World, read_prompt

__version__ = "0.1.0"
__all__ = [
    "CollectSettings", "Dataset", "IngestSettings", "World", "collect", "evaluate", "ingest", "read_prompt",
    "recipe_named", "train_world",
]  # fmt: skip

_MODULES = {
    "data.collect": ["collect"],
    "data.dataset": ["Dataset"],
    "data.ingest": ["ingest"],
    "eval.measure": ["evaluate"],
    "pipeline": ["train_world"],
    "recipes": ["recipe_named"],
    "settings": ["CollectSettings", "IngestSettings"],
    "world": ["World", "read_prompt"],
}


def __getattr__(name: str) -> Any:
    """torch takes seconds to import, so what needs it is imported when it is first asked for."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"minigenie.{module}"), name)
    raise AttributeError(f"module 'minigenie' has no attribute {name!r}")
