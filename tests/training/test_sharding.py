"""Sharded runs (dp_shard_size) equal one process, however they are resumed."""

import json
from pathlib import Path

import pytest
import torch

import train
from seugpt.checkpoint.content import RESUME_KEYS
from seugpt.checkpoint.sharded import load_merged, step_folders
from seugpt.checkpoint.storage import load_checkpoint
from tests.helpers import STATE_KEYS, logged_values, nested_equal

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
# Layers, rows and vocabulary that two ranks cannot divide evenly; matrices cut in the middle.
UNEVEN = {"n_layer": 3, "n_embd": 30, "mlp": "swiglu", "mlp_hidden": 61, "tie_embeddings": False}
STEPS = {"max_iters": 6, "eval_interval": 3, "lr_decay_iters": 6}
LOGGED = ("loss", "train_loss", "val_loss", "grad_norm", "param_norm")


def latest_state(out_dir):
    """What two equal runs must agree on, of the latest checkpoint; from a sharded one merged."""
    folders = step_folders(out_dir)
    if folders:
        ckpt = load_merged(folders[0], RESUME_KEYS)
    else:
        ckpt = load_checkpoint(Path(out_dir, "latest.pt"), RESUME_KEYS)
    return {key: ckpt[key] for key in STATE_KEYS}


def check_close_runs(out_dir, expected_dir, rel=1e-6):
    for key in LOGGED:
        expected = logged_values(expected_dir, key)
        assert logged_values(out_dir, key) == pytest.approx(expected, rel=20 * rel), key
    losses = logged_values(expected_dir, "loss")
    assert logged_values(out_dir, "loss") == pytest.approx(losses, rel=rel)
    state, expected = latest_state(out_dir), latest_state(expected_dir)
    assert state["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(state["model"][name], tensor, rtol=1e-3, atol=1e-4)
    shapes = [
        {i: {key: tensor.shape for key, tensor in s.items()} for i, s in part["state"].items()}
        for part in state["optimizer"]
    ]
    assert shapes == [
        {i: {key: tensor.shape for key, tensor in s.items()} for i, s in part["state"].items()}
        for part in expected["optimizer"]
    ]


def samples(out_dir):
    lines = Path(out_dir, "training.log").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("    | ")]


