"""What page 3 quotes is what docs/tools/transformer.py prints and what model.py says."""

import importlib
import re

import pytest
import torch

from tests.helpers import ROOT

TOOLS = ROOT / "docs" / "tools"
FIGURES = ROOT / "docs" / "data" / "lessons"
DECIMAL = re.compile(r"-?\d+\.\d+")


def read_page(language, name):
    return (ROOT / "docs" / language / name).read_text(encoding="utf-8")


def read_figures(name):
    return (FIGURES / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def transformer():
    """docs/tools/transformer.py; it imports transformer_diagram.py beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("transformer")


@pytest.fixture(scope="module")
def trained_transformer(transformer):
    return transformer.train()


def test_the_transformer_lesson_prints_its_figures(transformer, trained_transformer):
    """Decimals to 1e-3, as processors round differently; all the rest to the letter."""
    printed = "\n".join(transformer.report(trained_transformer)) + "\n"
    kept = read_figures("transformer.txt")
    assert DECIMAL.sub("", printed).split() == DECIMAL.sub("", kept).split()
    printed_numbers, kept_numbers = (
        [float(number) for number in DECIMAL.findall(text)] for text in (printed, kept)
    )
    assert len(kept_numbers) > 300
    assert printed_numbers == pytest.approx(kept_numbers, rel=0, abs=1.001e-3)


def test_the_transformer_lesson_notices_another_result(transformer, trained_transformer):
    """Its comparison with model.py covers the tensors that the page shows."""
    idx, targets = transformer.one_word("bebe")
    for name in transformer.PLACES:
        s = transformer.by_hand(trained_transformer, idx, targets)
        getattr(s, name)[0, 0] += 1e-3
        with pytest.raises(AssertionError):
            transformer.check(s, trained_transformer, idx, targets)


def test_the_transformer_lesson_follows_the_mask(transformer, trained_transformer):
    """Rows 0 to 2 are the same to the last bit whatever comes at position 3, as page 3 says."""
    bebe, bebi = (
        transformer.by_hand(trained_transformer, *transformer.one_word(word))
        for word in ("bebe", "bebi")
    )
    assert torch.equal(bebe.logits[:3], bebi.logits[:3])
    assert not torch.equal(bebe.logits[3], bebi.logits[3])


@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_the_transformer_lesson_shows_what_was_printed(language):
    page = read_page(language, "03-transformer.md")
    kept = read_figures("transformer.txt")
    blocks = re.findall(
        r"<!-- measured: \S+/transformer.txt -->\n```text\n(.*?)```", page, re.DOTALL
    )
    assert len(blocks) == page.count("```text") == 10
    for block in blocks:
        assert block in kept


@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_the_transformer_lesson_quotes_model_py(language):
    """Its statements in backticks are lines of model.py, or the beginning of one."""
    page = re.sub(r"```.*?```", "", read_page(language, "03-transformer.md"), flags=re.DOTALL)
    code = (ROOT / "model.py").read_text(encoding="utf-8")
    quotes = [quote for quote in re.findall(r"`([^`]+)`", page) if " = " in quote or "(" in quote]
    assert len(quotes) > 12
    for quote in quotes:
        assert quote in code, quote
    for name in re.findall(r"\[(\w+)\]\(../../model.py\)", page):
        assert f"def {name}(" in code or f"class {name}(" in code, name
