"""out_dir: one run at a time writes there, and the files of an earlier run are moved aside."""

import os
import signal
from pathlib import Path

import pytest

import train
from tests.helpers import resume_state, wait_for_output

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


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_out_dir_is_named(tiny, run, refused):
    Path("out").mkdir(mode=0o500)
    message = refused(train.main, *run())
    assert "out_dir=out" in message and "--out_dir" in message
