"""What a run prints and the files it writes."""

import os
import signal
import sys
from pathlib import Path

import pytest

import train
from seugpt.checkpoint.storage import load_checkpoint
from seugpt.plots.curves import plot_losses
from seugpt.plots.run_metrics import to_run
from seugpt.training.logger import RunLogger
from seugpt.training.metrics import read_metrics

PNG = b"\x89PNG\r\n\x1a\n"

# Files


def test_run_writes_its_files(tiny, run, loss_curve, capsys):
    train.main(run())
    out = capsys.readouterr().out
    names = "latest.pt best.pt metrics.jsonl training.log loss.png config.py .lock"
    assert {path.name for path in Path("out").iterdir()} == set(names.split())
    assert Path("out/training.log").read_text(encoding="utf-8") == out
    assert Path("out/loss.png").read_bytes().startswith(PNG)
    metrics, _ = read_metrics(Path("out/metrics.jsonl"))
    steps = [values for values in metrics if "loss" in values]
    assert [values["step"] for values in steps] == list(range(10))
    keys = "step loss lr grad_norm num_clipped_steps step_ms tokens_per_s"
    assert set(steps[0]) == set(keys.split())
    evaluations = [values for values in metrics if "val_loss" in values]
    assert [values["step"] for values in evaluations] == [0, 5, 10]
    assert set(evaluations[0]) == {"step", "train_loss", "val_loss", "param_norm"}
    assert out.endswith("python sample.py --out_dir=out\n")


@pytest.mark.parametrize(
    "line",
    [{"step": 0, "train_loss": 4.0, "val_loss": 4.1}, {"step": 0, "loss": 4.0}],
    ids=["evaluation", "step"],
)
def test_plot_needs_neither_steps_nor_evaluations(tmp_path, line):
    plot_losses(tmp_path / "loss.png", [to_run("out", [line])])
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)


def test_matplotlib_failure_does_not_end_the_run(tiny, run, loss_curve, capsys, monkeypatch):
    """An unknown MPLBACKEND ended the run at its first evaluation, before its first checkpoint."""

    def fail(path, runs):
        raise ImportError("No module named 'nothing'\nand its traceback")

    monkeypatch.setattr("seugpt.plots.curves.plot_losses", fail)
    train.main(run(max_iters=1))
    out = capsys.readouterr().out
    assert out.count("(ImportError: No module named 'nothing')\n") == 2
    assert Path("out/latest.pt").exists()
    assert "out/loss.png" not in out


