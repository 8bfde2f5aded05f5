"""All of `minigenie bench`: measure what is asked for, and print it."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory

from minigenie.bench.data import data_items
from minigenie.bench.machine import HEADINGS, describe_machine, measure, rows, stage_rows
from minigenie.bench.play import play_items
from minigenie.bench.train import fastest_parts, train_items
from minigenie.console import table, working
from minigenie.errors import UserError
from minigenie.files import write_atomic
from minigenie.runtime import pick_device
from minigenie.settings import BenchSettings
from minigenie.world import locate


def run(settings: BenchSettings) -> None:
    """UserError, one line, if there is nothing of the kind to measure."""
    what, world, device = settings.what, settings.world and locate(settings.world), pick_device(settings.device)
    with TemporaryDirectory(prefix="minigenie-bench-") as scratch, working(f"bench {what}", "rounds") as progress:
        kinds = {
            "train": lambda: train_items(settings.recipes, device, settings.large, settings.parts),
            "play": lambda: play_items(world, device, settings.compiled, settings.large),
            "data": lambda: data_items(Path(scratch)),
        }
        items = [item for kind, make in kinds.items() if what in (kind, "all") for item in make()]
        items = [item for item in items if settings.only in item.name]
        if not items:
            raise UserError(
                f"nothing that bench {what} measures has {settings.only!r} in its name; leave --only out to see all"
            )
        measured = measure(items, device, settings.rounds, progress)
    print(describe_machine(device))
    table(HEADINGS, rows(measured))
    if shares := stage_rows(measured):
        table(["item", "where its time goes"], shares)
    if settings.parts:
        print("fastest parts", *fastest_parts(measured), sep="\n")
    if settings.json is not None:
        write_atomic(settings.json, dumps([asdict(each) for each in measured], indent=1).encode())
