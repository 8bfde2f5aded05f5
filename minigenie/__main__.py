"""The commands. Each imports what it runs, when it runs: torch takes seconds, `minigenie --help` should not."""

import errno
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

if TYPE_CHECKING:
    import torch

    from minigenie.data.dataset import Dataset
    from minigenie.data.ingest import Row
    from minigenie.pipeline import Recipe

MAX_ROWS = 100  # of a table of files
Precision = Literal["auto", "float32", "bfloat16"]


def demo(
    out: Path = Path("demo"),
    minutes: float = 8.0,
    play: bool = False,
    game: Literal["coinrun", "toy"] = "coinrun",
    seed: int = 0,
) -> None:
    """See it work: collect simple CoinRun footage, train a tiny world, measure it, leave pictures.

    Args:
        out: Folder for the footage (train, test) and the world, with its report and pictures. An interrupted demo goes
            on from there.
        minutes: About how long it takes; four fifths of it train.
        play: Open the world in the browser at the end.
        game: The toy world needs no extra package.
        seed: Seed of all that is random.
    """
    from minigenie.demo import run_demo

    run_demo(out, minutes, game, seed)
    if play:
        from minigenie.play.server import serve

        serve(out / "world", footage=out / "test")


def collect(
    game: Positional[str],
    out: Path,
    frames: int = 100_000,
    split: Literal["train", "test"] = "train",
    mode: Literal["easy", "hard"] = "hard",
    backgrounds: bool = True,
    themes: bool = True,
    levels: int = 10_000,
    start_level: int | None = None,
    policy: Literal["random", "explore", "expert"] = "random",
    seed: int = 0,
    num_envs: int = 16,
) -> None:
    """Play a game and keep the video.

    Args:
        game: coinrun, any other Procgen game, or toy.
        out: Folder for the dataset. An interrupted run goes on from there.
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
    from minigenie.console import working
    from minigenie.data.collect import collect as run

    with working(f"collect {game}", "frames") as progress:
        dataset = run(
            game, out, frames=frames, split=split, mode=mode, backgrounds=backgrounds, themes=themes, levels=levels,
            start_level=start_level, policy=policy, seed=seed, num_envs=num_envs, progress=progress,
        )  # fmt: skip
    _describe_dataset(dataset)


def ingest(
    paths: Positional[tuple[Path, ...]],
    out: Path,
    size: int = 64,
    fps: float = 10.0,
    fit: Literal["crop", "letterbox"] = "crop",
    split: float = 0.0,
    min_frames: int = 16,
    keep_duplicates: bool = False,
    workers: int | None = None,
    ray: str | None = None,
) -> None:
    """Turn video files, or folders of them, into a dataset.

    Args:
        paths: Videos (mp4, webm, mkv, gif, ...) or folders.
        out: Folder for the dataset. An interrupted run goes on from there.
        size: Side of the square frames in pixels.
        fps: Frames a second to keep.
        fit: crop fills the square and loses the edges; letterbox keeps them and adds black.
        split: Share of the videos to hold out, in the folder OUT-test; of very few, the ends of long takes.
        min_frames: Shortest take worth keeping, in frames.
        keep_duplicates: Keep takes that repeat an earlier one.
        workers: Processes that decode; one per core by default. The dataset does not depend on it.
        ray: Decode on a Ray cluster instead: its address, auto for the one here, local for a new one. Its machines must
            see the files and the dataset under the same names.
    """
    from minigenie.console import working
    from minigenie.data.ingest import LOG, NoUsableVideo
    from minigenie.data.ingest import ingest as run
    from minigenie.data.workers import cores

    try:
        with working("ingest", "videos") as progress:
            result = run(
                list(paths), out, size=size, fps=fps, fit=fit, split=split, min_frames=min_frames,
                keep_duplicates=keep_duplicates, workers=cores() if workers is None else workers, ray=ray,
                progress=lambda done, total, name: progress(done, total),
            )  # fmt: skip
    except NoUsableVideo as error:
        _describe_rows(error.rows)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    _describe_rows(result.rows)
    print(f"every row     {out / LOG}")
    for dataset in (result.dataset, result.test_dataset):
        if dataset is not None:
            _describe_dataset(dataset)


def _describe_rows(rows: "list[Row]") -> None:
    from collections import Counter

    from minigenie.console import table

    shown = rows if len(rows) <= MAX_ROWS else [row for row in rows if row.reason][:MAX_ROWS]
    table(["file", "status", "frames", "episodes", "reason", "held out", "repeated"], shown)
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown):,} more files")
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(Counter(row.status for row in rows).items()))
    kept, held_out = sum(row.frames for row in rows), sum(row.test_frames for row in rows)
    repeated = sum(row.repeated for row in rows)
    print(f"files         {len(rows):,}: {counts}")
    print(f"frames        {kept:,} kept, {held_out:,} of them held out; {repeated:,} repeat others and are left out")


def train(
    dataset: Positional[str | None] = None,
    out: Path | None = None,
    recipe: str = "tiny",
    actions: Literal["latent", "found", "labels", "true"] = "latent",
    labels: int = 0,
    max_steps: int | None = None,
    max_minutes: float | None = None,
    save_every: int | None = None,
    precision: Precision | None = None,
    joint: bool = False,
    shard: bool = False,
    device: str | None = None,
    seed: int | None = None,
    set: UseAppendAction[tuple[str, ...]] = (),
    dry_run: bool = False,
) -> None:
    """Train a world: tokenizer, latent actions, dynamics. On the folder of an earlier run it goes on with that.

    Args:
        dataset: Folder made by collect or ingest, or its address in object storage, such as s3://bucket/folder.
        out: Folder for the run, and the world that comes of it.
        recipe: tiny or laptop (2 CPU cores), coinrun or speedrun (a GPU), or paper.
        actions: latent ones are found in the video alone, and so are found ones, by what a resting scene does next;
            labels makes them the controls of a few labelled frames; true takes those that were recorded.
        labels: With --actions labels, take so many from the recorded actions instead of what `teach` wrote.
        max_steps: At most so many steps in each stage.
        max_minutes: At most so long training, all stages together; their schedules end in time.
        save_every: Steps between checkpoints.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
        joint: Train latent actions and dynamics together, as in the paper.
        shard: Under torchrun, cut weights and optimizer state up over the processes instead of keeping all on each.
        device: cuda, mps or cpu; the best there is by default.
        seed: Of everything random.
        set: Change one field of the recipe, as in --set dynamics.transformer.dim=256.
        dry_run: Print the recipe, its parameters and its memory, and stop.
    """
    import dataclasses

    from minigenie.config import override
    from minigenie.recipes import describe, recipe_named

    chosen = override(recipe_named(recipe), set)
    how = {"save_every": save_every, "precision": precision}
    how = {name: value for name, value in how.items() if value is not None}
    if max_steps is not None or how:
        for name in ("tokenizer_fit", "lam_fit", "dynamics_fit"):
            fit = getattr(chosen, name)
            steps = fit.steps if max_steps is None else min(fit.steps, max_steps)
            fit = dataclasses.replace(fit, steps=steps, execution=dataclasses.replace(fit.execution, **how))
            chosen = dataclasses.replace(chosen, **{name: fit})
    if joint:
        chosen = dataclasses.replace(chosen, joint=True)
    if seed is not None:
        chosen = dataclasses.replace(chosen, seed=seed)
    if dry_run and (dataset is None or actions == "latent"):
        print(describe(chosen))
        return
    if dataset is None or (out is None and not dry_run):
        raise ValueError("train needs a dataset and --out; only --dry-run goes without")
    if actions != "latent" or labels:
        from minigenie.data.dataset import Dataset
        from minigenie.pipeline import with_actions

        chosen = with_actions(chosen, Dataset.open(dataset, verify=False), actions, labels)
    if dry_run:
        print(describe(chosen))
    elif out is not None:
        _train(dataset, out, chosen, max_minutes, device, shard)


def _train(
    folder: str, out: Path, recipe: "Recipe", max_minutes: float | None, device_name: str | None, shard: bool = False
) -> None:
    from minigenie.console import training
    from minigenie.data.dataset import Dataset
    from minigenie.pipeline import train_world
    from minigenie.runtime import pick_device, process_group

    if max_minutes is not None and not max_minutes > 0:
        raise ValueError(f"max_minutes is {max_minutes}; give training some time")
    device = pick_device(device_name)
    _note_precision(recipe.dynamics_fit.execution.precision, device)
    with process_group(device) as (rank, _), training() as watcher:
        dataset = Dataset.open(folder, verify=rank == 0)
        max_seconds = max_minutes and max_minutes * 60
        seen_by = watcher if rank == 0 else None
        train_world(dataset, recipe, out, device=device, max_seconds=max_seconds, shard=shard, watcher=seen_by)
    if rank == 0:
        print(f"{out} is a world: minigenie play {out}, or minigenie rollout {out} --actions 0,0,1,1 --out clip.gif")


def _note_precision(precision: Precision, device: "torch.device") -> None:
    from minigenie.runtime import fast_bfloat16

    if precision == "bfloat16" and not fast_bfloat16(device):
        print(f"note          this {device.type} is slow at bfloat16; float32 or auto is faster", file=sys.stderr)


def play(
    world: Positional[Path],
    port: int = 8000,
    host: str = "127.0.0.1",
    open: bool = True,
    max_players: int = 4,
    fps: float | None = None,
    device: str | None = None,
    seed: int = 0,
    footage: str | None = None,
    compiled: bool = False,
    precision: Precision = "auto",
) -> None:
    """Play a world in the browser.

    Args:
        world: Folder made by train, or coinrun, the world that comes with the package.
        port: Where to listen; 0 takes any free one.
        host: 127.0.0.1 is this machine only; 0.0.0.0 lets the network in, with the token of the printed address.
        open: Open the browser.
        max_players: How many at once, each in a world of their own.
        fps: Target rate; the world's own by default.
        device: cuda, mps or cpu; the best there is by default.
        seed: Seed of the sampling.
        footage: Held-out dataset for the split view.
        compiled: Compile the world first: a minute's wait for faster frames. On CPU it takes a C++ compiler.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
    """
    from minigenie.play.server import serve

    serve(
        world, host=host, port=port, open_browser=open, max_players=max_players, fps=fps, device=device, seed=seed,
        footage=footage, compiled=compiled, precision=precision,
    )  # fmt: skip


def teach(
    dataset: Positional[str],
    controls: str | None = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    open: bool = True,
    seed: int = 0,
) -> None:
    """Give the actions their keys: watch short clips of your footage, and hold the keys that the player seems to hold.

    Args:
        dataset: Folder made by collect or ingest. The labels are kept in its labels.json.
        controls: What the player can do, by name, with commas, as in noop,left,right,jump,jump-left; by default what
            labels.json says, or the game's own. Without either, the page asks.
        port: Where to listen; 0 takes any free one.
        host: 127.0.0.1 is this machine only; 0.0.0.0 lets the network in, with the token of the printed address.
        open: Open the browser.
        seed: Seed of the order of clips.
    """
    from minigenie.teach.server import serve

    serve(dataset, controls=controls, host=host, port=port, open_browser=open, seed=seed)


def rollout(
    world: Positional[Path],
    prompt: Path | None = None,
    actions: str = "",
    out: Path = Path("rollout.mp4"),
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Imagine a clip from one picture and a list of actions, into an mp4 or gif file.

    Args:
        world: Folder made by train, or coinrun, the world that comes with the package.
        prompt: The picture to begin with; the world's first own one by default.
        actions: Comma-separated names or numbers, such as right*8,jump,0.
        out: The file to write, .mp4 or .gif.
        seed: Seed of the sampling.
        device: cuda, mps or cpu; the best there is by default.
    """
    import torch

    from minigenie.console import working
    from minigenie.pictures import save_video
    from minigenie.play.actions import load_actions, resolve_actions
    from minigenie.world import World, locate, read_prompt, world_config

    if out.suffix not in (".mp4", ".gif"):
        raise ValueError(f"cannot write {out}; choose a name that ends in .mp4 or .gif")
    world = locate(world)
    choices = resolve_actions(actions, load_actions(world, world_config(world).num_actions))
    if not choices:
        raise ValueError("there are no actions to take; give some, as in --actions right*8,jump or 0,0,3,1")
    loaded = World.load(world, device)
    prompts = [prompt] if prompt else sorted((world / "prompts").glob("*.png"))
    if not prompts:
        raise FileNotFoundError(f"{world} has no pictures in prompts/; give one with --prompt")
    start = read_prompt(prompts[0], loaded.frame_shape)
    loaded.reset(start, seed)
    frames = [start[0, 0]]
    with working("rollout", "frames") as progress:
        for done, action in enumerate(choices, 1):
            frames.append(loaded.step([action])[0])
            progress(done, len(choices))
    print(f"{len(frames)} frames in {save_video(torch.stack(frames), out, loaded.fps)}")


