"""MiniGenie: turn unlabelled video into a world you can play (Genie, arXiv:2402.15391)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigenie.world import World

__all__ = ["World"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `minigenie --help` should not.
    if name == "World":
        from minigenie.world import World

        return World
    raise AttributeError(f"module 'minigenie' has no attribute {name!r}")
