"""prepare.py: texts to token files, texts that cannot be used, full disks, other processes."""

import codecs
import csv
import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tokenizers

import prepare
from seugpt.data import corpora, text
from seugpt.data.dataset import Dataset
from seugpt.data.text import split_at_word_boundaries
from seugpt.data.tokenizer import END_OF_TEXT, decode, train_bpe
from seugpt.errors import ConfigError, DataError
from seugpt.files import lock_folder
from tests.helpers import ROOT

TEXT = "Maçã, pão e café: não há mais.\r\n\n\tFim 🦜 do   começo; x=1 " * 400


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content, encoding="utf-8", newline="")


def text_of(name, split):
    """The text that a split of data/NAME stands for."""
    dataset = Dataset(Path("data") / name)
    return decode(dataset.tokenizer, dataset.ids[split][:].tolist())


def whole_text_of(name):
    return text_of(name, "train") + text_of(name, "val")


# Texts


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 7])
def test_tokens_decode_to_the_split_text(workspace, monkeypatch, tokenizer, chunk_bytes):
    """The split is nanoGPT's. Chunks of 7 bytes end inside characters, words and line ends."""
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    original = TEXT if chunk_bytes > 7 else TEXT[:600]
    write("t.txt", original)
    options = ["--input=t.txt", f"--tokenizer={tokenizer}", "--vocab_size=300", "--keep_crlf=True"]
    prepare.main(["t", *options])
    boundary = int(len(original) * 0.9)
    parts = {"train": original[:boundary], "val": original[boundary:]}
    assert {split: text_of("t", split) for split in parts} == parts
    sizes = {split: len(part.encode()) for split, part in parts.items()}
    assert Dataset("data/t").bytes == sizes


@pytest.mark.parametrize("chunk_chars, size", [(100, 16), (100, 100), (100, 1000), (1000, 700)])
def test_splitting_at_word_boundaries_does_not_change_a_token(monkeypatch, chunk_chars, size):
    monkeypatch.setattr(text, "CHUNK_CHARS", chunk_chars)
    original = (TEXT + " I've  it's\n\n x" + END_OF_TEXT + "new ")[-3000:]
    tokenizer = train_bpe([original], 320)
    chunks = [original[i : i + size] for i in range(0, len(original), size)]
    parts = list(split_at_word_boundaries(chunks))
    assert "".join(parts) == original
    assert len(parts) >= 3000 / chunk_chars
    ids = np.concatenate([tokenizer.encode(part) for part in parts])
    np.testing.assert_array_equal(ids, tokenizer.encode(original))


def test_ordinary_text_is_split_only_between_words():
    original = corpora.python_docs() + "\n".join(["Não há mais. " * 300] * 100)
    parts = list(split_at_word_boundaries([original]))
    assert "".join(parts) == original
    assert len(parts) > 5
    for before, part in itertools.pairwise(parts):
        assert part[0] in " \n"
        assert not before[-1].isspace()


@pytest.mark.parametrize(
    "character",
    [" ", "x", "🦜", *(pytest.param(c, marks=pytest.mark.slow) for c in ("\n", "=", "好"))],
)
def test_bpe_encodes_a_million_repetitions_of_one_character(workspace, character):
    """tiktoken and rustbpe failed on a million blanks: their regular expressions backtrack."""
    original = "one two " * 9 + character * 1_100_000 + " three" * 30_000
    assert max(map(len, split_at_word_boundaries([original]))) == text.CHUNK_CHARS
    write("t.txt", original)
    prepare.main(["t", "--input=t.txt", "--tokenizer=bpe", "--vocab_size=300"])
    assert whole_text_of("t") == original


@pytest.mark.parametrize("tokenizer, separator", [("char", "\n\n"), ("bpe", END_OF_TEXT)])
def test_the_files_of_a_folder_are_joined_in_name_order(workspace, tokenizer, separator):
    for name, word in (("b/2.txt", "two "), ("a.md", "one "), ("c.txt", "three ")):
        write(f"texts/{name}", word * 9)
    for hidden in (".hidden", ".git/x"):
        write(f"texts/{hidden}", "no")
    prepare.main(["t", "--input=texts", f"--tokenizer={tokenizer}", "--vocab_size=260"])
    assert whole_text_of("t") == separator.join(("one " * 9, "two " * 9, "three " * 9))


def test_validation_text_can_come_from_a_separate_file(workspace):
    write("a.txt", "abc" * 30)
    write("b.txt", "abcz")
    prepare.main(["t", "--input=a.txt", "--val_input=b.txt"])
    assert text_of("t", "train") == "abc" * 30
    assert text_of("t", "val") == "abcz"


