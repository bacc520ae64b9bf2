"""The learning rate, and both optimizers against what they should do by hand and by torch."""

import numpy as np
import pytest
import torch

import train
from model import GPT, ModelConfig
from seugpt.checkpoint import storage as checkpoint
from seugpt.training import optimizer
from seugpt.training.optimizer import (
    hidden_matrices,
    learning_rate,
    make_optimizers,
    orthogonalize,
    restore_optimizers,
)
from train import TrainConfig

CPU = torch.device("cpu")
ROPE = {"position": "rope", "tie_embeddings": False}


def tiny_model(**changes):
    torch.manual_seed(0)
    shape = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 4, "n_embd": 16}
    return GPT(ModelConfig(**{**shape, **ROPE, **changes}))


def test_learning_rate_warms_up_follows_the_cosine_and_stays():
    options = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    rates = [learning_rate(step, options) for step in range(150)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 11)
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55) and rates[110:] == [0.1] * 40
    assert (np.diff(rates[10:111]) < 0).all()
    assert learning_rate(5, TrainConfig(decay_lr=False, learning_rate=0.3)) == 0.3
    for decay in (0, 5, 10):  # a decay that ends before the warmup does: no division by zero
        options = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=decay)
        assert [learning_rate(step, options) for step in (9, 10, 11)] == [10 / 11, 0.1, 0.1]


def test_decay_is_on_matrices_alone_and_every_parameter_is_there_once():
    model = GPT(ModelConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, bias=True))
    (adamw,) = make_optimizers(model, TrainConfig(weight_decay=0.3), CPU, torch.float32)
    decayed, plain = adamw.param_groups
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in plain["params"]} == {1}
    together = decayed["params"] + plain["params"]
    assert {id(p) for p in together} == {id(p) for p in model.parameters()} and len(
        together
    ) == len(set(map(id, together)))


def test_the_first_update_is_adamws_by_hand():
    """Corrected for their start, m is the gradient and v its square: w (1 - lr wd) - lr g / (|g| + eps)."""
    model = GPT(ModelConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8, bias=True))
    options = TrainConfig(weight_decay=0.1, learning_rate=0.01)
    (adamw,) = make_optimizers(model, options, CPU, torch.float32)
    x, y = torch.randint(11, (2, 4, 8))
    model(x, y)[1].backward()
    expected = [
        p.detach() * (1 - 0.01 * (0.1 if p.dim() == 2 else 0))
        - 0.01 * p.grad / (p.grad.abs() + 1e-8)
        for p in model.parameters()
    ]
    adamw.step()
    torch.testing.assert_close(
        [p.detach() for p in model.parameters()], expected, rtol=1e-4, atol=1e-6
    )


