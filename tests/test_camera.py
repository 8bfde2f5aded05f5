"""How far the picture moves as a whole, told before its tokens are."""

from dataclasses import replace

import pytest
import torch
from conftest import small_recipe
from test_motion import scenery
from torch.testing import assert_close

from minigenie.camera import SPREAD, Camera, typical_motions
from minigenie.nn.motion import motion

WAYS = torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, -3.0], [3.0, 0.0], [-3.0, 0.0]])


def camera(motions):
    made = Camera(len(motions), 32, 2)
    made.know(motions)
    return made


def test_it_learns_to_tell_the_motion_that_an_action_makes():
    """A video that shifts by its action's direction: dynamics tells the motion right, for each action."""
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, motions=len(WAYS))).make_dynamics().train()
    model.camera.know(WAYS)
    optimizer, first = torch.optim.Adam(model.parameters(), lr=3e-3), None
    for _ in range(60):
        actions, tokens = torch.randint(len(WAYS), (8, 3)), torch.randint(32, (8, 4, 64))
        batch = {"tokens": tokens, "actions": actions, "motions": actions, "moved": tokens[:, :-1]}
        loss, metrics = model(batch)
        first = first or float(metrics["motion"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["motion"] < 0.1 * first
    hidden = model.eval().hidden(tokens[:5], model.given({name: each[:5] for name, each in batch.items()}))[:, -1]
    for temperature in (0.0, 1.0):
        told = model.tell_motion(hidden, torch.arange(5), torch.rand(5), temperature)
        assert told.tolist() == [0, 1, 2, 3, 4]


def test_it_learns_that_the_motion_goes_on():
    """The picture moves as it did before, whatever the action: that is in the frame at hand's hidden states."""
    recipe = small_recipe()
    model = replace(recipe, dynamics=replace(recipe.dynamics, motions=len(WAYS))).make_dynamics().train()
    model.camera.know(WAYS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        motions, tokens = torch.randint(len(WAYS), (16, 1)).expand(-1, 3), torch.randint(32, (16, 4, 64))
        actions = torch.randint(8, (16, 3))
        loss, _ = model({"tokens": tokens, "actions": actions, "motions": motions, "moved": tokens[:, :-1]})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given = model.eval().given({"actions": actions, "motions": motions, "moved": tokens[:, :-1]})
    told = model.tell_motion(model.hidden(tokens, given)[:, -1], actions[:, -1], torch.rand(16), 0.0)
    assert (told == motions[:, -1]).float().mean() > 0.9


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
    moved = camera(torch.tensor([[3.0, 0.0], [0.0, 2.0]])).move(frames, torch.tensor([0, 1]))
    assert_close(moved[0, 3:], frames[0, :-3], atol=1e-5, rtol=0)
    assert_close(moved[1, :, 2:], frames[1, :, :-2], atol=1e-5, rtol=0)
    assert_close(moved[0, :3], frames[0, :1].expand(3, -1, -1), atol=1e-5, rtol=0)  # edges are repeated


def test_what_a_camera_sees_it_moves_back():
    """Its conventions agree: the frame before, moved by the motion that is seen, is the frame after."""
    wide = scenery()
    before, after = wide[:, 16:80, 16:80], wide[:, 13:77, 18:82]
    seen = motion(before, after)
    made = camera(typical_motions(seen, 4))
    moved = made.move(before, made.nearest(seen))
    assert (moved - after)[:, 8:-8, 8:-8].abs().mean() < 0.02 < (before - after)[:, 8:-8, 8:-8].abs().mean()


def test_neighbours_start_with_alike_embeddings():
    made = camera(torch.cat((torch.linspace(-3, 3, 64)[:, None], torch.zeros(64, 1)), dim=1))
    distance = torch.cdist(made.embed.weight[:-1], made.embed.weight[:-1])
    near, far = distance.diagonal(1).mean(), distance.diagonal(60).mean()
    assert near < 0.5 * far


@pytest.mark.parametrize("cut", [1, 3])
def test_every_frame_is_told_of_alone(cut):
    made, hidden, action = camera(WAYS).eval(), torch.randn(6, 16, 32), torch.randn(6, 32)
    parts = [made.logits(*each) for each in zip(hidden.split(cut), action.split(cut), strict=True)]
    assert_close(torch.cat(parts), made.logits(hidden, action), rtol=1e-4, atol=1e-5)
