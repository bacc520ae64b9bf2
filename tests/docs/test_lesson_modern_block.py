"""The figures of page 9 are what docs/tools/modern_block.py computes."""

import runpy

import pytest

from tests.helpers import ROOT, assert_same_figures


@pytest.fixture(scope="module")
def modern_block():
    """The names in the tool of lesson 9."""
    return runpy.run_path(str(ROOT / "docs" / "tools" / "modern_block.py"))


def test_modern_block_figures_are_the_committed_ones(modern_block):
    """Rounding may differ between machines in the last digit, and nothing else."""
    committed = modern_block["FIGURES"].read_text(encoding="utf-8")
    computed = modern_block["figures"]()
    assert_same_figures(computed, committed, absolute=1e-3)


@pytest.mark.parametrize("n_layer, block_size", [(1, 5), (2, 5), (3, 4)])
def test_modern_block_reach_grows_with_each_layer(modern_block, n_layer, block_size):
    """docs/architecture.md once said that no token beyond block_size counts."""
    changes = modern_block["logit_changes"](n_layer, block_size)
    counts = changes > modern_block["ROUNDING"]
    reach = n_layer * (block_size - 1)  # beside the newest token itself
    assert counts[: reach + 1].all()
    assert not counts[reach + 1 :].any()


def table_rows(page, heading):
    """{first cell: all cells} of the table that begins with `heading`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = text[text.index(heading) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row for row in rows}


def test_modern_block_quotes_the_table_of_architecture():
    source = table_rows("architecture.md", "| | `CHANGE` |")
    quoted = table_rows("en/09-modern-block.md", "| change | option |")
    assert len(quoted) == 8
    for name, (_, option, bits, difference, speed, _) in quoted.items():
        _, change, _, source_bits, _, source_difference, source_speed = source[name]
        assert (bits, difference) == (source_bits, source_difference)
        assert source_speed.endswith(f"({speed})")
        assert option == change or name == "a Llama"
