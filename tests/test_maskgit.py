from itertools import pairwise

import pytest
import torch

from minigenie.maskgit import SamplingConfig, sample_frame

MASK, N, CODES = 50, 64, 50


def sample(predict, **settings):
    generator = torch.Generator().manual_seed(0)
    return sample_frame(predict, torch.full((3, N), MASK), SamplingConfig(**settings), generator)


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


def test_temperature_one_samples_the_distribution():
    logits = torch.log(torch.tensor([0.7, 0.3])).expand(3, N, 2)
    share = torch.stack([sample(lambda t: logits, steps=1, temperature=1.0) for _ in range(1)]).float().mean()
    assert abs(float(share) - 0.3) < 0.1


def test_the_same_seed_gives_the_same_frame():
    logits = torch.randn(3, N, CODES)
    assert (sample(lambda tokens: logits, steps=5) == sample(lambda tokens: logits, steps=5)).all()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"temperature": -1.0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match="steps|temperature"):
        SamplingConfig(**settings)
