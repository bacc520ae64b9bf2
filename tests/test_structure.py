"""The tree: which package may import which, and which files may stand at the top level."""

import ast

import pytest

from tests.helpers import ROOT, run_python

COMMANDS = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "model")
# What stands in seugpt/, lowest layer first; a package may import its own layer and those below.
LAYERS = (
    {"errors", "files", "threads", "cli"},
    {"data"},
    {"checkpoint"},
    {"generation", "training", "evaluation"},
    {"plots", "benchmark", "server"},
)
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
PACKAGE_FILES = sorted(set(ROOT.glob("seugpt/**/*.py")) - {ROOT / "seugpt" / "__init__.py"})


def imports(path):
    """The names of all modules that a file imports, including those inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def packages(path):
    """The parts of seugpt/ that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("seugpt.")}


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_lead_down(path):
    """No package imports a command or a package of a higher layer."""
    assert not {name.split(".")[0] for name in imports(path)} & set(COMMANDS)
    package = path.relative_to(ROOT / "seugpt").parts[0].removesuffix(".py")
    assert packages(path) <= set(LAYER_OF)
    assert all(LAYER_OF[other] <= LAYER_OF[package] for other in packages(path))


def test_model_imports_nothing_but_errors():
    """Its from_pretrained imports the room that reads checkpoints, and only when it is called."""
    source = ROOT / "model.py"
    statements = ast.parse(source.read_text(encoding="utf-8")).body
    found = {node.module for node in statements if isinstance(node, ast.ImportFrom)}
    assert {name for name in found if name.startswith("seugpt")} == {"seugpt.errors"}
    assert packages(source) == {"errors", "checkpoint"}


def test_code_stays_out_of_data_config_and_the_top_level():
    """Deleting data/ deletes only data, and no preset hides a module of the program."""
    assert not list((ROOT / "data").glob("*.py"))
    assert not (ROOT / "config" / "__init__.py").exists()
    commands = "bench evaluate export prepare sample serve train visualize".split()
    assert commands == COMMANDS


def test_cuda_tests_need_no_optional_package():
    """On a lent GPU machine only requirements.txt and pytest may be installed."""
    code = """
import sys
for name in ("tokenizers", "transformers", "safetensors", "huggingface_hub", "pyarrow", "lm_eval"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(["-q", "-m", "cuda", "--collect-only", "-p", "no:cacheprovider", "-n0"]))
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stdout
    assert "test_cuda.py" in result.stdout
