"""Let a trained model write.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:"
    python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt --num_samples=1
    python sample.py --init_from=gpt2 --interactive

The tokenizer comes out of the checkpoint, so that nothing else is needed beside it (GPT-2's is tiktoken's to fetch).
"""

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from model import pick_device, pick_dtype
from seugpt.checkpoint import pretrained as weights
from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.cli.values import in_utf8
from seugpt.data.text import given_text, is_utf8
from seugpt.data.tokenizer import prompt_ids
from seugpt.errors import DataError
from seugpt.generation.decoder import Decoder, Sampling, TextStream, generate
from seugpt.training.memory import memory_guard

DEFAULT_START = ("\n",)
MOST_SAMPLES = 1_000_000  # beyond, the texts alone take gigabytes, before torch is asked whether it has the memory


@dataclass(frozen=True)
class SampleConfig:
    init_from: Annotated[
        str,
        "resume: the checkpoint in out_dir; or a checkpoint, its folder, a Hugging Face folder, or gpt2 to gpt2-xl",
    ] = "resume"
    out_dir: Annotated[str, "folder of a training run: best.pt, else latest.pt, is taken"] = "out"
    start: Annotated[
        tuple[str, ...],
        "text to go on from, or FILE:path of a UTF-8 file; may be given several times",
    ] = DEFAULT_START
    interactive: Annotated[
        bool, "a conversation: type, and the model goes on; Ctrl-C stops the reply"
    ] = False
    num_samples: Annotated[int, "samples to draw from each start, all in one batch"] = 10
    max_new_tokens: Annotated[int, "tokens in each sample"] = 500
    stop: Annotated[
        tuple[str, ...], "end a sample before this text; may be given several times"
    ] = ()
    seed: Annotated[int, "the same seed gives the same samples on the same machine"] = 1337
    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "number format of the weights"
    ] = "auto"
    compile: Annotated[
        bool, "compile the step of one token, on CUDA as a graph: pays for long samples"
    ] = False

    def __post_init__(self):
        problems = [
            f"{name}={getattr(self, name)} must be at least 1"
            for name in ("num_samples", "max_new_tokens")
            if getattr(self, name) < 1
        ]
        if self.num_samples > MOST_SAMPLES:
            problems.append(
                f"num_samples={self.num_samples} must be at most {MOST_SAMPLES}; they are drawn at once"
            )
        problems += [
            f"{name}= is empty" for name in ("init_from", "out_dir") if not getattr(self, name)
        ]
        if not -(2**63) <= self.seed < 2**63:
            problems.append(f"seed={self.seed} must lie between -2**63 and 2**63")
        if not all(is_utf8(in_utf8(stop)) for stop in self.stop):
            problems.append("stop= is not UTF-8 in this locale")
        if self.interactive and len(self.start) > 1:
            problems.append("start= is given several times; a conversation begins with one text")
        if "FILE:" in self.start:
            problems.append("start=FILE: names no file; write start=FILE:path")
        if not all(self.start):
            problems.append("start= is empty; a model needs at least one character to go on from")
        if "" in self.stop:
            problems.append("stop= is empty: every text contains it")
        if problems:
            raise ValueError("\n".join(problems))


