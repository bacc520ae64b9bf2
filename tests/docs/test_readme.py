"""README.md tells the truth about the code. `python docs/options_table.py` writes its options table anew."""

import re
import runpy
from itertools import zip_longest

import pytest

from seugpt.cli.options import Options
from tests.helpers import (
    OPTIONS_TABLE,
    PORTUGUESE,
    README,
    ROOT,
    code_blocks,
    text_blocks,
    untranslated,
)
from visualize import COMMANDS as PICTURES

TOOL = runpy.run_path(str(ROOT / "docs" / "options_table.py"))
CLASSES = TOOL["CLASSES"]


def commands():
    """Every command in the code blocks of README and docs/en, continued lines joined: (script, words)."""
    pages = [README, *sorted((ROOT / "docs" / "en").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                match = re.search(r"(prepare|train|sample|evaluate|export|visualize)\.py(.*)", part)
                if match:
                    yield (
                        match.group(1) + ".py",
                        re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", match.group(2)),
                    )


COMMANDS = list(commands())


def test_the_options_table_is_the_codes():
    assert (
        OPTIONS_TABLE.search(README.read_text(encoding="utf-8")).group() == TOOL["options_table"]()
    ), "run: python docs/options_table.py"


def test_there_are_commands():
    assert len(COMMANDS) > 15 and {script for script, _ in COMMANDS} == set(CLASSES)


@pytest.mark.parametrize("script, words", COMMANDS)
def test_every_command_parses(script, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word.replace('"', "").replace("'", "") for word in words]
    positional = {"prepare.py": "name", "visualize.py": "out"}.get(script)
    classes = [PICTURES[words.pop(0)][1]] if script == "visualize.py" else CLASSES[script]
    if words[-1] == "--help":
        words.pop()
    Options(words, *classes, description="Test.", positional=positional).build()


def test_both_readmes_have_the_same_commands():
    for english, portuguese in zip_longest(
        code_blocks(README), code_blocks(PORTUGUESE), fillvalue=("no", "block")
    ):
        assert portuguese == english, (
            f"{PORTUGUESE.name}: copy this block from {README.name}:\n{english[1]}"
        )


def test_both_readmes_say_the_same():
    """Piece by piece; the message shows the first that is missing, or has other numbers or names, in one of the two."""
    for english, portuguese in zip_longest(
        text_blocks(README), text_blocks(PORTUGUESE), fillvalue="# no more"
    ):
        differ = untranslated(english) ^ untranslated(portuguese)
        what = f"{english}\nIt has:\n{portuguese}\nThey differ in {differ}"
        assert not differ, (
            f"translate into {PORTUGUESE.name} what is new here or just above:\n{what}"
        )


def test_nothing_is_left_to_fill_in():
    for path in (*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")):
        assert "@@" not in path.read_text(encoding="utf-8"), path


def test_requirements_pin_exactly_the_five_packages():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line.split("==")[0] for line in lines] == [
        "torch",
        "numpy",
        "tiktoken",
        "tqdm",
        "matplotlib",
    ]
    assert all("==" in line for line in lines) and lines[0] == "torch==2.13.0"


def test_every_promise_has_its_test():
    """docs/RELIABILITY.md names tests that are there."""
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in sources] == []
    assert all((ROOT / name).exists() for name in re.findall(r"`(tests/[\w/]+\.py)`", text))
    tables = text.partition("## A long run")[0]
    rows = [
        line
        for line in tables.splitlines()
        if line.startswith("| ") and not line.startswith("| fault")
    ]
    assert all("test_" in row.rsplit("|", 2)[1] for row in rows)
