"""Generation: the sampling distribution, cached against uncached decoding, tokens to text."""

import gc
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import model as model_module
from model import GPT, ModelConfig
from seugpt.data.tokenizer import CharTokenizer, train_bpe
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.kv_cache import KVCache
from seugpt.generation.sampling import SamplingParams, apply_penalties, sample_token
from seugpt.generation.text_stream import TextStream
from tests.helpers import NoWaiting, perturbed_gpt

# Sampling

PROBS = (0.5, 0.3, 0.15, 0.05)
LOGITS = [math.log(p) for p in PROBS]


def sampled_frequencies(logits, num_draws=20_000, **changes):
    rng = torch.Generator().manual_seed(0)
    params = SamplingParams(**{"temperature": 1.0, "top_k": None, **changes})
    drawn = sample_token(torch.tensor([logits]).float().repeat(num_draws, 1), params, rng)
    return (torch.bincount(drawn[:, 0], minlength=len(logits)) / num_draws).tolist()


def test_sampled_frequencies_match_the_probabilities():
    assert sampled_frequencies(LOGITS) == pytest.approx(PROBS, abs=0.02)


def test_temperature_sharpens_and_zero_is_greedy():
    squares = [p**2 for p in PROBS]
    expected = [square / sum(squares) for square in squares]
    assert sampled_frequencies(LOGITS, temperature=0.5) == pytest.approx(expected, abs=0.02)
    for temperature in (0, 1e-4, 1e-30, 1e-300):
        assert sampled_frequencies(LOGITS, temperature=temperature) == [1, 0, 0, 0]


def test_temperature_above_one_flattens():
    roots = [p**0.5 for p in PROBS]
    expected = [root / sum(roots) for root in roots]
    assert sampled_frequencies(LOGITS, temperature=2.0) == pytest.approx(expected, abs=0.02)


def test_top_k_keeps_the_k_likeliest_tokens():
    frequencies = sampled_frequencies(LOGITS, top_k=2)
    assert frequencies == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert sampled_frequencies(LOGITS, top_k=1) == [1, 0, 0, 0]
    for keeps_all in (0, None, 4, 999):
        assert sampled_frequencies(LOGITS, top_k=keeps_all)[3] > 0


@pytest.mark.parametrize(
    "top_p, num_kept", [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.94, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, num_kept):
    order = (2, 0, 3, 1)  # not sorted by probability
    frequencies = sampled_frequencies([LOGITS[i] for i in order], top_p=top_p)
    kept = {order[i] for i, frequency in enumerate(frequencies) if frequency > 0}
    assert kept == set(range(num_kept))


def test_a_top_p_too_small_for_float32_keeps_the_likeliest_token():
    """top_p=1e-46 is 0 in float32, which dropped every token and ended in a traceback."""
    assert sampled_frequencies(LOGITS, top_p=1e-46) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "min_p, num_kept", [(0.0, 4), (0.09, 4), (0.11, 3), (0.31, 2), (0.61, 1), (1.0, 1)]
)
def test_min_p_is_relative_to_the_likeliest_token(min_p, num_kept):
    frequencies = sampled_frequencies(LOGITS, min_p=min_p)
    assert [frequency > 0 for frequency in frequencies] == [i < num_kept for i in range(4)]


def test_filters_combine():
    # top_k keeps three, with probabilities 0.526, 0.316, 0.158; top_p keeps all, min_p two.
    frequencies = sampled_frequencies(LOGITS, top_k=3, top_p=0.9, min_p=0.5)
    assert frequencies == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)


