"""Does the world know when it is over? Asked of true frames, of episodes of which it is known whether they ended.

Dimensions:  t frames of an episode   n patches per frame
"""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from minigenie.data.dataset import Episode
from minigenie.eval.evaluator import Evaluator, Report, bootstrap
from minigenie.nn.patches import to_float
from minigenie.nn.st_transformer import TimeCache
from minigenie.world import World

NEAR = 5  # last frames of an episode, at which it is told in time
NOT_KNOWN = "ends are not measured: the footage does not say which of its episodes ended"


def measure(evaluator: Evaluator) -> Report:
    """The report's part on the ends of episodes; nothing for a world that knows none. told: in how many of those that
    ended it is first told at one of the last frames. early: in how many of all it is told before those, or where
    nothing ended."""
    world, dataset = evaluator.world, evaluator.dataset
    if world.ending is None:
        return {}
    ended = np.array([episode.ended for episode in dataset.episodes])
    if not ended.any():
        evaluator.notes.append(NOT_KNOWN)
        return {}
    order = np.random.default_rng([evaluator.seed, 5]).permutation(len(ended))[: max(2, evaluator.max_clips)]
    if not ended[order].any():
        order[0] = np.flatnonzero(ended)[0]
    first = np.array(evaluator.each(lambda i: first_told(world, dataset.episode_frames(i)), order.tolist()))
    some: list[Episode] = [dataset.episodes[i] for i in order]
    left = np.array([episode.length for episode in some]) - first  # frames from there on
    told, early = first >= 0, (first >= 0) & ((left > NEAR) | ~ended[order])
    in_time = (told & ~early)[ended[order]]
    seed = evaluator.seed
    return {"ending": {"told": bootstrap(in_time.astype(float), seed), "early": bootstrap(early.astype(float), seed)}}


def first_told(world: World, frames: np.ndarray) -> int:
    """The first of an episode's frames, uint8 [t h w c], that is told to be the last; -1 if none is."""
    over = over_at(world, torch.from_numpy(np.array(frames)).to(world.device))
    return int(over.int().argmax()) if over.any() else -1


@torch.no_grad()
def over_at(world: World, frames: Tensor) -> Bool[Tensor, " t"]:
    """Whether each of an episode's frames is told to be the last: uint8 [t h w c]."""
    assert world.ending is not None
    past = TimeCache(world.tokenizer.encoder, 1, world.config.context_frames)
    tokens = torch.cat([world.tokenizer.encode_next(frame[None], past) for frame in to_float(frames)])
    return world.ending.over(torch.stack((torch.cat((tokens[:1], tokens[:-1])), tokens), dim=1))
