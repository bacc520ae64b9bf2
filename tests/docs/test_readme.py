"""README.md and docs/RELIABILITY.md tell the truth about the code."""

import re
import runpy
from itertools import zip_longest

import pytest

from seugpt.cli.config_parser import parse_configs
from tests.helpers import (
    OPTIONS_TABLE,
    PORTUGUESE,
    README,
    ROOT,
    code_blocks,
    text_blocks,
    untranslated,
)
from visualize import COMMANDS as PLOTS

OPTIONS_TOOL = "docs/tools/options_table.py"
TOOL = runpy.run_path(str(ROOT / OPTIONS_TOOL))
CLASSES = TOOL["CLASSES"]
POSITIONAL = {"prepare.py": "name", "visualize.py": "out_dir"}
COMMAND = re.compile(r"(prepare|train|sample|evaluate|export|visualize)\.py(.*)")
WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


def commands():
    """(script, words) of every command in the code blocks of README and docs/en."""
    pages = [README, *sorted((ROOT / "docs" / "en").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                if match := COMMAND.search(part):
                    yield f"{match[1]}.py", WORD.findall(match[2])


COMMANDS = list(commands())


def test_the_options_table_matches_the_code():
    found = OPTIONS_TABLE.search(README.read_text(encoding="utf-8")).group()
    assert found == TOOL["options_table"](), f"run: python {OPTIONS_TOOL}"


def test_readme_shows_every_command():
    assert len(COMMANDS) > 15
    assert {script for script, _ in COMMANDS} == set(CLASSES)


@pytest.mark.parametrize("script, words", COMMANDS)
def test_every_command_parses(script, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [word.replace('"', "").replace("'", "") for word in words]
    classes = CLASSES[script]
    if script == "visualize.py":
        classes = [PLOTS[words.pop(0)][1]]
    if words[-1] == "--help":
        words.pop()
    configs = parse_configs(words, *classes, description="", positional=POSITIONAL.get(script))
    assert len(configs) == len(classes)


def test_both_readmes_have_the_same_commands():
    pairs = zip_longest(code_blocks(README), code_blocks(PORTUGUESE), fillvalue=("no", "block"))
    for english, portuguese in pairs:
        advice = f"{PORTUGUESE.name}: copy this block from {README.name}:\n{english[1]}"
        assert portuguese == english, advice


def test_both_readmes_say_the_same():
    """Block by block: the message shows the first that is missing or has other numbers or names."""
    pairs = zip_longest(text_blocks(README), text_blocks(PORTUGUESE), fillvalue="# no more")
    for english, portuguese in pairs:
        differ = untranslated(english) ^ untranslated(portuguese)
        assert not differ, (
            f"translate into {PORTUGUESE.name} what is new here or just above:\n{english}\n"
            f"It has:\n{portuguese}\nThey differ in {differ}"
        )


def test_nothing_is_left_to_fill_in():
    for path in (*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")):
        assert "@@" not in path.read_text(encoding="utf-8"), path


def test_requirements_pin_exactly_the_five_packages():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    packages = [line.split("==")[0] for line in lines]
    assert packages == ["torch", "numpy", "tiktoken", "tqdm", "matplotlib"]
    assert all("==" in line for line in lines)
    assert lines[0] == "torch==2.13.0"


def test_every_promise_names_existing_tests():
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    test_files = (ROOT / "tests").rglob("test_*.py")
    sources = "".join(path.read_text(encoding="utf-8") for path in test_files)
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in sources] == []
    assert all((ROOT / name).exists() for name in re.findall(r"`(tests/[\w/]+\.py)`", text))
    tables = text.partition("## A long run")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| fault")]
    assert all("test_" in row.rsplit("|", 2)[1] for row in promises)
