"""Faults during a run: NaN, a full disk, no memory, a failing compiler, a killed process."""

import contextlib
import os
import re
import shutil
import signal
from functools import partialmethod
from pathlib import Path

import pytest
import torch

import train
from seugpt.checkpoint.storage import RESUME_KEYS, load_checkpoint
from tests.helpers import logged_metrics, logged_values, nested_equal, resume_state, torchrun
from train import Trainer

# NaN and infinity


@pytest.fixture
def inject(monkeypatch):
    """inject("loss" or "gradient", step): make it NaN or infinite from that step on."""

    def call(quantity, step):
        backward = Trainer.backward

        def faulty_backward(self, x, y):
            loss = backward(self, x, y)
            if self.state.step < step:
                return loss
            value = torch.nan if quantity == "loss" else torch.inf
            for parameter in self.raw_model.parameters():
                parameter.grad[..., :1] = value
            return loss * torch.nan if quantity == "loss" else loss

        monkeypatch.setattr(Trainer, "backward", faulty_backward)

    return call


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(
    "quantity, log_interval, grad_clip",
    [("loss", 1, 1.0), ("loss", 100, 0.0), ("gradient", 1, 0.0), ("gradient", 100, 1.0)],
)
def test_nan_and_infinity_never_reach_the_weights(
    tiny, run, inject, refused, monkeypatch, quantity, log_interval, grad_clip, deferred
):
    """The run stops, and resuming it does not change latest.pt.

    deferred: as on a GPU, the optimizers skip the step, and the run stops a moment later.
    """
    inject(quantity, step=7)
    trainers = []
    train_step = Trainer.train_step

    def recorded_step(self):
        trainers.append(self)
        self.defers_check = deferred
        train_step(self)

    monkeypatch.setattr(Trainer, "train_step", recorded_step)
    options = run(log_interval=log_interval, grad_clip=grad_clip, optimizer="muon")
    message = refused(train.main, *options)
    assert "step 7" in message
    assert ("loss nan" if quantity == "loss" else "gradient norm inf") in message
    assert "torch.float32" in message
    assert "learning_rate=0.01 and muon_lr=0.02" in message
    assert all(parameter.isfinite().all() for parameter in trainers[-1].raw_model.parameters())
    state = resume_state("out")
    assert state["step"] == 5
    refused(train.main, "--init_from=resume", "--out_dir=out")
    assert nested_equal(resume_state("out"), state)


def test_signal_after_a_step_that_exploded_keeps_the_last_good_checkpoint(
    tiny, run, refused, monkeypatch
):
    """Weights of 9e37 are finite, and replaced latest.pt."""
    optimizer_step = Trainer.optimizer_step

    def explode(self, grad_norm):
        optimizer_step(self, grad_norm)
        if self.state.step == 7:
            self.raw_model.wte.weight.data.fill_(9e37)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "optimizer_step", explode)
    message = refused(train.main, *run())
    assert "step 7" in message.splitlines()[-1]
    assert "learning_rate=0.01" in message
    assert resume_state("out")["step"] == 5


def test_float16_overflow_is_left_to_the_gradient_scaler(tiny, run, monkeypatch):
    """A scale that is too large, as GradScaler's is at first, only skips steps until it fits."""
    grad_scaler = torch.amp.GradScaler

    def with_large_scale(*args, **kwargs):
        return grad_scaler(*args, **kwargs, init_scale=2.0**28)

    monkeypatch.setattr(torch.amp, "GradScaler", with_large_scale)
    train.main(run(dtype="float16", max_iters=30, eval_interval=30))
    steps = [line for line in logged_metrics() if "loss" in line]
    assert "grad_norm" not in steps[0]
    assert "grad_norm" in steps[-1]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_nan_loss_stops_a_float16_run(tiny, run, inject, refused):
    """GradScaler alone would skip every step from there to max_iters."""
    inject("loss", step=7)
    message = refused(train.main, *run(dtype="float16"))
    assert "step 7: loss nan" in message
    assert "torch.float16" in message


def test_nan_validation_loss_stops_the_run_before_saving(tiny, run, refused, monkeypatch):
    """The checkpoint of the previous evaluation stays."""

    def mean_loss(self, model, split):
        return float("nan") if split == "val" and self.state.step == 5 else 3.0

    monkeypatch.setattr(Trainer, "mean_loss", mean_loss)
    assert "step 5: validation loss nan" in refused(train.main, *run())
    assert resume_state("out")["step"] == 0


