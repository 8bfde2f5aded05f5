import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.eval import measure, perceptual
from minigenie.eval.controllability import effects, explained, meaning, mutual_information, probe, purity, usage
from minigenie.eval.drift import SETS, gradient_energy, held_actions, measure_drift, play_long, stretches, true_clips
from minigenie.eval.evaluator import BATCH, Evaluator, bootstrap, by_horizon, entropy, interval, perplexity
from minigenie.eval.fidelity import decibels, mse, psnr, ssim
from minigenie.eval.measure import evaluate
from minigenie.world import World

MOVES = torch.tensor([[0, 0], [0, 2], [0, -2], [2, 0], [-2, 0], [2, 2], [-2, -2], [2, -2]])


class Rolling(World):
    """A game without surprises: each action moves the whole picture by its own shift. It knows its rules by heart."""

    def __init__(self):
        recipe = replace(small_recipe(), context_frames=7)
        super().__init__(recipe, recipe.make_tokenizer(), recipe.make_lam(), recipe.make_dynamics(), "cpu")

    def reset(self, frames, seed=0, cached=True):
        self.now = frames[:, -1]

    def step(self, actions):
        moves = MOVES[torch.as_tensor(actions)].tolist()
        self.now = torch.stack([frame.roll(move, (0, 1)) for frame, move in zip(self.now, moves, strict=True)])
        return self.now

    def infer_actions(self, frames):
        before, after = frames[:, :-1].float(), frames[:, 1:].float()
        guesses = torch.stack([before.roll(move, (2, 3)) for move in MOVES.tolist()])
        return (guesses - after).abs().mean(dim=(-3, -2, -1)).argmin(dim=0)


class Shuffled(Rolling):
    """Names actions that have nothing to do with what happened."""

    def infer_actions(self, frames):
        actions = super().infer_actions(frames)
        order = torch.randperm(actions.numel(), generator=torch.Generator().manual_seed(0))
        return actions.flatten()[order].view_as(actions)


class Frozen(Rolling):
    """Repeats the last frame."""

    def step(self, actions):
        return self.now


class Blurring(Rolling):
    def step(self, actions):
        self.now = ((self.now.float() + self.now.roll(1, 1).float() + self.now.roll(1, 2).float()) / 3).byte()
        return self.now


