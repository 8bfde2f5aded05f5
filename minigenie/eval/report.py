"""One evaluation of a world on held-out data: report.json, and pictures to look at.

Dimensions:  b clips   t frames   h w c a frame
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from minigenie.data.dataset import Dataset, write_atomic
from minigenie.eval.controllability import bootstrap, entropy, mutual_information, usage
from minigenie.eval.fidelity import decibels, mse, psnr, ssim
from minigenie.nn.patches import to_float, to_uint8
from minigenie.pictures import grid, save_picture, save_video
from minigenie.train import read_metrics
from minigenie.world import World

BATCH = 32
Watch = Callable[[int, int], None]


def evaluate(
    world: World,
    dataset: Dataset,
    *,
    clips: int = 128,
    prompt_frames: int = 4,
    horizon: int = 4,
    seed: int = 0,
    watch: Watch = lambda done, total: None,
) -> dict[str, Any]:
    """Measure on `clips` clips of held-out data: see docs/measure.md for every number.

    Rollouts begin from `prompt_frames` true frames and go on for `horizon`, once with the actions that the LAM infers
    from the true frames and once with uniformly random ones (delta-PSNR, arXiv:2402.15391 sec. 3).
    """
    windows = dataset.windows(prompt_frames + horizon)
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.choice(windows, min(clips, len(windows)), replace=False))
    parts = [_measure(world, dataset, starts[i : i + BATCH], prompt_frames, horizon, seed + i, watch, i, len(starts))
             for i in range(0, len(starts), BATCH)]  # fmt: skip
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tokens, actions = whole["tokens"], whole["actions"]
    share = usage(actions, world.num_actions)
    delta = whole["psnr"] - whole["psnr_random"]
    report: dict[str, Any] = {
        "clips": len(starts),
        "seed": seed,
        "dataset": {key: dataset.manifest[key] for key in ("source", "generator", "split", "settings")},
        "tokenizer": {
            "psnr": float(whole["reconstruction_psnr"].mean()),
            "ssim": float(whole["reconstruction_ssim"].mean()),
            "codes_used": len(np.unique(tokens)),
            "frames": whole["reconstruction_psnr"].size,
        },
        "actions": {
            "usage": share.tolist(),
            "above_2_percent": int((share > 0.02).sum()),
            "entropy": entropy(share),
            "transitions": actions.size,
        },
        "rollout": {
            "prompt_frames": prompt_frames,
            "sampling": vars(world.config.sampling),
            "psnr": _by_horizon(whole["psnr"].mean(0)),
            "ssim": _by_horizon(whole["ssim"].mean(0)),
            "pooled_psnr": _by_horizon(decibels(whole["mse"].mean(0))),
            "repeat_last_pooled_psnr": _by_horizon(decibels(whole["mse_repeat"].mean(0))),
            "delta_psnr": {str(t + 1): bootstrap(delta[:, t], seed) for t in range(horizon)},
        },
    }
    if dataset.has_actions:
        truth = whole["true_actions"]
        shuffled = rng.permutation(truth.ravel())
        report["actions"]["mutual_information"] = mutual_information(actions, truth)
        report["actions"]["mutual_information_chance"] = mutual_information(actions.ravel(), shuffled)
    return report


def _by_horizon(values: np.ndarray) -> dict[str, float]:
    return {str(t + 1): float(value) for t, value in enumerate(values)}


@torch.no_grad()
def _measure(
    world: World,
    dataset: Dataset,
    starts: np.ndarray,
    prompt_frames: int,
    horizon: int,
    seed: int,
    watch: Watch,
    done: int,
    total: int,
) -> dict[str, np.ndarray]:
    """Everything about some clips, an array a name with clips along its first axis."""
    video = torch.from_numpy(dataset.clips(starts, prompt_frames + horizon))
    truth = to_float(video)
    tokens = world.tokenizer.encode(truth.to(world.device))
    decoded = world.tokenizer.decode(tokens).clamp(0, 1).cpu()
    actions = world.infer_actions(video)
    future, inferred = truth[:, prompt_frames:], actions[:, prompt_frames - 1 :]
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(world.num_actions, inferred.shape, generator=generator)
    watch(done + len(starts) // 3, total)
    imagined = to_float(world.rollout(video[:, :prompt_frames], inferred, seed))
    watch(done + 2 * len(starts) // 3, total)
    astray = to_float(world.rollout(video[:, :prompt_frames], random, seed))
    watch(done + len(starts), total)
    repeated = truth[:, prompt_frames - 1 : prompt_frames].expand_as(future)
    numbers = {
        "tokens": tokens.cpu(),
        "actions": actions,
        "reconstruction_psnr": psnr(decoded, truth),
        "reconstruction_ssim": ssim(decoded, truth),
        "psnr": psnr(imagined, future),
        "psnr_random": psnr(astray, future),
        "ssim": ssim(imagined, future),
        "mse": mse(imagined, future),
        "mse_repeat": mse(repeated, future),
    }
    arrays = {name: value.numpy() for name, value in numbers.items()}
    if (true_actions := dataset.clip_actions(starts, prompt_frames + horizon)) is not None:
        arrays["true_actions"] = true_actions
    return arrays


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
    for horizon, delta in rollout["delta_psnr"].items():
        low, high = delta["ci95"]
        lines.append(
            f"frame {horizon}       delta-PSNR {delta['mean']:.2f} dB [{low:.2f}, {high:.2f}], "
            f"PSNR {rollout['pooled_psnr'][horizon]:.2f} dB, last true frame repeated "
            f"{rollout['repeat_last_pooled_psnr'][horizon]:.2f} dB ({delta['clips']} clips)"
        )
    return lines


# Pictures.


@torch.no_grad()
def draw(world: World, dataset: Dataset, folder: Path, run: Path | None = None, seed: int = 0) -> list[Path]:
    """reconstructions.png, rollouts.png, actions.png and .gif, and curves.png if `run` has metrics. Returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    length = min(12, max(episode.length for episode in dataset.episodes))
    video = torch.from_numpy(dataset.clips(rng.choice(dataset.windows(length), 8), length))
    tokens = world.tokenizer.encode(to_float(video[:, 3:5]).to(world.device))
    decoded = to_uint8(world.tokenizer.decode(tokens)).cpu()
    rows = [half.flatten(0, 1) for i in (0, 4) for half in (video[i : i + 4, 3:5], decoded[i : i + 4])]
    paths = [save_picture(grid(rows), folder / "reconstructions.png")]
    imagined = world.rollout(video[:, :4], world.infer_actions(video)[:, 3:], seed)
    dreams = torch.cat((video[:, :4], imagined), dim=1)
    rows = [row for pair in zip(video[:4], dreams[:4], strict=True) for row in pair]
    paths.append(save_picture(grid(rows), folder / "rollouts.png"))
    held = hold_actions(world, _telling(world, dataset, seed), 11, seed)
    paths.append(save_picture(grid(list(held)), folder / "actions.png"))
    paths.append(save_video(torch.cat(list(held), dim=2), folder / "actions.gif", world.fps / 2))
    if run and (run / "metrics.jsonl").exists():
        paths.append(draw_curves(run / "metrics.jsonl", folder / "curves.png"))
    return paths


