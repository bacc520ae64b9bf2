"""The .bin files: batches as a pure function, evaluation on the same tokens, and damage that is named."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import model
from seugpt.data.dataset import (
    IGNORE,
    Dataset,
    TokenWriter,
    dataset_path,
    fingerprint,
    token_dtype,
    write_meta,
)
from seugpt.data.tokenizer import CharTokenizer
from seugpt.errors import DataError
from seugpt.files import process_exists, replacing, replacing_all


def make(folder, train, val, vocab_size=100):
    """A data set whose tokens are given."""
    folder.mkdir(parents=True)
    tokenizer = CharTokenizer("".join(chr(200 + i) for i in range(vocab_size)))
    for split, ids in (("train", train), ("val", val)):
        with TokenWriter(folder / f"{split}.bin", vocab_size) as writer:
            writer.write(ids)
    splits = {
        split: {
            "tokens": len(ids),
            "bytes": 2 * len(ids),
            "fingerprint": fingerprint(folder / f"{split}.bin"),
        }
        for split, ids in (("train", train), ("val", val))
    }
    write_meta(folder / "meta.json", tokenizer, splits, "made here", "0" * 64)
    return folder


@pytest.fixture
def dataset(tmp_path):
    return Dataset(make(tmp_path / "data" / "numbers", np.arange(1000) % 100, np.arange(50)))


def test_batch_is_pure(dataset):
    x, y = dataset.batch("train", 7, 4, 16, seed=1)
    dataset.batch("train", 8, 4, 16, seed=1)
    np.random.seed(0)
    again = Dataset(dataset.path).batch("train", 7, 4, 16, seed=1)
    np.testing.assert_array_equal((x, y), again)
    for other in (("train", 8, 4, 16, 1), ("train", 7, 4, 16, 2)):
        assert not np.array_equal(dataset.batch(*other)[0], x)


def test_batch_is_windows_with_targets_one_later(dataset):
    x, y = dataset.batch("train", 0, 64, 16, seed=0)
    assert x.shape == y.shape == (64, 16) and x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal((x + 1) % 100, y)


def test_batches_reach_the_first_and_the_last_window(dataset):
    starts = {int(dataset.batch("val", i, 64, 48, seed=0)[0].min()) for i in range(3)}
    assert starts == {0}
    both = np.concatenate([dataset.batch("val", i, 64, 48, seed=0)[0][:, 0] for i in range(3)])
    assert set(both) == {0, 1}  # 50 tokens hold two windows of 48 + 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size, block_size", [(4, 16), (3, 7), (100, 48), (1, 49)])
def test_the_whole_split_is_every_token_once_whatever_the_ranks(
    dataset, world_size, batch_size, block_size
):
    targets = []
    for rank in range(world_size):
        for x, y in dataset.evaluation_batches("val", 0, batch_size, block_size, rank, world_size):
            assert x.shape == y.shape == (batch_size, block_size)
            np.testing.assert_array_equal(x[y != IGNORE] + 1, y[y != IGNORE])
            targets += y[y != IGNORE].tolist()
    assert sorted(targets) == list(range(1, 50))


def test_a_count_of_batches_is_evenly_spaced_and_always_the_same(dataset):
    first = [x[:, 0] for x, _ in dataset.evaluation_batches("train", 3, 4, 10)]
    np.testing.assert_array_equal(np.concatenate(first), (np.arange(12) * 100 // 12 * 10) % 100)
    again = [x[:, 0] for x, _ in dataset.evaluation_batches("train", 3, 4, 10)]
    np.testing.assert_array_equal(first, again)


def test_a_count_beyond_the_split_is_the_split_once(dataset):
    few, many = (list(dataset.evaluation_batches("val", count, 4, 16)) for count in (0, 1000))
    np.testing.assert_array_equal(few, many)


def test_batches_are_what_they_were(tmp_path):
    """Numbers of the first version, which mapped one file: a run that is resumed goes on with the same batches."""
    dataset = Dataset(
        make(tmp_path / "data" / "squares", np.arange(1000) ** 2 % 97, np.arange(50) ** 2 % 97)
    )
    x, y = dataset.batch("train", 7, 2, 6, seed=1337)
    assert x.tolist() == [[65, 8, 50, 94, 43, 91], [12, 70, 33, 95, 62, 31]]
    assert y.tolist() == [[8, 50, 94, 43, 91, 44], [70, 33, 95, 62, 31, 2]]
    (x1, y1), (x2, y2) = dataset.evaluation_batches("val", 2, 2, 4)
    assert x1.tolist() + x2.tolist() == [
        [0, 1, 4, 9],
        [47, 72, 2, 31],
        [91, 43, 94, 50],
        [35, 11, 86, 66],
    ]
    assert y1.tolist() + y2.tolist() == [
        [1, 4, 9, 16],
        [72, 2, 31, 62],
        [43, 94, 50, 8],
        [11, 86, 66, 48],
    ]
    *_, (x, y) = dataset.evaluation_batches("val", 0, 4, 10)
    assert x.tolist() == [[48, 32, 18, 6, 93, 85, 79, 75, 73, 0]] + [[0] * 10] * 3
    assert y.tolist() == [[32, 18, 6, 93, 85, 79, 75, 73, 73, IGNORE]] + [[IGNORE] * 10] * 3


def test_the_padding_is_what_the_model_ignores():
    assert IGNORE == model.IGNORE


def test_files_are_nanogpts(dataset):
    """np.memmap(..., dtype=np.uint16) is how nanoGPT reads them."""
    np.testing.assert_array_equal(
        np.memmap(dataset.path / "val.bin", dtype=np.uint16, mode="r"), np.arange(50)
    )
    assert dataset.bytes == {"train": 2000, "val": 100}


def test_ids_beyond_16_bits_take_32(tmp_path):
    assert token_dtype(65_536) == np.uint16 and token_dtype(65_537) == np.uint32
    with TokenWriter(tmp_path / "x.bin", 70_000) as writer:
        writer.write([69_999, 1])
    assert np.fromfile(tmp_path / "x.bin", dtype="<u4").tolist() == [69_999, 1]


def test_a_body_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"old")
    with pytest.raises(KeyError), replacing(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"half of the new")
        raise KeyError
    assert (tmp_path / "x.bin").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "x.bin").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_several_files_are_replaced_when_all_are_on_the_disk(tmp_path, monkeypatch):
    """A disk that is full at the last of them left new ones beside old ones."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"old")
    outcomes = iter([0, 0, OSError("full"), 0, 0, 0])

    def fsync(descriptor):
        if error := next(outcomes):
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    for kept, outcome in ((b"old", pytest.raises(OSError)), (b"new", contextlib.nullcontext())):
        with outcome, replacing_all(*paths) as temporaries:
            for temporary in temporaries:
                temporary.write_bytes(b"new")
        assert sorted(tmp_path.iterdir()) == paths and {path.read_bytes() for path in paths} == {
            kept
        }


@pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows it cannot be told whether a process lives"
)
def test_the_next_write_removes_what_a_killed_process_left(tmp_path):
    """A killed prepare.py left gigabytes behind for ever."""
    code = """if True:
        import os, sys
        from seugpt.files import replacing
        with replacing(sys.argv[1]) as temporary:
            temporary.touch()
            os.kill(os.getpid(), 9)"""
    root = Path(model.__file__).parent
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.bin")], cwd=root)
    process.wait()
    assert (tmp_path / f".x.bin.{process.pid}.tmp").exists() and not process_exists(process.pid)
    others = [
        f".x.bin.{os.getppid()}.tmp",
        f".y.bin.{process.pid}.tmp",
        ".x.bin.backup.tmp",
    ]  # alive, or not ours
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "x.bin") as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", *others}


def test_ids_beyond_the_vocabulary_are_found_before_training(dataset):
    """Elsewhere this ends in a device-side assert (nanoGPT#470)."""
    dataset.check(100, 16)
    with pytest.raises(
        DataError, match=r"train.bin holds the token id 99; the vocabulary ends at 98"
    ):
        dataset.check(99, 16)


def test_a_split_shorter_than_one_window_is_named_with_what_fits(dataset):
    dataset.check(100, 49)
    with pytest.raises(
        DataError,
        match=r"val.bin has 50 tokens; block_size=50 needs at least 51. Use --block_size=49",
    ):
        dataset.check(100, 50)


