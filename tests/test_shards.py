"""Tokens in one file or many, as one stream."""

import os
import sys

import numpy as np
import pytest

from data import DataError, replacing
from data.dataset import Dataset
from data.shards import Tokens, open_flat


@pytest.mark.parametrize("sizes", [[100], [1, 99], [1, 1, 1, 97], [33, 33, 34], [7] * 14 + [2]])
def test_many_files_are_one_array(tmp_path, sizes):
    ids = np.random.default_rng(0).integers(65536, size=100).astype("<u2")
    paths = [tmp_path / f"{number}.bin" for number in range(len(sizes))]
    for path, part in zip(paths, np.split(ids, np.cumsum(sizes)[:-1]), strict=True):
        part.tofile(path)
    tokens = Tokens([open_flat(path, np.dtype("<u2")) for path in paths])
    assert len(tokens) == 100
    for start in range(101):
        for stop in (0, start, start + 1, start + 40, 100, 1000, None):
            np.testing.assert_array_equal(tokens[start:stop], ids[start:stop])
    starts = [89, 0, 31, 90, 31]
    np.testing.assert_array_equal(tokens.windows(starts, 10), [ids[start : start + 10] for start in starts])
    found = list(tokens.pieces())
    assert [name for name, _ in found] == paths
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in found]), ids)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody replace a file that is open")
def test_a_run_keeps_the_tokens_it_began_with(tiny):
    """prepare.py, run again during a run, once changed the text below it without a word."""
    dataset = Dataset("data/tiny")
    before = dataset.batch("train", 0, 8, 16, seed=0)
    with replacing("data/tiny/train.bin") as temporary:
        temporary.write_bytes(bytes(2 * dataset.tokens["train"]))
    np.testing.assert_array_equal(dataset.batch("train", 0, 8, 16, seed=0), before)


def test_a_file_cut_short_during_a_run_is_named(tiny):
    """A mapping would end the process with a bus error."""
    dataset = Dataset("data/tiny")
    os.truncate("data/tiny/train.bin", 100)
    assert len(dataset.ids["train"][:50]) == 50
    with pytest.raises(DataError, match=r"train.bin became shorter than its 5,400 tokens while it was in use. Restore"):
        dataset.ids["train"][:51]
