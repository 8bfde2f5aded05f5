"""`minigenie export WORLD --web`: the site that plays a world, written whole or not at all."""

import base64
import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minigenie.config import to_dict
from minigenie.errors import UserError
from minigenie.files import to_json
from minigenie.finish import count_parameters, halved
from minigenie.pictures import encode
from minigenie.play.actions import load_actions
from minigenie.play.player import MAX_STEPS
from minigenie.play.server import PAGE, page_text
from minigenie.play.session import MAX_STARTS, PREVIEW_FRAMES, PREVIEW_STEPS, preview_strip, with_fewer_steps
from minigenie.web.graphs import Begin, Commit, Fill, Give, played_models
from minigenie.world import World, locate, read_prompt

HERE = Path(__file__).parent
OPSET = 20
SMALL = 1024  # bytes, up to which a constant stays in its graph
MOST_PARAMETERS = 250_000_000  # a page has 4 GB, of which float32 weights take several copies
VERSION = "1.30.0"
ADDRESS = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
RUNTIME = {  # files of ONNX Runtime Web, by what it computes with, and their sha384
    "wasm": {
        "module": ("ort.wasm.bundle.min.mjs", "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
        "wasm": ("ort-wasm-simd-threaded.wasm", "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
    },
    "webgpu": {
        "module": ("ort.webgpu.bundle.min.mjs", "1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f"),
        "wasm": (
            "ort-wasm-simd-threaded.asyncify.wasm",
            "EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
        ),
    },
}


def export_site(
    folder: str | Path,
    out: Path,
    runtime: Path | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the site of a world to the new folder `out`. runtime: a folder with ONNX Runtime Web's files, which are
    copied; by default the page takes them from a public address, whose files it knows by their checksums.

    FileExistsError if `out` is there, ValueError, one line, if the world or the runtime cannot be used.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export --web needs {error.name}; run `pip install 'minigenie[web]'`") from None
    if out.exists():
        raise FileExistsError(f"{out} exists; delete it, or choose a new folder")
    folder = locate(folder)
    world = World.load(folder, "cpu")
    models = played_models(world)
    if (size := sum(map(count_parameters, models))) > MOST_PARAMETERS:
        raise UserError(
            f"{folder} has {size / 1e6:.0f} million parameters, more than the {MOST_PARAMETERS / 1e6:.0f} that a "
            "browser can hold; export a smaller world"
        )
    files = _runtime_files(runtime) if runtime else []
    for model in models:
        model.load_state_dict({name: value.float() for name, value in halved(model.state_dict()).items()}, strict=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    unready = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        _write(world, folder, unready, watch)
        for file in files:
            (unready / "runtime").mkdir(exist_ok=True)
            shutil.copyfile(file, unready / "runtime" / file.name)
        about = json.loads((unready / "world.json").read_bytes())
        about["runtime"] = {"base": "runtime/" if runtime else ADDRESS, **_described(RUNTIME)}
        (unready / "world.json").write_bytes(to_json(about))
        unready.chmod(0o755)
        unready.rename(out)
    finally:
        shutil.rmtree(unready, ignore_errors=True)


def _described(runtime: dict[str, dict[str, tuple[str, str]]]) -> dict[str, Any]:
    return {
        provider: {kind: {"name": name, "integrity": f"sha384-{sha384}"} for kind, (name, sha384) in files.items()}
        for provider, files in runtime.items()
    }


def _runtime_files(folder: Path) -> list[Path]:
    """ONNX Runtime Web's files in a folder, or in the package's `dist`. ValueError, one line, if they are others."""
    folder = folder / "dist" if (folder / "dist").is_dir() else folder
    known = {name: sha384 for files in RUNTIME.values() for name, sha384 in files.values()}
    for name, sha384 in known.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} has no {name}; give the folder of the npm package onnxruntime-web {VERSION}")
        if base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode() != sha384:
            raise UserError(f"{path} is not that of onnxruntime-web {VERSION}, which this MiniGenie knows; give that")
    return [folder / name for name in known]


def _write(world: World, folder: Path, out: Path, watch: Callable[[int, int], None]) -> None:
    actions = load_actions(folder, world.num_actions)
    starts = [read_prompt(path, world.frame_shape) for path in sorted((folder / "prompts").glob("*.png"))[:MAX_STARTS]]
    (out / "start").mkdir()
    (out / "preview").mkdir()
    total = len(starts) + 4
    for number, start in enumerate(starts):
        (out / "start" / f"{number}.png").write_bytes(encode(start[0, 0].numpy(), "PNG"))
        for action, strip in enumerate(_previews(world, start)):
            (out / "preview" / f"{number}-{action}.jpg").write_bytes(encode(strip, "JPEG", quality=85))
        watch(number + 1, total)
    weights = Weights()
    names, state = [], 0
    for name, model, example in _graphs(world):
        (out / f"{name}.onnx").write_bytes(weights.externalised(_onnx(model, example)))
        names.append(name)
        watch(len(starts) + len(names), total)
        if name == "begin":
            state = sum(each.nbytes for each in model(*example))
    for name, content in weights.files.items():
        (out / name).write_bytes(bytes(content))
    height, width, _ = world.frame_shape
    n, sampling = world.config.tokenizer.num_patches, world.config.sampling
    strip_shape = preview_strip(np.zeros((PREVIEW_FRAMES + 1, *world.frame_shape), np.uint8)).shape
    about = {
        "hello": {
            "world": folder.resolve().name,
            "width": width,
            "height": height,
            "fps": world.fps,
            "starts": len(starts),
            "clips": 0,
            "preview_frames": PREVIEW_FRAMES + 1,
            "most_steps": min(n, MAX_STEPS),
        },
        "actions": actions,
        "sampling": to_dict(sampling),
        "num_patches": n,
        "mask_id": world.dynamics.mask_id,
        "graphs": names,
        "ending": world.ending is not None,
        "state_bytes": state,
        "preview": {"width": strip_shape[1], "height": strip_shape[0]},
        "bytes": sum(path.stat().st_size for path in out.glob("*") if path.is_file()),
    }
    (out / "world.json").write_bytes(to_json(about))
    (out / "index.html").write_text(page_text(PAGE, HERE / "engine.js"))
    for name in ("worker.js", "isolate.js"):
        shutil.copyfile(HERE / name, out / name)


def _previews(world: World, start: Tensor) -> list[np.ndarray]:
    """What each action does from a start picture, held for some frames: pictures of them in a row."""
    trial, every = with_fewer_steps(world, PREVIEW_STEPS), list(range(world.num_actions))
    trial.reset(start.repeat(len(every), 1, 1, 1, 1))
    frames = [start[:, 0].expand(len(every), -1, -1, -1), *(trial.step(every) for _ in range(PREVIEW_FRAMES))]
    return [preview_strip(each.numpy()) for each in torch.stack(frames, dim=1)]


def _graphs(world: World) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """Name, graph and an example of its inputs; without a camera there is nothing to give."""
    n = world.config.tokenizer.num_patches
    picture = torch.zeros(world.frame_shape, dtype=torch.uint8)
    begin = Begin(world, world.encode_past(picture[None, None]))
    with torch.no_grad():
        state = begin(picture)
    action, number, tokens = torch.zeros(1, dtype=torch.long), torch.tensor(0.5), torch.zeros(1, n, dtype=torch.long)
    give = Give(world, begin.past)
    given = [action]
    graphs: list[tuple[str, nn.Module, tuple[Any, ...]]] = [("begin", begin, (picture,))]
    if world.dynamics.camera is not None:
        inputs = action, state
        with torch.no_grad():
            given = give(*inputs)
        graphs.append(("give", give, inputs))
    uniform = torch.rand(2, 1, n)
    example = given, tokens, torch.zeros(1, n), uniform, torch.tensor(1), number, number, state
    graphs.append(("fill", Fill(world, begin.past), example))
    return [*graphs, ("commit", Commit(world, begin.past), (given, tokens, torch.rand(1), state))]


def _onnx(model: nn.Module, example: tuple[Any, ...]) -> Any:
    """As a ModelProto, whose inputs are those that it uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of packages that are not there, and of names
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model.eval(), example, dynamo=True, opset_version=OPSET, verbose=False)
    finally:
        logging.disable(before)
    assert program is not None
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info):
        part.ClearField("metadata_props")  # where in the code each comes from
    used = {name for node in proto.graph.node for name in node.input}
    inputs = [each for each in proto.graph.input if each.name in used]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto


class Weights:
    """Constants of all graphs, each once: those that bfloat16 can hold in weights.bf16, two bytes each, which a page
    reads as four; all else in weights.bin."""

    def __init__(self) -> None:
        self.files = {"weights.bf16": bytearray(), "weights.bin": bytearray()}
        self.places: dict[bytes, tuple[str, int]] = {}

    def externalised(self, proto: Any) -> bytes:
        from onnx import numpy_helper
        from onnx.external_data_helper import set_external_data

        for each in proto.graph.initializer:
            values = numpy_helper.to_array(each)
            if values.nbytes <= SMALL:
                continue
            name, offset = self._place(values)
            each.raw_data = b"."  # it is only made external if it has some
            set_external_data(each, location=name, offset=offset, length=values.nbytes)
            for field in ("raw_data", "float_data", "int32_data", "int64_data"):
                each.ClearField(field)
        return proto.SerializeToString()

    def _place(self, values: np.ndarray) -> tuple[str, int]:
        """In which file, and where in it as a page reads it."""
        content = values.tobytes()
        key = hashlib.sha256(str(values.dtype).encode() + content).digest()
        if key not in self.places:
            bits = values.ravel().view(np.uint32) if values.dtype == np.float32 else None
            short = bits is not None and not (bits & 0xFFFF).any()
            name = "weights.bf16" if short else "weights.bin"
            file = self.files[name]
            file.extend(bytes(-len(file) % 32))
            self.places[key] = name, len(file) * (2 if short else 1)
            file.extend((bits >> 16).astype("<u2").tobytes() if short and bits is not None else content)
        return self.places[key]
