"""Signals and kills: real ones, sent to real processes."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import train
from seugpt.checkpoint import storage as checkpoint
from seugpt.training.signals import SIGNALS, Stop
from tests.helpers import logged_metrics, nested_equal, resume_state, start_script, wait_for_output

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # a terminal that is closed


@pytest.mark.parametrize("number, launcher", [
    (signal.SIGINT, ()), (signal.SIGTERM, ()), (HANGUP, ()), (signal.SIGTERM, TORCHRUN), (signal.SIGINT, TORCHRUN),
], ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGTERM to torchrun", "SIGINT to torchrun"])  # fmt: skip
def test_a_signal_ends_the_run_after_its_step_and_nothing_is_lost(tiny, run, number, launcher):
    options = {"max_iters": 3000, "lr_decay_iters": 3000, "eval_interval": 3000, "dropout": 0.3}
    process = start_script(run(**options), *launcher)
    wait_for_output(process, "step 12: loss")
    process.send_signal(number)
    code, text = process.wait(timeout=120), Path("output").read_text(encoding="utf-8")
    assert code == (1 if launcher else 128 + number), text  # torchrun has its own codes
    stopped = resume_state("out")["step"]
    assert 12 < stopped < 3000
    sent = [n.name for n in SIGNALS if f"{n.name}: saved at step {stopped}; to go on:" in text]
    assert sent and "python train.py --init_from=resume --out_dir=out" in text
    end = [f"--{name}={stopped + 5}" for name in ("max_iters", "eval_interval")]
    end = start_script(["--init_from=resume", "--out_dir=out", *end], *launcher)
    assert end.wait(timeout=120) == 0
    whole = start_script(
        run(
            **{
                **options,
                "out_dir": "whole",
                "max_iters": stopped + 5,
                "eval_interval": stopped + 5,
            }
        ),
        *launcher,
    )
    assert whole.wait(timeout=120) == 0
    assert nested_equal(resume_state("out"), resume_state("whole"))
    assert [m.get("loss") for m in logged_metrics()] == [
        m.get("loss") for m in logged_metrics("whole")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_run_at_once(tiny, run, number):
    process = start_script(run(gradient_accumulation_steps=1_000_000))
    while not Path("out/latest.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    wait_for_output(process, "once more ends the run at once")
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    assert resume_state("out")["step"] == 0


def test_signals_are_handled_in_training_alone(tiny, run):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    train.main(run(max_iters=1))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ZeroDivisionError), Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        raise ZeroDivisionError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_was_ignored_stays_ignored(tiny, run):
    """A script's jobs in the background do not end with Ctrl-C at its terminal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


KILLED = """
import os, random, signal, sys, time
import train
from seugpt.checkpoint import storage as checkpoint

count, seed, *argv = sys.argv[1:]
dice, step, longest = random.Random(int(seed)), 0, 0.8
train.main([*argv, "--out_dir=warm", "--max_iters=1"])  # what is imported only when it is needed
for number in range(int(count)):
    child = os.fork()
    if child == 0:
        try:
            train.main(argv)
        finally:
            os._exit(0)
    time.sleep(dice.uniform(0.05, longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not os.path.exists("out/latest.pt"):
        longest *= 1.5
    else:
        now = checkpoint.load("out/latest.pt", checkpoint.TO_RESUME)["step"]
        assert now >= step, (now, step)
        longest *= 1 if now > step else 1.5  # a machine with other work
        step = now
    best = os.path.exists("out/best.pt") and checkpoint.load("out/best.pt")
    assert step == 0 or best
print("reached", step)
"""


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_no_kill_at_any_moment_leaves_a_checkpoint_that_does_not_load(tiny, run, kills):
    """kill -9, mid-save too; then the run goes on, and ends as one that was never disturbed."""
    options = {
        "max_iters": 4000,
        "lr_decay_iters": 4000,
        "eval_interval": 2,
        "eval_iters": 1,
        "n_embd": 64,
    }
    Path("killed.py").write_text(KILLED, encoding="utf-8")
    seed = str(random.Random().randrange(10**6))
    process = start_script(
        [str(kills), seed, *run(**options, init_from="auto")], script="killed.py"
    )
    text = (process.wait(timeout=600), Path("output").read_text(encoding="utf-8"))
    assert text[0] == 0, (seed, text[1][-2000:])
    reached = int(text[1].rpartition("reached ")[2])
    assert reached > 0
    end = {**options, "max_iters": reached + 4}
    train.main(run(**end, init_from="auto"))
    train.main(run(**{**end, "out_dir": "whole", "eval_interval": reached + 4}))
    assert nested_equal(
        checkpoint.load("out/latest.pt")["model"], checkpoint.load("whole/latest.pt")["model"]
    )
    assert not [path.name for path in Path("out").iterdir() if path.name.endswith(".tmp")]
