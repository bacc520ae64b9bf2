"""A folder of its own for every test, a small data set in it, and the options of a run of seconds."""

import os
import random
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: for models this small, threads that wait cost the most

import pytest

import prepare

for name in ("SIGINT", "SIGHUP"):  # ignored in the background of a script, under nohup; processes of tests inherit it
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)

RUN = {
    "dataset": "tiny", "out_dir": "out", "device": "cpu", "compile": False, "dtype": "float32",
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "dropout": 0.0,
    "batch_size": 4, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2, "min_lr": 1e-3, "warmup_iters": 2, "lr_decay_iters": 10,
    "max_iters": 10, "eval_interval": 5, "eval_iters": 2, "log_interval": 1,
}  # fmt: skip


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
    (workspace / "tiny.txt").write_text(" ".join(dice.choices(words, k=2000))[:6000], encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    return workspace


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
