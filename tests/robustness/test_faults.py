"""Faults in the middle of a run: what is no number, a full disk, no memory, a failing compiler, a process that dies."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prepare
import train
from seugpt.checkpoint import storage as checkpoint
from tests.helpers import ROOT, logged_metrics, nested_equal, resume_state, torchrun
from train import Trainer


@pytest.fixture
def poison(monkeypatch):
    """poison(step, what): from that step on the gradient or the loss is what no optimizer may take."""

    def call(step, what):
        backward = Trainer.backward

        def poisoned(self, x, y):
            loss = backward(self, x, y)
            if self.step >= step:
                if what == "loss":
                    loss = loss * torch.nan
                for parameter in self.bare.parameters():
                    parameter.grad[..., :1] = torch.nan if what == "loss" else torch.inf
            return loss

        monkeypatch.setattr(Trainer, "backward", poisoned)

    return call


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("log_interval", [1, 100], ids=["logged", "not logged"])
@pytest.mark.parametrize("grad_clip", [1.0, 0.0])
def test_what_is_no_number_never_reaches_the_weights(
    tiny, run, poison, refused, monkeypatch, what, log_interval, grad_clip
):
    poison(7, what)
    trainers = []
    real_step = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self: (trainers.append(self), real_step(self))
    )
    message = refused(
        train.main, *run(log_interval=log_interval, grad_clip=grad_clip, optimizer="muon")
    )
    assert "stopped in step 7: loss " in message and "lr " in message and "torch.float32" in message
    assert "nan" in message if what == "loss" else "length of the gradient inf" in message
    assert "a tenth of learning_rate=0.01 and muon_lr=0.02" in message
    assert all(parameter.isfinite().all() for parameter in trainers[-1].bare.parameters())
    assert resume_state("out")["step"] == 5
    before = resume_state("out")
    with pytest.raises(SystemExit):
        train.main(["--init_from=resume", "--out_dir=out"])
    assert nested_equal(before, resume_state("out"))


def test_an_overflow_of_float16_is_no_such_fault(tiny, run, monkeypatch):
    """GradScaler begins with a scale that is too large, on purpose, and leaves those steps out."""
    grad_scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *a, **k: grad_scaler(*a, **k, init_scale=2.0**40)
    )
    train.main(run(dtype="float16", max_iters=60))
    steps = [m for m in logged_metrics() if "loss" in m]
    assert "grad_norm" not in steps[0] and "grad_norm" in steps[-1]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_loss_that_is_no_number_stops_a_run_in_float16_too(tiny, run, poison, refused):
    """Its scaler would leave out every step from there on, until max_iters."""
    poison(7, "loss")
    message = refused(train.main, *run(dtype="float16"))
    assert "stopped in step 7: loss nan" in message and "torch.float16" in message


def test_a_validation_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    tiny, run, refused, monkeypatch
):
    losses = iter([3.0, float("nan")])
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, model: {"train": 1.0, "val": next(losses)}
    )
    assert "stopped in step 5: validation loss nan" in refused(train.main, *run())
    assert resume_state("out")["step"] == 0


FAULTY = """
import os, signal
import torch
import train
from model import GPT

step, forward, now = train.Trainer.train_step, GPT.forward, 0
first, rank, fault = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", os.environ["RANK"], os.environ["FAULT"]

def train_step(self):
    global now
    now = self.step
    if fault == "kill" and first and now == 7 and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)

def poisoned(self, idx, targets=None, cache=None):
    logits, loss = forward(self, idx, targets, cache)
    return logits, loss * torch.nan if fault == "nan" and now == 7 and rank == "1" else loss

