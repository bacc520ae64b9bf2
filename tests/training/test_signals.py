"""Signals sent to real processes: no step is lost, and no checkpoint is damaged."""

import os
import random
import re
import select
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import train
from seugpt.checkpoint.storage import RESUME_KEYS, load_checkpoint
from seugpt.training import signals
from seugpt.training.signals import SIGNALS, SignalHandler
from tests.helpers import (
    ROOT,
    logged_values,
    nested_equal,
    resume_state,
    start_script,
    wait_for_output,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SIGHUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # sent when a terminal is closed
LONG = {"max_iters": 3000, "lr_decay_iters": 3000, "eval_interval": 3000, "dropout": 0.3}


def signal_at_step_12(process, signum):
    """Send a signal to a run after step 12. Returns its exit code and output."""
    wait_for_output(process, "step 12: loss")
    process.send_signal(signum)
    code = process.wait(timeout=120)
    return code, Path("output").read_text(encoding="utf-8")


def check_saved(output):
    """Check that latest.pt has the step that the output names. Returns that step."""
    step = resume_state("out")["step"]
    assert 12 < step < LONG["max_iters"]
    names = "|".join(signum.name for signum in SIGNALS)  # torchrun may pass on another one
    command = "python train.py --init_from=resume --out_dir=out"
    assert re.search(rf"({names}): saved at step {step}; .*{command}", output), output
    return step


def check_nothing_lost(whole="whole"):
    assert nested_equal(resume_state("out"), resume_state(whole))
    assert logged_values("out", "loss") == logged_values(whole, "loss")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, SIGHUP], ids=lambda s: s.name)
def test_signal_ends_the_run_after_its_step_and_loses_nothing(tiny, run, resume, start_run, signum):
    code, output = signal_at_step_12(start_run(run(**LONG)), signum)
    assert code == 128 + signum, output
    end = check_saved(output) + 5
    train.main(resume(max_iters=end, eval_interval=end))
    train.main(run(**{**LONG, "out_dir": "whole", "max_iters": end, "eval_interval": end}))
    check_nothing_lost()


def test_sigterm_to_torchrun_loses_no_step_of_its_ranks(tiny, run, resume, two_ranks):
    code, output = signal_at_step_12(start_script(run(**LONG), *TORCHRUN), signal.SIGTERM)
    assert code == 1, output  # torchrun's own exit code
    end = check_saved(output) + 5
    two_ranks(resume(max_iters=end, eval_interval=end))
    two_ranks(run(**{**LONG, "out_dir": "whole", "max_iters": end, "eval_interval": end}))
    check_nothing_lost()


def test_ctrl_c_to_torchrun_saves_its_last_step(tiny, run):
    code, output = signal_at_step_12(start_script(run(**LONG), *TORCHRUN), signal.SIGINT)
    assert code == 1, output
    check_saved(output)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, SIGHUP], ids=lambda s: s.name)
def test_signals_that_arrive_together_count_once(tiny, run, start_run, signum):
    """The second SIGHUP of a closed terminal was taken for a second Ctrl-C, and lost the run."""
    process = start_run(run(**LONG))
    wait_for_output(process, "step 12: loss")
    for _ in range(5):
        process.send_signal(signum)
        time.sleep(1e-4)
    # On a busy machine the last one may arrive when the run has ended.
    assert process.wait() in (128 + signum, -signum)
    check_saved(process.output.read_text(encoding="utf-8"))


def test_sigterm_to_every_process_of_torchrun_loses_nothing(tiny, run):
    """Ranks received it directly, and again from torchrun, which ended them unsaved."""
    process = start_script(run(**LONG), *TORCHRUN, start_new_session=True)
    wait_for_output(process, "step 12: loss")
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=120)
    check_saved(Path("output").read_text(encoding="utf-8"))


