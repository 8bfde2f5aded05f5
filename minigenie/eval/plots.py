"""Plots as SVG that takes on the colours of the page around it, one panel each, so that a phone can stack them."""

import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#0a0b0c"  # stands for the page's own ink
COLOURS = ("#e0631b", "#3b7dd8", "#2f9e6e", "#a45ad1", "#c99a1b", "#d14a7c")
LIT, GREY = COLOURS[0], "#8d929b"
FRAME, STRETCH = "imagined frame", "imagined frames"
REPEATED, REAL = "last one repeated", "real clips"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "minigenie",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
TRAINING = (
    ("tokenizer", "psnr", "tokenizer: PSNR (dB)"),
    ("tokenizer", "perplexity", "tokenizer: code perplexity"),
    ("lam", "psnr", "LAM: PSNR of the next frame (dB)"),
    ("lam", "perplexity", "LAM: action perplexity"),
    ("dynamics", "cross_entropy", "dynamics: cross-entropy (nats)"),
    ("dynamics", "control", "dynamics: nats that the action is worth"),
)
Reports = dict[str, dict[str, Any]]  # by the worlds' names
Lines = Sequence[dict[str, Any]]  # of metrics.jsonl


def panel(title: str, across: str, draw: Callable[[Axes], None]) -> str:
    """An SVG of one pair of axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 2.7), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set(title=title, xlabel=across)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def curves(title: str, across: str, shown: Reports, level: float | None = None, legend: bool = True) -> str:
    """Curves by name, of numbers or of {"mean", "ci95"} with their intervals as bands. level: a dashed line to compare
    with; the plot then reaches down to 0."""

    def draw(axes: Axes) -> None:
        for (name, values), colour in zip(shown.items(), cycle(COLOURS), strict=False):
            at, colour = list(values), GREY if name in (REPEATED, REAL) else colour
            means = [each["mean"] if isinstance(each, dict) else each for each in values.values()]
            axes.plot(at, means, marker="o", markersize=3, color=colour, label=name)
            if bands := [each["ci95"] for each in values.values() if isinstance(each, dict)]:
                axes.fill_between(at, *np.transpose(bands), color=colour, alpha=0.15, linewidth=0)
        if level is not None:
            axes.axhline(level, color=GREY, linewidth=1, linestyle="--")
            axes.set_ylim(min(0, axes.get_ylim()[0]), None)
        if legend and len(shown) > 1:
            axes.legend()

    return panel(title, across, draw)


def _banded(part: dict[str, Any], name: str) -> dict[str, Any]:
    """A number of the report by frame, with its interval."""
    return {t: {"mean": mean, "ci95": part[f"{name}_ci95"][t]} for t, mean in part[name].items()}


def quality_plots(long: dict[str, Any]) -> list[str]:
    """PSNR, SSIM, and ST-LPIPS where measured, frame by frame, from 1 and from 4 true frames."""
    titles = {"pooled_psnr": "PSNR (dB), pooled", "ssim": "SSIM", "st_lpips": "ST-LPIPS, less is better"}
    ways = {"from 4 true frames": long["from_4"], "from 1": long["from_1"], REPEATED: long["repeat_last"]}
    drawn = []
    for name, title in titles.items():
        if name in long["repeat_last"]:
            shown = {label: _banded(way, name) for label, way in ways.items()}
            drawn.append(curves(title, FRAME, shown, legend=name == "pooled_psnr"))
    return drawn


def code_plot(usage: list[float]) -> str:
    """How often each code is used, the commonest first."""

    def draw(axes: Axes) -> None:
        axes.fill_between(range(1, len(usage) + 1), 0, 100 * np.array(usage), color=LIT, alpha=0.6, linewidth=0)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(100 / len(usage), color=GREY, linewidth=1, linestyle="--")

    return panel("share of each code (%), dashed: if even", "code, the commonest first", draw)


def control_plot(reports: Reports) -> str:
    """delta-PSNR by frame; a curve a world."""
    shown = {name: report["rollout"]["delta_psnr"] for name, report in reports.items()}
    return curves("delta-PSNR (dB)", FRAME, shown, level=0)


def fading_plot(reports: Reports) -> str:
    """PSNR from 4 true frames, frame by frame; a curve a world."""
    shown = {name: _banded(report["long_rollouts"]["from_4"], "pooled_psnr") for name, report in reports.items()}
    return curves("PSNR (dB), pooled", FRAME, shown)


def drift_plots(reports: Reports) -> list[str]:
    """Sharpness, code use, codes of its own level and Frechet distance where measured, stretch by stretch; a curve a
    world."""
    drift = {name: report["drift"]["stretches"] for name, report in reports.items()}

    def shown(key: str) -> Reports:
        return {name: {at: stretch[key] for at, stretch in each.items()} for name, each in drift.items()}

    drawn = [
        curves("sharpness, real clips = 1", STRETCH, shown("sharpness"), level=1),
        curves("code perplexity, real clips = 1", STRETCH, shown("perplexity_share"), level=1, legend=False),
    ]
    if all("own_codes" in stretch for each in drift.values() for stretch in each.values()):
        drawn.append(curves("codes of its own level, all = 1", STRETCH, shown("own_codes"), level=1, legend=False))
    if all("frechet" in stretch for each in drift.values() for stretch in each.values()):
        distances, first = shown("frechet"), next(iter(reports.values()))["drift"]["real"]
        if "frechet" not in first:  # version 1 of the report had one number for all stretches
            distances[REAL] = {at: each["frechet"] for at, each in first.items()}
        drawn.append(curves("Frechet distance (grey: of real clips)", STRETCH, distances, legend=False))
    return drawn


def training_plots(lines: Lines) -> list[str]:
    return [
        panel(title, "% of the stage", partial(_training_curve, lines=lines, stage=stage, name=name))
        for stage, name, title in TRAINING
    ]


def training_picture(lines: Lines) -> bytes:
    """All training curves in one PNG."""
    figure, drawn = Figure(figsize=(11, 6), layout="constrained"), io.BytesIO()
    for axes, (stage, name, title) in zip(figure.subplots(2, 3).T.flat, TRAINING, strict=True):
        _training_curve(axes, lines, stage, name)
        axes.set_title(title, fontsize=10)
    figure.savefig(drawn, dpi=90)
    return drawn.getvalue()


def _training_curve(axes: Axes, lines: Lines, stage: str, name: str) -> None:
    """A metric along its stage, in front of the grey curve of a run known to be good."""
    points = [(line["progress"], line[name]) for line in lines if line["stage"] == stage and name in line]
    if not points:  # LAM and dynamics trained jointly
        points = [(line["progress"], line[f"{stage}_{name}"]) for line in lines if f"{stage}_{name}" in line]
    known = json.loads((Path(__file__).parent / "reference.json").read_text())["stages"][stage][name]
    for curve, colour in ((known, GREY), (points, LIT)):
        if curve:
            axes.plot([100 * progress for progress, _ in curve], [value for _, value in curve], color=colour)
