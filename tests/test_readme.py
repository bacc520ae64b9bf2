"""README.md tells the truth about the code. `python tests/test_readme.py` writes its options table anew."""

import re
import sys
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from config import Options, describe, option_types  # noqa: E402
from evaluate import EvaluateConfig  # noqa: E402
from export import ExportConfig  # noqa: E402
from generation import Sampling  # noqa: E402
from model import ModelConfig  # noqa: E402
from prepare import PrepareConfig  # noqa: E402
from sample import SampleConfig  # noqa: E402
from train import TrainConfig  # noqa: E402
from visualize import COMMANDS as PICTURES  # noqa: E402

README = ROOT / "README.md"
PORTUGUESE = ROOT / "README.pt-BR.md"
CLASSES = {
    "prepare.py": [PrepareConfig], "train.py": [ModelConfig, TrainConfig], "sample.py": [Sampling, SampleConfig],
    "evaluate.py": [EvaluateConfig], "export.py": [ExportConfig],
    "visualize.py": [options for _, options in PICTURES.values()],
}  # fmt: skip
TABLE = re.compile(r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", re.DOTALL)


def options_table():
    lines = []
    for script, classes in CLASSES.items():
        lines += [f"**{script}**", "", "| option | default | type | what it does |", "|---|---|---|---|"]
        rows = []
        for cls in classes:
            types = option_types(cls)
            for field in fields(cls):
                kind, help_text = types[field.name]
                rows.append(f"| `{field.name}` | `{field.default!r}` | {describe(kind)} | {help_text} |")
        lines += [*dict.fromkeys(rows), ""]  # pictures share some
    return "\n".join(lines)


def commands():
    """Every command in the code blocks of README and docs/en, continued lines joined: (script, words)."""
    pages = [README, *sorted((ROOT / "docs" / "en").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                match = re.search(r"(prepare|train|sample|evaluate|export|visualize)\.py(.*)", part)
                if match:
                    yield match.group(1) + ".py", re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", match.group(2))


COMMANDS = list(commands())


def test_the_options_table_is_the_codes():
    assert TABLE.search(README.read_text(encoding="utf-8")).group() == options_table(), (
        "run: python tests/test_readme.py"
    )


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


def blocks(path):
    """A page's code blocks, without what a translation may change: comments, and the labels of diagrams."""
    for language, block in re.findall(r"```(\w+)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        yield language, re.sub(r'"[^"]*"' if language == "mermaid" else r" *#.*", "", block)


def pieces(path):
    """A page's headings, paragraphs, items and table rows in order, without the code blocks and the options table."""
    text = re.sub(r"```.*?```", "", TABLE.sub("", path.read_text(encoding="utf-8")), flags=re.DOTALL)
    return re.split(r"\n\s*\n|\n(?=[|-] )", text.strip())


def kept(piece):
    """What a translation leaves as it is: the level of a heading, code between backquotes, numbers, columns."""
    found = re.findall(r"^#+ |`[^`]+`|\d+(?:[.,]\d+)*", piece)
    return {" ".join(each.split()) for each in found} | {f"{piece.count(' |')} columns"}


def test_both_readmes_have_the_same_commands():
    for english, portuguese in zip_longest(blocks(README), blocks(PORTUGUESE), fillvalue=("no", "block")):
        assert portuguese == english, f"{PORTUGUESE.name}: copy this block from {README.name}:\n{english[1]}"


def test_both_readmes_say_the_same():
    """Piece by piece; the message shows the first that is missing, or has other numbers or names, in one of the two."""
    for english, portuguese in zip_longest(pieces(README), pieces(PORTUGUESE), fillvalue="# no more"):
        differ = kept(english) ^ kept(portuguese)
        what = f"{english}\nIt has:\n{portuguese}\nThey differ in {differ}"
        assert not differ, f"translate into {PORTUGUESE.name} what is new here or just above:\n{what}"


def test_nothing_is_left_to_fill_in():
    for path in (*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")):
        assert "@@" not in path.read_text(encoding="utf-8"), path


def test_requirements_pin_exactly_the_five_packages():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line.split("==")[0] for line in lines] == ["torch", "numpy", "tiktoken", "tqdm", "matplotlib"]
    assert all("==" in line for line in lines) and lines[0] == "torch==2.13.0"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(TABLE.sub(lambda match: options_table(), text), encoding="utf-8")


def test_what_students_open_stays_short():
    """Lines at most: 400 for the model and the loop, 250 for every other file of the program."""
    folders = (ROOT, *(ROOT / name for name in ("config", "data", "huggingface", "pictures")))
    for path in (path for folder in folders for path in folder.glob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (400 if path.name in ("model.py", "train.py") else 250), path.name


def test_every_promise_has_its_test():
    """docs/RELIABILITY.md names tests that are there."""
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in sources] == []
    assert all((ROOT / name).exists() for name in re.findall(r"`(tests/\w+\.py)`", text))
    tables = text.partition("## A long run")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert all("test_" in row.rsplit("|", 2)[1] for row in rows)
