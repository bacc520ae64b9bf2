"""Two real processes on gloo, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from seugpt.checkpoint import storage as checkpoint
from seugpt.errors import ConfigError
from seugpt.training.distributed import Ranks, connected
from tests.helpers import ROOT, logged_values, torchrun

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


@pytest.mark.parametrize("accumulation, optimizer", [(4, "adamw"), (1, "muon")])
def test_two_ranks_equal_one_process(tiny, run, accumulation, optimizer):
    """Sharing the micro-batches among them, or, where there is one, its rows."""
    options = {"gradient_accumulation_steps": accumulation, "eval_iters": 0, "optimizer": optimizer}
    train.main(run(out_dir="one", **options))
    result = torchrun(*run(out_dir="two", **options))
    assert result.returncode == 0, result.stderr
    for key in ("loss", "val_loss", "train_loss", "grad_norm"):
        assert logged_values("two", key) == pytest.approx(logged_values("one", key), rel=1e-4), key
    one, two = (checkpoint.load(f"{name}/latest.pt")["model"] for name in ("one", "two"))
    assert one.keys() == two.keys()  # no module. prefix
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_two_ranks_resume_bit_for_bit_with_each_ranks_dropout(tiny, run):
    assert torchrun(*run(out_dir="whole", dropout=0.3)).returncode == 0
    assert torchrun(*run(out_dir="parts", dropout=0.3, max_iters=5)).returncode == 0
    result = torchrun("--init_from=resume", "--out_dir=parts", "--max_iters=10")
    assert result.returncode == 0, result.stderr
    assert logged_values("whole", "loss") == logged_values("parts", "loss")
    whole, parts = (
        checkpoint.load(f"{name}/latest.pt", checkpoint.TO_RESUME) for name in ("whole", "parts")
    )
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    assert len(whole["generators"]) == 2 and not torch.equal(
        *(g["cpu"] for g in whole["generators"])
    )


def test_two_ranks_that_resume_run_out_of_patience_together(tiny, run):
    """The first alone reads how long ago the best evaluation was; weights that stay as they are bring no better one."""
    assert torchrun(*run(max_iters=4, eval_interval=2, learning_rate=0, min_lr=0)).returncode == 0
    result = torchrun("--init_from=resume", "--out_dir=out", "--max_iters=20", "--patience=3")
    assert result.returncode == 0, result.stderr
    assert checkpoint.load("out/latest.pt")["step"] == 6


def test_from_two_ranks_to_one_the_data_goes_on(tiny, run):
    train.main(run(out_dir="one"))
    assert torchrun(*run(out_dir="two", max_iters=5)).returncode == 0
    train.main(["--init_from=resume", "--out_dir=two", "--max_iters=10"])
    assert logged_values("two", "loss") == pytest.approx(logged_values("one", "loss"), rel=1e-4)
    assert "2 process(es) wrote it" in Path("two/training.log").read_text(encoding="utf-8")


def test_a_step_that_cannot_be_shared_is_said_once_before_anything_starts(tiny, run):
    result = torchrun(*run(gradient_accumulation_steps=3))
    assert result.returncode != 0
    words = "gradient_accumulation_steps=3 cannot be divided among 2 processes; use --gradient_accumulation_steps=2 or"
    assert result.stderr.count(words) == 1
    assert "Traceback" not in result.stderr.split(words)[0] and not Path("out").exists()


def test_processes_started_anew_do_not_meet_the_addresses_of_the_dead(monkeypatch):
    """torchrun's store outlives them. The run with a killed rank fails by it in one of a few tries alone."""
    stores, of_torchrun = [], torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(of_torchrun, 0, 1)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *_, store, **more: stores.append(store)
    )
    for attempt in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with connected("gloo"):
            stores[-1].set("address", attempt)
    assert [store.get("address") for store in stores] == [b"0", b"1"]


@pytest.mark.parametrize("init_from", ["resume", "auto"])
def test_ranks_that_begin_at_different_steps_do_not_begin(tiny, run, init_from):
    """Machines with folders of their own: one trained on from an older latest.pt, silently, or waited for ever."""
    train.main(run(out_dir="out-0", max_iters=5))
    if init_from == "resume":
        train.main(run(out_dir="out-1", max_iters=2))
    Path("apart.py").write_text(
        "import os, sys, train\ntrain.main([*sys.argv[1:], '--out_dir=out-' + os.environ['RANK']])",
        encoding="utf-8",
    )
    result = torchrun(*run(init_from=init_from), script="apart.py")
    theirs = 2 if init_from == "resume" else None
    assert result.returncode != 0 and "rank 0: {'step': 5, 'data': " in result.stderr
    assert (
        f"rank 1: {{'step': {theirs}, 'data': " in result.stderr
        and "Copy latest.pt and data/" in result.stderr
    )
    assert checkpoint.load("out-0/latest.pt")["step"] == 5


ENVIRONMENT = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234",
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    "WORLD_SIZE=abc WORLD_SIZE=-1 WORLD_SIZE=0 WORLD_SIZE= RANK=4 RANK=1.5 RANK= LOCAL_RANK=2 LOCAL_WORLD_SIZE=5 "
    "MASTER_ADDR=".split(),
)
def test_an_environment_that_is_not_torchruns_is_named(monkeypatch, changed):
    """A stray or lacking variable ended in the traceback of int() or of a dictionary."""
    name, _, value = changed.partition("=")
    for variable, text in {**ENVIRONMENT, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError) as error:
        Ranks.from_environment()
    assert (changed if value else f"no {name}") in str(error.value) and str(error.value).endswith(
        "unset WORLD_SIZE"
    )


def test_torchruns_environment_is_read(monkeypatch):
    monkeypatch.setenv("RANK", "stray")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.from_environment() == Ranks()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2)


@pytest.mark.skipif(torch.distributed.is_mpi_available(), reason="this torch has MPI")
def test_a_backend_that_torch_was_built_without_is_refused():
    with pytest.raises(
        ConfigError, match="backend=mpi is not in this build of torch; use --backend=auto"
    ):
        Ranks(rank=0, world_size=2).backend("mpi", torch.device("cpu"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_that_one_rank_makes_is_said_with_its_rank(workspace, rank):
    """All ranks but the first of a machine were silent, so that a run could end without a word."""
    Path("script.py").write_text(
        "import os, time\nfrom seugpt.cli.command import command\nfrom seugpt.errors import UserError\n"
        "with command():\n"
        f"    if os.environ['RANK'] == '{rank}': raise UserError('the disk is gone')\n"
        "    time.sleep(60)",
        encoding="utf-8",
    )
    words = (
        "script.py: the disk is gone\n" if rank == 0 else "script.py: rank 1: the disk is gone\n"
    )
    assert torchrun(script="script.py").stderr.count(words) == 1


def test_a_stray_rank_in_the_environment_does_not_silence_a_message(workspace):
    """LOCAL_RANK=1, left by a torchrun of before, did."""
    stray = {
        "LOCAL_RANK": "1",
        "RANK": "1",
        "TORCHELASTIC_ERROR_FILE": str(workspace / "attempt_0/1/error.json"),
    }
    Path("attempt_0/1").mkdir(parents=True)
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, str(ROOT / "prepare.py"), "nothing"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **stray},
        )
        assert (
            result.returncode == 2
            and "prepare.py: rank 1: name=nothing is not built in" in result.stderr
        )
