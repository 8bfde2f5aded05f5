"""Labels by hand: what the server keeps and refuses, and the page in a real browser."""

import asyncio
import contextlib
import io
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from starlette.testclient import TestClient
from test_browser import until
from test_cli import fails

from minigenie.data.dataset import Dataset, DatasetWriter, Episode
from minigenie.data.labels import FILE, Labels, read_labels, recorded_labels, write_labels
from minigenie.play.server import listen, make_server
from minigenie.teach import session as session_module
from minigenie.teach.server import make_app
from minigenie.teach.session import COLUMNS, Session, clips_of, keys_of, quick_agreement

HOST = "http://127.0.0.1:8000"
expect.set_options(timeout=30_000)
LIT = re.compile(r"\blit\b")


@pytest.fixture
def data(toy, tmp_path):
    return Dataset.open(shutil.copytree(toy.folder, tmp_path / "data"))


@pytest.fixture
def session(data):
    return Session(data)


@pytest.fixture
def client(session):
    with TestClient(make_app(session), base_url=HOST, headers={"origin": HOST}) as client:
        yield client


def held(session, number, name):
    """Labels as the page sends them: the first few frames have none."""
    length = len(session.clips[number])
    return [None] * session.lead + [name] * (length - 1 - session.lead)


def post(client, path, **content):
    answer = client.post(path, json=content)
    return answer.status_code, answer.json()


def refused(client, path, **content) -> str:
    status, answer = post(client, path, **content)
    assert status == 400
    assert "\n" not in answer["error"]
    return answer["error"]


def test_clips_cover_the_footage_once_in_an_order_of_the_seed(toy):
    clips = clips_of(toy, 0)
    frames = [frame for clip in clips for frame in clip]
    assert len(set(frames)) == len(frames) > 0.8 * toy.num_frames
    assert {(clip.start in toy.windows(len(clip))) for clip in clips} == {True}
    assert clips == clips_of(toy, 0) != clips_of(toy, 1)
    assert set(clips) == set(clips_of(toy, 1))


def test_footage_in_takes_too_short_for_a_clip(tmp_path):
    about = {"frame_size": (8, 8), "fps": 10, "source": "x", "generator": "x", "split": "train", "settings": {}}
    writer = DatasetWriter(tmp_path / "short", **about)
    writer.write(0, np.zeros((22, 8, 8, 3), np.uint8), [Episode(0, 0, 11), Episode(0, 11, 11)])
    with pytest.raises(ValueError, match="has no take of 12 frames"):
        Session(writer.close())


def test_the_picture_of_a_clip_is_its_frames(client, session):
    given = client.post("/next", json={}).json()
    picture = np.asarray(Image.open(io.BytesIO(client.get(f"/clip/{given['clip']}.png").content)))
    frames = session.dataset.clips(np.array([session.clips[given["clip"]].start]), given["frames"])[0]
    for i, frame in enumerate(frames):
        y, x = 64 * (i // COLUMNS), 64 * (i % COLUMNS)
        np.testing.assert_array_equal(picture[y : y + 64, x : x + 64], frame)
    assert client.get("/clip/9999.png").status_code == 404


def test_labels_are_saved_and_counted_and_taken_back(client, session, data):
    number, first = session.next_clip(), session.clips[0].start
    status, state = post(client, "/labels", clip=number, labels=held(session, number, "right"))
    assert status == 200
    expected = list(range(first + session.lead, first + len(session.clips[number]) - 1))
    saved = read_labels(data)
    assert saved.frames.tolist() == expected
    assert set(saved.controls.tolist()) == {saved.names.index("right")}
    assert {each["name"]: each["count"] for each in state["controls"]}["right"] == len(expected)
    post(client, "/labels", clip=number, labels=held(session, number, "left"))  # once more is in place of the first
    assert read_labels(data).counts["left"] == len(expected) == len(session.labels)
    assert post(client, "/undo", clip=number)[1]["labels"] == 0
    assert len(read_labels(data).frames) == 0
    assert "nothing to undo" in refused(client, "/undo", clip=number)


def test_a_later_session_goes_on_with_clips_that_have_no_labels(session, data):
    for _ in range(3):
        number = session.next_clip()
        session.save(number, held(session, number, "right"))
    skipped = session.next_clip()
    later = Session(data)
    assert later.labels == session.labels
    assert later.next_clip() == skipped == 3


def test_after_the_last_clip_come_those_left_out_until_all_have_labels(session):
    session.next_clip()
    while (number := session.next_clip()) != 0:
        session.save(number, held(session, number, "noop"))
    session.save(0, held(session, 0, "noop"))
    assert session.next_clip() is None
    assert session.describe_clip(None) == {"clip": None, "frames": None}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"clip": 0},
        {"clip": -1, "labels": []},
        {"clip": 10**9, "labels": []},
        {"clip": "0", "labels": []},
        {"clip": True, "labels": []},
        {"clip": 0, "labels": {}},
        {"clip": 0, "labels": ["noop"]},
        {"clip": 0, "labels": ["noop"] * 500},
        {"clip": 0, "labels": ["fly"] * 31},
        {"clip": 0, "labels": [6] * 31},
        {"clip": 0, "labels": [["noop"]] * 31},
    ],
)
def test_labels_that_make_no_sense_change_nothing(client, session, data, content):
    session.save(1, held(session, 1, "jump"))
    before = (data.folder / FILE).read_bytes()
    assert refused(client, "/labels", **content).startswith("nothing is changed: ")
    assert (data.folder / FILE).read_bytes() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000, b'{"clip":' + b" " * 70_000])
