"""The house: which room may import which, and where code may stand."""

import ast

import pytest

from tests.helpers import ROOT

COMMANDS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "model")
FLOORS = [{"errors", "files", "cli"}, {"data"}, {"checkpoint"}, {"generation", "training", "evaluation"},
          {"plots", "benchmark"}]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path):
    """The names of all modules that a file imports, also those inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms(path):
    """The parts of seugpt that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("seugpt.")}


PACKAGE_FILES = sorted(
    path
    for path in ROOT.glob("seugpt/**/*.py")
    if path.name != "__init__.py" or path.parent.name != "seugpt"
)


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_lead_down(path):
    """No package imports a command, nor a package of a higher floor."""
    assert not {name.split(".")[0] for name in imports(path)} & set(COMMANDS)
    room = path.relative_to(ROOT / "seugpt").parts[0].removesuffix(".py")
    assert all(FLOOR[other] <= FLOOR[room] for other in rooms(path) if other in FLOOR)
    assert rooms(path) <= set(FLOOR)


def test_the_model_needs_nothing_but_an_error():
    assert rooms(ROOT / "model.py") == {"errors"}


def test_presets_and_data_are_apart_from_code():
    """Deleting data/ deletes data alone, and no preset can hide a module of the program."""
    assert not list((ROOT / "data").glob("*.py"))
    assert not (ROOT / "config" / "__init__.py").exists()
    assert COMMANDS == ["bench", "evaluate", "export", "prepare", "sample", "train", "visualize"]
