"""The report: report.json for scripts, report.html for people, pictures/ for documents.

Dimensions:  b clips   t frames   a actions   h w c a frame
"""

import base64
import io
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from minigenie.config import from_dict
from minigenie.eval.control import SHOWN, Scene
from minigenie.eval.doctor import Finding, Run, diagnose
from minigenie.eval.measure import PERCEPTUAL, PROMPT, UNMEASURED, Scenes
from minigenie.eval.plots import code_plot, control_plot, drift_plots, quality_plots, training_picture, training_plots
from minigenie.files import write_atomic
from minigenie.metrics import read_metrics
from minigenie.pictures import grid, save_picture, save_video
from minigenie.world import WorldConfig

GIVEN, IMAGINED = (150, 154, 162), (224, 99, 27)  # the bar between truth and imagination
LOSSLESS_SIDE = 128  # pixels; larger pictures are compressed, to keep the page small

# Of other footage each: where such numbers usually lie.
REDUX, PAPER = "GenieRedux, CoinRun of 2018, hard", "Genie, platformer videos"
PUBLISHED = {
    "tokenizer PSNR": ("38.25 dB", REDUX),
    "tokenizer SSIM": ("0.96", REDUX),
    "10 frames from 1, PSNR": ("25.51 dB", REDUX),
    "10 frames from 1, SSIM": ("0.77", REDUX),
    "delta-PSNR, frame 4": ("1.91 dB", f"{PAPER}, actions from pixels (from tokens 1.33; robot videos 2.07 and 1.65)"),
}

MEANING = (
    "Below, how often each stands for each true action, which training never saw: a row for each latent action. Chance "
    "is the same with the true actions shuffled. An effect that comes a frame after its key, or a key that does "
    "nothing in mid-air, keeps even perfect actions far from 1."
)


