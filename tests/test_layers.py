"""Imports only go down, and `import minigenie` stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minigenie

PACKAGE = Path(__file__).parent.parent / "minigenie"

# Each module may import from its own line and those above it.
LAYERS = [
    ["errors", "files", "settings"],
    ["config", "remote"],
    ["runtime"],
    ["data", "nn", "pictures", "maskgit"],
    ["tokenizer", "lam", "inverse", "found", "camera", "dynamics", "ending"],
    ["optim", "checkpoint", "metrics", "past"],
    ["world", "encode"],
    ["train", "finish"],
    ["batches"],
    ["pipeline"],
    ["console", "track"],
    ["eval", "env", "play", "teach", "web", "hub"],
    ["recipes", "bench", "info"],
    ["demo"],
    ["__main__"],
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minigenie."):
            found.add(node.module.split(".")[1])
    return found


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no layer yet; give it one"
    above = {name for name in imports(path) if RANK[name] > RANK[own]}
    assert not above, f"{own} imports from above: {above}"


@pytest.mark.parametrize(
    "module", ["minigenie", "minigenie.__main__", "minigenie.data.collect", "minigenie.data.ingest"]
)
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_public_names_are_imported_when_they_are_asked_for():
    assert set(minigenie.__all__) == {name for names in minigenie._MODULES.values() for name in names}
    for name in minigenie.__all__:
        assert getattr(minigenie, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'wurld'"):
        _ = minigenie.wurld


def test_importing_changes_nothing_else():
    """No environment variable, no thread, no hook into other packages' imports, no package that is not Python's own."""
    code = (
        "import os, sys, threading\n"
        "seen = lambda: (dict(os.environ), threading.active_count(), [*sys.meta_path], [*sys.path_hooks])\n"
        "before, known = seen(), {*sys.modules}\n"
        "import minigenie\n"
        "others = {name.partition('.')[0] for name in {*sys.modules} - known} - {*sys.stdlib_module_names}\n"
        "assert seen() == before and others == {'minigenie'}, others"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_from_footage_to_report_it_takes_neither_pyav_nor_a_server():
    """Nor to measure speed: a machine with a large GPU often has little else."""
    blocked = dict.fromkeys(("av", "starlette", "uvicorn", "websockets", "playwright"))
    way = ["data.collect", "pipeline", "finish", "eval.measure", "eval.report", "bench.run", "console"]
    names = ", ".join(f"minigenie.{module}" for module in way)
    code = f"import sys; sys.modules.update({blocked}); import {names}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_is_unpickled():
    """No pickle, no allow_pickle=True in the package, and torch.load only of tensors."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text
        assert text.count("torch.load(") == len(re.findall(r"torch\.load\(.*weights_only=True", text))
        assert "allow_pickle=True" not in text
