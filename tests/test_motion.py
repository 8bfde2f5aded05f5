"""How far the picture went."""

import pytest
import torch
from torch.testing import assert_close

from minigenie.nn.motion import motion, warp


def scenery(b=8, side=96):
    """Smooth random pictures, larger than a frame."""
    noise = torch.rand(b, 3, side // 6, side // 6)
    return torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (-6, 2), (0.5, -1.25), (1.9, 0.1)])
def test_a_shift_is_found_to_a_fraction_of_a_pixel(shift):
    wide = scenery()
    before = wide[:, 16:80, 16:80]
    after = warp(wide, torch.tensor(shift, dtype=torch.float32).expand(len(wide), 2))[0][:, 16:80, 16:80]
    found = motion(before, after)
    assert_close(found, torch.tensor(shift, dtype=torch.float32).expand(len(wide), 2), atol=0.15, rtol=0)


def tiles(down, right, side=64):
    """Irregular tiles, seen from a camera at parts of a pixel; each edge is drawn at the whole pixel next to it."""
    generator = torch.Generator().manual_seed(3)
    edges = [(3 + 7 * torch.rand(40, generator=generator)).cumsum(0) for _ in range(2)]
    colours = torch.rand(41, 41, 3, generator=generator)
    pixels = 60 + torch.arange(side)
    rows, columns = (torch.searchsorted(edge, pixels - by) for edge, by in zip(edges, (down, right), strict=True))
    return colours[rows][:, columns]


@pytest.mark.parametrize("shift", [(0, 0.5), (-0.5, 0), (0.5, -0.5), (0.25, 0.75), (-1.5, 0.3)])
def test_a_path_by_parts_of_a_pixel_is_as_long_as_it_was(shift):
    """Games draw at whole pixels: some edges go by one, some stay. Over many steps that must not add up to a bias."""
    video = torch.stack([tiles(step * shift[0], step * shift[1]) for step in range(21)])
    found = motion(video[:-1], video[1:])
    went = 20 * torch.tensor(shift)
    assert_close(found.sum(0), went, atol=1, rtol=0)
    assert_close(found.mean(0), went / 20, atol=0.05, rtol=0)


def test_what_moves_by_itself_does_not_move_the_camera():
    wide = scenery()
    before, after = wide[:, 16:80, 16:80].clone(), wide[:, 16:80, 14:78].clone()
    before[:, 30:40, 10:18] = 1
    after[:, 20:30, 14:22] = 1
    assert_close(motion(before, after), torch.tensor([0.0, 2.0]).expand(len(wide), 2), atol=0.3, rtol=0)


def test_a_blank_picture_stands_still():
    blank = torch.full((2, 64, 64, 3), 0.5)
    assert_close(motion(blank, blank), torch.zeros(2, 2))


def test_frames_of_any_size():
    for h, w in ((16, 24), (96, 160)):
        wide = scenery(side=256)[:, : h + 8, : w + 8]
        found = motion(wide[:, 4 : h + 4, 4 : w + 4], wide[:, 4 : h + 4, 2 : w + 2])
        assert_close(found, torch.tensor([0.0, 2.0]).expand(len(wide), 2), atol=0.5, rtol=0)


def test_warp_says_what_came_from_outside():
    _, inside = warp(torch.rand(1, 8, 8, 3), torch.tensor([[2.0, 0.0]]))
    assert not inside[0, :2].any()
    assert inside[0, 2:].all()
