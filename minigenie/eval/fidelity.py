"""How near pictures are to the truth: PSNR and SSIM (Wang et al. 2004), per frame, through the tokenizer and imagined.

Dimensions:  * any leading axes   b clips   t frames   n patches   h w c a frame
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minigenie.batches import seen_by_camera
from minigenie.eval.controllability import usage
from minigenie.eval.evaluator import (
    BATCH,
    PROMPT,
    Clips,
    Evaluator,
    Report,
    Video,
    bootstrap,
    by_horizon,
    interval,
    perplexity,
)
from minigenie.eval.perceptual import frechet
from minigenie.nn.patches import to_float, to_uint8

LOSS_CLIPS = 64  # for dynamics' loss, at most
LEAST_ERROR = 1e-10  # 100 dB: what a frame that is exactly right counts as


def mse(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    return (frames - truth).square().mean(dim=(-3, -2, -1))


def psnr(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each frame in dB; frames in [0, 1]."""
    return -10 * mse(frames, truth).clamp(min=LEAST_ERROR).log10()


def decibels(error: np.ndarray | np.floating) -> np.ndarray | np.floating:
    """PSNR of mean squared errors that were averaged first: large errors count as what they are."""
    return -10 * np.log10(np.maximum(error, LEAST_ERROR))


def ssim(frames: Float[Tensor, "*b h w c"], truth: Float[Tensor, "*b h w c"]) -> Float[Tensor, "*b"]:
    """Structural similarity of each frame in [-1, 1]: Gaussian window of 11 pixels, sigma 1.5, frames in [0, 1] and
    mirrored at their borders, as torchmetrics has it. Sides of 6 pixels at least."""
    channels = frames.shape[-1]
    x, y = (F.pad(f.reshape(-1, *f.shape[-3:]).movedim(-1, 1), (5,) * 4, mode="reflect") for f in (frames, truth))
    offsets = torch.arange(11, device=frames.device) - 5.0
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window, groups=channels), window.mT, groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3)).reshape(frames.shape[:-3])


# The measurements, each a part of the report.

Tokens = Int[Tensor, "b t n"]
Steps = Int[Tensor, "b steps"]
Pictures = tuple[Tensor, Tensor]


def measure_tokenizer(evaluator: Evaluator, video: Video, episodes: Clips) -> tuple[Tokens, Report, Pictures]:
    """Frames through the tokenizer and back. Returns tokens too, and pictures: originals and what became of them."""
    world = evaluator.world

    def reconstruct(part: Tensor) -> tuple[Tensor, Tensor]:
        truth = to_float(part)
        tokens = world.tokenizer.encode(truth.to(world.device))
        decoded = world.tokenizer.decode(tokens).clamp(0, 1).cpu()
        return tokens.cpu(), torch.stack((psnr(decoded, truth), ssim(decoded, truth)), dim=-1).mean(dim=1)

    codes, quality = map(torch.cat, zip(*evaluator.each(reconstruct, video.split(BATCH)), strict=True))
    num_codes, some = world.config.tokenizer.quantizer.num_codes, _evenly_spaced(video)
    report: Report = {
        "codes_used": len(codes.unique()),
        "num_codes": num_codes,
        "perplexity": perplexity(codes.numpy()),
        "usage": np.sort(usage(codes.numpy(), num_codes))[::-1].round(6).tolist(),  # commonest first
        "frames": codes.shape[0] * codes.shape[1],
    }
    for name, values in zip(("psnr", "ssim"), quality.numpy().T, strict=True):
        report |= {name: float(values.mean()), f"{name}_ci95": interval(values, evaluator.seed, episodes)}
    shown = video[some, 0], to_uint8(world.tokenizer.decode(codes[some].to(world.device)))[:, 0].cpu()
    return codes, report, shown


