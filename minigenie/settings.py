"""What the commands can be told, each thing once, with its default and its help. Nothing here is slow to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from minigenie.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]
Actions = Literal["latent", "found", "labels", "true"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Device = Annotated[str | None, arg(help="cuda, mps or cpu; the best there is by default.")]
WorldFolder = Annotated[  # text: a Path would make one slash of the two in an address
    Positional[str],
    arg(help="Folder made by train; or coinrun, the world that comes with the package; or an address: hf://user/name."),
]


def read_size(text: str) -> int | tuple[int, int]:
    """One side of a square frame, or HEIGHTxWIDTH."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"size is {text!r}; give one number of pixels, or height and width as in 96x160")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


Size = Annotated[
    int | tuple[int, int],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|HxW",
        instance_from_str=lambda words: read_size(words[0]),
        is_instance=lambda size: isinstance(size, int | tuple),
        str_from_instance=lambda size: [str(size) if isinstance(size, int) else "x".join(map(str, size))],
    ),
]
FIRST_TEST_LEVEL = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """All that decides which frames of a game come out.

    Args:
        game: coinrun, any other Procgen game, or toy.
        frames: How many to collect.
        split: Which levels: train has those from 0, test those from 1,000,000.
        mode: Difficulty of the levels.
        backgrounds: Paint the game's backgrounds; without them they are black.
        themes: Use all of the game's looks; without, one of each.
        levels: How many different levels.
        start_level: Number of the first level; by default as split says.
        policy: random draws each action anew, as in the paper; explore gets further into the levels; expert looks ahead
            and solves most levels of CoinRun.
        seed: Seed of the policy and the order of levels.
        num_envs: Games played side by side.
    """

    game: Positional[str]
    frames: int = 100_000
    split: Literal["train", "test"] = "train"
    mode: Literal["easy", "hard"] = "hard"
    backgrounds: bool = True
    themes: bool = True
    levels: int = 10_000
    start_level: int | None = None
    policy: Literal["random", "explore", "expert"] = "random"
    seed: int = 0
    num_envs: int = 16

    @property
    def first_level(self) -> int:
        if self.start_level is not None:
            return self.start_level
        return FIRST_TEST_LEVEL if self.split == "test" else 0


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """All that decides which frames of videos come out.

    Args:
        size: Side of the square frames in pixels, or height and width, as in 96x160.
        fps: Frames a second to keep.
        fit: crop fills the square and loses the edges; letterbox keeps them and adds black.
        split: Share of the videos to hold out, in the folder OUT-test; of very few, the ends of long takes.
        min_frames: Shortest take worth keeping, in frames.
        keep_duplicates: Keep takes that repeat an earlier one.
        camera: Of a robot dataset, which of its cameras; the first by name by default.
        bins: Of a robot dataset, cut each dimension of continuous actions into so many; 0 leaves actions out.
    """

    size: Size = 64
    fps: float = 10.0
    fit: Literal["crop", "letterbox"] = "crop"
    split: float = 0.0
    min_frames: int = 16
    keep_duplicates: bool = False
    camera: str | None = None
    bins: int | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """A recipe, and what to change of it.

    Args:
        recipe: tiny or laptop (2 CPU cores), speedrun, pocket or coinrun (a GPU), or paper.
        max_steps: At most so many steps in each stage.
        save_every: Steps between checkpoints.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
        joint: Train latent actions and dynamics together, as in the paper.
        seed: Of everything random.
        set: Change one field of the recipe, as in --set dynamics.transformer.dim=256.
    """

    recipe: str = "tiny"
    max_steps: int | None = None
    save_every: int | None = None
    precision: Precision | None = None
    joint: bool = False
    seed: int | None = None
    set: UseAppendAction[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a page is served.

    Args:
        port: Where to listen; 0 takes any free one.
        host: 127.0.0.1 is this machine only; 0.0.0.0 lets the network in, with the token of the printed address.
        open: Open the browser, where there is a display.
        allow: Name of a proxy, as in --allow hub.example.org: pages of its may send requests here, and frame this page.
    """

    port: int = 8000
    host: str = "127.0.0.1"
    open: bool = True
    allow: UseAppendAction[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """How a world is played.

    Args:
        max_players: How many at once, each in a world of their own.
        fps: Target rate; the world's own by default.
        seed: Seed of the sampling.
        footage: Held-out dataset for the split view.
        compiled: Compile the world first: a minute's wait for faster frames. On CPU it takes a C++ compiler.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
    """

    max_players: int = 4
    fps: float | None = None
    device: Device = None
    seed: int = 0
    footage: str | None = None
    compiled: bool = False
    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """What to imagine.

    Args:
        prompt: The picture to begin with; the world's first own one by default.
        actions: Comma-separated names or numbers, such as right*8,jump,0.
        out: The file to write, .mp4 or .gif.
        seed: Seed of the sampling.
    """

    world: WorldFolder
    prompt: Path | None = None
    actions: str = ""
    out: Path = Path("rollout.mp4")
    seed: int = 0
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What to measure, or to compare.

    Args:
        paths: A world and a dataset of levels or videos that it never saw, or several; with --compare, worlds, or the
            folders that eval --out wrote to.
        out: Folder for what is written; the (first) world's own by default. The world coinrun needs one.
        clips: How many clips to measure on.
        seed: Seed of the choice of clips and the sampling.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
        compare: Put worlds side by side, from the report.json of each.
    """

    paths: Positional[tuple[str, ...]]
    out: Path | None = None
    clips: int = 128
    seed: int = 0
    device: Device = None
    precision: Precision = "auto"
    compare: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is measured of this machine.

    Args:
        what: train: a step of each stage. play: a frame. data: loading and ingest.
        world: A world to measure too, with play: a folder, a name or an address.
        recipes: Those whose training steps to measure; coinrun and paper take minutes a step on a CPU.
        parts: Measure these steps alone, with so many clips at a time instead of the recipe's own, and say which number
            is the fastest. What does not fit in memory is left out.
        only: Measure nothing but the items whose name has this in it.
        rounds: How often each item is timed; the items take turns.
        large: Measure the reference sizes W1, W2 and W3 too; minutes a step on a CPU.
        compiled: Measure a compiled world too; on a CPU it takes a C++ compiler and a minute.
        json: File for the measurements.
    """

    what: Positional[Literal["all", "train", "play", "data"]] = "all"
    world: Positional[str | None] = None
    recipes: tuple[str, ...] = ("tiny",)
    parts: tuple[int, ...] = ()
    only: str = ""
    rounds: int = 7
    large: bool = False
    compiled: bool = False
    device: Device = None
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise UserError(f"rounds is {self.rounds}; a median takes at least 3")
