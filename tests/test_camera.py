"""How far the picture moves as a whole, told before its tokens are."""

import pytest
import torch
from test_motion import scenery
from torch.testing import assert_close

from minigenie.camera import PAST, SPREAD, Camera, History, typical_motions
from minigenie.nn.motion import motion, warp

WAYS = torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, -3.0], [3.0, 0.0], [-3.0, 0.0]])


def camera(motions, grid=(8, 8)):
    made = Camera(len(motions), 32, num_codes=32, token_dim=16, grid=grid, num_actions=8)
    made.set_motions(motions)
    return made


def histories(number, grid=(8, 8), motions=5):
    steps = (number, PAST)
    return History(
        torch.randint(32, (number, grid[0] * grid[1])), torch.randint(motions, steps), torch.randint(8, steps)
    )


def taught(made, lesson, steps=150):
    """lesson: what is told of some new histories -> the histories, the actions to come and the motions."""
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(steps):
        history, action, motions = lesson(128)
        loss = made.loss(made.logits(history, action), motions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def told_right(made, lesson):
    history, action, motions = lesson(200)
    return float((made.likeliest_motion(history, action) == motions).float().mean())


def test_it_learns_to_tell_the_motion_that_an_action_makes():
    """A picture that shifts by its action's direction: also in pictures never seen."""

    def lesson(number):
        action = torch.randint(5, (number,))
        return histories(number), action, action

    assert told_right(taught(camera(WAYS), lesson), lesson) > 0.95


def test_it_learns_that_the_motion_goes_on():
    """The picture moves as it did before, whatever the action."""

    def lesson(number):
        history = histories(number)
        return history, torch.randint(8, (number,)), history.motions[:, -1]

    assert told_right(taught(camera(WAYS), lesson), lesson) > 0.95


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (9, 16), (30, 17)])
def test_it_learns_that_the_picture_decides(grid):
    """A token somewhere in the picture is a wall: there the camera stands, elsewhere it goes by its action."""

    def lesson(number):
        history, action, wall = histories(number, grid), torch.randint(1, 5, (number,)), torch.rand(number) < 0.5
        history.tokens[:, grid[1] + 2] = torch.where(wall, 0, 1)
        return history, action, torch.where(wall, 0, action)

    assert told_right(taught(camera(WAYS, grid), lesson), lesson) > 0.9


@pytest.mark.parametrize("known", [0, 3, PAST, PAST + 2])
def test_before_the_beginning_nothing_is_known(known):
    made, tokens = camera(WAYS), torch.randint(32, (2, 64))
    motions, actions = torch.randint(5, (2, known)), torch.randint(8, (2, known))
    history, upto = made.history(tokens, motions, actions), min(known, PAST)
    assert history.motions.shape == history.actions.shape == (2, PAST)
    assert (history.motions[:, PAST - upto :] == motions[:, known - upto :]).all()
    assert (history.actions[:, PAST - upto :] == actions[:, known - upto :]).all()
    assert (history.motions[:, : PAST - upto] == made.unknown).all()
    assert (history.actions[:, : PAST - upto] == made.no_action).all()


def test_near_neighbours_are_nearly_right():
    made = camera(torch.tensor([[0.0, 0.0], [0.0, SPREAD / 2], [0.0, 2.0], [5.0, 0.0]]))
    sure = 20 * torch.eye(4)  # of each motion in turn
    losses = [float(made.loss(sure[i : i + 1], torch.tensor([0]))) for i in range(4)]
    assert losses[0] < losses[1] < 1.5 * losses[0]
    assert min(losses[2:]) > 1.8 * losses[1]
    assert_close(losses[2], losses[3])


def test_without_neighbours_the_loss_is_the_cross_entropy():
    made, logits, codes = camera(WAYS), torch.randn(16, 5), torch.randint(5, (16,))
    assert_close(made.loss(logits, codes), torch.nn.functional.cross_entropy(logits, codes))