@pytest.mark.parametrize(
    "world_size, shard_size, options",
    [
        (2, 2, {"optimizer": "adamw", "dropout": 0.0, "eval_iters": 0}),
        (2, 2, {"optimizer": "muon", "gradient_accumulation_steps": 4, **UNEVEN}),
        pytest.param(
            *(2, 2, {"optimizer": "adamw", "gradient_accumulation_steps": 4, **UNEVEN}),
            marks=pytest.mark.slow,
        ),
        pytest.param(*(2, 2, {"optimizer": "muon"}), marks=pytest.mark.slow),
        pytest.param(
            *(4, 2, {"optimizer": "adamw", "gradient_accumulation_steps": 8}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(4, 2, {"optimizer": "muon", "gradient_accumulation_steps": 8, **UNEVEN}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(4, 4, {"optimizer": "muon", "gradient_accumulation_steps": 4, **UNEVEN}),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(2, 2, {"position": "rope", "norm": "rmsnorm", "gradient_accumulation_steps": 1}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sharded_run_equals_one_process(tiny, run, run_ranks, world_size, shard_size, options):
    """Losses, norms, weights, optimizer state and the sampled texts."""
    options = {**STEPS, "keep_last": 3, **options}
    train.main(run(out_dir="one", **options))
    run_ranks(run(out_dir="sharded", dp_shard_size=shard_size, **options), world_size)
    check_close_runs("sharded", "one")
    assert samples("sharded") == samples("one")


def test_sharded_run_resumes_bit_for_bit(tiny, run, resume, two_ranks):
    """Also from step 0, at which AdamW has no state and Muon has."""
    options = {"dropout": 0.3, "optimizer": "muon", "dp_shard_size": 2}
    two_ranks(run(out_dir="whole", **options))
    two_ranks(run(out_dir="parts", max_iters=0, **options))
    two_ranks(resume(out_dir="parts", max_iters=5))
    two_ranks(resume(out_dir="parts", max_iters=10))
    assert logged_values("whole", "loss") == logged_values("parts", "loss")
    assert nested_equal(latest_state("whole"), latest_state("parts"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_process_continues_a_sharded_run(tiny, run, resume, two_ranks, capsys, optimizer):
    """With its best model, which becomes best.pt; and two ranks continue what it has written."""
    options = {"optimizer": optimizer, **STEPS}
    train.main(run(out_dir="one", **options))
    two_ranks(run(out_dir="out", dp_shard_size=2, **{**options, "max_iters": 3}))
    train.main(resume(out_dir="out", dp_shard_size=1, max_iters=4))
    assert load_checkpoint("out/latest.pt")["step"] == 4
    assert load_checkpoint("out/best.pt")["val_loss"] <= min(logged_values("out", "val_loss"))
    two_ranks(resume(out_dir="out", dp_shard_size=2, max_iters=6, init_from="auto"))
    assert step_folders("out")[0].name == "step-00000006"
    losses = logged_values("one", "loss")
    assert logged_values("out", "loss") == pytest.approx(losses, rel=1e-6)


@pytest.mark.slow
def test_sharded_run_is_resharded_by_replicas(tiny, run, resume, run_ranks):
    """2 ranks -> 2 replicas of 2 shards -> DDP of 4."""
    options = {"optimizer": "muon", "gradient_accumulation_steps": 4, **STEPS, **UNEVEN}
    train.main(run(out_dir="one", **options))
    run_ranks(run(dp_shard_size=2, **{**options, "max_iters": 2}), 2)
    run_ranks(resume(max_iters=4), 4)
    run_ranks(resume(max_iters=6, dp_shard_size=1), 4)
    losses = logged_values("one", "loss")
    assert logged_values("out", "loss") == pytest.approx(losses, rel=1e-6)


MEASURE = """
import json, os, torch, train
from seugpt.training.sharding import local_tensor

step = train.Trainer.train_step

def measured_step(self):
    step(self)
    tensors = list(self.raw_model.parameters())
    for optimizer in self.optimizers:
        tensors += [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    counts = [sum(local_tensor(t).numel() for t in tensors), sum(t.numel() for t in tensors)]
    open(f"numel-{os.environ['RANK']}", "w").write(json.dumps(counts))

train.Trainer.train_step = measured_step
"""


def test_each_rank_keeps_its_share_of_the_elements(tiny, run, run_ranks):
    """Weights and optimizer state: N/W within 10 %."""
    run_ranks(run(dp_shard_size=2, optimizer="muon", max_iters=1), 2, setup=MEASURE)
    for rank in range(2):
        local, total = json.loads(Path(f"numel-{rank}").read_text())
        assert local == pytest.approx(total / 2, rel=0.1)


def test_more_ranks_than_evaluation_batches(tiny, run, two_ranks):
    """A rank without a batch once left the other waiting for ever."""
    train.main(run(out_dir="one", max_iters=0, eval_iters=1))
    two_ranks(run(out_dir="two", max_iters=0, eval_iters=1, dp_shard_size=2))
    for key in ("train_loss", "val_loss"):
        expected = logged_values("one", key)
        assert logged_values("two", key) == pytest.approx(expected, rel=1e-6)


def test_best_and_latest_checkpoints_are_kept(tiny, run, two_ranks):
    options = {"dp_shard_size": 2, "eval_interval": 1, "max_iters": 4}
    two_ranks(run(**options, learning_rate=0.5, min_lr=0.5, warmup_iters=0))  # diverges
    best = logged_values("out", "val_loss").index(min(logged_values("out", "val_loss")))
    assert {folder.name for folder in step_folders("out")} == {f"step-{best:08d}", "step-00000004"}
    assert best < 4
    two_ranks(run(out_dir="more", **options, keep_last=3))
    assert len(step_folders("more")) == 3


def test_sharded_options_that_cannot_work_are_refused_in_one_message(tiny, run, refused, two_ranks):
    for output in two_ranks(
        run(dp_shard_size=3, dtype="float16", snapshot_interval=1, gradient_accumulation_steps=6),
        code=2,
    ):
        for words in (
            *("dp_shard_size=3 does not divide the 2 process", "--dp_shard_size=1 or 2"),
            *("--dtype=bfloat16", "--snapshot_interval=0"),
        ):
            assert words in output
        assert output.count("\n") == 1
    assert "--dp_shard_size=1" in refused(train.main, *run(dp_shard_size=2))
    assert not Path("out").exists()


def test_out_dir_that_is_not_shared_is_refused(tiny, run, two_ranks):
    for output in two_ranks([*run(dp_shard_size=2), "--out_dir=out-{rank}"], code=2):
        assert "out_dir=out-" in output
        assert "not the same folder" in output
    assert not list(Path().glob("out-*/step-*"))


def test_sharded_run_is_moved_aside_by_a_new_one(tiny, run, two_ranks):
    two_ranks(run(dp_shard_size=2, max_iters=1, eval_interval=1))
    outputs = two_ranks(run(dp_shard_size=2, max_iters=0))
    assert "--out_dir=out/previous-1" in outputs[0]
    assert [folder.name for folder in step_folders("out")] == ["step-00000000"]
    assert step_folders("out/previous-1")[0].name == "step-00000001"


@pytest.mark.slow
def test_sharded_run_is_compiled(tiny, run, two_ranks):
    options = {"max_iters": 2, "eval_interval": 2}
    train.main(run(out_dir="one", **options))
    outputs = two_ranks(run(dp_shard_size=2, compile=True, **options))
    assert "failed" not in outputs[0]
    check_close_runs("out", "one", rel=1e-5)


@pytest.mark.slow
def test_bfloat16_sharded_run_is_close_to_float32(tiny, run, two_ranks):
    train.main(run(out_dir="one"))
    two_ranks(run(dp_shard_size=2, dtype="bfloat16"))
    expected = logged_values("one", "loss")
    assert logged_values("out", "loss") == pytest.approx(expected, rel=0.02)
