"""What temperature, top-k, top-p and min-p leave of a distribution, and a text in bits (page 7).

    python docs/tools/sampling.py

data/machado_char must be prepared: the lengths of lines and words are those of its whole text.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seugpt.data.dataset import Dataset  # noqa: E402
from seugpt.data.tokenizer import decode  # noqa: E402
from seugpt.generation.sampling import SamplingParams  # noqa: E402
from seugpt.plots.internals import (  # noqa: E402
    load_model_and_text,
    next_token_logits,
    sampling_probs,
    surprisal,
)

RUN = str(ROOT / "docs" / "data" / "out-gptlab-10000")
TEXT = f"FILE:{ROOT / 'docs' / 'data' / 'janela.txt'}"
TEMPERATURES = (0.5, 1.0, 1.5)
CUTS = {
    "all tokens": {},
    "top_k=5": {"top_k": 5},
    "top_p=0.8": {"top_p": 0.8},
    "min_p=0.1": {"min_p": 0.1},
}


def params(temperature, top_k=None, top_p=1.0, min_p=0.0):
    return SamplingParams(temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def print_next(prompt):
    """The likeliest letters after a prompt, and how many tokens each way of cutting keeps."""
    model, tokenizer, ids = load_model_and_text(RUN, prompt)
    logits = next_token_logits(model, tokenizer.vocab_size, ids)
    order = logits.argsort(descending=True)[:4].tolist()
    letters = "".join(f"{decode(tokenizer, [i])!r:>8}" for i in order)
    print(f"after {prompt!r}: the four likeliest letters\n                {letters}")
    for t in TEMPERATURES:
        probs = sampling_probs(logits, params(t))
        print(f"temperature {t:<4}" + "".join(f"{probs[i]:8.1%}" for i in order))
    print("kept at temperature 1.5")
    for name, cut in CUTS.items():
        kept = int((sampling_probs(logits, params(1.5, **cut)) > 0).sum())
        print(f"{name:12} {kept:4} tokens")
    print()


@torch.no_grad()
def print_tail(model, tokenizer, ids):
    """The probability of all tokens together that have less than 1% each at temperature 1."""
    shares = dict.fromkeys(TEMPERATURES, 0.0)
    count = len(ids) - 1
    for end in range(1, count + 1):
        logits = next_token_logits(model, tokenizer.vocab_size, ids[:end])
        tail = logits.softmax(dim=-1) < 0.01
        for t in TEMPERATURES:
            shares[t] += sampling_probs(logits, params(t))[tail].sum().item() / count
    print("tokens of less than 1% each, all together, on average over janela.txt")
    for t, share in shares.items():
        print(f"temperature {t:<4} {share:6.1%}, once in {1 / share:.0f} characters")
    print()


def print_corpus():
    dataset = Dataset(ROOT / "data" / "machado_char")
    splits = [dataset.ids[split][: dataset.tokens[split]] for split in ("train", "val")]
    text = decode(dataset.tokenizer, np.concatenate(splits).tolist())
    lines = text.split("\n")[:-1]
    print(f"the stories: {len(text):,} characters, {len(lines):,} lines, {lines.count('')} blank")
    print(f"100 characters are {100 * len(text.split()) / len(text):.0f} words\n")


def print_surprisal(model, tokenizer, ids):
    text = decode(tokenizer, ids.tolist())
    bits = surprisal(model, ids).tolist()
    mean = sum(bits[1:]) / len(bits[1:])
    print(f"janela.txt: {mean:.2f} bits a letter, or {mean * math.log(2):.2f} nats")
    print(f"out-gptlab-10000: 1.68 nats on validation text, or {1.6775 / math.log(2):.2f} bits")
    print(f"a guess among 115 tokens: {math.log2(115):.2f} bits, or {math.log(115):.2f} nats")
    inside = [i for i in range(1, len(text)) if text[i].isalpha() and text[i - 1].isalpha()]
    first = [i for i in range(1, len(text)) if text[i].isalpha() and not text[i - 1].isalpha()]
    blank = [i for i in range(1, len(text)) if text[i - 1 : i + 1] == "\n\n"]
    groups = {"first letters": first, "other letters": inside, "blank lines": blank}
    for name, where in groups.items():
        group_mean = sum(bits[i] for i in where) / len(where)
        print(f"{name:13} {group_mean:5.2f} bits on average ({len(where)} of them)")
    for word in ("janela", "velas", "mar."):
        start = text.index(word)
        print("  ".join(f"{c} {bits[start + n]:.1f}" for n, c in enumerate(word)))


def main():
    for prompt in ("A moça abriu a j", "A moça "):
        print_next(prompt)
    text = load_model_and_text(RUN, TEXT)
    print_tail(*text)
    print_corpus()
    print_surprisal(*text)


if __name__ == "__main__":
    main()
