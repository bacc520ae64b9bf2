"""The network against an independent NumPy GPT-2, and what must hold whatever the weights are."""

import math

import numpy as np
import pytest
import torch

from model import GPT, IGNORE, DeviceError, ModelConfig, compile_model, pick_device, pick_dtype

SMALL = {"block_size": 12, "vocab_size": 17, "n_layer": 3, "n_head": 2, "n_embd": 20}


def small_model(**changes):
    torch.manual_seed(0)
    return GPT(ModelConfig(**{**SMALL, **changes}))


def numpy_gpt2(weights, idx, n_layer, n_head):
    """GPT-2 in NumPy and float64, by loops over rows and heads: (B, T) -> (B, T, V)."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def attend(x, name):
        T, C = x.shape
        hs = C // n_head
        q, k, v = np.split(linear(x, f"{name}.c_attn"), 3, axis=-1)
        heads = []
        for h in range(n_head):
            part = slice(h * hs, (h + 1) * hs)
            scores = q[:, part] @ k[:, part].T / np.sqrt(hs)
            scores[np.triu_indices(T, k=1)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        return linear(np.concatenate(heads, axis=-1), f"{name}.c_proj")

    logits = []
    for row in idx:
        x = weights["wte.weight"][row] + weights["wpe.weight"][: len(row)]
        for i in range(n_layer):
            x = x + attend(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
            x = x + linear(gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
        logits.append(norm(x, "ln_f") @ weights["wte.weight"].T)
    return np.stack(logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_head, n_embd", [(1, 8), (2, 20), (5, 15)])
def test_logits_equal_an_independent_numpy_gpt2(bias, n_head, n_embd):
    model = small_model(bias=bias, n_head=n_head, n_embd=n_embd)
    with torch.no_grad():  # away from the initial values, where biases are zero and norms do nothing
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    idx = torch.randint(17, (3, 12))
    logits, loss = model(idx, idx)
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    expected = numpy_gpt2(weights, idx.numpy(), 3, n_head)
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-5, rtol=1e-5)
    log_probabilities = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probabilities, idx.numpy()[..., None], axis=-1).mean()
    assert loss.item() == pytest.approx(nll, abs=1e-5)


def test_loss_before_training_is_ln_of_the_vocabulary():
    model = small_model(vocab_size=500, n_embd=64)
    x, y = torch.randint(500, (2, 32, 12))
    assert model(x, y)[1].item() == pytest.approx(math.log(500), rel=0.01)


def test_initial_weights_are_as_the_table_says():
    model = small_model(n_layer=8, n_embd=128, vocab_size=1000, bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06), name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_gradient_shows_that_no_position_sees_a_later_one():
    model = small_model()
    seen = []
    model.wte.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad_()))
    seen_by = torch.zeros(12, 12)
    for t in range(12):
        logits, _ = model(torch.randint(17, (1, 12)), torch.zeros(1, 12, dtype=torch.long))
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), seen[-1])
        seen_by[t] = gradient[0].abs().sum(-1)
    assert (seen_by.triu(1) == 0).all()
    assert (seen_by.tril() > 0).sum() == 12 * 13 / 2  # and each sees all earlier ones and itself


def test_without_targets_only_the_last_position_comes_back():
    model = small_model().eval()
    idx = torch.randint(17, (2, 7))
    full, _ = model(idx, idx)
    last, loss = model(idx)
    assert loss is None
    torch.testing.assert_close(last, full[:, -1:])


def test_ignored_targets_do_not_count():
    model = small_model()
    x, y = torch.randint(17, (2, 2, 12))
    padded = torch.cat((y, torch.full_like(y, IGNORE)))
    torch.testing.assert_close(model(torch.cat((x, x)), padded)[1], model(x, y)[1])


def test_dropout_acts_in_training_and_not_in_evaluation():
    model = small_model(dropout=0.5)
    idx = torch.randint(17, (1, 12))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_overfits_one_batch():
    model = small_model(n_embd=32)
    x, y = torch.randint(17, (2, 4, 12))
    x[:, 0] = torch.arange(4)  # or two rows could begin alike and go on differently, which nothing can learn
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_parameters_are_counted_as_the_source_documents_correct_them():
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 50304}
    assert GPT(ModelConfig(**shape, bias=True)).parameter_count() == 16_102_912
    assert GPT(ModelConfig(**shape, bias=False)).parameter_count() == 16_091_392


def test_flops_per_token_equal_what_torch_counts():
    """6N counts a norm's weights as if they were in a matmul: the 3% between the two."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = GPT(ModelConfig(block_size=32, vocab_size=96, n_layer=2, n_head=2, n_embd=64, bias=False))
    x, y = torch.randint(96, (2, 4, 32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the flash kernel is not counted
        model(x, y)[1].backward()
    assert counter.get_total_flops() / x.numel() == pytest.approx(model.flops_per_token(), rel=0.03)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"n_embd": 21}, "n_embd=21 must be divisible by n_head=2; the nearest n_embd is 20 or 22"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"block_size": -1}, "block_size=-1"),
    ],
)
def test_bad_architectures_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**{**SMALL, **changes})


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="13 tokens do not fit into block_size=12"):
        small_model()(torch.zeros(1, 13, dtype=torch.long))


def test_devices_that_are_not_there_are_named():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("tpu", "cuda:99", "vulkan"):
        with pytest.raises(DeviceError, match=f"device={name}"):
            pick_device(name)


def test_bfloat16_only_where_the_hardware_has_it(monkeypatch):
    """Tesla T4 (7.5) emulates bfloat16 slowly, and torch.cuda.is_bf16_supported() says yes to it (nanoGPT#277)."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert pick_dtype("auto", cuda) == torch.float16
    with pytest.raises(DeviceError, match=r"8\.0"):
        pick_dtype("bfloat16", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert pick_dtype("auto", cuda) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("mps")) == torch.float32


def test_compiled_in_place_gives_the_same_loss_and_names():
    model = small_model()
    names = list(model.state_dict())
    x, y = torch.randint(17, (2, 2, 12))
    expected = model(x, y)[1]
    reason = compile_model(model, lambda: model(x, y)[1].backward())
    if reason:
        pytest.skip(f"torch.compile does not work on this machine: {reason}")
    torch.testing.assert_close(model(x, y)[1], expected)
    assert list(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())


def test_a_compiler_that_fails_leaves_a_model_that_works(monkeypatch):
    """torch.compile crashes on machines without a compiler (nanoGPT#242, #243): say so and go on without."""
    model = small_model()

    def broken(graph, example_inputs):
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr(model, "compile", lambda: torch.nn.Module.compile(model, backend=broken))
    x, y = torch.randint(17, (2, 2, 12))
    expected = model(x, y)[1]
    assert "no compiler" in compile_model(model, lambda: model(x, y)[1].backward())
    torch.testing.assert_close(model(x, y)[1], expected)
