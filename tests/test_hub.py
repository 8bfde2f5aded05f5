"""Worlds at addresses: pushed to a hub, read from there and from object storage, whole and checked or not at all."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
import torch
import yaml

from minigenie.__main__ import main
from minigenie.files import cache_folder
from minigenie.finish import export_world
from minigenie.remote import CHECKSUMS, fetch_world
from minigenie.world import World, locate

TOKEN, OTHERS = "hf_mine", "hf_somebody"


class Hub(ThreadingHTTPServer):
    """The few calls of the Hugging Face hub that a push and a read take. Weights go by LFS, all else in the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Calls)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}  # of a repository, and the files of each
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # by sha256
        self.asked: list[str] = []


class Calls(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *said: object) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_call(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        way = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if way[0] == "objects":
            self.server.objects[way[1]] = body
            return self.answer({})
        if way[:2] == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if token not in (TOKEN, OTHERS, ""):
            return self.answer({"error": "Invalid credentials"}, 401)
        if way == ["api", "repos", "create"]:
            return self.create(json.loads(body), token)
        name = "/".join(way[2:4] if way[0] == "api" else way[:2]).removesuffix(".git")
        if name not in self.server.branches or (self.server.private[name] and token != TOKEN):
            return self.refuse(404 if token else 401, "RepoNotFound")
        if self.command == "POST" and token != TOKEN and "paths-info" not in way:
            return self.refuse(403, "Forbidden")
        getattr(self, {"info": "lfs", "resolve": "resolve"}.get(way[2], way[4] if len(way) > 4 else "repository"))(
            self.server.branches[name], way[5:] if way[0] == "api" else way[3:], body
        )

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def create(self, asked: dict, token: str) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if token != TOKEN or asked["organization"] != "me":
            return self.refuse(403, "Forbidden")
        if name in self.server.branches:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        self.server.branches[name] = {"main": {}}
        self.server.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
        self.answer({"url": f"{self.server.url}/{name}"})

    def repository(self, branches: dict, way: list[str], body: bytes) -> None:
        self.answer({"id": "me/world", "sha": "0" * 40})

    def revision(self, branches: dict, way: list[str], body: bytes) -> None:
        if way[0] not in branches:
            return self.refuse(404, "RevisionNotFound")
        self.repository(branches, way, body)

    def branch(self, branches: dict, way: list[str], body: bytes) -> None:
        branches.setdefault(way[0], dict(branches["main"]))
        self.answer({})

    def preupload(self, branches: dict, way: list[str], body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                  "shouldIgnore": False} for path in paths]  # fmt: skip
        self.answer({"files": modes})

    def lfs(self, branches: dict, way: list[str], body: bytes) -> None:
        wanted = [{**each, "authenticated": True,
                   "actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}", "header": {}}}}
                  for each in json.loads(body)["objects"]]  # fmt: skip
        self.answer({"transfer": "basic", "objects": wanted}, Content_Type="application/vnd.git-lfs+json")

    def commit(self, branches: dict, way: list[str], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                branches[way[0]][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branches[way[0]][value["path"]] = self.server.objects[value["oid"]]
        self.answer({"commitUrl": f"{self.server.url}/me/world/commit/{'0' * 40}", "commitOid": "0" * 40})

    def tree(self, branches: dict, way: list[str], body: bytes) -> None:
        under = f"{way[1]}/" if len(way) > 1 else ""
        listed = {}
        for path, data in branches[way[0]].items():
            if path.startswith(under):
                here, _, deeper = path.removeprefix(under).partition("/")
                kind = "directory" if deeper else "file"
                listed[here] = {"type": kind, "path": under + here, "size": len(data), "oid": "0" * 40}
        self.answer(list(listed.values()))

    def resolve(self, branches: dict, way: list[str], body: bytes) -> None:
        data = branches[way[0]].get("/".join(way[1:]))
        if data is None:
            return self.refuse(404, "EntryNotFound")
        self.answer(data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit="0" * 40)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGENIE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def minigenie(hub, tmp_path):
    """A command in a process of its own, which knows this hub and no other."""
    hub.asked.clear()

    def run(*arguments: object, token: str = TOKEN, **environment: str) -> subprocess.CompletedProcess:
        ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "minigenie", *map(str, arguments)]
        return subprocess.run(command, env=os.environ | ours | environment, capture_output=True, text=True)

    return run


def refused(ended: subprocess.CompletedProcess) -> str:
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 2, ended.stderr
    assert len([line for line in lines if line.startswith("error: ")]) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def small(trained, tmp_path_factory) -> Path:
    """A finished world, exported."""
    folder = tmp_path_factory.mktemp("small") / "world"
    export_world(trained, folder)
    return folder


def test_from_one_hand_to_another_by_the_hub(hub, minigenie, small, tmp_path):
    ended = minigenie("push", small, "me/world", "--license", "cc-by-4.0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{hub.url}/me/world is the world: minigenie play hf://me/world\n"
    assert hub.private["me/world"]
    files = hub.branches["me/world"]["main"]
    assert files["dynamics.safetensors"] == (small / "dynamics.safetensors").read_bytes()
    front = yaml.safe_load(files["README.md"].split(b"---\n")[1])
    assert front == {"license": "cc-by-4.0", "library_name": "minigenie", "tags": ["minigenie", "world-model", "genie"]}
    clip = tmp_path / "clip.gif"
    ended = minigenie("rollout", "hf://me/world", "--actions", "0,1", "--out", clip)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("copying hf://me/world into the cache")
    assert clip.exists()
    asked = len(hub.asked)
    again = minigenie("info", "hf://me/world")
    assert again.returncode == 0, again.stderr
    assert "copying" not in again.stderr
    assert len(hub.asked) - asked < 6
    assert "trained" in again.stdout


def test_a_branch_for_everybody_with_metrics(hub, minigenie):
    ended = minigenie("push", "coinrun", "me/coinrun", "--public", "--revision", "v1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("minigenie play hf://me/coinrun@v1\n")
    assert not hub.private["me/coinrun"]
    branches = hub.branches["me/coinrun"]
    assert not branches["main"]
    front = yaml.safe_load(branches["v1"]["README.md"].split(b"---\n")[1])
    assert "license" not in front
    metrics = {each["name"]: each["value"] for each in front["model-index"][0]["results"][0]["metrics"]}
    report = json.loads(branches["v1"]["report.json"])
    assert metrics["tokenizer PSNR"] == round(report["tokenizer"]["psnr"], 3)
    assert metrics["control test"] == round(report["control"]["share"], 3)
    assert "there is no finished world at hf://me/coinrun," in refused(minigenie("doctor", "hf://me/coinrun"))
    ended = minigenie("doctor", "hf://me/coinrun@v1", token=OTHERS)
    assert ended.returncode == 0, ended.stderr


def test_pushed_again_it_comes_again_even_to_a_process_that_knows_it(hub, minigenie, small, tmp_path):
    assert minigenie("push", small, "me/again").returncode == 0
    code = (
        "import sys\n"
        "from minigenie.remote import fetch_world\n"
        "for line in sys.stdin: print((fetch_world('hf://me/again') / 'prompts/new one.png').exists(), flush=True)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes) as knowing:
        for found in (False, True):
            knowing.stdin.write("\n")
            knowing.stdin.flush()
            assert knowing.stdout.readline() == f"{found}\n"
            other = shutil.copytree(small, tmp_path / f"other {found}")
            shutil.copyfile(other / "prompts/00.png", other / "prompts/new one.png")
            ended = minigenie("push", other, "me/again")
            assert ended.returncode == 0, ended.stderr
        knowing.stdin.close()


def test_what_a_push_cannot_do_is_one_line(hub, minigenie, small, tmp_path):
    assert "you are not logged in to the hub; run `hf auth login`" in refused(
        minigenie("push", small, "me/x", token="")
    )
    assert "run `hf auth login` again" in refused(minigenie("push", small, "me/x", token="hf_stale"))
    assert "you may not write to you/x" in refused(minigenie("push", small, "you/x"))
    for name in ("a/b/c", "world", "me/my world"):
        assert f"{name!r} cannot be a name" in refused(minigenie("push", small, name))
    assert "cannot push to the hub" in refused(minigenie("push", small, "me/x", HF_ENDPOINT="http://127.0.0.1:9"))
    assert "cannot push to the hub" in refused(minigenie("push", small, "me/x", HF_HUB_OFFLINE="1"))
    half = shutil.copytree(small, tmp_path / "half")
    (half / "dynamics.safetensors").unlink()
    assert "dynamics.safetensors is missing" in refused(minigenie("push", half, "me/x"))
    assert "is not a world" in refused(minigenie("push", tmp_path, "me/x"))
    assert "me/x" not in hub.branches


def test_what_is_not_on_the_hub_is_one_line(minigenie, tmp_path):
    assert "there is no finished world at hf://me/gone" in refused(minigenie("export", "hf://me/gone", "--out", "x"))
    assert "no dataset and no finished world at hf://me/gone" in refused(minigenie("info", "hf://me/gone"))
    assert "there is no finished world at hf://me/world" in refused(minigenie("doctor", "hf://me/world", token=OTHERS))
    offline = minigenie("doctor", "hf://me/world", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot read hf://me/world/checksums.json" in refused(offline)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(("command", "extra"), [("push", "minigenie[hub]"), ("doctor", ".[hub]")])
def test_without_the_hubs_library_one_line_says_what_to_install(command, extra, small):
    arguments = {"push": ["push", str(small), "me/x"], "doctor": ["doctor", "hf://me/world"]}[command]
    code = f"import sys; sys.modules['huggingface_hub'] = None; from minigenie.__main__ import main; main({arguments})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert extra in refused(ended)


# Any other storage.


@pytest.fixture
def address(small) -> Iterator[str]:
    storage = fsspec.filesystem("memory")
    storage.put(f"{small}/", "/small/world/", recursive=True)
    yield "memory://small/world"
    storage.rm("/small", recursive=True)


def test_it_is_the_same_world(address, small):
    there, here = World.load(address, "cpu"), World.load(small, "cpu")
    for model in ("tokenizer", "lam", "dynamics"):
        torch.testing.assert_close(getattr(there, model).state_dict(), getattr(here, model).state_dict())
    copy = locate(address)
    assert copy.name == "world"
    assert files(copy) == files(small)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_object_storage(bucket, small, tmp_path, capsys):
    import s3fs

    s3fs.S3FileSystem().put(f"{small}/", "my-bucket/worlds/mine/", recursive=True)
    main(["info", f"{bucket}/worlds/mine"])
    assert "a world, " in capsys.readouterr().out
    main(["export", f"{bucket}/worlds/mine/", "--out", str(tmp_path / "mine")])
    assert files(tmp_path / "mine").keys() == files(small).keys()


def test_an_environment_takes_an_address(address):
    import gymnasium

    import minigenie.env  # noqa: F401

    env = gymnasium.make("minigenie/World-v0", world=address, device="cpu", disable_env_checker=True)
    assert env.reset(seed=0)[0].shape == (64, 64, 3)


def test_it_is_played_at_an_address(address):
    from minigenie.play.session import Session
    from minigenie.settings import PlaySettings

    session = Session(address, PlaySettings(device="cpu"))
    assert session.folder == fetch_world(address)
    assert session.starts


def test_what_changed_there_comes_again_and_alone(address, small, tmp_path):
    old = fetch_world(address)
    assert fetch_world(address + "/") == old
    other = shutil.copytree(small, tmp_path / "other")
    (other / "README.md").write_text("Another.")
    export_world(other, tmp_path / "new")
    fsspec.filesystem("memory").put(f"{tmp_path / 'new'}/", "/small/world/", recursive=True)
    new = fetch_world(address)
    assert (new / "README.md").read_text() == "Another."
    assert not old.exists()


def test_names_and_keys_chosen_at_play_stay_and_a_report_goes_elsewhere(address, capsys):
    from minigenie.play.actions import load_actions, save_actions

    copy = fetch_world(address)
    named = [{**entry, "name": f"my {entry['name']}"} for entry in load_actions(copy, 8)]
    save_actions(copy, named)
    assert load_actions(fetch_world(address), 8) == named
    with pytest.raises(SystemExit):
        main(["eval", address, "no/data"])
    assert "world lies in the cache, which is no place to write to" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["dynamics.safetensors", "prompts/00.png"])
def test_a_file_that_was_tampered_with_is_refused(address, file):
    storage = fsspec.filesystem("memory")
    data = bytearray(storage.cat_file(f"/small/world/{file}"))
    data[-9] ^= 1
    storage.pipe(f"/small/world/{file}", bytes(data))
    with pytest.raises(ValueError, match=f"{address}/{file} is damaged .*another sha256"):
        World.load(address, "cpu")
    assert not list(cache_folder(address).glob("*/*"))


def test_weights_that_were_changed_in_the_cache_come_again(address, small):
    weights = fetch_world(address) / "lam.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert (fetch_world(address) / "lam.safetensors").read_bytes() == (small / "lam.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"../../x": "%b"}' % (b"0" * 64), "is damaged"),
        (b'{"config.json": "0"}', "is damaged"),
        (b'{"gone.json": "%b"}' % (b"0" * 64), "gone.json is missing"),
    ],
)
def test_a_list_that_is_none(address, listed, why, tmp_path):
    fsspec.filesystem("memory").pipe(f"/small/world/{CHECKSUMS}", listed)
    with pytest.raises(ValueError, match=f"{why}.*copy the world there again"):
        fetch_world(address)
    assert not list((tmp_path / "cache").glob("*/*/*"))


def test_a_copy_that_was_killed_leaves_nothing_that_looks_whole(bucket, small):
    import s3fs

    s3fs.S3FileSystem().put(f"{small}/", "my-bucket/killed/", recursive=True)
    address = f"{bucket}/killed"
    code = (
        "import os, sys\n"
        "from minigenie import remote\n"
        "copy, copied = remote.copy_url, []\n"
        "def killed(url, *rest):\n"
        "    copy(url, *rest)\n"
        "    copied.append(url)\n"
        "    len(copied) > 4 and os._exit(9)\n"
        "remote.copy_url = killed\n"
        "remote.fetch_world(sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, address]).returncode == 9
    assert not list(cache_folder(address).glob("[0-9a-f]*"))
    copy = fetch_world(address)
    assert files(copy) == files(small)
    assert {path.name for path in cache_folder(address).iterdir()} <= {copy.parent.name, ".lock", "read.json"}


def test_processes_share_one_copy(bucket, small):
    import s3fs

    s3fs.S3FileSystem().put(f"{small}/", "my-bucket/shared/", recursive=True)
    code = "import sys; from minigenie.remote import fetch_world; print(fetch_world(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{bucket}/shared"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert len({out for out, _ in said}) == 1
    assert sum("copying" in error for _, error in said) == 1


def test_an_offline_machine_plays_what_the_cache_holds(address, small, monkeypatch, capsys):
    copy = fetch_world(address)

    def unreachable(url: str) -> bytes:
        raise OSError(f"cannot read {url} (no route)")

    monkeypatch.setattr("minigenie.remote.read_url", unreachable)
    capsys.readouterr()
    assert fetch_world(address) == copy
    said = capsys.readouterr().err
    assert said == f"note: cannot read {address}/{CHECKSUMS} (no route); going on with the copy in the cache\n"
    (copy / "lam.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match="no route"):
        fetch_world(address)


def test_the_caches_limit_leaves_worlds_whole(address, small, toy, monkeypatch):
    copy = fetch_world(address)
    monkeypatch.setenv("MINIGENIE_CACHE_GB", "1e-9")
    from minigenie.files import trim_cache

    trim_cache(copy)
    assert files(copy) == files(small)


# The list of a folder here.


def test_a_finished_folder_is_listed_and_stays_so(trained, tmp_path):
    from minigenie.play.actions import load_actions, save_actions

    listed = json.loads((trained / CHECKSUMS).read_text())
    assert {"config.json", "actions.json", "README.md", "prompts/00.png", "dynamics.safetensors"} <= set(listed)
    copy = shutil.copytree(trained, tmp_path / "copy")
    save_actions(copy, [{**entry, "name": "x"} for entry in load_actions(copy, 8)])
    fsspec.filesystem("memory").put(f"{copy}/", "/raw/", recursive=True)
    assert load_actions(fetch_world("memory://raw"), 8)[0]["name"] == "x"
    (copy / CHECKSUMS).write_text("{")
    save_actions(copy, load_actions(copy, 8))
    (copy / CHECKSUMS).unlink()
    assert World.load(copy, "cpu").num_actions == 8
    (copy / "README.md").write_text("Changed by hand.")
    assert World.load(copy, "cpu").num_actions == 8


def test_an_unfinished_copy_is_not_listed(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "dynamics.safetensors").unlink()
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    missing = export_world(run, tmp_path / "copy", unfinished=True)
    assert ("dynamics" in missing) == (not (tmp_path / "copy" / CHECKSUMS).exists())
