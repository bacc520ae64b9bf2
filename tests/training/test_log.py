"""What a run leaves behind and shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from seugpt.checkpoint import storage as checkpoint
from seugpt.plots.curves import losses, to_run
from seugpt.training.logger import open_lines
from seugpt.training.metrics import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_leaves_its_files(tiny, run, capsys):
    train.main(run())
    out = capsys.readouterr().out
    names = {
        "latest.pt",
        "best.pt",
        "metrics.jsonl",
        "training.log",
        "loss.png",
        "config.py",
        ".lock",
    }
    assert {path.name for path in Path("out").iterdir()} == names
    assert Path("out/training.log").read_text(encoding="utf-8") == out
    assert Path("out/loss.png").read_bytes().startswith(PNG)
    metrics, _ = read_metrics(Path("out/metrics.jsonl"))
    steps = [m for m in metrics if "loss" in m]
    assert [m["step"] for m in steps] == list(range(10))
    assert set(steps[0]) == {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "clipped",
        "step_ms",
        "tokens_per_s",
    }
    evaluations = [m for m in metrics if "val_loss" in m]
    assert [m["step"] for m in evaluations] == [0, 5, 10]
    assert set(evaluations[0]) == {"step", "train_loss", "val_loss", "param_norm"}


def test_the_first_loss_is_explained(tiny, run, capsys):
    train.main(run(max_iters=0))
    out = capsys.readouterr().out
    assert "before training the loss is 2.7" in out and "ln(vocab_size) = ln(14) = 2.6391" in out


def test_the_opening_lines_show_the_arithmetic(tiny, run, capsys):
    train.main(run(lr_decay_iters=99))
    out = capsys.readouterr().out
    assert "a step: 2 micro-batches x 4 sequences x 16 tokens = 128 tokens\n" in out
    assert "10 steps pass over the data 0.24 times; processes: 1\n" in out
    assert "note: lr_decay_iters=99 is beyond max_iters=10" in out


def test_a_resume_says_what_changed(tiny, run, capsys):
    train.main(run())
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=12", "--eval_iters=3"])
    out = capsys.readouterr().out
    assert "resumed from out/latest.pt at step 10" in out
    assert "changed since: eval_iters 2 -> 3, max_iters 10 -> 12\n" in out


def test_a_change_of_the_model_is_said_too(tiny, run, capsys):
    train.main(run(max_iters=2))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=3", "--dropout=0.3"])
    assert "changed since: max_iters 2 -> 3, dropout 0.0 -> 0.3\n" in capsys.readouterr().out


def test_a_console_that_has_gone_does_not_end_the_run(tiny, run):
    """With `| tee`, Ctrl-C ends tee first; the next line then ended the run, and its last steps were lost."""
    command = " ".join(
        [sys.executable, str(Path(train.__file__)), *run(max_iters=50, eval_interval=50)]
    )
    result = subprocess.run(
        f"{command} | head -3", shell=True, capture_output=True, text=True, encoding="utf-8"
    )
    assert result.stdout.count("\n") == 3 and result.stderr == ""
    assert checkpoint.load("out/latest.pt")["step"] == 50
    assert "step 49: loss" in Path("out/training.log").read_text(encoding="utf-8")


def test_on_a_terminal_there_is_a_bar(tiny, run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train.main(run())
    captured = capsys.readouterr()
    assert (
        "loss" in captured.err
        and "tokens/s" in captured.err
        and "100%" in captured.err
        and "10/10" in captured.err
    )
    assert "step 10: train loss" in captured.out and "step 3: loss" not in captured.out
    assert "step 3: loss" in Path("out/training.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "lr_decay_iters, words", [(99, "beyond max_iters=10"), (5, "below max_iters=10")]
)
def test_a_schedule_of_another_length_is_noted(tiny, run, capsys, lr_decay_iters, words):
    train.main(run(max_iters=10, lr_decay_iters=lr_decay_iters))
    assert f"note: lr_decay_iters={lr_decay_iters} is {words}" in capsys.readouterr().out


def test_the_end_says_where_the_model_is(tiny, run, capsys):
    train.main(run())
    assert capsys.readouterr().out.endswith("let it write: python sample.py --out_dir=out\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["log_file", "metrics_file"])
def test_a_full_disk_is_named_with_the_file_and_the_way_on(tiny, run, capsys, monkeypatch, name):
    """It said "No space left on device" and neither where nor what to do."""
    start = train.RunLog.start

    def fill(self, *arguments, **more):
        start(self, *arguments, **more)
        setattr(self, name, open_lines("/dev/full"))

    monkeypatch.setattr(train.RunLog, "start", fill)
    with pytest.raises(SystemExit) as exit:
        train.main(run())
    assert exit.value.code == 2
    words = "cannot write /dev/full (No space left on device). Make room there, then go on from the last checkpoint: "
    assert capsys.readouterr().err.endswith(
        f"{words}python train.py --init_from=resume --out_dir=out\n"
    )


def test_a_fault_of_matplotlib_does_not_end_the_run(tiny, run, capsys, monkeypatch):
    """MPLBACKEND with an unknown name ended the run at the first evaluation, before the first checkpoint."""

    def fail(path, runs):
        raise ImportError("No module named 'nothing'\nand its traceback")

    monkeypatch.setattr("seugpt.plots.curves.losses", fail)
    train.main(run())
    out = capsys.readouterr().out
    assert out.count("loss.png could not be drawn (ImportError: No module named 'nothing')\n") == 3
    assert Path("out/latest.pt").exists() and "the curves are in" not in out


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tiny, run, capsys):
    Path(f"out/.loss.png.{os.getpid()}.tmp").mkdir(parents=True)  # in the way of the temporary file
    train.main(run())
    assert (
        "loss.png could not be drawn" in capsys.readouterr().out and Path("out/latest.pt").exists()
    )


def test_a_learning_rate_that_will_rise_is_noted(tiny, run, capsys):
    train.main(run(max_iters=0, learning_rate=1e-4, min_lr=1e-3))
    assert "min_lr=0.001 is above learning_rate=0.0001" in capsys.readouterr().out


def test_a_run_without_an_end_has_a_time_left(tiny, run):
    """timedelta holds a thousand million days, and OverflowError ended the run."""
    log = train.RunLog(train.TrainConfig(max_iters=2**53, out_dir="out"))
    log.step(step=0, loss=1.0, lr=1.0, grad_norm=1.0, step_ms=1e6, tokens_per_s=1.0, mfu=None)
    log.close()
    assert "999999999 days" in Path("out/training.log").read_text(encoding="utf-8")


DAMAGED = [
    b'{"step": 2, "lo',
    b"\0" * 9,
    b"\xff\xfe",
    b"[1]",
    b'{"loss": 2.0}',
    b'{"step": 1, "loss": "x"}',
    b"[" * 9999,
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_of_metrics_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line)
    assert read_metrics(path) == ([{"step": 1, "loss": 2.0}], 1)
    assert read_metrics(tmp_path / "none.jsonl") == ([], 0)


def test_a_resume_says_once_how_many_lines_were_damaged(tiny, run, capsys):
    """A line without a step, or one that is no UTF-8, made every resume crash."""
    train.main(run())
    with open("out/metrics.jsonl", "ab") as file:
        file.write(b"\n".join(DAMAGED))
    for max_iters, told in ((12, 1), (14, 0)):
        train.main(["--init_from=resume", "--out_dir=out", f"--max_iters={max_iters}"])
        words = f"7 damaged line(s) of {Path('out/metrics.jsonl')} are left out\n"
        assert capsys.readouterr().out.count(words) == told
    metrics, damaged = read_metrics(Path("out/metrics.jsonl"))
    assert damaged == 0 and [m["step"] for m in metrics if "loss" in m] == list(range(14))


@pytest.mark.parametrize(
    "line", [{"step": 0, "train_loss": 4.0, "val_loss": 4.1}, {"step": 0, "loss": 4.0}]
)
def test_the_plot_needs_neither_batches_nor_evaluations(tmp_path, line):
    losses(tmp_path / "loss.png", [to_run("out", [line])])
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "embedding_std, words", [(0.02, "finds all tokens about equally likely"), (1.0, "too large")]
)
def test_the_loss_before_training_is_explained_as_it_is(tiny, run, capsys, embedding_std, words):
    """A model with large first weights was told to find all tokens equally likely, at a loss of 63."""
    train.main(run(max_iters=0, embedding_std=embedding_std))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "before training" in line]
    assert words in line
