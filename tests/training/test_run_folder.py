"""One run at a time in a folder."""

import os
import signal
from pathlib import Path

import pytest

import train
from tests.helpers import resume_state, start_script, wait_for_output


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_a_second_run_is_refused_while_the_first_lives_and_no_longer(tiny, run, refused):
    first = start_script(run(max_iters=100_000, eval_interval=100_000))
    try:
        wait_for_output(first, "step 1: loss")
        for argv in (run(), ["--init_from=resume", "--out_dir=out", "--max_iters=7"]):
            message = refused(train.main, *argv)
            assert (
                f"out_dir=out is in use: process {first.pid} on " in message
                and "another --out_dir" in message
            )
        assert not list(Path("out").glob("previous-*")) and resume_state("out")["step"] == 0
        train.main(run(out_dir="elsewhere", max_iters=1))
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    train.main(
        ["--init_from=resume", "--out_dir=out", "--max_iters=7"]
    )  # the lock was the dead process's
    assert resume_state("out")["step"] == 7


def test_an_evaluation_may_look_while_a_run_trains(tiny, run, capsys):
    train.main(run(max_iters=2))
    first = start_script(run(max_iters=100_000, eval_interval=100_000))
    try:
        wait_for_output(first, "step 1: loss")
        train.main(["--init_from=resume", "--out_dir=out", "--eval_only=True"])
        assert "step 0: train loss" in capsys.readouterr().out and first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_kept_checkpoints_are_moved_aside_with_their_run(tiny, run):
    train.main(run(keep_checkpoints=2))
    train.main(run(max_iters=1))
    kept = [path.name for path in sorted(Path("out/previous-1").glob("step-*.pt"))]
    assert kept == ["step-00000005.pt", "step-00000010.pt"] and not list(
        Path("out").glob("step-*.pt")
    )
