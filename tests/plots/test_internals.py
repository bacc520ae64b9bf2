"""Looking into a model: the numbers against independent references, and the plots of them."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import visualize
from model import GPT, ModelConfig
from seugpt.checkpoint.storage import save_checkpoint
from seugpt.data.tokenizer import CharTokenizer, bpe_tokenizer
from seugpt.generation.sampling import SamplingParams, sample_token
from seugpt.plots import internals
from seugpt.plots.attention_patterns import (
    OTHER_TARGETS,
    attention_patterns,
    attention_targets,
    distance_ranges,
    target_names,
)
from seugpt.plots.predictions import TEXT_COLUMNS, lay_out
from seugpt.plots.style import quote, token_labels
from seugpt.training.layer_stats import forward_pre_hooks
from tests.helpers import perturbed_gpt

GPT2 = ModelConfig(block_size=12, vocab_size=20, n_layer=3, n_head=4, n_embd=32)
LLAMA = replace(
    GPT2,
    n_kv_head=2,
    position="rope",
    norm="rmsnorm",
    mlp="swiglu",
    qk_norm=True,
    tie_embeddings=False,
)
ARCHITECTURES = {
    "gpt2": GPT2,
    "mqa, biases, softcap": replace(GPT2, bias=True, n_kv_head=1, logit_softcap=3.0),
    "llama, gqa, qk_norm": LLAMA,
}
all_architectures = pytest.mark.parametrize(
    "config", ARCHITECTURES.values(), ids=ARCHITECTURES.keys()
)


def make_model(config):
    return perturbed_gpt(config, std=0.3)


def random_ids(length, vocab_size=20, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=rng)


def registered_hooks(model):
    hooks = []
    for module in model.modules():
        hooks += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return hooks


# Attention weights


@all_architectures
def test_attention_weights_reproduce_the_output_of_each_layer(config):
    model = make_model(config)
    idx = torch.stack((random_ids(9), random_ids(9, seed=2)))
    calls = []

    def record(attn, inputs, output):
        x, cos_sin, _ = inputs
        calls.append((attn, x, cos_sin, output))

    handles = [block.attn.register_forward_hook(record) for block in model.h]
    layer_weights = internals.attention_weights(model, idx)
    for handle in handles:
        handle.remove()
    assert len(layer_weights) == len(calls) == config.n_layer
    kv_head_of = [head * config.kv_heads // config.n_head for head in range(config.n_head)]
    for weights, (attn, x, cos_sin, output) in zip(layer_weights, calls, strict=True):
        _, _, v = attn.qkv(x, cos_sin)  # (B, nkv, T, hs)
        y = attn.c_proj((weights @ v[:, kv_head_of]).transpose(1, 2).flatten(2))
        torch.testing.assert_close(y, output)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, config.n_head, 9))
        assert (weights.triu(1) == 0).all()
        assert weights.max(dim=-1).values[:, :, 1:].min() < 0.9


def test_attention_weights_equal_a_numpy_softmax():
    """The reference computes the first layer's weights from the parameters."""
    model = make_model(GPT2)
    ids = random_ids(7)
    params = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    x = params["wte.weight"][ids] + params["wpe.weight"][:7]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * params["h.0.ln_1.weight"]
    qkv = x @ params["h.0.attn.c_attn.weight"].T
    weights = internals.attention_weights(model, ids[None])[0][0].numpy()
    for head in range(4):
        q = qkv[:, head * 8 : (head + 1) * 8]
        k = qkv[:, 32 + head * 8 : 32 + (head + 1) * 8]
        expected = np.exp(q @ k.T / math.sqrt(8)) * np.tril(np.ones((7, 7)))
        expected /= expected.sum(-1, keepdims=True)
        assert weights[head] == pytest.approx(expected, abs=1e-4)


def test_attention_weights_are_summarized_layer_by_layer():
    model = make_model(GPT2)
    shapes = internals.attention_weights(
        model, random_ids(9)[None], summarize=lambda weights: weights.shape
    )
    assert shapes == [(1, 4, 9, 9)] * 3


def test_hooks_are_removed_even_after_an_error():
    model = make_model(GPT2)
    internals.attention_weights(model, random_ids(9)[None])
    internals.logit_lens(model, 20, random_ids(9))
    internals.surprisal(model, random_ids(30))
    with pytest.raises(ValueError, match="block_size=12"):
        internals.attention_weights(model, random_ids(13)[None])
    assert registered_hooks(model) == []
    with forward_pre_hooks([model.h[0]], lambda module, inputs: None):
        assert len(registered_hooks(model)) == 1


