"""Do the latent actions control the world, and what do they mean?

Dimensions:  b clips   t transitions   a latent actions   u true actions   m start frames   h w c a frame
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from minigenie.data.controls import Controls
from minigenie.eval.evaluator import PROMPT, UNMEASURED, Clips, Evaluator, Report, bootstrap, entropy
from minigenie.inverse import InverseDynamics, controls_seen, fit_pairs
from minigenie.nn.motion import motion
from minigenie.nn.patches import to_float

Rollout = Callable[[Tensor, Tensor], Tensor]  # true frames [b p h w c], actions [b t] -> frames [b t h w c]
Actions = Int[np.ndarray, "b t"]
Counts = Int[np.ndarray, "a u"]
STARTS, HELD = 8, 4  # start frames for the actions' effects, and how long an action is held
GALLERY = 12  # frames of the action gallery
INVERSE_PAIRS, INVERSE_STEPS = 6000, 400  # at most
COLLAPSED = 2.0  # perplexity of the actions: fewer than two do all the work
CENTRE = (10 / 64, 8 / 64)  # of height and width: there stands the player whom a camera follows
STILL = 0.05  # pixels a frame: a picture that moves less rests, and has no direction


def usage(actions: np.ndarray, num_actions: int) -> np.ndarray:
    """Share of transitions that each action explains: [num_actions]."""
    return np.bincount(actions.ravel(), minlength=num_actions) / actions.size


def frames_to_imagine(evaluator: Evaluator) -> int:
    return evaluator.world.num_actions * (min(evaluator.max_clips, STARTS) * HELD + GALLERY - 1)


# What they mean, where the true actions are known.


def measure_actions(
    evaluator: Evaluator, actions: Actions, truth: Actions | None, controls: Controls | None, episodes: Clips
) -> Report:
    share = usage(actions, evaluator.world.num_actions)
    report: Report = {
        "usage": share.tolist(),
        "above_2_percent": int((share > 0.02).sum()),
        "entropy": entropy(share),
        "perplexity": float(np.exp(entropy(share))),
        "transitions": actions.size,
    }
    if report["perplexity"] < COLLAPSED:
        evaluator.notes.append(
            f"the latent actions have collapsed (perplexity {report['perplexity']:.2f} of {len(share)}), so little of "
            "what follows means anything; see minigenie doctor"
        )
    if truth is None or controls is None:
        evaluator.notes.append(f"{UNMEASURED}what the latent actions mean (the dataset has no true actions)")
        return report
    keys = controls.join(truth)
    return report | {
        "controls": list(controls.names),
        "information": {name: information(actions, part[keys]) for name, part in controls.parts.items()},
        **meaning(actions, keys, len(share), evaluator.seed, episodes),
    }


def measure_inverse(evaluator: Evaluator, controls: Controls | None) -> tuple[Report, InverseDynamics | None]:
    """What could be known of the keys from a pair of frames: learnt on three quarters of the episodes, judged on the
    others. Returns what learnt it, too."""
    if controls is None:
        return {}, None
    starts = evaluator.clips(min(INVERSE_PAIRS, 64 * evaluator.max_clips), 2, salt=5)
    parts = min(4, len(evaluator.dataset.episodes))
    judged = evaluator.dataset.episodes_of(starts) % parts == parts - 1
    if judged.all() or not judged.any():
        why = "the dataset has too few episodes"
        evaluator.notes.append(f"{UNMEASURED}what a pair of frames tells of the keys ({why})")
        return {}, None
    pairs, truth = evaluator.frames(starts, 2), evaluator.dataset.clip_actions(starts, 2)
    assert truth is not None
    keys, steps = controls.join(truth)[:, 0], min(INVERSE_STEPS, 4 * evaluator.max_clips)
    fit = partial(fit_pairs, names=controls.names, steps=steps, seed=evaluator.seed)
    (model,) = evaluator.each(fit, [pairs[~judged]], [keys[~judged]])
    seen, keys = controls_seen(model, pairs[judged]), keys[judged]
    report = {
        name: {
            "accuracy": float((part[seen] == part[keys]).mean()),
            "majority": float(np.bincount(part[keys]).max() / len(keys)),
            "information": information(seen, part[keys]),
        }
        for name, part in controls.parts.items()
    }
    return {"inverse_dynamics": {"pairs": len(keys), "steps": steps, **report}}, model


def confusion(actions: np.ndarray, truth: np.ndarray, num_actions: int = 0, num_true: int = 0) -> Counts:
    """How often each latent action stands for each true one; at least so many of both."""
    rows, columns = max(num_actions, int(actions.max()) + 1), max(num_true, int(truth.max()) + 1)
    return np.bincount((actions * columns + truth).ravel(), minlength=rows * columns).reshape(rows, columns)


def _entropies(actions: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Of both labellings, and what they share, in nats."""
    joint = confusion(actions, truth) / actions.size
    rows, columns = entropy(joint.sum(1)), entropy(joint.sum(0))
    return rows, columns, rows + columns - entropy(joint.ravel())


