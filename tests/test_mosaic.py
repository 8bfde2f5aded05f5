"""What leaves the picture and comes back is known."""

import pytest
import torch
from torch.testing import assert_close

from minigenie.nn.mosaic import Mosaic
from minigenie.nn.motion import warp

SIDE, WORLDS = 16, 2


def seen_from(scene, places):
    """What a camera at some [down, right] places sees of a scene."""
    return torch.stack([scene[y : y + SIDE, x : x + SIDE] for y, x in places.tolist()])


def walk(steps, margin=24, fraction=0.0):
    """A camera in each world walks by whole pixels, and is told some fraction more; it begins in the middle. What it
    has seen before each step, and where it is after it."""
    torch.manual_seed(0)
    scene, places = torch.rand(96, 96, 3), torch.full((WORLDS, 2), 40)
    mosaic, ways = Mosaic.begin(seen_from(scene, places), margin), []
    for step in steps:
        before = Mosaic(*(each.clone() for each in mosaic))
        frames, places = seen_from(scene, places), places + step
        ways.append((before, frames, -step.float(), seen_from(scene, places)))
        mosaic.move(-step.float() + fraction, seen_from(scene, places))
    return ways


def there_and_back(length=5):
    way = [torch.tensor([[0, 2], [3, -1]])] * length
    return [*way, *(-step for step in way)]


def test_what_was_seen_is_known_when_it_comes_back():
    """On the way back each frame is, to the last pixel, foretold: unlike by its edges."""
    steps = there_and_back()
    for mosaic, frames, motion, after in walk(steps)[len(steps) // 2 :]:
        assert_close(mosaic.look(frames, motion), after, atol=1e-4, rtol=0)
        assert (warp(frames, motion)[0] - after).abs().max() > 0.1


def test_what_was_never_seen_is_as_the_edge_is():
    mosaic, frames, motion, _ = walk(there_and_back())[0]
    assert_close(mosaic.look(frames, motion), warp(frames, motion)[0], atol=1e-4, rtol=0)


def test_without_a_margin_nothing_is_remembered():
    for mosaic, frames, motion, _ in walk(there_and_back(), margin=0):
        assert mosaic.seen.shape[1:3] == frames.shape[1:3]
        assert_close(mosaic.look(frames, motion), warp(frames, motion)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("length", "known"), [(8, True), (13, False)])
def test_what_is_far_is_forgotten(length, known):
    """A margin of 16 on each side is one of 32 behind whoever goes straight on; 13 steps of three pixels are more."""
    mosaic, frames, motion, after = walk(there_and_back(length), margin=16)[-1]
    same = (mosaic.look(frames, motion) - after)[1].abs().amax(-1) < 1e-4
    assert same.all() == known
    assert mosaic.seen.shape[1:3] == (SIDE + 32, SIDE + 32)


@pytest.mark.parametrize("fraction", [0.25, -0.25])
def test_parts_of_a_pixel_are_not_lost(fraction):
    """After n steps that were a fraction longer than what was seen, the mosaic is as far as they say, to half a pixel,
    and holds nothing but pixels that were seen."""
    steps = there_and_back()
    mosaic = walk(steps, fraction=fraction)[-1][0]
    far = sum(-step.float() + fraction for step in steps[:-1])
    assert_close(mosaic.rest - mosaic.at, far.expand(WORLDS, 2), atol=1e-5, rtol=0)
    assert (mosaic.rest.abs() <= 0.5).all()
    torch.manual_seed(0)
    shades = set(torch.rand(96, 96, 3).flatten().tolist())
    held = mosaic.seen[mosaic.seen[..., -1].isfinite()][:, :3].flatten().tolist()
    assert len(held) > WORLDS * 3 * SIDE**2  # more than the frame at hand
    assert set(held) <= shades


def test_worlds_do_not_see_each_other():
    """What one world remembers depends on its own way alone."""
    steps = there_and_back()
    other = [torch.cat((step[:1], 2 * step[1:])) for step in steps]
    for (one, *_), (two, *_) in zip(walk(steps), walk(other), strict=True):
        assert torch.equal(one.seen[0], two.seen[0])
    assert not torch.equal(one.seen[1], two.seen[1])
