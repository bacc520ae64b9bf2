"""Token files prepared elsewhere: shards as one array, three layouts, and damaged files."""

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
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.data import shards
from seugpt.data.dataset import Dataset
from seugpt.data.shards import TokenArray, open_flat
from seugpt.data.tokenizer import CharTokenizer
from seugpt.errors import DataError
from seugpt.files import atomic_write
from tests.helpers import gpt2_or_skip, llmc_file, logged_values, write_token_files

LAYOUTS = ("nanoGPT", "NumPy", "llm.c")


@pytest.fixture
def loaded_specs(monkeypatch):
    """The specs whose tokenizer a Dataset has loaded; each gets one of 100 characters.

    GPT-2's own may have to be downloaded.
    """
    specs = []

    def load(spec, source):
        specs.append(spec)
        return CharTokenizer("".join(chr(200 + i) for i in range(100)))

    monkeypatch.setattr(seugpt.data.dataset, "load_tokenizer", load)
    return specs


@pytest.fixture
def folder(workspace, loaded_specs):
    return Path("data/web")


# Reading


@pytest.mark.parametrize("sizes", [[100], [1, 99], [1, 1, 1, 97], [33, 33, 34], [7] * 14 + [2]])
def test_shards_read_as_one_array(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(shards, "CHUNK_TOKENS", 30)
    ids = np.random.default_rng(0).integers(65536, size=100).astype("<u2")
    paths = [tmp_path / f"{number}.bin" for number in range(len(sizes))]
    for path, part in zip(paths, np.split(ids, np.cumsum(sizes)[:-1]), strict=True):
        part.tofile(path)
    tokens = TokenArray([open_flat(path) for path in paths])
    assert len(tokens) == 100
    for start in range(101):
        for stop in (0, start, start + 1, start + 40, 100, 1000, None):
            np.testing.assert_array_equal(tokens[start:stop], ids[start:stop])
    starts = [89, 0, 31, 90, 31]
    windows = [ids[start : start + 10] for start in starts]
    np.testing.assert_array_equal(tokens.windows(starts, 10), windows)
    names, chunks = zip(*tokens.chunks(), strict=True)
    assert list(dict.fromkeys(map(Path, names))) == paths
    assert max(map(len, chunks)) <= 30
    np.testing.assert_array_equal(np.concatenate(chunks), ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_as_gpt2_tokens(folder, loaded_specs, layout):
    ids = {"train": np.arange(1000) ** 2 % 97, "val": np.arange(50) % 97}
    dataset = Dataset(write_token_files(folder, layout, **ids), "gpt2")
    for split in ids:
        np.testing.assert_array_equal(dataset.ids[split][:], ids[split])
    assert dataset.tokens == {"train": 1000, "val": 50}
    assert dataset.bytes == {"train": None, "val": None}
    assert loaded_specs == [{"kind": "gpt2"}]
    dataset.check(100, 16)
    [note] = dataset.notes
    for fragment in (str(folder), "GPT-2", layout):
        assert fragment in note


def test_shards_are_sorted_by_name_and_the_last_split_in_a_name_counts(folder):
    folder.mkdir(parents=True)
    ids_of = {"a_train_2": 2, "b_train_0": 3, "a_train_1": 1, "a_train_val_1": 8, "val": 9}
    for name, token_id in ids_of.items():
        np.save(folder / f"{name}.npy", np.array([token_id], dtype=np.uint16))
    for ignored in ("a_training_1.npy", "._a_train_1.npy", "a_train_1.npy.part", "notes_val_1.txt"):
        (folder / ignored).write_bytes(b"?")
    dataset = Dataset(folder, "gpt2")
    assert dataset.ids["train"][:].tolist() == [1, 2, 3]
    assert dataset.ids["val"][:].tolist() == [8, 9]


def test_npy_files_may_be_uint32(folder):
    write_token_files(folder, "NumPy", [0], [0] * 30)
    for number in range(3):
        ids = np.full(20, 70_000 + number, dtype=np.uint32)
        np.save(folder / f"fineweb_edu_train_{number:06d}.npy", ids)
    dataset = Dataset(folder, "gpt2")
    assert dataset.ids["train"][19:21].tolist() == [70_000, 70_001]
    with pytest.raises(DataError, match=r"train_000000\.npy .*\b70000\b.*\b50256\b"):
        dataset.check(50_257, 16)


def test_npy_files_may_have_format_version_2(folder):
    write_token_files(folder, "NumPy", [0] * 30, [0] * 30)
    with open(folder / "fineweb_edu_train_000001.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(20, dtype=np.uint16), version=(2, 0))
    assert Dataset(folder, "gpt2").ids["train"][10:30].tolist() == list(range(20))


def test_the_ids_of_every_shard_are_checked(folder):
    dataset = Dataset(write_token_files(folder, "llm.c", [0] * 20 + [99], [0] * 30), "gpt2")
    dataset.check(100, 16)
    with pytest.raises(DataError, match=r"web_train_000002\.bin .*\b99\b.*\b98\b.*prepare\.py web"):
        dataset.check(99, 16)


def test_a_short_split_of_several_shards_is_named_by_the_first(folder):
    dataset = Dataset(write_token_files(folder, "llm.c", [0] * 21, [0] * 31), "gpt2")
    with pytest.raises(DataError, match=r"train_000000\.bin \(and 2 more\) .*--block_size=20"):
        dataset.check(100, 30)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_is_the_same_on_each_layout(tiny, run, capsys, loaded_specs, layout):
    own = Dataset("data/tiny")
    write_token_files(Path("data/web"), layout, own.ids["train"][:], own.ids["val"][:], shards=7)
    train.main(run(out_dir="out-own", vocab_size=100))
    assert "no meta.json" not in capsys.readouterr().out
    train.main(run(dataset="web", tokenizer="gpt2", vocab_size=100))
    assert "\nnote: " + Dataset("data/web", "gpt2").notes[0] in capsys.readouterr().out
    for key, count in (("loss", 10), ("train_loss", 3), ("val_loss", 3)):
        values = logged_values("out", key)
        assert values == logged_values("out-own", key)
        assert len(values) == count


def test_training_and_sampling_with_gpt2s_real_vocabulary(workspace, run, capsys):
    ids = gpt2_or_skip().encode("The boy saw the apple and did not eat it.\n" * 20)
    write_token_files(Path("data/web"), "llm.c", ids, ids[:60])
    options = {"dataset": "web", "tokenizer": "gpt2", "vocab_size": 50304}
    train.main(run(max_iters=2, eval_interval=2, **options))
    assert load_checkpoint("out/best.pt")["tokenizer"] == {"kind": "gpt2"}
    sample.main(["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=The"])
    assert "The" in capsys.readouterr().out


# Damaged files


def change_bytes(change):
    return lambda file: file.write_bytes(change(file.read_bytes()))


def save_npy(array):
    return lambda file: np.save(file, array)


def save_llmc(**header):
    return lambda file: file.write_bytes(llmc_file(range(10), **header))


def remove_split(split):
    def damage(file):
        for path in file.parent.glob(f"*{split}*"):
            path.unlink()

    return damage


def add_file(name, content):
    return lambda file: file.with_name(name).write_bytes(content)


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


MALICIOUS_PICKLE = b"cos\nabort\n(tR."  # would end this process
DAMAGED_FILES = {
    "nanoGPT": "train.bin",
    "NumPy": "fineweb_edu_train_000001.npy",
    "llm.c": "fineweb_train_000001.bin",
}
DAMAGES = {
    "nanoGPT: one byte short": (
        change_bytes(lambda content: content[:-1]),
        r"train\.bin has 59 bytes; 29 uint16 .*\b58\b",
    ),
    "nanoGPT: empty": (change_bytes(lambda content: b""), r"train\.bin is empty"),
    "nanoGPT: no train": (remove_split("train"), r"\(val\.bin\).* add .*train\.bin"),
    "nanoGPT: no val": (remove_split("val"), r"\(train\.bin\).* add .*val\.bin"),
    "nanoGPT: pickle": (
        add_file("meta.pkl", MALICIOUS_PICKLE),
        r"meta\.pkl .*python prepare\.py web --input=FILE_OR_FOLDER --tokenizer=char",
    ),
    "nanoGPT: two layouts": (
        add_file("web_train_0.npy", b"?"),
        r"train\.bin \(nanoGPT\) and web_train_0\.npy \(NumPy\)",
    ),
    "NumPy: one token too many": (
        change_bytes(lambda content: content + b"\0\0"),
        r"1\.npy has 150 bytes; 10 uint16 .*\b128\b.*\b148\b",
    ),
    "NumPy: half a header": (
        change_bytes(lambda content: content[:40]),
        r"1\.npy has no valid \.npy header",
    ),
    "NumPy: no header": (
        change_bytes(lambda content: content[128:]),
        r"1\.npy has no valid \.npy header",
    ),
    "NumPy: no tokens": (save_npy(np.zeros(0, np.uint16)), r"1\.npy has no tokens"),
    "NumPy: 2D": (save_npy(np.zeros((5, 2), np.uint16)), r"uint16 .*\(5, 2\);.* python -c"),
    "NumPy: scalar": (save_npy(np.uint16(1)), r"shape \(\);.* python -c"),
    "NumPy: int64": (save_npy(np.zeros(10, np.int64)), r"int64 .*uint16 or uint32.* python -c"),
    "NumPy: big-endian": (save_npy(np.zeros(10, ">u2")), r">u2 .*little-endian.* python -c"),
    "NumPy: objects": (save_npy(np.array([{}])), r"1\.npy contains pickled objects"),
    "NumPy: two dtypes": (
        save_npy(np.zeros(10, np.uint32)),
        r"1\.npy has uint32 .*0\.npy uint16.* same dtype",
    ),
    "NumPy: folder": (replace_by_folder, r"cannot open .*fineweb_edu_train_000001\.npy: "),
    "llm.c: one byte short": (
        change_bytes(lambda content: content[:-1]),
        r"1\.bin has 1,043 bytes; 10 uint16 .*\b1,024\b.*\b1,044\b",
    ),
    "llm.c: half a header": (change_bytes(lambda content: content[:600]), r"1\.bin has 600 bytes"),
    "llm.c: negative size": (save_llmc(tokens=-3), r"1\.bin has 1,044 bytes; -3 uint16"),
    "llm.c: Llama 3": (save_llmc(magic=20240801, version=7), r"1\.bin has Llama 3 .*20240801"),
    "llm.c: HellaSwag": (save_llmc(magic=20240522), r"1\.bin .*20240522;.* 20240520"),
    "llm.c: version 2": (save_llmc(version=2), r"1\.bin has version 2 .* version 1 "),
    "llm.c: no val": (
        remove_split("val"),
        r": mv .*\bfineweb_train_000002\.bin .*\bfineweb_val_000002\.bin",
    ),
}


@pytest.mark.parametrize("layout", ["nanoGPT", "NumPy"])
def test_the_tokenizer_of_external_files_must_be_said(folder, loaded_specs, layout):
    """Files without meta.json, such as those of a copy without it, were read as GPT-2 tokens."""
    write_token_files(folder, layout, np.arange(30), np.arange(30))
    with pytest.raises(DataError, match=r"data/web has token files .* --tokenizer=gpt2"):
        Dataset(folder)
    assert loaded_specs == []
    assert Dataset(folder, "gpt2").tokenizer.vocab_size == 100


def test_the_tokenizer_of_llmc_files_is_in_their_header(folder, loaded_specs):
    dataset = Dataset(write_token_files(folder, "llm.c", np.arange(30), np.arange(30)))
    assert loaded_specs == [{"kind": "gpt2"}]
    assert "llm.c" in dataset.notes[0]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_before_the_vocabulary_is_loaded(folder, loaded_specs, name):
    layout = name.partition(":")[0]
    damage, pattern = DAMAGES[name]
    write_token_files(folder, layout, np.arange(30), np.arange(30))
    damage(folder / DAMAGED_FILES[layout])
    with pytest.raises(DataError, match=pattern) as error:
        Dataset(folder, "gpt2")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert loaded_specs == []


def test_the_suggested_conversion_to_uint32_works(folder):
    write_token_files(folder, "NumPy", np.arange(30), np.arange(30))
    for number in range(3):
        np.save(folder / f"fineweb_edu_train_{number:06d}.npy", np.arange(10).reshape(5, 2))
        with pytest.raises(DataError) as error:
            Dataset(folder, "gpt2")
        exec(re.search(r'python -c "(.*)"', str(error.value)).group(1))
    assert Dataset(folder, "gpt2").ids["train"][:].tolist() == list(range(10)) * 3


def test_the_suggested_command_prepares_the_text_beside_nanogpts_pickle(folder, loaded_specs):
    write_token_files(folder, "nanoGPT", np.arange(30), np.arange(30))
    (folder / "meta.pkl").write_bytes(MALICIOUS_PICKLE)
    (folder / "input.txt").write_text("o menino viu a maçã " * 20, encoding="utf-8")
    with pytest.raises(DataError) as error:
        Dataset(folder, "gpt2")
    prepare.main(re.search(r"python prepare.py (.*)", str(error.value)).group(1).split())
    assert Dataset(folder, "gpt2").tokens["train"] == 360
    assert loaded_specs[0]["kind"] == "char"


def test_meta_json_takes_precedence_over_other_files(tiny, loaded_specs):
    np.save("data/tiny/web_train_0.npy", np.zeros(5, dtype=np.uint16))
    Path("data/tiny/meta.pkl").write_bytes(MALICIOUS_PICKLE)
    dataset = Dataset("data/tiny")
    assert dataset.tokens["train"] == 5400
    assert dataset.notes == []
    assert loaded_specs[0]["kind"] == "char"


# Files that change during a run


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot replace a file that is open")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_replacing_the_files_does_not_change_the_tokens_of_a_run(folder, layout):
    """When prepare.py ran again during a training run, the run silently got the new text."""
    dataset = Dataset(write_token_files(folder, layout, np.arange(90), np.arange(30)), "gpt2")
    before = dataset.batch("train", 0, 8, 16, seed=0)
    paths = list(folder.iterdir())
    for path in paths:
        zeros = bytes(path.stat().st_size)
        with atomic_write(path) as temporary:
            temporary.write_bytes(zeros)
    np.testing.assert_array_equal(dataset.batch("train", 0, 8, 16, seed=0), before)
    for path in paths:
        path.unlink()
    np.testing.assert_array_equal(dataset.ids["val"][:], np.arange(30))


def test_a_file_truncated_during_a_run_is_named(folder):
    """With a memory-mapped file, the process would die of a bus error."""
    dataset = Dataset(write_token_files(folder, "nanoGPT", np.arange(90), np.arange(30)), "gpt2")
    os.truncate(folder / "train.bin", 100)
    assert dataset.ids["train"][:50].tolist() == list(range(50))
    with pytest.raises(DataError, match=r"train\.bin .*\b90\b.* --init_from=resume"):
        dataset.ids["train"][:51]


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(folder, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    write_token_files(folder, "NumPy", np.arange(300), np.arange(30), shards=30)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
        assert Dataset(folder, "gpt2").tokens["train"] == 300
        monkeypatch.setattr(resource, "getrlimit", lambda which: (50, 100))
        with pytest.raises(DataError, match=r"60 token files .*\b100\b"):
            Dataset(folder, "gpt2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
