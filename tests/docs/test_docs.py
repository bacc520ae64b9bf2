"""docs/en and docs/pt-BR are one course in two languages; links and plots are there."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers import PORTUGUESE, README, ROOT, code_blocks, lost_in_translation, text_blocks

DOCS = ROOT / "docs"
TOOLS = DOCS / "tools"
IMAGES = DOCS / "images"
PAGES = sorted(page.name for page in (DOCS / "en").glob("*.md"))
ALL_PAGES = [README, PORTUGUESE, *sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def plots():
    """{file in docs/images: the command that draws it}."""
    sys.path.append(str(TOOLS))  # plots.py imports speed_tables.py beside it
    try:
        tool = runpy.run_path(str(TOOLS / "plots.py"))
        drawn = {name: f"python visualize.py {line}" for name, line in tool["PLOTS"].items()}
        return drawn | {n: f"python docs/tools/{file}" for n, file in tool["TOOL_PLOTS"].items()}
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
def test_every_link_leads_somewhere(page, plots):
    """An image in docs/images also has a line in docs/tools/plots.py that draws it."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", read(page)):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert linked.parent.name != "images" or linked.name in plots, target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_code_names_what_is_there(page):
    """A link such as [get_lr](../../train.py) names a function, a class or a variable."""
    for name, target in re.findall(r"\[([^\]]+)\]\(((?:\.\./)+[\w/]+\.py)\)", read(page)):
        if not name.endswith(".py") and "/config/" not in target:
            last = name.strip("`").split(".")[-1]
            code = read(page.parent / target)
            defined = rf"(?m)^\s*(def|class) {last}\b|^\s*{last}\b\s*[:=]"
            assert re.search(defined, code), f"{name} is not in {target}"


def is_portuguese(page):
    folders = (DOCS / "pt-BR", DOCS / "guia")
    return page == PORTUGUESE or any(folder in page.parents for folder in folders)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_an_image_is_in_the_language_of_its_page(page):
    folder = IMAGES / "pt" if is_portuguese(page) else IMAGES
    for path in image_paths(page):
        image = (page.parent / path).resolve()
        assert image.parent == folder or IMAGES not in image.parents, path


@pytest.mark.parametrize("portuguese", [False, True], ids=["English", "Portuguese"])
def test_every_plot_is_on_a_page(portuguese, plots):
    pages = [page for page in ALL_PAGES if is_portuguese(page) == portuguese]
    assert set(plots) <= {name for page in pages for name in images(page)}


@pytest.mark.parametrize("name", PAGES)
def test_a_plot_is_drawn_by_a_command_on_its_page(name, plots):
    """On the pages of the course; README.md shows the plot that a run leaves behind."""
    page = DOCS / "en" / name
    commands = "".join(bash_blocks(page)).splitlines()
    for image in images(page):
        assert plots[image] in commands, image
