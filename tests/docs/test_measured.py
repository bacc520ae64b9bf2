"""Every number in a block that a page marks as measured stands in the file that the mark names.

A mark is the line `<!-- measured: FILE -->` before a paragraph, a list, a table or a code block.
"""

import re

import pytest

from tests.helpers import ROOT

PAGES = sorted(
    page for folder in ("en", "pt-BR") for page in (ROOT / "docs" / folder).rglob("*.md")
)
MARK = re.compile(r"<!-- measured: (\S+) -->\n(```.*?\n```|.*?)(?=\n\n|\n<!--|\Z)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d[\d.,]*(?<![.,])(?!\w*[A-Za-z_])")


def marked_blocks(page):
    return MARK.findall(page.read_text(encoding="utf-8"))


def english_numbers(text):
    """The numbers of program output or English prose, without thousands separators."""
    return {number.replace(",", "") for number in NUMBER.findall(text)}


def is_measured(number, measured):
    """Whether `number` is in the file, written as in English or as in Portuguese prose."""
    portuguese = number.translate(str.maketrans(",.", ".,"))
    return bool({number.replace(",", ""), portuguese.replace(",", "")} & measured)


def unmeasured(block, measured):
    prose = re.sub(r"\]\([^)]*\)|`[^`\n]+`", "", block) if "```" not in block else block
    return [number for number in NUMBER.findall(prose) if not is_measured(number, measured)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_marked_numbers_are_in_the_file(page):
    text = page.read_text(encoding="utf-8")
    blocks = marked_blocks(page)
    assert len(blocks) == text.count("<!-- measured:")
    for name, block in blocks:
        measured = english_numbers((ROOT / name).read_text(encoding="utf-8"))
        assert unmeasured(block, measured) == [], f"not in {name}:\n{block}"


@pytest.mark.parametrize(
    "block, missing",
    [
        ("The loss is 1.25 after 5,000 steps.", []),
        ("A perda é 1,25 depois de 5.000 passos.", []),
        ("The loss is 1.26.", ["1.26"]),
        ("A perda é 1,26 depois de 5.001 passos.", ["1,26", "5.001"]),
        ("Read [it](01-page.md) with `--top_k=7`.", []),
    ],
)
def test_a_number_that_was_not_measured_is_found(block, missing):
    assert unmeasured(block, english_numbers("step 5000: loss 1.25")) == missing
