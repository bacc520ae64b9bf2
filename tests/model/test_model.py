"""The network against an independent NumPy GPT, and properties that hold for any weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import model as model_module
from model import GPT, IGNORE_INDEX, ModelConfig, compile_model, pick_device, pick_dtype
from seugpt.errors import DeviceError
from tests.helpers import LLAMA, perturbed_gpt

SMALL = {"block_size": 12, "vocab_size": 17, "n_layer": 3, "n_head": 2, "n_embd": 20}


def small_model(**changes):
    torch.manual_seed(0)
    return GPT(ModelConfig(**{**SMALL, **changes}))


def rope_config(head_size, base=10_000.0):
    """A model of one head of this size."""
    return ModelConfig(n_head=1, n_embd=head_size, position="rope", rope_base=base)


class NumpyGPT:
    """The forward pass of a GPT in NumPy's float64, with loops over rows, heads and layers."""

    def __init__(self, model):
        self.config = model.config
        self.head_size = model.config.head_dim or model.config.n_embd // model.config.n_head
        self.weights = {k: tensor.double().numpy() for k, tensor in model.state_dict().items()}

    def __call__(self, idx):
        """idx (B, T) -> logits (B, T, V)."""
        return np.stack([self.logits(ids) for ids in idx])

    def logits(self, ids):
        config = self.config
        x = self.weights["wte.weight"][ids]  # (T, C)
        if config.position == "learned":
            x = x + self.weights["wpe.weight"][: len(ids)]
        for i in range(config.n_layer):
            x = x + self.attention(self.norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
            x = x + self.mlp(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
        head = self.weights["wte.weight" if config.tie_embeddings else "lm_head.weight"]
        logits = self.norm(x, "ln_f") @ head.T
        if config.logit_softcap:
            logits = config.logit_softcap * np.tanh(logits / config.logit_softcap)
        return logits

    def norm(self, x, name):
        if self.config.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps)
        return x * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0)

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def mlp(self, x, name):
        return self.linear(self.activate(self.linear(x, f"{name}.c_fc")), f"{name}.c_proj")

    def activate(self, x):
        activation = self.config.mlp
        if activation == "gelu":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        if activation == "gelu_exact":
            return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
        if activation == "relu2":
            return np.maximum(x, 0) ** 2
        assert activation == "swiglu"
        gate, value = np.split(x, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * value

    def attention(self, x, name):
        n_head = self.config.n_head
        n_kv_head = self.config.n_kv_head or n_head
        qkv = self.linear(x, f"{name}.c_attn")  # (T, (nh + 2 nkv) hs)
        T = len(x)
        outputs = []
        for h in range(n_head):
            kv_head = h * n_kv_head // n_head
            q = self.query_or_key(qkv, h, f"{name}.q_norm")
            k = self.query_or_key(qkv, n_head + kv_head, f"{name}.k_norm")
            v = self.head(qkv, n_head + n_kv_head + kv_head)
            scores = q @ k.T / np.sqrt(self.head_size)
            scores[np.triu_indices(T, k=1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            outputs.append(weights @ v)
        return self.linear(np.concatenate(outputs, axis=-1), f"{name}.c_proj")

    def head(self, qkv, index):
        return qkv[:, index * self.head_size : (index + 1) * self.head_size]  # (T, hs)

    def query_or_key(self, qkv, index, norm_name):
        x = self.head(qkv, index)
        if self.config.qk_norm:
            x = self.norm(x, norm_name)
        return self.rope(x) if self.config.position == "rope" else x

    def rope(self, x):
        """RoPE as complex multiplication; the channels i + hs/2 are the imaginary parts of i."""
        half = self.head_size // 2
        frequencies = self.config.rope_base ** (-np.arange(half) / half)
        if len(self.config.rope_scaling) == 1:
            frequencies /= self.config.rope_scaling[0]
        elif self.config.rope_scaling:
            frequencies = [self.llama3_frequency(frequency) for frequency in frequencies]
        angles = np.arange(len(x))[:, None] * frequencies
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate((z.real, z.imag), axis=-1)

    def llama3_frequency(self, frequency):
        """Llama 3.1's rule in terms of wavelengths, as its authors wrote it."""
        factor, low, high, trained_length = self.config.rope_scaling
        wavelength = 2 * np.pi / frequency
        if wavelength < trained_length / high:
            return frequency
        if wavelength > trained_length / low:
            return frequency / factor
        smooth = (trained_length / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency


ARCHITECTURES = {
    "gpt2": {"bias": True},
    "gpt2 without biases": {},
    "one head": {"n_head": 1, "n_embd": 8},
    "odd width": {"n_head": 5, "n_embd": 15},
    "rope": {"position": "rope", "rope_base": 50.0},
    "rope, linear scaling": {"position": "rope", "rope_base": 50.0, "rope_scaling": (3.0,)},
    "rope, llama3 scaling": {
        "position": "rope",
        "rope_base": 50.0,
        "rope_scaling": (8.0, 1.0, 4.0, 12.0),
        "head_dim": 16,
    },
    "head_dim": {"head_dim": 10, "n_kv_head": 2, "qk_norm": True},
    "odd head_dim": {"head_dim": 3, "n_head": 5},
    "qkv_bias": {"position": "rope", "qkv_bias": True},
    "no qkv_bias": {"bias": True, "qkv_bias": False},
    "large eps": {"norm_eps": 0.1},
    "rmsnorm": {"norm": "rmsnorm", "norm_eps": 0.1},
    "swiglu": {"mlp": "swiglu", "bias": True},
    "relu2": {"mlp": "relu2"},
    "gelu_exact": {"mlp": "gelu_exact"},
    "mlp_hidden": {"mlp": "swiglu", "mlp_hidden": 7},
    "gqa": {"n_kv_head": 2},
    "mqa": {"n_kv_head": 1},
    "qk_norm": {"qk_norm": True, "bias": True},
    "softcap": {"logit_softcap": 3.0},
    "untied": {"tie_embeddings": False},
    "llama": LLAMA,
    "llama, gqa, biases": {**LLAMA, "n_kv_head": 2, "bias": True},
    "everything": {
        **LLAMA,
        "n_kv_head": 2,
        "qk_norm": True,
        "logit_softcap": 3.0,
        "tie_embeddings": False,
    },
}


def perturbed_model(**changes):
    shape = {**SMALL, "n_head": 4, "n_embd": 24}
    return perturbed_gpt(ModelConfig(**{**shape, **changes}), std=0.3)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_logits_and_loss_equal_an_independent_numpy_model(changes):
    model = perturbed_model(**changes)
    idx = torch.randint(17, (3, 12))
    logits, loss = model(idx, idx)
    expected = NumpyGPT(model)(idx.numpy())
    np.testing.assert_allclose(logits.detach().numpy(), expected, atol=1e-5, rtol=1e-5)
    log_probs = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs, idx.numpy()[..., None], axis=-1).mean()
    assert loss.item() == pytest.approx(nll, abs=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_the_right_share_and_scales_the_rest(p, dtype):
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    y = model_module.dropout(x, p)
    share = (y == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-17)
    kept = y[y != 0]
    assert torch.equal(kept, torch.full_like(kept, kept[0].item()))
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-2)
    assert y.float().mean().item() == pytest.approx(1, abs=0.02)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    zeros = (y == 0).float()
    assert zeros.mean(0).std() < 1.2 * (p * (1 - p) / 1001) ** 0.5  # no column is preferred
    neighbours = (zeros[:, 1:] * zeros[:, :-1]).mean().item()
    assert neighbours == pytest.approx(p**2, abs=0.003)
    torch.manual_seed(1)
    assert torch.equal(model_module.dropout(x, p), y)


def test_dropout_leaves_evaluation_and_p_zero_alone():
    x = torch.randn(3, 5)
    assert model_module.dropout(x, 0.0) is x or torch.equal(model_module.dropout(x, 0.0), x)
    assert torch.equal(model_module.Dropout(0.9).eval()(x), x)
    assert model_module.dropout(torch.ones(0, 4), 0.5).shape == (0, 4)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("B, T", [(1, 1), (3, 1), (1, 7), (3, 7)])
def test_written_out_attention_with_a_mask_equals_torchs(heads, B, T):
    """As in a decoding step (T = 1) and a prefill, with padding."""
    nh, nkv = heads
    q = torch.randn(B, nh, T, 8)
    k, v = torch.randn(2, B, nkv, 7, 8)
    mask = torch.zeros(B, 1, T, 7)
    mask[0, :, :, :3] = -torch.inf
    expected = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=nkv < nh)
    torch.testing.assert_close(model_module.cpu_attention(q, k, v, mask, 0.0), expected)


@pytest.mark.parametrize(
    "length, dtype, is_written_out",
    [(64, torch.bfloat16, False), (1024, torch.bfloat16, True), (1024, torch.float32, False)],
)
def test_only_long_caches_in_bfloat16_are_written_out(monkeypatch, length, dtype, is_written_out):
    """There torch's kernel takes six times as long, elsewhere less (docs/SPEED.md)."""
    calls = []
    monkeypatch.setattr(model_module, "cpu_attention", lambda *args: calls.append(args))
    q = torch.randn(1, 12, 1, 64, dtype=dtype)
    k = torch.randn(1, 12, length, 64, dtype=dtype)
    model_module.attention(q, k, k, torch.zeros(1, 1, 1, length, dtype=dtype), 0.0)
    assert bool(calls) == is_written_out


def test_rope_attention_depends_only_on_the_signed_distance():
    q, k = torch.randn(2, 1, 1, 1, 16)  # (B, T, nh, hs) each

    def rotate(x, position):
        cos_sin = model_module.rope_cos_sin(torch.tensor([position]), rope_config(16, 100.0))
        return model_module.apply_rotary_emb(x, cos_sin)

    def score(query_position, key_position):
        return (rotate(q, query_position) * rotate(k, key_position)).sum().item()

    for distance in (0, 1, 7):
        scores = [score(n + distance, n) for n in (0, 5, 30)]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert score(7, 0) != pytest.approx(score(0, 7), abs=1e-2)


def test_rope_rotates_halves_as_hugging_face_does():
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0] = 1.0
    cos_sin = model_module.rope_cos_sin(torch.tensor([1]), rope_config(4))
    rotated = model_module.apply_rotary_emb(x, cos_sin).flatten()
    torch.testing.assert_close(rotated, torch.tensor([math.cos(1), 0.0, math.sin(1), 0.0]))


def test_rope_stays_exact_in_a_half_precision_model():
    """Frequencies kept in a buffer would be rounded by model.to(bfloat16)."""
    model = small_model(position="rope", n_embd=32).to(torch.bfloat16)
    assert list(model.named_buffers()) == []
    cos, _ = model_module.rope_cos_sin(torch.tensor([1001]), rope_config(16))
    assert cos.dtype == torch.float32
    assert cos.flatten()[0].item() == pytest.approx(math.cos(1001), abs=1e-6)


def test_gqa_equals_attention_with_repeated_key_value_heads():
    gqa = perturbed_model(n_kv_head=2)
    mha = perturbed_model()
    state_dict = gqa.state_dict()
    for name, tensor in state_dict.items():
        if "c_attn" in name:
            q, k, v = tensor.split([24, 12, 12])
            repeated = [
                part.view(2, 6, -1).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v)
            ]
            state_dict[name] = torch.cat((q, *repeated))
    mha.load_state_dict(state_dict)
    idx = torch.randint(17, (2, 12))
    torch.testing.assert_close(gqa(idx, idx)[0], mha(idx, idx)[0], atol=1e-5, rtol=1e-5)


