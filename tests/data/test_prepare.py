"""From text to .bin: nothing lost, nothing held in memory, and mistakes that are named."""

import errno
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import prepare
import seugpt.data.text
from seugpt.data import corpora
from seugpt.data.dataset import Dataset
from seugpt.data.text import cut_between_words
from seugpt.data.tokenizer import END_OF_TEXT, CharTokenizer, decode, train_bpe
from seugpt.errors import DataError
from tests.helpers import ROOT

TEXT = "Maçã, pão e café: não há mais.\r\n\n\tFim 🦜 do   começo; x=1 " * 400


def written(name, split):
    dataset = Dataset(Path("data") / name)
    return decode(dataset.tokenizer, dataset.ids[split][:].tolist())


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        prepare.main(list(argv))
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and (message.count("\n") == 1 or "problems:\n" in message)
    return message


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_the_tokens_are_the_text_split_at_nanogpts_place(workspace, monkeypatch, tokenizer, piece):
    """Also where pieces end inside a character, a word or a line end."""
    monkeypatch.setattr(seugpt.data.text, "PIECE", piece)
    text = TEXT[: len(TEXT) if piece > 7 else 600]
    Path("t.txt").write_text(text, encoding="utf-8", newline="")
    prepare.main(["t", "--input=t.txt", f"--tokenizer={tokenizer}", "--vocab_size=300"])
    boundary = int(len(text) * 0.9)
    assert written("t", "train") == text[:boundary] and written("t", "val") == text[boundary:]
    dataset = Dataset("data/t")
    assert dataset.bytes == {
        "train": len(text[:boundary].encode()),
        "val": len(text[boundary:].encode()),
    }


@pytest.mark.parametrize("longest, piece", [(100, 16), (100, 100), (100, 1000), (1000, 700)])
def test_cutting_between_words_does_not_change_a_token(monkeypatch, longest, piece):
    monkeypatch.setattr(seugpt.data.text, "LONGEST", longest)
    text = (TEXT + " I've  it's\n\n x" + END_OF_TEXT + "new ")[-3000:]
    tokenizer = train_bpe([text], 320)
    pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
    cut = list(cut_between_words(pieces))
    assert "".join(cut) == text and len(cut) >= 3000 / longest
    np.testing.assert_array_equal(
        np.concatenate([tokenizer.encode(part) for part in cut]), tokenizer.encode(text)
    )


def test_ordinary_text_is_cut_between_words_alone():
    text = corpora.python_docs() + "\n".join(["Não há mais. " * 300] * 100)
    cut = list(cut_between_words([text]))
    assert "".join(cut) == text and len(cut) > 5
    assert all(
        part[0] in " \n" and not before[-1].isspace() for before, part in itertools.pairwise(cut)
    )


@pytest.mark.parametrize("character", [" ", "\n", "x", "=", "好", "🦜"])
def test_no_run_of_characters_is_too_long_for_bpe(workspace, character):
    """A million blanks made tiktoken and rustbpe fall over (their pattern's backtracking has a limit)."""
    text = "one two " * 9 + character * 1_100_000 + " three" * 30_000
    assert max(map(len, cut_between_words([text]))) == seugpt.data.text.LONGEST
    Path("t.txt").write_text(text, encoding="utf-8", newline="")
    prepare.main(["t", "--input=t.txt", "--tokenizer=bpe", "--vocab_size=300"])
    assert written("t", "train") + written("t", "val") == text