def write_report(
    folder: Path, report: dict[str, Any], scenes: Scenes, *, title: str = "A world", metrics: Path | None = None
) -> list[Path]:
    """report.json, report.html and pictures/ in `folder`. metrics: metrics.jsonl of the run that made the world."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = read_metrics(metrics) if metrics else []
    pictures = save_pictures(scenes, report, lines, folder / "pictures")
    write_atomic(folder / "report.html", page(title, body(report, scenes, lines)).encode())
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
    return pictures


def summary(report: dict[str, Any]) -> list[str]:
    """What a person wants to know first, a line each."""
    tokenizer, actions, rollout = report["tokenizer"], report["actions"], report["rollout"]
    lines = [
        f"tokenizer     {tokenizer['psnr']:.2f} dB PSNR, {tokenizer['ssim']:.3f} SSIM, "
        f"{tokenizer['codes_used']} codes used ({tokenizer['frames']} held-out frames)",
        f"actions       {actions['above_2_percent']} of {len(actions['usage'])} above 2 % of {actions['transitions']} "
        f"transitions: " + " ".join(f"{share:.0%}" for share in actions["usage"]),
    ]
    if "mutual_information" in actions:
        lines.append(
            f"              mutual information with the true action {actions['mutual_information']:.3f} "
            f"(chance {actions['mutual_information_chance']:.3f})"
        )
    if "information" in actions:
        pairs = actions.get("inverse_dynamics")
        told = f", a pair of frames {pairs['all']['information']:.2f}" if pairs else ""
        lines.append(f"              they tell {actions['information']['all']:.2f} of the true action{told}")
    lines += _control_lines(report.get("control"))
    for t, pooled in list(rollout["pooled_psnr"].items())[:4]:
        delta, (low, high) = rollout["delta_psnr"][t], rollout["delta_psnr"][t]["ci95"]
        lines.append(
            f"frame {t}       delta-PSNR {delta['mean']:.2f} dB [{low:.2f}, {high:.2f}], PSNR {pooled:.2f} dB, "
            f"last true frame repeated {rollout['repeat_last_pooled_psnr'][t]:.2f} dB ({delta['clips']} clips)"
        )
    for stretch, drift in list(report.get("drift", {}).get("stretches", {}).items())[-1:]:
        lines.append(
            f"drift         frames {stretch}: sharpness {drift['sharpness']['mean']:.2f} and code perplexity "
            f"{drift['perplexity_share']:.2f} of true clips'"
        )
    return [*lines, *(f"note          {note}" for note in report.get("notes", []))]


def _control_lines(control: dict[str, Any] | None) -> list[str]:
    if control is None:
        return []
    gravity = f", gravity {control['gravity']['mean']:.2f}" if control.get("gravity") else ""
    keys = " ".join(f"{name} {key['share']:.2f}" for name, key in control["keys"].items())
    return [
        f"control       {spread(control['share'], control['share_ci95'])} as the game, standing still "
        f"{control['still']:.2f}{gravity} ({control['states']} states)",
        f"              {keys}",
    ]


# Pictures as files.


def save_pictures(scenes: Scenes, report: dict[str, Any], lines: list[dict[str, Any]], folder: Path) -> list[Path]:
    """reconstructions.png, rollouts.png, actions.png and .gif; control.png after a control test, curves.png if there
    are `lines` of training."""
    before, after = scenes.originals, scenes.reconstructions
    rows = [half for i in range(0, len(before), 8) for half in (before[i : i + 8], after[i : i + 8])]
    pairs = zip(scenes.truth[:4, :12], scenes.imagined[:4, :12], strict=True)
    paths = [
        save_picture(grid(rows), folder / "reconstructions.png"),
        save_picture(grid([row for pair in pairs for row in pair]), folder / "rollouts.png"),
        save_picture(grid(list(scenes.held)), folder / "actions.png"),
        save_video(torch.cat(list(scenes.held), dim=2), folder / "actions.gif", report["fps"] / 2),
    ]
    if scenes.control:
        paths.append(save_picture(grid(_key_rows(report["control"], scenes.control)), folder / "control.png"))
    if lines:
        write_atomic(folder / "curves.png", training_picture(lines))
        paths.append(folder / "curves.png")
    return paths


def _key_rows(control: dict[str, Any], scene: Scene) -> list[UInt8[Tensor, "t h w c"]]:
    """Two rows for each key, the game above the world, some frames of each behind what they are."""
    at = torch.linspace(0, scene.game.shape[1] - 1, SHOWN).round().long()
    rows = []
    for name, game, world in zip(*scene, strict=True):
        action = control["keys"].get(name, {}).get("action")
        for video, what in ((game, "the game"), (world, f"action {action}")):
            rows.append(torch.cat((_label(f"{name}\n{what}", video)[None], video[at])))
    return rows


def _label(text: str, video: UInt8[Tensor, "t h w c"]) -> UInt8[Tensor, "h w c"]:
    """Black on white, the size of a frame."""
    drawn = Image.new("RGB", (video.shape[2], video.shape[1]), "white")
    ImageDraw.Draw(drawn).multiline_text((2, video.shape[1] // 3), text, "black")
    return torch.from_numpy(np.array(drawn))


# Pictures inside the page.


def animated(video: UInt8[Tensor, "t h w c"], fps: float, alt: str) -> str:
    """A WebP that plays forever, resting on its last frame; one frame is a still."""
    lossless = max(video.shape[1:3]) <= 2 * LOSSLESS_SIDE
    frames, drawn = [Image.fromarray(frame.numpy()) for frame in video], io.BytesIO()
    pace = [round(1000 / fps)] * (len(frames) - 1) + [900]
    options = {"save_all": True, "append_images": frames[1:], "duration": pace, "loop": 0} if len(frames) > 1 else {}
    frames[0].save(drawn, "WEBP", lossless=lossless, quality=80, method=4, **options)
    data = base64.b64encode(drawn.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/webp;base64,{data}">'


def stacked(
    above: UInt8[Tensor, "t h w c"], below: UInt8[Tensor, "t h w c"], given: int = 0
) -> UInt8[Tensor, "t H w c"]:
    """One video above another, a bar between them that changes colour where `given` frames end."""
    bar = above.new_zeros(len(above), max(3, above.shape[1] // 16), above.shape[2], 3)
    bar[:given], bar[given:] = (torch.tensor(colour, dtype=torch.uint8) for colour in (GIVEN, IMAGINED))
    return torch.cat((above, bar, below), dim=1)


def figure(picture: str, caption: str = "") -> str:
    return f"<figure>{picture}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def strip(figures: Iterable[str], style: str = "") -> str:
    return f'<div class="strip" style="{style}">{"".join(figures)}</div>'


def plots(drawn: Iterable[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'


def table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def page(title: str, content: str) -> str:
    """One self-contained HTML file around `content`."""
    return _template("page.html").substitute(title=escape(title), body=content)


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def spread(value: dict[str, Any] | float, interval: list[float] | None = None, digits: int = 2) -> str:
    """A number with its interval, as text."""
    mean, interval = (value["mean"], value["ci95"]) if isinstance(value, dict) else (value, interval)
    text = f"{mean:.{digits}f}"
    return f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else text


def headline(report: dict[str, Any]) -> dict[str, str]:
    """The numbers that a paper's table would hold, as text. Used alone and side by side."""
    tokenizer, actions, rollout = report["tokenizer"], report["actions"], report["rollout"]
    far = report["long_rollouts"]["from_1"]
    t = max((t for t in rollout["delta_psnr"] if int(t) <= 4), key=int)
    last, drift = list(report["drift"]["stretches"].items())[-1]
    numbers = {
        "tokenizer PSNR": f"{spread(tokenizer['psnr'], tokenizer['psnr_ci95'])} dB",
        "tokenizer SSIM": spread(tokenizer["ssim"], tokenizer["ssim_ci95"], 3),
        "tokenizer codes in use": f"{tokenizer['codes_used']} of {tokenizer['num_codes']}",
        "tokenizer code perplexity": f"{tokenizer['perplexity']:.0f}",
        "actions above 2 %": f"{actions['above_2_percent']} of {len(actions['usage'])}",
        f"delta-PSNR, frame {t}": f"{spread(rollout['delta_psnr'][t])} dB",
        f"PSNR, frame {t}, pooled": f"{rollout['pooled_psnr'][t]:.2f} dB",
        f"last frame repeated, frame {t}, pooled": f"{rollout['repeat_last_pooled_psnr'][t]:.2f} dB",
        "10 frames from 1, PSNR": f"{spread(far['psnr_first_10'])} dB",
        "10 frames from 1, SSIM": spread(far["ssim_first_10"], digits=3),
        "motion explained by the action": f"{actions['effects_together']['explained']:.0%}",
        "cross-entropy of dynamics": f"{report['dynamics']['cross_entropy']:.2f} nats",
        f"sharpness, frames {last}": spread(drift["sharpness"]),
        f"code perplexity, frames {last}": f"{drift['perplexity_share']:.2f} of real",
    }
    if "mutual_information" in actions:
        numbers["mutual information with true actions"] = f"{actions['mutual_information']:.3f}"
        numbers["true action from latent"] = f"{actions['probe']['mean']:.0%}"
    if "information" in actions:
        numbers["information on the true action"] = f"{actions['information']['all']:.2f}"
    numbers |= _control_numbers(report.get("control"))
    for key, (title, _, pairs) in PERCEPTUAL.items():
        if pairs and f"{key}_first_10" in far:
            numbers[f"10 frames from 1, {title}"] = spread(far[f"{key}_first_10"], digits=3)
        elif key in far:
            numbers[f"{report['long_rollouts']['frames']} frames from 1, {title}"] = f"{far[key]:.2f}"
    return numbers


