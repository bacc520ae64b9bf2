"""Fixtures: a folder for each test, a small data set, trained runs, command lines."""

import os
import random
import shutil
import signal
from pathlib import Path

# Before torch is imported: models this small lose more to threads than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test needs a network

import pytest

import prepare
import train
from seugpt.data.tokenizer import read_spec
from tests.helpers import EVAL_TEXT, RUN, gpt2_or_skip

TRAINED = {
    **RUN,
    "max_iters": 30,
    "lr_decay_iters": 30,
    "eval_interval": 10,
    "snapshot_interval": 10,
}

# Under nohup, and in a background job of a script, these are ignored; child processes inherit that.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    signum = getattr(signal, name, None)
    if signum and signal.getsignal(signum) == signal.SIG_IGN:
        signal.signal(signum, handler)


def pytest_ignore_collect(collection_path, config):
    """With -m cuda, read only what has such tests: a GPU machine may lack the extra packages."""
    if config.option.markexpr != "cuda":
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    return not any("mark.cuda" in file.read_text(encoding="utf-8") for file in files)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty current folder; data/ and out_dir are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    words = "o menino viu a maçã e não comeu; \n".split(" ")
    text = " ".join(rng.choices(words, k=2000))[:6000]
    (folder / "tiny.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.main(["tiny", "--input=tiny.txt"])
    return folder


@pytest.fixture
def tiny(tiny_once, workspace):
    """A folder with tiny.txt, 6,000 characters of repeated words, and data/tiny made from it."""
    shutil.copytree(tiny_once, workspace, dirs_exist_ok=True)
    return workspace


@pytest.fixture(scope="session")
def trained_once(tiny_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_once, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main([f"--{name}={value}" for name, value in TRAINED.items()])
    return folder


@pytest.fixture
def trained(trained_once, workspace):
    """The folder of `tiny` with a finished run of 30 steps, and its snapshots, in out/."""
    shutil.copytree(trained_once, workspace, dirs_exist_ok=True)
    return workspace


@pytest.fixture(params=["char", "bpe", "gpt2"])
def eval_spec(request, workspace):
    """The tokenizer spec of data/text, whose validation split is EVAL_TEXT, also in val.txt."""
    if request.param == "gpt2":
        gpt2_or_skip()
    Path("train.txt").write_text(EVAL_TEXT * 3, encoding="utf-8")
    Path("val.txt").write_text(EVAL_TEXT, encoding="utf-8")
    files = ["--input=train.txt", "--val_input=val.txt"]
    prepare.main(["text", *files, f"--tokenizer={request.param}", "--vocab_size=300"])
    return read_spec("data/text/meta.json")


@pytest.fixture
def run():
    """run(max_iters=20, ...): the train.py command line of RUN, with these changes."""
    return lambda **changes: [f"--{name}={value}" for name, value in {**RUN, **changes}.items()]


@pytest.fixture
def refused(capsys):
    """refused(main, *argv): the one-line message with which a command exits with code 2."""

    def call(main, *argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(list(argv))
        message = capsys.readouterr().err
        assert exit_info.value.code == 2, message
        assert message.count("\n") == 1, message
        return message

    return call