def hold_actions(
    world: World, frames: UInt8[Tensor, "t h w c"], horizon: int, seed: int
) -> UInt8[Tensor, "actions t h w c"]:
    """The last of `frames`, then every action held for `horizon` frames: a row per action."""
    prompt = frames.expand(world.num_actions, *frames.shape)
    actions = torch.arange(world.num_actions)[:, None].expand(-1, horizon)
    return torch.cat((prompt[:, -1:], world.rollout(prompt, actions, seed)), dim=1)


def _telling(world: World, dataset: Dataset, seed: int) -> UInt8[Tensor, "t h w c"]:
    """Four frames at rest, of many the four stillest, from which the actions lead furthest apart: in the middle of a
    jump gravity decides, and not every place leaves room to go left, right and up."""
    starts = np.random.default_rng(seed).choice(dataset.windows(4), 256)
    clips = torch.from_numpy(dataset.clips(starts, 4))
    still = clips[clips.float().std(dim=1).mean(dim=(1, 2, 3)).argsort()[:4]]
    ends = torch.stack([hold_actions(world, clip, 3, seed)[:, -1] for clip in still]).float()
    return still[int(ends.std(dim=1).mean(dim=(1, 2, 3)).argmax())]


def draw_curves(metrics: Path, path: Path) -> Path:
    """Loss, quality and code use of every stage along training."""
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    panels = [
        ("tokenizer", "psnr", "tokenizer: PSNR (dB)"),
        ("tokenizer", "perplexity", "tokenizer: code perplexity"),
        ("lam", "psnr", "LAM: PSNR of the next frame (dB)"),
        ("lam", "perplexity", "LAM: action perplexity"),
        ("dynamics", "cross_entropy", "dynamics: cross-entropy (nats)"),
        ("dynamics", "control", "dynamics: nats that the action is worth"),
    ]
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (stage, name, title) in zip(figure.subplots(2, 3, squeeze=True).T.flat, panels, strict=True):
        points = [(line["step"], line[name]) for line in lines if line["stage"] == stage and name in line]
        if not points:  # LAM and dynamics trained jointly
            points = [(line["step"], line[f"{stage}_{name}"]) for line in lines if f"{stage}_{name}" in line]
        axes.plot(*zip(*points, strict=True)) if points else axes.set_axis_off()
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    write_atomic(path, drawn.getvalue())
    return path


def write_report(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.json", json.dumps(report, indent=1).encode())