@pytest.mark.parametrize("path", ["/labels", "/undo", "/controls"])
def test_a_request_that_is_no_object(client, data, path, body):
    assert client.post(path, content=body).status_code == 400
    assert not (data.folder / FILE).exists()


def test_another_site_s_page_is_refused(session):
    with TestClient(make_app(session), base_url=HOST) as client:
        assert client.post("/next", json={}).status_code == 403
        assert client.get("/state", headers={"origin": "http://evil.example"}).status_code == 403
    with TestClient(make_app(session, "0.0.0.0", "secret"), base_url=HOST) as client:
        assert client.get("/state").status_code == 403
        assert client.get("/state?token=secret").status_code == 200


def test_two_pages_at_once_lose_no_labels(client, session, data):
    def label(_):
        number = session.next_clip()
        assert post(client, "/labels", clip=number, labels=held(session, number, "jump"))[0] == 200
        return number

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(label, range(12)))
    assert len(set(numbers)) == 12
    expected = sum(len(session.clips[number]) - 1 - session.lead for number in numbers)
    assert len(read_labels(data).frames) == expected


def test_a_file_that_somebody_edits_meanwhile_is_not_overwritten(client, session, data):
    post(client, "/labels", clip=0, labels=held(session, 0, "left"))
    write_labels(data.folder, session.names, {0: 1})
    assert "changed by something else" in refused(client, "/labels", clip=1, labels=held(session, 1, "left"))
    assert read_labels(data).frames.tolist() == [0]


def test_a_full_disk_loses_nothing(client, session, data, monkeypatch):
    post(client, "/labels", clip=0, labels=held(session, 0, "left"))
    before = client.get("/state").json()

    def full(*_):
        raise OSError(28, "cannot write: no space")

    monkeypatch.setattr(session_module, "write_labels", full)
    assert post(client, "/labels", clip=1, labels=held(session, 1, "left"))[0] == 500
    assert post(client, "/controls", controls=[{"name": "a", "was": "left"}, {"name": "b"}])[0] == 500
    assert client.get("/state").json() == before


def test_renaming_keeps_labels_and_what_has_some_stays(client, session, data):
    post(client, "/labels", clip=0, labels=held(session, 0, "left"))
    count = len(session.labels)
    renamed = [{"name": "brake", "was": None}, {"name": "west", "was": "left"}, {"name": "noop", "was": "noop"}]
    status, state = post(client, "/controls", controls=renamed)
    assert status == 200
    assert [each["name"] for each in state["controls"]] == ["brake", "west", "noop"]
    assert read_labels(data).counts == {"brake": 0, "west": count, "noop": 0}
    swapped = [{"name": "brake", "was": "west"}, {"name": "west", "was": "brake"}]
    post(client, "/controls", controls=swapped)
    assert read_labels(data).counts == {"brake": count, "west": 0}
    without = [{"name": "west", "was": "west"}, {"name": "noop", "was": None}]
    assert f"'brake' has {count} labels and cannot be left out" in refused(client, "/controls", controls=without)
    stale = [{"name": "left", "was": "left"}, {"name": "noop", "was": None}]
    assert "no control 'left' any more" in refused(client, "/controls", controls=stale)
    for wrong in (None, [], [1], [{}, {}], [{"name": "up"}], [{"name": "up"}, {"name": "up"}], [{"name": ""}] * 2):
        refused(client, "/controls", controls=wrong)
    assert read_labels(data).counts == {"brake": count, "west": 0}


