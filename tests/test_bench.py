import json
import re
from dataclasses import replace
from pathlib import Path

import bench_size as size
import pytest
import torch
from conftest import small_recipe

from minigenie.__main__ import main
from minigenie.bench import machine, play, run, train
from minigenie.bench.machine import Call, Item, count_flops, measure
from minigenie.settings import BenchSettings
from minigenie.train import Execution

CPU = torch.device("cpu")
KEYS = {
    "item", "device", "dtype", "threads", "seconds_median", "cpu_seconds_median", "frames_per_s", "flops",
    "ceiling_share", "peak_gb",
}  # fmt: skip


@pytest.fixture
def smaller(monkeypatch):
    """Everything that bench measures, only smaller."""
    monkeypatch.setattr(play, "CONTEXTS", (1,))
    monkeypatch.setattr(play, "BATCH", 2)
    monkeypatch.setattr(play, "SMALL", replace(play.SMALL, num_blocks=1, dim=32))
    monkeypatch.setattr(machine, "PRODUCTS", 1)
    monkeypatch.setattr(size, "AXES", {"batch": (1, 2)})
    monkeypatch.setattr(size, "CONTEXTS", (1, 2))
    monkeypatch.setattr(run, "FRAMES", 300)
    monkeypatch.setattr(train, "recipe_named", lambda name: small_recipe())
    monkeypatch.setattr(train, "small", joint_recipe)


def joint_recipe():
    recipe = small_recipe()
    return replace(recipe, joint=True, dynamics=replace(recipe.dynamics, motions=0))


def test_a_product_of_large_matrices_is_at_the_ceiling():
    """The share is of what the machine does in the same run: the ceiling itself, measured as an item, is about 1."""
    a = torch.randn(1024, 1024)
    call = Call(lambda: [a @ a for _ in range(10)], count_flops(lambda: [a @ a for _ in range(10)]))
    assert call.flops == 10 * 2 * 1024**3
    ceiling, copied, found = measure([Item(name="product", make=lambda: call, frames=1)], CPU, rounds=7)
    assert ceiling.ceiling_share == 1
    assert copied.ceiling_share is None
    assert 0.2 < found.ceiling_share < 5
    assert found.seconds_min <= found.seconds_median <= found.seconds_max
    assert found.frames_per_s == pytest.approx(1 / found.seconds_median)


def test_peaks_belong_to_the_item_that_reached_them():
    def hold(megabytes):
        return lambda: Call(lambda: torch.zeros(megabytes << 18).sum())

    names = {"large": 400, "small": 1}
    items = [Item(name=name, make=hold(size), frames=1) for name, size in names.items()]
    large, small = measure(items, CPU, rounds=3)[-2:]
    if Path("/proc/self/clear_refs").exists():
        assert 0.3 < large.peak_gb - small.peak_gb < 0.5
    assert 0 <= small.peak_gb < 0.1


def test_a_cached_frame_takes_the_arithmetic_of_one_frame():
    """26 passes over 64 tokens and one to decode, whatever the context; the naive way grows with the context."""
    one, eight = (play.step_call(play.common_size(CPU, context)).flops for context in (1, 8))
    assert one == eight
    assert play.naive_call(play.common_size(CPU, 8)).flops > 8 * eight
    block, head = 16 * 128**2, 64 * 1024  # multiplications a token
    least = 2 * 64 * (27 * 4 * block + 25 * head)
    assert least < one < 1.1 * least


def test_a_step_takes_thrice_the_arithmetic_of_its_forward_pass():
    """Every weight is used once forward and twice backward, but the codes forward only, and the first layer has no
    input to go back to; AdamW multiplies no matrices, and k-means is not of every step."""
    items = train.train_items(BenchSettings(recipes=()), CPU)
    item = next(item for item in items if "W1s" in item.name and item.dtype == "float32")
    tokens, block = 4 * 16 * 64, 16 * 128**2
    time = 2 * 16 * 128  # products of queries, keys and values; within a frame the library's attention is not counted
    forward = 2 * tokens * (8 * (block + time) + 128 * (2 * 192 + 2 * 32))
    assert item.make().flops == 3 * forward + 2 * tokens * (1024 * 32 - 128 * 192)


def test_a_step_is_all_of_its_parts():
    """A batch of 4 clips is as much arithmetic, and as many frames, in two parts; less is kept at a time."""
    whole = train.small()
    cut = replace(whole, tokenizer_fit=replace(whole.tokenizer_fit, execution=Execution(part=2, recompute="blocks")))
    items = [train.step_item("", recipe, "tokenizer", CPU, "float32") for recipe in (whole, cut)]
    assert [item.frames for item in items] == [64, 64]
    assert items[0].make().flops == items[1].make().flops  # without what is computed twice
    assert items[1].name == ", 2 times 2 x 16 frames"


@pytest.mark.parametrize(
    ("axis", "least", "most"),
    [("batch", 1, 1), ("frames", 1, 1.1), ("patches", 1, 1.5), ("width", 1, 2), ("depth", 0.8, 1)],
)
def test_the_arithmetic_of_a_step_grows_as_theory_says(axis, least, most):
    """Linear in clips, frames and blocks; attention within a frame adds a square of patches, weights one of width."""
    flops = {
        n: size.step_item("", size.recipe_of_size(axis, n), "dynamics", CPU, "float32").make().flops
        for n in size.AXES[axis][:2]
    }
    assert least - 0.03 < size.exponent(flops) < most + 0.03  # how many tokens are masked is drawn