def test_a_data_set_can_use_the_tokenizer_of_another(workspace, refused):
    write("a.txt", "abcd" * 30)
    write("b.txt", "dcba" * 10)
    prepare.main(["a", "--input=a.txt"])
    prepare.main(["b", "--input=b.txt", "--tokenizer=data/a/meta.json"])
    assert Dataset("data/b").tokenizer.spec() == Dataset("data/a").tokenizer.spec()
    write("b.txt", "dcbaX" * 10)
    message = refused(prepare.main, "b", "--input=b.txt", "--tokenizer=data/a/meta.json")
    assert "'X' (U+0058)" in message
    assert text_of("b", "train") == "dcba" * 9  # the old data set is unchanged
    message = refused(prepare.main, "b", "--input=b.txt", "--tokenizer=nothing.json")
    assert "the tokenizer of nothing.json" in message


def test_a_byte_order_mark_is_not_a_character(workspace):
    Path("t.txt").write_bytes(b"\xef\xbb\xbf" + b"abc" * 10)
    prepare.main(["t", "--input=t.txt"])
    assert Dataset("data/t").tokenizer.chars == "abc"


def test_the_default_corpus_needs_no_network(workspace, capsys):
    prepare.main([])
    assert whole_text_of("python_docs") == corpora.python_docs()
    assert "1.00 characters per token" in capsys.readouterr().out


# Texts that cannot be used


def test_a_folder_that_cannot_be_read_is_named(workspace, refused, monkeypatch):
    """Unreadable folders were skipped silently, so models were trained on a part of the text."""
    Path("texts/closed").mkdir(parents=True)
    write("texts/open.txt", "abc" * 30)
    scandir = os.scandir

    def deny(path):  # permissions would not stop root, who may run the tests
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    message = refused(prepare.main, "t", "--input=texts")
    assert f"cannot read {Path('texts/closed')}: Permission denied" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("source", ["/dev/null", "texts/pipe", "texts"])
def test_pipes_and_devices_are_refused_without_reading_them(workspace, refused, source):
    Path("texts").mkdir()
    os.mkfifo("texts/pipe")
    message = refused(prepare.main, "t", f"--input={source}")
    assert source in message
    assert "regular file" in message


def test_a_link_to_a_folder_is_named(workspace, refused):
    """Its texts were left out without a word."""
    write("more/b.txt", "b")
    write("texts/a.txt", "a")
    Path("texts/more").symlink_to(Path("more").absolute())
    assert "texts/more is a link" in refused(prepare.main, "t", "--input=texts")


@pytest.mark.parametrize("change", ["longer", "abd" * 1000, ""])
def test_an_input_that_changes_while_it_is_read_is_refused(workspace, refused, monkeypatch, change):
    """A text that shrank divided by zero, and another one was written with a wrong checksum."""
    write("t.txt", "abc" * 1000)
    split_text = prepare.split_text

    def split_and_change(*arguments, **options):
        parts = split_text(*arguments, **options)
        write("t.txt", "abc" * 1001 if change == "longer" else change)
        return parts

    monkeypatch.setattr(prepare, "split_text", split_and_change)
    assert "t.txt changed while it was read" in refused(prepare.main, "t", "--input=t.txt")
    assert not Path("data/t").exists()


def test_a_split_of_one_token_is_refused(workspace, refused):
    """It has no target, so nothing could be evaluated on it."""
    write("t.txt", "abcabcabca")
    assert "the val split" in refused(prepare.main, "t", "--input=t.txt", "--val_fraction=0.1")
    assert not Path("data/t").exists()


@pytest.mark.parametrize("num_renames", [1, 2])
def test_files_of_a_preparation_killed_between_its_renames_are_refused(
    workspace, monkeypatch, num_renames
):
    """train.bin without meta.json was trained on as GPT-2 tokens, with a mere note."""
    write("t.txt", "abc" * 100)
    write("u.txt", "abcd" * 200)
    replace = os.replace
    replaced = []

    def replace_and_die(source, target):
        if len(replaced) == num_renames:
            raise KeyboardInterrupt
        replaced.append(Path(target).name)
        replace(source, target)

    for before in ([], ["--input=t.txt"]):
        if before:
            prepare.main(["t", *before])
        replaced.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_and_die)
            with pytest.raises(SystemExit):
                prepare.main(["t", "--input=u.txt"])
        assert replaced[0] == "meta.json"
        with pytest.raises(DataError, match=r"python prepare\.py t"):
            Dataset("data/t", tokenizer="gpt2")
    prepare.main(["t", "--input=u.txt"])
    assert Dataset("data/t").tokens == {"train": 720, "val": 80}


