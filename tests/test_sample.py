"""Generation: what is drawn, and what reaches the terminal when."""

import math
import re

import pytest
import torch

import sample
import train
from data.tokenizer import CharTokenizer, train_bpe
from model import GPT, ModelConfig
from sample import TextStream, generate, next_token


def frequencies(logits, n=20_000, **options):
    generator = torch.Generator().manual_seed(0)
    options = {"temperature": 1.0, "top_k": None, "top_p": 1.0, **options}
    drawn = next_token(torch.tensor([logits]).float().repeat(n, 1), generator=generator, **options)
    return (torch.bincount(drawn[:, 0], minlength=len(logits)) / n).tolist()


LOGITS = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]


def test_tokens_are_drawn_as_often_as_the_model_believes():
    assert frequencies(LOGITS) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)


def test_temperature_sharpens_and_flattens_and_zero_is_greedy():
    squared = [p**2 for p in (0.5, 0.3, 0.15, 0.05)]
    assert frequencies(LOGITS, temperature=0.5) == pytest.approx([p / sum(squared) for p in squared], abs=0.02)
    assert frequencies(LOGITS, temperature=0) == [1, 0, 0, 0]
    for nearly in (1e-4, 1e-30, 1e-300):
        assert frequencies(LOGITS, temperature=nearly) == [1, 0, 0, 0]


def test_top_k_keeps_the_k_likeliest_and_0_or_a_large_k_all():
    assert frequencies(LOGITS, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert frequencies(LOGITS, top_k=1) == [1, 0, 0, 0]
    for everything in (0, None, 4, 999):
        assert frequencies(LOGITS, top_k=everything)[3] > 0


@pytest.mark.parametrize("top_p, kept", [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.94, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    shuffled = [LOGITS[i] for i in (2, 0, 3, 1)]
    drawn = frequencies(shuffled, top_p=top_p)
    assert [drawn[i] > 0 for i in (1, 3, 0, 2)] == [i < kept for i in range(4)]


def model(vocab_size=11):
    torch.manual_seed(0)
    return GPT(ModelConfig(block_size=8, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16)).eval()


def test_greedy_is_the_argmax_of_each_step_also_past_block_size():
    net = model()
    idx = torch.tensor([[1, 2, 3]])
    tokens = torch.stack(list(generate(net, idx, 20, 11, temperature=0)), dim=1)
    for _ in range(20):
        logits, _ = net(idx[:, -8:])
        idx = torch.cat((idx, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(tokens, idx[:, 3:])


def test_a_batch_is_the_same_as_one_at_a_time_when_greedy():
    idx = torch.randint(11, (4, 5))
    batch = torch.stack(list(generate(model(), idx, 10, 11, temperature=0)), dim=1)
    alone = [torch.stack(list(generate(model(), row[None], 10, 11, temperature=0)), dim=1) for row in idx]
    assert torch.equal(batch, torch.cat(alone))


def test_a_prompt_longer_than_the_context_is_its_end():
    idx = torch.randint(11, (1, 30))
    whole, end = (list(generate(model(), part, 5, 11, temperature=0)) for part in (idx, idx[:, -8:]))
    assert whole == end


def test_padding_of_the_vocabulary_is_never_drawn():
    tokens = torch.cat(list(generate(model(64), torch.zeros(50, 1, dtype=torch.long), 10, 5)))
    assert set(tokens.tolist()) == set(range(5))


def test_the_same_seed_gives_the_same_samples():
    def draw(seed):
        return torch.cat(list(generate(model(), torch.zeros(3, 1, dtype=torch.long), 20, 11,
                                       generator=torch.Generator().manual_seed(seed)))).tolist()  # fmt: skip

    assert draw(1) == draw(1) != draw(2)


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


@pytest.fixture
def trained(tiny, run):
    train.main(run(max_iters=30, lr_decay_iters=30))
    return tiny


def spoken(capsys, *argv):
    capsys.readouterr()
    sample.main(["--device=cpu", "--max_new_tokens=40", *argv])
    return capsys.readouterr().out


def test_samples_come_from_out_dir_with_the_tokenizer_of_the_checkpoint(trained, capsys):
    for path in (trained / "data").rglob("*"):
        if path.is_file():
            path.unlink()  # nothing but the checkpoint is needed
    out = spoken(capsys, "--out_dir=out", "--num_samples=3", "--start=menino")
    samples = out.split("\n---------------\n")
    assert len(samples) == 4 and samples[3] == "" and all(s.startswith("menino") and len(s) == 46 for s in samples[:3])
    assert len(set(samples[:3])) == 3
    assert spoken(capsys, "--init_from=out/latest.pt", "--num_samples=3", "--start=menino") == out
    assert spoken(capsys, "--init_from=out", "--num_samples=3", "--start=menino", "--seed=2") != out


def test_the_start_may_be_a_file(trained, capsys):
    (trained / "p.txt").write_text("maçã não", encoding="utf-8")
    assert spoken(capsys, "--start=FILE:p.txt", "--num_samples=1").startswith("maçã não")


def test_a_stop_text_in_the_command(trained, capsys):
    arguments = ["--start=o menino", "--num_samples=1", "--temperature=0"]
    written = spoken(capsys, *arguments).removeprefix("o menino").removesuffix("\n---------------\n")
    stops = written[4:6], written[7:9]
    place = min(map(written.index, stops))
    out = spoken(capsys, *arguments, *(f"--stop={stop}" for stop in stops))
    assert out == f"o menino{written[:place]}\n---------------\n"


def test_compiled_samples_are_the_same(trained, capsys):
    arguments = ["--num_samples=2", "--start=o", "--temperature=0", "--max_new_tokens=5"]
    assert spoken(capsys, *arguments, "--compile=True") == spoken(capsys, *arguments)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--start=xyz"], "never saw in training.*'x' (U+0078), 'y' (U+0079), 'z' (U+007A).*It knows:"),
        (["--start=a\udcc3"], "the start is not UTF-8"),
        (["--start="], "start= is empty"),
        (["--start=FILE:none.txt"], "cannot read none.txt"),
        (["--start=FILE:empty.txt"], "empty.txt is empty"),
        (["--start=FILE:latin.txt"], "latin.txt is not UTF-8 (offset 1)"),
        (["--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["--top_p=0"], "top_p=0.0 must be above 0 and at most 1"),
        (["--top_k=-3"], "top_k=-3 must be at least 0"),
        (["--num_samples=0"], "num_samples=0 must be at least 1"),
        (["--stop="], "stop= is empty"),
        (["--out_dir=nowhere"], "no checkpoint nowhere"),
        (["--init_from=gpt2"], "OpenAI's weights cannot be loaded yet"),
        (["--device=cuda:7"], "device=cuda:7"),
        (["--tempreature=1"], "did you mean --temperature?"),
    ],
)
def test_mistakes_are_one_message(trained, capsys, argv, words):
    (trained / "empty.txt").touch()
    (trained / "latin.txt").write_bytes("não".encode("latin1") * 2)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        sample.main(["--max_new_tokens=5", *argv])
    message = capsys.readouterr().err
    assert exit.value.code == 2 and message.count("\n") == 1
    assert re.search(".*".join(map(re.escape, words.split(".*"))), message), message
