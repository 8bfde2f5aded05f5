"""Does the world know when it is over, and whether it was won? Asked of true frames of episodes whose end is known. And
does it take none of them for lost?

Dimensions:  t frames of an episode   n patches per frame
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from minigenie.data.dataset import Dataset
from minigenie.ending import SURE
from minigenie.eval.evaluator import Evaluator, Report, bootstrap
from minigenie.nn.patches import to_float
from minigenie.nn.st_transformer import TimeCache
from minigenie.world import World

AT_ONCE = 64  # frames
NEAR = 5  # last frames of an episode, at which it is told in time
NOT_KNOWN = "ends are not measured: the footage does not say which of its episodes ended"


class Asked(NamedTuple):
    """Of one episode: whether its end was told in time; before that, or though nothing ended; if in time, whether that
    it was won, or not, was told too; and whether it was taken for lost."""

    in_time: bool
    early: bool
    right: bool
    lost: bool


def measure(evaluator: Evaluator) -> Report:
    """The report's part on the ends of episodes; nothing for a world that knows none and is never lost."""
    world, dataset = evaluator.world, evaluator.dataset
    if world.ending is None:
        return {}
    ended = np.array([episode.ended for episode in dataset.episodes])
    order = np.random.default_rng([evaluator.seed, 5]).permutation(len(ended))[: max(2, evaluator.max_clips)]
    if ended.any() and not ended[order].any():
        order[0] = np.flatnonzero(ended)[0]
    asked = evaluator.each(lambda i: ask(world, dataset, i), order.tolist())
    in_time, early, right, lost = (np.array(each, float) for each in zip(*asked, strict=True))
    report: Report = {}
    if world.ending.knows and ended.any():
        report["told"] = bootstrap(in_time[ended[order]], evaluator.seed)
        report["early"] = bootstrap(early, evaluator.seed)
        report["won"] = float(np.mean([dataset.episodes[i].won for i in order if ended[i]]))
        if in_time.any():
            report["outcome"] = bootstrap(right[in_time > 0], evaluator.seed)
    elif world.ending.knows:
        evaluator.notes.append(NOT_KNOWN)
    if world.ending.lost.knows:
        report["lost"] = bootstrap(lost, evaluator.seed)
    return {"ending": report} if report else {}


def ask(world: World, dataset: Dataset, number: int) -> Asked:
    """About every frame of an episode, up to the first that is told to be the last."""
    episode = dataset.episodes[number]
    over, won, lost = told_at(world, torch.from_numpy(np.array(dataset.episode_frames(number))).to(world.device))
    first = int(over.int().argmax())
    in_time = bool(over.any()) and episode.ended and episode.length - first <= NEAR
    return Asked(in_time, bool(over.any()) and not in_time, bool(won[first]) == episode.won, bool(lost.any()))


@torch.no_grad()
def told_at(world: World, frames: Tensor) -> tuple[Bool[Tensor, " t"], Bool[Tensor, " t"], Bool[Tensor, " t"]]:
    """Of each frame of an episode, uint8 [t h w c], whether it is told to be the last one, won then, and lost."""
    assert world.ending is not None
    tokenizer, past = world.tokenizer, TimeCache(world.tokenizer.encoder, 1, world.config.context_frames)
    if tokenizer.config.encoder.attend_time:
        tokens = torch.cat([tokenizer.encode_next(frame[None], past) for frame in to_float(frames)])
    else:
        tokens = torch.cat([tokenizer.encode(to_float(some[:, None]))[:, 0] for some in frames.split(AT_ONCE)])
    pairs = torch.stack((torch.cat((tokens[:1], tokens[:-1])), tokens), dim=1)
    over, won = map(torch.cat, zip(*(world.ending.tell(some) for some in pairs.split(AT_ONCE)), strict=True))
    doubts = [torch.full((1,), -SURE, device=world.device)]
    for pair in pairs:
        doubts.append(world.ending.doubt(pair[None], doubts[-1]))
    return over, won, torch.cat(doubts[1:]) > 0