def test_closed_terminal_loses_nothing(tiny, run, monkeypatch):
    """A real shell on a real terminal: the kernel and the shell each send a SIGHUP."""
    pty = pytest.importorskip("pty")
    bash = shutil.which("bash") or pytest.skip("there is no bash")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(bash, ["bash", "--norc", "-i"])
    os.write(terminal, shlex.join([sys.executable, str(ROOT / "train.py"), *run(**LONG)]).encode())
    os.write(terminal, b"\n")

    def is_at_step_12():
        readable, _, _ = select.select([terminal], [], [], 0.05)
        if readable:
            os.read(terminal, 1 << 16)  # else the run would wait for its reader
        log = Path("out/training.log")
        return log.exists() and "step 12: loss" in log.read_text(encoding="utf-8")

    wait_until(is_at_step_12)
    os.close(terminal)
    os.waitpid(pid, 0)
    wait_until(lambda: "saved at step" in Path("out/training.log").read_text(encoding="utf-8"))
    check_saved(Path("out/training.log").read_text(encoding="utf-8"))


def test_ctrl_c_again_quits_only_after_a_while(monkeypatch):
    """Other signals never do: a service manager and torchrun repeat them."""
    clock = iter([100.0, 101.0, 103.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    killed = []
    monkeypatch.setattr(signals.os, "kill", lambda pid, signum: killed.append(signum))
    before = signal.getsignal(signal.SIGINT)
    handler = SignalHandler(quiet=True)
    handler.handle(signal.SIGTERM, None)
    handler.handle(signal.SIGTERM, None)
    handler.handle(signal.SIGINT, None)  # one second after the first
    assert (handler.received, killed) == (signal.SIGTERM, [])
    handler.handle(signal.SIGINT, None)
    signal.signal(signal.SIGINT, before)
    assert killed == [signal.SIGINT]


def test_ctrl_c_twice_ends_an_endless_step(tiny, run, start_run):
    process = start_run(run(gradient_accumulation_steps=1_000_000))
    while not Path("out/latest.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    wait_for_output(process, "Ctrl-C again quits now")
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.wait() == -signal.SIGINT
    assert resume_state("out")["step"] == 0


def test_signal_handlers_are_restored_after_training(tiny, run):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    train.main(run(max_iters=1))
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), SignalHandler(quiet=True) as handler:
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler.received == signal.SIGTERM
        raise ZeroDivisionError
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_ignored_signals_stay_ignored():
    """Ctrl-C at the terminal must not end a background job of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalHandler() as handler:
            os.kill(os.getpid(), signal.SIGINT)
            assert handler.received == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("num_kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_at_a_random_moment_never_damages_a_checkpoint(tiny, run, start_run, num_kills):
    """kill -9, also while saving; in the end the weights are those of an uninterrupted run."""
    options = {"max_iters": 10**6, "lr_decay_iters": 4000, "n_embd": 64}
    options |= {"eval_interval": 2, "eval_iters": 1}
    seed = random.Random().randrange(10**6)
    rng = random.Random(seed)
    step = 0
    max_seconds = 0.8  # before a kill
    for _ in range(num_kills):
        process = start_run(run(**options, init_from="auto"))
        time.sleep(rng.uniform(0.05, max_seconds))
        assert process.poll() is None, process.output.read_text(encoding="utf-8")
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = 0
        if Path("out/latest.pt").exists():
            reached = load_checkpoint("out/latest.pt", RESUME_KEYS)["step"]
        if Path("out/best.pt").exists() or reached:
            load_checkpoint("out/best.pt")
        assert reached >= step, seed
        # Longer on a busy machine, where a run does not get that far.
        max_seconds = 1.5 * max_seconds if reached == step else max(0.8, max_seconds / 1.5)
        step = reached
    assert step > 0
    options["max_iters"] = step + 4
    train.main(run(**options, init_from="auto"))
    train.main(run(**{**options, "out_dir": "whole", "eval_interval": step + 4}))
    weights = load_checkpoint("out/latest.pt")["model"]
    assert nested_equal(weights, load_checkpoint("whole/latest.pt")["model"])
    assert not [path.name for path in Path("out").iterdir() if path.name.endswith(".tmp")]