def test_controls_have_the_keys_that_their_names_say():
    toy = ("noop", "left", "right", "jump", "jump-left", "jump-right")
    left, right, up = "ArrowLeft", "ArrowRight", "ArrowUp"
    assert keys_of(toy) == [[], [left], [right], [up], [up, left], [up, right]]
    assert keys_of(("brake", "left-brake", "blink", "key 4", "fire", "fire-2")) == [
        ["b"], [left, "b"], ["l"], ["4"], ["f"], ["2"]
    ]  # fmt: skip
    many = [tuple(keys) for keys in keys_of(tuple(f"é{i}" for i in range(64)))]
    assert len(set(many)) == 64


def test_controls_come_from_the_command_the_labels_the_recording_or_the_page(data, tmp_path):
    assert Session(data).names[:2] == ("noop", "left")
    assert Session(data, "stay, go").names == ("stay", "go")
    write_labels(data.folder, ("a", "b"), {0: 1})
    assert Session(data).names == ("a", "b")
    reordered = Session(data, "c,b")
    assert (reordered.names, reordered.labels) == (("c", "b"), {0: 1})
    (data.folder / FILE).unlink()
    data.has_actions = False
    assert Session(data).names == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controls", "left,left"], "the same name"),
        (["--controls", "left"], "the only control; give at least two"),
        (["--controls", ",".join(map(str, range(65)))], "1 to 64 names"),
        (["--controls", "left,,right"], "1 to 64 names"),
        (["--controls", ""], "1 to 64 names"),
        (["--port", "70000"], "port is 70000"),
    ],
)
def test_options_that_cannot_be(data, capsys, options, message):
    assert message in fails(capsys, "teach", data.folder, "--no-open", "--port", 0, *options)
    assert not (data.folder / FILE).exists()


def test_datasets_that_cannot_be_labelled(data, bucket, tmp_path, capsys):
    options = ("--no-open", "--port", 0)
    assert "is not a dataset" in fails(capsys, "teach", tmp_path / "no", *options)
    assert "labels cannot be written to s3://" in fails(capsys, "teach", f"{bucket}/toy", *options)
    write_labels(data.folder, ("jump", "noop"), {0: 0})
    assert "'jump' has 1 labels and cannot" in fails(capsys, "teach", data.folder, "--controls", "noop,left", *options)
    (data.folder / FILE).write_text("{")
    assert FILE in fails(capsys, "teach", data.folder, *options)


def test_true_labels_agree_more_than_those_of_chance(toy, monkeypatch):
    monkeypatch.setattr("minigenie.teach.session.STEPS", 40)
    labels = recorded_labels(toy, 600, seed=0)
    true = quick_agreement(toy, labels)
    assert true == quick_agreement(toy, labels)
    assert true.labels == 600
    assert true.commonest == pytest.approx(np.bincount(labels.controls).max() / 600)
    shuffled = labels._replace(controls=np.random.default_rng(0).permutation(labels.controls))
    assert true.accuracy > quick_agreement(toy, shuffled).accuracy + 0.1
    with pytest.raises(ValueError, match="one clip"):
        quick_agreement(toy, Labels(labels.names, np.arange(8), np.arange(8) % 2))


def test_the_classifier_is_asked_at_every_hundred_labels(client, session, monkeypatch):
    monkeypatch.setattr("minigenie.teach.session.STEPS", 4)
    state = {"judging": False, "agreement": None}
    while len(session.labels) < 100:
        assert not state["judging"]
        number = session.next_clip()
        given = held(session, number, "right")
        given[-8:] = ["noop"] * 8
        state = post(client, "/labels", clip=number, labels=given)[1]
    for _ in range(600):
        if (state := client.get("/state").json())["agreement"]:
            break
        time.sleep(0.1)
    assert state["agreement"]["labels"] == len(session.labels)
    assert 0 <= state["agreement"]["accuracy"] <= 1
    assert session.labels_to_check() is None


# The page, in a real browser.


@contextlib.contextmanager
def serving(session):
    with listen("127.0.0.1", 0) as listening:
        server = make_server(make_app(session))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def page(session, visit):
    with serving(session) as url:
        yield visit(url)


def begin(page):
    expect(page.locator("#go")).to_contain_text("Begin")
    page.keyboard.press("Enter")
    expect(page.locator("#badge")).to_have_text("● listening")


def looked_over(page):
    expect(page.locator("#badge")).to_have_text("your labels")
    page.wait_for_timeout(500)  # a command that comes at once is a key that was still being held


