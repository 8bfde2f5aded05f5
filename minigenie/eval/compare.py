"""Worlds side by side, from the report.json of each."""

from pathlib import Path
from typing import Any

from minigenie.console import table
from minigenie.errors import UserError
from minigenie.eval.doctor import read_report
from minigenie.eval.measure import VERSION
from minigenie.eval.plots import control_plot, drift_plots, fading_plot
from minigenie.eval.report import data_uri, headline, write_page
from minigenie.world import output_folder

Reports = dict[str, dict[str, Any]]
ALIKE = {"dataset": "footage", "clips": "numbers of clips", "seed": "seeds", "version": "versions of eval"}
PICTURES = {
    "rollouts.png": "Truth above imagination",
    "actions.png": "Every action held, a row each",
    "control.png": "Every key held, the game above the world",
}


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
    """Print the numbers of several worlds side by side, and write one self-contained page: these, the curves in one
    plot, the pictures that there are."""
    out = output_folder(folders[0], out) if folders else Path()  # of none, read_reports says what is missing
    reports = read_reports(folders)
    notes, numbers, columns = differences(reports), rows(reports), ["", *reports]
    pictures = {
        what: {
            name: data_uri((folder / "pictures" / file).read_bytes(), "png")
            for name, folder in zip(reports, folders, strict=True)
            if (folder / "pictures" / file).exists()
        }
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
