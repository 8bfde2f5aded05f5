"""The commands. Each imports what it runs, when it runs: torch takes seconds, `minigenie --help` should not."""

import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from minigenie.errors import UserError, line_for_user
from minigenie.settings import (
    Actions,
    BenchSettings,
    CollectSettings,
    Device,
    EvalSettings,
    IngestSettings,
    PlaySettings,
    RecipeSettings,
    RolloutSettings,
    ServerSettings,
    Tracker,
    WorldFolder,
)

Settings = TypeVar("Settings")
Flat = Annotated[Settings, arg(name="")]  # each field is a flag of the command's own


def demo(
    out: Path = Path("demo"),
    minutes: float = 8.0,
    play: bool = False,
    game: Literal["coinrun", "toy"] = "coinrun",
    seed: int = 0,
) -> None:
    """See it work: collect simple CoinRun footage, train two tiny worlds, measure them, leave pictures.

    Args:
        out: Folder for the footage (train, test) and the world, with its report and pictures. An interrupted demo goes
            on from there.
        minutes: For collecting and training; measuring comes on top. With fewer than 8 there is less footage, too.
        play: Open the world in the browser at the end.
        game: The toy world needs no extra package.
        seed: Seed of all that is random.
    """
    from minigenie.demo import run_demo

    run_demo(out, minutes, game, seed)
    if play:
        from minigenie.play.server import serve

        serve(out / "world", PlaySettings(footage=str(out / "test")), ServerSettings())


def collect(settings: Flat[CollectSettings], out: Path) -> None:
    """Play a game and keep the video.

    Args:
        out: Folder for the dataset. An interrupted run goes on from there.
    """
    from minigenie.console import working
    from minigenie.data.collect import collect as run
    from minigenie.info import describe_dataset

    with working(f"collect {settings.game}", "frames") as progress:
        dataset = run(settings, out, progress=progress)
    describe_dataset(dataset)


def ingest(
    paths: Positional[tuple[Path, ...]],
    out: Path,
    settings: Flat[IngestSettings],
    workers: int | None = None,
    ray: str | None = None,
    append: bool = False,
) -> None:
    """Turn video files, or folders of them, into a dataset.

    Args:
        paths: Videos (mp4, webm, mkv, gif, ...), folders of them, datasets of LeRobot or Minari.
        out: Folder for the dataset. An interrupted run goes on from there.
        workers: Processes that decode; one per core by default. The dataset does not depend on it.
        ray: Decode on a Ray cluster instead: its address, auto for the one here, local for a new one. Its machines must
            see the files and the dataset under the same names.
        append: Add new files to the dataset that is there; those that it has already are known by their content.
    """
    from minigenie.console import working
    from minigenie.data import append as adding
    from minigenie.data import ingest as making
    from minigenie.data.ingest import LOG, NoUsableVideo
    from minigenie.data.workers import cores
    from minigenie.info import describe_dataset, describe_rows

    try:
        with working("ingest", "videos") as progress:
            result = (adding.append if append else making.ingest)(
                paths, out, settings, workers=cores() if workers is None else workers, ray=ray,
                progress=lambda done, total, name: progress(done, total),
            )  # fmt: skip
    except NoUsableVideo as error:
        describe_rows(error.rows)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    describe_rows(result.rows)
    print(f"every row     {out / LOG}")
    for dataset in (result.dataset, result.test_dataset):
        if dataset is not None:
            describe_dataset(dataset)


def teach(dataset: Positional[str], server: Flat[ServerSettings], controls: str | None = None, seed: int = 0) -> None:
    """Give the actions their keys: watch short clips of your footage, and hold the keys that the player seems to hold.

    Args:
        dataset: Folder made by collect or ingest. The labels are kept in its labels.json.
        controls: What the player can do, by name, with commas, as in noop,left,right,jump,jump-left; by default what
            labels.json says, or the game's own. Without either, the page asks.
        seed: Seed of the order of clips.
    """
    from minigenie.teach.server import serve

    serve(dataset, controls, seed, server)


