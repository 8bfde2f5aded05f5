"""Distances of pictures, against the reference implementations and against what they are for."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from minigenie.eval import perceptual
from minigenie.eval.fidelity import mse
from minigenie.eval.perceptual import frechet, load_features, load_i3d, load_inception, load_lpips, load_stlpips
from minigenie.eval.weights import MissingWeights, WeightFile
from minigenie.nn.patches import to_float

ALEXNET = """features.0 64 3 11 11, features.3 192 64 5 5, features.6 384 192 3 3, features.8 256 384 3 3,
features.10 256 256 3 3"""
INCEPTION = {
    "Conv2d_": "1a_3x3 32 3 3 3, 2a_3x3 32 32 3 3, 2b_3x3 64 32 3 3, 3b_1x1 80 64 1 1, 4a_3x3 192 80 3 3",
    **{
        f"Mixed_5{block}.branch": f"1x1 64 {width} 1 1, 5x5_1 48 {width} 1 1, 5x5_2 64 48 5 5, 3x3dbl_1 64 {width} 1 1,"
        f"3x3dbl_2 96 64 3 3, 3x3dbl_3 96 96 3 3, _pool {pool} {width} 1 1"
        for block, width, pool in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64))
    },
    "Mixed_6a.branch": "3x3 384 288 3 3, 3x3dbl_1 64 288 1 1, 3x3dbl_2 96 64 3 3, 3x3dbl_3 96 96 3 3",
    **{
        f"Mixed_6{block}.branch": f"1x1 192 768 1 1, 7x7_1 {width} 768 1 1, 7x7_2 {width} {width} 1 7,"
        f"7x7_3 192 {width} 7 1, 7x7dbl_1 {width} 768 1 1, 7x7dbl_2 {width} {width} 7 1, 7x7dbl_3 {width} {width} 1 7,"
        f"7x7dbl_4 {width} {width} 7 1, 7x7dbl_5 192 {width} 1 7, _pool 192 768 1 1"
        for block, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192))
    },
    "Mixed_7a.branch": "3x3_1 192 768 1 1, 3x3_2 320 192 3 3, 7x7x3_1 192 768 1 1, 7x7x3_2 192 192 1 7,"
    "7x7x3_3 192 192 7 1, 7x7x3_4 192 192 3 3",
    **{
        f"Mixed_7{block}.branch": f"1x1 320 {width} 1 1, 3x3_1 384 {width} 1 1, 3x3_2a 384 384 1 3, 3x3_2b 384 384 3 1,"
        f"3x3dbl_1 448 {width} 1 1, 3x3dbl_2 384 448 3 3, 3x3dbl_3a 384 384 1 3, 3x3dbl_3b 384 384 3 1,"
        f"_pool 192 {width} 1 1"
        for block, width in (("b", 1280), ("c", 2048))
    },
}
I3D = {  # of every block: b0, b1a, b1b, b2a, b2b, b3b
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def random_alexnet() -> dict[str, torch.Tensor]:
    """As torchvision names it, with weights that any machine draws alike."""
    random, weights = np.random.RandomState(0), {}
    for line in ALEXNET.split(","):
        name, *shape = line.split()
        weights[f"{name}.weight"] = he(random, shape)
        weights[f"{name}.bias"] = 0.1 * torch.from_numpy(random.standard_normal(int(shape[0]))).float()
    return weights


def random_lpips() -> dict[str, torch.Tensor]:
    random = np.random.RandomState(1)
    widths = (64, 192, 384, 256, 256)
    return {f"lin{i}.model.1.weight": torch.from_numpy(random.rand(1, w, 1, 1)).float() for i, w in enumerate(widths)}


def random_inception() -> dict[str, torch.Tensor]:
    random, weights = np.random.RandomState(2), {}
    for prefix, lines in INCEPTION.items():
        for line in lines.split(","):
            name, *shape = line.split()
            weights[f"{prefix}{name}.conv.weight"] = he(random, shape)
            weights |= random_norm(random, f"{prefix}{name}.bn", int(shape[0]))
    return weights


def random_i3d() -> dict[str, torch.Tensor]:
    random, weights = np.random.RandomState(3), {}
    shapes = {"Conv3d_1a_7x7": (64, 3, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (192, 64, 3)}
    width = 192
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in I3D.items():
        parts = {"b0": (b0, width, 1), "b1a": (b1a, width, 1), "b1b": (b1b, b1a, 3), "b2a": (b2a, width, 1)}
        parts |= {"b2b": (b2b, b2a, 3), "b3b": (b3b, width, 1)}
        shapes |= {f"Mixed_{block}.{name}": shape for name, shape in parts.items()}
        width = b0 + b1b + b2b + b3b
    for name, (out, into, side) in shapes.items():
        weights[f"{name}.conv3d.weight"] = he(random, [out, into, side, side, side])
        weights |= random_norm(random, f"{name}.bn", out)
    weights["logits.conv3d.weight"] = he(random, [400, width, 1, 1, 1])
    weights["logits.conv3d.bias"] = he(random, [400])
    return weights


def random_norm(random: np.random.RandomState, name: str, width: int) -> dict[str, torch.Tensor]:
    ranges = {"weight": (0.8, 1.2), "bias": (0, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.8, 1.2)}
    draws = {part: random.uniform(low, high, width) for part, (low, high) in ranges.items()}
    return {f"{name}.{part}": torch.from_numpy(draw).float() for part, draw in draws.items()}


def he(random: np.random.RandomState, shape: Sequence[str | int]) -> torch.Tensor:
    sides = [int(side) for side in shape]
    return torch.from_numpy(random.standard_normal(sides) * np.sqrt(2 / np.prod(sides[1:]))).float()


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


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Puts drawn weights where the published ones of `perceptual.NAME` would lie, under their own checksum."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(name: str, weights: dict[str, torch.Tensor]) -> None:
        path = folder / f"{name}.pth"
        torch.save(weights, path)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(perceptual, name, WeightFile(path.name, checksum, "draw them again"))

    return put


# The reference implementations, run once on the same pictures; where pip does not bring the published weights, with
# those that the functions above draw.


def test_st_lpips_is_that_of_its_authors():
    """stlpips-pytorch 0.0.2, AlexNet, shift_tolerant."""
    assert_close(load_stlpips()(ONE, TWO), torch.tensor([0.0490227, 0.4169828]), rtol=1e-4, atol=1e-6)


def test_the_features_are_those_of_efficientnet_lite0():
    """efficientnet-lite-pytorch 0.1.0, the output of its block 10 averaged over the picture."""
    expected = [[-6.393804, -0.989722, 6.106610, -3.328250], [-5.025303, -2.139691, 7.437228, -3.497437]]
    assert_close(load_features()(ONE)[:, [0, 30, 60, 111]], torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_lpips_is_that_of_its_authors(publish):
    """lpips 0.1.4 over these drawn weights."""
    publish("ALEXNET", random_alexnet())
    publish("LPIPS", random_lpips())
    assert_close(load_lpips()(ONE, TWO), torch.tensor([0.3250122, 1.0680226]), rtol=1e-4, atol=1e-6)


def test_inception_is_that_of_fid(publish):
    """torch-fidelity 0.4.0's Inception over these drawn weights, the picture resized as pytorch-fid does."""
    publish("INCEPTION", random_inception())
    features = load_inception()(ONE[:1])
    expected = [[4.568173, 1.994670, 2.916937, 1.889606, 0.0]]
    assert_close(features[:, [0, 320, 700, 1500, 2047]], torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert float(features.mean()) == pytest.approx(1.411458, rel=1e-4)


def test_i3d_is_that_of_fvd(publish):
    """The I3D that goes with i3d_pretrained_400.pt, over these drawn weights."""
    publish("I3D", random_i3d())
    video = torch.stack([picture(t / 4) for t in range(10)])[None]
    expected = [[3.941528, -2.130796, -4.088079]]
    assert_close(load_i3d()(video)[:, [0, 100, 399]], torch.tensor(expected), rtol=1e-4, atol=1e-4)


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


def test_what_can_not_be_measured_says_so(frames, publish):
    with pytest.raises(ValueError, match="frames of 32 pixels a side or more; these are 24x64"):
        load_stlpips()(frames[:, :24], frames[:, :24])
    with pytest.raises(ValueError, match="sets of 1 and 16 pictures"):
        frechet(np.zeros((1, 4)), np.zeros((16, 4)))
    publish("I3D", random_lpips())
    with pytest.raises(ValueError, match="holds no I3D: its first weight is lin0.model.1.weight"):
        load_i3d()
    publish("I3D", random_i3d())
    with pytest.raises(ValueError, match="9 frames or more; these have 8"):
        load_i3d()(frames[None, :8])


@pytest.mark.parametrize("load", [load_lpips, load_inception, load_i3d])
def test_weights_that_are_not_there_are_one_line_with_the_way_to_them(load, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeights, match=f"is not on this machine; download https://.* to {tmp_path}") as error:
        load()
    assert "\n" not in str(error.value)
