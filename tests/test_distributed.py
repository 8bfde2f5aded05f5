"""Two processes on one machine: what must be the same on both."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from minigenie.nn.quantize import QuantizerConfig, VectorQuantizer


def _train_codes(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    quantizer = VectorQuantizer(QuantizerConfig(num_codes=8, code_dim=4))
    torch.manual_seed(rank)  # each process has its own batch and its own random numbers
    for _ in range(5):
        vectors = torch.randn(64, 4)
        before = vectors.clone()
        quantizer(vectors)
        assert torch.equal(vectors, before), "the batch of this process was overwritten"
    torch.save(quantizer.state_dict(), f"{out}-{rank}")
    dist.destroy_process_group()


def test_all_processes_keep_one_codebook(tmp_path):
    mp.spawn(_train_codes, (str(tmp_path / "store"), str(tmp_path / "codes")), nprocs=2)
    one, other = (torch.load(tmp_path / f"codes-{rank}", weights_only=True) for rank in (0, 1))
    assert one["placed"]
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_torchrun_trains_a_world_on_two_processes(toy, tmp_path):
    """The command as users type it; both processes, one world."""
    import subprocess

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
    fields = ["dynamics_fit.batch_size=4", "tokenizer_fit.batch_size=4", "lam_fit.batch_size=4"]
    overrides = [part for field in fields for part in ("--set", field)]
    ended = subprocess.run(
        [*command, "-m", "minigenie", "train", str(toy.folder), "--out", str(tmp_path / "run"), "--max-steps", "2",
         "--device", "cpu", *overrides],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("is a world") == 1
    assert (tmp_path / "run" / "dynamics.safetensors").exists()
