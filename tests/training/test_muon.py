"""Muon against its definition, an exact SVD and torch.optim.Muon."""

import pytest
import torch

from model import GPT, ModelConfig
from seugpt.training import muon as muon_module
from seugpt.training.muon import muon_param_groups, orthogonalize
from seugpt.training.optimizer import make_optimizers
from train import TrainConfig

CPU = torch.device("cpu")


def small_model(**changes):
    torch.manual_seed(0)
    shape = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 4, "n_embd": 16}
    return GPT(ModelConfig(**{**shape, "position": "rope", "tie_embeddings": False, **changes}))


def make_muon(model, dtype=torch.float32, **changes):
    config = TrainConfig(optimizer="muon", **changes)
    return make_optimizers(model, config, CPU, dtype)[1]


@pytest.mark.parametrize(
    "changes, rows",
    [
        ({}, [16, 16, 64, 16]),
        ({"n_kv_head": 2}, [8, 16, 64, 16]),
        ({"mlp": "swiglu", "mlp_hidden": 24}, [16, 16, 24, 16]),
    ],
)
def test_each_projection_is_a_separate_matrix(changes, rows):
    """Orthogonalizing q, k and v as one matrix cost 0.03 of the loss in runs of docs/SPEED.md."""
    groups = muon_param_groups(small_model(**changes))  # c_attn, c_proj, c_fc, c_proj
    assert [group["rows"] for group in groups] == rows
    for group in groups:
        assert all(p.shape[0] % group["rows"] == 0 for p in group["params"])


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 2}, {"mlp": "swiglu", "mlp_hidden": 24}, {"bias": True}]
)
def test_each_matrix_moves_by_its_orthogonalized_gradient(changes):
    """In the first step, where the Nesterov momentum is a multiple of the gradient.

    The update of swiglu's c_fc, a tall matrix, once had the wrong memory layout.
    """
    model = small_model(**changes)
    muon = make_muon(model, muon_lr=0.1, weight_decay=0.5)
    before = {p: p.detach().clone() for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    muon.step()
    for group in muon.param_groups:
        rows = group["rows"]
        for p in group["params"]:
            parts = [tensor.split(rows) for tensor in (before[p], p.detach(), p.grad)]
            scale = 0.1 * max(1, rows / p.shape[1]) ** 0.5
            for old, new, gradient in zip(*parts, strict=True):
                update = scale * orthogonalize(gradient[None])[0]
                expected = old * (1 - 0.1 * 0.5) - update
                torch.testing.assert_close(new, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalize_keeps_the_directions_and_equalizes_the_singular_values(shape):
    """In the basis of an exact SVD: three steps of Polar Express map [0.001, 1] to [0.14, 1.86]."""
    torch.manual_seed(0)
    U, _, Vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    S = torch.logspace(-2, 0, min(shape[1:]))
    result = orthogonalize((U * S) @ Vt)
    singular_values = torch.linalg.svdvals(result)
    assert singular_values.min() > 0.14
    assert singular_values.max() < 1.87
    assert singular_values.mean() > 0.8
    in_basis = U.mT @ result @ Vt.mT
    diagonal = torch.diag_embed(in_basis.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(in_basis, diagonal, atol=1e-4, rtol=0)


def test_muon_equals_torchs_given_its_coefficients(monkeypatch):
    """Momentum, Nesterov, weight decay and scale are those of torch.optim.Muon.

    It uses the same coefficients in each of five steps, and works in bfloat16.
    """
    monkeypatch.setattr(muon_module, "POLAR_EXPRESS_COEFFS", [(3.4445, -4.7750, 2.0315)] * 5)
    model = small_model(n_layer=1)
    muon = make_muon(model, torch.bfloat16, weight_decay=0.1, muon_lr=0.03, beta1=0.9)
    weight = model.h[0].mlp.c_fc.weight  # (64, 16): taller than wide
    reference = torch.nn.Parameter(weight.detach().clone())
    torch_muon = torch.optim.Muon([reference], lr=0.03, weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        reference.grad = weight.grad.clone()
        before = weight.detach().clone()
        muon.step()
        torch_muon.step()
    torch.testing.assert_close(weight - before, reference - before, atol=3e-3, rtol=0.02)
    assert (weight - before).abs().mean() > 5e-3