@pytest.mark.parametrize("offset", [0, 9, 10, 29])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_that_is_not_utf8_is_named_with_its_offset(
    workspace, refused, monkeypatch, offset, mark
):
    """Behind a byte order mark the offset was three bytes too small."""
    monkeypatch.setattr(text, "CHUNK_BYTES", 10)
    Path("t.txt").write_bytes(mark + b"a" * offset + "ação".encode("latin1") + b" " * 20)
    message = refused(prepare.main, "t", "--input=t.txt")
    assert "0xe7" in message
    assert f"offset {len(mark) + offset + 1})" in message
    assert "iconv -f latin1 -t utf-8 't.txt'" in message


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 7])
def test_windows_line_ends_become_those_of_unix(workspace, monkeypatch, capsys, chunk_bytes):
    """A carriage return was a character of its own, half of all line ends' tokens."""
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    write("windows.txt", "um\r\ndois\r\n\rtrês\r" * 30 + "\n")
    prepare.main(["lf", "--input=windows.txt"])
    assert (
        "note: 61 Windows line ends (CRLF) became LF; --keep_crlf=True" in capsys.readouterr().out
    )
    assert whole_text_of("lf") == "um\ndois\n\rtrês\r" * 29 + "um\ndois\n\rtrês\n"
    prepare.main(["crlf", "--input=windows.txt", "--keep_crlf=True"])
    assert "note" not in capsys.readouterr().out
    assert whole_text_of("crlf") == "um\r\ndois\r\n\rtrês\r" * 30 + "\n"


