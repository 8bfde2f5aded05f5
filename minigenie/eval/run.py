"""All of `minigenie eval`: measure a world, or put measured ones side by side; write that, and print it."""

from pathlib import Path

from minigenie.console import note_precision, working
from minigenie.data.dataset import Dataset
from minigenie.errors import UserError
from minigenie.eval.compare import compare
from minigenie.eval.measure import evaluate
from minigenie.eval.report import summary, write_report
from minigenie.settings import EvalSettings
from minigenie.world import World, locate, output_folder


def run(settings: EvalSettings) -> None:
    """ValueError or OSError, one line, if that cannot be."""
    if settings.compare:
        compare([locate(path) for path in settings.paths], settings.out)
    elif len(settings.paths) != 2:
        raise UserError(
            f"eval takes a world and a dataset, not {len(settings.paths)} paths; worlds side by side take --compare"
        )
    elif settings.clips < 2:
        raise UserError(f"clips is {settings.clips}; an interval takes at least 2")
    else:
        measure(locate(settings.paths[0]), settings.paths[1], settings)


def measure(folder: Path, dataset: str, settings: EvalSettings) -> None:
    out = output_folder(folder, settings.out)
    world, footage = World.load(folder, settings.device, settings.precision), Dataset.open(dataset)
    note_precision(settings.precision, world.device)
    if footage.frame_size != world.frame_shape[:2]:
        raise UserError(
            f"{dataset} has frames of {footage.frame_size[0]}x{footage.frame_size[1]}, {folder} imagines "
            f"{world.frame_shape[0]}x{world.frame_shape[1]}; ingest with --size {world.frame_shape[0]}"
        )
    with working("measure", "frames") as progress:
        report, scenes = evaluate(world, footage, clips=settings.clips, seed=settings.seed, watch=progress)
    pictures = write_report(out, report, scenes, title=folder.resolve().name, metrics=folder / "metrics.jsonl")
    print("\n".join(summary(report)))
    print(f"report        {out / 'report.html'}, {out / 'report.json'}")
    print(f"pictures      {', '.join(map(str, pictures))}")