@pytest.mark.parametrize(
    "params, expected",
    [
        (SamplingParams(repetition_penalty=2.0), [1.0, -2.0, 1.0, -2.0, 0.5]),
        (SamplingParams(frequency_penalty=0.5), [2.0, -1.0, 1.5, -2.5, 0.5]),
        (SamplingParams(presence_penalty=0.5), [2.0, -1.0, 1.5, -1.5, 0.5]),
    ],
    ids=["repetition", "frequency", "presence"],
)
def test_penalties_follow_their_definitions(params, expected):
    """CTRL's repetition penalty counts the prompt as well; OpenAI's two count only the reply."""
    logits = torch.tensor([[2.0, -1.0, 2.0, -1.0, 0.5]])
    prompt_counts = torch.tensor([[1.0, 1, 0, 0, 0]])
    reply_counts = torch.tensor([[0.0, 0, 1, 3, 0]])
    assert apply_penalties(logits, params, prompt_counts, reply_counts).tolist() == [expected]


# Decoding with the KV cache

GREEDY = SamplingParams(temperature=0.0)
MODERN = {
    "position": "rope",
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "n_kv_head": 2,
    "qk_norm": True,
    "logit_softcap": 5.0,
    "tie_embeddings": False,
}
ARCHITECTURES = {
    "gpt2": {"bias": True},
    "rope": {"position": "rope"},
    "gqa": {"n_kv_head": 2},
    "mqa": {"n_kv_head": 1},
    "rmsnorm, swiglu": {"norm": "rmsnorm", "mlp": "swiglu"},
    "relu2": {"mlp": "relu2"},
    "qk_norm": {"qk_norm": True},
    "softcap": {"logit_softcap": 2.0},
    "untied": {"tie_embeddings": False},
    "modern": MODERN,
}
all_architectures = pytest.mark.parametrize(
    "changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys()
)
V = 11
BLOCK_SIZE = 8


def make_model(vocab_size=V, **changes):
    """A small model with perturbed weights, so that each token depends on all before it."""
    shape = {"block_size": BLOCK_SIZE, "n_layer": 2, "n_head": 4, "n_embd": 16}
    return perturbed_gpt(ModelConfig(vocab_size=vocab_size, **{**shape, **changes}), std=0.3)


def generate(model, prompts, max_new_tokens, params=GREEDY, vocab_size=V, rng=None):
    """The tokens that generate_tokens yields, (B, max_new_tokens)."""
    decoder = Decoder(model, len(prompts), max(map(len, prompts)) + max_new_tokens)
    return collect(generate_tokens(decoder, prompts, max_new_tokens, vocab_size, params, rng))


def collect(tokens):
    return torch.stack(list(tokens), dim=1)


