"""The notebooks run from top to bottom, here with short runs; the same code in both languages."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

NOTEBOOKS = ROOT / "docs" / "notebooks"
NAMES = ("seugpt.ipynb", "seugpt.pt-BR.ipynb")
BIN = Path(sys.executable).parent
TEXT = (
    "A moça abriu a janela e olhou para o mar. O menino viu a maçã, e não comeu. Ninguém a viu.\n"
    * 300
)
SHORTER = {  # what a cell says -> what the test runs
    "prepare.py machado_char": "prepare.py machado_char --input=text.txt",
    "--eval_only": "--eval_only --eval_iters=2",
    "--snapshot_interval=100": "--snapshot_interval=10 --max_iters=20 --eval_iters=2",
}


def cells(name):
    return json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]


def test_both_languages_have_the_same_code():
    english, portuguese = (
        ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]
        for name in NAMES
    )
    assert [code.replace(" --lang=pt", "") for code in portuguese] == english


def test_the_notebooks_are_stored_without_outputs():
    for name in NAMES:
        for cell in cells(name):
            assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    ignored = shutil.ignore_patterns(".git", "out*", ".venv", "__pycache__")
    shutil.copytree(ROOT, tmp_path, ignore=ignored, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    for cell in notebook.cells:
        for longer, shorter in SHORTER.items():
            cell.source = cell.source.replace(longer, shorter)
    folder = {"metadata": {"path": str(tmp_path / "docs" / "notebooks")}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=folder
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in printed and "error:" not in printed, printed
    assert "bits per byte" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
