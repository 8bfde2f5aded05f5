"""The real page in a real browser, against a real server."""

import asyncio
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import bench_browser
import numpy as np
import pytest
from bench_browser import chromium, measure_browser
from PIL import Image, ImageSequence
from playwright.sync_api import expect

from minigenie.data.controls import entries
from minigenie.play.actions import save_actions
from minigenie.play.player import footage_clip
from minigenie.play.server import listen, make_app, make_server
from minigenie.play.session import Session
from minigenie.settings import PlaySettings
from minigenie.world import World

expect.set_options(timeout=30_000)
LIT, ON = re.compile(r"\blit\b"), re.compile(r"\bon\b")


@contextlib.contextmanager
def serving(folder, **options):
    options = {"device": "cpu", "fps": 20, "max_players": 2, **options}
    with listen("127.0.0.1", 0) as listening:
        server = make_server(make_app(Session(folder, PlaySettings(**options))))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    ignored = shutil.ignore_patterns("checkpoints", "encoded", "samples")
    return shutil.copytree(trained, tmp_path_factory.mktemp("played") / "world", ignore=ignored)


@pytest.fixture(scope="module")
def url(folder, toy):
    with serving(folder, footage=toy.folder) as url:
        yield url


@pytest.fixture(scope="module")
def named(folder, tmp_path_factory):
    """A world that was trained on named controls, being served."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("named") / "world")
    names = ("noop", "left", "right", "jump", "jump-left", "jump-right", "fire", "fire-2")
    save_actions(copy, [{**entry, "motion": [0, 0]} for entry in entries(names)])
    with serving(copy) as url:
        yield url


@pytest.fixture
def page(visit, url):
    """Somebody who plays."""
    page = visit(url)
    arrived(page)
    return page


@pytest.fixture
def still(page):
    """Somebody who has paused at the start."""
    return pause(page)


def arrived(page):
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#screen")).to_have_attribute("data-number", re.compile("."))


def pause(page):
    page.click("#pause")
    expect(page.locator("#pause")).to_contain_text("Play")
    return restart(page)


def restart(page):
    """At the start again, every frame that was under way before having arrived."""
    page.evaluate("window.before = state")
    page.click("#reset")
    until(page, "state !== before && $('screen').dataset.number === '0'")
    return page


def pixels(page, canvas="screen") -> np.ndarray:
    """What a canvas shows, pixel for pixel."""
    data = page.evaluate(f"[...$('{canvas}').getContext('2d').getImageData(0, 0, 64, 64).data]")
    return np.array(data, np.uint8).reshape(64, 64, 4)[..., :3]


def number(page) -> int:
    return int(page.locator("#screen").get_attribute("data-number"))


def play(page, keys: str) -> list[np.ndarray]:
    """While paused, a key is one frame: the pictures that they lead to."""
    seen = []
    for key in keys:
        after = number(page) + 1
        page.keyboard.press(key)
        expect(page.locator("#screen")).to_have_attribute("data-number", str(after))
        seen.append(pixels(page))
    return seen


def frames_on(page, count=2):
    until(page, f"+$('screen').dataset.number >= {number(page) + count}")


def until(page, true, seconds=30.0):
    """Wait for an expression of the page. (Playwright's own way wants eval, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(true):
        assert time.monotonic() < end, f"never came true: {true}"
        page.wait_for_timeout(20)


def begins_anew_where_it_is_over(page):
    """At the start picture, with the same luck; undo goes back to the last frame."""
    pause(page)
    start, seen = pixels(page), []
    while number(page) == len(seen):
        assert len(seen) < 60
        serial = page.locator("#screen").get_attribute("data-serial")
        page.keyboard.press("2")
        until(page, f"$('screen').dataset.serial !== '{serial}'")
        seen += [pixels(page)] if number(page) else []
    assert number(page) == 0
    np.testing.assert_array_equal(pixels(page), start)
    expect(page.locator("#toast")).to_contain_text("begins anew")
    page.keyboard.press("Backspace")
    expect(page.locator("#screen")).to_have_attribute("data-number", str(len(seen)))
    np.testing.assert_array_equal(pixels(page), seen[-1])
    restart(page)
    for mine, its in zip(play(page, "2" * len(seen)), seen, strict=True):
        np.testing.assert_array_equal(mine, its)


def until_it_shows(page, color):
    shown = "$('screen').getContext('2d').getImageData(0, 0, 64, 64).data"
    until(page, f"{shown}.every((value, i) => value === {[*color, 255]}[i % 4])")


def png(color, size=(300, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "PNG")
    return out.getvalue()


def test_a_held_key_plays_its_action_and_lights_its_tile(page):
    tile = page.locator(".tile").nth(4)
    page.keyboard.down("5")
    expect(tile).to_have_class(LIT)
    until(page, "shownAction === 4")
    page.keyboard.up("5")
    expect(tile).not_to_have_class(LIT)
    until(page, "shownAction === noop")


def test_named_controls_are_on_the_keys_that_their_names_say(visit, named):
    """Held keys, in the order in which they are pressed, and the action that is sent and played."""
    page = visit(named)
    arrived(page)
    noop, left, right, jump, jump_left, jump_right, fire, fire_2 = range(8)
    expect(page.locator(".tile b").nth(noop)).to_have_text("no key")
    expect(page.locator(".tile").nth(jump_right)).to_contain_text("jump right")
    expect(page.locator(".tile kbd").nth(jump_right)).to_have_text("↑→")
    expect(page.locator("#legend")).to_have_text("Keys: ↑ ← → · W A D · Space: jump · F · 1 to 8")
    until(page, f"shownAction === {noop}")
    for keys, expected in (
        ("ArrowLeft", left),
        ("ArrowRight", right),
        ("ArrowRight ArrowUp", jump_right),
        ("ArrowUp ArrowLeft", jump_left),
        ("Space", jump),
        ("w", jump),
        ("a", left),
        ("d Space", jump_right),
        ("w a", jump_left),
        ("ArrowLeft ArrowDown", left),  # no action is on this key
        ("ArrowLeft ArrowRight", right),
        ("ArrowLeft ArrowRight ArrowUp", jump_right),
        ("ArrowRight f", fire),
        ("8", fire_2),
    ):
        for key in keys.split():
            page.keyboard.down(key)
        assert page.evaluate("sentAction") == expected, keys
        for key in keys.split():
            page.keyboard.up(key)
        assert page.evaluate("sentAction") is None
    page.keyboard.down("ArrowRight")
    page.keyboard.down("Space")
    until(page, f"shownAction === {jump_right}")
    page.keyboard.up("Space")
    until(page, f"shownAction === {right}")
    expect(page.locator(".tile").nth(right)).to_have_class(LIT)
    page.keyboard.up("ArrowRight")
    until(page, f"shownAction === {noop}")


def test_where_space_jumps_p_pauses(visit, named, page):
    expect(page.locator("#pause kbd")).to_have_text("Space")
    jumping = visit(named)
    arrived(jumping)
    expect(jumping.locator("#pause kbd")).to_have_text("P")
    jumping.keyboard.press("Space")
    jumping.keyboard.press("p")
    until(jumping, "state.paused")
    page.keyboard.press("Space")
    until(page, "state.paused")


def test_keys_lead_to_different_pictures(still):
    start = pixels(still)
    one = play(still, "222")
    other = play(restart(still), "555")
    assert (start != one[0]).any()
    assert (one[-1] != other[-1]).any()


def test_tiles_are_buttons_with_previews(page):
    expect(page.locator(".tile[data-preview=ready]")).to_have_count(8)
    tile = page.locator(".tile").nth(6)
    tile.hover()
    page.mouse.down()
    expect(tile).to_have_class(LIT)
    until(page, "shownAction === 6")
    page.mouse.up()
    expect(tile).not_to_have_class(LIT)


def test_pause_step_undo_and_reset(page):
    frames_on(page, 3)
    start = pixels(pause(page))
    page.click("#step")
    expect(page.locator("#screen")).to_have_attribute("data-number", "1")
    page.keyboard.press(".")
    expect(page.locator("#screen")).to_have_attribute("data-number", "2")
    page.wait_for_timeout(200)  # four frames, if it were not paused
    assert number(page) == 2
    page.click("#undo")
    expect(page.locator("#screen")).to_have_attribute("data-number", "1")
    page.keyboard.press("Backspace")
    expect(page.locator("#screen")).to_have_attribute("data-number", "0")
    np.testing.assert_array_equal(pixels(page), start)
    page.click("#pause")
    frames_on(page)


def test_start_pictures_are_chosen_and_uploaded_and_dropped_and_pasted(still):
    chosen = still.locator("#starts button")
    chosen.nth(2).click()
    expect(chosen.nth(2)).to_have_class(ON)
    give = """([bytes, kind, target]) => {
        const all = new DataTransfer();
        all.items.add(new File([new Uint8Array(bytes)], "it.png", { type: "image/png" }));
        const what = kind === "drop" ? new DragEvent(kind, { dataTransfer: all, bubbles: true, cancelable: true })
          : new ClipboardEvent(kind, { clipboardData: all, bubbles: true });
        document.body.dispatchEvent(what);
    }"""
    still.set_input_files("#file", {"name": "it.png", "mimeType": "image/png", "buffer": png((250, 10, 20))})
    until_it_shows(still, (250, 10, 20))
    expect(still.locator("#toast")).to_have_text("Playing from your picture.")
    expect(still.locator("#starts button.on")).to_have_count(0)
    for kind, color in (("drop", (10, 220, 30)), ("paste", (0, 30, 240))):
        still.evaluate(give, [list(png(color)), kind])
        until_it_shows(still, color)


def test_a_file_that_is_no_picture_is_refused(page):
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.locator("#toast")).to_contain_text("no picture")
    page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"hello"})
    expect(page.locator("#toast")).to_contain_text("cannot be read as a picture")
    frames_on(page)


