"""Snapshots: what they contain, and that taking them does not change the run."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from model import GPT, ModelConfig
from seugpt.errors import DataError
from seugpt.training.layer_stats import LayerStats, layer_of
from seugpt.training.snapshots import find_snapshots, load_embeddings, save_embeddings
from tests.helpers import logged_metrics, nested_equal, resume_state

LAYERS = ("embedding", "h.0", "h.1", "ln_f")


def lines_with(key):
    """{step: line of metrics.jsonl} of the lines that have a key."""
    return {values["step"]: values for values in logged_metrics() if key in values}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_snapshots_do_not_change_the_run(tiny, run, optimizer):
    options = {"dropout": 0.5, "optimizer": optimizer, "max_iters": 6, "eval_interval": 6}
    train.main(run(out_dir="with", snapshot_interval=3, **options))
    train.main(run(out_dir="without", **options))
    assert nested_equal(resume_state("with")["model"], resume_state("without")["model"])


def test_embeddings_are_saved_at_each_interval_and_at_the_end(trained, run):
    snapshots = find_snapshots("out")
    assert list(snapshots) == [0, 10, 20, 30]
    train.main(run(out_dir="short", max_iters=10, lr_decay_iters=30))
    weights = resume_state("short")["model"]
    saved = load_embeddings(snapshots[10])
    assert set(saved) == {"wte", "wpe"}
    for name, array in saved.items():
        assert np.array_equal(array, weights[f"{name}.weight"].half().float().numpy())


def test_last_step_has_a_snapshot_even_if_none_is_due(tiny, run):
    train.main(run(max_iters=3, snapshot_interval=2))
    assert list(find_snapshots("out")) == [0, 2, 3]
    assert set(lines_with("update_ratio/h.0")) == {0, 2}


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "muon", "tie_embeddings": False}], ids=["adamw", "muon"]
)
def test_layer_stats_match_the_weights_of_two_checkpoints(tiny, run, options):
    options = {**options, "grad_clip": 0, "eval_interval": 1, "max_iters": 4, "keep_last": 2}
    train.main(run(snapshot_interval=3, **options))
    stats = lines_with("update_ratio/h.0")[3]
    logged = lines_with("loss")[3]
    before, after = (
        torch.load(f"out/step-0000000{step}.pt", weights_only=True)["model"] for step in (3, 4)
    )
    untied = "tie_embeddings" in options
    layers = [*LAYERS, "lm_head"] if untied else LAYERS
    assert {key.partition("/")[2] for key in stats if "/" in key} == set(layers)
    for layer in layers:
        names = [name for name in before if layer_of(name) == layer]
        weights = torch.cat([before[name].flatten() for name in names])
        update = torch.cat([after[name].flatten() for name in names]) - weights
        assert stats[f"weight_norm/{layer}"] == pytest.approx(weights.norm().item(), rel=1e-4)
        ratio = (update.norm() / weights.norm()).item()
        assert stats[f"update_ratio/{layer}"] == pytest.approx(ratio, rel=1e-3)
    grad_norms = [stats[f"grad_norm/{layer}"] for layer in layers]
    assert math.hypot(*grad_norms) == pytest.approx(logged["grad_norm"], rel=1e-4)


def test_activation_rms_matches_the_residual_stream():
    torch.manual_seed(0)
    config = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(ModelConfig(**config, dropout=0.9)).train()
    x = torch.randint(11, (2, 8))
    activations = LayerStats(model, x).activations
    assert model.training
    model.eval()
    embedding = model.wte(x) + model.wpe(torch.arange(8))
    first = model.h[0](embedding, None, None)
    second = model.h[1](first, None, None)
    for layer, stream in (("embedding", embedding), ("h.0", first), ("h.1", second)):
        rms = stream.square().mean().sqrt().item()
        assert activations[f"activation_rms/{layer}"] == pytest.approx(rms)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_resumed_run_removes_the_snapshots_after_its_checkpoint(trained, resume):
    Path("out/snapshots/00000099.npz").write_bytes(b"of a step that will be repeated")
    train.main(resume(max_iters=41))
    assert list(find_snapshots("out")) == [0, 10, 20, 30, 40, 41]


def test_snapshots_are_moved_aside_with_their_run(trained, run):
    train.main(run(max_iters=0))
    assert list(find_snapshots("out/previous-1")) == [0, 10, 20, 30]
    assert not Path("out/snapshots").exists()


def test_eval_only_saves_no_snapshot(tiny, run):
    train.main(run(snapshot_interval=1, eval_only=True))
    assert not Path("out").exists()


def test_only_the_first_1024_rows_of_an_embedding_are_saved(workspace):
    model = GPT(ModelConfig(vocab_size=3000, n_layer=1, n_head=1, n_embd=4, position="rope"))
    save_embeddings(workspace, 7, model)
    saved = load_embeddings(find_snapshots(workspace)[7])
    assert list(saved) == ["wte"]
    assert saved["wte"].shape == (1024, 4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_damaged_snapshot_is_named_in_the_error(workspace, content):
    Path("x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz"):
        load_embeddings("x.npz")
