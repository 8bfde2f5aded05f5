import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from minigenie.maskgit import SamplingConfig, fill_most_confident, sample_frame, sample_weighted, schedule

MASK, N, CODES = 50, 64, 50


def sample(predict, generator=None, **settings):
    def fill(filled, *chances):
        return fill_most_confident(filled, MASK, predict(filled.tokens), *chances)

    generator = generator or torch.Generator().manual_seed(0)
    return sample_frame(fill, torch.full((3, N), MASK), SamplingConfig(**settings), generator).tokens


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 64, 200])
def test_every_patch_is_filled_once_and_never_changed(steps):
    seen = []

    def predict(tokens):
        seen.append(tokens.clone())
        return torch.randn(3, N, CODES)

    seen.append(sample(predict, steps=steps))
    assert (seen[-1] != MASK).all()
    assert len(seen) == min(steps, N) + 1
    for before, after in pairwise(seen):
        known = before != MASK
        assert (after[known] == before[known]).all()
        assert ((after != MASK).sum(1) > known.sum(1)).all()


def test_the_surest_come_first():
    logits = torch.zeros(3, N, CODES)
    logits[..., 7] = torch.linspace(1, 9, N)  # later patches are surer
    seen = []
    sample(lambda tokens: seen.append(tokens.clone()) or logits, steps=8, temperature=0.0, choice_noise=0.0)
    filled = (seen[3] != MASK)[0]
    assert filled[-int(filled.sum()) :].all()


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(3, N, CODES)
    assert (sample(lambda tokens: logits, steps=4, temperature=0.0) == logits.argmax(-1)).all()


@pytest.mark.parametrize("codes", [50, 96, 128, 1024])
def test_a_draw_is_where_the_cumulated_weights_pass_the_random_number(codes):
    torch.manual_seed(0)
    weights = torch.randn(40, N, codes, dtype=torch.float64).mul(3).exp()
    uniform = torch.rand(40, N, dtype=torch.float64)
    cumulated = weights.cumsum(-1)
    assert (sample_weighted(weights, uniform) == (cumulated <= uniform[..., None] * cumulated[..., -1:]).sum(-1)).all()


def test_a_draw_at_the_ends():
    weights = torch.tensor([0.0, 2.0, 1.0, 0.0]).repeat(32).expand(1, 2, 128)
    assert sample_weighted(weights, torch.tensor([[0.0, 1.0 - 2**-24]])).tolist() == [[1, 126]]


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.3), (0.5, 0.09 / 0.58)])
def test_temperature_sharpens_the_distribution(temperature, share):
    logits = torch.log(torch.tensor([0.7, 0.3])).expand(3, N, 2)
    rng = torch.Generator().manual_seed(0)
    drawn = [sample(lambda tokens: logits, rng, steps=1, temperature=temperature) for _ in range(50)]
    assert abs(float(torch.stack(drawn).float().mean()) - share) < 0.02  # 9,600 draws: 4 standard deviations


def test_the_same_seed_gives_the_same_frame():
    logits = torch.randn(3, N, CODES)
    assert (sample(lambda tokens: logits, steps=5) == sample(lambda tokens: logits, steps=5)).all()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"temperature": -1.0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match="steps|temperature"):
        SamplingConfig(**settings)


def test_few_patches_come_first_and_most_of_them_last():
    """The paper's cosine: the more is filled in, the more is sure of itself."""
    keep, left = schedule(8, 256, torch.device("cpu"))
    added = keep.diff(prepend=torch.zeros(1, dtype=keep.dtype))
    assert (added.diff() > 0).all()
    assert added[0] < 256 / 8 / 4
    assert keep[-1] == 256
    assert keep[3] == 256 - int(256 * math.cos(math.pi / 4))
    assert (left.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_how_sure_of_a_token_is_the_logarithm_of_its_probability_when_it_was_drawn(steps):
    """Whatever the temperature, and whatever the noise on which are kept."""
    logits, generator = torch.randn(3, N, CODES), torch.Generator().manual_seed(0)

    def fill(filled, *chances):
        return fill_most_confident(filled, MASK, logits, *chances)

    config = SamplingConfig(steps=steps, temperature=2.0, choice_noise=3.0)
    tokens, sure = sample_frame(fill, torch.full((3, N), MASK), config, generator)
    assert_close(sure, logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0])
