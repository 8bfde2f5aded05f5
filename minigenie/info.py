"""What a person is told of a folder: a dataset, a run or a world; and of the files that were ingested."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from minigenie.console import table
from minigenie.data.dataset import MANIFEST, UNFINISHED, Dataset
from minigenie.errors import UserError
from minigenie.files import is_url

if TYPE_CHECKING:
    from minigenie.data.ingest import Row

MAX_ROWS = 100  # of a table of files


def describe(folder: str) -> None:
    """ValueError or FileNotFoundError, one line, if it is none of them."""
    path = Path(folder)
    if is_url(folder):
        return describe_address(folder)
    if (path / MANIFEST).exists() or (path / UNFINISHED).exists():
        return describe_dataset(Dataset.open(folder))
    from minigenie.world import locate

    if (run := locate(path) / "config.json").exists():
        return describe_run(run.parent)
    if path.exists():
        raise UserError(f"{path} is neither a dataset nor a run nor a world; give the folder of one")
    raise FileNotFoundError(f"{path} does not exist; give the folder of a dataset, a run or a world")


def describe_address(address: str) -> None:
    """Of a world or a dataset that lies there. FileNotFoundError or OSError, one line, if neither does."""
    from minigenie.world import locate

    try:
        world = locate(address)
    except FileNotFoundError:
        pass
    else:
        return describe_run(world)
    try:
        dataset = Dataset.open(address)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no dataset and no finished world at {address}; check the address") from None
    describe_dataset(dataset)


def describe_dataset(dataset: Dataset) -> None:
    from minigenie.pictures import contact_sheet, save_picture  # and with it torch

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


def describe_run(folder: Path) -> None:
    from minigenie.checkpoint import Checkpoints
    from minigenie.finish import count_parameters
    from minigenie.runtime import dtype_of, pick_device
    from minigenie.world import World, read_config, world_config

    values, stages = read_config(folder), world_config(folder).models
    source = values["dataset"]
    made = [stage for stage in stages if (folder / f"{stage}.safetensors").exists()]
    print(f"{folder}: a {'world' if made == list(stages) else 'run'}, {values['fps']:g} frames a second")
    print(f"footage       {source.get('source')} ({source.get('generator')})")
    for stage in stages:
        saved = Checkpoints(folder / "checkpoints" / stage).paths()
        state = "trained" if stage in made else f"saved as {saved[-1].stem}" if saved else "not begun"
        print(f"{stage:<13} {state}")
    if made == list(stages):
        world = World.load(folder, "cpu")
        sizes = ", ".join(f"{stage} {count_parameters(getattr(world, stage)) / 1e6:.2f} M" for stage in stages)
        print(f"parameters    {sizes}; {world.num_actions} actions, frames {world.frame_shape}")
    where = pick_device()
    precision = str(dtype_of(where, "auto")).removeprefix("torch.")
    print(f"precision     {precision} on this machine ({where.type}), by itself")
    if (folder / "report.json").exists():
        from minigenie.eval.doctor import as_damage, read_report
        from minigenie.eval.report import summary

        report = read_report(folder)
        with as_damage(folder / "report.json"):
            print("\n".join(summary(report)))


def describe_rows(rows: "list[Row]") -> None:
    files = [row for row in rows if row.status != "passed over"]
    telling = [row for row in files if row.reason][:MAX_ROWS]
    shown = rows if len(rows) <= MAX_ROWS else telling + rows[len(files) :]
    table(["file", "status", "frames", "episodes", "reason", "held out", "repeated"], (row[:7] for row in shown))
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown):,} more files")
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(Counter(row.status for row in files).items()))
    kept, held_out = sum(row.frames for row in rows), sum(row.test_frames for row in rows)
    repeated = sum(row.repeated for row in rows)
    print(f"files         {len(files):,}: {counts}")
    print(f"frames        {kept:,} kept, {held_out:,} of them held out; {repeated:,} repeat others and are left out")