# Predictions


@all_architectures
@torch.no_grad()
def test_logit_lens_equals_models_that_end_after_each_layer(config):
    model = make_model(config)
    ids = random_ids(9)
    N = 17  # the other three rows of the vocabulary are padding
    probs, likeliest = internals.logit_lens(model, N, ids)
    assert probs.shape == likeliest.shape == (config.n_layer + 1, 9)
    for n in range(1, config.n_layer + 1):
        shorter = GPT(replace(config, n_layer=n)).eval()
        shorter.load_state_dict(model.state_dict(), strict=False)
        expected = shorter(ids[None], ids[None])[0][0, :, :N].softmax(dim=-1)
        torch.testing.assert_close(probs[n], expected.max(dim=-1).values)
        assert torch.equal(likeliest[n], expected.argmax(dim=-1))
    positions = 0 if model.wpe is None else model.wpe.weight[:9]
    logits = model.lm_head(model.ln_f(model.wte.weight[ids] + positions))[:, :N]
    assert torch.equal(likeliest[0], logits.argmax(dim=-1))
    assert internals.next_token_logits(model, N, ids).argmax() == likeliest[-1, -1]


@all_architectures
def test_surprisal_is_the_loss_in_bits(config):
    model = make_model(config)
    ids = random_ids(13)
    bits = internals.surprisal(model, ids)
    assert len(bits) == 13
    assert math.isnan(bits[0])
    loss = model(ids[None, :-1], ids[None, 1:])[1].item()
    assert bits[1:].mean().item() == pytest.approx(loss / math.log(2), rel=1e-5)


@pytest.mark.parametrize("length", [2, 12, 13, 14, 19, 20, 50])
@torch.no_grad()
def test_surprisal_has_at_least_half_a_block_size_of_context(length):
    model = make_model(GPT2)
    ids = random_ids(length)
    bits = internals.surprisal(model, ids)
    assert len(bits) == length
    for t in range(1, length):
        possible = []  # for each context length from half of block_size to all of it
        for context_length in range(min(t, 6), min(t, 12) + 1):
            logits, _ = model(ids[None, t - context_length : t])
            possible.append(-logits[0, -1].log_softmax(-1)[ids[t]] / math.log(2))
        assert min(abs(bits[t] - each) for each in possible) < 1e-4
        if t <= 12:
            assert bits[t] == pytest.approx(possible[-1].item(), abs=1e-4)


def test_surprisal_works_with_a_block_size_of_one():
    bits = internals.surprisal(make_model(replace(GPT2, block_size=1)), random_ids(5))
    assert bits.isfinite().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0, None),
        SamplingParams(0.5, 7),
        SamplingParams(2.0, None, 0.8),
        SamplingParams(0.0),
        SamplingParams(1.0, 1),
        SamplingParams(0.7, 5, 0.9),
    ],
    ids=lambda params: f"temperature {params.temperature}, {params.top_k}, {params.top_p}",
)
def test_sampling_probs_equal_numpy_ones_and_the_frequencies_of_draws(params):
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(3))
    scaled = logits.double().numpy() / max(params.temperature, 1e-3)
    kept = np.argsort(-scaled)[: params.top_k or None]
    expected = np.zeros(20)
    expected[kept] = np.exp(scaled[kept] - scaled.max())
    expected /= expected.sum()
    before = np.cumsum(expected[kept]) - expected[kept]
    expected[kept[before >= params.top_p]] = 0
    expected /= expected.sum()
    assert internals.sampling_probs(logits, params).numpy() == pytest.approx(expected, abs=1e-5)
    rng = torch.Generator().manual_seed(4)
    counts = internals.count_draws(logits, params, 20_000, rng).numpy()
    assert counts.sum() == 20_000
    assert (counts[expected == 0] == 0).all()
    assert np.abs(counts - 20_000 * expected).max() < 5 * math.sqrt(20_000 / 4)