def footage(folder, episodes=12, length=30, actions=True):
    """Episodes of the rolling game, played at random."""
    rng, frames, taken = np.random.default_rng(0), [], []
    for _ in range(episodes):
        picture = rng.integers(0, 256, (16, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        for action in rng.integers(len(MOVES), size=length):
            frames.append(picture)
            taken.append(action)
            picture = np.roll(picture, MOVES[action].tolist(), (0, 1))
    about = {"frame_size": (64, 64), "fps": 10, "source": "rolling", "generator": "test", "split": "test"}
    writer = DatasetWriter(folder, **about, settings={})
    writer.write(
        0,
        np.stack(frames),
        [Episode(0, i * length, length) for i in range(episodes)],
        np.array(taken) if actions else None,
    )
    return writer.close()


@pytest.fixture(autouse=True)
def _without_networks(request, monkeypatch):
    """They take most of an evaluation's time."""
    if not {"networks", "number"} & set(request.node.name.split("_")):
        monkeypatch.setattr(measure, "load_perceptual", lambda evaluator: None)


@pytest.fixture(scope="module")
def rolling(tmp_path_factory) -> Dataset:
    return footage(tmp_path_factory.mktemp("rolling") / "data")


# Fidelity.


def test_psnr_of_a_known_error():
    frames = torch.full((2, 8, 8, 3), 0.5)
    assert_close(psnr(frames + 0.1, frames), torch.full((2,), 20.0), atol=1e-3, rtol=0)
    assert float(psnr(frames, frames)[0]) == 100


def test_psnr_and_ssim_agree_with_torchmetrics():
    truth = torch.rand(5, 40, 56, 3)
    frames = (truth + 0.2 * torch.randn_like(truth)).clamp(0, 1)
    theirs, ours = (f.permute(0, 3, 1, 2) for f in (frames, truth))
    options = {"data_range": 1.0, "reduction": "none"}
    assert_close(psnr(frames, truth), peak_signal_noise_ratio(theirs, ours, dim=(1, 2, 3), **options))
    assert_close(ssim(frames, truth), structural_similarity_index_measure(theirs, ours, **options), atol=1e-5, rtol=0)


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


# Statistics.


def test_usage_entropy_and_perplexity():
    assert_close(usage(np.array([[0, 1], [1, 1]]), 3), np.array([0.25, 0.75, 0.0]))
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(np.log(8))
    assert perplexity(np.arange(5).repeat(3)) == pytest.approx(5)
    assert perplexity(np.zeros(7, int)) == pytest.approx(1)


def test_the_interval_covers_the_mean():
    """Of 200 samples with mean 1, the 95 % interval should hold 1 in about 190."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(rng.normal(1, 1, 60), seed, draws=300)["ci95"]
        hits += low < 1 < high
    assert 175 <= hits <= 199


def test_windows_of_one_episode_are_no_independent_clips():
    """20 episodes of 10 windows that all score alike know as much as 20 clips."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    episodes = np.arange(200) // 10
    for seed in range(200):
        values = rng.normal(1, 1, 20).repeat(10)
        low, high = interval(values, seed, episodes, draws=300)
        hits += low < 1 < high
        low, high = interval(values, seed, draws=300)
        naive += low < 1 < high
    assert 170 <= hits <= 199
    assert naive < 120
    values, groups = np.array([1.0, 2, 6]), np.array([7, 7, 9])
    assert interval(values, 0, groups) == [1.5, 6.0]  # episodes are drawn, and their clips count
    assert interval(values, 0, np.zeros(3)) == interval(values, 0)


def test_a_series_has_a_mean_and_an_interval_for_every_frame():
    report = by_horizon("psnr", np.array([[1.0, 10.0], [3.0, 10.0]]), seed=0)
    assert report["psnr"] == {"1": 2.0, "2": 10.0}
    assert report["psnr_ci95"]["1"][0] < 2 < report["psnr_ci95"]["1"][1]
    assert report["psnr_ci95"]["2"] == [10.0, 10.0]


# Meaning of actions.


def test_mutual_information_ignores_names_and_finds_nothing_in_noise():
    labels = np.random.default_rng(0).integers(5, size=20_000)
    assert mutual_information(labels, (labels + 2) % 5) == pytest.approx(1.0)
    assert mutual_information(labels, np.random.default_rng(1).integers(5, size=20_000)) < 0.01
    assert mutual_information(np.zeros(10, int), np.arange(10)) == 0.0


def test_two_latent_actions_for_one_true_action_are_pure_and_still_map_to_it():
    latent = np.random.default_rng(0).integers(6, size=(40, 10))
    truth = latent // 2
    assert purity(latent, truth) == 1
    assert probe(latent, truth).mean() == 1
    assert meaning(latent, truth, 6, seed=0)["map"] == [0, 0, 1, 1, 2, 2]
    assert mutual_information(latent, truth) < 1  # two names for one thing are not the same labelling


def test_unrelated_actions_score_as_chance_does():
    rng = np.random.default_rng(0)
    found = meaning(rng.integers(8, size=(400, 10)), rng.integers(5, size=(400, 10)), 8, seed=0)
    assert found["mutual_information"] == pytest.approx(found["mutual_information_chance"], abs=0.003)
    assert found["purity"] == pytest.approx(found["purity_chance"], abs=0.02)
    assert found["probe"]["ci95"][0] < 0.2 < found["probe"]["ci95"][1]


def test_what_the_probe_learns_it_learns_on_other_clips():
    """Every clip has its own names for the actions: nothing carries over, although each clip is pure."""
    truth = np.arange(1, 9).repeat(5).reshape(8, 5)
    assert purity(truth, truth) == 1
    assert probe(truth, truth).mean() == 0
    episodes = np.arange(8) // 2
    own = np.broadcast_to(1 + episodes[:, None], (8, 3))
    assert probe(own, own).mean() == 1  # each episode lies in both halves
    assert probe(own, own, episodes).mean() == 0


def test_an_action_that_no_clip_has_maps_to_nothing():
    found = meaning(np.zeros((4, 3), int), np.ones((4, 3), int), 3, seed=0)
    assert found["map"] == [1, None, None]
    assert found["true_actions"] == [1]


def test_explained_motion_is_one_where_the_action_decides_and_little_where_the_place_does():
    of_action, of_start = np.random.default_rng(0).normal(size=(2, 8, 2))
    assert explained(np.broadcast_to(of_action, (8, 8, 2))) == pytest.approx(1)
    assert explained(np.broadcast_to(of_start[:, None], (8, 8, 2))) == pytest.approx(0, abs=1e-9)
    assert explained(np.zeros((8, 8, 2))) == 0


def test_effects_of_held_actions_are_the_shifts_they_make():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 16, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    held = np.stack([[[np.roll(p, (0, side * t), (0, 1)) for t in range(4)] for side in (0, 2)] for p in pictures])
    (rest, right), together = effects(held, seed=0)
    assert right["motion"] == pytest.approx([0, 2], abs=0.3)
    assert right["consistency"] == pytest.approx(1, abs=1e-4)
    assert rest["consistency"] is None
    assert rest["change"] == 0
    assert together["explained"] > 0.9 > 0.5 > together["explained_chance"]


# Drift.


def test_held_actions_are_held_for_eight_frames_on_average():
    actions = held_actions(64, 400, 8, seed=0)
    changes = (actions.diff(dim=1) != 0).float().mean()
    assert float(changes) == pytest.approx(1 / 8 * 7 / 8, rel=0.1)  # a new choice may be the old one
    assert actions.unique().tolist() == list(range(8))


@pytest.mark.parametrize("horizon", [3, 10, 64, 200, 230])
def test_stretches_cover_the_horizon_in_order(horizon):
    found = stretches(horizon)
    edges = [tuple(map(int, name.split("-"))) for name in found]
    assert edges[0][0] == 1
    assert edges[-1][1] == horizon
    assert all(before[1] + 1 == after[0] for before, after in pairwise(edges))
    assert all(
        first == picks[0] and picks[-1] == last and len(picks) <= 10
        for (first, last), picks in zip(edges, found.values(), strict=True)
    )


def test_blur_takes_gradient_away_and_noise_adds_it():
    frames = torch.rand(2, 32, 32, 3)
    smooth = (frames + frames.roll(1, 1) + frames.roll(1, 2)) / 3
    assert (gradient_energy(smooth) < 0.6 * gradient_energy(frames)).all()
    assert float(gradient_energy(torch.full((1, 8, 8, 3), 0.3))) == 0


def test_a_world_that_keeps_its_pictures_does_not_drift_and_one_that_blurs_does(rolling):
    starts = torch.from_numpy(rolling.clips(rolling.windows(1)[::45], 1))[:, 0]
    truth = true_clips(rolling, 60, len(starts), seed=0)
    steady, fading = (
        measure_drift(Evaluator(world, rolling, 8, 0), play_long(world, starts, 60, seed=0), truth, np.arange(8))
        for world in (Rolling(), Blurring())
    )
    assert list(steady["stretches"]) == list(steady["real"]) == ["1-10", "11-50", "51-60"]
    for stretch in (*steady["stretches"].values(), *steady["real"].values()):
        assert stretch["sharpness"]["mean"] == pytest.approx(1, abs=0.1)
        assert stretch["perplexity_share"] == pytest.approx(1, abs=0.1)
        assert stretch["frames"] == 8 * 10
    sharpness = [stretch["sharpness"]["mean"] for stretch in fading["stretches"].values()]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[-1] < 0.1


def test_a_world_that_becomes_another_level_is_told_by_its_codes(tmp_path):
    """Each of 8 levels has two colours of its own, and the even ones have a third one in their later half."""
    frames = np.zeros((8 * 40, 64, 64, 3), np.uint8)
    of_level, at = np.arange(8 * 40) // 40, np.arange(8 * 40) % 40
    frames += (10 * of_level + at % 2 + 5 * (at >= 20) * (of_level % 2 == 0))[:, None, None, None].astype(np.uint8)
    about = {"frame_size": (64, 64), "fps": 10, "source": "colours", "generator": "test", "split": "test"}
    writer = DatasetWriter(tmp_path / "data", **about, settings={})
    writer.write(0, frames, [Episode(0, i * 40, 40) for i in range(8)], None)
    footage, world = writer.close(), Rolling()
    world.tokenizer.encode = lambda video: (255 * video[..., 0, 0, :1]).round().long()
    starts = torch.from_numpy(frames[::40])
    starts[6:] = starts[:2]  # two of eight become other levels
    truth, played = true_clips(footage, 20, 8, seed=0), play_long(world, starts, 20, seed=0)
    report = measure_drift(Evaluator(world, footage, 8, 0), played, truth, np.arange(8))
    assert {stretch["own_codes"]["mean"] for stretch in report["stretches"].values()} == {0.75}
    assert report["level"] == {"own": 0.5, "other": 0.0}


def test_true_clips_are_measured_at_the_spacing_of_the_rollouts(tmp_path):
    """A frame says which episode it is of, and where in it."""
    frames = np.zeros((12 * 60, 8, 8, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(12 * 60)[:, None, None] // 60, np.arange(12 * 60)[:, None, None] % 60
    about = {"frame_size": (8, 8), "fps": 10, "source": "counting", "generator": "test", "split": "test"}
    writer = DatasetWriter(tmp_path / "data", **about, settings={})
    writer.write(0, frames, [Episode(0, i * 60, 60) for i in range(12)], None)
    truth = true_clips(writer.close(), 200, 8, seed=0)
    assert {name: found.length for name, found in truth.items()} == {
        "1-10": 10,
        "11-50": 40,
        "51-100": 50,
        "101-200": 55,
    }
    for name, picks in stretches(200).items():
        seen = truth[name].frames[:, :, 0, 0].int()
        assert seen.shape == (SETS * 8, 10, 3)
        assert (seen[..., 0] == seen[:, :1, 0]).all()
        spacing = np.array(picks) - picks[0] if name != "101-200" else np.linspace(0, 54, 10).round()
        assert (seen[..., 1] - seen[:, :1, 1] == torch.from_numpy(spacing)).all()


# Whole evaluations: worlds of which the scores are known.


def test_a_perfect_world_scores_as_theory_says(rolling):
    report, scenes = evaluate(Rolling(), rolling, clips=20)
    assert min(report["rollout"]["psnr"].values()) == 100
    assert min(report["long_rollouts"]["from_1"]["psnr"].values()) == 100
    assert all(delta["ci95"][0] > 10 for delta in report["rollout"]["delta_psnr"].values())
    assert list(report["rollout"]["delta_psnr"]) == [str(t) for t in range(1, 9)]
    actions = report["actions"]
    assert actions["mutual_information"] == pytest.approx(1)
    assert actions["probe"]["mean"] == actions["purity"] == 1
    assert actions["map"] == list(range(8))
    assert actions["effects_together"]["explained"] > 0.9
    assert_close(np.array([each["motion"] for each in actions["effects"]]), MOVES.double().numpy(), atol=0.5, rtol=0)
    assert torch.equal(scenes.truth, scenes.imagined)


def test_shuffled_actions_control_nothing(rolling):
    report, _ = evaluate(Shuffled(), rolling, clips=24)
    deltas = report["rollout"]["delta_psnr"]
    around_zero = [t for t, delta in deltas.items() if delta["ci95"][0] < 0 < delta["ci95"][1]]
    assert "4" in around_zero
    assert len(around_zero) >= 6  # of 8 intervals of 95 %
    actions = report["actions"]
    assert actions["mutual_information"] == pytest.approx(actions["mutual_information_chance"], abs=0.05)
    assert actions["probe"]["mean"] == pytest.approx(actions["probe_chance"], abs=0.1)


def test_a_world_that_repeats_the_last_frame_scores_as_that_baseline(rolling):
    report, _ = evaluate(Frozen(), rolling, clips=8)
    long = report["long_rollouts"]
    assert long["from_1"]["pooled_psnr"] == long["from_4"]["pooled_psnr"] == long["repeat_last"]["pooled_psnr"]
    assert report["rollout"]["pooled_psnr"] == report["rollout"]["repeat_last_pooled_psnr"]
    assert all(delta["mean"] == 0 for delta in report["rollout"]["delta_psnr"].values())
    assert report["actions"]["effects_together"]["explained"] == 0


def test_an_untrained_world_that_ignores_its_actions_has_no_control(toy):
    """delta-PSNR is exactly 0, since the sampling's seed is the same."""
    recipe = small_recipe()
    world = World(recipe, recipe.make_tokenizer(), recipe.make_lam(), recipe.make_dynamics(), "cpu")
    for name, parameter in world.dynamics.named_parameters():
        if "embed_action" in name:
            torch.nn.init.zeros_(parameter)
    report, _ = evaluate(world, toy, clips=6)
    assert all(delta["mean"] == 0 and delta["clips"] == 6 for delta in report["rollout"]["delta_psnr"].values())


def test_the_same_seed_measures_the_same_and_every_number_is_one(trained, toy):
    world, seen = World.load(trained, "cpu"), []
    one, other = (evaluate(world, toy, clips=5, seed=3, watch=lambda *d: seen.append(d)).report for _ in range(2))
    assert json.dumps(one, allow_nan=False) == json.dumps(other, allow_nan=False)
    assert sum(one["actions"]["usage"]) == pytest.approx(1)
    assert one["actions"]["transitions"] == 5 * 11
    assert seen[-1][0] == seen[-1][1]
    assert seen[: len(seen) // 2] == sorted(seen[: len(seen) // 2])


def test_the_report_says_what_it_was_made_with(trained, toy):
    report = evaluate(World.load(trained, "cpu"), toy, clips=2, seed=1).report
    assert report["world"]["lam"]["quantizer"]["num_codes"] == 8
    assert {"minigenie", "commit", "torch", "device", "cpu", "threads"} <= set(report["made_with"])
    assert (report["seed"], report["clips"]) == (1, 2)


# What is amiss is said, and the rest still comes.


def test_a_dataset_without_true_actions(tmp_path):
    report, _ = evaluate(Rolling(), footage(tmp_path / "data", actions=False), clips=4)
    assert "mutual_information" not in report["actions"]
    assert any("no true actions" in note for note in report["notes"])
    assert report["rollout"]["delta_psnr"]["4"]["mean"] > 0


def test_fewer_clips_than_asked_for(tmp_path):
    report, _ = evaluate(Rolling(), footage(tmp_path / "data", episodes=2, length=12), clips=50)
    assert report["clips"] == report["rollout"]["delta_psnr"]["1"]["clips"] == 2
    assert any("2 clips were measured, not 50" in note for note in report["notes"])


@pytest.mark.parametrize(("length", "control", "far"), [(5, 1, 1), (9, 5, 5), (16, 8, 12)])
def test_short_episodes_are_measured_as_far_as_they_go(tmp_path, length, control, far):
    report, scenes = evaluate(Rolling(), footage(tmp_path / "data", length=length), clips=4)
    assert len(report["rollout"]["delta_psnr"]) == control
    assert len(report["long_rollouts"]["from_1"]["psnr"]) == far == scenes.imagined.shape[1] - 4


def test_episodes_too_short_to_begin_from(tmp_path):
    with pytest.raises(ValueError, match="longest episode has 4 frames; give footage with episodes of 5"):
        evaluate(Rolling(), footage(tmp_path / "data", length=4), clips=4)


def test_long_rollouts_and_networks_see_as_many_clips_as_are_asked_for(rolling, monkeypatch):
    seen = []

    def load(evaluator):
        evaluator.distances["st_lpips"] = lambda frames, truth: seen.append(len(frames)) or frames.mean(dim=(1, 2, 3))

    monkeypatch.setattr(measure, "load_perceptual", load)
    far = evaluate(Rolling(), rolling, clips=40).report["long_rollouts"]
    assert far["clips"] == far["from_1"]["psnr_first_10"]["clips"] == far["from_1"]["st_lpips_first_10"]["clips"] == 40
    assert max(seen) == BATCH * far["frames"]  # a few at a time


def test_clips_of_one_episode_are_said_to_be(tmp_path):
    report, _ = evaluate(Rolling(), footage(tmp_path / "data", episodes=1, length=40), clips=6)
    assert any("one episode" in note for note in report["notes"])


def test_weights_that_are_no_numbers_are_named(rolling):
    world = Rolling()
    world.dynamics.place.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="dynamics has weights that are no numbers, in place; train it again"):
        evaluate(world, rolling, clips=4)


def test_a_collapsed_lam_is_measured_and_said(rolling, monkeypatch):
    monkeypatch.setattr(
        Rolling,
        "infer_actions",
        lambda self, frames: torch.zeros(frames.shape[0], frames.shape[1] - 1, dtype=torch.long),
    )
    report, _ = evaluate(Rolling(), rolling, clips=6)
    assert report["actions"]["perplexity"] == pytest.approx(1)
    assert report["actions"]["mutual_information"] == 0
    assert any("collapsed" in note for note in report["notes"])


def test_networks_that_are_missing_are_said_and_those_that_are_there_used(rolling, monkeypatch):
    def missing(device):
        raise ValueError("weights of so-and-so are missing; pip install so-and-so")

    monkeypatch.setattr(perceptual, "load_stlpips", lambda device: lambda frames, truth: mse(frames, truth))
    monkeypatch.setattr(perceptual, "load_features", lambda device: lambda frames: frames.mean(dim=(1, 2)))
    report, _ = evaluate(Rolling(), rolling, clips=4)
    assert [note.split(" (")[0] for note in report["notes"]] == ["not measured: the control test"]
    far = report["long_rollouts"]
    assert far["from_1"]["st_lpips_first_10"]["mean"] == 0 < far["repeat_last"]["st_lpips_first_10"]["mean"]
    assert far["from_1"]["frechet"] == pytest.approx(0, abs=1e-9)
    assert report["drift"]["stretches"]["1-10"]["frechet"] >= 0

    monkeypatch.setattr(perceptual, "load_stlpips", missing)
    monkeypatch.setattr(perceptual, "load_features", missing)
    report, _ = evaluate(Rolling(), rolling, clips=4)
    assert report["notes"][:2] == [
        "not measured: ST-LPIPS (weights of so-and-so are missing; pip install so-and-so)",
        "not measured: Frechet distance (efficientnet-lite0) (weights of so-and-so are missing; pip install so-and-so)",
    ]
    assert "st_lpips" not in report["long_rollouts"]["from_1"]
    assert "frechet" not in report["long_rollouts"]["from_1"]
    assert "frechet" not in report["drift"]["stretches"]["1-10"]