def _control_numbers(control: dict[str, Any] | None) -> dict[str, str]:
    if control is None:
        return {}
    numbers = {
        "control test": spread(control["share"], control["share_ci95"]),
        "control test, standing still": f"{control['still']:.2f}",
        **{f"control test, {name}": f"{key['share']:.2f}" for name, key in control["keys"].items()},
    }
    if control.get("gravity"):
        numbers["gravity"] = spread(control["gravity"])
    if "probe_imagined" in control:
        seen = control["probe_imagined"], control["probe_real"]
        numbers["keys seen in imagined frames"] = "{:.2f} (in the game's {:.2f})".format(*seen)
    return numbers


def body(report: dict[str, Any], scenes: Scenes, lines: list[dict[str, Any]]) -> str:
    """The page's inside: report.html with every number and picture filled in."""
    made, actions, fps = report["made_with"], report["actions"], report["fps"] / 2
    together = actions["effects_together"]
    run = Run(from_dict(WorldConfig, report["world"]), lines, report)
    facts = {
        **{name: report["dataset"][name] for name in ("source", "generator", "split")},
        "clips": report["clips"],
        "seed": report["seed"],
        "version": made["minigenie"],
        "commit": made["commit"] or "commit unknown",
        "machine": made["cpu"] if made["device"] == "cpu" else made["device"],
        "prompt": PROMPT,
        "held": scenes.held.shape[1] - 1,
        "starts": together["starts"],
        "explained": f"{together['explained']:.0%}",
        "explained_chance": f"{together['explained_chance']:.0%}",
        "long_clips": report["long_rollouts"]["clips"],
        "in_use": actions["above_2_percent"],
        "num_actions": len(actions["usage"]),
        "transitions": f"{actions['transitions']:,}",
        "perplexity": f"{actions['perplexity']:.2f}",
        "meaning_note": MEANING if "confusion" in actions else "The footage has no true actions to compare them with.",
        "drift_clips": report["drift"]["clips"],
        "drift_frames": report["drift"]["horizon"],
    }
    pieces = {
        "notes": "".join(f"<li>{escape(note)}</li>" for note in report["notes"] if not note.startswith(UNMEASURED)),
        "unmeasured": "".join(f"<li>{escape(note)}</li>" for note in report["notes"] if note.startswith(UNMEASURED)),
        "cards": _cards(headline(report)),
        "rollouts": strip(
            figure(animated(stacked(true, seen, PROMPT), fps, "truth above imagination"))
            for true, seen in zip(scenes.truth, scenes.imagined, strict=True)
        ),
        "gallery": strip(_held(report, scenes, a, fps) for a in range(len(scenes.held))),
        "control": _control(report["control"], scenes.control, fps) if scenes.control else "",
        "fading": plots([control_plot({"": report}), *quality_plots(report["long_rollouts"])]),
        "meaning": _meaning(report) if "confusion" in actions else _usage(actions),
        "reconstructions": strip(
            figure(animated(stacked(before[None], after[None], given=1), fps, "original above reconstruction"))
            for before, after in zip(scenes.originals, scenes.reconstructions, strict=True)
        ),
        "codes": plots([code_plot(report["tokenizer"]["usage"])]),
        "drift": plots(drift_plots({"": report})) + _drifting(scenes),
        "findings": _findings(diagnose(run)),
        "curves": plots(training_plots(lines)) if lines else "",
        "numbers": table(
            ["", "this world", "published", "where"],
            [[name, value, *PUBLISHED.get(name, ("", ""))] for name, value in headline(report).items()],
        ),
    }
    return _template("report.html").substitute({name: escape(str(fact)) for name, fact in facts.items()}, **pieces)