class Writer:
    """A model, its tokenizer and its dice."""

    def __init__(self, options, sampling):
        """Loads what the options name. Raises CheckpointError, DataError, DeviceError."""
        self.options, self.sampling = options, sampling
        source = options.out_dir if options.init_from == "resume" else options.init_from
        self.device = pick_device(options.device)
        self.model, self.tokenizer, self.about = weights.to_speak(source)
        self.model.to(self.device, pick_dtype(options.dtype, self.device))
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for float32 products
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.decoder = None

    def encode(self, text):
        """The ids of a prompt. Raises DataError that names characters which the model does not know."""
        return prompt_ids(self.tokenizer, text, "start")

    def write(self, prompts, show):
        """Go on from each prompt's ids; show(row, text) gets each piece of a row's text as soon as it is sure.

        Returns the number of tokens that were drawn.
        """
        options = self.options
        if self.decoder is None:  # a conversation has the same one at every turn
            length = max(map(len, prompts)) + options.max_new_tokens
            length = self.model.config.block_size if options.interactive else length
            self.decoder = Decoder(self.model, len(prompts), length, options.compile)
            if self.decoder.failure:
                print(
                    f"torch.compile failed, so the model runs uncompiled: {self.decoder.failure}",
                    file=sys.stderr,
                )
        tokens = generate(
            self.decoder,
            prompts,
            options.max_new_tokens,
            self.tokenizer.vocab_size,
            self.sampling,
            self.generator,
        )
        streams = [TextStream(self.tokenizer, tuple(map(in_utf8, options.stop))) for _ in prompts]
        # A GPU works ahead of Python. To ask it for every token would make it wait, so it is asked for 16 at a time.
        at_once = 1 if self.device.type == "cpu" else 16
        waiting = []
        for count, row in enumerate(tokens, start=1):
            waiting.append(row)
            if len(waiting) == at_once or count == options.max_new_tokens:
                for number, ids in enumerate(
                    torch.stack(waiting).tolist(), start=count - len(waiting) + 1
                ):
                    for i, token in enumerate(ids):
                        show(i, streams[i].feed(token, last=number == options.max_new_tokens))
                waiting = []
            if all(stream.finished for stream in streams):
                break
        return count * len(prompts)


def sample(writer, options):
    """Print the samples: the first one while it is being written, the others, from the same batch, after it."""
    starts = [
        given_text(start, "start") for start in options.start for _ in range(options.num_samples)
    ]
    prompts = {start: writer.encode(start) for start in dict.fromkeys(starts)}
    texts = ["" for _ in starts]

    def show(row, text):
        texts[row] += text
        if row == 0:
            print(text, end="", flush=True)

    print("\n".join(writer.about), file=sys.stderr, flush=True)
    print(starts[0], end="", flush=True)
    began = time.perf_counter()
    tokens = writer.write([prompts[start] for start in starts], show)
    seconds = time.perf_counter() - began
    print("\n---------------")
    for start, text in list(zip(starts, texts, strict=True))[1:]:
        print(f"{start}{text}\n---------------")
    sys.stdout.flush()
    print(
        f"{tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s", file=sys.stderr
    )


def converse(writer, text):
    """Read lines and let the model go on from all that was said so far."""
    with contextlib.suppress(
        ImportError
    ):  # there is none on Windows, where the console itself remembers lines
        import readline  # noqa: F401, arrow keys bring back earlier lines
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    print("\n".join(writer.about), file=sys.stderr, flush=True)
    print(
        "Type, and the model goes on. /new forgets what was said; Ctrl-C stops a reply, Ctrl-D or /quit leaves."
    )
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit leaves.")
            continue
        except EOFError:
            break
        if line in ("/quit", "/new"):
            text = ""
            if line == "/quit":
                break
            continue
        longer = f"{text}\n{line}" if text and line else text or line  # an empty line: go on
        if not longer:
            continue
        try:
            prompt = writer.encode(longer)
        except DataError as error:
            print(error)
            continue
        reply = []

        def show(row, piece, reply=reply):
            reply.append(piece)
            print(piece, end="", flush=True)

        with contextlib.suppress(KeyboardInterrupt):
            writer.write([prompt], show)
        print()
        text = longer + "".join(reply)


def main(argv=None):
    with command():
        sampling, options = Options(argv, Sampling, SampleConfig, description=__doc__).build()
        with memory_guard(
            f"fewer samples at a time, as in --num_samples={max(options.num_samples // 2, 1)}"
        ):
            writer = Writer(options, sampling)
            if options.interactive:
                converse(
                    writer,
                    "" if options.start == DEFAULT_START else given_text(options.start[0], "start"),
                )
            else:
                sample(writer, options)


if __name__ == "__main__":
    main()
