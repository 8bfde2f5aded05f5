"""Distances of pictures, against the reference implementations and against what they are for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from minigenie.eval.fidelity import mse
from minigenie.eval.perceptual import frechet, load_features, load_stlpips
from minigenie.nn.patches import to_float


def picture(phase: float, side: int = 64) -> torch.Tensor:
    """Waves and a checkerboard of skewed tiles: something with edges and colours."""
    y, x, channel = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing="ij")
    waves, tiles = np.sin(x / 5 + phase * (channel + 1)), np.sign(np.sin(y / 7 - phase + x / 11))
    return torch.from_numpy(0.5 + 0.25 * waves + 0.25 * tiles * np.cos(channel)).float()


ONE, TWO = torch.stack([picture(0.0), picture(1.0)]), torch.stack([picture(0.3), picture(2.0)])


def blurred(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-4, 5.0)
    window = torch.exp(-offsets.square() / (2 * sigma**2))
    window = (window / window.sum()).outer(window / window.sum()).expand(3, 1, 9, 9)
    padded = F.pad(frames.permute(0, 3, 1, 2), (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, window, groups=3).permute(0, 2, 3, 1)


def noisy(frames: torch.Tensor, scale: float) -> torch.Tensor:
    return (frames + scale * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def shifted(frames: torch.Tensor, pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same scene, by a camera that has moved to the side: what both see of it."""
    return frames[:, :, pixels:], frames[:, :, : frames.shape[2] - pixels]


@pytest.fixture
def frames(toy) -> torch.Tensor:
    return to_float(torch.from_numpy(toy.clips(np.arange(0, 640, 40), 1)[:, 0]))


# The reference implementations, run once on the same pictures.


def test_st_lpips_is_that_of_its_authors():
    """stlpips-pytorch 0.0.2, AlexNet, shift_tolerant."""
    assert_close(load_stlpips()(ONE, TWO), torch.tensor([0.0490227, 0.4169828]), rtol=1e-4, atol=1e-6)


def test_the_features_are_those_of_efficientnet_lite0():
    """efficientnet-lite-pytorch 0.1.0, the output of its block 10 averaged over the picture."""
    expected = [[-6.393804, -0.989722, 6.106610, -3.328250], [-5.025303, -2.139691, 7.437228, -3.497437]]
    assert_close(load_features()(ONE)[:, [0, 30, 60, 111]], torch.tensor(expected), rtol=1e-4, atol=1e-3)


# What they are for.


def test_the_same_pictures_have_no_distance_and_order_does_not_matter(frames):
    distance = load_stlpips()
    assert_close(distance(frames, frames), torch.zeros(len(frames)))
    assert_close(distance(frames, frames.flip(0)), distance(frames.flip(0), frames))


def test_the_worse_the_picture_the_further(frames):
    distance = load_stlpips()
    for spoil, amounts in ((blurred, (0.5, 1.0, 2.0)), (noisy, (0.02, 0.05, 0.1))):
        nearest, nearer, far = (distance(spoil(frames, amount), frames).mean() for amount in amounts)
        assert 0.003 < nearest < nearer < far
    nearest, nearer, far = (distance(*shifted(frames, pixels)).mean() for pixels in (1, 4, 12))
    assert nearest < nearer < far


def test_a_shift_by_a_pixel_is_little_beside_noise_of_the_same_error(frames):
    """To PSNR they are the same, to a person the shifted frames are."""
    moved, still = shifted(frames, 1)
    error = mse(moved, still)
    grain = torch.randn(still.shape) * error.sqrt()[:, None, None, None]
    assert_close(mse(still + grain, still), error, rtol=0.1, atol=0)
    distance = load_stlpips()
    assert distance(moved, still).mean() < 0.2 * distance(still + grain, still).mean()


def test_many_pictures_are_measured_as_one_by_one(frames):
    distance, features = load_stlpips(), load_features()
    many = frames.repeat(3, 1, 1, 1)  # more than a chunk
    assert_close(distance(noisy(many, 0.1), many)[:3], distance(noisy(many, 0.1)[:3], many[:3]))
    assert_close(features(many)[-2:], features(frames[-2:]), rtol=1e-4, atol=1e-4)


def test_halves_of_one_set_are_near_and_spoiled_ones_further_the_worse(toy):
    frames = to_float(torch.from_numpy(toy.clips(np.random.default_rng(0).permutation(toy.windows(1))[:500], 1)[:, 0]))
    features = load_features()
    one = features(frames[:250]).numpy()
    halves = frechet(one, features(frames[250:]).numpy())
    for spoil, amounts in ((blurred, (0.5, 0.7, 1.0)), (noisy, (0.005, 0.01, 0.02))):
        near, further, far = (frechet(one, features(spoil(frames[250:], amount)).numpy()) for amount in amounts)
        assert 3 * halves < near < further < far


def test_frechet_distance_of_known_gaussians():
    """In one dimension it is (mean - mean)^2 + (deviation - deviation)^2."""
    a, b = np.array([[-1.0], [0.0], [1.0]]), np.array([[2.0], [5.0], [8.0]])
    assert frechet(a, b) == pytest.approx(25 + 4)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50_000, 3)) * [1, 2, 3], rng.normal(size=(50_000, 3)) * [4, 2, 1] + [0, 0, 2]
    assert frechet(a, b) == pytest.approx(4 + 9 + 0 + 4, rel=0.02)


def test_frechet_distance_is_its_formula():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5) for _ in range(2))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    assert frechet(a, b) == pytest.approx(expected)
    assert frechet(b, a) == pytest.approx(expected)


def test_frechet_distance_of_fewer_pictures_than_features():
    """Their covariance is singular: a root by eigenvalues would lose half the digits."""
    rng = np.random.default_rng(0)
    few = rng.normal(size=(10, 40)) + 100
    assert frechet(few, few[::-1]) == pytest.approx(0, abs=1e-9)
    wide = np.concatenate([few, np.zeros((10, 60))], axis=1)
    assert frechet(wide, wide + np.eye(100)[99]) == pytest.approx(1)


# Bad input.


def test_what_can_not_be_measured_says_so(frames):
    with pytest.raises(ValueError, match="frames of 32 pixels a side or more; these are 24x64"):
        load_stlpips()(frames[:, :24], frames[:, :24])
    with pytest.raises(ValueError, match="sets of 1 and 16 pictures"):
        frechet(np.zeros((1, 4)), np.zeros((16, 4)))
