"""Generation: what is drawn, that the cache changes nothing, and when bytes become text."""

import gc
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import model
from model import GPT, ModelConfig
from seugpt.data.tokenizer import CharTokenizer, train_bpe
from seugpt.generation.decoder import Decoder, Sampling, TextStream, generate, next_token, penalize


def frequencies(logits, n=20_000, **options):
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(**{"temperature": 1.0, "top_k": None, **options})
    drawn = next_token(torch.tensor([logits]).float().repeat(n, 1), sampling, generator)
    return (torch.bincount(drawn[:, 0], minlength=len(logits)) / n).tolist()


LOGITS = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]


def test_tokens_are_drawn_as_often_as_the_model_believes():
    assert frequencies(LOGITS) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)


def test_temperature_sharpens_and_flattens_and_zero_is_greedy():
    squared = [p**2 for p in (0.5, 0.3, 0.15, 0.05)]
    assert frequencies(LOGITS, temperature=0.5) == pytest.approx(
        [p / sum(squared) for p in squared], abs=0.02
    )
    assert frequencies(LOGITS, temperature=0) == [1, 0, 0, 0]
    for nearly in (1e-4, 1e-30, 1e-300):
        assert frequencies(LOGITS, temperature=nearly) == [1, 0, 0, 0]


def test_top_k_keeps_the_k_likeliest_and_0_or_a_large_k_all():
    assert frequencies(LOGITS, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert frequencies(LOGITS, top_k=1) == [1, 0, 0, 0]
    for everything in (0, None, 4, 999):
        assert frequencies(LOGITS, top_k=everything)[3] > 0


@pytest.mark.parametrize(
    "top_p, kept", [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.94, 3), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    shuffled = [LOGITS[i] for i in (2, 0, 3, 1)]
    drawn = frequencies(shuffled, top_p=top_p)
    assert [drawn[i] > 0 for i in (1, 3, 0, 2)] == [i < kept for i in range(4)]


def test_a_top_p_too_small_for_float32_keeps_the_likeliest():
    """top_p=1e-46 is 0 in float32, and every token was left out: a traceback."""
    assert frequencies(LOGITS, top_p=1e-46) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "min_p, kept", [(0.0, 4), (0.09, 4), (0.11, 3), (0.31, 2), (0.61, 1), (1.0, 1)]
)
def test_min_p_keeps_what_reaches_its_share_of_the_likeliest(min_p, kept):
    assert [share > 0 for share in frequencies(LOGITS, min_p=min_p)] == [i < kept for i in range(4)]


def test_filters_act_together():
    probabilities = frequencies(LOGITS, top_k=3, top_p=0.9, min_p=0.5)  # of 3: 0.526, 0.316, 0.158
    assert probabilities == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)


def test_penalties_are_those_of_their_sources():
    logits = torch.tensor([[2.0, -1.0, 2.0, -1.0, 0.5]])
    prompt, reply = torch.tensor([[1.0, 1, 0, 0, 0]]), torch.tensor([[0.0, 0, 1, 3, 0]])
    repetition = penalize(logits, Sampling(repetition_penalty=2.0), prompt, reply)
    assert repetition.tolist() == [[1.0, -2.0, 1.0, -2.0, 0.5]]
    frequency = penalize(logits, Sampling(frequency_penalty=0.5), prompt, reply)
    assert frequency.tolist() == [[2.0, -1.0, 1.5, -2.5, 0.5]]
    presence = penalize(logits, Sampling(presence_penalty=0.5), prompt, reply)
    assert presence.tolist() == [[2.0, -1.0, 1.5, -1.5, 0.5]]


GREEDY = Sampling(temperature=0.0)
MODERN = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 2, "qk_norm": True,
          "logit_softcap": 5.0, "tie_embeddings": False}  # fmt: skip