def test_a_recording_is_what_was_seen(still):
    still.click("#record")
    expect(still.locator("#record")).to_have_text("Stop recording")
    seen = [pixels(still), *play(still, "25716")]
    still.click("#record")
    for kind in ("mp4", "gif"):
        with still.expect_download() as download:
            still.click(f"#{kind}")
        assert download.value.suggested_filename == f"minigenie.{kind}"
        with av.open(str(download.value.path())) as file:
            frames = [frame.to_ndarray(format="rgb24")[::2, ::2] for frame in file.decode(video=0)]
        assert len(frames) == len(seen)
        for i, frame in enumerate(frames):
            assert np.argmin([np.abs(frame.astype(float) - each).mean() for each in seen]) == i


def test_the_sliders_say_how_frames_are_sampled(still):
    """One careful pass takes the likeliest token of each patch, whatever the seed; a daring one does not."""
    still.locator("#steps").fill("1")
    dreams = {}
    for temperature in ("0", "2"):
        still.locator("#temperature").fill(temperature)
        expect(still.locator("#temperature + output")).to_have_text(temperature)
        for seed in ("1", "2"):
            still.locator("#seed").fill(seed)
            dreams[temperature, seed] = play(restart(still), "33")[-1]
    assert (dreams["0", "1"] == dreams["0", "2"]).all()
    assert (dreams["2", "1"] != dreams["2", "2"]).any()


