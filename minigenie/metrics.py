"""metrics.jsonl, the numbers of a run as it goes: written line by line, read whole."""

import json
from pathlib import Path
from typing import Any

from minigenie.errors import UserError
from minigenie.files import parse_json, write_atomic


class MetricsLog:
    """metrics.jsonl: a line {stage, step, progress, seconds, ...} every few steps. Lines past the step that training
    resumes from are dropped, so that every step stands there once."""

    def __init__(self, path: Path, stage: str, step: int, rank: int) -> None:
        self.path, self.stage, self.rank = path, stage, rank
        if rank == 0 and path.exists():
            lines = [line for line in read_metrics(path) if line["stage"] != stage or line["step"] <= step]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, step: int, progress: float, seconds: float | None, metrics: dict[str, float]) -> None:
        line: dict[str, Any] = {"stage": self.stage, "step": step, "progress": round(progress, 6)}
        if seconds is not None:
            line["seconds"] = round(seconds, 3)
        line |= {name: float(f"{value:.6g}") for name, value in metrics.items()}
        if self.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out. ValueError, one line, if damaged."""
    lines: list[dict[str, Any]] = []
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            if text:
                lines.append(_checked(parse_json(text)))
        except ValueError as error:
            if number < len(texts):  # a whole line
                raise UserError(f"{path} is damaged (line {number}: {error}); delete that line") from None
    return lines


def _checked(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or type(line.get("step")) is not int or not isinstance(line.get("stage"), str):
        raise UserError("it is no object with a stage and a step")
    if unfit := [name for name, value in line.items() if name != "stage" and type(value) not in (int, float)]:
        raise UserError(f"{unfit[0]!r} is no number")
    return line
