"""The real page in a real browser, against a real server."""

import asyncio
import contextlib
import io
import os
import re
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

from minigenie.play.room import Room  # noqa: E402
from minigenie.play.server import listen, make_app, make_server  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]

if CHROMIUM is None and "CI" not in os.environ:
    pytest.skip("no chromium on this machine: apt-get install chromium", allow_module_level=True)


@contextlib.contextmanager
def serving(folder, **options):
    options = {"device": "cpu", "fps": 20, "max_players": 2, "seed": 0, "footage": None, **options}
    with listen("127.0.0.1", 0) as listening:
        server = make_server(make_app(Room(folder, **options)))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
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
def chromium():
    with sync_api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", *QUIET]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open the page as somebody else each time. No error may reach the browser's console."""
    contexts, complaints = [], []

    def visit(url, width=1280, height=800, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(visit, url):
    page = visit(url)
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#screen")).to_have_attribute("data-number", re.compile("."))
    return page


def pixels(page) -> np.ndarray:
    """What is on the screen, pixel for pixel."""
    data = page.evaluate("[...document.getElementById('screen').getContext('2d').getImageData(0, 0, 64, 64).data]")
    return np.array(data, np.uint8).reshape(64, 64, 4)[..., :3]


def number(page) -> int:
    return int(page.locator("#screen").get_attribute("data-number") or -1)


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def pause(page):
    page.click("#pause")
    expect(page.locator("#pause")).to_have_text(re.compile("Play"))
    seen = -2
    while seen != (seen := number(page)):  # a frame was in flight
        page.wait_for_timeout(400)


def frames_on(page, count=2):
    begin = number(page)
    until(lambda: number(page) >= begin + count)


def test_keys_change_the_picture_and_light_their_tile(page):
    tile = page.locator(".tile").nth(4)
    page.keyboard.down("5")
    expect(tile).to_have_class(re.compile("lit"))
    frames_on(page, 3)
    page.keyboard.up("5")
    expect(tile).not_to_have_class(re.compile("lit"))
    pause(page)
    before = pixels(page)
    page.keyboard.press("3")  # paused, a key is one step
    until(lambda: (pixels(page) != before).any())


def test_different_keys_lead_to_different_pictures(page):
    pause(page)
    seen = []
    for key in "25":
        page.keyboard.press("r")
        expect(page.locator("#screen")).to_have_attribute("data-number", "0")
        for step in "123":
            page.keyboard.press(key)
            expect(page.locator("#screen")).to_have_attribute("data-number", step)
        seen.append(pixels(page))
    assert (seen[0] != seen[1]).any()


def test_tiles_are_buttons_with_previews(page):
    expect(page.locator(".tile[data-preview=ready]")).to_have_count(8, timeout=30_000)
    tile = page.locator(".tile").nth(6)
    tile.hover()
    page.mouse.down()
    expect(tile).to_have_class(re.compile("lit"))
    page.mouse.up()
    expect(tile).not_to_have_class(re.compile("lit"))


def test_reset_undo_and_step(page):
    pause(page)
    page.click("#reset")
    expect(page.locator("#screen")).to_have_attribute("data-number", "0")
    start = pixels(page)
    page.click("#step")
    expect(page.locator("#screen")).to_have_attribute("data-number", "1")
    page.keyboard.press(".")
    expect(page.locator("#screen")).to_have_attribute("data-number", "2")
    page.click("#undo")
    expect(page.locator("#screen")).to_have_attribute("data-number", "1")
    page.keyboard.press("Backspace")
    expect(page.locator("#screen")).to_have_attribute("data-number", "0")
    np.testing.assert_array_equal(pixels(page), start)


def test_start_pictures_and_uploads(page):
    pause(page)
    page.locator("#starts button").nth(2).click()
    expect(page.locator("#starts button").nth(2)).to_have_class(re.compile("on"))
    expect(page.locator("#screen")).to_have_attribute("data-number", "0")
    red = io.BytesIO()
    Image.new("RGB", (300, 200), (250, 10, 20)).save(red, "PNG")
    page.set_input_files("#file", {"name": "red.png", "mimeType": "image/png", "buffer": red.getvalue()})
    expect(page.locator("#toast")).to_have_text("Playing from your picture.")
    expect(page.locator("#starts button.on")).to_have_count(0)
    until(lambda: (pixels(page) == [250, 10, 20]).all())


def test_a_file_that_is_no_picture_is_refused(visit, url):
    page = visit(url)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.locator("#toast")).to_contain_text("no picture")
    frames_on(page)