def _cards(numbers: dict[str, str]) -> str:
    cards = ""
    for name in (
        "control test",
        "gravity",
        *PUBLISHED,
        "tokenizer codes in use",
        "actions above 2 %",
        "motion explained by the action",
    ):
        if name in numbers:
            value, _, interval = numbers[name].removesuffix(" dB").rstrip("]").partition(" [")
            unit = "<small> dB</small>" if numbers[name].endswith("dB") else ""
            published = f"published: {PUBLISHED[name][0]}" if name in PUBLISHED else ""
            below = f"<span>{interval.replace(', ', ' to ')}</span><span>{published}</span>"
            cards += f"<div><span>{name}</span><b>{value}{unit}</b>{below}</div>"
    return cards


def _held(report: dict[str, Any], scenes: Scenes, a: int, fps: float) -> str:
    effect, share = report["actions"]["effects"][a], report["actions"]["usage"][a]
    arrows = [
        f"{there if value > 0 else back} {abs(value):.1f}"
        for value, there, back in zip(effect["motion"], "↓→", "↑←", strict=True)
        if abs(value) >= 0.1
    ]
    alike = "" if effect["consistency"] is None else f", {effect['consistency']:.0%} alike"
    what = f"{' '.join(arrows)} px{alike}" if arrows else "rests"
    return figure(animated(scenes.held[a], fps, f"action {a} held"), f"<b>action {a}</b> · {share:.0%}<br>{what}")