def mutual_information(actions: np.ndarray, truth: np.ndarray) -> float:
    """Mutual information over the geometric mean of both entropies: 0 unrelated, 1 the same up to names."""
    rows, columns, shared = _entropies(actions, truth)
    return float(shared / np.sqrt(rows * columns)) if rows * columns > 0 else 0.0


def information(actions: np.ndarray, truth: np.ndarray) -> float:
    """Mutual information over the entropy of the truth: the share of what there is to know that `actions` tell."""
    _, unknown, shared = _entropies(actions, truth)
    return float(shared / unknown) if unknown > 0 else 0.0


def purity(actions: np.ndarray, truth: np.ndarray) -> float:
    """Share of transitions whose true action is the commonest one under their latent action."""
    return float(confusion(actions, truth).max(axis=1).sum() / actions.size)


def probe(actions: Actions, truth: Actions, episodes: Clips | None = None) -> Float[np.ndarray, " b"]:
    """Accuracy on each clip of the best map from latent to true action, learnt on the other half of the clips, or of
    the episodes if they are told and several. With one latent action as input a linear probe converges to that map."""
    which = np.arange(len(actions)) if episodes is None else np.unique(episodes, return_inverse=True)[1]
    half = (which if which.any() else np.arange(len(actions))) % 2
    scores = np.zeros(len(actions))
    for mine in (half == 0, half == 1):
        best = confusion(actions[~mine], truth[~mine], int(actions.max()) + 1).argmax(axis=1)
        scores[mine] = (best[actions[mine]] == truth[mine]).mean(axis=1)
    return scores


def meaning(actions: Actions, truth: Actions, num_actions: int, seed: int, episodes: Clips | None = None) -> Report:
    """Every relation of latent and true actions, each beside what chance gives: the true actions shuffled."""
    shuffled = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    counts, names = confusion(actions, truth, num_actions), np.unique(truth)
    return {
        "mutual_information": mutual_information(actions, truth),
        "mutual_information_chance": mutual_information(actions, shuffled),
        "purity": purity(actions, truth),
        "purity_chance": purity(actions, shuffled),
        "probe": bootstrap(probe(actions, truth, episodes), seed, episodes),
        "probe_chance": float(probe(actions, shuffled, episodes).mean()),
        "map": [int(row.argmax()) if row.any() else None for row in counts],
        "true_actions": names.tolist(),
        "confusion": counts[:, names].tolist(),
    }


# What they do to the picture.


def measure_effects(evaluator: Evaluator) -> tuple[Report, UInt8[Tensor, "a t h w c"]]:
    """What each action does to the picture, from frames at rest: in the middle of a jump gravity decides. Returns a
    gallery too, from where the actions lead furthest apart: not every place has room for left, right and up."""
    candidates = evaluator.clips(256, PROMPT, salt=2)
    clips = evaluator.frames(candidates, PROMPT)
    moving = clips.float().std(dim=1).mean(dim=(1, 2, 3)).numpy()
    order = np.argsort(moving, kind="stable")
    _, first = np.unique(
        evaluator.dataset.episodes_of(candidates)[order], return_index=True
    )  # the stillest of each episode
    rest = clips[order[np.sort(first)[: min(evaluator.max_clips, STARTS)]]]
    num_actions = evaluator.world.num_actions
    held = hold_actions(evaluator.rollout, rest, num_actions, HELD)
    each, together = effects(held.numpy(), evaluator.seed)
    apart = held[:, :, -1].float().std(dim=1).mean(dim=(1, 2, 3))
    gallery = hold_actions(evaluator.rollout, rest[apart.argmax()][None], num_actions, GALLERY - 1)[0]
    return {"effects": each, "effects_together": together}, gallery


