"""Live play as a person has it: the real server in a process of its own, the real page in a real browser.

    python runs/bench_browser.py worlds/mine    # by `minigenie play`
    python runs/bench_browser.py site           # of `minigenie export --web`, in the browser alone

Wants the extra `dev`, Chromium and Linux. Frames count as drawn when they are on the page's canvas; presses are timed
inside the page, from the key going down to the first frame drawn that its action led to.
"""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import tyro

from minigenie.world import locate, read_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WARM = 1_000  # frames, after which memory should not grow any more: undo is full, allocators have settled

SCRIPT = """
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const key = (type, action) => dispatchEvent(new KeyboardEvent(type, { key: `${action + 1}`, code: `Bench${action}` }));
const frame = () => new Promise((resolve, reject) => {
  const late = setTimeout(() => reject(new Error("no frame came for 60 s")), 60_000);
  new MutationObserver((_, watching) => { watching.disconnect(); clearTimeout(late); resolve(); })
    .observe($("screen"), { attributes: true, attributeFilter: ["data-serial"] });
});
const others = () => actions.map((_, action) => action).filter(action => action !== noop && action < 9);
window.bench = {
  /** Drawn frames a second while one key is held. */
  async rate(seconds) {
    key("keydown", others()[0]);
    await frame();
    const began = performance.now();
    let drawn = 0, now = began;
    for (; now - began < 1000 * seconds; now = performance.now(), drawn++) await frame();
    key("keyup", others()[0]);
    return 1000 * drawn / (now - began);
  },
  /** Milliseconds from each press to the first frame drawn that it led to. */
  async presses(count) {
    const waits = [];
    for (let i = 0; i < count; i++) {
      const action = others()[i % others().length];
      await pause(200 + 300 * Math.random());
      const began = performance.now();
      key("keydown", action);
      do await frame(); while (shownAction !== action);
      waits.push(performance.now() - began);
      await pause(100 + 200 * Math.random());
      key("keyup", action);
      do await frame(); while (shownAction !== noop);
    }
    return waits;
  },
  /** Frames one after the other, as fast as they come: milliseconds for all of them. */
  async run(frames) { return (await bench.shared(frames))[0]; },
  /** And how many of these were spent on making them. */
  async shared(frames) {
    const began = performance.now();
    let made = 0;
    for (let i = 0; i < frames; i++) {
      const drawn = frame();
      send("step", { action: i % actions.length });
      await drawn;
      made += arrivals.at(-1).ms;
    }
    return [performance.now() - began, made];
  },
};
"""


class BrowserPlay(NamedTuple):
    """frames_per_s: drawn at the world's own rate, which is `target`; most_frames_per_s: as fast as they come.
    press_ms: from each key press to the first pixels that it changed; median_press_ms: of them.
    memory: resident bytes of the server after `warm` frames and after `frames`. cpu_s: of the server, a frame."""

    target: float
    frames_per_s: float
    most_frames_per_s: float
    median_press_ms: float
    press_ms: list[float]
    warm: int
    frames: int
    memory: tuple[int, int]
    cpu_s: float

    def lines(self) -> list[str]:
        presses, (warm, last) = self.press_ms, (size / 1e6 for size in self.memory)
        return [
            f"browser       {self.frames_per_s:.1f} frames/s sustained, of {self.target:g} asked for; "
            f"{self.most_frames_per_s:.1f} as fast as they come",
            f"key to pixel  {self.median_press_ms:.0f} ms, median of {len(presses)} presses; "
            f"{min(presses):.0f} to {max(presses):.0f}",
            f"memory        {warm:.0f} MB after {self.warm:,} frames, {last:.0f} MB after {self.frames:,}",
            f"CPU           {self.cpu_s:.3f} s of the server's a frame",
        ]