train.Trainer.train_step, GPT.forward = train_step, poisoned
train.main()
"""


@pytest.fixture
def faulty(tiny, monkeypatch):
    def call(fault, *argv, **more):
        Path("faulty.py").write_text(FAULTY, encoding="utf-8")
        monkeypatch.setenv("FAULT", fault)
        return torchrun(*argv, script="faulty.py", **more)

    return call


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_after_a_rank_has_died_torchrun_and_auto_go_on_as_if_nothing_had_been(run, faulty):
    result = faulty("kill", *run(init_from="auto", dropout=0.3), restarts=2)
    assert result.returncode == 0, result.stderr
    assert "resumed from out/latest.pt at step 5" in result.stdout
    assert faulty("none", *run(out_dir="whole", dropout=0.3)).returncode == 0
    assert nested_equal(resume_state("out"), resume_state("whole"))
    assert [m.get("loss") for m in logged_metrics()] == [
        m.get("loss") for m in logged_metrics("whole")
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
def test_a_rank_that_dies_does_not_leave_the_others_waiting(run, faulty):
    result = faulty("kill", *run())
    assert result.returncode == 1
    before, words, after = result.stderr.partition(
        "faulty.py: another process of this run has died"
    )
    assert words and "--init_from=resume" in after and "Traceback" not in before
    assert resume_state("out")["step"] == 5


def test_what_is_no_number_on_one_rank_stops_all_of_them(run, faulty):
    result = faulty("nan", *run(log_interval=100))
    assert result.returncode == 1
    assert (
        result.stderr.count("stopped in step 7: loss nan") == 1
        and "another process" not in result.stderr
    )
    assert resume_state("out")["step"] == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of a file's size")
def test_a_disk_that_fills_up_while_saving_costs_nothing(tiny, run):
    """The system refuses what goes beyond a size, in the middle of the file."""
    import resource

    train.main(run(max_iters=5))
    before = {path.name: path.read_bytes() for path in Path("out").glob("*.pt")}
    size = len(before["latest.pt"]) * 2 // 3
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            "--init_from=resume",
            "--out_dir=out",
            "--max_iters=10",
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert result.returncode == 2, result.stderr
    assert (
        "train.py: cannot write out/latest.pt: " in result.stderr and "bytes, and " in result.stderr
    )
    assert (
        "free there. What was there before is untouched" in result.stderr
        and "Traceback" not in result.stderr
    )
    numbers = re.search(r"needs ([\d,]+) bytes, and ([\d,]+) are free", result.stderr).groups()
    needed, free = (int(number.replace(",", "")) for number in numbers)
    assert size < needed < len(before["latest.pt"]) and free == pytest.approx(
        shutil.disk_usage("out").free, rel=0.5
    )
    assert Path("out/latest.pt").read_bytes() == before["latest.pt"]
    assert not [path for path in Path("out").iterdir() if path.name.endswith(".tmp")]
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert resume_state("out")["step"] == 10


@pytest.mark.parametrize("batch_size, words", [
    (12, "--batch_size=6 --gradient_accumulation_steps=4"), (9, "--batch_size=3 --gradient_accumulation_steps=6"),
    (7, "--batch_size=1 --gradient_accumulation_steps=14"), (1, "a smaller --block_size, --n_embd or --n_layer"),
])  # fmt: skip
def test_out_of_memory_is_answered_with_the_same_step_in_less(
    tiny, run, refused, monkeypatch, batch_size, words
):
    def out_of_memory(self, x, y):
        torch.empty(2**62)

    monkeypatch.setattr(Trainer, "backward", out_of_memory)
    message = refused(train.main, *run(batch_size=batch_size))
    assert ": out of memory: " in message and words in message


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_a_compiler_that_fails_costs_a_line_and_not_the_run(tiny, run, capsys, monkeypatch, when):
    def backend(graph, inputs):
        if when == "compiling":
            raise OSError("no C compiler")

        def call(*arguments):
            raise OSError("no C compiler")

        return call

    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile(self, backend=backend))
    train.main(run(compile=True))
    assert "torch.compile failed, so the model runs uncompiled: " in (
        out := capsys.readouterr().out
    )
    assert "no C compiler" in out
    train.main(run(out_dir="eager"))
    assert nested_equal(resume_state("out")["model"], resume_state("eager")["model"])


def test_validation_that_rises_is_said_and_patience_ends_the_run(tiny, run, capsys):
    """A text of 600 characters, learned by heart."""
    text = Path("tiny.txt").read_text(encoding="utf-8")
    Path("tiny.txt").write_text(text[:600], encoding="utf-8")
    prepare.main(["tiny", "--input=tiny.txt"])
    options = {
        "max_iters": 400,
        "eval_interval": 20,
        "eval_iters": 0,
        "decay_lr": False,
        "n_layer": 1,
    }
    train.main(run(**options, log_interval=400))
    out = capsys.readouterr().out
    losses = {m["step"]: m["val_loss"] for m in logged_metrics() if "val_loss" in m}
    best = min(losses, key=losses.get)
    note = f"note: no better since step {best}, where the validation loss was {losses[best]:.4f}"
    assert out.count(note) == 1 and max(losses) > best + 60  # and not again at the fourth
    train.main(run(**options, log_interval=400, out_dir="patient", patience=3))
    assert "patience=3 ended the run at step " in capsys.readouterr().out
    stopped = resume_state("patient")
    losses = {m["step"]: m["val_loss"] for m in logged_metrics("patient") if "val_loss" in m}
    assert stopped["step"] == min(losses, key=losses.get) + 60 < 400
    assert checkpoint.load("patient/best.pt")["step"] == stopped["step"] - 60
    train.main(["--init_from=resume", "--out_dir=patient"])
    assert resume_state("patient")["step"] == stopped["step"]  # it is still out of patience
    train.main(
        [
            "--init_from=resume",
            "--out_dir=patient",
            "--patience=0",
            f"--max_iters={stopped['step'] + 20}",
        ]
    )
    assert resume_state("patient")["step"] == stopped["step"] + 20
    assert f", at step {stopped['step'] - 60}; the curves" in capsys.readouterr().out


def test_only_the_newest_checkpoints_are_kept(tiny, run):
    train.main(run(max_iters=30, keep_checkpoints=2))
    assert sorted(p.name for p in Path("out").glob("step-*")) == [
        "step-00000025.pt",
        "step-00000030.pt",
    ]
    assert nested_equal(
        checkpoint.load("out/step-00000030.pt")["model"], resume_state("out")["model"]
    )
    assert checkpoint.load("out/step-00000025.pt", checkpoint.TO_RESUME)["step"] == 25


def test_clipped_steps_are_counted(tiny, run):
    train.main(run(grad_clip=1e-3, log_interval=4))
    assert [m["clipped"] for m in logged_metrics() if "loss" in m] == [1, 4, 4]
    train.main(run(grad_clip=0.0, out_dir="free"))
    steps = [m for m in logged_metrics("free") if "loss" in m]
    assert {m["clipped"] for m in steps} == {0} and all(m["grad_norm"] > 0 for m in steps)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_run_bit_for_bit(tiny, run, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("one", "two"):
            train.main(run(out_dir=name, dropout=0.2, n_embd=64, batch_size=16))
    finally:
        torch.set_num_threads(before)
    assert nested_equal(resume_state("one"), resume_state("two"))
    assert [m.get("loss") for m in logged_metrics("one")] == [
        m.get("loss") for m in logged_metrics("two")
    ]