def test_unwritable_plot_does_not_end_the_run(tiny, run, loss_curve, capsys, monkeypatch):
    """Windows refuses to replace a file that a viewer has open."""
    real_replace = os.replace

    def replace(source, target):
        if Path(target).name == "loss.png":
            raise PermissionError("in use")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    train.main(run(max_iters=0))
    out = capsys.readouterr().out
    assert "loss.png" in out and "(PermissionError: in use)" in out
    assert {path.name for path in Path("out").iterdir()} >= {"latest.pt", "best.pt"}
    assert not list(Path("out").glob("*.png"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["log_file", "metrics_file"])
def test_full_disk_message_names_the_file_and_the_command_that_continues(
    tiny, run, refused, monkeypatch, name
):
    """The message was once "No space left on device", without the file and without advice."""
    start = RunLogger.start

    def start_on_a_full_disk(self, *arguments):
        start(self, *arguments)
        setattr(self, name, open("/dev/full", "a", buffering=1))  # noqa: SIM115

    monkeypatch.setattr(RunLogger, "start", start_on_a_full_disk)
    message = refused(train.main, *run())
    assert "/dev/full (No space left on device)" in message
    assert "python train.py --init_from=resume --out_dir=out" in message


# The console


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_closed_console_does_not_end_the_run(tiny, run, start_run):
    """With `| tee`, Ctrl-C ends tee first; the next print then ended the run before it saved."""
    os.mkfifo("output")
    process = start_run(run(max_iters=50, eval_interval=50), stderr="errors")
    with open("output", encoding="utf-8") as console:
        assert [console.readline()[-1] for _ in range(3)] == ["\n"] * 3
    assert process.wait() == 0
    assert Path("errors").read_text(encoding="utf-8") == ""
    assert load_checkpoint("out/latest.pt")["step"] == 50
    assert "step 49: loss" in Path("out/training.log").read_text(encoding="utf-8")


def test_progress_bar_is_shown_on_a_terminal(tiny, run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train.main(run())
    captured = capsys.readouterr()
    for part in ("loss", "tok/s", "ETA 0:00:0", "100%", "10/10"):
        assert part in captured.err
    assert "step 10: train loss" in captured.out
    assert "step 3: loss" not in captured.out
    assert "step 3: loss" in Path("out/training.log").read_text(encoding="utf-8")


# Lines


def test_first_lines_show_the_tokens_per_step_and_the_expected_loss(tiny, run, capsys):
    train.main(run(max_iters=0, lr_decay_iters=0, warmup_iters=0))
    out = capsys.readouterr().out
    assert "2 micro-batches x 4 sequences x 16 tokens = 128\n" in out
    assert "before training the loss is 2.7" in out
    assert "ln(vocab_size) = ln(14) = 2.6391" in out
    assert "about equally likely" in out
    assert "note: " not in out


def test_too_large_initial_loss_is_explained(tiny, run, capsys):
    """At a loss of 63 the log said that the model finds all tokens equally likely."""
    train.main(run(max_iters=0, embedding_std=1.0))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "before training" in line]
    assert "too large" in line and "equally likely" not in line


def test_control_characters_of_a_sample_are_escaped(tiny, run, monkeypatch, capsys):
    """grep called the log of a model with NUL in its vocabulary a binary file."""
    monkeypatch.setattr(train, "sample_text", lambda *_: "a\x00\x1b[2J\nb")
    train.main(run(max_iters=1))
    assert "    | a\\x00\\x1b[2J\n    | b\n" in capsys.readouterr().out
    assert b"\0" not in Path("out/training.log").read_bytes()


@pytest.fixture
def opening_lines(make_trainer, capsys):
    """opening_lines(max_iters=20, ...): what a run prints before its first step."""

    def lines(**changes):
        trainer = make_trainer(**changes)
        log = RunLogger(trainer.config)
        log.start(trainer.raw_model, trainer.dataset, world_size=1)
        log.close()
        return capsys.readouterr().out

    return lines


def test_first_lines_count_the_epochs(opening_lines):
    out = opening_lines(max_iters=100, lr_decay_iters=100)
    assert f"100 steps, {100 * 128 / 5400:.2f} epochs, 1 process\n" in out


@pytest.mark.parametrize(
    "options, named",
    [
        ({"lr_decay_iters": 99}, ("lr_decay_iters=99", "max_iters=10")),
        ({"lr_decay_iters": 5}, ("lr_decay_iters=5", "max_iters=10")),
        ({"warmup_iters": 11}, ("warmup_iters=11", "max_iters=10")),
        ({"min_lr": 0.1}, ("min_lr=0.1", "learning_rate=0.01")),
    ],
)
def test_doubtful_learning_rate_schedule_is_noted(opening_lines, options, named):
    [note] = [line for line in opening_lines(**options).splitlines() if line.startswith("note: ")]
    assert all(words in note for words in named)


@pytest.mark.parametrize("options", [{}, {"lr_decay_iters": 99, "decay_lr": False}])
def test_sensible_learning_rate_schedule_is_not_noted(opening_lines, options):
    assert "note: " not in opening_lines(**options)


def test_evaluation_alone_has_no_notes_on_the_schedule(trained, capsys):
    train.main(
        [
            "--init_from=out",
            "--dataset=tiny",
            "--eval_only=True",
            "--eval_iters=1",
            "--lr_decay_iters=5",
            "--max_iters=3",
            "--warmup_iters=10",
            "--device=cpu",
        ]
    )
    assert "note:" not in capsys.readouterr().out


def test_resumed_run_lists_the_changed_options(trained, resume, capsys):
    train.main(resume(max_iters=31, eval_iters=3, dropout=0.3))
    out = capsys.readouterr().out
    assert "resumed from out/latest.pt at step 30" in out
    assert "changed options: eval_iters 2 -> 3, max_iters 30 -> 31, dropout 0.0 -> 0.3\n" in out


def test_end_after_a_signal_names_it_and_the_command_that_continues(tiny, capsys):
    log = RunLogger(train.TrainConfig(out_dir="out"))
    log.end(train.TrainState(step=7), signal.SIGTERM)
    log.close()
    out = capsys.readouterr().out
    assert "SIGTERM: saved at step 7" in out
    assert "python train.py --init_from=resume --out_dir=out" in out


def test_step_line_shows_the_mfu_and_an_eta_of_any_length(workspace):
    """An ETA beyond the 999,999,999 days of a timedelta ended the run in an OverflowError."""
    log = RunLogger(train.TrainConfig(out_dir="out"))
    speed = {"step_ms": 1e6, "tokens_per_s": 1.0, "mfu": 0.25, "eta_s": 2.0**53 * 1000}
    log.step(step=0, loss=1.0, lr=1.0, grad_norm=1.0, num_clipped_steps=0, **speed)
    log.close()
    line = Path("out/training.log").read_text(encoding="utf-8")
    assert "MFU 25.0%" in line and "ETA 999999999 days" in line
