"""Several processes: how they split a step, runs of two ranks on gloo, and their messages."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import evaluate
import prepare
import train
from seugpt.checkpoint.storage import RESUME_KEYS, load_checkpoint
from seugpt.errors import ConfigError
from seugpt.training.distributed import DistributedEnv, agree_on_prefix, process_group
from tests.helpers import ROOT, logged_values, torchrun

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)

# Splitting a step


def test_split_step_divides_micro_batches_or_rows():
    assert DistributedEnv().split_step(40, 12) == (40, None)
    assert DistributedEnv(1, 4).split_step(40, 12) == (10, None)
    assert DistributedEnv(1, 3).split_step(1, 12) == (1, slice(1, None, 3))


@pytest.mark.parametrize(
    "accumulation_steps, batch_size, value, nearest",
    [
        (3, 12, "gradient_accumulation_steps=3", ["2", "4"]),
        (1, 7, "batch_size=7", ["6", "8"]),
        (1, 1, "batch_size=1", ["2"]),
    ],
)
def test_uneven_split_is_refused_with_the_nearest_values(
    accumulation_steps, batch_size, value, nearest
):
    with pytest.raises(ConfigError) as error:
        DistributedEnv(0, 2).split_step(accumulation_steps, batch_size)
    option, _, _ = value.partition("=")
    assert f"{value} " in str(error.value)
    assert re.findall(rf"--{option}=(\d+)", str(error.value)) == nearest


@pytest.mark.parametrize("sampling", ["random", "permutation"])
@pytest.mark.parametrize("accumulation_steps", [4, 1])
def test_all_ranks_together_see_the_batches_of_one_process(
    make_trainer, accumulation_steps, sampling
):
    trainer = make_trainer(gradient_accumulation_steps=accumulation_steps, sampling=sampling)

    def rows(world_size):
        found = []
        for rank in range(world_size):
            trainer.dist_env = DistributedEnv(rank, world_size)
            for step in range(3):
                trainer.state.step = step
                for micro_step in range(trainer.micro_steps):
                    x, _ = trainer.batch(micro_step)
                    found += [(step, *row) for row in x.tolist()]
        return sorted(found)

    assert rows(1) == rows(2) == rows(4)
    assert len(rows(1)) == 3 * 4 * accumulation_steps


# Runs of two ranks


def check_equal_runs(one, two):
    """Check that two runs logged the same values and have the same weights, up to rounding."""
    for key in ("loss", "val_loss", "train_loss", "grad_norm"):
        assert logged_values(two, key) == pytest.approx(logged_values(one, key), rel=1e-4), key
    weights = load_checkpoint(f"{one}/latest.pt")["model"]
    other_weights = load_checkpoint(f"{two}/latest.pt")["model"]
    assert other_weights.keys() == weights.keys()  # without DDP's prefix
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_two_ranks_that_split_the_micro_batches_equal_one_process(tiny, run):
    """Started by the real torchrun."""
    options = {"gradient_accumulation_steps": 4, "max_iters": 6, "eval_interval": 6}
    train.main(run(out_dir="one", eval_iters=0, **options))
    result = torchrun(*run(out_dir="two", eval_iters=0, **options))
    assert result.returncode == 0, result.stderr
    check_equal_runs("one", "two")


def test_two_ranks_that_split_the_rows_equal_one_process(tiny, run, two_ranks):
    """With a single micro-batch there is nothing else to split."""
    options = {"gradient_accumulation_steps": 1, "max_iters": 6, "eval_interval": 6}
    train.main(run(out_dir="one", eval_iters=0, optimizer="muon", **options))
    two_ranks(run(out_dir="two", eval_iters=0, optimizer="muon", **options))
    check_equal_runs("one", "two")


def test_two_ranks_resume_bit_for_bit_each_with_its_dropout(tiny, run, resume, two_ranks):
    two_ranks(run(out_dir="whole", dropout=0.3))
    two_ranks(run(out_dir="parts", dropout=0.3, max_iters=5))
    two_ranks(resume(out_dir="parts", max_iters=10))
    assert logged_values("whole", "loss") == logged_values("parts", "loss")
    whole = load_checkpoint("whole/latest.pt", RESUME_KEYS)
    parts = load_checkpoint("parts/latest.pt", RESUME_KEYS)
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    first, second = whole["rng_states"]
    assert not torch.equal(first["cpu"], second["cpu"])


def test_two_ranks_run_out_of_patience_together_after_a_resume(tiny, run, resume, two_ranks):
    """Only rank 0 reads evals_since_best from the checkpoint; the other rank must stop as well."""
    train.main(run(max_iters=4, eval_interval=2, learning_rate=0, min_lr=0))  # never improves
    two_ranks(resume(max_iters=20, patience=3))
    assert load_checkpoint("out/latest.pt")["step"] == 6


def test_one_process_continues_the_data_of_two_ranks(tiny, run, resume, two_ranks):
    train.main(run(out_dir="one"))
    two_ranks(run(out_dir="two", max_iters=5))
    train.main(resume(out_dir="two", max_iters=10))
    assert logged_values("two", "loss") == pytest.approx(logged_values("one", "loss"), rel=1e-4)
    assert "written by 2 processes" in Path("two/training.log").read_text(encoding="utf-8")


def test_uneven_split_is_refused_before_anything_is_written(tiny, run, two_ranks):
    for output in two_ranks(run(gradient_accumulation_steps=3), code=2):
        assert output.count("\n") == 1
        assert "gradient_accumulation_steps=3" in output
    assert not Path("out").exists()


@pytest.mark.parametrize("init_from", ["resume", "auto"])
def test_ranks_with_different_checkpoints_do_not_start(tiny, run, two_ranks, init_from):
    """With one folder per machine, a rank silently continued from an older latest.pt, or hung."""
    train.main(run(out_dir="out-0", max_iters=3))
    if init_from == "resume":
        train.main(run(out_dir="out-1", max_iters=2))
    other_step = 2 if init_from == "resume" else None
    for output in two_ranks([*run(init_from=init_from), "--out_dir=out-{rank}"], code=2):
        assert f"step is 3 on rank 0, {other_step} on rank 1; latest.pt is " in output
        assert "copy latest.pt" in output
    assert load_checkpoint("out-0/latest.pt")["step"] == 3


def test_ranks_with_different_checkpoints_of_one_step_do_not_start(tiny, run, two_ranks):
    for rank, lr in enumerate((1e-2, 1e-3)):
        train.main(run(out_dir=f"out-{rank}", max_iters=3, learning_rate=lr))
    options = run(init_from="resume", max_iters=6, learning_rate=1e-2)
    for output in two_ranks([*options, "--out_dir=out-{rank}"], code=2):
        assert "the processes differ: latest.pt is " in output
    assert load_checkpoint("out-0/latest.pt")["step"] == 3


@pytest.mark.parametrize("option", ["max_iters=1{rank}", "learning_rate=0.{rank}1", "seed={rank}"])
def test_ranks_with_different_options_do_not_start(tiny, run, two_ranks, option):
    """Another max_iters hung; another learning rate trained replicas apart, with exit code 0."""
    name, _, value = option.partition("=")
    for output in two_ranks([*run(), f"--{option}"], code=2):
        first, second = (value.replace("{rank}", rank) for rank in "01")
        assert f"{name} is {first} on rank 0, {second} on rank 1" in output
    assert not Path("out/latest.pt").exists()


def test_each_attempt_agrees_on_a_prefix_of_its_own():
    """After a restart, ranks once connected to the addresses that killed ranks had left behind.

    torchrun's store outlives its processes, and its restart count, once the prefix, differs between
    nodes: then each waited under its own prefix. A real restart fails in only some of the attempts.
    """
    store = torch.distributed.HashStore()
    store.set("name of rank 1", "killed before rank 0 started")
    prefixes = []
    for ranks in ([0, 1, 2], [2, 1, 0], [1, 0]):
        with ThreadPoolExecutor(len(ranks)) as pool:
            futures = [pool.submit(agree_on_prefix, store, rank, len(ranks)) for rank in ranks]
            [prefix] = {future.result() for future in futures}
        prefixes.append(prefix)
    assert len(set(prefixes)) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_stops_waiting_for_one_that_died_before_they_met(rank):
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    store.set(f"name of rank {1 - rank}", "killed")
    with pytest.raises(torch.distributed.DistError):
        agree_on_prefix(store, rank, 2)


def test_rank_that_never_starts_ends_the_others_after_dist_timeout_s(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="does not respond"), process_group("gloo", timeout_s=1):
        pass


@pytest.mark.skipif(torch.distributed.is_mpi_available(), reason="this torch has MPI")
def test_backend_missing_from_torch_is_refused():
    with pytest.raises(ConfigError, match=r"backend=mpi .*--backend=auto"):
        DistributedEnv(rank=0, world_size=2).pick_backend("mpi", torch.device("cpu"))


# Environment variables and messages

ENVIRONMENT = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "1234",
}


@pytest.mark.parametrize(
    "changed",
    "WORLD_SIZE=abc WORLD_SIZE=-1 WORLD_SIZE=0 WORLD_SIZE= RANK=4 RANK=1.5 RANK= "
    "LOCAL_RANK=2 LOCAL_WORLD_SIZE=5 MASTER_ADDR= MASTER_PORT=99999999".split(),
)
def test_environment_that_torchrun_did_not_write_is_refused(monkeypatch, changed):
    """A stray or missing variable once ended in a ValueError or KeyError with a traceback."""
    name, _, value = changed.partition("=")
    for variable, text in {**ENVIRONMENT, name: value}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError) as error:
        DistributedEnv.from_environment()
    assert (changed if value else f"no {name}") in str(error.value)
    assert "unset WORLD_SIZE" in str(error.value)


def test_torchruns_environment_is_read(monkeypatch):
    monkeypatch.setenv("RANK", "stray")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert DistributedEnv.from_environment() == DistributedEnv()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    expected = DistributedEnv(rank=3, world_size=4, local_rank=1, local_world_size=2)
    assert DistributedEnv.from_environment() == expected


FAILING = """
import os, time
from seugpt.cli.command import command
from seugpt.errors import UserError