def test_softcap_bounds_logits_and_keeps_their_order():
    uncapped = perturbed_model()
    capped = perturbed_model(logit_softcap=2.0)
    idx = torch.randint(17, (2, 12))
    for arguments in ((idx, idx), (idx,)):  # in training and in generation
        capped_logits = capped(*arguments)[0]
        logits = uncapped(*arguments)[0]
        assert capped_logits.abs().max() <= 2.0 < logits.abs().max()
        assert torch.equal(capped_logits.argmax(-1), logits.argmax(-1))


def test_swiglu_has_about_as_many_parameters_as_gelu():
    for n_embd in (64, 96, 128, 384, 768):
        gelu = small_model(n_embd=n_embd, mlp="gelu", n_layer=1)
        swiglu = small_model(n_embd=n_embd, mlp="swiglu", n_layer=1)
        assert swiglu.num_params() == pytest.approx(gelu.num_params(), rel=0.03)


def test_initial_loss_is_the_log_of_the_vocabulary_size():
    model = small_model(vocab_size=500, n_embd=64)
    x, y = torch.randint(500, (2, 32, 12))
    assert model(x, y)[1].item() == pytest.approx(math.log(500), rel=0.01)


def test_initial_weights_match_the_table_in_the_docstring():
    model = small_model(n_layer=8, n_embd=128, vocab_size=1000, bias=True, embedding_std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.05), name
        elif name == "wte.weight":
            assert parameter.std().item() == pytest.approx(0.3, rel=0.05), name
        elif parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.06), name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