def test_a_seed_dreams_the_same_again(still):
    def dream(seed):
        still.locator("#seed").fill(seed)
        return play(restart(still), "271")

    still.locator("#temperature").fill("1")  # at 0 every seed dreams alike
    one, other, again = dream("7"), dream("8"), dream("7")
    np.testing.assert_array_equal(one, again)
    assert (one[-1] != other[-1]).any()


def test_two_players_have_a_world_each_and_a_third_is_told_it_is_full(visit, url):
    one, two = visit(url), visit(url)
    for each in (one, two):
        arrived(each)
    pause(one)
    frames_on(two, 3)
    assert number(one) == 0
    three = visit(url)
    expect(three.locator("#notice")).to_contain_text("This world is full")
    assert (pixels(three) == 0).all()


def test_names_and_keys_are_edited_on_the_page(page, visit, url, folder):
    page.click("#keys summary")
    page.locator("[data-name='1']").fill("leap")
    page.locator("[data-key-of='1']").press("j")
    page.click("#save")
    expect(page.locator("#toast")).to_have_text("Saved.")
    assert '"leap"' in (folder / "actions.json").read_text()
    for each in (page, visit(url)):
        tile = each.locator(".tile").nth(1)
        expect(tile).to_contain_text("leap")
        each.locator("h1").click()
        each.keyboard.down("j")
        expect(tile).to_have_class(LIT)