def test_the_loss_is_least_where_motions_are_told_as_near_as_they_are():
    """Its minimum keeps an order: of all that can be told, the right motion is the likeliest."""
    made = camera(torch.linspace(-1, 1, 11)[:, None] * torch.tensor([0.0, 1.0]))
    logits = torch.zeros(1, 11, requires_grad=True)
    for _ in range(300):
        (gradient,) = torch.autograd.grad(made.loss(logits, torch.tensor([4])), logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    assert logits.argmax() == 4
    assert_close(logits[0, 3], logits[0, 5], atol=1e-3, rtol=0)


def test_typical_motions_cover_the_footage():
    """Of a crowd at rest, a continuum of running, and jumps that are rare: each has one within half a pixel."""
    rest, run = torch.zeros(3000, 2), torch.stack((torch.zeros(2000), 6 * torch.rand(2000) - 3), dim=1)
    jump = torch.stack((8 * torch.rand(500) - 4, 3 * torch.randn(500).sign()), dim=1)
    footage = torch.cat((rest, run, jump))
    motions = typical_motions(footage, 256)
    far = torch.cdist(footage, motions).amin(1)
    assert motions.shape == (256, 2)
    assert far.max() < 0.5
    assert far.mean() < 0.03
    assert far[:3000].max() < 0.01
    assert_close(typical_motions(footage, 256), motions, rtol=0, atol=0)


def test_footage_may_have_fewer_motions_than_the_camera():
    footage = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    motions = typical_motions(footage, 8)
    assert motions.shape == (8, 2)
    assert torch.cdist(footage, motions).amin(1).max() == 0
    made = camera(motions)
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert_close(made.motions[made.nearest(footage)], footage)


def test_footage_that_stands_still():
    made = camera(typical_motions(torch.zeros(100, 2), 8))
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert made.loss(torch.randn(4, 8), torch.randint(8, (4,))).isfinite()


def test_the_nearest_motion_is_its_code():
    made = camera(WAYS)
    assert made.nearest(WAYS).tolist() == [0, 1, 2, 3, 4]
    assert made.nearest(torch.tensor([[[0.2, -0.1], [0.4, 2.0]], [[9.0, 1.0], [-2.0, 1.0]]])).tolist() == [
        [0, 1],
        [3, 4],
    ]


def test_content_moves_down_and_right_by_positive_pixels():
    frames = torch.rand(2, 16, 16, 3)
    moved = warp(frames, torch.tensor([[3.0, 0.0], [0.0, 2.0]]))[0]
    assert_close(moved[0, 3:], frames[0, :-3], atol=1e-5, rtol=0)
    assert_close(moved[1, :, 2:], frames[1, :, :-2], atol=1e-5, rtol=0)
    assert_close(moved[0, :3], frames[0, :1].expand(3, -1, -1), atol=1e-5, rtol=0)  # edges are repeated


def test_what_a_camera_sees_it_moves_back():
    """Its conventions agree: the frame before, moved by the motion that is seen, is the frame after."""
    wide = scenery()
    before, after = wide[:, 16:80, 16:80], wide[:, 13:77, 18:82]
    seen = motion(before, after)
    made = camera(typical_motions(seen, 4))
    moved = warp(before, made.motions[made.nearest(seen)])[0]
    assert (moved - after)[:, 8:-8, 8:-8].abs().mean() < 0.02 < (before - after)[:, 8:-8, 8:-8].abs().mean()


def test_neighbours_start_with_alike_embeddings():
    made = camera(torch.cat((torch.linspace(-3, 3, 64)[:, None], torch.zeros(64, 1)), dim=1))
    distance = torch.cdist(made.embed.weight[:-1], made.embed.weight[:-1])
    near, far = distance.diagonal(1).mean(), distance.diagonal(60).mean()
    assert near < 0.5 * far


@pytest.mark.parametrize("cut", [1, 3])
def test_every_frame_is_told_of_alone(cut):
    made, history, action = camera(WAYS).eval(), histories(6), torch.randint(8, (6,))
    parts = [
        made.logits(History(*(each[i : i + cut] for each in history)), action[i : i + cut]) for i in range(0, 6, cut)
    ]
    assert_close(torch.cat(parts), made.logits(history, action), rtol=1e-4, atol=1e-5)
