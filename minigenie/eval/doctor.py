"""What ails a run? The usual diseases, each by a number that training or `minigenie eval` noted, and their cures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from minigenie.errors import UserError
from minigenie.files import parse_json
from minigenie.metrics import read_metrics
from minigenie.world import WorldConfig, world_config

FRESH = 5  # last values of a metric that are averaged
CURES = {
    "collapsed actions": "train again with a longer continuous start, --set lam.quantizer.warmup=0.6, or on livelier "
    "footage",
    "empty actions": "show the decoder less of the past (--set lam.pairs=true), take fewer frames a second so that "
    "more happens between two, or train the LAM for longer (lam_fit.steps)",
    "dead codes": "start continuous (--set tokenizer.quantizer.warmup=0.15), revive more "
    "(tokenizer.quantizer.revive_below=0.3), or take fewer codes (tokenizer.quantizer.num_codes)",
    "blurry tokenizer": "train the tokenizer for longer (tokenizer_fit.steps), with smaller patches "
    "(tokenizer.patch=4) or a larger decoder (tokenizer.decoder.num_blocks)",
    "ignored actions": "mend the latent actions first if they are ill; else train dynamics for longer "
    "(dynamics_fit.steps), with a clean context (dynamics.context=clean)",
    "overfitting": "collect or ingest more footage, of more levels or places; else fewer steps or a smaller model",
    "teleporting windows": "cut the videos at their scene changes and ingest them again, with more frames a second if "
    "they move fast",
}
AT_MOST = ("overfitting", "teleporting windows")  # of these, what is more than the limit is ill


class Finding(NamedTuple):
    """What one check found. measured says the value and the threshold, advice what to change."""

    disease: str
    verdict: Literal["healthy", "ill", "unknown"]
    measured: str
    advice: str


class Run(NamedTuple):
    config: WorldConfig
    metrics: list[dict[str, Any]]
    report: dict[str, Any]

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
        raise FileNotFoundError(f"{folder} has neither metrics.jsonl nor report.json; train it, or run eval on it")
    report = read_report(folder) if (folder / "report.json").exists() else {}
    return Run(config, read_metrics(folder / "metrics.jsonl"), report)


def read_report(folder: Path) -> dict[str, Any]:
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
    last, measured, codes = run.last, run.measured, run.config.tokenizer.quantizer.num_codes
    actions, lam_unit, lam_worth = run.config.num_actions, "nats", 0.03
    if run.config.lam.input == "pixels":
        lam_unit, lam_worth = "dB", 0.3
    with as_damage(Path("report.json")):
        usage = measured("actions", "perplexity") or last("lam", "perplexity")
        alive = measured("tokenizer", "codes_used") or last("tokenizer", "codes_alive", 1)
        psnr = measured("tokenizer", "psnr") or last("tokenizer", "psnr")
        control, said, worth = last("dynamics", "control", 3), "the right action is worth {:.3f} nats to dynamics", 0.05
        if deltas := measured("rollout", "delta_psnr"):
            t = max((t for t in deltas if int(t) <= 4), key=int)
            control, worth = deltas[t]["ci95"][0], 0
            said = f"delta-PSNR {deltas[t]['mean']:.2f} dB at frame {t}, surely {{:.2f}} or more"
        seen, unseen = last("dynamics", "cross_entropy", 10), measured("dynamics", "cross_entropy")
        above = None if seen is None or unseen is None else unseen - seen
        loss = f"cross-entropy of dynamics on held-out clips is {unseen or 0:.2f} nats, {{:.2f}} above training's"
        cuts, leading = (
            last("data", "teleports", 1),
            "{:.1f} % of the footage's transitions lead somewhere else altogether",
        )
        lam_said = f"an inferred action is worth {{:.2f}} {lam_unit} to the LAM's decoder"
        return [
            _finding("collapsed actions", usage, f"perplexity {{:.2f}} of {actions} actions", max(2.0, actions / 4)),
            _finding("empty actions", last("lam", "control", 3), lam_said, lam_worth),
            _finding("dead codes", alive, f"{{:.0f}} of {codes} tokenizer codes in use", round(0.2 * codes)),
            _finding("blurry tokenizer", psnr, "reconstructions have {:.1f} dB PSNR", 24),
            _finding("ignored actions", control, said, worth),
            _finding("overfitting", above, loss, 1),
            _finding("teleporting windows", None if cuts is None else 100 * cuts, leading, 1),
        ]


def _finding(disease: str, value: float | None, said: str, limit: float) -> Finding:
    """said: the sentence around the value. limit: the least that is healthy, or the most of what is in AT_MOST."""
    if value is None:
        return Finding(disease, "unknown", "not noted by training, or not measured yet by minigenie eval", "")
    wanted, ill = ("at most", value > limit) if disease in AT_MOST else ("more than", value <= limit)
    measured = f"{said.format(value)}; {wanted} {limit:g} wanted"
    return Finding(disease, "ill" if ill else "healthy", measured, CURES[disease] if ill else "")


def summary(findings: list[Finding]) -> list[str]:
    """Each finding, with what to change, and a last line of all together."""
    lines = []
    for disease, verdict, measured, advice in findings:
        lines.append(f"{verdict:<9} {disease:<21} {measured}")
        if advice:
            lines.append(f"{'':<9} {'to change:':<21} {advice}")
    ill = ", ".join(finding.disease for finding in findings if finding.verdict == "ill")
    unknown = sum(finding.verdict == "unknown" for finding in findings)
    ending = f", {unknown} unknown" if unknown else ""
    return [*lines, f"{len(findings)} checks: {ill or 'nothing wrong found'}{ending}"]