def generate_uncached(model, prompt, max_new_tokens, next_logits):
    """Greedy decoding without a cache; next_logits(model, ids) -> (V,)."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        ids.append(int(next_logits(model, ids).argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def full_context_logits(model, ids):
    return model(torch.tensor([ids]))[0][0, -1]


def restarting_logits(model, ids, prompt_length):
    """The logits after ids, if a full window restarts with its last half (learned positions)."""
    block_size = model.config.block_size
    visible = min(prompt_length, block_size)
    for _ in range(len(ids) - prompt_length):
        visible = visible + 1 if visible < block_size else block_size // 2
    return full_context_logits(model, ids[-visible:])


def rolling_logits(model, ids):
    """The logits after ids, if each token attends to the last block_size ones (RoPE).

    Computed by a model with a longer block_size and a banded mask.
    """

    def banded_attention(q, k, v, mask, dropout):
        T = q.shape[2]
        band = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - model.config.block_size)
        return F.scaled_dot_product_attention(q, k, v, band, enable_gqa=True)

    longer = GPT(ModelConfig(**{**vars(model.config), "block_size": len(ids)})).eval()
    longer.load_state_dict(model.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "attention", banded_attention)
        return full_context_logits(longer, ids)


@all_architectures
def test_cached_greedy_decoding_equals_uncached(changes):
    """The KV cache that nanoGPT lacks (nanoGPT#76) changes no output."""
    model = make_model(**changes)
    for length in range(1, BLOCK_SIZE + 1):
        prompt = torch.randint(V, (1, length))
        max_new_tokens = BLOCK_SIZE - length + 1
        expected = model.generate(prompt, max_new_tokens, top_k=1)[:, length:]
        assert torch.equal(generate(model, prompt.tolist(), max_new_tokens), expected), length


@pytest.mark.parametrize("length", [1, BLOCK_SIZE, BLOCK_SIZE + 5])
@all_architectures
def test_past_block_size_the_window_restarts_or_rolls_as_documented(changes, length):
    model = make_model(**changes)
    prompt = torch.randint(V, (length,)).tolist()
    if model.config.position == "rope":
        # A prompt longer than block_size is cut before the prefill.
        expected = generate_uncached(model, prompt[-BLOCK_SIZE:], 30, rolling_logits)
    else:
        expected = generate_uncached(
            model, prompt, 30, lambda model, ids: restarting_logits(model, ids, length)
        )
    assert generate(model, [prompt], 30).tolist() == [expected]


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_generation_works_with_the_smallest_block_sizes(position, block_size):
    model = make_model(block_size=block_size, position=position)
    assert generate(model, [[1, 2, 3], [4]], 7).shape == (2, 7)


@all_architectures
def test_a_batch_of_prompts_of_different_lengths_equals_each_prompt_alone(changes):
    model = make_model(**changes)
    prompts = [torch.randint(V, (length,)).tolist() for length in (1, 3, 8, 5, 12, 7)]
    alone = torch.cat([generate(model, [prompt], 30) for prompt in prompts])
    assert torch.equal(generate(model, prompts, 30), alone)


def test_cached_logits_equal_uncached_logits():
    model = make_model(**MODERN)
    idx = torch.randint(V, (3, 8))
    decoder = Decoder(model, 3, 8)
    logits = [decoder.prefill(list(idx[:, :3]))]
    logits += [decoder.step(idx[:, t : t + 1]) for t in range(3, 8)]
    expected = model(idx, idx)[0][:, 2:]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_logits_equal_uncached_ones_for_every_combination_of_options():
    fields = {
        "position": ("learned", "rope"),
        "norm": ("layernorm", "rmsnorm"),
        "mlp": ("gelu", "gelu_exact", "swiglu", "relu2"),
        "n_kv_head": (1, 2, None),
        "qk_norm": (False, True),
        "logit_softcap": (0.0, 3.0),
        "tie_embeddings": (False, True),
        "bias": (False, True),
    }
    idx = torch.randint(V, (2, 6))
    for values in itertools.product(*fields.values()):
        model = make_model(**dict(zip(fields, values, strict=True)), n_layer=1)
        decoder = Decoder(model, 2, 6)
        cached = torch.cat((decoder.prefill(list(idx[:, :5])), decoder.step(idx[:, 5:])), dim=1)
        expected = model(idx, idx)[0][:, 4:]
        torch.testing.assert_close(cached, expected, atol=1e-4, rtol=1e-4, msg=str(values))


def test_the_cache_stores_only_the_key_value_heads():
    model = make_model(n_kv_head=1)
    cache = KVCache(model.config, 3, BLOCK_SIZE, like=model.wte.weight)
    shapes = [tensor.shape for tensor in cache.keys + cache.values]
    assert shapes == [(3, 1, BLOCK_SIZE, 4)] * 4


def test_a_decoder_allocates_its_cache_once():
    decoder = Decoder(make_model(), 1, BLOCK_SIZE)
    addresses = []
    for _ in range(2):
        list(generate_tokens(decoder, [[1]], 20, V, GREEDY))
        addresses.append([tensor.data_ptr() for tensor in decoder.cache.keys])
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_memory_does_not_grow_with_the_length_of_a_sample(position):
    """With RoPE, all drawn tokens were kept although nothing read them."""
    shape = {"vocab_size": V, "block_size": 4, "n_layer": 1, "n_head": 1, "n_embd": 8}
    model = GPT(ModelConfig(**shape, position=position))
    num_tensors = []
    for count, _ in enumerate(generate_tokens(Decoder(model, 1, 4), [[1]], 200, V, GREEDY)):
        if count in (20, 198):
            num_tensors.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))
    assert num_tensors[1] <= num_tensors[0] + 5