def test_a_folder_is_read_in_name_order_with_a_mark_between_documents(workspace):
    folder = Path("texts")
    for name, text in (
        ("b/2.txt", "two "),
        ("a.md", "one "),
        ("c.txt", "three "),
        (".hidden", "no"),
        (".git/x", "no"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text * 9, encoding="utf-8")
    for tokenizer, separator in (("char", "\n\n"), ("bpe", END_OF_TEXT)):
        prepare.main(["t", "--input=texts", f"--tokenizer={tokenizer}", "--vocab_size=260"])
        assert written("t", "train") + written("t", "val") == separator.join(
            ("one " * 9, "two " * 9, "three " * 9)
        )


def test_a_folder_that_cannot_be_read_is_named(workspace, capsys, monkeypatch):
    """Such folders were left out in silence, and the model was trained on a part of the text."""
    Path("texts/closed").mkdir(parents=True)
    Path("texts/open.txt").write_text("abc" * 30, encoding="utf-8")
    scandir = os.scandir

    def deny(path):  # for root, who may run the tests, no folder is closed
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert f"cannot read {Path('texts/closed')}: Permission denied" in refused(
        capsys, "t", "--input=texts"
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_is_no_regular_file_is_refused_and_not_waited_for(workspace, capsys):
    Path("texts").mkdir()
    os.mkfifo("texts/pipe")
    for source in ("/dev/null", "texts/pipe", "texts"):
        assert "no regular file" in refused(capsys, "t", f"--input={source}")


def test_a_text_of_its_own_may_validate(workspace):
    Path("a.txt").write_text("abc" * 30, encoding="utf-8")
    Path("b.txt").write_text("abcz", encoding="utf-8")
    prepare.main(["t", "--input=a.txt", "--val_input=b.txt"])
    assert written("t", "train") == "abc" * 30 and written("t", "val") == "abcz"


def test_another_data_sets_vocabulary_can_be_taken(workspace, capsys):
    Path("a.txt").write_text("abcd" * 30, encoding="utf-8")
    Path("b.txt").write_text("dcba" * 10, encoding="utf-8")
    prepare.main(["a", "--input=a.txt"])
    prepare.main(["b", "--input=b.txt", "--tokenizer=data/a/meta.json"])
    assert Dataset("data/b").tokenizer.spec() == Dataset("data/a").tokenizer.spec()
    Path("b.txt").write_text("dcbaX" * 10, encoding="utf-8")
    assert "'X' (U+0058)" in refused(capsys, "b", "--input=b.txt", "--tokenizer=data/a/meta.json")
    assert written("b", "train") == "dcba" * 9  # what was there is still there
    assert "cannot take the tokenizer" in refused(
        capsys, "b", "--input=b.txt", "--tokenizer=nothing.json"
    )


def test_a_byte_order_mark_is_no_character(workspace):
    Path("t.txt").write_bytes(b"\xef\xbb\xbf" + b"abc" * 10)
    prepare.main(["t", "--input=t.txt"])
    assert Dataset("data/t").tokenizer.chars == "abc"


def test_python_docs_need_no_network(workspace, capsys):
    prepare.main([])
    assert written("python_docs", "train") + written("python_docs", "val") == corpora.python_docs()
    out = capsys.readouterr().out
    assert "1.00 characters per token" in out and "vocabulary of" in out


@pytest.mark.parametrize("at", [0, 9, 10, 29])
def test_what_is_not_utf8_is_named_with_its_offset(workspace, capsys, monkeypatch, at):
    monkeypatch.setattr(seugpt.data.text, "PIECE", 10)
    Path("t.txt").write_bytes(b"a" * at + "ação".encode("latin1") + b" " * 20)
    message = refused(capsys, "t", "--input=t.txt")
    assert f"byte 0xe7 at offset {at + 1}" in message and "iconv -f latin1" in message


@pytest.mark.parametrize(
    "content, words",
    [
        ("ação".encode("utf-16"), "UTF-16: iconv -f utf-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "probably no text at all"),
    ],
)
def test_what_is_another_encoding_or_no_text_is_told_apart(workspace, capsys, content, words):
    Path("t.txt").write_bytes(content * 9)
    assert words in refused(capsys, "t", "--input=t.txt")


def test_a_text_that_ends_inside_a_character_is_named(workspace, capsys):
    Path("t.txt").write_bytes(b"abc\xc3")
    assert "offset 3" in refused(capsys, "t", "--input=t.txt")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["mytext"], "python prepare.py mytext --input=FILE_OR_FOLDER"),
        (
            ["--input=one.txt"],
            "a text of your own needs a name: python prepare.py NAME --input=one.txt",
        ),
        (["t", "--input=nowhere.txt"], "cannot read nowhere.txt: "),
        (["t", "--input=empty"], "the folder empty has no files"),
        (["t", "--input=empty.txt"], "the text has 0 characters"),
        (["t", "--input=one.txt"], "nothing is left for train"),
        (["../t", "--input=one.txt"], "one plain name"),
        (["t", "--input=one.txt", "--tokenizer=words"], "tokenizer=words is not char, gpt2, bpe"),
        (["t", "--input=one.txt", "--vocab_size=100"], "vocab_size=100 must be at least 257"),
        (
            ["t", "--input=one.txt", "--vocab_size=1e12"],
            "vocab_size=1000000000000 must be at least 257",
        ),
        (
            ["t", "--input=one.txt", "--val_fraction=1"],
            "val_fraction=1.0 must be above 0 and below 1",
        ),
        (["t", "--inptu=one.txt"], "did you mean --input?"),
        (["t", "u", "--input=one.txt"], "t u: one name is expected"),
        (["t", "--input="], "input= is empty"),
        (["t", "--input=one.txt", "--val_input="], "val_input= is empty"),
        (["t", "--input=one.txt", "--tokenizer="], "tokenizer= is empty"),
        (["", "--input=one.txt"], "name= is empty"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(workspace, capsys, argv, words):
    Path("empty").mkdir()
    Path("empty.txt").touch()
    Path("one.txt").write_text("x", encoding="utf-8")
    assert words in refused(capsys, *argv)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    "source", ["data/t", "data", ".", "data/t/../t", "data/t/train.bin", "data/t/meta.json"]
)
def test_an_input_that_contains_what_is_written_is_refused(workspace, capsys, source):
    """The second time, prepare.py read its own train.bin and meta.json as text."""
    Path("data/t/texts").mkdir(parents=True)
    Path("data/t/input.txt").write_text("abc" * 30, encoding="utf-8")
    Path("data/t/texts/1.txt").write_text("abc" * 30, encoding="utf-8")
    for apart in ("data/t/input.txt", "data/t/texts", "data/t/input.txt"):
        prepare.main(["t", f"--input={apart}"])
    before = Path("data/t/meta.json").read_bytes()
    for argv in ([f"--input={source}"], ["--input=data/t/input.txt", f"--val_input={source}"]):
        assert f"input={source} contains" in refused(capsys, "t", *argv)
    assert Path("data/t/meta.json").read_bytes() == before


@pytest.mark.skipif(
    not hasattr(os, "wait4"),
    reason="no os.wait4 on this system, which tells a process's peak memory",
)
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_memory_does_not_grow_with_the_text(workspace, tokenizer):
    """40 MB of text must cost less than 20 MB more than 1 MB of it does. BPE is measured with a vocabulary at hand."""
    word = "the quick brown fox jumps over the lazy dog; não é mentira\n"
    for name, megabytes in (("small", 1), ("large", 40)):
        with open(f"{name}.txt", "w", encoding="utf-8") as file:
            for _ in range(megabytes):
                file.write(word * (2**20 // len(word)))
    prepare.main(
        ["vocabulary", "--input=small.txt", f"--tokenizer={tokenizer}", "--vocab_size=300"]
    )
    peaks = {}
    for name in ("small", "large"):
        command = [
            sys.executable,
            str(ROOT / "prepare.py"),
            "t",
            f"--input={name}.txt",
            "--tokenizer=data/vocabulary/meta.json",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        peaks[name] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peaks["large"] - peaks["small"] < 20 * 2**20, peaks


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says it in other words")
def test_an_error_of_the_disk_is_named(workspace, capsys):
    Path("t.txt").write_text("abc" * 10, encoding="utf-8")
    Path("data").touch()  # a file where the folder should be
    assert "Not a directory" in refused(capsys, "t", "--input=t.txt")


@pytest.mark.parametrize("argv", [["python_docs"], ["t", "--input=t.txt"]])
def test_a_full_disk_is_named_with_its_folder_and_leaves_nothing(
    workspace, capsys, monkeypatch, argv
):
    """It said "No space left on device" and not where, and left an empty data/python_docs behind."""
    Path("t.txt").write_text("abc" * 10, encoding="utf-8")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = f"No space left on device ({Path('data', argv[0])}). Make room there, then type the same command again"
    assert words in refused(capsys, *argv)
    assert not any(Path("data").iterdir())


def test_unknown_characters_never_reach_the_table():
    with pytest.raises(DataError):
        CharTokenizer("ab").encode("abc")


def test_pieces_that_take_longer_stay_in_their_place():
    """Several threads encode ahead, and no more pieces are read than they have work for."""
    read = []

    def pieces():
        for number in range(200):
            read.append(number)
            yield str(number)

    class Slow:
        def encode(self, piece):
            time.sleep(0.002 * (int(piece) % 5))
            return [int(piece)]

    for number, (piece, ids) in enumerate(prepare.encoded(pieces(), Slow())):
        assert piece == str(number) and ids == [number]
        assert len(read) <= number + 2 * os.cpu_count() + 2


def test_what_one_thread_cannot_encode_is_an_error():
    class Broken:
        def encode(self, piece):
            raise DataError(f"{piece} is unknown")

    with pytest.raises(DataError, match="x is unknown"):
        list(prepare.encoded(["x"], Broken()))