def test_recording_downloads(page):
    page.click("#record")
    expect(page.locator("#record")).to_have_text("Stop recording")
    frames_on(page, 5)
    page.click("#record")
    for kind in ("mp4", "gif"):
        with page.expect_download() as download:
            page.click(f"#{kind}")
        assert download.value.suggested_filename == f"minigenie.{kind}"
        assert download.value.path().stat().st_size > 200


def test_sliders_and_seed(page):
    page.evaluate("steps.value = 2; steps.dispatchEvent(new Event('input')); steps.dispatchEvent(new Event('change'))")
    page.locator("#temperature").fill("0.2")
    expect(page.locator("#temperature + output")).to_have_text("0.2")
    page.locator("#seed").fill("7")
    page.locator("#seed").press("Enter")
    page.locator("#seed").blur()
    page.click("#reset")
    until(lambda: page.evaluate("[state.steps, state.temperature, state.seed]") == [2, 0.2, 7])


def test_two_players_have_a_world_each_and_a_third_is_told_it_is_full(visit, url):
    one, two = visit(url), visit(url)
    for page in (one, two):
        expect(page.locator("#screen")).to_have_attribute("data-number", re.compile("."))
    pause(one)
    still = number(one)
    frames_on(two, 3)
    assert number(one) == still
    three = visit(url)
    expect(three.locator("#notice")).to_contain_text("This world is full")
    assert (pixels(three) == 0).all()


def test_names_and_keys_are_edited_on_the_page(page, folder):
    page.click("#keys summary")
    page.locator("[data-name='1']").fill("leap")
    page.locator("[data-key-of='1']").press("j")
    page.click("#save")
    expect(page.locator("#toast")).to_have_text("Saved.")
    expect(page.locator(".tile").nth(1)).to_contain_text("leap")
    assert '"leap"' in (folder / "actions.json").read_text()
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.down("j")
    expect(page.locator(".tile").nth(1)).to_have_class(re.compile("lit"))
    page.keyboard.up("j")


def test_footage_beside_what_is_imagined(page):
    expect(page.locator("#truth-figure")).to_be_hidden()
    page.click("#watch")
    expect(page.locator("#truth-figure")).to_be_visible()
    frames_on(page, 2)
    page.click("#next")
    page.click("#watch")
    expect(page.locator("#truth-figure")).to_be_hidden()


def test_a_phone_shows_it_all_without_scrolling_sideways(visit, url):
    page = visit(url, width=375, height=812, has_touch=True, is_mobile=True)
    expect(page.locator(".tile")).to_have_count(8)
    frames_on(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    boxes = [page.locator(f"#{name}").bounding_box() for name in ("screen", "tiles")]
    assert boxes[0]["width"] > 330
    assert boxes[1]["y"] + boxes[1]["height"] < 812, "the tiles are below the fold"
    tile = page.locator(".tile").nth(2)
    tile.dispatch_event("pointerdown", {"pointerId": 1, "pointerType": "touch"})
    expect(tile).to_have_class(re.compile("lit"))


def test_a_world_without_prompts_asks_for_a_picture(visit, folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("prompts"))
    with serving(bare) as url:
        page = visit(url)
        expect(page.locator("#notice")).to_contain_text("Give this world a picture")
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), (9, 99, 200)).save(picture, "PNG")
        page.set_input_files("#file", {"name": "blue.png", "mimeType": "image/png", "buffer": picture.getvalue()})
        expect(page.locator("#notice")).to_be_hidden()
        frames_on(page)
        page.close()
