"""What is installed is whole without the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of a copy of what git tracks, as whoever builds it has."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        copy = folder / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source"]
    subprocess.run(command, check=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_a_wheel_holds_every_file_of_the_package(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "minigenie"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= packed
    assert not [name for name in packed if name.startswith(("tests", "runs", "docs"))]


def test_a_wheel_runs_without_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import minigenie, pathlib; from minigenie.world import World, locate;"
        "assert pathlib.Path(minigenie.__file__).is_relative_to(pathlib.Path('site').resolve());"
        "print(World.load('coinrun', 'cpu').num_actions)"
    )
    environment = {"PYTHONPATH": "site", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6\n"
