"""Looks inside a run: what they write, and that they change nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from model import GPT, ModelConfig
from seugpt.errors import DataError
from seugpt.training.layer_stats import Look, layer_of, load_embeddings, save_embeddings, steps_of
from tests.helpers import resume_state


def lines_with(key):
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if key in line}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_looks_is_the_run_without(tiny, run, optimizer):
    train.main(run(dropout=0.5, optimizer=optimizer, snapshot_interval=3))
    watched = resume_state("out")["model"]
    train.main(run(dropout=0.5, optimizer=optimizer))
    assert all(
        torch.equal(tensor, resume_state("out")["model"][name]) for name, tensor in watched.items()
    )


def test_embeddings_are_kept_at_each_interval_and_at_the_end(tiny, run):
    train.main(run(snapshot_interval=3))
    kept = {step: load_embeddings(path) for step, path in steps_of("out").items()}
    assert list(kept) == [0, 3, 6, 9, 10]
    train.main(run(out_dir="short", max_iters=3))
    for name, table in kept[3].items():
        assert np.array_equal(
            table, resume_state("short")["model"][f"{name}.weight"].half().float().numpy()
        )


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "tie_embeddings": False}])
def test_changes_are_those_between_the_weights_of_two_checkpoints(tiny, run, changes):
    train.main(run(snapshot_interval=3, grad_clip=0, **changes))
    line, logged = lines_with("update_ratio/h.0")[3], lines_with("grad_norm")[3]
    before, after = [], []
    for steps, weights in ((3, before), (4, after)):
        train.main(run(out_dir=f"out-{steps}", max_iters=steps, grad_clip=0, **changes))
        weights.append(resume_state(f"out-{steps}")["model"])
    for layer in ("embedding", "h.0", "h.1", "head"):
        names = [
            name
            for name in before[0]
            if layer_of(name) == layer and (changes or name != "lm_head.weight")
        ]
        old, new = (torch.cat([w[name].flatten() for name in names]) for w in (before[0], after[0]))
        assert line[f"weight_norm/{layer}"] == pytest.approx(old.norm().item(), rel=1e-4)
        assert line[f"update_ratio/{layer}"] == pytest.approx(
            ((new - old).norm() / old.norm()).item(), rel=1e-3
        )
    parts = [line[f"grad_norm/{layer}"] for layer in ("embedding", "h.0", "h.1", "head")]
    assert math.hypot(*parts) == pytest.approx(logged["grad_norm"], rel=1e-4)
    assert set(lines_with("update_ratio/h.0")) == {0, 3, 6, 9}


def test_activations_are_those_of_the_residual_stream():
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=16, dropout=0.9)
    ).train()
    x = torch.randint(11, (2, 8))
    look = Look(model, x)
    model.eval()
    stream = model.wte(x) + model.wpe(torch.arange(8))
    for name in ("embedding", "h.0", "h.1"):
        assert look.activations[f"activation_rms/{name}"] == pytest.approx(
            stream.square().mean().sqrt().item()
        )
        stream = (
            model.h[int(name[2:]) + 1 if name != "embedding" else 0](stream, None, None)
            if name != "h.1"
            else None
        )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_resumed_run_forgets_the_looks_after_its_checkpoint(tiny, run):
    train.main(run(snapshot_interval=3))
    Path("out/snapshots/00000099.npz").write_bytes(b"of a step that is done again")
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=14"])
    assert list(steps_of("out")) == [0, 3, 6, 9, 10, 12, 14]


def test_looks_move_aside_with_their_run(tiny, run):
    train.main(run(snapshot_interval=5))
    train.main(run(max_iters=1))
    assert list(steps_of("out/previous-1")) == [0, 5, 10] and not Path("out/snapshots").exists()


def test_an_evaluation_alone_keeps_nothing(tiny, run):
    train.main(run(snapshot_interval=1, eval_only=True))
    assert not Path("out").exists()


def test_a_vocabulary_of_many_tokens_is_cut(workspace):
    save_embeddings(
        workspace,
        7,
        GPT(ModelConfig(vocab_size=3000, n_layer=1, n_head=1, n_embd=4, position="rope")),
    )
    tables = load_embeddings(steps_of(workspace)[7])
    assert list(tables) == ["wte"] and tables["wte"].shape == (1024, 4)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_a_damaged_snapshot_is_named(workspace, content):
    Path("x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz cannot be read as a snapshot"):
        load_embeddings("x.npz")
