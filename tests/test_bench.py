import json
from dataclasses import replace

import pytest
import torch

from minigenie.__main__ import main
from minigenie.bench import play
from minigenie.bench.machine import Item, count_flops, matmul_ceiling, measure

CPU = torch.device("cpu")


def test_a_product_of_large_matrices_is_at_the_ceiling():
    """The share is of what the machine does in the same run: the ceiling itself, measured as an item, is about 1."""
    a = torch.randn(1024, 1024)
    item = Item(name="product", call=lambda: a @ a, frames=1, flops=count_flops(lambda: a @ a))
    assert item.flops == 2 * 1024**3
    (found,) = measure([item], CPU, rounds=7)
    assert 0.2 < found.ceiling_share < 5
    assert found.seconds_min <= found.seconds_median <= found.seconds_max
    assert found.frames_per_s == pytest.approx(1 / found.seconds_median)


def test_a_cached_frame_takes_the_arithmetic_of_one_frame():
    """26 passes over 64 tokens and one to decode, whatever the context; the naive way grows with the context."""
    worlds = {context: play.common_size(context, CPU) for context in (1, 8)}
    one, eight = (play._frame("", world).flops for world in worlds.values())
    assert one == eight
    assert count_flops(lambda: play._naive(worlds[8])) > 8 * eight
    block, head = 16 * 128**2, 64 * 1024  # multiplications a token
    least = 2 * 64 * (27 * 4 * block + 25 * head)
    assert least < one < 1.1 * least


def test_bench_play_prints_and_writes_what_it_measured(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(play, "CONTEXTS", (1,))
    monkeypatch.setattr(play, "BATCH", 2)
    monkeypatch.setattr(play, "SMALL", replace(play.SMALL, num_blocks=1, dim=32))
    main(["bench", "play", str(trained), "--rounds", "3", "--json", str(tmp_path / "b.json")])
    printed, measured = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    assert "of matmul peak" in printed
    for each in measured:
        assert each["item"] in printed
        assert each["seconds_median"] > 0
        assert each["flops"] > 0
        assert each["peak_gb"] > 0
    assert {"small, context 1", "small, context 8, naive", f"{trained.name}, batch 2"} <= {m["item"] for m in measured}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "rounds is 1"),
        (["--browser"], "takes a world and 2 frames"),
        (["no/such/world"], "is not a world"),
    ],
)
def test_what_bench_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "play", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_ceiling_is_a_rate():
    assert matmul_ceiling(CPU, side=256) > 1e8