def test_a_second_prefill_clears_the_cache():
    decoder = Decoder(make_model(**MODERN), 2, BLOCK_SIZE)
    first = collect(generate_tokens(decoder, [[1, 2], [3]], 20, V, GREEDY))
    list(generate_tokens(decoder, [[5], [6, 7, 8]], 20, V, GREEDY))
    again = collect(generate_tokens(decoder, [[1, 2], [3]], 20, V, GREEDY))
    assert torch.equal(first, again)


def test_a_decoder_leaves_the_models_modules_unchanged():
    """inline_modules once changed the model itself instead of a copy."""
    model = make_model(**MODERN)
    before = [set(vars(module)) for module in model.modules()]
    generate(model, [[1]], 3)
    assert [set(vars(module)) for module in model.modules()] == before


def test_a_decoder_shares_the_models_weights():
    model = make_model(**MODERN)
    decoder = Decoder(model, 1, BLOCK_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
    logits = decoder.prefill([torch.tensor([1, 2, 3])])
    torch.testing.assert_close(logits, model(torch.tensor([[1, 2, 3]]))[0])


def test_a_model_compiled_for_training_generates_uncompiled():
    """A model compiled for training batches would be recompiled for the shapes of decoding."""
    model = make_model()
    model.compile(backend=lambda graph, inputs: pytest.fail("the model was compiled"))
    assert generate(model, [[1]], 3).shape == (1, 3)


def test_a_compiled_step_generates_the_same_tokens():
    model = make_model(**MODERN, n_layer=1)
    decoder = Decoder(model, 2, BLOCK_SIZE, compile=True)
    if decoder.failure:
        pytest.skip(f"torch.compile does not work on this machine: {decoder.failure}")
    tokens = collect(generate_tokens(decoder, [[1, 2], [3]], 20, V, GREEDY))
    assert torch.equal(tokens, generate(model, [[1, 2], [3]], 20))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, MODERN, {**MODERN, "n_kv_head": 1}], ids=str)
@pytest.mark.parametrize("prompts", [[[1, 2], [3]], [[1, 2, 3, 4, 5, 6]]], ids=["padded", "one"])
def test_a_recorded_step_can_be_replayed(changes, prompts):
    """What a CUDA graph does, on a CPU: the operations of one step, recorded before any token.

    Each replay must do without Python: positions, slots of the ring and masks are tensors. 30
    tokens wrap the ring.
    """
    model = make_model(**changes)
    expected = generate(model, prompts, 30)
    decoder = Decoder(model, len(prompts), BLOCK_SIZE)
    example = torch.zeros((len(prompts), 1), dtype=torch.long)
    decoder.step = make_fx(lambda idx: decoder.forward(idx, cache=decoder.cache)[0])(example)
    tokens = collect(generate_tokens(decoder, prompts, 30, V, GREEDY))
    assert torch.equal(tokens, expected)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, MODERN])
def test_a_step_never_waits_for_the_device(changes):
    """No number leaves the device between two tokens, or a GPU would wait for Python."""
    decoder = Decoder(make_model(**changes), 2, BLOCK_SIZE)
    decoder.prefill([torch.tensor([1, 2]), torch.tensor([3])])
    with NoWaiting():
        decoder.forward(torch.tensor([[1], [2]]), cache=decoder.cache)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("changes", [{}, MODERN])