@pytest.mark.parametrize(
    "content, words",
    [
        ("um\0 dois " * 20, "20 zero bytes in odd.txt; they are characters of the text now"),
        ("um dois " * 20 + "\0" * 3, "3 zero bytes in odd.txt"),
        (b"u\0m\0 \0d\0" * 30, "looks like UTF-16 without a byte order mark: iconv -f utf-16le"),
        (b"\0u\0m\0 \0d" * 30, "looks like UTF-16 without a byte order mark: iconv -f utf-16be"),
    ],
)
def test_zero_bytes_are_noted(workspace, capsys, content, words):
    Path("odd.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    prepare.main(["odd", "--input=odd.txt"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert words in line


def test_bytes_lost_by_a_tokenizer_are_noted(workspace, capsys):
    """A Unigram with <unk> kept 576 of 616 bytes in silence."""
    vocab = [("<unk>", 0.0), *((c, -1.0) for c in "\u2581abcdef")]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    unigram.save("tokenizer.json")
    write("text.txt", "abc def ção " * 30)
    prepare.main(["some", "--input=text.txt", "--tokenizer=tokenizer.json"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert "stand for 243 bytes of the text's 378" in notes[0]
    write("known.txt", "abc def fed " * 30)
    prepare.main(["all", "--input=known.txt", "--tokenizer=tokenizer.json"])
    assert "note" not in capsys.readouterr().out


RECORDS = [
    {"id": 1, "text": 'A maçã,\r\n "vermelha"\n'},
    {"id": 2, "text": ""},
    {"id": 3, "text": "fim; " + "x" * 200_000},
]
JOINED = 'A maçã,\n "vermelha"\n\n\n\n\nfim; ' + "x" * 200_000


def write_records(suffix, records=RECORDS):
    path = Path(f"records{suffix}")
    if suffix == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(["", *lines, ""]), encoding="utf-8-sig")
    elif suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_field_of_records_is_read(workspace, suffix):
    path = write_records(suffix)
    prepare.main(["fields", f"--input={path}", "--field=text"])
    assert whole_text_of("fields") == JOINED


def test_records_are_documents_of_a_bpe_text(workspace):
    path = write_records(".jsonl", [{"text": f"texto número {n}"} for n in range(99)])
    prepare.main(["fields", f"--input={path}", "--field=text", "--tokenizer=bpe"])
    documents = whole_text_of("fields").split(END_OF_TEXT)
    assert documents == [f"texto número {n}" for n in range(99)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_records_read_as_plain_text_are_noted(workspace, capsys, suffix):
    path = write_records(suffix, RECORDS[:1] * 50)
    if suffix == ".parquet":
        path.write_text("not really parquet " * 20)
    prepare.main(["plain", f"--input={path}"])
    assert f"note: records{suffix} was read as plain text; --field=" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_field_that_is_missing_is_named_with_those_there_are(workspace, refused, suffix):
    path = write_records(suffix)
    message = refused(prepare.main, "fields", f"--input={path}", "--field=txt")
    assert "record 1 has no field 'txt'; it has id, text" in message
    assert list(Path("data").glob("fields/*")) == []


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.txt", b"text", "--field=text is for .jsonl, .csv, .parquet files"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": 5}',
            "record 2 has no text in the field 'text', but int",
        ),
        ("a.jsonl", b'{"text": "a"}\n[1]', "record 2 is not an object"),
        ("a.jsonl", b"[" * 200_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "is not UTF-8, after record 0"),
        ("a.csv", b"id,text\n1\n", "record 1 has no text in the field 'text', but NoneType"),
        ("a.csv", b"id,text\n1,\xff\n", "is not UTF-8"),
        ("a.csv", b"", "would be empty"),
        ("a.csv", b"text\nHello, there\n", "record 1 has 1 value(s) more than the header"),
        ("a.csv", b'id,text\n1,"abc\n2,line 2\n', "is not valid CSV"),
        ("a.csv", b"text,text\n1,2\n", "two columns of the same name"),
        ("a.jsonl", b'{"text": "a \\ud83d b"}', "record 1 has half a surrogate pair"),
        ("a.parquet", b"PAR1 and more", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_bad_records_are_refused_by_name(workspace, refused, name, content, words):
    Path(name).write_bytes(content)
    assert words in refused(prepare.main, "fields", f"--input={name}", "--field=text")


def test_missing_pyarrow_is_named_with_its_install_command(workspace, refused, monkeypatch):
    path = write_records(".parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = refused(prepare.main, "fields", f"--input={path}", "--field=text")
    required = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    [requirement] = re.findall(r"^pyarrow==\S+", required, re.MULTILINE)
    assert f"python -m pip install {requirement}" in message


@pytest.mark.parametrize(
    "content, advice",
    [
        ("ação".encode("utf-16") * 9, "iconv -f utf-16 -t utf-8 't.txt'"),
        (b"\x89PNG\r\n\x1a\n\0\0\0" * 9, "not text"),
        (b"abc\xc3", "offset 3)"),  # ends inside a character
    ],
)
def test_other_encodings_are_distinguished_from_binary_files(workspace, refused, content, advice):
    Path("t.txt").write_bytes(content)
    message = refused(prepare.main, "t", "--input=t.txt")
    assert "t.txt is not UTF-8" in message
    assert advice in message


@pytest.mark.parametrize(
    "argv, fragments",
    [
        (["--input=nowhere.txt"], ["cannot read nowhere.txt: "]),
        (["--input=empty"], ["empty", "no files"]),
        (["--input=empty.txt"], ["0 character"]),
        (["--input=one.txt"], ["train", "1 character"]),
        (["--input=one.txt", "--vocab_size=1e12"], ["vocab_size=1000000000000: ", "2**32"]),
        (["--input=one.txt", "--val_input="], ["val_input='': "]),
        (["--input=one.txt", "--tokenizer="], ["tokenizer='': "]),
    ],
)
def test_a_mistake_leaves_no_data_set(workspace, refused, argv, fragments):
    Path("empty").mkdir()
    Path("empty.txt").touch()
    write("one.txt", "x")
    message = refused(prepare.main, "t", *argv)
    for fragment in fragments:
        assert fragment in message
    assert not list(Path("data").glob("*"))


@pytest.mark.parametrize(
    "source", ["data/t", "data", ".", "data/t/../t", "data/t/train.bin", "data/t/meta.json"]
)
def test_an_input_that_contains_the_files_to_be_written_is_refused(workspace, refused, source):
    """When run again, prepare.py read its own train.bin and meta.json as text."""
    write("data/t/input.txt", "abc" * 30)
    write("data/t/texts/1.txt", "abc" * 30)
    for allowed in ("data/t/input.txt", "data/t/texts", "data/t/input.txt"):
        prepare.main(["t", f"--input={allowed}"])
    before = Path("data/t/meta.json").read_bytes()
    for argv in ([f"--input={source}"], ["--input=data/t/input.txt", f"--val_input={source}"]):
        assert f"input={source} contains" in refused(prepare.main, "t", *argv)
    assert Path("data/t/meta.json").read_bytes() == before


# Disks and other processes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports another error")
def test_a_file_system_error_names_its_folder(workspace, refused):
    write("t.txt", "abc" * 10)
    Path("data").touch()  # a file where the folder should be
    assert f"({Path('data/t')})" in refused(prepare.main, "t", "--input=t.txt")


@pytest.mark.parametrize("argv", [["python_docs"], ["t", "--input=t.txt"]])
def test_a_full_disk_is_named_and_leaves_no_data_set(workspace, refused, monkeypatch, argv):
    """The message did not say where, and an empty data/python_docs was left behind."""
    write("t.txt", "abc" * 10)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refused(prepare.main, *argv)
    assert f"No space left on device ({Path('data', argv[0])})" in message
    assert not any(Path("data").iterdir())


def test_a_data_set_in_use_is_refused_and_left_unchanged(workspace, refused):
    """Two runs of prepare.py at once wrote the same files, and the last to finish won."""
    write("t.txt", "abc" * 10)
    prepare.main(["t", "--input=t.txt"])
    before = Path("data/t/meta.json").read_bytes()
    lock = lock_folder(Path("data/t"))
    message = refused(prepare.main, "t", "--input=t.txt", "--tokenizer=bpe", "--vocab_size=257")
    assert str(Path("data/t")) in message
    assert f"process {os.getpid()} on " in message
    assert Path("data/t/meta.json").read_bytes() == before
    prepare.main(["u", "--input=t.txt"])  # another data set can be written meanwhile
    lock.close()
    prepare.main(["t", "--input=t.txt"])


def test_a_new_data_set_is_locked_while_it_is_written(workspace, monkeypatch):
    write("t.txt", "abc" * 10)
    write_meta = prepare.write_meta

    def check_lock(*args):
        with pytest.raises(ConfigError):
            lock_folder(Path("data/t"))
        write_meta(*args)

    monkeypatch.setattr(prepare, "write_meta", check_lock)
    prepare.main(["t", "--input=t.txt"])
    lock_folder(Path("data/t")).close()


def test_the_temporary_files_of_a_killed_run_are_removed_by_the_next(workspace):
    """They stayed behind forever, gigabytes of them."""
    write("t.txt", "abc" * 10)
    write("data/t/.train.bin.123.tmp", "half of it")
    prepare.main(["t", "--input=t.txt"])
    assert {path.name for path in Path("data/t").iterdir()} == {".lock", *prepare.FILES}


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows has no os.wait4")
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_memory_does_not_grow_with_the_text(workspace, tokenizer):
    """40 MB of text take at most 20 MB more memory than 1 MB of it.

    The tokenizer exists already; training one is not measured.
    """
    line = "the quick brown fox jumps over the lazy dog; não é mentira\n"
    megabyte = line * (2**20 // len(line))
    write("small.txt", megabyte)
    write("large.txt", megabyte * 40)
    prepare.main(["spec", "--input=small.txt", f"--tokenizer={tokenizer}", "--vocab_size=300"])
    peaks = {}
    for name in ("small", "large"):
        argv = ["t", f"--input={name}.txt", "--tokenizer=data/spec/meta.json"]
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "prepare.py"), *argv], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        peaks[name] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes
    assert peaks["large"] - peaks["small"] < 20 * 2**20, peaks


# Threads


def test_chunks_encoded_in_parallel_keep_their_order(monkeypatch):
    """Each even chunk is encoded after the odd one behind it.

    No more than 2 chunks per thread are read ahead.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)  # 2 threads
    encoded = [threading.Event() for _ in range(40)]
    num_read = 0

    def chunks():
        nonlocal num_read
        for number in range(len(encoded)):
            num_read += 1
            yield str(number)

    class ReorderingTokenizer:
        def encode(self, chunk):
            number = int(chunk)
            if number % 2 == 0:
                assert encoded[number + 1].wait(60)
            encoded[number].set()
            return [number]

    pairs = prepare.encode_ahead(chunks(), ReorderingTokenizer())
    for number, (chunk, ids) in enumerate(pairs):
        assert chunk == str(number)
        assert ids == [number]
        assert num_read <= number + 5
    assert number == len(encoded) - 1


def test_an_error_in_a_thread_reaches_the_caller():
    class BrokenTokenizer:
        def encode(self, chunk):
            raise DataError(f"{chunk} is unknown")

    with pytest.raises(DataError, match="x is unknown"):
        list(prepare.encode_ahead(["x"], BrokenTokenizer()))
