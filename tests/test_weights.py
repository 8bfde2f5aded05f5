"""Weight files of others are taken only as they were published, and run nothing even so."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from minigenie.eval.perceptual import WeightFile

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Installs a package that carries a file, which is known as it is then. Returns both."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_nets-1.0.dist-info").mkdir()
    (tmp_path / "some_nets-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: some-nets\n")
    (tmp_path / "some_nets").mkdir()

    def install(weights: object, zipped: bool = True) -> tuple[WeightFile, Path]:
        path = tmp_path / "some_nets" / "w.pth"
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        return WeightFile("some-nets==1.0", "some_nets/w.pth", checksum), path

    return install


class Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@FORMATS
def test_what_was_published_is_read(publish, zipped):
    table = torch.arange(12.0).view(3, 4)
    weights = {"table": table, "turned": table.T, "steps": torch.tensor(7), "half": torch.ones(2).half()}
    file, _ = publish(weights, zipped)
    assert_close(file.load(), weights, rtol=0, atol=0)


@FORMATS
def test_a_file_that_calls_functions_calls_none(publish, zipped, tmp_path):
    target = tmp_path / "made"
    evil, path = publish({"weight": Malice(target)}, zipped)
    with pytest.raises(ValueError, match="^w.pth is not the published file: .*$"):
        evil._replace(sha256="0" * 64).load()
    with pytest.raises(pickle.UnpicklingError):  # not even if that had been published
        evil.load()
    assert not target.exists()
    torch.load(path, weights_only=False)  # the file is what it says
    assert target.exists()


@FORMATS
def test_a_damaged_file_is_one_line(publish, zipped):
    file, path = publish({"weight": torch.ones(20), "bias": torch.ones(3)}, zipped)
    published = path.read_bytes()
    damaged = [published[:length] for length in range(0, len(published), 7)]
    damaged += [published[:i] + bytes([published[i] ^ 1]) + published[i + 1 :] for i in range(0, len(published), 7)]
    damaged += [published + b"\0", b"not a weight file"]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match="w.pth is not the published file: sha256 .*, not .*; pip install"
        ) as error:
            file.load()
        assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(publish):
    file, path = publish({"weight": torch.ones(1)})
    path.unlink()
    with pytest.raises(ValueError, match="^w.pth is not on this machine; pip install some-nets==1.0$"):
        file.load()
    with pytest.raises(ValueError, match="^w.pth is not on this machine; pip install nothing-like-it==1.0$"):
        file._replace(release="nothing-like-it==1.0").load()