def shifts(video: UInt8[Tensor, "n t h w c"]) -> Float[Tensor, "n steps 2"]:
    """How far down and right the picture of each frame goes in the next, in pixels: where a camera follows its player,
    the player's own path, the other way.

    The centre is painted over from both of its sides: a player who stands there does not move with the rest. Against
    CoinRun's own positions paths of 24 frames end 0.3 pixels off on average (0.1 with backgrounds); 0.4 and 0.3 with
    the centre."""
    frames = to_float(video)
    height, width = video.shape[2:4]
    top, left = (round(side * (1 - share) / 2) for side, share in zip((height, width), CENTRE, strict=True))
    bottom, right = height - top, width - left
    before, after = frames[:, :, top:bottom, left - 1 : left], frames[:, :, top:bottom, right : right + 1]
    across = torch.linspace(0, 1, right - left + 2, device=frames.device)[1:-1, None]
    frames[:, :, top:bottom, left:right] = before + across * (after - before)
    moved = motion(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
    return torch.where((moved.abs() < STILL).all(1, keepdim=True), 0, moved).unflatten(0, (len(video), -1))


def mean_shift(frames: UInt8[np.ndarray, "t h w c"]) -> Float[np.ndarray, "2"]:
    """The mean shift [down, right] between consecutive frames, in pixels."""
    return shifts(torch.from_numpy(frames)[None])[0].double().mean(0).numpy()


def hold_actions(
    rollout: Rollout, clips: UInt8[Tensor, "m t h w c"], num_actions: int, horizon: int
) -> UInt8[Tensor, "m a steps h w c"]:
    """The last frame of each clip, then every action held for `horizon` frames."""
    prompts = clips.repeat_interleave(num_actions, dim=0)
    actions = torch.arange(num_actions)[:, None].expand(-1, horizon).repeat(len(clips), 1)
    frames = torch.cat((prompts[:, -1:], rollout(prompts, actions)), dim=1)
    return frames.unflatten(0, (len(clips), num_actions))


def effects(held: UInt8[np.ndarray, "m a t h w c"], seed: int) -> tuple[list[Report], dict[str, float]]:
    """held: from each of m start frames every action held.

    -> for every action its mean motion, change (mean difference of neighbouring frames, 0 to 1) and consistency (how
    far the starts agree on a direction: 0 not at all, 1 fully, None if nothing moves); and the share of the motion's
    variance that the choice of action explains, beside chance."""
    shifts = np.array([[mean_shift(frames) for frames in start] for start in held])
    change = np.abs(np.diff(held.astype(np.float32), axis=2)).mean(axis=(0, 2, 3, 4, 5)) / 255
    lengths, together = np.hypot(*shifts.T).mean(1), np.hypot(*shifts.mean(0).T)
    columns = zip(shifts.mean(0).tolist(), change.tolist(), lengths.tolist(), together.tolist(), strict=True)
    rng, flat = np.random.default_rng(seed), shifts.reshape(-1, 2)
    shuffled = [explained(rng.permutation(flat).reshape(shifts.shape)) for _ in range(200)]
    return [
        {"motion": motion, "change": changed, "consistency": common / length if length > STILL else None}
        for motion, changed, length, common in columns
    ], {
        "explained": explained(shifts),
        "explained_chance": float(np.mean(shuffled)),
        "starts": len(held),
        "frames": held.shape[2] - 1,
    }


def explained(shifts: Float[np.ndarray, "m a 2"]) -> float:
    """Share of the variance of `shifts` that lies between actions: 1 if the action alone decides where things go."""
    total = ((shifts - shifts.mean((0, 1))) ** 2).sum()
    between = len(shifts) * ((shifts.mean(0) - shifts.mean((0, 1))) ** 2).sum()
    return float(between / total) if total > 0 else 0.0