def test_the_cooldown_is_a_line_after_a_constant_rate():
    options = TrainConfig(
        learning_rate=1.0, min_lr=0.2, warmup_iters=5, lr_decay_iters=50, cooldown_iters=20
    )
    rates = [learning_rate(step, options) for step in range(60)]
    assert (
        rates[5:31] == [1.0] * 26 and rates[40] == pytest.approx(0.6) and rates[50:] == [0.2] * 10
    )
    np.testing.assert_allclose(np.diff(rates[30:51]), -0.04)
    longer = TrainConfig(
        learning_rate=1.0, min_lr=0.2, warmup_iters=5, lr_decay_iters=50, cooldown_iters=500
    )
    assert learning_rate(5, longer) == pytest.approx(0.2 + 0.8 * 45 / 500)  # never above the line


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 2}, {"mlp": "swiglu"}, {"bias": True, "position": "learned"}]
)
def test_muon_has_the_blocks_matrices_and_adamw_all_else(changes):
    model = tiny_model(**changes)
    adamw, muon = make_optimizers(model, TrainConfig(optimizer="muon"), CPU, torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    of_adamw = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(of_muon + of_adamw) == sorted(names.values())
    assert sorted(of_muon) == sorted(n for n in names.values() if n.startswith("h.") and n.endswith(("c_attn.weight",
                                     "c_proj.weight", "c_fc.weight")))  # fmt: skip
    for group in muon.param_groups:
        for p in group["params"]:
            assert p.shape[0] % group["rows"] == 0


def test_queries_keys_and_values_are_matrices_of_their_own():
    """Orthogonal together is not orthogonal apart: 0.03 of the loss in the short runs of docs/SPEED.md."""
    rows = {
        name: group["rows"]
        for name, group in zip("qofp", hidden_matrices(tiny_model()), strict=True)
    }
    assert rows == {"q": 16, "o": 16, "f": 64, "p": 16}
    assert hidden_matrices(tiny_model(n_kv_head=2))[0]["rows"] == 8
    assert hidden_matrices(tiny_model(mlp="swiglu", mlp_hidden=24))[2]["rows"] == 24


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 2}, {"mlp": "swiglu", "mlp_hidden": 24}, {"bias": True}]
)
def test_each_matrix_moves_by_its_own_orthogonal_update(changes):
    """Of the first step, momentum is the gradient's share. A tall part of swiglu's c_fc once could not be put back."""
    model = tiny_model(**changes)
    options = TrainConfig(optimizer="muon", muon_lr=0.1, weight_decay=0.5)
    muon = make_optimizers(model, options, CPU, torch.float32)[1]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    muon.step()
    for group in muon.param_groups:
        for p in group["params"]:
            name = next(name for name, q in model.named_parameters() if q is p)
            rows, columns = group["rows"], p.shape[1]
            for old, new, g in zip(
                *(t.split(rows) for t in (before[name], p.detach(), p.grad)), strict=True
            ):
                step = 0.1 * max(1, rows / columns) ** 0.5 * orthogonalize(g[None])[0]
                torch.testing.assert_close(new, old * (1 - 0.1 * 0.5) - step, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalize_keeps_the_directions_and_evens_their_lengths(shape):
    """Against the exact U Vᵀ of an SVD: Polar Express' three steps take [0.001, 1] into [0.14, 1.86]."""
    torch.manual_seed(0)
    U, _, V = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    S = torch.logspace(-2, 0, min(shape[1:]))
    result = orthogonalize((U * S) @ V)
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.14 and singular.max() < 1.87 and singular.mean() > 0.8
    diagonal = U.mT @ result @ V.mT
    torch.testing.assert_close(
        diagonal, torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0
    )


def test_muon_is_torchs_own_where_its_polynomials_are_the_same(monkeypatch):
    """Momentum, Nesterov, decay, scale. torch.optim.Muon has one polynomial for all steps, and works in bfloat16."""
    monkeypatch.setattr(optimizer, "POLYNOMIALS", [(3.4445, -4.7750, 2.0315)] * 5)
    model = tiny_model(n_layer=1)
    options = TrainConfig(optimizer="muon", weight_decay=0.1, muon_lr=0.03, beta1=0.9)
    ours = make_optimizers(model, options, CPU, torch.bfloat16)[1]
    weight = model.h[0].mlp.c_fc.weight  # (64, 16): taller than wide
    reference = torch.nn.Parameter(weight.detach().clone())
    theirs = torch.optim.Muon([reference], lr=0.03, weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        reference.grad = weight.grad.clone()
        before = weight.detach().clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(weight - before, reference - before, atol=3e-3, rtol=0.02)
    assert (weight - before).abs().mean() > 5e-3


def test_muon_and_adamw_rise_and_fall_together(tiny, run):
    train.main(
        run(
            optimizer="muon",
            muon_lr=0.05,
            learning_rate=0.01,
            min_lr=0.001,
            warmup_iters=2,
            max_iters=10,
        )
    )
    adamw, muon = checkpoint.load("out/latest.pt", checkpoint.TO_RESUME)["optimizer"]
    lr = learning_rate(
        9, TrainConfig(learning_rate=0.01, min_lr=0.001, warmup_iters=2, lr_decay_iters=10)
    )
    assert adamw["param_groups"][0]["lr"] == lr and muon["param_groups"][0]["lr"] == pytest.approx(
        5 * lr
    )


def test_a_run_goes_on_with_its_own_optimizer(tiny, run, capsys):
    train.main(run(max_iters=4))
    with pytest.raises(SystemExit) as exit:
        train.main(["--init_from=resume", "--out_dir=out", "--max_iters=8", "--optimizer=muon"])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and "optimizer=muon" in message and "--init_from=out" in message


@pytest.mark.parametrize("wrong", [
    lambda memory: memory[:1], lambda memory: memory.T, lambda memory: memory.flatten(),
    lambda memory: memory.T.contiguous().T, lambda memory: memory[:1, :1].expand(memory.shape),
])  # fmt: skip
@pytest.mark.parametrize("number, name", [(0, "exp_avg"), (0, "exp_avg_sq"), (1, "momentum")])
def test_a_memory_that_is_not_its_parameters_is_refused(number, name, wrong):
    """A fused kernel writes as many numbers as the parameter has, wherever they lie."""
    model = tiny_model()
    optimizers = make_optimizers(model, TrainConfig(optimizer="muon"), CPU, torch.float32)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for one in optimizers:
        one.step()
    states = [one.state_dict() for one in optimizers]
    restore_optimizers(optimizers, states, 1)
    memory = states[number]["state"][0]
    memory[name] = wrong(memory[name])
    with pytest.raises(ValueError, match=f"{name} has the shape"):
        restore_optimizers(optimizers, states, 1)


def test_a_checkpoint_from_before_muon_goes_on(tiny, run):
    """Its optimizer's state was one dictionary, not a list, and its options did not name an optimizer."""
    train.main(run(max_iters=4))
    content = checkpoint.load("out/latest.pt", checkpoint.TO_RESUME)
    content["optimizer"] = content["optimizer"][0]
    for option in ("optimizer", "muon_lr", "cooldown_iters"):
        del content["train_config"][option]
    content.pop("path")
    checkpoint.save("out/latest.pt", content)
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=8"])
    assert checkpoint.load("out/latest.pt")["step"] == 8
