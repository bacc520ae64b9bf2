"""docs/en and docs/pt-BR are one course in two languages; links and plots are there."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers import PORTUGUESE, README, ROOT, code_blocks, lost_in_translation, text_blocks

DOCS = ROOT / "docs"
IMAGES = DOCS / "images"
TOOLS = DOCS / "tools"
PAGES = sorted(page.name for page in (DOCS / "en").glob("*.md"))
ALL_PAGES = [README, PORTUGUESE, *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def plots():
    """{file in docs/images: the visualize.py command that draws it}."""
    sys.path.append(str(TOOLS))  # plots.py imports speed_tables.py beside it
    try:
        return runpy.run_path(str(TOOLS / "plots.py"))["PLOTS"]
    finally:
        sys.path.remove(str(TOOLS))


def read(page):
    return page.read_text(encoding="utf-8")


def image_paths(page):
    """The images of a page, in order: their paths, relative to it."""
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(page))


def images(page):
    """The names of a page's images, in order: the same in both languages."""
    return [Path(path).name for path in image_paths(page)]


def bash_blocks(page):
    return [block for language, block in code_blocks(page) if language == "bash"]


def table_rows(page):
    return [block for block in text_blocks(page) if block.startswith("|")]


def anchors(page):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", read(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_both_languages_have_the_same_pages():
    assert sorted(page.name for page in (DOCS / "pt-BR").glob("*.md")) == PAGES
    assert "README.md" in PAGES


@pytest.mark.parametrize("part", [bash_blocks, images], ids=lambda part: part.__name__)
@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_parts(name, part):
    assert part(DOCS / "pt-BR" / name) == part(DOCS / "en" / name)


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_tables(name):
    rows = [table_rows(DOCS / language / name) for language in ("en", "pt-BR")]
    for english, portuguese in zip(*rows, strict=True):
        differ = lost_in_translation(english, portuguese)
        assert not differ, f"{english}\n{portuguese}\ndiffer in {differ}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", read(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def drawing_commands(name, plots):
    """The commands that draw an image: one of visualize.py, or scripts that have its name."""
    if name in plots:
        return {f"python visualize.py {plots[name]}"}
    scripts = [path for path in TOOLS.glob("*.py") if Path(name).stem in read(path)]
    return {f"python docs/tools/{path.name}" for path in scripts}


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_an_image_is_drawn_by_the_docs_and_in_the_language_of_its_page(page, plots):
    is_portuguese = page == PORTUGUESE or DOCS / "pt-BR" in page.parents
    for path in image_paths(page):
        image = (page.parent / path).resolve()
        assert drawing_commands(image.name, plots), path
        if IMAGES in image.parents:
            assert image.parent == (IMAGES / "pt" if is_portuguese else IMAGES), path


@pytest.mark.parametrize("pages", ["en", "pt-BR"])
def test_every_plot_is_on_a_page(pages, plots):
    shown = {name for page in (DOCS / pages).glob("*.md") for name in images(page)}
    shown |= set(images(README if pages == "en" else PORTUGUESE))
    assert set(plots) <= shown


def test_every_image_is_shown():
    """Files of docs/images that no page shows were left there by plots that have gone."""
    shown = {(page.parent / path).resolve() for page in ALL_PAGES for path in image_paths(page)}
    assert [path for path in IMAGES.rglob("*.*") if path not in shown] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_plot_is_drawn_by_a_command_on_its_page(name, plots):
    """On the pages of the course; README.md shows the plot that a run leaves behind."""
    page = DOCS / "en" / name
    commands = set("".join(bash_blocks(page)).splitlines())
    for image in images(page):
        assert drawing_commands(image, plots) & commands, image
