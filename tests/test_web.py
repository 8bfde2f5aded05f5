"""A world as static files, in a real browser: the same frames as from Python, and all that the page has."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from bench_browser import QuietHandler, measure_site
from conftest import small_recipe
from PIL import Image
from playwright.sync_api import expect
from test_browser import arrived, begins_anew_where_it_is_over, frames_on, pause, pixels, play, until

from minigenie.__main__ import main
from minigenie.ending import EndingConfig
from minigenie.maskgit import SamplingConfig
from minigenie.pipeline import train_world
from minigenie.web.export import VERSION, Weights
from minigenie.web.graphs import Commit
from minigenie.world import SHIPPED, World, read_prompt


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The npm package that the page computes with."""
    folder = tmp_path_factory.mktemp("runtime")
    command = ["npm", "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, timeout=300)
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder)
    return folder / "package"


def export(*args):
    """In a process of its own, where no shapes are checked: that cannot be exported."""
    subprocess.run([sys.executable, "-m", "minigenie", "export", *map(str, args)], check=True, timeout=300)


@pytest.fixture(scope="module")
def site(trained, runtime, tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "toy"
    export(trained, "--out", out, "--web", "--runtime", runtime)
    return out


@pytest.fixture(scope="module")
def serve():
    """Addresses of folders, as any web server has them."""
    servers = []

    def serve(folder):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/?provider=wasm"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def share_alike(one, other, within=2):
    return float((np.abs(one.astype(int) - other.astype(int)) <= within).mean())


def test_the_shipped_world_is_the_same_in_the_browser(runtime, serve, visit, tmp_path):
    """32 frames at temperature 0, from its first picture: within 2 of 255 for 99 % of the pixels."""
    export("coinrun", "--out", tmp_path / "site", "--web", "--runtime", runtime)
    world = World.load("coinrun", "cpu")
    steps = world.config.sampling.steps
    world = world.fresh_copy(SamplingConfig(steps=steps, temperature=0.0))
    actions = [2, 2, 2, 5, 5, 5, 5, 2] * 4
    start = read_prompt(SHIPPED / "coinrun/prompts/00.png", world.frame_shape)
    wanted = world.rollout(start, torch.tensor([actions]))[0].numpy()
    began = time.monotonic()
    page = visit(serve(tmp_path / "site"))
    arrived(page)
    print(f"first frame after {time.monotonic() - began:.1f} s")
    page.evaluate(f"send('sampling', {{ temperature: 0, steps: {steps} }})")
    until(page, "state.temperature === 0")
    pause(page)
    seen = play(page, [str(action + 1) for action in actions])
    assert min(share_alike(mine, its) for mine, its in zip(seen, wanted, strict=True)) >= 0.99
    sizes = [sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and "runtime" not in each.parts)
             for folder in (tmp_path / "site", SHIPPED / "coinrun")]  # fmt: skip
    assert sizes[0] <= 2 * sizes[1]


@pytest.fixture
def page(site, serve, visit):
    page = visit(serve(site))
    arrived(page)
    return page


def test_playing_pausing_and_undoing(page):
    frames_on(page, 3)
    pause(page)
    seen = play(page, "1231")
    expect(page.locator("#screen")).to_have_attribute("data-number", "4")
    page.keyboard.press("Backspace")
    expect(page.locator("#screen")).to_have_attribute("data-number", "3")
    np.testing.assert_array_equal(pixels(page), seen[2])
    page.keyboard.press("r")
    expect(page.locator("#screen")).to_have_attribute("data-number", "0")
    for mine, its in zip(play(page, "1231"), seen, strict=True):  # the seed is the same
        np.testing.assert_array_equal(mine, its)


def test_another_seed_is_another_future(page):
    page.evaluate("send('sampling', { temperature: 1.5, steps: 2 })")
    pause(page)
    first = play(page, "111")
    page.fill("#seed", "7")
    page.keyboard.press("Tab")
    until(page, "state.seed === 7 && $('screen').dataset.number === '0'")
    page.evaluate("document.activeElement.blur()")
    assert any(not np.array_equal(mine, its) for mine, its in zip(play(page, "111"), first, strict=True))


def test_start_pictures_previews_and_ones_own_picture(page, tmp_path):
    until(page, "previews.size === actions.length")
    page.locator("#starts button").nth(1).click()
    until(page, "state.start === 1")
    pause(page)
    Image.new("RGB", (200, 100), (250, 10, 10)).save(tmp_path / "red.png")
    page.set_input_files("#file", tmp_path / "red.png")
    until(page, "state.start === null && $('screen').dataset.number === '0'")
    assert (np.abs(pixels(page).astype(int) - [250, 10, 10]) <= 1).all()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "broken.png")
    expect(page.locator("#toast")).to_contain_text("cannot be read as a picture")


def test_recording(page):
    page.click("#record")
    expect(page.locator("#record")).to_have_text("Stop recording")
    frames_on(page, 5)
    page.click("#record")
    expect(page.locator("#recordings a")).to_have_text("webm")
    with page.expect_download() as download:
        page.click("#recordings a")
    assert download.value.path().stat().st_size > 1000


def test_names_are_kept_in_this_browser(page):
    page.click("#keys summary")
    page.fill('[data-name="0"]', "fly")
    page.click("#save")
    expect(page.locator(".tile .name").first).to_have_text("fly")
    page.reload()
    arrived(page)
    expect(page.locator(".tile .name").first).to_have_text("fly")


