"""The report: report.json for scripts, report.html for people, pictures/ for documents.

Dimensions:  b clips   t frames   a actions   h w c a frame
"""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from minigenie.config import from_dict
from minigenie.eval.control import SHOWN, Scene
from minigenie.eval.doctor import Run, diagnose
from minigenie.eval.evaluator import PROMPT, UNMEASURED, Report
from minigenie.eval.measure import Scenes
from minigenie.eval.perceptual import FRECHET_NAME, ST_LPIPS_NAME
from minigenie.eval.plots import code_plot, control_plot, drift_plots, quality_plots, training_picture, training_plots
from minigenie.files import to_json, write_atomic
from minigenie.metrics import read_metrics
from minigenie.pictures import grid, label, save_picture, save_video
from minigenie.remote import write_listed
from minigenie.world import WorldConfig

Clip = UInt8[Tensor, "t h w c"]
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

CARDS = (
    "control test", "gravity", *PUBLISHED, "tokenizer codes in use", "actions above 2 %",
    "motion explained by the action",
)  # fmt: skip


def write_report(
    folder: Path, report: Report, scenes: Scenes, *, title: str = "A world", metrics: Path | None = None
) -> list[Path]:
    """report.json, report.html and pictures/ in `folder`. metrics: metrics.jsonl of the run that made the world."""
    lines = read_metrics(metrics) if metrics else []
    pictures = save_pictures(scenes, report, lines, folder / "pictures")
    write_page(
        folder / "report.html", "report.html", title=title, report=report, scenes=scenes, numbers=headline(report),
        findings=diagnose(Run(from_dict(WorldConfig, report["world"]), lines, report)),
        fading=[control_plot({"": report}), *quality_plots(report["long_rollouts"])],
        codes=[code_plot(report["tokenizer"]["usage"])], drifting=drift_plots({"": report}),
        training=training_plots(lines) if lines else [], fps=report["fps"] / 2,
    )  # fmt: skip
    write_listed(folder / "report.json", to_json(report))
    return pictures


def summary(report: Report) -> list[str]:
    """The headline numbers, a line each, and the notes."""
    lines = [f"{name:<45} {value}" for name, value in headline(report).items()]
    return [*lines, *(f"note          {note}" for note in report.get("notes", []))]


# Pictures as files.


def save_pictures(scenes: Scenes, report: Report, lines: list[Report], folder: Path) -> list[Path]:
    """control.png is there after a control test, curves.png if there are `lines` of training."""
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