def _control(control: dict[str, Any], scene: Scene, fps: float) -> str:
    """The section of the control test: every key held, the game above the world."""
    figures = []
    for name, game, world in zip(*scene, strict=True):
        if key := control["keys"].get(name):
            caption = f"<b>{name}</b> · action {key['action']}<br>{key['share']:.0%}, standing still {key['still']:.0%}"
            figures.append(figure(animated(stacked(game, world, 1), fps, f"{name} in the game and the world"), caption))
    gravity = ""
    if found := control.get("gravity"):
        gravity = f" Gravity: in {found['mean']:.0%} of {found['clips']} jumps it comes down as the game does."
    return _template("control.html").substitute(
        keys=strip(figures),
        share=spread(control["share"], control["share_ci95"]),
        still=f"{control['still']:.2f}",
        states=control["states"],
        levels=control["levels"],
        game=escape(control["game"]),
        frames=control["frames"],
        gravity=gravity,
    )


def _meaning(report: dict[str, Any]) -> str:
    actions = report["actions"]
    rows = [
        [title, digits.format(actions[name]), digits.format(actions[f"{name}_chance"])]
        for title, name, digits in (
            ("normalised mutual information", "mutual_information", "{:.3f}"),
            ("purity", "purity", "{:.1%}"),
        )
    ]
    guessed = ["true action guessed, on other clips", spread(actions["probe"]), f"{actions['probe_chance']:.2f}"]
    measures = table(["", "measured", "chance"], [*rows, guessed]) + _information(actions)
    return f'<div class="beside"><div>{_confusion(report)}</div><div>{measures}</div></div>'


def _information(actions: dict[str, Any]) -> str:
    """What the latent actions tell of the true ones, beside what a network sees in a pair of frames."""
    pairs = actions.get("inverse_dynamics", {})
    rows = []
    for name, told in actions["information"].items():
        seen = pairs.get(name)
        network = [f"{seen['information']:.2f}", f"{seen['accuracy']:.0%}", f"{seen['majority']:.0%}"] if seen else []
        rows.append([name, f"{told:.2f}", *(network or ["-"] * 3)])
    return table(["information on the true action", "latent", "pair of frames", "guessed", "commonest"], rows)


def _usage(actions: dict[str, Any]) -> str:
    return table(["action", "share"], [[str(a), f"{share:.1%}"] for a, share in enumerate(actions["usage"])])


def _confusion(report: dict[str, Any]) -> str:
    """How often each latent action stands for each true one, a row per latent action."""
    actions = report["actions"]
    head = "".join(f"<th>{actions['controls'][true]}</th>" for true in actions["true_actions"])
    rows = ""
    for a, counts in enumerate(actions["confusion"]):
        shares = [count / max(sum(counts), 1) for count in counts]
        cells = "".join(f'<td style="--share: {share:.0%}">{share:.0%}</td>' for share in shares)
        rows += f"<tr><th>{a} · {actions['usage'][a]:.0%}</th>{cells}</tr>"
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    return f'<div class="scroll"><table class="matrix">{head}<tbody>{rows}</tbody></table></div>'


def _drifting(scenes: Scenes) -> str:
    """Four rollouts in columns of frames."""
    at = [t for t in scenes.drifting if t in (0, 1, 10, 50, 100) or t == max(scenes.drifting)]
    figures = []
    for t in at:
        column = rearrange(scenes.drifting[t][:4], "b h w c -> (b h) w c")
        name = f"frame {t}" if t else "start"
        figures.append(figure(animated(column[None], 1, name), name))
    return strip(figures, f"grid-template-columns: repeat({len(at)}, minmax(0, 120px))")


def _findings(findings: list[Finding]) -> str:
    rows = ""
    for finding in findings:
        advice = f". To change: {escape(finding.advice)}" if finding.advice else ""
        said = f"<b>{finding.disease}</b>: {escape(finding.measured)}{advice}"
        rows += f'<li><span class="{finding.verdict}">{finding.verdict}</span>{said}</li>'
    return f'<ul class="findings">{rows}</ul>'
