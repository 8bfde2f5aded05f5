"""Shared by all tests: small models, a toy dataset, checked shapes."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for whatever is started: another worker's tests run beside it

import pytest
import torch
from jaxtyping import install_import_hook

EVAL = ("control", "controllability", "drift", "ending", "evaluator", "fidelity", "measure", "perceptual")
SHAPED = (
    "nn",
    "tokenizer",
    "lam",
    "inverse",
    "camera",
    "ending",
    "dynamics",
    "maskgit",
    "past",
    "world",
    "pictures",
    *(f"eval.{name}" for name in EVAL),
)
install_import_hook([f"minigenie.{name}" for name in (*SHAPED, "teach.session")], "beartype.beartype")

from minigenie.checkpoint import save_model  # noqa: E402
from minigenie.config import to_dict  # noqa: E402
from minigenie.data.collect import collect  # noqa: E402
from minigenie.data.dataset import MANIFEST, Dataset  # noqa: E402
from minigenie.ending import EndingConfig  # noqa: E402
from minigenie.eval import controllability, drift  # noqa: E402
from minigenie.files import to_json  # noqa: E402
from minigenie.nn.patches import to_float  # noqa: E402
from minigenie.nn.st_transformer import STConfig  # noqa: E402
from minigenie.pipeline import Recipe  # noqa: E402
from minigenie.recipes import tiny  # noqa: E402
from minigenie.remote import CHECKSUMS  # noqa: E402
from minigenie.settings import CollectSettings  # noqa: E402
from minigenie.train import Execution  # noqa: E402
from minigenie.world import World, read_config, world_config  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job's, and then its children's too
    signal.signal(signal.SIGINT, signal.default_int_handler)
# whole evaluations by the dozen: each measures all there is, but less of it
drift.HORIZON, drift.CLIPS, controllability.STARTS, controllability.INVERSE_STEPS = 12, 4, 3, 8


LONGEST = ("test_readme.py", "test_web.py", "test_pipeline.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGENIE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Dataset:
    """Some episodes of the toy world, with true actions."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    return collect(CollectSettings(game="toy", frames=1_500, policy="explore", levels=20, num_envs=4), folder)


def small_recipe(steps: int = 4) -> Recipe:
    """tiny, smaller still, with a sense of time in every model."""
    recipe = tiny()
    narrow = STConfig(num_blocks=1, dim=32, num_heads=2)
    fits = {
        name: replace(
            getattr(recipe, name), steps=steps, batch_size=4, execution=Execution(save_every=2, sample_every=2)
        )
        for name in ("tokenizer_fit", "lam_fit", "dynamics_fit")
    }
    return replace(
        recipe,
        tokenizer=replace(
            recipe.tokenizer,
            encoder=narrow,
            decoder=narrow,
            quantizer=replace(recipe.tokenizer.quantizer, num_codes=32, code_dim=8),
        ),
        lam=replace(recipe.lam, encoder=narrow, decoder=narrow),
        dynamics=replace(recipe.dynamics, transformer=narrow, token_dim=16),
        ending=EndingConfig(),
        sampling=replace(recipe.sampling, steps=3),
        **(fits | {"tokenizer_fit": replace(fits["tokenizer_fit"], clip_frames=8)}),
    )


@pytest.fixture
def recipe() -> Recipe:
    return small_recipe()


@pytest.fixture(scope="session")
def trained(toy, tmp_path_factory) -> Path:
    """A world folder, trained for a handful of steps."""
    from minigenie.pipeline import train_world

    out = tmp_path_factory.mktemp("world") / "toy"
    train_world(toy, small_recipe(), out, device=torch.device("cpu"))
    return out


@pytest.fixture(scope="session")
def bucket(toy) -> Iterator[str]:
    """The address of a bucket with the toy dataset in its folder toy, on a real server that speaks S3."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        storage = s3fs.S3FileSystem()
        storage.mkdir("my-bucket")
        storage.put(f"{toy.folder}/", "my-bucket/toy/", recursive=True)
        yield "s3://my-bucket"
    server.stop()


@pytest.fixture(scope="module")
def browser():
    from bench_browser import chromium  # of runs/, where processes that import this file do not look

    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except ValueError as missing:
            if "CI" in os.environ:
                raise
            pytest.skip(str(missing))
        yield browser


@pytest.fixture
def visit(browser):
    """Open the page as somebody else each time. No error may reach the browser's console, but that the server refused
    something."""
    contexts, complaints = [], []

    def note(text):
        if "status of 400" not in text:
            complaints.append(text)

    def visit(url, width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: note(str(error)))
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def unmarked(toy, tmp_path) -> Dataset:
    """The same footage, which does not say what ended."""
    shutil.copytree(toy.folder, tmp_path / "unmarked")
    manifest = tmp_path / "unmarked" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"ended": true', '"ended": false'))
    return Dataset.open(manifest.parent)


@pytest.fixture(scope="session")
def ending_world(trained, toy, tmp_path_factory) -> Path:
    """The same world with an ending of random weights: about every second picture is the last, and none is lost."""
    out = tmp_path_factory.mktemp("world") / "ending"
    shutil.copytree(trained, out)
    config = replace(world_config(out), ending=EndingConfig(dim=8, lost=8))
    torch.manual_seed(0)
    model = config.make_ending()
    pairs = World.load(out, "cpu").tokenizer.encode(to_float(torch.from_numpy(toy.clips(toy.windows(2)[::9], 2))))
    with torch.no_grad():
        model.head[-1].bias -= model.eval().logits(pairs).median(0).values
    save_model(out / "ending.safetensors", model)
    (out / "config.json").write_bytes(to_json(read_config(out) | {"ending": to_dict(config.ending)}))
    (out / CHECKSUMS).unlink()
    return out


@pytest.fixture
def broken_compiler(monkeypatch) -> str:
    """There is a compiler, but it fails; what is then said of it."""

    def fails(call, **options):
        def compiled(*args):
            raise RuntimeError("cc1plus: internal error\nof many lines")

        return compiled

    monkeypatch.setattr("minigenie.world.compiled", fails)
    monkeypatch.setattr("minigenie.world.can_compile", lambda device: True)
    return "note: the compiler fails (cc1plus: internal error); going on without\n"