def test_a_held_key_labels_the_clip_and_may_be_undone(page, session, data):
    begin(page)
    page.keyboard.down("ArrowRight")
    expect(page.locator("[data-control=right].tile")).to_have_class(LIT)
    looked_over(page)
    page.keyboard.up("ArrowRight")
    clip = session.clips[0]
    shown = page.evaluate("cells.map(cell => cell.dataset.control)")
    assert shown[: session.lead] == [""] * session.lead
    assert shown[-15:] == ["right"] * 15
    assert not (data.folder / FILE).exists()
    page.keyboard.press("Enter")
    expect(page.locator("#total")).to_have_text(f"{len(clip) - 1 - session.lead} labels")
    saved = read_labels(data)
    assert [saved.names[control] for control in saved.controls] == shown[session.lead :]
    assert saved.frames[-1] == clip[-2]
    until(page, "clip.number === 1")
    looked_over(page)  # the second clip, in which nothing was held
    for _ in range(200):  # until its labels are drawn
        if "noop" in (drawn := set(page.evaluate("cells.map(cell => cell.dataset.control)"))):
            break
        page.wait_for_timeout(50)
    assert drawn == {"", "noop"}
    page.keyboard.press("u")
    expect(page.locator("#total")).to_have_text("0 labels")
    assert page.evaluate("clip.number") == 0
    assert len(read_labels(data).frames) == 0
    looked_over(page)
    page.keyboard.press("s")
    expect(page.locator("#badge")).to_have_text("● listening")
    assert page.evaluate("clip.number") == 1
    assert session.labels == {}


def test_labels_are_earlier_than_fingers_by_the_reaction_time(page, session):
    begin(page)
    looked_over(page)
    changes = "labels().findIndex((control, i) => i > state.lead && control !== labels()[i - 1])"
    page.evaluate("track = [{ at: 0, control: 0 }, { at: began + 15.5 * interval(), control: 2 }]")
    for ms, expected in ((0, 15), (180, 14), (580, 11)):  # a frame takes 133 ms at half of 15 a second
        page.evaluate("ms => { $('reaction').value = ms; }", ms)
        assert page.evaluate(changes) == expected


def test_two_keys_are_a_jump_to_the_side_and_space_is_up(page):
    begin(page)
    for keys, control in ((["ArrowLeft", "ArrowUp"], "jump-left"), (["d", " "], "jump-right"), ([" "], "jump")):
        for key in keys:
            page.keyboard.down(key)
        expect(page.locator(".tile.lit")).to_have_attribute("data-control", control)
        for key in keys:
            page.keyboard.up(key)
    expect(page.locator(".tile.lit")).to_have_attribute("data-control", "noop")


def test_a_tile_is_held_with_a_finger_on_a_phone(session, visit):
    with serving(session) as url:
        page = visit(url, width=390, height=844, has_touch=True, is_mobile=True)
        expect(page.locator("#go")).to_contain_text("Begin")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        tile, finger = page.locator("[data-control=jump].tile"), page.context.new_cdp_session(page)
        box = tile.bounding_box()
        assert page.locator("#tiles").bounding_box()["y"] + page.locator("#tiles").bounding_box()["height"] < 844
        page.tap("#go")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
        expect(tile).to_have_class(LIT)
        looked_over(page)
        assert page.evaluate("cells.at(-1).dataset.control") == "jump"
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.close()


def test_controls_are_named_on_the_page(data, visit):
    data.has_actions = False
    session = Session(data)
    with serving(session) as url:
        page = visit(url)
        names = page.locator("#rows input")
        expect(names).to_have_count(6)
        names.nth(1).fill("noop")
        page.click("#save")
        expect(page.locator("#fault")).to_contain_text("the same name, 'noop'")
        names.nth(1).fill("brake")
        page.locator("#rows button").last.click()
        page.click("#save")
        expect(page.locator("#names")).to_be_hidden()
        assert session.names == ("noop", "brake", "right", "jump", "jump-left")
        assert json.loads((data.folder / FILE).read_bytes())["controls"] == list(session.names)
        begin(page)
        page.keyboard.down("b")
        expect(page.locator("[data-control=brake].tile")).to_have_class(LIT)
        looked_over(page)
        page.keyboard.up("b")
        page.keyboard.press("Enter")
        expect(page.locator("[data-control=brake] .number")).not_to_have_text("0")
        page.click("#edit")
        page.locator("#rows button").nth(1).click()
        page.click("#save")
        expect(page.locator("#fault")).to_contain_text("cannot be left out")
        page.click("#cancel")
        page.reload()
        expect(page.locator("#go")).to_be_enabled()  # the page has loaded a clip
        page.click("#edit")
        names.nth(1).fill("stop")
        page.click("#save")
        expect(page.locator("[data-control=stop] .number")).not_to_have_text("0")
        assert read_labels(data).counts["stop"] > 15
        page.keyboard.press("u")  # by a page that did not see the clip before
        expect(page.locator("#total")).to_have_text("0 labels")
        page.close()
