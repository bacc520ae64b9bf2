"""Tokens from elsewhere: one stream over many files, three layouts, and damage that is named."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import prepare
import sample
import seugpt.data.dataset
import train
from seugpt.checkpoint import storage as checkpoint
from seugpt.data.dataset import Dataset
from seugpt.data.shards import Tokens, open_flat
from seugpt.data.tokenizer import CharTokenizer
from seugpt.errors import DataError
from seugpt.files import replacing
from tests.helpers import llmc_file, write_token_files

LAYOUTS = ("nanoGPT", "NumPy", "llm.c")


@pytest.fixture
def gpt2(monkeypatch):
    """Stands for GPT-2's vocabulary, which may have to be downloaded: the tokenizers that were asked for."""
    asked = []

    def load(spec, source):
        asked.append(spec)
        return CharTokenizer("".join(chr(200 + i) for i in range(100)))

    monkeypatch.setattr(seugpt.data.dataset, "load_tokenizer", load)
    return asked


@pytest.fixture
def folder(workspace):
    return Path("data/web")


@pytest.mark.parametrize("sizes", [[100], [1, 99], [1, 1, 1, 97], [33, 33, 34], [7] * 14 + [2]])
def test_many_files_are_one_array(tmp_path, sizes):
    ids = np.random.default_rng(0).integers(65536, size=100).astype("<u2")
    paths = [tmp_path / f"{number}.bin" for number in range(len(sizes))]
    for path, part in zip(paths, np.split(ids, np.cumsum(sizes)[:-1]), strict=True):
        part.tofile(path)
    tokens = Tokens([open_flat(path) for path in paths])
    assert len(tokens) == 100
    for start in range(101):
        for stop in (0, start, start + 1, start + 40, 100, 1000, None):
            np.testing.assert_array_equal(tokens[start:stop], ids[start:stop])
    starts = [89, 0, 31, 90, 31]
    np.testing.assert_array_equal(
        tokens.windows(starts, 10), [ids[start : start + 10] for start in starts]
    )
    found = list(tokens.pieces())
    assert [name for name, _ in found] == paths
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in found]), ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_tokens(folder, layout, gpt2):
    train_ids, val_ids = np.arange(1000) ** 2 % 97, np.arange(50) % 97
    dataset = Dataset(write_token_files(folder, layout, train_ids, val_ids))
    np.testing.assert_array_equal(dataset.ids["train"][:], train_ids)
    np.testing.assert_array_equal(dataset.ids["val"][:], val_ids)
    assert dataset.tokens == {"train": 1000, "val": 50} and dataset.bytes == {
        "train": None,
        "val": None,
    }
    assert gpt2 == [{"kind": "gpt2"}]
    dataset.check(100, 16)
    (note,) = dataset.notes
    assert (
        note.startswith("data/web has no meta.json: its ids are taken as GPT-2's tokens")
        and layout in note
    )


def test_files_follow_in_name_order_and_the_last_mark_names_the_split(folder, gpt2):
    folder.mkdir(parents=True)
    for name, ids in {
        "a_train_2": [2],
        "b_train_0": [3],
        "a_train_1": [1],
        "a_train_val_1": [8],
        "val": [9],
    }.items():
        np.save(folder / f"{name}.npy", np.array(ids, dtype=np.uint16))
    for other in ("a_training_1.npy", "._a_train_1.npy", "a_train_1.npy.part", "notes_val_1.txt"):
        (folder / other).write_bytes(b"?")
    dataset = Dataset(folder)
    assert dataset.ids["train"][:].tolist() == [1, 2, 3] and dataset.ids["val"][:].tolist() == [
        8,
        9,
    ]


