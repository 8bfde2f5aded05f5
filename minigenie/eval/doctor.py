"""What ails a run? The usual diseases, each by a number that training or `minigenie eval` noted, and their cures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from minigenie.errors import UserError
from minigenie.files import parse_json
from minigenie.metrics import read_metrics
from minigenie.world import WorldConfig, world_config

Report = dict[str, Any]
FRESH = 5  # last values of a metric that are averaged


class Finding(NamedTuple):
    """What one check found. measured says the value and the threshold, advice what to change."""

    disease: str
    verdict: Literal["healthy", "ill", "unknown"]
    measured: str
    advice: str


class Run(NamedTuple):
    config: WorldConfig
    metrics: list[dict[str, Any]]
    report: Report

    def last(self, stage: str, name: str, count: int = FRESH) -> float | None:
        """Mean of the last values that training noted, whether or not LAM and dynamics trained together."""
        joint = [line[f"{stage}_{name}"] for line in self.metrics if f"{stage}_{name}" in line]
        values = [line[name] for line in self.metrics if line["stage"] == stage and name in line] or joint
        return float(np.mean(values[-count:])) if values else None

    def measured(self, *path: str) -> Any:
        """An entry of report.json, None if it is not there."""
        value: Any = self.report
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(folder: Path) -> Run:
    """Raises FileNotFoundError or ValueError, one line, if `folder` is no run."""
    config = world_config(folder)
    if not (folder / "metrics.jsonl").exists() and not (folder / "report.json").exists():
        raise FileNotFoundError(
            f"{folder} has neither metrics.jsonl nor report.json; train it, or measure it with eval"
        )
    report = read_report(folder) if (folder / "report.json").exists() else {}
    return Run(config, read_metrics(folder / "metrics.jsonl"), report)


def read_report(folder: Path) -> Report:
    """The folder's report.json. Raises FileNotFoundError or ValueError, one line."""
    path = folder / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no report.json; make one with `minigenie eval {folder} DATASET`")
    with as_damage(path):
        report = parse_json(path.read_bytes())
        report["tokenizer"]["psnr"], report["actions"]["usage"], report["rollout"]["delta_psnr"]
    return report


@contextmanager
def as_damage(path: Path) -> Iterator[None]:
    """What goes wrong in here is that a report is not as `minigenie eval` writes it: ValueError, one line."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{path} is damaged; delete it and run minigenie eval again") from None


def diagnose(run: Run) -> list[Finding]:
    """ValueError, one line, if the report is damaged."""
    with as_damage(Path("report.json")):
        return list(_checks(run.config, run.last, run.measured))


def _checks(config: WorldConfig, last: Callable[..., float | None], measured: Callable[..., Any]) -> Iterator[Finding]:
    """last, measured: those of a Run."""
    actions, codes = config.num_actions, config.tokenizer.quantizer.num_codes
    yield _finding(
        "collapsed actions",
        measured("actions", "perplexity") or last("lam", "perplexity"),
        f"perplexity {{:.2f}} of {actions} actions",
        max(2.0, actions / 4),
        "train again with a longer continuous start, --set lam.quantizer.warmup=0.6, or on livelier footage",
    )
    unit, limit = ("dB", 0.3) if config.lam.input == "pixels" else ("nats", 0.03)
    yield _finding(
        "empty actions",
        last("lam", "control", 3),
        f"an inferred action is worth {{:.2f}} {unit} to the LAM's decoder",
        limit,
        "show the decoder less of the past (--set lam.pairs=true), take fewer frames a second so that more happens "
        "between two, or train the LAM for longer (lam_fit.steps)",
    )
    yield _finding(
        "dead codes",
        measured("tokenizer", "codes_used") or last("tokenizer", "codes_alive", 1),
        f"{{:.0f}} of {codes} tokenizer codes in use",
        round(0.2 * codes),
        "start continuous (--set tokenizer.quantizer.warmup=0.15), revive more (tokenizer.quantizer.revive_below=0.3),"
        " or take fewer codes (tokenizer.quantizer.num_codes)",
    )
    yield _finding(
        "blurry tokenizer",
        measured("tokenizer", "psnr") or last("tokenizer", "psnr"),
        "reconstructions have {:.1f} dB PSNR",
        24,
        "train the tokenizer for longer (tokenizer_fit.steps), with smaller patches (tokenizer.patch=4) or a larger "
        "decoder (tokenizer.decoder.num_blocks)",
    )
    value, said, limit = last("dynamics", "control", 3), "the right action is worth {:.3f} nats to dynamics", 0.05
    if deltas := measured("rollout", "delta_psnr"):
        t = max((t for t in deltas if int(t) <= 4), key=int)
        value, limit = deltas[t]["ci95"][0], 0
        said = f"delta-PSNR {deltas[t]['mean']:.2f} dB at frame {t}, surely {{:.2f}} or more"
    yield _finding(
        "ignored actions",
        value,
        said,
        limit,
        "mend the latent actions first if they are ill; else train dynamics for longer (dynamics_fit.steps), with a "
        "clean context (dynamics.context=clean)",
    )
    seen, unseen = last("dynamics", "cross_entropy", 10), measured("dynamics", "cross_entropy")
    yield _finding(
        "overfitting",
        None if seen is None or unseen is None else unseen - seen,
        f"cross-entropy of dynamics on held-out clips is {unseen or 0:.2f} nats, {{:.2f}} above training's",
        1,
        "collect or ingest more footage, of more levels or places; else fewer steps or a smaller model",
        most=True,
    )
    share = last("data", "teleports", 1)
    yield _finding(
        "teleporting windows",
        None if share is None else 100 * share,
        "{:.1f} % of the footage's transitions lead somewhere else altogether",
        1,
        "cut the videos at their scene changes and ingest them again, with more frames a second if they move fast",
        most=True,
        unknown="this run began before training took note of it",
    )


def _finding(
    disease: str,
    value: float | None,
    said: str,
    limit: float,
    advice: str,
    *,
    most: bool = False,
    unknown: str = "not noted by training; measure it with minigenie eval",
) -> Finding:
    """said: the sentence around the value. limit: the least that is healthy, or with `most` the most."""
    if value is None:
        return Finding(disease, "unknown", unknown, "")
    ill = value > limit if most else value <= limit
    measured = f"{said.format(value)}; {'at most' if most else 'more than'} {limit:g} wanted"
    return Finding(disease, "ill" if ill else "healthy", measured, advice if ill else "")


def summary(findings: list[Finding]) -> list[str]:
    """Each finding, with what to change, and a last line of all together."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<9} {finding.disease:<21} {finding.measured}")
        if finding.advice:
            lines.append(f"{'':<9} {'to change:':<21} {finding.advice}")
    ill = [finding.disease for finding in findings if finding.verdict == "ill"]
    unknown = sum(finding.verdict == "unknown" for finding in findings)
    ending = f", {unknown} unknown" if unknown else ""
    return [*lines, f"{len(findings)} checks: {', '.join(ill) or 'nothing wrong found'}{ending}"]
