"""Who may know whom, held by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deeplab_jax

PACKAGE = Path(deeplab_jax.__file__).parent
# A module may import those of lower floors (and of its own folder).
FLOORS = [
    {"errors", "output"},
    {
        "ops",
        "metrics",
        "runtime",
        "data",
        "huge_pages",
        "kinds",
        "digests",
        "optim",
        "crf",
        "tiles",
        "meter",
        "saved_model",
    },
    {"losses", "pictures", "config", "counting", "field_of_view", "processes", "lock"},
    {"models", "checkpoint", "nonfinite", "importers", "report", "archive"},
    {"advice", "classes", "predict", "command_line", "tally"},
    {
        "check_data",
        "classify",
        "evaluate",
        "train",
        "convert",
        "tune_crf",
        "export",
        "predict_files",
    },
    {"networks", "score", "segmenter", "loop"},
    {"modes"},
    {"main"},
]
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
MODULES = sorted(PACKAGE.rglob("*.py"))
# torch reads .pth files, TensorFlow writes SavedModels, where they are installed and asked for.
_MAY_USE = {"importers": {"torch"}, "saved_model": {"tensorflow"}}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, in full."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    ours = {n.split(".")[1] for n in names if n.startswith("deeplab_jax.")}
    return ours & FLOOR.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room(path)
    if here == "__init__":
        return
    for other in rooms_of(imported(path)) - {here}:
        assert FLOOR[other] < FLOOR[here], f"{here} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_keep_to_themselves(path):
    names, here = imported(path), room(path)
    heads = {name.split(".")[0] for name in names}
    foreign = {"tensorflow", "torch", "configs", "common"} - _MAY_USE.get(here, set())
    assert not heads & foreign
    if here == "data":
        assert not heads & {"jax", "flax", "optax"}
    if here == "models":
        assert rooms_of(names) <= {"models", "ops"}
    if here == "importers":
        assert rooms_of(names) <= {"importers", "errors"}


def test_importing_main_pulls_in_no_other_framework():
    code = (
        "import sys, deeplab_jax.main; "
        "found = {'tensorflow', 'torch'} & sys.modules.keys(); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