def _key_rows(control: Report, scene: Scene) -> list[Clip]:
    """Two rows for each key, the game above the world, some frames of each behind what they are."""
    at = torch.linspace(0, scene.game.shape[1] - 1, SHOWN).round().long()
    rows = []
    for name, game, world in zip(*scene, strict=True):
        action = control["keys"].get(name, {}).get("action")
        for video, what in ((game, "the game"), (world, f"action {action}")):
            _, height, width, _ = video.shape
            text = label(f"{name}\n{what}", (width, height), (2, height // 3))
            rows.append(torch.cat((torch.from_numpy(text)[None], video[at])))
    return rows


# The page: one self-contained file.


def webp(video: Clip, fps: float) -> str:
    """The address of a WebP that plays forever, resting on its last frame; one frame is a still."""
    lossless = max(video.shape[1:3]) <= 2 * LOSSLESS_SIDE
    frames, drawn = [Image.fromarray(frame.numpy()) for frame in video], io.BytesIO()
    pace = [round(1000 / fps)] * (len(frames) - 1) + [900]
    options = {"save_all": True, "append_images": frames[1:], "duration": pace, "loop": 0} if len(frames) > 1 else {}
    frames[0].save(drawn, "WEBP", lossless=lossless, quality=80, method=4, **options)
    return data_uri(drawn.getvalue(), "webp")


def data_uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def stacked(above: Clip, below: Clip, given: int) -> UInt8[Tensor, "t H w c"]:
    """One video above another, a bar between them that changes colour where `given` frames end."""
    bar = above.new_zeros(len(above), max(3, above.shape[1] // 16), above.shape[2], 3)
    bar[:given], bar[given:] = (torch.tensor(colour, dtype=torch.uint8) for colour in (GIVEN, IMAGINED))
    return torch.cat((above, bar, below), dim=1)


def spread(value: Report | float, interval: list[float] | None = None, digits: int = 2) -> str:
    """A number with its interval, as text."""
    mean, interval = (value["mean"], value["ci95"]) if isinstance(value, dict) else (value, interval)
    text = f"{mean:.{digits}f}"
    return f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else text


def headline(report: Report) -> dict[str, str]:
    """The numbers that a paper's table would hold, as text. Used alone and side by side."""
    tokenizer, actions, rollout = report["tokenizer"], report["actions"], report["rollout"]
    far = report["long_rollouts"]["from_1"]
    shown = [t for t in rollout["delta_psnr"] if int(t) <= 4]
    t = shown[-1]
    last, drift = list(report["drift"]["stretches"].items())[-1]
    numbers = {
        "held-out clips": str(report["clips"]),
        "tokenizer PSNR": f"{spread(tokenizer['psnr'], tokenizer['psnr_ci95'])} dB",
        "tokenizer SSIM": spread(tokenizer["ssim"], tokenizer["ssim_ci95"], 3),
        "tokenizer codes in use": f"{tokenizer['codes_used']} of {tokenizer['num_codes']}",
        "tokenizer code perplexity": f"{tokenizer['perplexity']:.0f}",
        "actions above 2 %": f"{actions['above_2_percent']} of {len(actions['usage'])}",
        "share of each action": " ".join(f"{share:.0%}" for share in actions["usage"]),
        **{f"delta-PSNR, frame {t}": f"{spread(rollout['delta_psnr'][t])} dB" for t in shown},
        f"PSNR, frame {t}, pooled": f"{rollout['pooled_psnr'][t]:.2f} dB",
        f"last frame repeated, frame {t}, pooled": f"{rollout['repeat_last_pooled_psnr'][t]:.2f} dB",
        "10 frames from 1, PSNR": f"{spread(far['psnr_first_10'])} dB",
        "10 frames from 1, SSIM": spread(far["ssim_first_10"], digits=3),
        "motion explained by the action": f"{actions['effects_together']['explained']:.0%}",
        "cross-entropy of dynamics": f"{report['dynamics']['cross_entropy']:.2f} nats",
        f"sharpness, frames {last}": spread(drift["sharpness"]),
        f"code perplexity, frames {last}": f"{drift['perplexity_share']:.2f} of real",
    }
    if "own_codes" in drift:
        of = {"own": "its own true frames", "other": "those of another"}
        true = ", ".join(f"{of[way]} {share:.2f}" for way, share in report["drift"]["level"].items())
        numbers[f"codes of its own level, frames {last}"] = f"{spread(drift['own_codes'])} ({true})"
    if "mutual_information" in actions:
        told, by_chance = actions["mutual_information"], actions["mutual_information_chance"]
        numbers["mutual information with true actions"] = f"{told:.3f} (chance {by_chance:.3f})"
        numbers["true action from latent"] = f"{actions['probe']['mean']:.0%}"
    if "information" in actions:
        numbers["information on the true action"] = f"{actions['information']['all']:.2f}"
    if pairs := actions.get("inverse_dynamics"):
        numbers["information in a pair of frames"] = f"{pairs['all']['information']:.2f}"
    if control := report.get("control"):
        numbers["control test"] = spread(control["share"], control["share_ci95"])
        numbers["control test, standing still"] = f"{control['still']:.2f}"
        numbers["control test, states"] = str(control["states"])
        numbers |= {f"control test, {name}": f"{key['share']:.2f}" for name, key in control["keys"].items()}
        if control.get("gravity"):
            numbers["gravity"] = spread(control["gravity"])
        if "probe_imagined" in control:
            seen = control["probe_imagined"], control["probe_real"]
            numbers["keys seen in imagined frames"] = "{:.2f} (in the game's {:.2f})".format(*seen)
    if ends := report.get("ending"):
        if "told" in ends:
            numbers["ends of episodes told"] = f"{spread(ends['told'])} of {ends['told']['clips']}"
            numbers["told too early"] = f"{spread(ends['early'])} of {ends['early']['clips']}"
        if "outcome" in ends:
            numbers["won or lost told"] = f"{spread(ends['outcome'])} ({ends['won']:.2f} are won)"
        if "lost" in ends:
            numbers["true episodes taken for lost"] = f"{spread(ends['lost'])} of {ends['lost']['clips']}"
    if "st_lpips_first_10" in far:
        numbers[f"10 frames from 1, {ST_LPIPS_NAME}"] = spread(far["st_lpips_first_10"], digits=3)
    if "frechet" in far:
        numbers[f"{report['long_rollouts']['frames']} frames from 1, {FRECHET_NAME}"] = f"{far['frechet']:.2f}"
    return numbers


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
TEMPLATES.filters["percent"] = "{:.0%}".format
TEMPLATES.globals |= {"cards": CARDS, "not_measured": UNMEASURED, "prompt": PROMPT, "published": PUBLISHED}
TEMPLATES.globals |= {"spread": spread, "stacked": stacked, "webp": webp, "zip": zip}


def write_page(path: Path, template: str, **values: Any) -> None:
    """A page of eval/TEMPLATE with `values` filled in, everything escaped but the plots."""
    write_atomic(path, TEMPLATES.get_template(template).render(values).encode())
