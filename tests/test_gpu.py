"""What only a GPU can show. `pytest -m gpu` runs these; without the marker they are left out."""

import pytest
import torch
from conftest import small_recipe
from torch.testing import assert_close

from minigenie.bench.train import _noise
from minigenie.runtime import autocast, pick_device
from minigenie.train import Execution, Part, backward, prepare_stacks, update
from minigenie.world import World

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _as_commands_run():
    pick_device("cuda")


@pytest.fixture
def frames(toy):
    return torch.from_numpy(toy.clips(toy.windows(4)[:3], 4))


def test_a_world_on_the_gpu_sees_what_it_sees_on_the_cpu(trained, frames):
    near, far = World.load(trained, "cpu"), World.load(trained, "cuda")
    assert (near.infer_actions(frames) == far.infer_actions(frames)).float().mean() > 0.95
    video = frames.float() / 255
    tokens = near.tokenizer.encode(video)
    assert (tokens == far.tokenizer.encode(video.to(GPU)).cpu()).float().mean() > 0.99
    assert_close(near.tokenizer.decode(tokens), far.tokenizer.decode(tokens.to(GPU)).cpu(), atol=1e-2, rtol=0)  # TF32


def test_a_recorded_frame_is_the_frame(trained, frames):
    """Over two rollouts, as nothing that was recorded may move; and again with other sampling."""
    plain, fast = World.load(trained, "cuda"), World.load(trained, "cuda")
    fast._use_cuda_graph = True  # the graph alone: compiled passes round differently
    actions = torch.arange(8).repeat(3, 1)
    for seed in (1, 2):
        assert torch.equal(plain.rollout(frames, actions, seed), fast.rollout(frames, actions, seed))
    fast.restore(plain.snapshot())
    assert torch.equal(plain.step([0, 1, 2]), fast.step([0, 1, 2]))
    assert torch.equal(plain.rollout(frames[:1], actions[:1]), fast.rollout(frames[:1], actions[:1]))


def test_a_compiled_world_imagines_much_the_same(trained, frames):
    plain, fast = World.load(trained, "cuda"), World.load(trained, "cuda").compile()
    actions = torch.arange(6).repeat(3, 1)
    difference = (plain.rollout(frames, actions).int() - fast.rollout(frames, actions).int()).abs()
    assert (difference <= 8).float().mean() > 0.9


@pytest.mark.parametrize("stage", ["tokenizer", "lam", "dynamics"])
def test_compiled_training_in_bfloat16_learns_as_float32_does(stage):
    recipe = small_recipe()
    batch = _noise(recipe, torch.Size((4, 8)), GPU)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = getattr(recipe, f"make_{stage}")().to(GPU).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        if compiled:
            prepare_stacks(model, Execution(compile=True), GPU)
        precision = "bfloat16" if compiled else "float32"
        for _ in range(30):
            with autocast(GPU, precision):
                loss, _ = model(batch, 1.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert_close(losses[0], losses[1], rtol=0.15, atol=0.02)


@pytest.mark.parametrize("recompute", ["nothing", "cheap", "blocks"])
def test_the_transformers_compile_without_graph_breaks(recompute):
    recipe = small_recipe()
    model = recipe.make_dynamics().to(GPU)
    prepare_stacks(model, Execution(compile=True, recompute=recompute), GPU)
    metrics = backward(model, [Part(_noise(recipe, torch.Size((4, 8)), GPU))], "bfloat16", GPU, 1.0)
    update(model, [], recipe.dynamics_fit)
    assert metrics["loss"].isfinite()


def test_a_batch_of_a_thousand_worlds(trained):
    world = World.load(trained, "cuda").compile()
    world.reset(torch.zeros(1024, 1, 64, 64, 3, dtype=torch.uint8))
    assert world.step([0] * 1024).shape == (1024, 64, 64, 3)
