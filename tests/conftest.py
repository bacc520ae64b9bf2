"""A folder of its own for every test, a small data set in it, and the options of a run of seconds."""

import os
import random
import signal
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: for models this small, threads that wait cost the most

import pytest

import prepare
from seugpt.data.tokenizer import read_spec
from tests.helpers import EVAL_TEXT, RUN, gpt2_or_skip

for name in (
    "SIGINT",
    "SIGHUP",
):  # ignored in the background of a script, under nohup; processes of tests inherit it
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(
            getattr(signal, name),
            signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL,
        )


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty current folder: data/ and out_dir are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(workspace):
    """data/tiny, by characters: 6,000 of them, with accents, in words that repeat."""
    dice = random.Random(0)
    words = "o menino viu a maçã e não comeu; \n".split(" ")
    (workspace / "tiny.txt").write_text(
        " ".join(dice.choices(words, k=2000))[:6000], encoding="utf-8"
    )
    prepare.main(["tiny", "--input=tiny.txt"])
    return workspace


@pytest.fixture(params=["char", "bpe", "gpt2"])
def eval_spec(request, workspace):
    """The tokenizer's description of data/text, whose validation split is EVAL_TEXT and in val.txt."""
    if request.param == "gpt2":
        gpt2_or_skip()
    Path("train.txt").write_text(EVAL_TEXT * 3, encoding="utf-8")
    Path("val.txt").write_text(EVAL_TEXT, encoding="utf-8")
    options = [
        "--input=train.txt",
        "--val_input=val.txt",
        f"--tokenizer={request.param}",
        "--vocab_size=300",
    ]
    prepare.main(["text", *options])
    return read_spec("data/text/meta.json")


@pytest.fixture
def run():
    """run(max_iters=20, ...): the command line of a run on data/tiny, with changes."""
    return lambda **changes: [f"--{name}={value}" for name, value in {**RUN, **changes}.items()]


@pytest.fixture
def refused(capsys):
    """refused(main, *argv): the one message with which the command ends, exit code 2 and no traceback."""

    def call(main, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(list(argv))
        message = capsys.readouterr().err
        assert exit.value.code == 2 and message.count("\n") == 1, message
        return message

    return call