def evaluate(
    paths: Positional[tuple[str, ...]],
    out: Path | None = None,
    clips: int = 128,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    compare: bool = False,
) -> None:
    """Measure a world on held-out footage: report.json, report.html and pictures. Or compare worlds that were measured.

    Args:
        paths: A world and a dataset of levels or videos that it never saw; with --compare, worlds, or the folders that
            eval --out wrote to.
        out: Folder for what is written; the (first) world's own by default. The world coinrun needs one.
        clips: How many clips to measure on.
        seed: Seed of the choice of clips and the sampling.
        device: cuda, mps or cpu; the best there is by default.
        precision: float32, bfloat16, or auto: bfloat16 where the device is fast at it.
        compare: Put worlds side by side, from the report.json of each.
    """
    if compare:
        _compare(paths, out)
        return
    from minigenie.console import working
    from minigenie.data.dataset import Dataset
    from minigenie.eval.measure import evaluate as measure
    from minigenie.eval.report import summary, write_report
    from minigenie.world import World, locate, output_folder

    if len(paths) != 2:
        raise ValueError(
            f"eval takes a world and a dataset, not {len(paths)} paths; worlds side by side take --compare"
        )
    if clips < 2:
        raise ValueError(f"clips is {clips}; an interval takes at least 2")
    world, dataset = locate(paths[0]), paths[1]
    folder = output_folder(world, out)
    loaded, footage = World.load(world, device, precision), Dataset.open(dataset)
    _note_precision(precision, loaded.device)
    if footage.frame_size != loaded.frame_shape[:2]:
        raise ValueError(
            f"{dataset} has frames of {footage.frame_size[0]}x{footage.frame_size[1]}, {world} imagines "
            f"{loaded.frame_shape[0]}x{loaded.frame_shape[1]}; ingest with --size {loaded.frame_shape[0]}"
        )
    with working("measure", "frames") as progress:
        report, scenes = measure(loaded, footage, clips=clips, seed=seed, watch=progress)
    pictures = write_report(folder, report, scenes, title=world.resolve().name, metrics=world / "metrics.jsonl")
    print("\n".join(summary(report)))
    print(f"report        {folder / 'report.html'}, {folder / 'report.json'}")
    print(f"pictures      {', '.join(map(str, pictures))}")