def test_draws_from_a_large_vocabulary_are_made_in_chunks(monkeypatch):
    """A thousand draws from 50,257 tokens would take 200 MB at once."""
    shapes = []

    def record(logits, params, rng):
        shapes.append(logits.shape)
        return sample_token(logits, params, rng)

    monkeypatch.setattr(internals, "sample_token", record)
    V = internals.CHUNK_ELEMENTS // 4
    counts = internals.count_draws(torch.zeros(V), SamplingParams(), 10, torch.Generator())
    assert counts.sum() == 10
    assert shapes == [(4, V), (4, V), (2, V)]


# Attention patterns


def brute_force_targets(ids, is_space):
    """{name: [(i, j)]}: the pairs in which token j is that target of token i, one by one."""
    T = len(ids)
    pairs = {}
    for i in range(T):
        for j in range(i + 1):
            back = i - j
            matches = {
                "itself": back == 0,
                "previous token": back == 1,
                "2 back": back == 2,
                "3 back": back == 3,
                "4 back": back == 4,
                "5 to 8 back": 5 <= back <= 8,
                f"9 to {T - 1} back": back >= 9,
                "first token": j == 0 and i > 0,
                "last white space": j < i and is_space[j] and not any(is_space[j + 1 : i]),
                "same token": j < i and ids[j] == ids[i],
                "what came after it": j > 0 and ids[j - 1] == ids[i],
            }
            for name, matched in matches.items():
                pairs.setdefault(name, [])
                if matched:
                    pairs[name].append((i, j))
    return pairs


def test_attention_targets_match_their_names():
    ids = random_ids(12, vocab_size=4)
    is_space = random_ids(12, vocab_size=3, seed=5) == 0
    masks = attention_targets(ids[None], is_space[None])
    pairs = {}
    for name, mask in zip(target_names(12), masks[0], strict=True):
        pairs[name] = sorted(map(tuple, mask.nonzero().tolist()))
    expected = brute_force_targets(ids.tolist(), is_space.tolist())
    assert pairs == {name: sorted(expected_pairs) for name, expected_pairs in expected.items()}


@pytest.mark.parametrize("T", [*range(1, 40), 1024])
def test_distance_ranges_cover_every_distance_once(T):
    ranges = distance_ranges(T)
    assert [d for first, last in ranges for d in range(first, last + 1)] == list(range(T))
    ids = random_ids(T)[None]
    masks = attention_targets(ids, ids == 0)
    assert masks.shape[1] == len(target_names(T)) == len(ranges) + len(OTHER_TARGETS)


def test_attention_patterns_average_over_the_tokens_that_have_the_target():
    model = make_model(LLAMA)
    ids = random_ids(41, vocab_size=5)
    is_space = random_ids(41, vocab_size=4, seed=6) == 0
    names, shares, uniform = attention_patterns(model, ids, is_space)
    sums = {}
    uniform_sums = {}
    counts = {}
    for start in (0, 12, 24):  # windows of block_size=12; the last five tokens fill none
        window = slice(start, start + 12)
        layer_weights = internals.attention_weights(model, ids[None, window])
        weights = torch.stack(layer_weights)[:, 0]  # (L, nh, T, T)
        pairs = brute_force_targets(ids[window].tolist(), is_space[window].tolist())
        for name, target_pairs in pairs.items():
            rows = [i for i, _ in target_pairs]
            sums[name] = sums.get(name, 0) + sum(weights[:, :, i, j] for i, j in target_pairs)
            uniform_sums[name] = uniform_sums.get(name, 0) + sum(1 / (i + 1) for i in rows)
            counts[name] = counts.get(name, 0) + len(set(rows))
    assert set(names) == set(sums)
    assert shares.shape == (3, 4, len(names))
    for column, name in enumerate(names):
        torch.testing.assert_close(shares[..., column].float(), sums[name] / counts[name])
        assert uniform[column].item() == pytest.approx(uniform_sums[name] / counts[name])
    # The shares of all distances add up to 1 for each of the 36 tokens.
    distances = [name for name in names if name not in OTHER_TARGETS]
    total = sum(shares[..., names.index(name)] * counts[name] for name in distances)
    torch.testing.assert_close(total, torch.full((3, 4), 36.0).double())


def test_targets_that_a_text_lacks_are_left_out():
    no_blanks = torch.zeros(12, dtype=torch.bool)
    names, shares, _ = attention_patterns(make_model(GPT2), torch.arange(12), no_blanks)
    assert set(names) & set(OTHER_TARGETS) == {"first token"}
    assert shares.isfinite().all()