def damage(folder, how):
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if how == "truncated":
        (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-3])
    elif how == "empty":
        (folder / "val.bin").write_bytes(b"")
    elif how == "missing":
        (folder / "val.bin").unlink()
    elif how == "no json":
        (folder / "meta.json").write_text("{", encoding="utf-8")
    elif how == "no object":
        (folder / "meta.json").write_text("[]", encoding="utf-8")
    else:
        change = {
            "format": {"format": 99},
            "dtype": {"dtype": "object"},
            "splits": {"splits": {}},
            "tokenizer": {"tokenizer": 1},
        }
        (folder / "meta.json").write_text(json.dumps({**meta, **change[how]}), encoding="utf-8")


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "missing",
        "no json",
        "no object",
        "format",
        "dtype",
        "splits",
        "tokenizer",
    ],
)
def test_damage_is_named(dataset, how):
    damage(dataset.path, how)
    with pytest.raises(
        DataError,
        match="tokenizer description" if how == "tokenizer" else "python prepare.py numbers",
    ):
        Dataset(dataset.path)


def test_a_file_of_another_preparation_is_noticed(dataset):
    """prepare.py killed between its renames left a new train.bin with the old meta.json, and nobody noticed."""
    ids = np.fromfile(dataset.path / "train.bin", dtype="<u2")
    ids[500] += 1
    ids.tofile(dataset.path / "train.bin")
    with pytest.raises(
        DataError, match=r"train\.bin is not the file that meta.json was written with"
    ):
        Dataset(dataset.path)
    meta = json.loads((dataset.path / "meta.json").read_text(encoding="utf-8"))
    for split in meta["splits"].values():
        del split["fingerprint"]  # as it was before there were fingerprints
    (dataset.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert Dataset(dataset.path).tokens["train"] == 1000
    os.truncate(dataset.path / "train.bin", 1997)  # which needs none to be seen
    with pytest.raises(
        DataError,
        match=r"train\.bin has 1,997 bytes; meta\.json speaks of 1,000 tokens \(2,000 bytes",
    ):
        Dataset(dataset.path)


@pytest.mark.parametrize("at, count", [(0, 1), (9_800_000, 400_000), (19_999_999, 1)])
def test_a_fingerprint_sees_both_ends_and_places_between_of_a_large_file(tmp_path, at, count):
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(20_000_000))
    before = fingerprint(path)
    with open(path, "rb+") as file:
        file.seek(at)
        file.write(b"x" * count)
    assert fingerprint(path) != before


def test_a_fingerprint_is_of_both_splits(tmp_path):
    one = (np.arange(1000) % 100, np.arange(50))
    others = {"same": one, "train": (one[0][::-1], one[1]), "val": (one[0], one[1][::-1])}
    before = Dataset(make(tmp_path / "one", *one)).fingerprint
    same = {
        name: Dataset(make(tmp_path / name, *ids)).fingerprint == before
        for name, ids in others.items()
    }
    assert same == {"same": True, "train": False, "val": False}


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/tmp", ".hidden", "__pycache__"])
def test_names_stay_below_data(name):
    with pytest.raises(DataError, match="one plain name"):
        dataset_path(name)
    assert dataset_path("coração_2.0") == Path("data/coração_2.0")