def test_a_captured_step_generates_the_same_tokens(changes):
    model = make_model(**changes).cuda()
    decoder = Decoder(model, 2, BLOCK_SIZE, compile=True)
    assert decoder.failure is None
    tokens = collect(generate_tokens(decoder, [[1, 2], [3]], 30, V, GREEDY))
    assert torch.equal(tokens, generate(model, [[1, 2], [3]], 30))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_generation_does_not_wait_for_the_device():
    decoder = Decoder(make_model(position="rope").cuda(), 2, BLOCK_SIZE)
    params = SamplingParams(repetition_penalty=1.1, top_p=0.9)
    tokens = generate_tokens(decoder, [[1], [2]], 20, V, params)
    next(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(tokens)) == 19
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_step_runs_uncompiled_if_compilation_fails(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    model = make_model()
    decoder = Decoder(model, 1, BLOCK_SIZE, compile=True)
    assert decoder.failure == "RuntimeError: no compiler long story"
    tokens = collect(generate_tokens(decoder, [[1]], 5, V, GREEDY))
    assert torch.equal(tokens, generate(model, [[1]], 5))


def test_vocabulary_padding_is_never_drawn():
    params = SamplingParams(temperature=1.0, top_k=None)
    tokens = generate(make_model(vocab_size=64), [[0]] * 50, 10, params, vocab_size=5)
    assert set(tokens.flatten().tolist()) == set(range(5))


def test_the_same_seed_draws_the_same_tokens():
    model = make_model()

    def draw(seed):
        rng = torch.Generator().manual_seed(seed)
        return generate(model, [[0]] * 3, 20, SamplingParams(temperature=1.0), rng=rng).tolist()

    assert draw(1) == draw(1) != draw(2)


def test_only_the_repetition_penalty_counts_the_prompt():
    model = make_model()
    likeliest = generate(model, [[3, 3, 4]], 1).item()
    prompt = [likeliest, 3, 3, 4]

    def next_token(**penalty):
        return generate(model, [prompt], 1, SamplingParams(temperature=0, **penalty)).item()

    assert next_token() == likeliest  # otherwise the next lines would prove nothing
    assert next_token(repetition_penalty=100) != likeliest
    assert next_token(frequency_penalty=100) == likeliest
    assert next_token(presence_penalty=100) == likeliest


@pytest.mark.parametrize("penalty", ["frequency", "presence"])
def test_a_large_penalty_prevents_all_repetition(penalty):
    params = SamplingParams(temperature=0, **{f"{penalty}_penalty": 100})
    [reply] = generate(make_model(), [[3]], 8, params).tolist()
    assert len(set(reply)) == 8


# From tokens to text


def stream_text(tokenizer, text, stop_sequences=()):
    """(what feed returns for each token of a text, the TextStream)."""
    stream = TextStream(tokenizer, stop_sequences)
    ids = tokenizer.encode(text).tolist()
    parts = [stream.feed(token, last=n == len(ids)) for n, token in enumerate(ids, start=1)]
    return parts, stream


def test_bytes_are_buffered_until_they_form_a_character():
    """Decoded byte by byte, an accent or emoji would be printed as U+FFFD."""
    tokenizer = train_bpe(["x"], 257)  # one token per byte
    parts, _ = stream_text(tokenizer, "aç🦜!")
    assert parts == ["a", "", "ç", "", "", "", "🦜", "!"]
    stream = TextStream(tokenizer)
    assert [stream.feed(0xC3), stream.feed(ord("A"))] == ["", "\ufffdA"]
    assert TextStream(tokenizer).feed(0xC3, last=True) == "\ufffd"


@pytest.mark.parametrize(
    "stop_sequences, shown",
    [
        (("END",), "one ENtwo "),
        (("\n\n", "two"), "one EN"),
        (("missing",), "one ENtwo END three"),
        (("o",), ""),
        (("three!",), "one ENtwo END three"),
        (("e", "ne"), "o"),
        ((" t", "D t"), "one ENtwo EN"),
    ],
)
def test_a_stop_sequence_ends_the_text_and_is_not_part_of_it(stop_sequences, shown):
    text = "one ENtwo END three"
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    parts, stream = stream_text(tokenizer, text, stop_sequences)
    assert "".join(parts) == shown
    assert stream.finished
