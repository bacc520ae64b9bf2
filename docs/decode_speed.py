"""Tokens per second of generation, nanoGPT and seuGPT in turn, with nanoGPT's own trained model in both.

    python docs/decode_speed.py PATH_TO_NANOGPT PATH_TO_NANOGPT/out-shakespeare-char/ckpt.pt [OUT_DIR ...]

500 tokens after one newline, at temperature 0.8, one sequence and ten; nanoGPT draws one at a time. Five rounds: the
medians, and the median of the rounds' ratios. Further folders are models of ours beside the same model of nanoGPT's.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import weights
from generation import Decoder, Sampling, generate

TOKENS, ROUNDS = 500, 5


def load_nanogpt(folder, path):
    """nanoGPT's own model, by its own code. Its module is called model, as ours is."""
    ours = sys.modules.pop("model")
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    sys.path.remove(folder)
    sys.modules["model"] = ours
    content = torch.load(path, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**content["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()})
    return model.eval()


@torch.no_grad()
def nanogpt_speed(model):
    start = time.perf_counter()
    model.generate(torch.zeros(1, 1, dtype=torch.long), TOKENS, temperature=0.8, top_k=200)
    return TOKENS / (time.perf_counter() - start)


def our_speed(decoder, batch_size, vocab_size):
    start = time.perf_counter()
    for row in generate(decoder, [[0]] * batch_size, TOKENS, vocab_size, Sampling()):
        row.tolist()  # as a terminal needs each token at once
    return batch_size * TOKENS / (time.perf_counter() - start)


if __name__ == "__main__":
    nanogpt = load_nanogpt(*sys.argv[1:3])
    for folder in sys.argv[2:]:
        model = weights.build(weights.load(folder))[0].eval()
        for compiled in (False, True):
            for batch_size in (1, 10):
                decoder = Decoder(model, batch_size, model.config.block_size, compiled)
                our_speed(decoder, batch_size, model.config.vocab_size)
                rounds = [
                    (nanogpt_speed(nanogpt), our_speed(decoder, batch_size, model.config.vocab_size))
                    for _ in range(ROUNDS)
                ]
                theirs, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
                ratio = statistics.median(b / a for a, b in rounds)
                print(
                    f"{folder}, compile={compiled}, {batch_size} at once: nanoGPT {theirs:,.0f}, seuGPT {ours:,.0f} "
                    f"tokens/s, {ratio:.2f}x",
                    flush=True,
                )