def test_each_position_depends_on_itself_and_all_earlier_ones_only():
    """The gradients of the logits show on which embeddings they depend."""
    model = small_model().eval()
    embeddings = []

    def record(module, args, output):
        embeddings.append(output.requires_grad_())

    model.wte.register_forward_hook(record)
    influence = torch.zeros(12, 12)  # [i, j]: of token j on the logits at position i
    for t in range(12):
        logits, _ = model(torch.randint(17, (1, 12)), torch.zeros(1, 12, dtype=torch.long))
        [gradient] = torch.autograd.grad(logits[0, t].sum(), embeddings[-1])
        influence[t] = gradient[0].abs().sum(-1)
    assert torch.equal(influence > 0, torch.ones(12, 12).tril() > 0)


def test_without_targets_only_the_last_logits_are_returned():
    model = small_model().eval()
    idx = torch.randint(17, (2, 7))
    logits, _ = model(idx, idx)
    last_logits, loss = model(idx)
    assert loss is None
    torch.testing.assert_close(last_logits, logits[:, -1:])


def test_generate_draws_each_token_from_the_logits_before_it():
    """Greedy and sampled, past block_size too; the likeliest 2 tokens alone with top_k=2."""
    model = perturbed_model(block_size=8)
    prompt = torch.randint(17, (2, 5))
    greedy = model.generate(prompt, 10, top_k=1)
    assert greedy.shape == (2, 15)
    assert torch.equal(greedy[:, :5], prompt)
    for T in range(5, 15):
        logits, _ = model(greedy[:, max(T - 8, 0) : T])
        assert torch.equal(greedy[:, T], logits[:, 0].argmax(dim=-1))

    logits, _ = model(prompt[:1])
    likeliest = logits[0, 0].topk(2)
    torch.manual_seed(0)
    drawn = model.generate(prompt[:1].expand(4000, -1), 1, temperature=0.5, top_k=2)[:, -1]
    expected = (likeliest.values / 0.5).softmax(dim=-1)
    found = torch.stack([(drawn == i).float().mean() for i in likeliest.indices])
    assert found.sum() == 1
    assert torch.allclose(found, expected, atol=0.03)