# Several processes


FAULTY_TRAIN = """
import os, signal, time
import torch
import train
from model import GPT

train_step = train.Trainer.train_step
forward = GPT.forward
fault = os.environ["FAULT"]
on_rank_1 = os.environ["RANK"] == "1"
first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
step = 0

def faulty_step(self):
    global step
    step = self.state.step
    if fault == "kill" and on_rank_1 and first_attempt and step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang" and on_rank_1 and step == 7:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that torchrun can end this process
        time.sleep(600)
    train_step(self)

def faulty_forward(self, idx, targets=None, cache=None):
    logits, loss = forward(self, idx, targets, cache)
    return logits, loss * torch.nan if fault == "nan" and on_rank_1 and step == 7 else loss

train.Trainer.train_step = faulty_step
GPT.forward = faulty_forward
train.draw_loss_curve = lambda log: None
train.main()
"""


@pytest.fixture
def faulty_torchrun(tiny, monkeypatch):
    """faulty_torchrun("kill", "hang", "nan" or "none", *argv): a fault on rank 1 of two."""

    def call(fault, *argv, restarts=0):
        Path("faulty.py").write_text(FAULTY_TRAIN, encoding="utf-8")
        monkeypatch.setenv("FAULT", fault)
        return torchrun(*argv, script="faulty.py", restarts=restarts)

    return call


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_killed_rank_ends_the_others_and_a_restart_loses_nothing(run, faulty_torchrun):
    """With --max_restarts and init_from=auto the result is that of an uninterrupted run."""
    options = {"dropout": 0.3, "max_iters": 9}
    result = faulty_torchrun("kill", *run(**options, init_from="auto"), restarts=2)
    assert result.returncode == 0, result.stderr
    before, words, after = result.stderr.partition("another process of this run died")
    assert words, result.stderr  # printed by rank 0, which was not killed
    assert "--init_from=resume" in after
    assert "Traceback" not in before
    assert "out/latest.pt at step 5" in result.stdout
    uninterrupted = faulty_torchrun("none", *run(**options, out_dir="whole"))
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert nested_equal(resume_state("out"), resume_state("whole"))
    assert logged_values("out", "loss") == logged_values("whole", "loss")


@pytest.mark.slow
def test_rank_that_hangs_ends_the_run_after_dist_timeout_s(run, faulty_torchrun):
    """Nobody closes its connections, so that the other once waited for half an hour."""
    result = faulty_torchrun("hang", *run(dist_timeout_s=20))
    assert result.returncode == 1
    assert "another process of this run died or does not respond" in result.stderr
    assert resume_state("out")["step"] == 5


def test_nan_on_one_rank_stops_all_ranks(run, faulty_torchrun):
    """The message is printed once, and no rank is left waiting for another."""
    result = faulty_torchrun("nan", *run(log_interval=100))
    assert result.returncode == 1
    assert result.stderr.count("step 7: loss nan") == 1
    assert "another process" not in result.stderr
    assert resume_state("out")["step"] == 5


# Disk, memory, compiler