def _compare(worlds: tuple[str, ...], out: Path | None) -> None:
    from minigenie.console import table
    from minigenie.eval.compare import differences, read_reports, rows, write_comparison
    from minigenie.world import locate, output_folder

    folders = list(map(locate, worlds))
    folder = output_folder(folders[0], out)
    reports = read_reports(folders)
    table(["", *reports], rows(reports))
    for line in differences(reports):
        print(f"note          {line}")
    print(f"side by side  {write_comparison(folders, reports, folder / 'compare.html')}")


def doctor(run: Positional[Path]) -> None:
    """Look for the usual diseases in a run or a world, and say what to change.

    Args:
        run: Folder made by train; more can be told once eval has written its report.json there.
    """
    from minigenie.eval.doctor import diagnose, read_run
    from minigenie.world import locate

    findings = diagnose(read_run(locate(run)))
    for finding in findings:
        print(f"{finding.verdict:<9} {finding.disease:<21} {finding.measured}")
        if finding.advice:
            print(f"{'':<9} {'to change:':<21} {finding.advice}")
    ill = [finding.disease for finding in findings if finding.verdict == "ill"]
    unknown = sum(finding.verdict == "unknown" for finding in findings)
    print(f"{len(findings)} checks: {', '.join(ill) or 'nothing wrong found'}" + f", {unknown} unknown" * bool(unknown))