with command(distributed=True):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
        raise UserError("nobody can start")
    if os.environ["RANK"] == "1":
        raise UserError("the disk is gone")
    time.sleep(60)
"""


def test_under_torchrun_only_the_first_rank_to_fail_prints_its_message(workspace):
    """All ranks but rank 0 were once silent, so that a run could end without a message.

    In the first attempt rank 1 fails, in the second both do.
    """
    Path("failing.py").write_text(FAILING, encoding="utf-8")
    result = torchrun(script="failing.py", restarts=1)
    assert result.stderr.count("failing.py: rank 1: the disk is gone\n") == 1
    assert result.stderr.count("nobody can start\n") == 1
    assert result.returncode != 0


def test_stray_rank_in_the_environment_silences_no_message(workspace, refused, monkeypatch):
    """LOCAL_RANK=1, left over from an earlier torchrun, once silenced every message."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    for _ in range(2):
        assert "rank 1: name=nothing" in refused(prepare.main, "nothing")


# Other commands


def test_sampling_under_torchrun_is_refused_once(trained):
    """Each rank loaded the model, printed the same samples and wrote over the others'."""
    result = torchrun("--device=cpu", script=ROOT / "sample.py")
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.count("runs as one process: python sample.py") == 1


def test_evaluation_is_shared_among_the_ranks(trained, capsys):
    """They print the loss of one process, once; the second rank's part is not left out."""
    options = ["--device=cpu", "--batch_size=2", "--dtype=float32"]
    evaluate.main(options)
    expected = capsys.readouterr().out
    result = torchrun(*options, script=ROOT / "evaluate.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected


def test_more_ranks_than_batches_change_nothing(trained, capsys):
    options = ["--device=cpu", "--input=short.txt", "--dtype=float32"]
    Path("short.txt").write_text("o menino viu", encoding="utf-8")
    evaluate.main(options)
    expected = capsys.readouterr().out
    result = torchrun(*options, script=ROOT / "evaluate.py")
    assert (result.returncode, result.stdout) == (0, expected)


def test_tasks_under_torchrun_are_refused(trained):
    result = torchrun("--device=cpu", "--tasks=x", script=ROOT / "evaluate.py")
    assert result.stderr.count("--tasks") == 1