def train(
    settings: Flat[RecipeSettings],
    datasets: Positional[tuple[str, ...]] = (),
    out: Path | None = None,
    weights: tuple[float, ...] = (),
    actions: Actions = "latent",
    labels: int = 0,
    max_minutes: float | None = None,
    shard: bool = False,
    device: Device = None,
    track: Tracker | None = None,
    dry_run: bool = False,
) -> None:
    """Train a world: tokenizer, latent actions, dynamics. On the folder of an earlier run it goes on with that.

    Args:
        datasets: Folders made by collect or ingest, or their addresses in object storage, such as s3://bucket/folder.
        out: Folder for the run, and the world that comes of it.
        weights: What share of the clips each dataset gives, as in 1 3; by default each gives all that it has.
        actions: latent ones are found in the video alone, and so are found ones, by what a resting scene does next;
            labels makes them the controls of a few labelled frames; true takes those that were recorded.
        labels: With --actions labels, take so many from the recorded actions instead of what `teach` wrote.
        max_minutes: At most so long training, all stages together; their schedules end in time.
        shard: Under torchrun, cut weights and optimizer state up over the processes instead of keeping all on each.
        track: Show metrics and pictures in TensorBoard too, from OUT/tensorboard, in Weights & Biases or in Trackio.
        dry_run: Print the recipe, its parameters and its memory, and stop.
    """
    from minigenie.console import note_precision, training
    from minigenie.data.joined import open_datasets
    from minigenie.pipeline import train_world, with_actions, with_ending
    from minigenie.recipes import adjusted, describe
    from minigenie.runtime import pick_device, process_group
    from minigenie.track import tracking

    if not dry_run and (not datasets or out is None):
        raise UserError("train needs a dataset and --out; only --dry-run goes without")
    footage = open_datasets(datasets, weights, verify=False) if datasets else None
    recipe = adjusted(settings, footage.frame_size if footage else None)
    if footage is not None:
        recipe = with_ending(with_actions(recipe, footage, actions, labels), footage)
    elif actions != "latent":
        raise UserError(f"--actions {actions} depends on the dataset; name one")
    if dry_run or out is None:
        print(describe(recipe))
        return
    if max_minutes is not None and not max_minutes > 0:
        raise UserError(f"max_minutes is {max_minutes}; give training some time")
    where = pick_device(device)
    note_precision(recipe.dynamics_fit.execution.precision, where)
    with process_group(where) as (rank, _), training() as watcher, ExitStack() as stack:
        if track and rank == 0:
            watcher.also(stack.enter_context(tracking(track, out, recipe)))
        train_world(
            open_datasets(datasets, weights, verify=rank == 0), recipe, out, device=where, shard=shard,
            max_seconds=max_minutes and max_minutes * 60, watcher=watcher if rank == 0 else None,
        )  # fmt: skip
    if rank == 0:
        print(f"{out} is a world: minigenie play {out}, or minigenie rollout {out} --actions 0,0,1,1 --out clip.gif")


def play(world: WorldFolder, server: Flat[ServerSettings], settings: Flat[PlaySettings]) -> None:
    """Play a world in the browser."""
    from minigenie.play.server import serve

    serve(world, settings, server)


def rollout(settings: Flat[RolloutSettings]) -> None:
    """Imagine a clip from one picture and a list of actions, into an mp4 or gif file."""
    from minigenie.play.rollout import run

    run(settings)


def evaluate(settings: Flat[EvalSettings]) -> None:
    """Measure a world on held-out footage: report.json, report.html and pictures. Or compare worlds that were
    measured."""
    from minigenie.eval.run import run

    run(settings)


def bench(settings: Flat[BenchSettings]) -> None:
    """Measure how fast this machine is, and how far from its limit."""
    from minigenie.bench.run import run

    run(settings)