def measure_browser(folder: Path, seconds: float = 30.0, presses: int = 24, frames: int = 2 * WARM) -> BrowserPlay:
    """Play the world in `folder`: `seconds` with a key held, some presses, then `frames` frames as fast as they come.

    ValueError, one line, if there is no browser, the world has no start picture, or the machine has no /proc."""
    if frames < 2:
        raise ValueError(f"frames is {frames}; play at least 2")
    target = float(read_config(folder)["fps"])
    if not Path("/proc/self/statm").exists():
        raise ValueError("memory and CPU time are read from /proc, which this system lacks; measure on Linux")
    if not any((folder / "prompts").glob("*.png")):
        raise ValueError(f"{folder} has no pictures in prompts/ to begin from; put one there")
    with chromium() as browser, playing(folder) as (url, pid):
        page = browser.new_page()
        page.goto(url)
        _settle(page)
        page.evaluate(SCRIPT)
        rate = page.evaluate("seconds => bench.rate(seconds)", seconds)
        waits = page.evaluate("presses => bench.presses(presses)", presses)
        page.click("#pause")
        warm = min(WARM, frames // 2)
        page.evaluate("frames => bench.run(frames)", warm)
        memory, began = _use(pid)
        ms = page.evaluate("frames => bench.run(frames)", frames - warm)
        memory_end, ended = _use(pid)
    most, cpu = 1000 * (frames - warm) / ms, (ended - began) / (frames - warm)
    return BrowserPlay(target, rate, most, median(waits), waits, warm, frames, (memory, memory_end), cpu)


def _settle(page: "Page") -> None:
    """Once the first frame is there, have all done that goes on in the background: the films on the tiles."""
    page.wait_for_selector("#screen[data-serial]", timeout=60_000)
    page.click("#pause")
    while not page.evaluate("previews.size === actions.length && actions.every(entry => entry.motion)"):
        page.wait_for_timeout(100)
    page.click("#pause")


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A Chromium without a window: the one of `playwright install chromium`, or else the machine's own.

    ValueError, one line, if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise ValueError("playwright is not installed; it drives the browser: pip install playwright") from None
    with sync_playwright() as playwright:
        path = _find(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


def _find(own: str) -> str:
    path = next((path for path in (own, *map(shutil.which, NAMES)) if path and Path(path).exists()), None)
    if path is None:
        raise ValueError("no Chromium is installed; apt-get install chromium, or playwright install chromium")
    return path


@contextmanager
def playing(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    """`minigenie play FOLDER` in a process of its own: the address of the page, and the process's number."""
    command = [sys.executable, "-m", "minigenie", "play", str(folder), "--no-open", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = server.stdout.readline()
            if " is at " not in said:
                raise ValueError(f"minigenie play {folder} does not start; try it by itself")
            yield said.rpartition(" is at ")[2].split()[0], server.pid
        finally:
            server.terminate()


def _use(pid: int) -> tuple[int, float]:
    """Resident bytes and CPU seconds of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return resident, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def measure_site(folder: Path, frames: int, presses: int = 12, threads: int = 1) -> list[str]:
    """Play the site in `folder` with nothing but a file server behind it, WebAssembly computing: lines of results."""
    handler = partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        began = time.monotonic()
        page.goto(f"http://127.0.0.1:{server.server_port}/?provider=wasm&threads={threads}")
        page.wait_for_selector("#screen[data-number]:not([data-number='0'])", timeout=120_000)
        first = time.monotonic() - began
        page.evaluate(SCRIPT)
        waits = page.evaluate("presses => bench.presses(presses)", presses)
        page.click("#pause")
        page.evaluate("bench.run(5)")
        ms, made = page.evaluate("frames => bench.shared(frames)", frames)
        server.shutdown()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "runtime" not in path.parts)
    return [
        f"size          {size / 1e6:.1f} MB without the runtime",
        f"first frame   {first:.1f} s after the page was asked for",
        f"browser       {1000 * frames / ms:.1f} frames/s as fast as they come; {made / frames:.0f} ms of each "
        f"of {ms / frames:.0f} is arithmetic",
        f"key to pixel  {median(waits):.0f} ms, median of {presses} presses; {min(waits):.0f} to {max(waits):.0f}",
    ]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *said: object) -> None:
        pass


def main(world: tyro.conf.Positional[str], frames: int = 2 * WARM, threads: int = 1) -> None:
    """Frames a second, key press to picture, memory.

    Args:
        world: Folder made by train, or coinrun, or an address; or a folder made by export --web.
        frames: How many to play; memory is compared from the 1,000th on.
        threads: Of a page that export --web made.
    """
    try:
        if (Path(world) / "world.json").exists():
            print("\n".join(measure_site(Path(world), min(frames, 100), threads=threads)))
            return
        print("\n".join(measure_browser(locate(world), frames=frames).lines()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    tyro.cli(main)
