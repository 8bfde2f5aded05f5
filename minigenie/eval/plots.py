"""Plots as SVG that takes on the colours of the page around it, one panel each, so that a phone can stack them."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#0a0b0c"  # stands for the page's own ink
LIT, COOL, GREY = "#e0631b", "#3b7dd8", "#8d929b"
COLOURS = (LIT, COOL, "#2f9e6e", "#a45ad1", "#c99a1b", "#d14a7c")
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
CURVES = (
    ("tokenizer", "psnr", "tokenizer: PSNR (dB)"),
    ("tokenizer", "perplexity", "tokenizer: code perplexity"),
    ("lam", "psnr", "LAM: PSNR of the next frame (dB)"),
    ("lam", "perplexity", "LAM: action perplexity"),
    ("dynamics", "cross_entropy", "dynamics: cross-entropy (nats)"),
    ("dynamics", "control", "dynamics: nats that the action is worth"),
)
Reports = dict[str, dict[str, Any]]  # by the worlds' names


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


def quality_plots(long: dict[str, Any]) -> list[str]:
    """PSNR, SSIM, and ST-LPIPS where measured, frame by frame, from 1 and from 4 true frames."""
    starts = (
        ("from_4", "from 4 true frames", LIT),
        ("from_1", "from 1", COOL),
        ("repeat_last", "last one repeated", GREY),
    )

    def draw(axes: Axes, name: str) -> None:
        for key, label, colour in starts:
            _band(axes, long[key][name], long[key].get(f"{name}_ci95"), color=colour, label=label)
        if name == "pooled_psnr":
            axes.legend()

    titles = {"pooled_psnr": "PSNR (dB), pooled", "ssim": "SSIM", "st_lpips": "ST-LPIPS, less is better"}
    measured = {name: title for name, title in titles.items() if name in long["repeat_last"]}
    return [panel(title, "imagined frame", lambda axes: draw(axes, name)) for name, title in measured.items()]  # noqa: B023


def control_plot(reports: Reports) -> str:
    """delta-PSNR by frame, with its interval; a curve a world."""

    def draw(axes: Axes) -> None:
        for (name, report), colour in zip(reports.items(), COLOURS, strict=False):
            deltas = report["rollout"]["delta_psnr"]
            means, intervals = ({t: delta[key] for t, delta in deltas.items()} for key in ("mean", "ci95"))
            _band(axes, means, intervals, color=colour, label=name)
        axes.axhline(0, color=INK, linewidth=0.8)
        _legend(axes, reports)

    return panel("delta-PSNR (dB)", "imagined frame", draw)


def fading_plot(reports: Reports) -> str:
    """Pooled PSNR from 4 true frames, frame by frame; a curve a world."""

    def draw(axes: Axes) -> None:
        for (name, report), colour in zip(reports.items(), COLOURS, strict=False):
            _band(axes, report["long_rollouts"]["from_4"]["pooled_psnr"], None, color=colour, label=name)
        _legend(axes, reports)

    return panel("PSNR (dB), pooled", "imagined frame", draw)


def drift_plots(reports: Reports) -> list[str]:
    """Sharpness and code use, stretch by stretch, beside real frames; a curve a world."""

    def draw(axes: Axes, name: str) -> None:
        for (world, report), colour in zip(reports.items(), COLOURS, strict=False):
            stretches = report["drift"]["stretches"]
            values = dict(enumerate(stretch[name] for stretch in stretches.values()))
            intervals = {at: value["ci95"] for at, value in values.items() if name == "sharpness"}
            means = {at: value["mean"] if name == "sharpness" else value for at, value in values.items()}
            _band(axes, means, intervals, color=colour, label=world)
            axes.set_xticks(range(len(stretches)), list(stretches))
        if name != "frechet":
            axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
        axes.set_ylim(0, None)
        _legend(axes, reports)

    titles = {
        "sharpness": "sharpness, real frames = 1",
        "perplexity_share": "code perplexity, real frames = 1",
        "frechet": "Frechet distance to real frames",
    }
    first = [next(iter(report["drift"]["stretches"].values())) for report in reports.values()]
    measured = [name for name in titles if all(name in stretch for stretch in first)]
    return [panel(titles[name], "imagined frames", lambda axes: draw(axes, name)) for name in measured]  # noqa: B023


def curves_plots(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [panel(title, "% of the stage", lambda axes: _curve(axes, lines, *what)) for *what, title in CURVES]  # noqa: B023


def curves_picture(lines: Sequence[dict[str, Any]]) -> bytes:
    """All curves in one PNG."""
    figure, drawn = Figure(figsize=(11, 6), layout="constrained"), io.BytesIO()
    for axes, (stage, name, title) in zip(figure.subplots(2, 3).T.flat, CURVES, strict=True):
        _curve(axes, lines, stage, name)
        axes.set_title(title, fontsize=10)
    figure.savefig(drawn, dpi=90)
    return drawn.getvalue()


def _curve(axes: Axes, lines: Sequence[dict[str, Any]], stage: str, name: str) -> None:
    """A metric along its stage, in front of the grey curve of a run known to be good."""
    points = [(line["progress"], line[name]) for line in lines if line["stage"] == stage and name in line]
    if not points:  # LAM and dynamics trained jointly
        points = [(line["progress"], line[f"{stage}_{name}"]) for line in lines if f"{stage}_{name}" in line]
    known = json.loads((Path(__file__).parent / "reference.json").read_text())["stages"][stage][name]
    for curve, colour in ((known, GREY), (points, LIT)):
        if curve:
            axes.plot([100 * progress for progress, _ in curve], [value for _, value in curve], color=colour)


def _band(axes: Axes, curve: dict[Any, float], interval: dict[Any, list[float]] | None, **look: Any) -> None:
    at = [int(t) for t in curve]
    axes.plot(at, list(curve.values()), marker="o", markersize=3, **look)
    if interval:
        axes.fill_between(at, *zip(*interval.values(), strict=True), color=look["color"], alpha=0.15, linewidth=0)


def _legend(axes: Axes, reports: Reports) -> None:
    if len(reports) > 1:
        axes.legend()