def bench(
    what: Positional[Literal["all", "train", "play", "data", "size"]] = "all",
    world: Positional[Path | None] = None,
    recipes: tuple[str, ...] = ("tiny",),
    parts: tuple[int, ...] = (),
    only: str = "",
    rounds: int = 7,
    large: bool = False,
    compiled: bool = False,
    browser: bool = False,
    frames: int = 2_000,
    device: str | None = None,
    json: Path | None = None,
) -> None:
    """Measure how fast this machine is, and how far from its limit.

    Args:
        what: train: a step of each stage. play: a frame. data: loading and ingest. size: how cost grows with each size.
        world: A world folder to measure too, with play.
        recipes: Those whose training steps to measure; coinrun and paper take minutes a step on a CPU.
        parts: Measure these steps alone, with so many clips at a time instead of the recipe's own, and say which number
            is the fastest. What does not fit in memory is left out.
        only: Measure nothing but the items whose name has this in it.
        rounds: How often each item is timed; the items take turns.
        large: Measure the reference sizes W1, W2 and W3 too; minutes a step on a CPU.
        compiled: Measure a compiled world too; on a CPU it takes a C++ compiler and a minute.
        browser: Measure the world in a real browser too: frames a second, key press to picture, memory.
        frames: How many to play there; memory is compared from the 1,000th on.
        device: cuda, mps or cpu; the best there is by default.
        json: File for the measurements.
    """
    from json import dumps
    from tempfile import TemporaryDirectory

    from minigenie.bench.data import data_items
    from minigenie.bench.machine import HEADINGS, describe_machine, measure, rows, stage_rows
    from minigenie.bench.play import play_items
    from minigenie.bench.size import GROWTH, growth_rows, size_items
    from minigenie.bench.train import fastest_parts, train_items
    from minigenie.console import table, working
    from minigenie.data.dataset import write_atomic
    from minigenie.runtime import pick_device
    from minigenie.world import locate

    world = world and locate(world)
    if rounds < 3:
        raise ValueError(f"rounds is {rounds}; a median takes at least 3")
    if browser and (world is None or frames < 2):
        raise ValueError(
            "to play in a browser takes a world and 2 frames or more: minigenie bench play WORLD --browser"
        )
    where = pick_device(device)
    with TemporaryDirectory(prefix="minigenie-bench-") as scratch, working(f"bench {what}", "rounds") as progress:
        kinds = {
            "train": lambda: train_items(recipes, where, large, parts),
            "play": lambda: play_items(world, where, compiled, large),
            "data": lambda: data_items(Path(scratch)),
            "size": lambda: size_items(where),
        }
        items = [item for kind, make in kinds.items() if what in (kind, "all") for item in make() if only in item.name]
        if not items:
            raise ValueError(
                f"nothing that bench {what} measures has {only!r} in its name; leave --only out to see all"
            )
        measured = measure(items, where, rounds, progress)
    print(describe_machine(where))
    table(HEADINGS, rows(measured))
    if shares := stage_rows(measured):
        table(["item", "where its time goes"], shares)
    if growth := growth_rows(measured):
        table(GROWTH, growth)
    if parts:
        print("fastest parts", *fastest_parts(measured), sep="\n")
    found = [each.to_json() for each in measured]
    if browser and world is not None:
        from minigenie.bench.browser import measure_browser

        played = measure_browser(world, frames=frames)
        print("\n".join(played.lines()))
        found.append({"item": f"{world.name}, in the browser", **played._asdict()})
    if json is not None:
        write_atomic(json, dumps(found, indent=1).encode())


