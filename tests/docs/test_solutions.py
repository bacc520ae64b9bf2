"""The code in the solutions of the course's exercises runs; it is the same in both languages."""

import re
import shutil

import pytest

from tests.helpers import ROOT, code_blocks, run_python

EN = ROOT / "docs" / "en" / "solutions"
PT = ROOT / "docs" / "pt-BR" / "solutions"
NAMES = sorted(page.name for page in EN.glob("*.md"))
LESSONS = sorted(page.name for page in (ROOT / "docs" / "en").glob("[0-9]*.md"))


def python_code(page):
    return [code for language, code in code_blocks(page) if language == "python"]


def test_every_lesson_has_solutions_in_both_languages():
    assert NAMES == LESSONS
    assert sorted(page.name for page in PT.glob("*.md")) == LESSONS


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_solutions(name):
    assert python_code(PT / name) == python_code(EN / name)
    numbers = [
        re.findall(r"^## (\d)", (folder / name).read_text("utf-8"), re.M) for folder in (EN, PT)
    ]
    assert numbers == [["1", "2", "3"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_code_runs(name, tmp_path):
    """One block after another, as a reader in the root of the clone would type them."""
    text = (EN / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    if not blocks:
        pytest.skip("these solutions have no code")
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "images")
    shutil.copytree(ROOT, tmp_path, ignore=ignored, dirs_exist_ok=True)
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    result = run_python("-c", "\n".join(blocks), cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    after = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert after == before  # it leaves no files behind
