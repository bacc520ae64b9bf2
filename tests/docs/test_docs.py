"""docs/en and docs/pt-BR are one path in two languages; what the pages of docs link to, and show, is there."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers import PORTUGUESE, README, ROOT, code_blocks, text_blocks, untranslated

DOCS = ROOT / "docs"
sys.path.append(str(DOCS))  # docs/pictures.py imports docs/speed.py
PICTURES = runpy.run_path(str(DOCS / "pictures.py"))["PICTURES"]
PATH = sorted(page.name for page in (DOCS / "en").glob("*.md"))
ALL = [README, PORTUGUESE, *sorted(DOCS.rglob("*.md"))]


def text(page):
    return page.read_text(encoding="utf-8")


def shown(page):
    """The pictures of a page, in order: their paths, seen from it."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text(page))


def bash(page):
    return [block for language, block in code_blocks(page) if language == "bash"]


def rows(page):
    """The rows of a page's tables: what a translation leaves of each cell."""
    return [
        [untranslated(cell) for cell in row.split(" | ")]
        for row in text_blocks(page)
        if row.startswith("|")
    ]


def anchors(page):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", text(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_both_languages_have_the_same_pages():
    assert (
        sorted(page.name for page in (DOCS / "pt-BR").glob("*.md")) == PATH and "README.md" in PATH
    )


@pytest.mark.parametrize("part", [bash, shown, rows], ids=lambda part: part.__name__)
@pytest.mark.parametrize("name", PATH)
def test_both_languages_have_the_same(name, part):
    assert part(DOCS / "pt-BR" / name) == part(DOCS / "en" / name)


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    """A picture of docs/images also has the line of docs/pictures.py that draws it."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert linked.parent.name != "images" or linked.name in PICTURES, target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_every_picture_stands_on_a_page():
    assert set(PICTURES) - {Path(picture).name for page in ALL for picture in shown(page)} == set()


@pytest.mark.parametrize("name", PATH)
def test_a_picture_is_of_its_pages_commands(name):
    """On the pages of the path; README.md shows the picture that a run leaves."""
    commands = "".join(bash(DOCS / "en" / name)).splitlines()
    for picture in shown(DOCS / "en" / name):
        assert f"python visualize.py {PICTURES[Path(picture).name]}" in commands, picture