def test_uint32_is_read_too(folder, gpt2):
    write_token_files(folder, "NumPy", [0] * 30, [0] * 30)
    for number in range(3):
        np.save(
            folder / f"fineweb_edu_train_{number:06d}.npy",
            np.array([70_000 + number] * 20, dtype=np.uint32),
        )
    dataset = Dataset(folder)
    assert dataset.ids["train"][19:21].tolist() == [70_000, 70_001]
    with pytest.raises(
        DataError, match=r"train_000000.npy holds the token id 70000; the vocabulary ends at 50256"
    ):
        dataset.check(50_257, 16)


def test_a_file_that_numpy_wrote_in_version_2_is_read(folder, gpt2):
    write_token_files(folder, "NumPy", [0] * 30, [0] * 30)
    with open(folder / "fineweb_edu_train_000001.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(20, dtype=np.uint16), version=(2, 0))
    assert Dataset(folder).ids["train"][10:30].tolist() == list(range(20))


def test_every_file_of_a_split_is_checked_for_ids_beyond_the_vocabulary(folder, gpt2):
    dataset = Dataset(write_token_files(folder, "llm.c", [0] * 20 + [99], [0] * 30))
    dataset.check(100, 16)
    with pytest.raises(
        DataError,
        match=r"web_train_000002.bin holds the token id 99; .* ends at 98. .*python prepare",
    ):
        dataset.check(99, 16)
    with pytest.raises(
        DataError, match=r"train_000000.bin \(and 2 more\) has 21 tokens; .*needs at least 31"
    ):
        dataset.check(100, 30)


def damaged(folder, how):
    """data/web with one fault."""
    layout = how.split()[0]
    write_token_files(folder, layout, np.arange(30), np.arange(30))
    suffix = ".npy" if layout == "NumPy" else ".bin"
    file = next(iter(sorted(folder.glob(f"*train_000001{suffix}"))), folder / "train.bin")
    content = file.read_bytes()
    arrays = {
        "NumPy 2D": np.zeros((5, 2), dtype=np.uint16),
        "NumPy int64": np.zeros(10, dtype=np.int64),
        "NumPy big-endian": np.zeros(10, dtype=">u2"),
        "NumPy scalar": np.uint16(1),
        "NumPy object": np.array([{}]),
        "NumPy wider": np.zeros(10, dtype=np.uint32),
        "NumPy none": np.zeros(0, dtype=np.uint16),
    }
    if how in arrays:
        np.save(file, arrays[how])
    elif how.endswith("one byte less"):
        file.write_bytes(content[:-1])
    elif how.endswith("one token more"):
        file.write_bytes(content + b"\0\0")
    elif how.endswith("half a header"):
        file.write_bytes(content[: 40 if layout == "NumPy" else 600])
    elif how.endswith("empty"):
        file.write_bytes(b"")
    elif how.endswith("no train"):
        for path in folder.glob("*train*"):
            path.unlink()
    elif how.endswith("no val"):
        for path in folder.glob("*val*"):
            path.unlink()
    elif how == "nanoGPT pickle":
        (folder / "meta.pkl").write_bytes(b"cos\nabort\n(tR.")  # would end this process
    elif how == "nanoGPT mixed":
        np.save(folder / "web_train_0.npy", np.zeros(5, dtype=np.uint16))
    elif how == "NumPy no header":
        file.write_bytes(np.zeros(100, dtype="<u2").tobytes())
    elif how == "NumPy folder":
        file.unlink()
        file.mkdir()
    else:
        changes = {"llama": {"magic": 20240801, "version": 7}, "hellaswag": {"magic": 20240522}}
        changes |= {"version": {"version": 2}, "none": {"tokens": 0}, "negative": {"tokens": -3}}
        file.write_bytes(
            llmc_file([] if how == "llm.c none" else range(10), **changes[how.split()[1]])
        )


DAMAGES = {
    "nanoGPT one byte less": r"train.bin has 59 bytes; 29 tokens of uint16 are 58. Copy or download it again",
    "nanoGPT empty": r"train.bin is empty. Copy or download it again",
    "nanoGPT no train": r"data/web has token files for val \(val.bin\) and none for train; add data/web/train.bin",
    "nanoGPT no val": r"data/web has token files for train \(train.bin\) and none for val; add data/web/val.bin",
    "nanoGPT pickle": r"meta.pkl is .*GPT-2's.*python prepare.py web --input=FILE_OR_FOLDER --tokenizer=char",
    "nanoGPT mixed": r"several layouts: train.bin \(nanoGPT\) and web_train_0.npy \(NumPy\). Leave those of one",
    "NumPy one byte less": r"1.npy has 147 bytes; 10 tokens of uint16 and its header of 128 are 148. Copy",
    "NumPy one token more": r"1.npy has 150 bytes; 10 tokens of uint16 and its header of 128 are 148. Copy",
    "NumPy half a header": r"1.npy does not begin as a .npy file .*Copy or download",
    "NumPy no header": r"1.npy does not begin as a .npy file .*Copy or download",
    "NumPy empty": r"1.npy is empty",
    "NumPy none": r"1.npy has no tokens. Take it out",
    "NumPy no val": r"mv data/web/fineweb_edu_train_000002.npy data/web/fineweb_edu_val_000002.npy",
    "NumPy no train": r"for val \(fineweb_edu_val_000002.npy\) and none for train",
    "NumPy 2D": r"array of uint16 with the shape \(5, 2\); .* in one dimension. Convert it: python -c",
    "NumPy int64": r"array of int64 with .* little-endian uint16 or uint32 .*Convert it: python -c",
    "NumPy big-endian": r"array of >u2 with .* little-endian uint16 or uint32 .*Convert it: python -c",
    "NumPy scalar": r"with the shape \(\);",
    "NumPy object": r"1.npy holds pickled objects, which are never read. Save",
    "NumPy wider": r"1.npy holds uint32, .*0.npy uint16. Save all files of a split with the same dtype",
    "NumPy folder": r"cannot open data/web/fineweb_edu_train_000001.npy: Is a directory",
    "llm.c one byte less": r"1.bin has 1,043 bytes; 10 tokens of uint16 and its header of 1,024 are 1,044. Copy",
    "llm.c one token more": r"1.bin has 1,046 bytes; 10 tokens .* are 1,044. Copy",
    "llm.c half a header": r"1.bin has 600 bytes; 10 tokens .* are 1,044. Copy",
    "llm.c empty": r"1.bin is empty",
    "llm.c none": r"1.bin has no tokens. Take it out",
    "llm.c negative": r"1.bin has 1,044 bytes; -3 tokens",
    "llm.c llama": r"1.bin holds Llama 3's tokens .*20240801.*Make it again",
    "llm.c hellaswag": r"1.bin begins with the number 20240522; .* begin with 20240520. Name files that are uint16",
    "llm.c version": r"1.bin has version 2 of llm.c's layout; only 1 can be read. Make it again",
    "llm.c no val": r"mv data/web/fineweb_train_000002.bin data/web/fineweb_val_000002.bin",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_each_fault_is_one_message_before_the_vocabulary_is_loaded(folder, how, gpt2):
    damaged(folder, how)
    with pytest.raises(DataError, match=DAMAGES[how]) as error:
        Dataset(folder)
    assert "data/web" in str(error.value) and "\n" not in str(error.value) and gpt2 == []


def test_the_advised_conversion_works(folder, gpt2):
    write_token_files(folder, "NumPy", np.arange(30), np.arange(30))
    for number in range(3):
        np.save(folder / f"fineweb_edu_train_{number:06d}.npy", np.arange(10).reshape(5, 2))
        with pytest.raises(DataError) as error:
            Dataset(folder)
        exec(re.search(r'python -c "(.*)"', str(error.value)).group(1))
    assert Dataset(folder).ids["train"][:].tolist() == list(range(10)) * 3


def test_the_pickle_of_nanogpt_comes_with_the_command_for_its_text(folder, gpt2):
    damaged(folder, "nanoGPT pickle")
    (folder / "input.txt").write_text("o menino viu a maçã " * 20, encoding="utf-8")
    with pytest.raises(DataError) as error:
        Dataset(folder)
    prepare.main(re.search(r"python prepare.py (.*)", str(error.value)).group(1).split())
    assert Dataset(folder).tokens["train"] == 360 and gpt2[0]["kind"] == "char"


def test_our_own_meta_json_decides_whatever_lies_beside_it(tiny, gpt2):
    np.save("data/tiny/web_train_0.npy", np.zeros(5, dtype=np.uint16))
    Path("data/tiny/meta.pkl").write_bytes(b"")
    dataset = Dataset("data/tiny")
    assert dataset.tokens["train"] == 5400 and dataset.notes == [] and gpt2[0]["kind"] == "char"


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows lets nobody replace a file that is open"
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_keeps_the_tokens_it_began_with(folder, layout, gpt2):
    """prepare.py, run again during a run, once changed the text below it without a word."""
    dataset = Dataset(write_token_files(folder, layout, np.arange(90), np.arange(30)))
    before = dataset.batch("train", 0, 8, 16, seed=0)
    for path in folder.iterdir():
        zeros = bytes(len(path.read_bytes()))
        with replacing(path) as temporary:
            temporary.write_bytes(zeros)
    np.testing.assert_array_equal(dataset.batch("train", 0, 8, 16, seed=0), before)
    path.unlink()
    np.testing.assert_array_equal(dataset.ids["val"][:], np.arange(30))


def test_a_file_cut_short_during_a_run_is_named(folder, gpt2):
    """A mapping would end the process with a bus error."""
    dataset = Dataset(write_token_files(folder, "nanoGPT", np.arange(90), np.arange(30)))
    os.truncate(folder / "train.bin", 100)
    assert dataset.ids["train"][:50].tolist() == list(range(50))
    with pytest.raises(
        DataError, match=r"train.bin became shorter than its 90 tokens while it was in use. Restore"
    ):
        dataset.ids["train"][:51]


def test_more_files_than_usually_may_be_open(folder, gpt2, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    write_token_files(folder, "NumPy", np.arange(300), np.arange(30), shards=30)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
        assert Dataset(folder).tokens["train"] == 300
        monkeypatch.setattr(resource, "getrlimit", lambda which: (50, 100))
        with pytest.raises(
            DataError, match="60 token files are to stay open, and this system allows a process 100"
        ):
            Dataset(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_on_every_layout_is_the_run_on_our_own(tiny, run, layout, gpt2, capsys):
    own = Dataset("data/tiny")
    write_token_files(Path("data/web"), layout, own.ids["train"][:], own.ids["val"][:], shards=7)
    train.main(run(out_dir="out-own", vocab_size=100))
    capsys.readouterr()
    train.main(run(dataset="web", vocab_size=100))
    assert (
        "\nnote: data/web has no meta.json: its ids are taken as GPT-2's tokens"
        in capsys.readouterr().out
    )
    losses = [
        [
            [m[k] for k in ("loss", "val_loss", "train_loss") if k in m]
            for m in map(
                json.loads, Path(out_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            )
        ]
        for out_dir in ("out-own", "out")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 13


def test_with_gpt2s_own_vocabulary(folder, run, capsys):
    try:
        tokenizer = seugpt.data.dataset.load_tokenizer({"kind": "gpt2"})
    except DataError as error:
        pytest.skip(str(error))
    ids = tokenizer.encode("The boy saw the apple and did not eat it.\n" * 20)
    write_token_files(folder, "llm.c", ids, ids[:60])
    train.main(run(dataset="web", max_iters=2, eval_interval=2, vocab_size=50304))
    assert checkpoint.load("out/best.pt")["tokenizer"] == {"kind": "gpt2"}
    sample.main(
        ["--out_dir=out", "--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=The"]
    )
    assert "The" in capsys.readouterr().out
