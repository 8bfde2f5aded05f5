"""All of `minigenie eval`: measure a world, or put measured ones side by side; write that, and print it."""

from pathlib import Path

from minigenie.console import note_precision, table, working
from minigenie.data.dataset import Dataset
from minigenie.data.joined import open_datasets
from minigenie.errors import UserError
from minigenie.eval.doctor import read_report
from minigenie.eval.evaluator import Report
from minigenie.eval.measure import VERSION, evaluate
from minigenie.eval.plots import Reports, control_plot, drift_plots, fading_plot
from minigenie.eval.report import data_uri, headline, summary, write_page, write_report
from minigenie.settings import EvalSettings
from minigenie.world import World, locate, output_folder

ALIKE = {"dataset": "footage", "clips": "numbers of clips", "seed": "seeds", "version": "versions of eval"}
PICTURES = {
    "rollouts.png": "Truth above imagination",
    "actions.png": "Every action held, a row each",
    "control.png": "Every key held, the game above the world",
}


def run(settings: EvalSettings) -> None:
    """ValueError or OSError, one line, if that cannot be."""
    if settings.compare:
        return compare([locate(path) for path in settings.paths], settings.out)
    if len(settings.paths) < 2:
        advice = "worlds side by side take --compare"
        raise UserError(f"eval takes a world and a dataset, not {len(settings.paths)} paths; {advice}")
    if settings.clips < 2:
        raise UserError(f"clips is {settings.clips}; an interval takes at least 2")
    folder = locate(settings.paths[0])
    out = output_folder(folder, settings.out)
    world, footage = World.load(folder, settings.device, settings.precision), open_datasets(settings.paths[1:])
    note_precision(settings.precision, world.device)
    if footage.frame_size != world.frame_shape[:2]:
        has, makes = (f"{height}x{width}" for height, width in (footage.frame_size, world.frame_shape[:2]))
        raise UserError(f"{footage.name} has frames of {has}, {folder} imagines {makes}; ingest with --size {makes}")
    print("\n".join(summary(measure(folder, world, footage, out, settings.clips, settings.seed))))


def measure(folder: Path, world: World, footage: Dataset, out: Path, clips: int, seed: int) -> Report:
    """Measure the world in `folder`, write that to `out`, and say where it is. Returns the report."""
    with working(f"measure {folder.name}", "frames") as progress:
        report, scenes = evaluate(world, footage, clips=clips, seed=seed, watch=progress)
    pictures = write_report(out, report, scenes, title=folder.resolve().name, metrics=folder / "metrics.jsonl")
    print(f"report        {out / 'report.html'}, {out / 'report.json'}")
    print(f"pictures      {', '.join(map(str, pictures))}")
    return report


# Worlds side by side, from the report.json of each.


def read_reports(folders: list[Path]) -> Reports:
    """The reports of two folders or more by a short name each. FileNotFoundError or ValueError, one line."""
    if len({folder.resolve() for folder in folders}) < 2:
        raise UserError("--compare takes two different folders or more that minigenie eval has written report.json to")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    reports = {name: read_report(folder) for name, folder in zip(names, folders, strict=True)}
    for folder, report in zip(folders, reports.values(), strict=True):
        if report.get("version") not in range(1, VERSION + 1):
            raise UserError(f"{folder / 'report.json'} is of another MiniGenie; run minigenie eval again")
    return reports


def rows(reports: Reports) -> list[list[str]]:
    """A row for every headline number, a column for every world; a dash where one was not measured."""
    numbers = {name: headline(report) for name, report in reports.items()}
    keys = dict.fromkeys(key for column in numbers.values() for key in column)
    return [[key, *(column.get(key, "-") for column in numbers.values())] for key in keys]


def differences(reports: Reports) -> list[str]:
    """Why the numbers should not be compared, a line each; nothing if they may."""
    first, *others = reports
    return [
        f"{first} and {other} were measured with different {what}; run minigenie eval alike"
        for other in others
        for key, what in ALIKE.items()
        if reports[first][key] != reports[other][key]
    ]


def compare(folders: list[Path], out: Path | None) -> None:
    """Print the numbers of several worlds side by side, and write one page of these, the curves, the pictures."""
    out = output_folder(folders[0], out) if folders else Path()  # of none, read_reports says what is missing
    reports = read_reports(folders)
    notes, numbers, columns = differences(reports), rows(reports), ["", *reports]
    shown = {name: folder / "pictures" for name, folder in zip(reports, folders, strict=True)}
    pictures = {
        what: {name: data_uri((at / file).read_bytes(), "png") for name, at in shown.items() if (at / file).exists()}
        for file, what in PICTURES.items()
    }
    drawn = [control_plot(reports), fading_plot(reports), *drift_plots(reports)]
    write_page(
        out / "compare.html", "compare.html", title=" and ".join(reports), columns=columns, notes=notes, rows=numbers,
        drawn=drawn, pictures=pictures,
    )  # fmt: skip
    table(columns, numbers)
    for line in notes:
        print(f"note          {line}")
    print(f"side by side  {out / 'compare.html'}")