@contextlib.contextmanager
def file_size_limit(size):
    """Make the system refuse to write beyond `size` bytes of any file."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot limit the size of files")
def test_disk_full_while_saving_keeps_the_previous_checkpoint(trained, refused):
    """The message names the file, what it needs and what is free; then the run can be resumed."""
    resume = ["--init_from=resume", "--out_dir=out", "--max_iters=32"]
    before = Path("out/latest.pt").read_bytes()
    limit = len(before) * 2 // 3  # in the middle of latest.pt; best.pt is smaller
    with file_size_limit(limit):
        message = refused(train.main, *resume)
    assert "out/latest.pt" in message
    sizes = re.search(r"needs ([\d,]+) bytes \(([\d,]+) bytes are free", message).groups()
    needed, free = (int(size.replace(",", "")) for size in sizes)
    assert limit < needed < len(before)
    assert free == pytest.approx(shutil.disk_usage("out").free, rel=0.5)
    assert Path("out/latest.pt").read_bytes() == before
    assert not list(Path("out").glob(".*.tmp"))
    train.main(resume)
    assert resume_state("out")["step"] == 32


@pytest.mark.parametrize(
    "batch_size, advice",
    [
        (12, "--batch_size=6 --gradient_accumulation_steps=4"),
        (9, "--batch_size=3 --gradient_accumulation_steps=6"),
        (7, "--batch_size=1 --gradient_accumulation_steps=14"),
        (1, "--block_size, --n_embd or --n_layer"),
    ],
)
def test_out_of_memory_suggests_an_equal_step_with_less_memory(
    tiny, run, refused, monkeypatch, batch_size, advice
):
    def out_of_memory(self, x, y):
        torch.empty(2**62)

    monkeypatch.setattr(Trainer, "backward", out_of_memory)
    message = refused(train.main, *run(batch_size=batch_size))
    assert "out of memory" in message
    assert advice in message


def test_failing_compiler_leaves_the_run_uncompiled(tiny, run, capsys, monkeypatch):
    """Whether compiling or the first call fails, the weights are those of an eager run."""

    def fail(*args):
        raise OSError("no C compiler")

    module_compile = torch.nn.Module.compile
    train.main(run(out_dir="eager", max_iters=2))
    for when, backend in (("compiling", fail), ("running", lambda graph, inputs: fail)):
        torch._dynamo.reset()
        faulty_compile = partialmethod(module_compile, backend=backend)
        monkeypatch.setattr(torch.nn.Module, "compile", faulty_compile)
        capsys.readouterr()
        train.main(run(out_dir=when, max_iters=2, compile=True))
        assert re.search("uncompiled: .*no C compiler", capsys.readouterr().out)
        assert nested_equal(resume_state(when)["model"], resume_state("eager")["model"])


# What a run itself watches


def test_rising_validation_loss_is_noted_once_and_patience_ends_the_run(
    tiny, run, capsys, monkeypatch
):
    """The validation loss is lowest at step 2."""

    def mean_loss(self, model, split):
        return 2.0 + 0.1 * abs(self.state.step - 2)

    monkeypatch.setattr(Trainer, "mean_loss", mean_loss)
    options = {"max_iters": 7, "eval_interval": 1}
    train.main(run(**options))
    out = capsys.readouterr().out
    assert len(re.findall("note: .*since step 2, .*2.0000", out)) == 1  # not again at step 6

    train.main(run(**options, out_dir="patient", patience=3))
    assert "step 5 of 7 by patience=3" in capsys.readouterr().out
    assert resume_state("patient")["step"] == 5
    assert load_checkpoint("patient/best.pt")["step"] == 2
    resume = ["--init_from=resume", "--out_dir=patient"]
    train.main(resume)
    assert resume_state("patient")["step"] == 5  # still out of patience
    capsys.readouterr()
    train.main([*resume, "--patience=0", "--max_iters=6"])
    assert resume_state("patient")["step"] == 6
    assert "2.0000 at step 2" in capsys.readouterr().out


def test_keep_last_keeps_the_newest_numbered_checkpoints(tiny, run):
    """Each of them is a complete copy of latest.pt, and can be resumed."""
    train.main(run(max_iters=3, eval_interval=1, keep_last=2))
    names = sorted(path.name for path in Path("out").glob("step-*"))
    assert names == ["step-00000002.pt", "step-00000003.pt"]
    last = load_checkpoint("out/step-00000003.pt")
    assert nested_equal(last["model"], resume_state("out")["model"])
    assert load_checkpoint("out/step-00000002.pt", RESUME_KEYS)["step"] == 2


def test_clipped_steps_are_counted_between_logged_steps(tiny, run):
    """grad_clip=0 disables clipping; the gradient norm is logged all the same."""
    train.main(run(grad_clip=1e-3, log_interval=4, eval_interval=10))
    assert logged_values("out", "num_clipped_steps") == [1, 4, 4]
    train.main(run(grad_clip=0.0, out_dir="free", max_iters=3))
    assert logged_values("free", "num_clipped_steps") == [0, 0, 0]
    assert all(norm > 0 for norm in logged_values("free", "grad_norm"))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_equal_seeds_give_equal_runs_bit_for_bit(tiny, run, num_threads):
    """Weights, optimizer state, random generators and logged losses are equal."""
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for name in ("one", "two"):
            train.main(run(out_dir=name, dropout=0.2, n_embd=64, batch_size=16, eval_interval=10))
    finally:
        torch.set_num_threads(num_threads_before)
    assert nested_equal(resume_state("one"), resume_state("two"))
    assert logged_values("one", "loss") == logged_values("two", "loss")