def export(world: Positional[Path], out: Path, unfinished: bool = False) -> None:
    """Copy what a player needs of a trained world into a small folder of its own, weights in half the bytes.

    Args:
        world: Folder made by train, or coinrun, the world that comes with the package.
        out: New folder for the copy, to play, share or keep.
        unfinished: Of a run that goes on, what there is: models that are trained, others as last saved.
    """
    from minigenie.finish import export_world

    missing = export_world(world, out, unfinished)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    rest = f", still without {', '.join(missing)}" if missing else f": minigenie play {out}"
    print(f"{out} is a world of {size / 1e6:.1f} MB{rest}")


def imitate(
    world: Positional[Path],
    out: Path | None = None,
    expert_frames: int = 20_000,
    labels: int = 200,
    levels: int = 200,
    steps: int = 1_500,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Learn to play CoinRun from video without keys, through the world's latent actions, and see how far it gets.

    Args:
        world: Folder made by train, of CoinRun footage.
        out: Folder for imitation.json and imitation.gif; WORLD/imitation by default. What is there is gone on from.
        expert_frames: Frames of an expert's play to learn from.
        labels: Transitions of which the true action is told, to map latent actions to keys.
        levels: Held-out levels that everyone plays.
        steps: Training steps of each policy.
        seed: Of everything random.
        device: cuda, mps or cpu; the best there is by default.
    """
    from minigenie.console import table, working
    from minigenie.eval.agents import Imitation, summary, table_rows
    from minigenie.eval.agents import imitate as run
    from minigenie.world import locate, output_folder

    sizes = Imitation(expert_frames=expert_frames, labels=labels, levels=levels, steps=steps, seed=seed)
    world = locate(world)
    folder = output_folder(world, out, "imitation")
    report = run(world, folder, sizes, device, working)
    print("\n".join(summary(report)))
    table(["player", "levels solved", "95 % interval", "mean return", "mean steps"], table_rows(report))
    print(f"report        {folder / 'imitation.json'}")
    print(f"picture       {folder / 'imitation.gif'}")


def info(folder: Positional[str] = ".") -> None:
    """Say what a folder is: a dataset (with a contact sheet), a run, or a world.

    Args:
        folder: The folder; of a dataset also its address in object storage.
    """
    from minigenie.data.dataset import MANIFEST, UNFINISHED, Dataset
    from minigenie.data.remote import is_url

    path = Path(folder)
    if is_url(folder):
        _describe_dataset(Dataset.open(folder))
    elif (path / MANIFEST).exists() or (path / UNFINISHED).exists():
        _describe_dataset(Dataset.open(path))
    elif (path / "config.json").exists():
        _describe_run(path)
    elif path.exists():
        raise ValueError(f"{path} is neither a dataset nor a run nor a world; give the folder of one")
    else:
        from minigenie.world import locate

        if (shipped := locate(path)) == path:
            raise FileNotFoundError(f"{path} does not exist; give the folder of a dataset, a run or a world")
        _describe_run(shipped)


def _describe_dataset(dataset: "Dataset") -> None:
    from minigenie.data.dataset import contact_sheet
    from minigenie.pictures import save_picture

    manifest, lengths = dataset.manifest, sorted(episode.length for episode in dataset.episodes)
    height, width = dataset.frame_size
    print(f"{dataset.name}: {dataset.num_frames:,} frames of {height}x{width} at {dataset.fps:g} a second")
    print(f"source        {manifest['source']} ({manifest['generator']}), split {manifest['split']}")
    print(f"episodes      {len(lengths):,}, {lengths[0]} to {lengths[-1]} frames, median {lengths[len(lengths) // 2]}")
    print(f"true actions  {'yes, for evaluation only' if dataset.has_actions else 'none'}")
    sheet = dataset.folder / "contact-sheet.png"
    if not sheet.exists():
        save_picture(contact_sheet(dataset), sheet)
    print(f"pictures      {sheet}")


def _describe_run(folder: Path) -> None:
    from minigenie.checkpoint import Checkpoints
    from minigenie.finish import count_parameters
    from minigenie.pipeline import STAGES
    from minigenie.runtime import dtype_of, pick_device
    from minigenie.world import World, read_config

    values = read_config(folder)
    source = values["dataset"]
    made = [stage for stage in STAGES if (folder / f"{stage}.safetensors").exists()]
    print(f"{folder}: a {'world' if len(made) == 3 else 'run'}, {values['fps']:g} frames a second")
    print(f"footage       {source.get('source')} ({source.get('generator')})")
    for stage in STAGES:
        saved = Checkpoints(folder / "checkpoints" / stage).paths()
        state = "trained" if stage in made else f"saved as {saved[-1].stem}" if saved else "not begun"
        print(f"{stage:<13} {state}")
    if len(made) == 3:
        world = World.load(folder, "cpu")
        sizes = ", ".join(f"{stage} {count_parameters(getattr(world, stage)) / 1e6:.2f} M" for stage in STAGES)
        print(f"parameters    {sizes}; {world.num_actions} actions, frames {world.frame_shape}")
    where = pick_device()
    print(
        f"precision     {str(dtype_of(where, 'auto')).removeprefix('torch.')} on this machine ({where.type}), by itself"
    )
    if (folder / "report.json").exists():
        from minigenie.eval.doctor import as_damage, read_report
        from minigenie.eval.report import summary

        report = read_report(folder)
        with as_damage(folder / "report.json"):
            lines = summary(report)
        print("\n".join(lines))


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
    "imitate": imitate,
    "export": export,
}


def main(args: list[str] | None = None) -> None:
    """Run a command. Bad input ends with one line and exit code 2, an interrupt (Ctrl-C, SIGTERM) with 130."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="minigenie", description="Turn unlabelled video into a world you can play.", args=args
        )
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; what trains, collects or ingests goes on from what is saved", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError):
            if "out of memory" not in text and "not enough memory" not in text:
                raise
            text = (
                "out of memory; take a smaller recipe, or train on fewer clips a step: --set dynamics_fit.batch_size=2"
            )
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and "make room" not in text:
            text = "the disk is full; make room and run the same command again, it goes on from what is saved"
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