def doctor(run: Positional[str]) -> None:
    """Look for the usual diseases in a run or a world, and say what to change.

    Args:
        run: Folder made by train, or the address of a world; more can be told once eval has written its report.json
            there.
    """
    from minigenie.eval.doctor import diagnose, read_run, summary
    from minigenie.world import locate

    print("\n".join(summary(diagnose(read_run(locate(run))))))


def info(folders: Positional[tuple[str, ...]] = (".",)) -> None:
    """Say what a folder is: a dataset (with a contact sheet), a run, or a world.

    Args:
        folders: The folder, or several; of a dataset or a world also its address.
    """
    from minigenie.info import describe

    for folder in folders:
        describe(folder)


def export(
    world: WorldFolder, out: Path, unfinished: bool = False, web: bool = False, runtime: Path | None = None
) -> None:
    """Copy what a player needs of a trained world into a small folder of its own, weights in half the bytes.

    Args:
        out: New folder for the copy, to play, share or keep.
        unfinished: Of a run that goes on, what there is: models that are trained, others as last saved.
        web: Write a web page instead that plays the world in any browser, without a server of ours.
        runtime: With --web, a folder of the npm package onnxruntime-web to copy into the page, which else loads it from
            a public address.
    """
    from minigenie.console import working
    from minigenie.finish import export_world

    missing: list[str] = []
    if web and unfinished:
        raise UserError("--web plays whole worlds; leave out --unfinished")
    if runtime and not web:
        raise UserError("--runtime is for --web; add that, or leave it out")
    if web:
        from minigenie.web.export import export_site

        with working("export", "parts") as progress:
            export_site(world, out, runtime, progress)
    else:
        missing = export_world(world, out, unfinished)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if web:
        print(f"{out} is a page of {size / 1e6:.1f} MB: put it on any web server, or try it with")
        print(f"python -m http.server --directory {out}")
        return
    rest = f", still without {', '.join(missing)}" if missing else f": minigenie play {out}"
    print(f"{out} is a world of {size / 1e6:.1f} MB{rest}")


def push(
    world: WorldFolder,
    name: Positional[str],
    public: bool = False,
    revision: str | None = None,
    license: str | None = None,
) -> None:
    """Put a world on the Hugging Face hub, for yourself or for everybody, with a model card.

    Args:
        name: The repository there, user/name. It is made if it is not there.
        public: Let everybody see a repository that is made; without, only you.
        revision: Branch to put it on; main by default.
        license: What the model card says, by the hub's short name, as in mit or cc-by-4.0; else what it said before.
    """
    from minigenie.hub import push as run

    print(f"{run(world, name, public, revision, license)} is the world: minigenie play hf://{name}", end="")
    print(f"@{revision}" if revision else "")


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "collect": collect,
    "ingest": ingest,
    "teach": teach,
    "train": train,
    "play": play,
    "rollout": rollout,
    "eval": evaluate,
    "bench": bench,
    "doctor": doctor,
    "info": info,
    "export": export,
    "push": push,
}


def main(args: list[str] | None = None) -> None:
    """Run a command. What the user can mend ends with one line and exit code 2, an interrupt (Ctrl-C, SIGTERM) with
    130. A bug keeps its traceback; `--debug`, or MINIGENIE_DEBUG=1, shows that of every error."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Threads that wait for each other should soon sleep, not spin: beside another busy program, spinning ones make a
    # step of training ten times slower (docs/performance.md). OMP_WAIT_POLICY or GOMP_SPINCOUNT has it otherwise.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args or os.environ.get("MINIGENIE_DEBUG") == "1"
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="minigenie",
            description="Turn unlabelled video into a world you can play. --debug: errors show their traceback.",
            args=[each for each in args if each != "--debug"],
        )
    except KeyboardInterrupt as stop:
        if debug:
            raise
        print(str(stop) or "stopped; to go on with a demo, collect, ingest or train, run it again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug or (line := line_for_user(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
