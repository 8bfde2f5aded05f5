import numpy as np
import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.eval.controllability import bootstrap, entropy, mutual_information, usage
from minigenie.eval.fidelity import decibels, mse, psnr, ssim
from minigenie.eval.report import evaluate, summary
from minigenie.world import World


def test_psnr_of_a_known_error():
    frames = torch.full((2, 8, 8, 3), 0.5)
    assert_close(psnr(frames + 0.1, frames), torch.full((2,), 20.0), atol=1e-3, rtol=0)
    assert float(psnr(frames, frames)[0]) == 100


def test_the_pooled_psnr_is_that_of_the_mean_error():
    frames = torch.zeros(2, 8, 8, 3)
    noisy = frames.clone()
    noisy[0] += 0.2
    assert decibels(mse(noisy, frames).mean(0, keepdim=True).numpy())[0] == pytest.approx(
        -10 * np.log10(0.04 / 2), abs=1e-3
    )


def test_ssim_is_one_for_the_same_and_less_for_noise():
    frames = torch.rand(3, 32, 32, 3)
    assert_close(ssim(frames, frames), torch.ones(3))
    slightly, badly = (ssim((frames + scale * torch.randn_like(frames)).clamp(0, 1), frames) for scale in (0.02, 0.3))
    assert (badly < slightly).all()
    assert (slightly < 1).all()


def test_ssim_of_two_flat_pictures_is_its_formula():
    a, b = torch.full((16, 16, 3), 0.3), torch.full((16, 16, 3), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-3)


def test_mutual_information_ignores_names_and_finds_nothing_in_noise():
    labels = np.random.default_rng(0).integers(5, size=20_000)
    assert mutual_information(labels, (labels + 2) % 5) == pytest.approx(1.0)
    assert mutual_information(labels, np.random.default_rng(1).integers(5, size=20_000)) < 0.01
    assert mutual_information(np.zeros(10, int), np.arange(10)) == 0.0


def test_usage_and_entropy():
    assert_close(usage(np.array([[0, 1], [1, 1]]), 3), np.array([0.25, 0.75, 0.0]))
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(np.log(8))


def test_the_interval_covers_the_mean():
    """Of 200 samples with mean 1, the 95 % interval should hold 1 in about 190."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(rng.normal(1, 1, 60), seed, draws=300)["ci95"]
        hits += low < 1 < high
    assert 175 <= hits <= 199


def test_a_world_that_ignores_its_actions_has_no_control(toy):
    """Untrained and without embeddings of actions: delta-PSNR is exactly 0, since the sampling's seed is the same."""
    recipe = small_recipe()
    world = World(recipe, recipe.make_tokenizer(), recipe.make_lam(), recipe.make_dynamics(), "cpu")
    torch.nn.init.zeros_(world.dynamics.embed_action.weight)
    report = evaluate(world, toy, clips=6)
    assert all(delta["mean"] == 0 and delta["clips"] == 6 for delta in report["rollout"]["delta_psnr"].values())


def test_the_same_seed_measures_the_same(trained, toy):
    world = World.load(trained, "cpu")
    one, other = (evaluate(world, toy, clips=5, seed=3) for _ in range(2))
    assert one == other
    assert sum(one["actions"]["usage"]) == pytest.approx(1)
    assert one["actions"]["transitions"] == 5 * 7
    assert "delta-PSNR" in "\n".join(summary(one))


def test_repeating_the_last_frame_is_measured_as_what_it_is(trained, toy):
    report = evaluate(World.load(trained, "cpu"), toy, clips=8, seed=1)
    starts = np.sort(np.random.default_rng(1).choice(toy.windows(8), 8, replace=False))
    clips = torch.from_numpy(toy.clips(starts, 8)).float() / 255
    assert report["rollout"]["repeat_last_pooled_psnr"]["2"] == pytest.approx(
        decibels(mse(clips[:, 3], clips[:, 5]).mean(0, keepdim=True).numpy())[0], abs=1e-3
    )