# Text on a plot


def test_lines_break_at_newlines():
    tokens = [b"a", b"\n", b"b", b"\n\n", b"c"]
    cells = lay_out(tokens, ["a", "↵", "b", "↵↵", "c"])
    assert cells == [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0)]


@pytest.mark.parametrize("token_length", [1, 3, 9])
def test_lines_break_between_words(token_length):
    words = " ".join("palavra" if n % 3 else "é" for n in range(60))
    labels = [words[i : i + token_length] for i in range(0, len(words), token_length)]
    cells = lay_out([label.encode() for label in labels], labels)
    lines = {}
    for (line, column), label in zip(cells, labels, strict=True):
        assert len(lines.get(line, "")) == column  # no overlap, no gap
        lines[line] = lines.get(line, "") + label
    assert max(map(len, lines.values())) <= TEXT_COLUMNS
    assert "".join(lines.values()) == words
    assert len(lines) > 3
    if token_length == 1:
        assert all(line.endswith(" ") for line in list(lines.values())[:-1])


def test_a_word_longer_than_a_line_is_split():
    num_tokens = TEXT_COLUMNS + 1
    cells = lay_out([b"x"] * num_tokens, ["x"] * num_tokens)
    assert cells[-2:] == [(0, TEXT_COLUMNS - 1), (1, 0)]
    assert lay_out([b"x" * 200, b"y"], ["x" * TEXT_COLUMNS, "y"]) == [(0, 0), (1, 0)]


def test_labels_and_quotes_are_shortened():
    tokenizer = bpe_tokenizer([bytes([n]) for n in range(256)] + [b" the", b"abcdefgh"])
    labels = token_labels(tokenizer, torch.tensor([10, 256, 257]), max_chars=6)
    assert labels == ["↵", "␣the", "abcde…"]
    assert quote(["␣the", "↵", "x" * 9], 7) == "“ the↵x…”"
    assert quote(["abc", "def"], 4, from_end=True) == "“…def”"


# The commands

CHARS = "\n !$\\^_{}abcdefghijklmnopqrstuvwxyzáçãé🦜"
BPE = bpe_tokenizer([bytes([n]) for n in range(256)] + [b" o", b" menino", b"\n\n", "ção".encode()])


def save_model(folder, config, tokenizer):
    """Save a checkpoint of a model whose vocabulary has three tokens of padding."""
    model = make_model(replace(config, vocab_size=tokenizer.vocab_size + 3))
    ckpt = {
        "model": model.state_dict(),
        "model_config": vars(model.config),
        "train_config": {},
        "tokenizer": tokenizer.spec(),
        "step": 1,
        "val_loss": 2.0,
    }
    folder.mkdir()
    save_checkpoint(folder / "best.pt", ckpt)


