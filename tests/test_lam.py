from dataclasses import replace

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.nn.patches import to_float
from minigenie.nn.quantize import QuantizerConfig
from minigenie.nn.st_transformer import STConfig


def lam(**settings):
    recipe = small_recipe()
    model = replace(recipe, lam=replace(recipe.lam, **settings)).make_lam()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("pairs", [True, False])
def test_the_action_between_two_frames_ignores_later_ones(pairs):
    model = lam(pairs=pairs)
    video = torch.rand(2, 5, 64, 64, 3)
    assert_close(model.infer(video)[:, :2], model.infer(video[:, :3]))
    assert model.infer(video).shape == (2, 4)


def test_pairs_see_two_frames_only():
    model = lam(pairs=True)
    video = torch.rand(1, 4, 64, 64, 3)
    edited = video.clone()
    edited[:, 0] = 0
    assert_close(model.infer(video)[:, 1:], model.infer(edited)[:, 1:])


@pytest.mark.parametrize("pairs", [True, False])
def test_the_decoder_learns_of_the_future_only_by_the_action(pairs):
    model = lam(pairs=pairs)
    seen = model._model_input(torch.rand(1, 4, 64, 64, 3))
    future = seen.clone()
    future[:, -1] = 0
    actions = torch.zeros(seen.shape[0], seen.shape[1] - 1, 32)
    assert_close(model._predict(seen[:, :-1], actions), model._predict(future[:, :-1], actions))


@pytest.mark.parametrize("pairs", [True, False])
def test_tokens_can_stand_for_pixels(pairs):
    model = lam(input="tokens", pairs=pairs).train()
    batch = {"tokens": torch.randint(32, (2, 4, 64))}
    loss, metrics = model(batch, 1.0)
    assert loss.isfinite()
    assert "cross_entropy" in metrics
    assert model.infer(batch["tokens"]).max() < 8


@pytest.mark.parametrize("relative", [True, False])
def test_it_finds_which_way_the_picture_moves(relative):
    """A stripe pattern to the left, to the right or twice as far: three actions are enough, and no label is given."""
    narrow = STConfig(num_blocks=1, dim=32, num_heads=2)
    config = QuantizerConfig(num_codes=3, code_dim=8, warmup=0.4)
    model = lam(encoder=narrow, decoder=narrow, quantizer=config, relative=relative)
    fresh = replace(small_recipe(), lam=model.config).make_lam().train()
    optimizer = torch.optim.Adam(fresh.parameters(), lr=3e-3)

    def batch(size):
        stripe = torch.zeros(size, 64, 64, 3)
        stripe[:, :, ::16] = stripe[:, :, 1::16] = stripe[:, :, 2::16] = stripe[:, :, 3::16] = 1
        moves = torch.tensor([-1, 1, 2])[torch.randint(3, (size,))]
        after = torch.stack([frame.roll(4 * int(m), 1) for frame, m in zip(stripe, moves, strict=True)])
        return {"frames": (torch.stack((stripe, after), 1) * 255).byte()}, moves

    for step in range(150):
        loss, _ = fresh(batch(32)[0], step / 150)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fresh.quantizer.update_codebook()
    fresh.eval()
    test, moves = batch(64)
    actions = fresh.infer(fresh.video(test))[:, 0]
    named = {int(m): actions[moves == m].mode().values for m in moves.unique()}
    assert len({int(v) for v in named.values()}) == 3
    assert float(fresh.control(test)) > 3


def test_an_error_counts_by_how_little_the_picture_changed():
    """The same error beside a small change and beside one of four times the brightness."""
    still = torch.full((3, 64, 64, 3), 100, dtype=torch.uint8)
    after = torch.stack((still[0] + 10, still[1] + 40, still[2]))
    video = to_float(torch.stack((still, after), 1))
    for model in (lam(), lam(relative=False)):
        seen = model._model_input(video)
        weights = model._weights(seen) * torch.ones(3, 1)
        assert_close(weights.mean(), torch.tensor(1.0))
        if model.config.relative:
            assert weights[0] / weights[1] == pytest.approx(10, abs=0.5)  # 16, less what counts as none
            assert weights[2] > weights[0]  # nor is stillness divided by nothing
        else:
            assert weights.std() == 0


def test_too_many_actions():
    with pytest.raises(ValueError, match="65 actions are too many"):
        lam(quantizer=QuantizerConfig(num_codes=65))
