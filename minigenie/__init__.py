"""MiniGenie: turn unlabelled video into a world you can play (Genie, arXiv:2402.15391)."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigenie.world import World

# Threads that wait for each other should soon sleep, not spin: beside another busy program, spinning ones make a step
# of training ten times slower (docs/performance.md). OMP_WAIT_POLICY or GOMP_SPINCOUNT has it otherwise.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["World"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `minigenie --help` should not.
    if name == "World":
        from minigenie.world import World

        return World
    raise AttributeError(f"module 'minigenie' has no attribute {name!r}")


def _register(gymnasium: Any) -> None:
    """Make the world known as `minigenie/World-v0`."""
    gymnasium.register(
        "minigenie/World-v0",
        entry_point="minigenie.env:WorldEnv",
        vector_entry_point="minigenie.env:WorldVectorEnv",
        max_episode_steps=500,
    )


class _RegisterWithGymnasium(PathFinder):
    """Registers as soon as somebody imports gymnasium, which knows no plugins and is slow to import from here."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    _register(sys.modules["gymnasium"])
else:
    sys.meta_path.insert(0, _RegisterWithGymnasium)
