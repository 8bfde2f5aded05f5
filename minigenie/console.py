"""What a person sees while something long runs: one line that moves, with rate and time to go."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from minigenie.settings import Precision

if TYPE_CHECKING:
    import torch

    from minigenie.pipeline import Watcher

QUIET_SECONDS = 10  # between lines where there is no terminal to redraw


class Lines:
    """Progress, a line for each thing that is worked on: redrawn on a terminal, printed now and then elsewhere."""

    def __init__(self) -> None:
        self.printed, self.remaining = time.monotonic(), TimeRemainingColumn(compact=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(None),
            TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(),
            self.remaining, console=Console(stderr=True), speed_estimate_period=600,
        )  # fmt: skip
        self.bar.disable = not self.bar.console.is_terminal

    def task(self, what: str) -> Task:
        """The line of `what`, which ends the one before it."""
        tasks = self.bar.tasks
        if tasks and tasks[-1].description == what:
            return tasks[-1]
        if tasks:
            self.bar.stop_task(tasks[-1].id)
        self.bar.add_task(what, total=None, note="")
        return self.bar.tasks[-1]

    def update(self, what: str, done: float, total: float, note: str) -> None:
        task = self.task(what)
        self.bar.update(task.id, completed=done, total=total, note=note)
        if self.bar.disable and (time.monotonic() - self.printed > QUIET_SECONDS or done >= total):
            self.printed = time.monotonic()
            to_go = f", {self.remaining.render(task)} to go" if task.time_remaining else ""
            print(f"{what}: {done / total:4.0%}  {note}{to_go}", file=sys.stderr, flush=True)


@contextmanager
def working(what: str, unit: str) -> Iterator[Callable[[float, float], None]]:
    """A callback (done, total) that shows the rate in `unit` a second and the time to go."""
    lines = Lines()

    def progress(done: float, total: float) -> None:
        rate = lines.task(what).speed or 0
        note = f"{done:,.0f}/{total:,.0f} {unit}" + (f", {rate:,.0f}/s" if rate >= 1 else "")
        lines.update(what, done, max(total, 1), note)

    with lines.bar:
        lines.task(what)
        yield progress


@contextmanager
def training() -> Iterator["Watcher"]:
    """A watcher that shows every stage of training on a line of its own, and says when the actions collapse."""
    from minigenie.pipeline import Watcher
    from minigenie.train import Progress as Step

    lines, latest, warned = Lines(), defaultdict[str, dict[str, float]](dict), set()

    def progress(step: Step) -> None:
        seen = latest[step.stage]
        seen.update(step.metrics)
        numbers = [f"{name} {seen[name]:.3g}" for name in SHOWN if name in seen]
        lines.update(f"train {step.stage}", step.fraction, 1, ", ".join([f"step {step.step}", *numbers]))
        for name, (limit, warning) in COLLAPSES.items():
            value = step.metrics.get(name if step.stage == "lam" else f"lam_{name}")
            if value is not None and step.fraction > 0.6 and value < limit and name not in warned:
                warned.add(name)
                print(f"WARNING: {warning.format(step.step, value)}", file=sys.stderr, flush=True)

    def work(what: str, done: int, total: int) -> None:
        lines.update(f"encode {what}", done, total, f"{done:,}/{total:,} frames")

    with lines.bar:
        yield Watcher(progress, work)


COLLAPSES = {  # by metric of the LAM: below what value it is ill, and what to say
    "perplexity": (
        2.0,  # fewer than two actions do all the work
        "the latent actions have collapsed (step {}, perplexity {:.2f}). The world will hardly answer to them. "
        "Start again with a longer continuous start, as in --set lam.quantizer.warmup=0.6, or with livelier footage.",
    ),
    "control": (
        0.03,  # dB for pixels, nats for tokens
        "the latent actions say nothing (step {}, worth {:.3f} to the LAM's decoder). Start again with fewer frames a "
        "second, so that more happens between two, or with more LAM steps, as in --set lam_fit.steps=2000.",
    ),
}
SHOWN = ("loss", "psnr", "cross_entropy", "accuracy", "perplexity", "control")


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Cells are shown as they are: to rich, [names] and :names: in text would be styles and emoji."""
    out = Table(box=None, header_style="bold")
    for column in columns:
        out.add_column(Text(column))
    for row in rows:
        out.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(out)


def note_precision(precision: Precision, device: "torch.device") -> None:
    from minigenie.runtime import fast_bfloat16

    if precision == "bfloat16" and not fast_bfloat16(device):
        print(f"note          this {device.type} is slow at bfloat16; float32 or auto is faster", file=sys.stderr)
