"""Measure how cost grows with the model and its context, beside nanoGPT and transformers.

    python docs/tools/growth.py PATH_TO_NANOGPT

Appends the results of some 40 calls of bench.py to docs/speed/growth.jsonl (20 minutes on two CPU
cores); docs/tools/speed_tables.py makes the table and the plot of docs/SPEED.md from them.
"""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "speed" / "growth.jsonl"
TOKENS_PER_STEP = 2048
SMALL = "--steps=5 --rounds=3"
LARGE = "--steps=1 --rounds=2"
SIZES = (  # GPT-2's architecture; how to time steps; contexts; those that are decoded to their end
    ("--n_layer=2 --n_head=2 --n_embd=64", SMALL, (64, 256, 1024, 2048), (64, 256, 1024)),
    ("--n_layer=4 --n_head=4 --n_embd=128", SMALL, (64, 256, 1024, 2048), (64, 256, 1024)),
    ("--n_layer=6 --n_head=6 --n_embd=384", SMALL, (64, 256, 1024, 2048), (64, 256)),
    ("--n_layer=12 --n_head=12 --n_embd=768 --vocab_size=50304", LARGE, (256, 1024), (64,)),
)
SAME = (
    "--dataset=shakespeare_char --device=cpu --compile=False --gradient_accumulation_steps=1 "
    "--bias=False --dropout=0.0"
)


def commands():
    """The arguments of each call of bench.py, without the baseline."""
    for shape, rounds, contexts, decoded in SIZES:
        for context in contexts:
            batch_size = TOKENS_PER_STEP // context
            yield f"step {SAME} {shape} --block_size={context} --batch_size={batch_size} {rounds}"
        for context in decoded:
            run = f"{SAME} {shape} --block_size={context}"
            yield f"decode {run} --rows=1 --tokens={context - 1} --rounds=1"
    # The slope of memory over tokens, from which follows what fits.
    yield f"step {SAME} {shape} --block_size=1024 --batch_size=4 {rounds}"


def main(nanogpt):
    for line in commands():
        for baseline in (nanogpt, "transformers"):
            words = [*shlex.split(line), f"--baseline={baseline}", f"--results={RESULTS}"]
            print(f"== {line} --baseline={Path(baseline).name}", flush=True)
            subprocess.run([sys.executable, ROOT / "bench.py", *words], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
