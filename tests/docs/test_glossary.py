"""The glossary of each language is in order, and its links lead to pages that use the terms."""

import re
import unicodedata

import pytest

from tests.helpers import ROOT

ENTRY = re.compile(r"^- \*\*(?P<term>[^*]+)\*\*(?: \((?P<english>[^)]+)\))?: ", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)\)")
LANGUAGES = ("en", "pt-BR")


def entries(language):
    """(term, its English name, the page linked) of each entry, in order."""
    text = (ROOT / "docs" / language / "glossary.md").read_text(encoding="utf-8")
    for item in re.split(r"\n(?=- )", text)[1:]:
        match = ENTRY.match(item)
        assert match, f"no term: {item}"
        [page] = LINK.findall(item)
        yield match["term"], match["english"] or match["term"], page


def sort_key(term):
    """Letters and digits without case and accents."""
    decomposed = unicodedata.normalize("NFD", term.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def pages():
    """(language, page linked, [(term, its English name)]) of both glossaries."""
    for language in LANGUAGES:
        by_page = {}
        for term, english, page in entries(language):
            by_page.setdefault(page, []).append((term, english))
        for page, terms in sorted(by_page.items()):
            yield pytest.param(language, page, terms, id=f"{language}/{page}")


def uses(text, name):
    """Whether a text has a name, its words in any number: "cabeças de atenção" is one."""
    return re.search(r"\w* ".join(map(re.escape, name.casefold().split())), text.casefold())


@pytest.mark.parametrize("language", LANGUAGES)
def test_terms_are_in_alphabetical_order(language):
    terms = [term for term, _, _ in entries(language)]
    assert len(terms) > 45
    assert terms == sorted(terms, key=sort_key)


def test_both_glossaries_have_the_same_terms_and_links():
    english, portuguese = (
        {(name.casefold(), page) for _, name, page in entries(language)} for language in LANGUAGES
    )
    assert english == portuguese


@pytest.mark.parametrize("language, page, terms", list(pages()))
def test_a_term_is_on_the_page_that_it_links_to(language, page, terms):
    """In one of its languages; of a list of terms, each."""
    text = " ".join((ROOT / "docs" / language / page).read_text(encoding="utf-8").split())
    missing = []
    for term, english in terms:
        names = zip(term.split(", "), english.split(", "), strict=True)
        missing += [name for name in names if not any(uses(text, each) for each in name)]
    assert not missing