def test_any_server_lets_it_compute_on_several_threads(page, site, serve, browser, tmp_path):
    """Without the file that sees to that it plays all the same."""
    assert page.evaluate("crossOriginIsolated")
    copy = shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("isolate.js"))
    page = browser.new_page()
    page.goto(serve(copy))
    arrived(page)
    frames_on(page)
    assert not page.evaluate("crossOriginIsolated")


def test_a_world_without_a_camera(toy, runtime, serve, visit, tmp_path):
    """It has three graphs instead of four. This one knows no ends, only when it is lost."""
    recipe = small_recipe()
    recipe = replace(recipe, dynamics=replace(recipe.dynamics, motions=0), ending=EndingConfig(lost=8))
    recipe = replace(recipe, ending_fit=replace(recipe.ending_fit, steps=2, batch_size=8))
    train_world(toy, recipe, tmp_path / "world", device=torch.device("cpu"))
    export(tmp_path / "world", "--out", tmp_path / "site", "--web", "--runtime", runtime)
    assert json.loads((tmp_path / "site/world.json").read_bytes())["graphs"] == ["begin", "fill", "commit"]
    arrived(visit(serve(tmp_path / "site")))


def test_it_begins_anew_where_it_is_over(ending_world, runtime, serve, visit, tmp_path):
    export(ending_world, "--out", tmp_path / "site", "--web", "--runtime", runtime)
    page = visit(serve(tmp_path / "site"))
    arrived(page)
    begins_anew_where_it_is_over(page)


def test_a_page_is_told_what_the_world_knows(ending_world, toy):
    world = World.load(ending_world, "cpu")
    told = []
    for frames in toy.clips(toy.windows(2)[::40], 1):
        past = world.encode_past(torch.from_numpy(frames[None]))
        commit, given = Commit(world, past), world.next_given(torch.tensor([1]), past.history, past.frame, past.mosaic)
        tokens = world.tokenizer.encode(torch.from_numpy(frames[None]) / 255)[:, 0]
        given = [each for each in given if each is not None]
        frame, over, *state = commit(given, tokens, torch.tensor([0.5]), commit.flat(past))
        assert frame.shape == world.frame_shape
        assert len(state) == len(commit.flat(past))
        known = world.ending.tell(torch.stack((past.tokens[:, -1], tokens), dim=1))
        assert int(over) == int(known.over) + int(known.won)
        told.append(int(over))
    assert len(set(told)) > 1


def test_a_folder_that_is_not_whole_says_so(site, serve, browser, tmp_path):
    copy = shutil.copytree(site, tmp_path / "copy")
    (copy / "weights.bin").unlink()
    page = browser.new_page()
    page.goto(serve(copy))
    expect(page.locator("#notice")).to_have_text(re.compile("cannot be loaded: weights.bin is not there"))


def test_a_runtime_that_was_tampered_with_is_not_run(site, serve, browser, tmp_path):
    copy = shutil.copytree(site, tmp_path / "copy")
    with open(copy / "runtime/ort.wasm.bundle.min.mjs", "a") as file:
        file.write("\n")
    page = browser.new_page()
    page.goto(serve(copy))
    expect(page.locator("#notice")).to_have_text(re.compile("engine cannot be fetched from .*--runtime"))


def test_what_cannot_be_exported(trained, runtime, tmp_path, monkeypatch, capsys):
    def refused(*args):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(trained), *map(str, args)])
        return capsys.readouterr().err

    (tmp_path / "there").mkdir()
    assert "exists; delete it, or choose a new folder" in refused("--out", tmp_path / "there", "--web")
    assert "give the folder of the npm package" in refused("--out", tmp_path / "new", "--web", "--runtime", tmp_path)
    assert "leave out --unfinished" in refused("--out", tmp_path / "new", "--web", "--unfinished")
    assert "--runtime is for --web" in refused("--out", tmp_path / "new", "--runtime", runtime)
    monkeypatch.setattr("minigenie.web.export.MOST_PARAMETERS", 1000)
    assert "million parameters, more than" in refused("--out", tmp_path / "new", "--web")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_benchmark_of_a_page(site):
    with ThreadPoolExecutor() as thread:  # playwright's loop is not for a thread that has one
        lines = thread.submit(measure_site, site, frames=4, presses=2).result()
    assert [line.split()[0] for line in lines] == ["size", "first", "browser", "key"]


def test_constants_are_kept_once_and_as_short_as_can_be():
    """Those that bfloat16 holds take two bytes, all are what they were, and each graph finds them."""
    short, long = np.arange(1000, dtype=np.float32).clip(max=255), np.linspace(0, 1, 1000, dtype=np.float32)
    weights, numbers = Weights(), np.arange(1000)
    graphs = []
    for constants in ({"a": short, "b": long}, {"c": long, "d": numbers, "e": short}):
        tensors = [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()]
        model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], tensors))
        graphs.append(onnx.load_from_string(weights.externalised(model)))
    wide = np.frombuffer(weights.files["weights.bf16"], np.uint16).astype(np.uint32) << 16
    files = {"weights.bf16": wide.tobytes(), "weights.bin": bytes(weights.files["weights.bin"])}
    for graph, values in zip(graphs, ({"a": short, "b": long}, {"c": long, "d": numbers, "e": short}), strict=True):
        for each in graph.graph.initializer:
            place = {entry.key: entry.value for entry in each.external_data}
            first, length = int(place["offset"]), int(place["length"])
            found = files[place["location"]][first : first + length]
            np.testing.assert_array_equal(np.frombuffer(found, values[each.name].dtype), values[each.name])
    assert len(files["weights.bf16"]) == 4000
    assert 12_000 <= len(files["weights.bin"]) < 12_064