ARCHITECTURES = {
    "gpt2": {"bias": True}, "rope": {"position": "rope"}, "gqa": {"n_kv_head": 2}, "mqa": {"n_kv_head": 1},
    "rmsnorm, swiglu": {"norm": "rmsnorm", "mlp": "swiglu"}, "relu2": {"mlp": "relu2"}, "qk_norm": {"qk_norm": True},
    "softcap": {"logit_softcap": 2.0}, "untied": {"tie_embeddings": False}, "modern": MODERN,
}  # fmt: skip
V = 11


def make_model(vocab_size=V, **changes):
    """A small model away from its initial values, so that what comes next depends on everything before."""
    torch.manual_seed(0)
    shape = {"block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 16}
    net = GPT(ModelConfig(vocab_size=vocab_size, **{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def written(net, prompts, n, sampling=GREEDY, vocab_size=V, **options):
    """What generate makes of the prompts, (B, n)."""
    decoder = Decoder(net, len(prompts), max(map(len, prompts)) + n)
    return torch.stack(list(generate(decoder, prompts, n, vocab_size, sampling, **options)), dim=1)


def greedy_without_cache(net, prompt, n, forward):
    """The likeliest token each time, all computed anew; forward(ids so far) -> logits of the next token, (V,)."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(forward(net, ids).argmax()))
    return ids[len(prompt) :]


def whole(net, ids):
    return net(torch.tensor([ids]))[0][0, -1]


def restarted(net, ids, length):
    """With learned positions the window starts anew with its last half whenever it is full."""
    L = net.config.block_size
    held = min(length, L)
    for _ in range(len(ids) - length):
        held = held + 1 if held < L else L // 2
    return whole(net, ids[-held:])


def sliding(net, ids):
    """With rotary positions each token attends to the last L, itself included: the same network, another mask."""

    def banded(q, k, v, mask, dropout):
        T = q.shape[2]
        band = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - net.config.block_size)
        return F.scaled_dot_product_attention(q, k, v, band, enable_gqa=True)

    wide = GPT(ModelConfig(**{**vars(net.config), "block_size": len(ids)}))
    wide.load_state_dict(net.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "attention", banded)
        return wide.eval()(torch.tensor([ids]))[0][0, -1]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_greedy_with_the_cache_equals_greedy_without(changes):
    """A cache that changes the output is worse than none (nanoGPT#76)."""
    net = make_model(**changes)
    for length in range(1, 9):
        prompt = torch.randint(V, (length,)).tolist()
        expected = greedy_without_cache(net, prompt, 8 - length + 1, whole)
        assert written(net, [prompt], 8 - length + 1).tolist() == [expected], length


@pytest.mark.parametrize("length", [1, 4, 8, 13])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_beyond_block_size_the_window_restarts_or_rolls_as_documented(changes, length):
    net = make_model(**changes)
    prompt = torch.randint(V, (length,)).tolist()
    if net.config.position == "rope":
        # A longer prompt is cut to the window before it is read, so the reference starts from what was read.
        expected = greedy_without_cache(net, prompt[-8:], 30, sliding)
    else:
        expected = greedy_without_cache(
            net, prompt, 30, lambda net, ids: restarted(net, ids, length)
        )
    assert written(net, [prompt], 30).tolist() == [expected]


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_shortest_contexts_work(position, block_size):
    net = make_model(block_size=block_size, position=position)
    assert written(net, [[1, 2, 3], [4]], 7).shape == (2, 7)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_prompts_of_different_lengths_in_one_batch_are_what_each_is_alone(changes):
    net = make_model(**changes)
    prompts = [torch.randint(V, (length,)).tolist() for length in (1, 3, 8, 5, 12, 7)]
    together = written(net, prompts, 30)
    alone = torch.cat([written(net, [prompt], 30) for prompt in prompts])
    assert torch.equal(together, alone)


def test_cached_logits_are_the_uncached_ones():
    net = make_model(**MODERN)
    idx = torch.randint(V, (3, 8))
    decoder = Decoder(net, 3, 8)
    steps = [decoder.prefill(list(idx[:, :3]))] + [
        decoder.step(idx[:, t : t + 1]) for t in range(3, 8)
    ]
    torch.testing.assert_close(
        torch.cat(steps, dim=1), net(idx, idx)[0][:, 2:], atol=1e-5, rtol=1e-5
    )


def test_every_combination_of_architectures_is_valid_and_cached():
    fields = {"position": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"),
              "mlp": ("gelu", "gelu_exact", "swiglu", "relu2"), "n_kv_head": (1, 2, None), "qk_norm": (False, True),
              "logit_softcap": (0.0, 3.0), "tie_embeddings": (False, True), "bias": (False, True)}  # fmt: skip
    idx = torch.randint(V, (2, 6))
    for values in itertools.product(*fields.values()):
        net = make_model(**dict(zip(fields, values, strict=True)))
        decoder = Decoder(net, 2, 6)
        cached = torch.cat((decoder.prefill(list(idx[:, :5])), decoder.step(idx[:, 5:])), dim=1)
        torch.testing.assert_close(
            cached, net(idx, idx)[0][:, 4:], atol=1e-4, rtol=1e-4, msg=str(values)
        )


def test_the_cache_has_as_many_heads_as_keys_have_and_is_made_once():
    net = make_model(n_kv_head=1)
    cache = net.make_cache(3, 8)
    assert [t.shape for t in cache.keys + cache.values] == [(3, 1, 8, 4)] * 4
    places = [t.data_ptr() for t in cache.keys]
    list(generate(decoder := Decoder(net, 1, 8), [[1]], 20, V, GREEDY))
    before = [t.data_ptr() for t in decoder.cache.keys]
    list(generate(decoder, [[1]], 20, V, GREEDY))
    assert before == [t.data_ptr() for t in decoder.cache.keys] != places


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_length_of_a_sample_costs_no_memory(position):
    """With rotary positions each token that was drawn was kept, and nothing ever read them."""
    net = GPT(
        ModelConfig(vocab_size=V, block_size=4, n_layer=1, n_head=1, n_embd=8, position=position)
    )
    tokens = generate(Decoder(net, 1, 4), [[1]], 200, V, GREEDY)
    alive = []
    for count, _ in enumerate(tokens):
        if count in (20, 198):
            alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert alive[1] <= alive[0] + 5


def test_a_decoder_forgets_the_batch_before():
    net = make_model(**MODERN)
    decoder = Decoder(net, 2, 8)
    first = torch.stack(list(generate(decoder, [[1, 2], [3]], 20, V, GREEDY)))
    list(generate(decoder, [[5], [6, 7, 8]], 20, V, GREEDY))
    assert torch.equal(first, torch.stack(list(generate(decoder, [[1, 2], [3]], 20, V, GREEDY))))


def test_a_decoder_leaves_the_model_as_it_was():
    """Its shortcuts were once written into the model's own modules, for whoever used them next."""
    net = make_model(**MODERN)
    before = [dict(vars(module)) for module in net.modules()]
    written(net, [[1]], 3)
    assert all(
        vars(module).keys() == names.keys()
        for module, names in zip(net.modules(), before, strict=True)
    )


def test_a_decoder_has_the_models_weights_and_not_a_copy_of_them():
    net = make_model(**MODERN)
    decoder = Decoder(net, 1, 8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.7)
    logits = decoder.prefill([torch.tensor([1, 2, 3])])
    torch.testing.assert_close(logits, net(torch.tensor([[1, 2, 3]]))[0])


def test_a_model_that_is_compiled_for_training_writes_uncompiled():
    """It was compiled for whole batches; a sample in between would compile it again, for one token."""
    net = make_model()
    net.compile(backend=lambda graph, inputs: pytest.fail("it was compiled"))
    assert len(written(net, [[1]], 3)[0]) == 3


def test_a_compiled_step_writes_the_same():
    net = make_model(**MODERN)
    decoder = Decoder(net, 2, 8, compile=True)
    if decoder.failure:
        pytest.skip(f"torch.compile does not work on this machine: {decoder.failure}")
    tokens = torch.stack(list(generate(decoder, [[1, 2], [3]], 20, V, GREEDY)), dim=1)
    assert torch.equal(tokens, written(net, [[1, 2], [3]], 20))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("changes", [{}, MODERN])
def test_a_captured_step_writes_the_same(changes):
    net = make_model(**changes).cuda()
    decoder = Decoder(net, 2, 8, compile=True)
    assert decoder.failure is None
    tokens = torch.stack(list(generate(decoder, [[1, 2], [3]], 30, V, GREEDY)), dim=1)
    assert torch.equal(tokens, written(net, [[1, 2], [3]], 30))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_no_token_waits_for_the_device():
    decoder = Decoder(make_model(position="rope").cuda(), 2, 8)
    tokens = generate(decoder, [[1], [2]], 20, V, Sampling(repetition_penalty=1.1, top_p=0.9))
    next(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(tokens)) == 19
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_where_compilation_fails_the_step_runs_as_it_is(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no compiler\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    decoder = Decoder(make_model(), 1, 8, compile=True)
    assert decoder.failure == "RuntimeError: no compiler long story"
    assert len(list(generate(decoder, [[1]], 5, V, GREEDY))) == 5


def test_padding_of_the_vocabulary_is_never_drawn():
    tokens = written(
        make_model(64), [[0]] * 50, 10, Sampling(temperature=1.0, top_k=None), vocab_size=5
    )
    assert set(tokens.flatten().tolist()) == set(range(5))


def test_the_same_seed_gives_the_same_samples():
    def draw(seed):
        dice = torch.Generator().manual_seed(seed)
        return written(
            make_model(), [[0]] * 3, 20, Sampling(temperature=1.0), generator=dice
        ).tolist()

    assert draw(1) == draw(1) != draw(2)


def test_a_repetition_penalty_counts_the_prompt_and_the_others_do_not():
    net = make_model()
    prompt = [3, 3, 4]
    plain = written(net, [prompt], 1).item()
    assert (
        written(net, [[plain, *prompt]], 1).item() == plain
    )  # or the next line would show nothing
    assert (
        written(net, [[plain, *prompt]], 1, Sampling(temperature=0, repetition_penalty=100)).item()
        != plain
    )
    assert (
        written(net, [[plain, *prompt]], 1, Sampling(temperature=0, frequency_penalty=100)).item()
        == plain
    )
    reply = written(net, [prompt], 8, Sampling(temperature=0, presence_penalty=100))[0].tolist()
    assert len(set(reply)) == 8  # after each token, never again the same


def feed(tokenizer, text, stop=()):
    stream, ids = TextStream(tokenizer, stop), tokenizer.encode(text)
    return [stream.feed(i, last=n == len(ids)) for n, i in enumerate(ids.tolist(), start=1)], stream


def test_bytes_are_held_back_until_they_are_a_character():
    """Elsewhere a streamed emoji or accent breaks into U+FFFD."""
    tokenizer = train_bpe(["x"], 257)  # one token a byte
    parts, _ = feed(tokenizer, "aç🦜!")
    assert parts == ["a", "", "ç", "", "", "", "🦜", "!"]
    stream = TextStream(tokenizer)
    assert [stream.feed(0xC3), stream.feed(ord("A"))] == ["", "\ufffdA"]
    assert TextStream(tokenizer).feed(0xC3, last=True) == "\ufffd"


@pytest.mark.parametrize(
    "stop, shown",
    [(("END",), "one ENtwo "), (("\n\n", "two"), "one EN"), (("missing",), "one ENtwo END three"), (("o",), ""),
     (("three!",), "one ENtwo END three"), (("e", "ne"), "o"), ((" t", "D t"), "one ENtwo EN")],
)  # fmt: skip
def test_a_stop_text_ends_the_sample_and_nothing_of_it_is_shown(stop, shown):
    text = "one ENtwo END three"
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    parts, stream = feed(tokenizer, text, stop)
    assert "".join(parts) == shown and stream.finished