def measure_dynamics(evaluator: Evaluator, video: Video, tokens: Tokens, actions: Steps) -> Report:
    """The training loss of dynamics, of tokens, on clips it never saw."""
    world, camera = evaluator.world, evaluator.world.dynamics.camera
    length = min(tokens.shape[1], world.config.context_frames + 1)
    clips = (video[:, :length], tokens[:, :length], actions[:, : length - 1])
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        torch.manual_seed(evaluator.seed)
        losses, weights = [], []
        for frames, some, choice in zip(*(each[:LOSS_CLIPS].split(BATCH) for each in clips), strict=True):
            batch = {"tokens": some.to(world.device), "actions": choice.to(world.device)}
            if camera is not None:
                batch |= seen_by_camera(camera, world.tokenizer, frames.to(world.device))
            losses.append(float(world.dynamics(batch)[1]["cross_entropy"]))
            weights.append(len(some))
    return {"cross_entropy": float(np.average(losses, weights=weights)), "clips": sum(weights), "clip_frames": length}


def measure_rollout(evaluator: Evaluator, video: Video, actions: Steps, episodes: Clips) -> Report:
    """From the same true frames with inferred and with random actions: delta-PSNR (arXiv:2402.15391, sec. 3)."""
    seed, future, inferred = evaluator.seed, video[:, PROMPT:], actions[:, PROMPT - 1 :]
    random = torch.randint(evaluator.world.num_actions, inferred.shape, generator=torch.Generator().manual_seed(seed))
    imagined, astray = (evaluator.rollout(video[:, :PROMPT], choice) for choice in (inferred, random))
    delta = evaluator.compare(psnr, imagined, future) - evaluator.compare(psnr, astray, future)
    repeated = video[:, PROMPT - 1 : PROMPT].expand_as(future)
    return {
        "prompt_frames": PROMPT,
        "clips": len(video),
        "sampling": vars(evaluator.world.config.sampling),
        **_quality(evaluator, imagined, future, episodes, perceptual=False),
        **_pooled(evaluator, "repeat_last_pooled_psnr", repeated, future, episodes),
        "delta_psnr": {str(t): bootstrap(column, seed, episodes) for t, column in enumerate(delta.T, 1)},
    }


def measure_long_rollouts(evaluator: Evaluator, starts: Clips, horizon: int) -> tuple[Report, Pictures]:
    """From 1 and from 4 true frames, beside the last true frame repeated. Returns scenes too: truth and imagination."""
    video, episodes = evaluator.frames(starts, PROMPT + horizon), evaluator.dataset.episodes_of(starts)
    actions, future = evaluator.infer_actions(video)[:, PROMPT - 1 :], video[:, PROMPT:]
    ways = {f"from_{prompt}": evaluator.rollout(video[:, PROMPT - prompt : PROMPT], actions) for prompt in (1, PROMPT)}
    ways["repeat_last"] = video[:, PROMPT - 1 : PROMPT].expand_as(future)
    report = {way: _quality(evaluator, frames, future, episodes) for way, frames in ways.items()}
    if features := evaluator.features:
        look = lambda clip: features(to_float(clip))  # noqa: E731
        real, *seen = (torch.cat(evaluator.each(look, clips)).numpy() for clips in (future, *ways.values()))
        for of_way, others in zip(report.values(), seen, strict=True):
            of_way["frechet"] = frechet(others, real)  # all frames, as distributions
    some = _evenly_spaced(video)
    imagined = torch.cat((video[some, :PROMPT], ways[f"from_{PROMPT}"][some]), dim=1)
    return {"clips": len(video), "frames": future.shape[1], **report}, (video[some], imagined)


def _evenly_spaced(video: Tensor) -> Tensor:
    """Eight to show, from all over the footage."""
    return torch.linspace(0, len(video) - 1, min(8, len(video))).round().long()


def _quality(evaluator: Evaluator, frames: Video, truth: Video, episodes: Clips, perceptual: bool = True) -> Report:
    """How near `frames` are to the truth, by horizon."""
    report = _pooled(evaluator, "pooled_psnr", frames, truth, episodes)
    for name, distance in {"psnr": psnr, "ssim": ssim, **(evaluator.distances if perceptual else {})}.items():
        values = evaluator.compare(distance, frames, truth)
        report |= by_horizon(name, values, evaluator.seed, episodes)
        report[f"{name}_first_10"] = bootstrap(values[:, :10].mean(axis=1), evaluator.seed, episodes)
    return report


def _pooled(evaluator: Evaluator, name: str, frames: Video, truth: Video, episodes: Clips) -> Report:
    """PSNR of the mean squared error over all clips, by horizon."""
    return by_horizon(name, evaluator.compare(mse, frames, truth), evaluator.seed, episodes, decibels)
