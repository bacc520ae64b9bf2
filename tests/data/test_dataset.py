"""The token files of a data set: batches, evaluation windows, fingerprints, and damage."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from model import IGNORE_INDEX
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import TokenWriter, dataset_path, fingerprint, token_dtype, write_meta
from seugpt.data.tokenizer import CharTokenizer
from seugpt.errors import DataError


def write_dataset(folder, train, val, vocab_size=100):
    """A data set with these token ids."""
    folder.mkdir(parents=True)
    tokenizer = CharTokenizer("".join(chr(200 + i) for i in range(vocab_size)))
    splits = {}
    for split, ids in (("train", train), ("val", val)):
        path = folder / f"{split}.bin"
        with TokenWriter(path, vocab_size) as writer:
            writer.write(ids)
        splits[split] = {
            "tokens": len(ids),
            "bytes": 2 * len(ids),
            "fingerprint": fingerprint(path),
        }
    write_meta(folder / "meta.json", tokenizer, splits, "made here", "0" * 64)
    return folder


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data" / "numbers"
    return Dataset(write_dataset(folder, np.arange(1000) % 100, np.arange(50)))


def change_meta(dataset, **changes):
    path = dataset.path / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**meta, **changes}), encoding="utf-8")


# Batches


def test_a_batch_is_a_pure_function_of_its_arguments(dataset):
    x, y = dataset.batch("train", 7, 4, 16, seed=1)
    dataset.batch("train", 8, 4, 16, seed=1)
    np.random.seed(0)
    again = Dataset(dataset.path).batch("train", 7, 4, 16, seed=1)
    np.testing.assert_array_equal((x, y), again)
    for other in (("train", 8, 4, 16, 1), ("train", 7, 4, 16, 2)):
        assert not np.array_equal(dataset.batch(*other)[0], x)


def test_targets_are_the_inputs_one_token_later(dataset):
    x, y = dataset.batch("train", 0, 64, 16, seed=0)
    assert x.shape == y.shape == (64, 16)
    assert x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal((x + 1) % 100, y)


def test_batches_include_the_first_and_the_last_window(dataset):
    batches = [dataset.batch("val", i, 64, 48, seed=0)[0] for i in range(3)]
    starts = np.concatenate(batches)[:, 0]
    assert set(starts) == {0, 1}  # 50 tokens have two windows of 48 + 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size, block_size", [(4, 16), (3, 7), (100, 48), (1, 49)])
def test_all_ranks_together_evaluate_each_token_once(dataset, world_size, batch_size, block_size):
    targets = []
    for rank in range(world_size):
        for x, y in dataset.evaluation_batches("val", 0, batch_size, block_size, rank, world_size):
            assert x.shape == y.shape == (batch_size, block_size)
            is_target = y != IGNORE_INDEX
            np.testing.assert_array_equal(x[is_target] + 1, y[is_target])
            targets += y[is_target].tolist()
    assert sorted(targets) == list(range(1, 50))


def test_evaluation_windows_are_evenly_spaced_and_always_the_same(dataset):
    first_tokens = np.arange(12) * 100 // 12 * 10 % 100
    for _ in range(2):
        batches = dataset.evaluation_batches("train", 3, 4, 10)
        found = np.concatenate([x[:, 0] for x, _ in batches])
        np.testing.assert_array_equal(found, first_tokens)


@pytest.mark.parametrize("eval_iters", [0, 1, 5])
def test_all_ranks_have_equally_many_evaluation_batches(dataset, eval_iters):
    """Those of a sharded model compute each batch together; padding has no targets."""
    by_rank = [list(dataset.evaluation_batches("val", eval_iters, 2, 8, r, 3)) for r in range(3)]
    assert len({len(batches) for batches in by_rank}) == 1
    assert {x.shape for batches in by_rank for x, _ in batches} == {(2, 8)}
    num_targets = sum((y != IGNORE_INDEX).sum() for batches in by_rank for _, y in batches)
    alone = dataset.evaluation_batches("val", eval_iters, 2, 8)
    assert num_targets == sum((y != IGNORE_INDEX).sum() for _, y in alone)


def test_too_many_evaluation_batches_cover_the_split_once(dataset):
    whole_split = list(dataset.evaluation_batches("val", 0, 4, 16))
    too_many = list(dataset.evaluation_batches("val", 1000, 4, 16))
    np.testing.assert_array_equal(too_many, whole_split)


def test_batches_are_those_of_the_first_version(tmp_path):
    """Resuming a run with a newer version must not change its batches."""
    squares = tmp_path / "data" / "squares"
    dataset = Dataset(write_dataset(squares, np.arange(1000) ** 2 % 97, np.arange(50) ** 2 % 97))
    x, y = dataset.batch("train", 7, 2, 6, seed=1337)
    assert x.tolist() == [[65, 8, 50, 94, 43, 91], [12, 70, 33, 95, 62, 31]]
    assert y.tolist() == [[8, 50, 94, 43, 91, 44], [70, 33, 95, 62, 31, 2]]

    (x1, y1), (x2, y2) = dataset.evaluation_batches("val", 2, 2, 4)
    assert x1.tolist() == [[0, 1, 4, 9], [47, 72, 2, 31]]
    assert y1.tolist() == [[1, 4, 9, 16], [72, 2, 31, 62]]
    assert x2.tolist() == [[91, 43, 94, 50], [35, 11, 86, 66]]
    assert y2.tolist() == [[43, 94, 50, 8], [11, 86, 66, 48]]

    *_, (x, y) = dataset.evaluation_batches("val", 0, 4, 10)
    padding = [[0] * 10] * 3
    ignored = [[IGNORE_INDEX] * 10] * 3
    assert x.tolist() == [[48, 32, 18, 6, 93, 85, 79, 75, 73, 0], *padding]
    assert y.tolist() == [[32, 18, 6, 93, 85, 79, 75, 73, 73, IGNORE_INDEX], *ignored]


# Files


def test_nanogpt_can_read_the_token_files(dataset):
    """nanoGPT reads them with np.memmap(..., dtype=np.uint16)."""
    ids = np.memmap(dataset.path / "val.bin", dtype=np.uint16, mode="r")
    np.testing.assert_array_equal(ids, np.arange(50))
    assert dataset.bytes == {"train": 2000, "val": 100}


def test_ids_beyond_16_bits_are_stored_in_32(tmp_path):
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
    with TokenWriter(tmp_path / "x.bin", 70_000) as writer:
        writer.write([69_999, 1])
    assert np.fromfile(tmp_path / "x.bin", dtype="<u4").tolist() == [69_999, 1]


def test_ids_outside_the_vocabulary_are_found_before_training(dataset):
    """In nanoGPT, such ids end in a device-side assert (nanoGPT#470)."""
    dataset.check(100, 16)
    with pytest.raises(DataError, match=r"train\.bin .*\b99\b.*\b98\b"):
        dataset.check(99, 16)


def test_a_split_shorter_than_one_window_suggests_a_block_size(dataset):
    dataset.check(100, 49)
    pattern = r"val\.bin has 50 tokens; block_size=50 .*\b51\b.* --block_size=49"
    with pytest.raises(DataError, match=pattern):
        dataset.check(100, 50)


def truncate_train(dataset):
    os.truncate(dataset.path / "train.bin", 1997)


def empty_val(dataset):
    os.truncate(dataset.path / "val.bin", 0)


def remove_val(dataset):
    (dataset.path / "val.bin").unlink()


def write_meta_text(text):
    return lambda dataset: (dataset.path / "meta.json").write_text(text, encoding="utf-8")


def set_meta(**changes):
    return lambda dataset: change_meta(dataset, **changes)


DAMAGES = {
    "train truncated": (truncate_train, r"train\.bin has 1,997 bytes; .*1,000.*2,000"),
    "val empty": (empty_val, r"val\.bin has 0 bytes"),
    "val missing": (remove_val, r"val\.bin is missing"),
    "meta not JSON": (write_meta_text("{"), "meta.json .*JSONDecodeError"),
    "meta not an object": (write_meta_text("[]"), "meta.json .*TypeError"),
    "meta nested too deeply": (write_meta_text("[" * 100_000), "meta.json .*RecursionError"),
    "another format": (set_meta(format=99), "meta.json .*99"),
    "unknown dtype": (set_meta(dtype="object"), "meta.json .*'object'"),
    "no splits": (set_meta(splits={}), "meta.json .*KeyError"),
    "splits not objects": (set_meta(splits={"train": 1, "val": 1}), "meta.json .*TypeError"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_the_command_that_repairs_it(dataset, name):
    damage, pattern = DAMAGES[name]
    damage(dataset)
    with pytest.raises(DataError, match=pattern) as error:
        Dataset(dataset.path)
    assert re.search(r"python prepare\.py \S*numbers", str(error.value))


def test_an_invalid_tokenizer_spec_is_named_with_its_data_set(dataset):
    change_meta(dataset, tokenizer=1)
    with pytest.raises(DataError, match="tokenizer spec") as error:
        Dataset(dataset.path)
    assert str(dataset.path) in str(error.value)


def test_a_token_file_that_does_not_belong_to_meta_json_is_refused(dataset):
    """prepare.py, killed between its renames, left a new train.bin with the old meta.json."""
    ids = np.fromfile(dataset.path / "train.bin", dtype="<u2")
    ids[500] += 1
    ids.tofile(dataset.path / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin .*meta\.json.*python prepare\.py \S*numbers"):
        Dataset(dataset.path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_fingerprint_is_refused(dataset, split):
    meta = json.loads((dataset.path / "meta.json").read_text(encoding="utf-8"))
    del meta["splits"][split]["fingerprint"]
    change_meta(dataset, splits=meta["splits"])
    with pytest.raises(DataError, match=rf"{split}\.bin .*python prepare\.py \S*numbers"):
        Dataset(dataset.path)


@pytest.mark.parametrize("offset, count", [(0, 1), (9_800_000, 400_000), (19_999_999, 1)])
def test_a_fingerprint_covers_both_ends_and_samples_of_a_large_file(tmp_path, offset, count):
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(20_000_000))
    before = fingerprint(path)
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(b"x" * count)
    assert fingerprint(path) != before


def test_the_fingerprint_of_a_data_set_covers_both_splits(tmp_path):
    train, val = np.arange(1000) % 100, np.arange(50)
    original = Dataset(write_dataset(tmp_path / "original", train, val)).fingerprint
    copies = {"same": (train, val), "train": (train[::-1], val), "val": (train, val[::-1])}
    is_equal = {
        name: Dataset(write_dataset(tmp_path / name, *ids)).fingerprint == original
        for name, ids in copies.items()
    }
    assert is_equal == {"same": True, "train": False, "val": False}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../b", "/", ".hidden", "a/__pycache__"])
def test_a_data_set_name_cannot_leave_the_data_folder(name):
    with pytest.raises(DataError, match="dataset="):
        dataset_path(name)


def test_a_data_set_can_be_nested_or_an_absolute_path(workspace):
    """As in nanoGPT, which joins data/ and the name."""
    assert dataset_path("books/poems") == Path("data/books/poems")
    assert dataset_path("/tmp/.cache/x") == Path("/tmp/.cache/x")
    with pytest.raises(DataError, match=r"prepare\.py books/poems --input"):
        Dataset(dataset_path("books/poems"))
    Path("data/mine").mkdir(parents=True)
    with pytest.raises(DataError, match="write --dataset=mine"):
        dataset_path("data/mine")
    assert dataset_path("coração_2.0") == Path("data/coração_2.0")