def test_ignored_targets_do_not_count_in_the_loss():
    model = small_model()
    x, y = torch.randint(17, (2, 2, 12))
    padded = torch.cat((y, torch.full_like(y, IGNORE_INDEX)))
    torch.testing.assert_close(model(torch.cat((x, x)), padded)[1], model(x, y)[1])


def test_dropout_acts_in_training_mode_only():
    model = small_model(dropout=0.5)
    idx = torch.randint(17, (1, 12))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_overfits_one_batch():
    model = small_model(n_embd=32)
    x, y = torch.randint(17, (2, 4, 12))
    # Rows with the same first token but different targets could not be learned.
    x[:, 0] = torch.arange(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(x, y)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_num_params_counts_every_parameter_once():
    """50304 x 256 in wte, 256 x 256 in wpe, 12 x 256 x 256 in each of four blocks, and vectors."""
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 50304}
    assert GPT(ModelConfig(**shape, bias=False)).num_params() == 16_091_392
    assert GPT(ModelConfig(**shape, bias=True)).num_params() == 16_102_912


@pytest.mark.parametrize("changes", [{}, LLAMA, {"tie_embeddings": False}, {"n_kv_head": 1}])
def test_flops_per_token_equal_torchs_count(changes):
    """They agree within 3%: 6N counts the weights of norms as if they were in a matmul."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = {"block_size": 32, "vocab_size": 96, "n_layer": 2, "n_head": 2, "n_embd": 64}
    model = GPT(ModelConfig(**shape, **changes))
    x, y = torch.randint(96, (2, 4, 32))
    # FlopCounterMode cannot count the flash kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, y)[1].backward()
    assert counter.get_total_flops() / x.numel() == pytest.approx(model.flops_per_token(), rel=0.03)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"n_embd": 21}, ["n_embd=21 ", "n_head=2;", " 20"]),
        ({"n_kv_head": 3, "n_head": 4}, ["n_kv_head=3 ", "n_head=4:", " 1, 2, 4"]),
        ({"position": "rope", "n_embd": 10}, ["position=rope ", "n_embd/n_head=5"]),
        ({"n_embd": 21, "n_kv_head": 3}, ["n_embd=21 ", "n_kv_head=3 "]),
    ],
)
def test_incompatible_fields_are_refused_with_their_values(changes, named):
    with pytest.raises(ValueError) as error:
        ModelConfig(**{**SMALL, **changes})
    assert all(words in str(error.value) for words in named)


def test_a_model_needs_a_vocab_size():
    with pytest.raises(ValueError, match="vocab_size=None"):
        small_model(vocab_size=None)


def test_more_tokens_than_block_size_are_refused():
    with pytest.raises(ValueError, match=r"13 .*block_size=12"):
        small_model()(torch.zeros(1, 13, dtype=torch.long))


def test_an_unknown_or_missing_device_is_refused_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("tpu", "cuda:99", "vulkan"):
        with pytest.raises(DeviceError, match=f"device={name}"):
            pick_device(name)


def test_each_rank_gets_the_cuda_device_of_its_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda", 1, 2) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"3 processes .*--nproc_per_node=2"):
        pick_device("cuda", 2, 3)


def test_bfloat16_is_chosen_only_where_it_is_native(monkeypatch):
    """torch.cuda.is_bf16_supported() is true on a T4 (7.5), which emulates it (nanoGPT#277)."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert pick_dtype("auto", cuda) == torch.float16
    with pytest.raises(DeviceError, match=r"dtype=bfloat16 .*8\.0.*--dtype=float16"):
        pick_dtype("bfloat16", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert pick_dtype("auto", cuda) == torch.bfloat16
    assert pick_dtype("auto", torch.device("mps"), training=True) == torch.float32


@pytest.mark.parametrize(
    "capabilities, expected",
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_if_it_is_native(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert pick_dtype("auto", torch.device("cpu"), training=True) == expected
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("n_kv_head", [1, 2, 6])
def test_cpu_attention_equals_torchs(n_kv_head):
    """They agree in values and gradients, in bfloat16 to its precision, with dropout on average."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 7, 4, requires_grad=True) for n in (6, n_kv_head, n_kv_head))
    y = model_module.attention(q, k, v, None, 0.0)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y.sum(), (q, k, v))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), (q, k, v)))
    y_bfloat16 = model_module.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), None, 0.0)
    torch.testing.assert_close(y_bfloat16.float(), expected, atol=0.03, rtol=0.03)
    with torch.no_grad():
        draws = [model_module.attention(q, k, v, None, 0.3) for _ in range(3000)]
    torch.testing.assert_close(torch.stack(draws).mean(0), expected, atol=0.15, rtol=0)
    assert not torch.equal(draws[0], draws[1])


def test_long_contexts_use_torchs_attention(monkeypatch):
    """cpu_attention keeps T x T weights, which would fill the memory."""
    monkeypatch.setattr(model_module, "cpu_attention", None)
    q = torch.randn(1, 2, 513, 4)
    assert model_module.attention(q, q, q, None, 0.0).shape == q.shape
    with pytest.raises(TypeError):
        model_module.attention(q[:, :, 1:], q[:, :, 1:], q[:, :, 1:], None, 0.0)


def test_a_compiled_model_keeps_its_loss_and_parameter_names():
    model = small_model(n_layer=1)
    names = list(model.state_dict())
    x, y = torch.randint(17, (2, 2, 12))
    expected = model(x, y)[1]
    reason = compile_model(model, lambda: model(x, y)[1].backward())
    if reason:
        pytest.skip(f"torch.compile does not work on this machine: {reason}")
    torch.testing.assert_close(model(x, y)[1], expected)
    assert list(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())


def test_a_compiler_failure_leaves_an_uncompiled_model_that_works(monkeypatch):
    """torch.compile crashes on machines without a C compiler (nanoGPT#242, #243)."""
    model = small_model()

    def broken(graph, example_inputs):
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr(
        model, "compile", lambda dynamic: torch.nn.Module.compile(model, backend=broken)
    )
    x, y = torch.randint(17, (2, 2, 12))
    expected = model(x, y)[1]
    reason = compile_model(model, lambda: model(x, y)[1].backward())
    assert "no compiler" in reason
    assert "\n" not in reason
    torch.testing.assert_close(model(x, y)[1], expected)
