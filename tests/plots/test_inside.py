"""What pictures of a model at work show: numbers against independent references, and the commands that draw them."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import export
import visualize
from model import GPT, ModelConfig
from seugpt.checkpoint import storage as checkpoint
from seugpt.data.tokenizer import CharTokenizer, bpe_tokenizer
from seugpt.generation.decoder import Sampling, next_token
from seugpt.plots import inside
from seugpt.plots.predictions import COLUMNS, lay_out
from seugpt.plots.style import labels, quoted
from tests.helpers import perturbed_gpt

SMALL = ModelConfig(block_size=12, vocab_size=20, n_layer=3, n_head=4, n_embd=32)
LLAMA = replace(
    SMALL,
    n_kv_head=2,
    position="rope",
    norm="rmsnorm",
    mlp="swiglu",
    qk_norm=True,
    tie_embeddings=False,
)
ARCHITECTURES = [SMALL, replace(SMALL, bias=True, n_kv_head=1, logit_softcap=3.0), LLAMA]
NAMES = ["learned", "MQA with biases and a cap", "rope, GQA, qk_norm"]


def text(length, vocab_size=20, seed=1):
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def hooks(model):
    return [
        hook
        for module in model.modules()
        for hook in (module._forward_pre_hooks or module._forward_hooks)
    ]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=NAMES)
def test_the_weights_make_the_blocks_own_output(config):
    model, idx, heard = perturbed_gpt(config, std=0.3), torch.stack((text(9), text(9, seed=2))), []
    handles = [
        block.attn.register_forward_hook(
            lambda attn, inputs, output: heard.append((attn, *inputs[:2], output))
        )
        for block in model.h
    ]
    weights = inside.attention(model, idx)
    for handle in handles:
        handle.remove()
    assert len(weights) == len(heard) == config.n_layer
    for w, (attn, x, turn, output) in zip(weights, heard, strict=True):
        v = attn.qkv(x, turn)[2]  # (B, nkv, T, hs)
        v = torch.stack(
            [v[:, head * config.kv_heads // config.n_head] for head in range(config.n_head)], dim=1
        )
        made = attn.c_proj((w @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(made, output)
        torch.testing.assert_close(w.sum(dim=-1), torch.ones(2, config.n_head, 9))
        assert (w.triu(1) == 0).all() and w.max(dim=-1).values[:, :, 1:].min() < 0.9


def test_the_weights_are_the_softmax_of_the_products():
    """In NumPy, from the parameters alone."""
    model, ids = perturbed_gpt(SMALL, std=0.3), text(7)
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    x = state["wte.weight"][ids] + state["wpe.weight"][:7]
    x = (
        (x - x.mean(-1, keepdims=True))
        / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        * state["h.0.ln_1.weight"]
    )
    q, k = (x @ state["h.0.attn.c_attn.weight"][part : part + 32].T for part in (0, 32))
    for head in range(4):
        scores = q[:, head * 8 : head * 8 + 8] @ k[:, head * 8 : head * 8 + 8].T / math.sqrt(8)
        weights = np.exp(scores) * np.tril(np.ones((7, 7)))
        expected = weights / weights.sum(-1, keepdims=True)
        assert inside.attention(model, ids[None])[0][0, head].numpy() == pytest.approx(
            expected, abs=1e-4
        )


def test_a_summary_is_what_remains_of_each_layer():
    found = inside.attention(
        perturbed_gpt(SMALL, std=0.3), text(9)[None], lambda weights: weights.shape
    )
    assert found == [(1, 4, 9, 9)] * 3


def test_no_hook_stays():
    model = perturbed_gpt(SMALL, std=0.3)
    (
        inside.attention(model, text(9)[None]),
        inside.lens(model, 20, text(9)),
        inside.surprise(model, text(30)),
    )
    with pytest.raises(ValueError, match="do not fit"):
        inside.attention(model, text(13)[None])
    assert hooks(model) == []
    with inside.listening([model.h[0]], lambda module, inputs: None):
        assert len(hooks(model)) == 1


@pytest.mark.parametrize("config", ARCHITECTURES, ids=NAMES)
def test_the_lens_is_a_model_that_ends_there(config):
    """After n layers: what the model of the first n blocks says, of which the last is the model itself."""
    whole, ids, N = perturbed_gpt(config, std=0.3), text(9), 17  # three tokens are padding
    probabilities, likeliest = inside.lens(whole, N, ids)
    assert probabilities.shape == likeliest.shape == (config.n_layer + 1, 9)
    for n in range(1, config.n_layer + 1):
        first = GPT(replace(config, n_layer=n)).eval()
        first.load_state_dict(whole.state_dict(), strict=False)
        with torch.no_grad():
            says = first(ids[None], ids[None])[0][0, :, :N].softmax(dim=-1)
        torch.testing.assert_close(probabilities[n], says.max(dim=-1).values)
        assert likeliest[n].tolist() == says.argmax(dim=-1).tolist()
    with torch.no_grad():
        positions = 0 if whole.wpe is None else whole.wpe.weight[:9]
        logits = whole.lm_head(whole.ln_f(whole.wte.weight[ids] + positions))[:, :N]
    assert likeliest[0].tolist() == logits.argmax(dim=-1).tolist()
    assert inside.last_logits(whole, N, ids).argmax() == likeliest[-1, -1]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=NAMES)
def test_surprise_is_the_loss_in_bits(config):
    model, ids = perturbed_gpt(config, std=0.3), text(13)
    bits = inside.surprise(model, ids)
    assert math.isnan(bits[0]) and len(bits) == 13
    loss = model(ids[None, :-1], ids[None, 1:])[1].item()
    assert bits[1:].mean().item() == pytest.approx(loss / math.log(2), rel=1e-5)


@pytest.mark.parametrize("length", [2, 12, 13, 14, 19, 20, 50])
def test_in_a_long_text_each_token_has_half_a_context_before_it(length):
    model, ids = perturbed_gpt(SMALL, std=0.3), text(length)
    bits = inside.surprise(model, ids)
    assert len(bits) == length
    for t in range(1, length):
        lengths = range(min(t, 6), min(t, 12) + 1)
        with torch.no_grad():
            alone = [
                -model(ids[None, t - n : t])[0][0, -1].log_softmax(-1)[ids[t]] / math.log(2)
                for n in lengths
            ]
        assert min(abs(bits[t] - other) for other in alone) < 1e-4
        if t <= 12:
            assert bits[t] == pytest.approx(alone[-1].item(), abs=1e-4)


def test_surprise_of_a_model_that_sees_one_token():
    model, ids = perturbed_gpt(replace(SMALL, block_size=1), std=0.3), text(5)
    assert inside.surprise(model, ids).isfinite().sum() == 4


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, None), Sampling(0.5, 7), Sampling(2.0, None, 0.8), Sampling(0.0), Sampling(1.0, 1),
        Sampling(0.7, 5, 0.9),
    ],
    ids=str,
)  # fmt: skip
def test_probabilities_are_those_of_the_draws(sampling):
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(3))
    scaled = logits.double().numpy() / max(sampling.temperature, 1e-3)
    order = np.argsort(-scaled)[: sampling.top_k or None]
    expected = np.zeros(20)
    expected[order] = np.exp(scaled[order] - scaled.max())
    expected /= expected.sum()
    sorted_sums = np.cumsum(expected[order]) - expected[order]
    expected[order[sorted_sums >= sampling.top_p]] = 0
    expected /= expected.sum()
    assert inside.probabilities(logits, sampling).numpy() == pytest.approx(expected, abs=1e-5)
    counts = inside.draws(logits, sampling, 20_000, torch.Generator().manual_seed(4)).numpy()
    assert counts.sum() == 20_000 and (counts[expected == 0] == 0).all()
    assert np.abs(counts - 20_000 * expected).max() < 5 * math.sqrt(20_000 / 4)


def test_draws_are_next_tokens_in_parts(monkeypatch):
    """A vocabulary of 50,257 times a thousand draws would be 200 MB, so they are drawn in parts."""
    seen = []
    monkeypatch.setattr(
        inside,
        "next_token",
        lambda logits, *rest: seen.append(logits.shape) or next_token(logits, *rest),
    )
    counts = inside.draws(torch.zeros(2**20), Sampling(), 10, torch.Generator())
    assert counts.sum() == 10 and seen == [(4, 2**20), (4, 2**20), (2, 2**20)]


def slow_goals(ids, blank):
    """{name: [(i, j), ...]}, in words of one token at a time."""
    T, found = len(ids), {}
    for i in range(T):
        for j in range(i + 1):
            named = {
                "itself": i == j,
                "the one before": i - j == 1,
                "the first token": j == 0 and i > 0,
            }
            named |= {f"{d} back": i - j == d for d in (2, 3, 4)} | {"5 to 8 back": 5 <= i - j <= 8}
            named |= {f"9 to {T - 1} back": i - j >= 9}
            named |= {"the last white space": j < i and blank[j] and not any(blank[j + 1 : i])}
            named |= {
                "the same token": j < i and ids[j] == ids[i],
                "what came after it": j > 0 and ids[j - 1] == ids[i],
            }
            for name, there in named.items():
                found.setdefault(name, [])
                found[name] += [(i, j)] if there else []
    return found


def test_what_heads_look_at_is_what_the_names_say():
    ids, blank = text(12, 4), text(12, 3, seed=5) == 0
    names, masks = inside.goals(ids[None], blank[None])
    assert {
        n: sorted(map(tuple, m.nonzero().tolist())) for n, m in zip(names, masks[0], strict=True)
    } == {name: sorted(pairs) for name, pairs in slow_goals(ids.tolist(), blank.tolist()).items()}


def test_distances_leave_nothing_out():
    for T in (*range(1, 40), 1024):
        covered = [d for first, last in inside.distances(T) for d in range(first, last + 1)]
        assert covered == list(range(T))
        assert (
            len(inside.goals(text(T)[None], text(T)[None] == 0)[0]) == len(inside.distances(T)) + 4
        )


def test_habits_are_the_mean_over_the_tokens_that_have_such_a_place():
    model, ids, blank = perturbed_gpt(LLAMA, std=0.3), text(41, 5), text(41, 4, seed=6) == 0
    names, shares, even = inside.habits(model, ids, blank)
    sums, evens, counts = {}, {}, {}
    for start in (0, 12, 24):  # windows of block_size=12; the rest is too short for one
        weights = inside.attention(model, ids[None, start : start + 12])
        pairs = slow_goals(ids[start : start + 12].tolist(), blank[start : start + 12].tolist())
        for name, places in pairs.items():
            sums[name] = sums.get(name, 0) + sum(
                torch.stack([w[0, :, i, j] for w in weights]) for i, j in places
            )
            evens[name] = evens.get(name, 0) + sum(1 / (i + 1) for i, _ in places)
            counts[name] = counts.get(name, 0) + len({i for i, _ in places})
    assert set(names) == set(sums) and shares.shape == (3, 4, len(names))
    for column, name in enumerate(names):
        torch.testing.assert_close(shares[..., column].float(), sums[name] / counts[name])
        assert even[column].item() == pytest.approx(evens[name] / counts[name])
    distances = sum(
        shares[..., names.index(name)] * counts[name] for name in names if name not in inside.OTHERS
    )
    torch.testing.assert_close(
        distances, torch.full((3, 4), 36.0).double()
    )  # each token's shares add up to 1


def test_what_a_text_has_not_has_no_column():
    names, shares, _ = inside.habits(
        perturbed_gpt(SMALL, std=0.3), torch.arange(12), torch.zeros(12, dtype=torch.bool)
    )
    assert (
        not {"the last white space", "the same token", "what came after it"} & set(names)
        and shares.isfinite().all()
    )


def test_lines_end_where_the_text_says_so():
    tokens = [b"a", b"\n", b"b", b"\n\n", b"c"]
    assert lay_out(tokens, ["a", "↵", "b", "↵↵", "c"]) == [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0)]


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_lines_end_between_words(cut):
    words = " ".join("palavra" if n % 3 else "é" for n in range(60))
    tokens = [words[i : i + cut].encode() for i in range(0, len(words), cut)]
    texts = [token.decode() for token in tokens]
    places, lines = lay_out(tokens, texts), {}
    assert (
        max(column + len(text) for (_, column), text in zip(places, texts, strict=True)) <= COLUMNS
    )
    for (line, column), text in zip(places, texts, strict=True):
        lines[line] = lines.get(line, "") + text
        assert len(lines[line]) == column + len(
            text
        )  # nothing lies on another, and there is no hole
    assert "".join(lines.values()) == words and len(lines) > 3
    if cut == 1:
        assert all(line.endswith(" ") for line in list(lines.values())[:-1])


def test_a_word_longer_than_a_line_is_cut():
    assert lay_out([b"x"] * (COLUMNS + 1), ["x"] * (COLUMNS + 1))[-2:] == [(0, COLUMNS - 1), (1, 0)]
    assert lay_out([b"x" * 200, b"y"], ["x" * COLUMNS, "y"]) == [(0, 0), (1, 0)]


def test_labels_and_quotes_keep_their_length():
    tokenizer = bpe_tokenizer([bytes([n]) for n in range(256)] + [b" the", b"abcdefgh"])
    assert labels(tokenizer, torch.tensor([10, 256, 257]), longest=6) == ["↵", "␣the", "abcde…"]
    assert (
        quoted(["␣the", "↵", "x" * 9], 7) == "“ the↵x…”"
        and quoted(["abc", "def"], 4, end=True) == "“…def”"
    )


CHARS = "\n !$\\^_{}abcdefghijklmnopqrstuvwxyzáçãé🦜"
BPE = bpe_tokenizer([bytes([n]) for n in range(256)] + [b" o", b" menino", b"\n\n", "ção".encode()])


def save(folder, config, tokenizer):
    Path(folder).mkdir()
    model = perturbed_gpt(replace(config, vocab_size=tokenizer.vocab_size + 3), std=0.3)  # padded
    content = {"model": model.state_dict(), "model_config": vars(model.config), "train_config": {}}
    checkpoint.save(
        f"{folder}/best.pt", content | {"tokenizer": tokenizer.spec(), "step": 1, "val_loss": 2.0}
    )


@pytest.fixture
def models(workspace):
    save("chars", SMALL, CharTokenizer(CHARS))
    save("bpe", LLAMA, BPE)
    save("one", replace(SMALL, n_layer=1, n_head=1, block_size=1), CharTokenizer("ab"))
    Path("long.txt").write_text(
        "o menino não é $x_{1}^\\frac$; \n\n🦜 ação\n" * 40, encoding="utf-8"
    )
    Path("chars.txt").write_text("o $x_{a}^\\frac$ menino e \n\n🦜 maçã\n" * 40, encoding="utf-8")
    return workspace


@pytest.mark.parametrize(
    "argv, name",
    [
        (["attention", "chars", "--text=o menino"], "chars/attention.png"),
        (["attention", "bpe", "--text=FILE:long.txt", "--layer=1"], "bpe/attention.png"),
        (["attention", "bpe", "--text=o $menino", "--head=3", "--to=x.svg"], "x.svg"),
        (["attention", "chars/best.pt", "--text=o menino", "--head=0", "--layer=2"], "chars/attention.png"),
        (["heads", "chars", "--text=FILE:chars.txt"], "chars/heads.png"),
        (["heads", "bpe", "--text=FILE:long.txt", "--to=x.svg"], "x.svg"),
        (["next", "chars", "--text=o men"], "chars/next.png"),
        (["next", "bpe", "--text=FILE:long.txt", "--temperature=0", "--top_k=3", "--bars=1", "--to=x.svg"], "x.svg"),
        (["next", "bpe", "--text=🦜", "--bars=99", "--temperature=1", "--temperature=9", "--top_p=.5"], "bpe/next.png"),
        (["surprise", "chars", "--text=FILE:chars.txt"], "chars/surprise.png"),
        (["surprise", "bpe", "--text=FILE:long.txt", "--to=x.svg"], "x.svg"),
        (["lens", "chars", "--text=FILE:chars.txt"], "chars/lens.png"),
        (["lens", "bpe", "--text=o", "--to=x.svg"], "x.svg"),
        (["attention", "one", "--text=ab"], "one/attention.png"), (["lens", "one", "--text=a"], "one/lens.png"),
        (["next", "one", "--text=a"], "one/next.png"), (["surprise", "one", "--text=ab"], "one/surprise.png"),
        (["heads", "one", "--text=ab"], "one/heads.png"),
    ],
)  # fmt: skip
def test_each_command_draws(models, capsys, recwarn, argv, name):
    visualize.main(argv)
    assert capsys.readouterr().out == f"written: {Path(name)}\n"
    assert Path(name).read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []


def test_a_folder_of_hugging_face_is_looked_into(models):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    save("ours", replace(SMALL, bias=True), CharTokenizer(CHARS))
    export.main(["--out_dir=ours", "--to=hf"])
    for source in ("ours", "hf"):
        visualize.main(["lens", source, "--text=o menino", f"--to={source}.svg"])
    first, second = (
        re.sub("<dc:date>.*", "", Path(f"{source}.svg").read_text()) for source in ("ours", "hf")
    )
    assert first == second


@pytest.mark.parametrize(
    "argv, words",
    [
        (["attention", "chars"], "text= is missing"), (["lens", "chars", "--text="], "text= is missing"),
        (["next", "chars", "--text=FILE:"], "--text=FILE:path"),
        (["lens", "chars", "--text=FILE:none.txt"], "cannot read none.txt"),
        (["lens", "chars", "--text=FILE:empty.txt"], "empty.txt is empty"),
        (["lens", "chars", "--text=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
        (["lens", "chars", "--text=a\udcc3"], "the text is not UTF-8; write it into a file and use --text=FILE:path"),
        (["surprise", "chars", "--text=a9"], "the text has what the model never saw in training"),
        (["surprise", "chars", "--text=a"], "text= has one token"),
        (["heads", "chars", "--text=a"], "text= has one token"),
        (["attention", "chars", "--text=a", "--layer=3"], "layer=3 is not there: the model's layers are 0 to 2"),
        (["attention", "chars", "--text=a", "--head=-1"], "head=-1 is not there: the model's heads are 0 to 3"),
        (["attention", "--text=a"], "out is missing"), (["lens", "nowhere", "--text=a"], "nowhere"),
        (["lens", "chars", "--text=a", "--to=x.pdf"], "to=x.pdf must end in .png or .svg"),
        (["next", "chars", "--text=a", "--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["next", "chars", "--text=a", "--temperature=hot"], "temperature=['hot'] expects one or more numbers"),
        (["next", "chars", "--text=a", *["--temperature=1"] * 5], "temperature= may be given 1 to 4 times"),
        (["next", "chars", "--text=a", "--bars=0"], "bars=0 must be 1 to 100"),
        (["next", "chars", "--text=a", "--samples=1e9"], "samples=1000000000 must be 1 to 1000000"),
        (["next", "chars", "--text=a", "--top_p=0"], "top_p=0.0 must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_message(models, refused, argv, words):
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("não".encode("latin1"))
    assert words in refused(visualize.main, *argv)
    assert not list(Path().rglob("*.png")) and not list(Path().rglob("*.tmp"))