@pytest.fixture(scope="module")
def models_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "chars", GPT2, CharTokenizer(CHARS))
    save_model(folder / "bpe", LLAMA, BPE)
    tiny_config = replace(GPT2, n_layer=1, n_head=1, block_size=1)
    save_model(folder / "one", tiny_config, CharTokenizer("ab"))
    text = "o menino não é $x_{1}^\\frac$; \n\n🦜 ação\n" * 40
    (folder / "long.txt").write_text(text, encoding="utf-8")
    text = "o $x_{a}^\\frac$ menino e \n\n🦜 maçã\n" * 40
    (folder / "chars.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def models(models_once, workspace):
    """A folder with the models chars, bpe and one (one layer, one head, block_size 1)."""
    shutil.copytree(models_once, workspace, dirs_exist_ok=True)
    return workspace


@pytest.mark.parametrize(
    "argv, path",
    [
        (["attention", "chars", "--text=o menino"], "chars/attention.png"),
        (["attention", "bpe", "--text=FILE:long.txt", "--layer=1"], "bpe/attention.png"),
        (["attention", "bpe", "--text=o $menino", "--head=3", "--to=x.svg"], "x.svg"),
        (
            ["attention", "--init_from=chars/best.pt", "--text=o menino", "--head=0", "--layer=2"],
            "chars/attention.png",
        ),
        (["heads", "chars", "--text=FILE:chars.txt"], "chars/heads.png"),
        (["heads", "bpe", "--text=FILE:long.txt", "--to=x.svg"], "x.svg"),
        (["next", "chars", "--text=o men"], "chars/next.png"),
        (
            ["next", "bpe", "--text=FILE:long.txt", "--temperature=0", "--top_k=3", "--bars=1"],
            "bpe/next.png",
        ),
        (
            ["next", "bpe", "--text=🦜", "--bars=99", *["--temperature=1"] * 2, "--top_p=.5"],
            "bpe/next.png",
        ),
        (["surprisal", "chars", "--text=FILE:chars.txt"], "chars/surprisal.png"),
        (["surprisal", "bpe", "--text=FILE:long.txt", "--to=x.svg"], "x.svg"),
        (["logit_lens", "chars", "--text=FILE:chars.txt"], "chars/logit_lens.png"),
        (["logit_lens", "bpe", "--text=o", "--to=x.svg"], "x.svg"),
        (["attention", "one", "--text=ab"], "one/attention.png"),
        (["heads", "one", "--text=ab"], "one/heads.png"),
        (["next", "one", "--text=a"], "one/next.png"),
        (["surprisal", "one", "--text=ab"], "one/surprisal.png"),
        (["logit_lens", "one", "--text=a"], "one/logit_lens.png"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_command_draws_without_warnings(models, capsys, recwarn, argv, path):
    visualize.main(argv)
    assert capsys.readouterr().out == f"written: {Path(path)}\n"
    assert Path(path).read_bytes().startswith(b"\x89PNG" if path.endswith("png") else b"<?xml")
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []


def test_an_exported_model_gives_the_same_plot(models):
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    save_model(models / "ours", replace(GPT2, bias=True), CharTokenizer(CHARS))
    export.main(["--out_dir=ours", "--to=hf"])
    plots = []
    for source in ("--out_dir=ours", "--init_from=hf"):
        visualize.main(["logit_lens", source, "--text=o menino", "--to=x.svg"])
        plots.append(re.sub("<dc:date>.*", "", Path("x.svg").read_text(encoding="utf-8")))
    assert plots[0] == plots[1]


@pytest.mark.parametrize(
    "argv, named",
    [
        (["logit_lens", "chars", "--text=FILE:none.txt"], ["cannot read none.txt"]),
        (["logit_lens", "chars", "--text=FILE:empty.txt"], ["empty.txt is empty"]),
        (["logit_lens", "chars", "--text=FILE:latin.txt"], ["latin.txt is not UTF-8 (offset 1)"]),
        (["logit_lens", "chars", "--text=a\udcc3"], ["--text ", "UTF-8", "--text=FILE:path"]),
        (["surprisal", "chars", "--text=a9"], ["--text", "'9' (U+0039)"]),
        (["surprisal", "chars", "--text=a"], ["--text has one token"]),
        (["heads", "chars", "--text=a"], ["--text has one token"]),
        (["attention", "chars", "--text=a", "--layer=3"], ["layer=3", "0 to 2"]),
        (["attention", "chars", "--text=a", "--head=-1"], ["head=-1", "0 to 3"]),
        (["attention", "--text=a"], ["out"]),
        (["logit_lens", "nowhere", "--text=a"], ["nowhere"]),
        (["logit_lens", "--init_from=nowhere", "--text=a"], ["nowhere"]),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, list) else None,
)
def test_an_unusable_model_or_text_ends_in_one_message(models, refused, argv, named):
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("não".encode("latin1"))
    message = refused(visualize.main, *argv)
    assert all(words in message for words in named), message
    assert list(Path().rglob("*.png")) == list(Path().rglob("*.tmp")) == []


@pytest.mark.parametrize(
    "argv, named",
    [
        (["attention"], ["text= ", "--text=FILE:path"]),
        (["logit_lens", "--text="], ["text= ", "--text=FILE:path"]),
        (["next", "--text=FILE:"], ["text= ", "--text=FILE:path"]),
        (["logit_lens", "--text=a", "--to=x.pdf"], ["to=x.pdf ", ".png or .svg"]),
        (["next", "--text=a", "--temperature=hot"], ["temperature=", "hot", "numbers"]),
        (["next", "--text=a", *["--temperature=1"] * 5], ["temperature= ", "1 to 4 times"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_invalid_option_ends_in_one_message(workspace, refused, argv, named):
    message = refused(visualize.main, *argv)
    assert all(words in message for words in named), message
