"""AdamW, which optimizer updates which parameter, and restoring the state of a resumed run."""

import re

import pytest
import torch

from model import GPT, ModelConfig
from seugpt.training.optimizer import make_optimizers, parameters_of, restore_optimizers
from train import TrainConfig

CPU = torch.device("cpu")


def small_model(**changes):
    torch.manual_seed(0)
    config = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 4, "n_embd": 16}
    return GPT(ModelConfig(**{**config, **changes}))


def test_only_matrices_decay():
    model = small_model(bias=True)
    [adamw] = make_optimizers(model, TrainConfig(weight_decay=0.3), CPU, torch.float32)
    matrices, vectors = adamw.param_groups
    assert matrices["weight_decay"] == 0.3
    assert vectors["weight_decay"] == 0.0
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
    ids = [id(p) for p in parameters_of(adamw)]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_first_adamw_update_matches_the_formula():
    """Bias correction makes m the gradient and v its square: w (1 - lr wd) - lr g / (|g| + eps)."""
    model = small_model(bias=True)
    config = TrainConfig(weight_decay=0.1, learning_rate=0.01)
    [adamw] = make_optimizers(model, config, CPU, torch.float32)
    x, y = torch.randint(11, (2, 4, 8))
    _, loss = model(x, y)
    loss.backward()
    expected = []
    for p in model.parameters():
        weight_decay = 0.1 if p.dim() == 2 else 0.0
        update = p.grad / (p.grad.abs() + 1e-8)
        expected.append(p.detach() * (1 - 0.01 * weight_decay) - 0.01 * update)
    adamw.step()
    weights = [p.detach() for p in model.parameters()]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rope", "tie_embeddings": False},
        {"n_kv_head": 2},
        {"mlp": "swiglu", "qk_norm": True},
        {"bias": True},
    ],
)
def test_muon_updates_the_blocks_matrices_and_adamw_the_rest(changes):
    model = small_model(**changes)
    adamw, muon = make_optimizers(model, TrainConfig(optimizer="muon"), CPU, torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    in_muon = [names[id(p)] for p in parameters_of(muon)]
    in_adamw = [names[id(p)] for p in parameters_of(adamw)]
    assert sorted(in_muon + in_adamw) == sorted(names.values())
    matrices = r"h\.\d+\.(attn|mlp)\.c_(attn|fc|proj)\.weight"
    assert sorted(in_muon) == sorted(filter(re.compile(matrices).fullmatch, names.values()))


def test_both_learning_rates_follow_the_same_schedule(make_trainer):
    trainer = make_trainer(optimizer="muon", muon_lr=0.05, learning_rate=0.01, warmup_iters=1)
    adamw, muon = trainer.optimizers
    for expected in (0.005, 0.01):
        trainer.train_step()
        for group in adamw.param_groups:
            assert group["lr"] == pytest.approx(expected)
        for group in muon.param_groups:
            assert group["lr"] == pytest.approx(5 * expected)


# State


def transposed_in_memory(state):
    """The same shape, stored column by column."""
    return state.T.contiguous().T


def repeated(state):
    """The same shape, as a view of a single number."""
    return state[:1, :1].expand(state.shape)


@pytest.mark.parametrize(
    "damage",
    [lambda state: state[:1], torch.t, torch.flatten, transposed_in_memory, repeated],
    ids=["cut", "transposed", "flat", "transposed in memory", "repeated"],
)
@pytest.mark.parametrize("index, key", [(0, "exp_avg"), (0, "exp_avg_sq"), (1, "momentum")])
def test_state_of_another_shape_or_layout_is_refused(index, key, damage):
    """A fused kernel would write as many numbers as the parameter has, out of bounds."""
    model = small_model()
    optimizers = make_optimizers(model, TrainConfig(optimizer="muon"), CPU, torch.float32)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        optimizer.step()
    state_dicts = [optimizer.state_dict() for optimizer in optimizers]
    restore_optimizers(optimizers, state_dicts, step=1)
    param_state = state_dicts[index]["state"][0]
    param_state[key] = damage(param_state[key])
    with pytest.raises(ValueError, match=f"{key} has shape"):
        restore_optimizers(optimizers, state_dicts, step=1)
