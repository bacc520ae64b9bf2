"""out_dir: one run at a time writes there, and the files of an earlier run are moved aside."""

import os
import signal
from pathlib import Path

import pytest

import train
from seugpt.training.run_folder import open_run_folder
from tests.helpers import logged_metrics, resume_state, wait_for_output

ENDLESS = {"max_iters": 100_000, "eval_interval": 100_000}


def test_second_run_is_refused_only_while_the_first_is_alive(tiny, run, resume, refused, start_run):
    first = start_run(run(**ENDLESS))
    wait_for_output(first, "step 1: loss")
    for argv in (run(), resume(max_iters=7)):
        message = refused(train.main, *argv)
        assert f"process {first.pid} on " in message
    assert not list(Path("out").glob("previous-*"))
    assert resume_state("out")["step"] == 0
    train.main(run(out_dir="elsewhere", max_iters=0))
    first.send_signal(signal.SIGKILL)
    first.wait()
    train.main(resume(max_iters=7))  # the lock of a dead process does not count
    assert resume_state("out")["step"] == 7


def test_eval_only_works_while_a_run_trains(tiny, run, resume, start_run, capsys):
    first = start_run(run(**ENDLESS))
    wait_for_output(first, "step 1: loss")
    train.main(resume(eval_only=True))
    assert "step 0: train loss" in capsys.readouterr().out
    assert first.poll() is None


def test_numbered_checkpoints_are_moved_aside_with_their_run(tiny, run):
    train.main(run(max_iters=2, eval_interval=1, keep_last=2))
    train.main(run(max_iters=0))
    moved = [path.name for path in sorted(Path("out/previous-1").glob("step-*.pt"))]
    assert moved == ["step-00000001.pt", "step-00000002.pt"]
    assert not list(Path("out").glob("step-*.pt"))


def test_log_of_a_run_without_a_checkpoint_continues(trained, run):
    """There is nothing to resume, so nothing is moved aside."""
    for path in Path("out").glob("*.pt"):
        path.unlink()
    before = Path("out/training.log").read_text(encoding="utf-8")
    train.main(run(max_iters=0))
    assert not Path("out/previous-1").exists()
    assert Path("out/training.log").read_text(encoding="utf-8").startswith(before)


def test_metrics_of_a_run_without_a_checkpoint_start_anew(trained, run):
    """The evaluation at step 0 was there twice after a run killed before its first checkpoint."""
    for path in Path("out").glob("*.pt"):
        path.unlink()
    train.main(run(max_iters=0))
    assert [values["step"] for values in logged_metrics()] == [0]


RUN_PATHS = {"best.pt", "config.py", "latest.pt", "loss.png", "metrics.jsonl", "snapshots"}


@pytest.fixture
def half_moved(trained, monkeypatch):
    """half_moved(n): a run in out/, of which n files were moved aside when the process died."""

    def move(num_files):
        rename = Path.rename
        moved = []

        def rename_or_die(self, target):
            if len(moved) == num_files:
                raise KeyboardInterrupt
            moved.append(self.name)
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", rename_or_die)
            with pytest.raises(KeyboardInterrupt):
                open_run_folder(Path("out"), resume=False)

    return move


@pytest.mark.parametrize("num_files", [1, 3, 6])
def test_a_move_that_was_killed_is_completed_by_the_next_run(half_moved, run, num_files):
    """The run was split between two folders."""
    half_moved(num_files)
    train.main(run(max_iters=0))
    assert {path.name for path in Path("out/previous-1").iterdir()} >= RUN_PATHS
    assert resume_state("out/previous-1")["step"] == 30
    assert len(logged_metrics("out/previous-1")) > 30
    assert not Path("out/previous-2").exists()


@pytest.mark.parametrize("num_files", [1, 3, 6])
def test_a_move_that_was_killed_is_undone_by_a_resume(half_moved, resume, num_files):
    """Its metrics were emptied."""
    half_moved(num_files)
    train.main(resume(max_iters=32))
    assert {path.name for path in Path("out").iterdir()} >= RUN_PATHS
    assert [values["step"] for values in logged_metrics() if "loss" in values] == list(range(32))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_out_dir_is_named(tiny, run, refused):
    Path("out").mkdir(mode=0o500)
    message = refused(train.main, *run())
    assert "out_dir=out" in message and "--out_dir" in message