def test_how_cost_grows_is_fitted_to_the_measurements(monkeypatch):
    """Of sizes 2, 4, 8, whose time grows as size^1.5 and whose arithmetic as size^2, in a table of their own."""
    kinds = {"item": "", "dtype": "float32", "threads": 1, "seconds_min": 0.0, "seconds_max": 0.0, "frames_per_s": 0.0}
    rest = kinds | {"ceiling_share": None, "peak_gb": 0.0, "seconds_median": 9.0}
    measured = [
        machine.Measurement(**rest | {"item": f"dynamics step, width {n}, 4 x 8 frames"}, device="cpu",
                            cpu_seconds_median=n**1.5, flops=n**2)
        for n in size.AXES["width"]
    ]  # fmt: skip
    (row,) = size.growth_rows(measured)
    assert row[0] == "width"
    assert row[-2:] == ["size^1.50", "size^2.00"]


def test_a_timed_step_is_a_training_step():
    """It changes every weight and leaves no gradient behind."""
    recipe = small_recipe()
    model, config = recipe.make_dynamics(), recipe.dynamics_fit
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    call = train.step_call(model, train._noise(recipe, torch.Size((2, 4)), CPU), config, CPU)
    call.run()
    stages = call.stages()
    assert set(stages) == {"forward", "backward", "optimizer"}
    assert min(stages.values()) > 0
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, before[name]), name
        assert weight.grad is None


def test_bench_prints_and_writes_all_that_it_measured(trained, tmp_path, smaller, capsys):
    main(["bench", "all", str(trained), "--rounds", "3", "--json", str(tmp_path / "b.json")])
    printed, measured = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    assert "of matmul peak" in printed
    for each in measured:
        assert set(each) >= KEYS
        assert each["item"] in printed
        assert each["seconds_median"] > 0
        assert each["peak_gb"] >= 0
        assert (each["ceiling_share"] or 1) > 0
    names = " ".join(each["item"] for each in measured)
    for part in (
        "products of 1024x1024", "copy", "W1s tokenizer", "W2s joint", "tiny tokenizer", "tiny lam", "tiny dynamics",
        "W3s frame, context 1", "context 8, naive", f"{trained.name} frame, batch 2", "load 64 clips", "ingest",
    ):  # fmt: skip
        assert part in names


def test_the_table_of_sizes_is_a_command(smaller, monkeypatch, capsys):
    monkeypatch.setattr(size, "small", joint_recipe)
    size.main(rounds=3, device="cpu")
    printed = capsys.readouterr().out
    for part in ("time grows as", "of matmul peak", "step, batch 2", "frame, context 2"):
        assert part in printed


def test_bench_says_how_many_clips_at_a_time_are_the_fastest(smaller, capsys):
    """Of those it tried and that fit; where batches are cut alike, one is measured."""
    main(["bench", "train", "--parts", "1", "4", "64", "--rounds", "3"])
    table, _, fastest = re.split("where its time goes|fastest parts\n", capsys.readouterr().out)
    for stage in ("tokenizer", "lam", "dynamics"):
        assert table.count(f"tiny {stage} step, 4 times 1 x") == 1
        assert table.count(f"tiny {stage} step, 4 x") == 1
        assert re.search(rf"^tiny +--set {stage}_fit.execution.part=[14]$", fastest, re.M)
    assert "W1s" not in table


def test_a_step_that_does_not_fit_is_left_out(capsys):
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    items = [Item(name="large", make=too_large, frames=1), Item(name="small", make=lambda: Call(list), frames=1)]
    assert measure(items, CPU, rounds=3)[-1].item == "small"
    assert "large, float32: left out" in capsys.readouterr().err


def test_the_fastest_parts_are_those_with_the_most_frames_a_second():
    kinds = {"device": "cpu", "dtype": "float32", "threads": 1, "seconds_min": 0.0, "seconds_max": 0.0, "flops": 1}
    rest = kinds | {"ceiling_share": None, "peak_gb": 0.0, "seconds_median": 9.0, "cpu_seconds_median": 9.0}
    rates = {"p lam step, 2 x 4 frames": 5, "p lam step, 2 times 1 x 4 frames": 7, "p joint step, 3 x 4 frames": 1}
    measured = [machine.Measurement(**rest, item=name, frames_per_s=rate) for name, rate in rates.items()]
    assert {line.split("--set ")[1] for line in train.fastest_parts(measured)} == {
        "lam_fit.execution.part=1",
        "dynamics_fit.execution.part=3",
    }


def test_only_what_is_asked_for_is_built(smaller, capsys):
    main(["bench", "--only", "context 1", "--rounds", "3"])
    items = [line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert not any(item.startswith(("tiny", "load", "W1s")) for item in items)
    assert any(item.startswith("W3s frame, context 1") for item in items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play", "--rounds", "1"], "rounds is 1"),
        (["play", "no/such/world"], "is not a world"),
        (["--only", "coffee"], "nothing that bench all measures has 'coffee'"),
        (["train", "--recipes", "huge"], "recipe 'huge' does not exist"),
    ],
)
def test_what_bench_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
