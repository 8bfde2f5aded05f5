"""The README's opening: a world played on its real page, in a real browser, as a GIF.

    python runs/readme_gif.py demo/world play.gif

The page is paused and stepped, and its clock with it, so that the GIF runs at the world's own rate however slow the
machine. Wants the extra `dev` and Chromium.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from bench_browser import chromium, playing
from PIL import Image
from playwright.sync_api import Page

from minigenie.files import write_atomic

LAYOUT = """
  body { background: var(--card); }
  main { grid-template-columns: 384px 1fr; gap: 16px; width: 720px; padding: 0; margin: 0; }
  figure { width: 384px; }
  .card:not(#tiles-card), #tiles-title, #hint, #legend { display: none; }
  .card { border: 0; padding: 0; margin: 0; }
  #tiles { grid-template-columns: repeat(3, 1fr); gap: 6px 10px; }
"""
Scene = list[tuple[int, int]]  # an action and for how many frames it is held, and then the next


def main(
    world: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    script: str = "",
    seed: int = 0,
    scheme: Literal["light", "dark"] = "light",
) -> None:
    """Record `world` being played into `out`.

    Args:
        world: Folder made by train, or the address of a world.
        out: The GIF to write.
        script: Scenes, each from the next start picture: 2x8,3x9/7x8 is action 2 for 8 frames, then 3 for 9; then 7.
            By default the actions that move the picture most, each followed by its opposite.
        seed: Of the sampling.
        scheme: The page's colours.
    """
    with chromium() as browser, playing(world, "--seed", str(seed)) as (url, _):
        page = browser.new_page(viewport={"width": 1000, "height": 700}, color_scheme=scheme)
        page.clock.install()
        page.goto(url)
        settle(page)
        fps = page.evaluate("hello.fps")
        pictures = list(record(page, parse(script) if script else opposites(page), round(1000 / fps)))
    write_gif(pictures, out, fps)
    width, height = pictures[0].size
    print(f"{out}: {len(pictures)} frames of {width}x{height}, {out.stat().st_size / 1e6:.2f} MB")


def settle(page: Page) -> None:
    """Paused, the films on the tiles made."""
    page.locator("#screen[data-serial]").wait_for(timeout=60_000)
    page.click("#pause")
    while not page.evaluate("state.paused && previews.size === actions.length && actions.every(entry => entry.motion)"):
        page.wait_for_timeout(100)
    page.add_style_tag(content=LAYOUT)


def parse(script: str) -> list[Scene]:
    def part(text: str) -> tuple[int, int]:
        action, frames = text.split("x")
        return int(action) - 1, int(frames)

    return [[part(text) for text in scene.split(",")] for scene in script.split("/")]


def opposites(page: Page) -> list[Scene]:
    """The actions that move the picture most, each with its opposite."""
    motions = np.array(page.evaluate("actions.map(entry => entry.motion)"))
    moves = motions - motions[page.evaluate("noop")]
    strongest = np.hypot(*moves.T).argsort()[::-1][:6].tolist()
    return [[(action, 9), (int((moves @ moves[action]).argmin()), 9)] for action in strongest]


def record(page: Page, scenes: list[Scene], ms: int) -> Iterator[Image.Image]:
    """The page as it looks after each frame."""
    area = page.evaluate("""() => {
        const boxes = [$("screens"), $("tiles")].map(each => each.getBoundingClientRect());
        return { x: 0, y: boxes[0].y, width: 720, height: Math.max(...boxes.map(box => box.bottom)) - boxes[0].y };
    }""")
    for i, scene in enumerate(scenes):
        serial = int(page.get_attribute("#screen", "data-serial")) + 1  # numbers begin anew where an episode is over
        page.evaluate("start => send('reset', { start, seed: state.seed })", i % page.evaluate("hello.starts"))
        page.locator(f"#screen[data-serial='{serial}']").wait_for()
        for action, frames in scene:
            for j in range(frames):
                if j == 0:
                    page.keyboard.down(str(action + 1))  # paused, a press is a step
                else:
                    page.evaluate("action => send('step', { action })", action)
                serial += 1
                page.locator(f"#screen[data-serial='{serial}']").wait_for()
                page.clock.run_for(ms)
                yield Image.open(io.BytesIO(page.screenshot(clip=area))).convert("RGB")
            page.keyboard.up(str(action + 1))


def write_gif(pictures: list[Image.Image], path: Path, fps: float, least: int = 20) -> None:
    """One palette for all, no dithering, and no pixel drawn anew that changes by less than `least` of 255: small."""
    sheet = Image.fromarray(np.hstack([np.asarray(picture) for picture in pictures[::8]]))
    palette = sheet.quantize(128, dither=Image.Dither.NONE)
    shown, frames = np.asarray(pictures[0]), []
    for picture in pictures:
        changed = np.abs(np.asarray(picture, np.int16) - shown).max(-1, keepdims=True) >= least
        shown = np.where(changed, picture, shown)
        frames.append(Image.fromarray(shown).quantize(palette=palette, dither=Image.Dither.NONE))
    file = io.BytesIO()
    options = {"duration": round(100 / fps) * 10, "loop": 0, "optimize": True}
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], **options)
    write_atomic(path, file.getvalue())


if __name__ == "__main__":
    tyro.cli(main)