def test_footage_beside_what_is_imagined(page, folder, toy):
    expect(page.locator("#truth-figure")).to_be_hidden()
    page.click("#watch")
    expect(page.locator("#truth-figure")).to_be_visible()
    until(page, "state.clip === 0 && +$('screen').dataset.number > 3")
    clip = footage_clip(World.load(folder, "cpu"), toy, 0)
    page.click("#pause")
    until(page, "state.paused")
    page.wait_for_timeout(300)
    np.testing.assert_array_equal(pixels(page, "truth"), clip.frames[number(page)])
    expect(page.locator(".tile").nth(clip.actions[number(page) - 1])).to_have_class(LIT)
    page.click("#next")
    until(page, "state.clip === 1")
    page.click("#watch")
    expect(page.locator("#truth-figure")).to_be_hidden()


def test_a_phone_shows_it_all_without_scrolling_sideways(visit, url):
    page = visit(url, width=390, height=844, has_touch=True, is_mobile=True)
    expect(page.locator(".tile")).to_have_count(8)
    arrived(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    screen, tiles = (page.locator(f"#{name}").bounding_box() for name in ("screen", "tiles"))
    assert screen["width"] > 340
    assert tiles["y"] + tiles["height"] < 844, "the tiles are below the fold"


def test_a_tile_is_held_with_a_finger(visit, url):
    page = visit(url, width=390, height=844, has_touch=True, is_mobile=True)
    arrived(page)
    action = page.evaluate("noop === 3 ? 2 : 3")  # the idle one stays lit
    tile, finger = page.locator(".tile").nth(action), page.context.new_cdp_session(page)
    box = tile.bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    expect(tile).to_have_class(LIT)
    until(page, f"shownAction === {action}")
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(tile).not_to_have_class(LIT)


def test_a_gamepad_plays(page):
    page.evaluate("""
        window.pad = { axes: [0, 0], buttons: [...Array(16)].map(() => ({ pressed: false })) };
        navigator.getGamepads = () => [null, pad];
    """)
    action = page.evaluate("noop === 3 ? 2 : 3")  # the idle one stays lit
    tile = page.locator(".tile").nth(action)
    page.evaluate(f"pad.buttons[{action}].pressed = true")
    expect(tile).to_have_class(LIT)
    until(page, f"shownAction === {action}")
    page.evaluate(f"pad.buttons[{action}].pressed = false")
    expect(tile).not_to_have_class(LIT)
    until(page, "actions.every(entry => entry.motion)")  # what is measured is told to the page anew
    page.evaluate("actions.forEach((entry, a) => { entry.key = a === 5 ? 'ArrowLeft' : ''; }); pad.axes[0] = -1")
    expect(page.locator(".tile").nth(5)).to_have_class(LIT)


def test_a_world_without_prompts_asks_for_a_picture(visit, folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("prompts"))
    with serving(bare) as url:
        page = visit(url)
        expect(page.locator("#notice")).to_contain_text("Give this world a picture")
        page.set_input_files("#file", {"name": "it.png", "mimeType": "image/png", "buffer": png((9, 99, 200))})
        arrived(page)
        frames_on(page)
        page.close()


def test_the_bench_of_the_browser_is_a_command(tmp_path):
    script = Path(__file__).parent.parent / "runs/bench_browser.py"
    ended = subprocess.run([sys.executable, script, tmp_path / "no"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: .*is not a world.*\n", ended.stderr)


def test_the_bench_plays_in_a_browser_of_its_own(browser, folder):
    with ThreadPoolExecutor(1) as thread:  # Playwright has one session a thread
        found = thread.submit(measure_browser, folder, seconds=0.5, presses=2, frames=8).result()
    assert len(found.press_ms) == 2
    assert found.frames_per_s > 0
    assert found.most_frames_per_s * found.cpu_s < 1.5 * os.cpu_count()  # a second has no more CPU seconds than that
    assert 50e6 < found.memory[0] < 5e9


def test_what_the_bench_lacks_is_named(folder, tmp_path, monkeypatch):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("prompts"))
    with pytest.raises(ValueError, match="has no pictures in prompts/"):
        measure_browser(bare)
    with pytest.raises(ValueError, match="frames is 1; play at least 2"):
        measure_browser(folder, frames=1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="no Chromium is installed; apt-get install chromium"):
        bench_browser._find("/nowhere/chrome")
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(ValueError, match="pip install playwright"), chromium():
        pass


def test_the_readme_s_gif_is_the_page_being_played(browser, folder, tmp_path):
    script = Path(__file__).parent.parent / "runs/readme_gif.py"
    command = [sys.executable, script, folder, tmp_path / "play.gif", "--script", "2x2/3x1"]
    assert "3 frames of 720x" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with Image.open(tmp_path / "play.gif") as gif:
        seen = [np.asarray(frame.convert("RGB"))[:, :384] for frame in ImageSequence.Iterator(gif)]
    assert (seen[0] != seen[1]).any()
    assert (seen[1] != seen[2]).any()


@pytest.mark.parametrize(
    ("key", "code", "wanted"),
    [
        ("ц", "KeyW", "ArrowUp"),  # Cyrillic: by its place
        ("z", "KeyW", "ArrowUp"),  # AZERTY, whose Z is where W is elsewhere
        ("q", "KeyA", "ArrowLeft"),
        ("&", "Digit1", "1"),
        ("d", "KeyD", "ArrowRight"),
        ("к", "KeyR", "r"),
        ("f", "KeyU", "f"),  # a letter that an action is on counts wherever it is
        ("r", "KeyF", "r"),  # and so does a command's
    ],
)
def test_any_keyboard_plays(visit, named, key, code, wanted):
    page = visit(named)
    arrived(page)
    assert page.evaluate("event => named(event)", {"key": key, "code": code}) == wanted


def test_keys_are_shown_as_ones_own_keyboard_has_them(visit, named):
    page = visit(named)
    arrived(page)
    page.evaluate("layout = new Map([['KeyW', 'z'], ['KeyA', 'q'], ['KeyD', 'd']]); drawTiles()")
    expect(page.locator("#legend")).to_contain_text("Z Q D")


def test_it_begins_anew_where_it_is_over(ending_world, visit):
    with serving(ending_world) as url:
        page = visit(url)
        arrived(page)
        begins_anew_where_it_is_over(page)


def test_the_border_warms_where_the_world_guesses(still):
    """A world of a few steps of training guesses all the time; a start picture is sure."""
    doubt = "+$('screen').style.getPropertyValue('--doubt')"
    assert still.evaluate(doubt) == 0
    play(still, "1")
    assert still.evaluate(doubt) > 0
    assert 0 < float(still.locator("#screen").get_attribute("data-certainty")) < 0.85
