"""Every command of the README and the docs is run as it stands there, only smaller."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from PIL import Image
from test_pipeline import write_video
from test_robots import lerobot

from minigenie.data.dataset import Dataset
from minigenie.data.labels import write_labels

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALLER = [  # what makes a command quick, and nothing else
    (r"python (runs|examples)/", rf"python {ROOT}/\1/"),
    (r"drive.py (.*)--clips \d+", r"drive.py \1--clips 2 --length 120"),
    (r"minigenie demo", "minigenie demo --minutes 0.15"),
    (r"--minutes [\d.]+ (.*)--minutes [\d.]+", r"--minutes 0.15 \1"),
    (r"--frames [\d_]+", "--frames 600"),
    (r"collect ninja (.*)--frames 600 ", r"collect ninja \1--frames 6000 "),  # all its controls have to be in there
    (r"--recipe pocket (.*)--max-minutes [\d.]+", r"--recipe tiny \1"),
    (r"ppo.py (.*)--minutes \d+ --levels \d+", r"ppo.py \1--minutes 0.02 --levels 2"),
    (r"bench_envs.py (.*)", r"bench_envs.py \1 --numbers 1 2"),
    (r"--expert-frames [\d_]+ (.*)--levels \d+ --steps \d+", r"--expert-frames 150 \1--levels 2 --steps 2"),
    (r"--labels \d+", "--labels 20"),
    (r"minigenie train (?!.*--dry-run)", "minigenie train --max-steps 2 --set tokenizer_fit.batch_size=4 "),
    (r"--max-steps 2 (.*)--max-steps [\d_]+", r"--max-steps 2 \1"),
    (r"minigenie eval (?!.*--compare)", "minigenie eval --clips 2 "),
    (r"--clips 2 (.*)--clips \d+", r"--clips 2 \1"),
    (r"minigenie (play|teach)", r"exec minigenie \1 --port 0 --no-open"),
    (r"minigenie bench train .*", 'minigenie bench train --rounds 3 --only "tiny lam"'),
    (r"minigenie bench play .*", 'minigenie bench play coinrun --rounds 3 --only "coinrun frame, batch 1"'),
    (r"minigenie bench(?! train| play)", "minigenie bench --rounds 3 --only load"),
]
NOT_RUN = re.compile(r"^(pip install|pytest |apt-get|bash \.ci|git |make )")  # CI itself runs what installs and tests


def commands(page: Path) -> list[str]:
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            parts = [part for part in line.split("#")[0].strip().split(" && ") if part and not NOT_RUN.match(part)]
            found += [part for part in parts if part != "pytest"]
    return found


def smaller(command: str) -> str:
    for pattern, replacement in SMALLER:
        command = re.sub(pattern, replacement, command)
    return command


@pytest.fixture(scope="module")
def folder(toy, bucket, tmp_path_factory):
    """Where all pages' commands run, with what a reader is assumed to have."""
    folder = tmp_path_factory.mktemp("reader")
    play = np.concatenate([toy.episode_frames(i) for i in range(3)])
    (folder / "my_videos").mkdir()
    for name in ("one.mp4", "two.mp4"):
        write_video(folder / "my_videos" / name, play, 10, "libx264")
    lerobot(folder / "arm", "float32", 2, ["x", "y"])
    Image.fromarray(play[0]).save(folder / "start.png")
    return folder


def until_it_serves(command: list[str], **options) -> subprocess.CompletedProcess:
    """Until the address that it prints shows the page; then Ctrl-C."""
    process = subprocess.Popen(command, **options)
    said = process.stdout.readline()
    if address := re.search(r"http://\S+", said):
        with urllib.request.urlopen(address[0], timeout=30) as page:
            assert b"<canvas" in page.read()
        process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, said + rest, errors)


def label(folder: Path) -> None:
    """What somebody does at the page of `teach`."""
    frames = Dataset.open(folder).windows(2)[:40].tolist()
    write_labels(folder, ("noop", "right"), {frame: i % 2 for i, frame in enumerate(frames)})


RAN: set[str] = set()  # the pages begin alike, and what has run is there


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_runs(page, folder):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["MINIGENIE_CACHE"] = str(folder / "cache")
    for command in map(smaller, commands(page)):
        if command in RAN:
            continue
        run = until_it_serves if re.search("minigenie (play|teach)", command) else subprocess.run
        ended = run(["bash", "-c", command], cwd=folder, env=environment, stdout=PIPE, stderr=PIPE, text=True)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        assert "Warning" not in ended.stderr, ended.stderr
        if teaches := re.search(r"minigenie teach .*?(data/\S+)", command):
            label(folder / teaches[1])
        RAN.add(command)
    if page.name == "README.md":
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, check=True)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_in_the_readme():
    from minigenie.__main__ import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert all(f"`minigenie {name}`" in text or f"`{name}`" in text for name in COMMANDS)
