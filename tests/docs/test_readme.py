"""README.md, the guides and docs/RELIABILITY.md tell the truth about the code."""

import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from seugpt.cli.config_parser import parse_configs
from tests.helpers import (
    OPTIONS_TABLE,
    PORTUGUESE,
    README,
    ROOT,
    code_blocks,
    lost_in_translation,
    text_blocks,
)
from visualize import COMMANDS as PLOTS

OPTIONS_TOOL = "docs/tools/options_table.py"
TOOL = runpy.run_path(str(ROOT / OPTIONS_TOOL))
CLASSES = TOOL["CLASSES"]
POSITIONAL = {"prepare.py": "name", "visualize.py": "out_dir"}
COMMAND = re.compile(r"(prepare|train|sample|serve|evaluate|export|visualize)\.py(.*)")
BIN = Path(sys.executable).parent  # where torchrun is
WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


GUIDE = ROOT / "docs" / "guide"
GUIA = ROOT / "docs" / "guia"
GUIDES = sorted(page.name for page in GUIDE.glob("*.md"))
TRANSLATIONS = {README: PORTUGUESE} | {GUIDE / name: GUIA / name for name in GUIDES}


def commands():
    """(script, words) of every command in the code blocks of README, docs/guide and docs/en."""
    pages = [*TRANSLATIONS, *sorted((ROOT / "docs" / "en").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                if match := COMMAND.search(part):
                    yield f"{match[1]}.py", WORD.findall(match[2])


COMMANDS = list(commands())


def test_the_options_table_matches_the_code():
    found = OPTIONS_TABLE.search((GUIDE / "options.md").read_text(encoding="utf-8")).group()
    assert found == TOOL["options_table"](), f"run: python {OPTIONS_TOOL}"


def test_the_pages_show_every_command():
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


def test_both_front_pages_fit_on_a_screen_or_three():
    for page in (README, PORTUGUESE):
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 180


def test_the_front_page_says_how_long_the_heart_is():
    heart = ("model.py", "train.py", "sample.py", "prepare.py")
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in heart)
    claimed = re.search(r"some ([\d,]+) lines", README.read_text(encoding="utf-8"))[1]
    assert int(claimed.replace(",", "")) == pytest.approx(lines, abs=50)


def test_both_languages_have_the_same_guides():
    assert sorted(page.name for page in GUIA.glob("*.md")) == GUIDES


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_both_languages_have_the_same_commands(page):
    translation = TRANSLATIONS[page]
    pairs = zip_longest(code_blocks(page), code_blocks(translation), fillvalue=("no", "block"))
    for english, portuguese in pairs:
        assert portuguese == english, f"{translation}: copy this block of {page}:\n{english[1]}"


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_both_languages_say_the_same(page):
    """Block by block: the message shows the first that is missing or has other numbers or names."""
    translation = TRANSLATIONS[page]
    pairs = zip_longest(text_blocks(page), text_blocks(translation), fillvalue="# no more")
    for english, portuguese in pairs:
        differ = lost_in_translation(english, portuguese)
        assert not differ, (
            f"translate into {translation} what is new here or just above:\n{english}\n"
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


# The blocks in order

IN_ORDER = (
    README,
    *(
        GUIDE / f"{name}.md"
        for name in (
            "data",
            "training",
            "checkpoints",
            "distributed",
            "sampling",
            "evaluation",
            "pictures",
        )
    ),
)

BLOCK = re.compile(r"(?:<!-- (.*?) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
SMALLER = """
block_size, n_layer, n_head, n_embd, batch_size = 16, 2, 2, 16, 4
max_iters = lr_decay_iters = 20
eval_interval, eval_iters, warmup_iters, snapshot_interval = 100, 2, 2, 10
"""
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:?!'\n"


def reader_supplies(folder):
    """The files that the reader of these pages has: texts in plain ASCII."""
    rng = random.Random(0)
    words = "Once upon a time the king said: ROMEO! What is The end of it?".split()
    text = " ".join(rng.choices(words, k=4000)) + ALPHABET
    for name in ("book.txt", "poems.txt", "tinyshakespeare.txt", "books/a.txt", "novels/a.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    nanogpt = folder / "data" / "shakespeare_char" / "input.txt"
    nanogpt.parent.mkdir(parents=True)
    nanogpt.write_text(text, encoding="utf-8")
    (folder / "prompt.txt").write_text("The king", encoding="utf-8")
    for name in ("reviews.jsonl", "held_out.jsonl", "web/0.jsonl", "web/1.jsonl", "web/val.jsonl"):
        record = json.dumps({"text": text[:5000]})
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{record}\n", encoding="utf-8")


def runnable_blocks():
    """(language, code) of the pages' blocks, without those that say why they are not run here."""
    text = "".join(page.read_text(encoding="utf-8") for page in IN_ORDER)
    for reason, language, code in BLOCK.findall(text):
        assert re.fullmatch(r"(needs an? (network|GPU|account)|not run in order: .*)?", reason)
        if not reason:
            yield language, code


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path):
    """As written, one after another in a copy of the clone, whose presets are made smaller."""
    ignored = shutil.ignore_patterns(".git", "out*", ".venv", "__pycache__")
    shutil.copytree(ROOT, tmp_path, ignore=ignored, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    for preset in (tmp_path / "config").glob("*.py"):
        with open(preset, "a", encoding="utf-8") as file:
            file.write(SMALLER)
    reader_supplies(tmp_path)
    blocks = list(runnable_blocks())
    assert len(blocks) > 15
    environment = {
        **os.environ,
        "MPLBACKEND": "agg",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    for language, code in blocks:
        words = ["bash", "-ec", code] if language == "bash" else [sys.executable, "-c", code]
        result = subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=600,
        )
        assert result.returncode == 0, f"{code}\n{result.stdout[-3000:]}"
        assert "Traceback" not in result.stdout, f"{code}\n{result.stdout[-3000:]}"
