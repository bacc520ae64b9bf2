"""Generate text with a trained model.

    python sample.py --out_dir=out-shakespeare-char --start="ROMEO:"
    python sample.py --out_dir=out-quickstart --start=FILE:prompt.txt --num_samples=1
    python sample.py --init_from=gpt2 --interactive

The tokenizer comes with the checkpoint; nothing else is needed. (GPT-2's is downloaded once by
tiktoken.)
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from model import allow_tf32, pick_compile, pick_device
from seugpt.checkpoint.pretrained import ModelSource, load_for_inference
from seugpt.cli.command import command, out_of_memory_advice
from seugpt.cli.config_parser import parse_configs
from seugpt.cli.text_option import is_utf8, read_text_option
from seugpt.cli.values import decode_argument
from seugpt.data.text import escape_control_chars
from seugpt.data.tokenizer import encode_option
from seugpt.errors import DataError
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.quantize import inference_dtype, quantize
from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import TextStream, stream_texts
from seugpt.threads import CpuThreads, ThreadsOption

SEPARATOR = "---------------"


@dataclass(frozen=True)
class SampleConfig(ModelSource):
    start: Annotated[
        tuple[str, ...], "prompt, or FILE:path; may be repeated; none: a newline", "not empty"
    ] = ()
    interactive: Annotated[bool, "chat: type, and the model continues; Ctrl-C stops a reply"] = (
        False
    )
    num_samples: Annotated[int, "samples per prompt, all in one batch", ">= 1", "<= 1000000"] = 10
    max_new_tokens: Annotated[int, "tokens per sample", ">= 1"] = 500
    stop: Annotated[
        tuple[str, ...], "end a sample before this text; may be repeated", "not empty"
    ] = ()
    ignore_eos: Annotated[bool, "go on after the model's end-of-text token"] = False
    seed: Annotated[int, "random seed", ">= -2**63", "< 2**63"] = 1337
    threads: ThreadsOption = None
    device: Annotated[str, "auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "dtype of the weights; auto on a CPU: the faster one for the model's size",
    ] = "auto"
    quantize: Annotated[
        Literal["int8"] | None, "weights in 8 bits, on a CPU: faster, and a quarter of the memory"
    ] = None
    compile: Annotated[
        bool | Literal["auto"], "compile decoding: a graph on CUDA, where it is auto's choice"
    ] = "auto"

    def __post_init__(self):
        problems = []
        if self.interactive and len(self.start) > 1:
            problems.append("start= is given several times; a chat begins with one text")
        if "FILE:" in self.start:
            problems.append("start=FILE: names no file; write start=FILE:path")
        if not all(is_utf8(decode_argument(stop)) for stop in self.stop):
            problems.append("stop= is not UTF-8 in this locale")
        if self.quantize and self.dtype not in ("auto", "bfloat16"):
            problems.append(
                f"quantize={self.quantize} computes in bfloat16, not dtype={self.dtype}"
            )
        if problems:
            raise ValueError("\n".join(problems))


class TextGenerator:
    """A model, its tokenizer and a random generator."""

    def __init__(self, config, params):
        """Loads the model. Raises CheckpointError, DataError, DeviceError."""
        self.config = config
        self.params = params
        self.device = pick_device(config.device)
        self.model, self.tokenizer, self.description = load_for_inference(config.source)
        self.model.to(self.device)
        if config.quantize:
            quantize(self.model)
        else:
            self.model.to(inference_dtype(config.dtype, self.device, self.model.num_params()))
        allow_tf32(self.device)
        dtype = config.quantize or str(self.model.ln_f.weight.dtype).removeprefix("torch.")
        self.description.append(f"weights in {dtype} on {self.device}")
        self.notes = []  # for the end: they must not stand within a text
        self.threads = CpuThreads(config.threads, notify=self.notes.append)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.decoder = None

    def encode(self, text):
        """The ids of a prompt. Raises DataError naming the characters unknown to the model."""
        return encode_option(self.tokenizer, text, "start")

    def generate(self, prompts):
        """Continue the ids of each prompt; yields (row, text) for each token, see stream_texts."""
        config = self.config
        if self.decoder is None:  # a chat uses the same one for every reply
            self.decoder = self.make_decoder(prompts)
        vocab_size = self.tokenizer.vocab_size
        length = config.max_new_tokens
        tokens = generate_tokens(self.decoder, prompts, length, vocab_size, self.params, self.rng)
        stops = tuple(map(decode_argument, config.stop))
        stop_ids = () if config.ignore_eos else self.tokenizer.special.eos_ids(self.tokenizer)
        streams = [TextStream(self.tokenizer, stops, stop_ids) for _ in prompts]
        for row, text in stream_texts(tokens, streams, length):
            self.threads.tick()
            yield row, text
        for note in self.notes:
            print(f"\n({note})", file=sys.stderr)
        self.notes.clear()

    def make_decoder(self, prompts):
        config = self.config
        length = max(map(len, prompts)) + config.max_new_tokens
        if config.interactive:
            length = self.model.config.block_size
        compiles = pick_compile(config.compile, self.device)
        decoder = Decoder(self.model, len(prompts), length, compiles)
        if decoder.failure:
            print(
                f"torch.compile failed, so the model runs uncompiled: {decoder.failure}",
                file=sys.stderr,
            )
        return decoder


def show(text, end="\n"):
    """Print a model's text. On a terminal its control characters are escaped, not obeyed."""
    if sys.stdout.isatty():
        text = escape_control_chars(text)
    print(text, end=end, flush=True)


def read_prompts(config, tokenizer):
    """The texts of --start; without it a newline, or a text that the model knows.

    Raises DataError.
    """
    if config.start:
        return [read_text_option(start, "start") for start in config.start]
    if hasattr(tokenizer, "chars"):
        return ["\n" if "\n" in tokenizer.chars else tokenizer.chars[0]]
    candidates = ["\n", *tokenizer.special.eos]  # some tokenizers drop white space
    return [next((text for text in candidates if len(tokenizer.encode_prompt(text))), "a")]


def print_samples(generator, config):
    """Print the samples: the first one as it is generated, the others of its batch after it."""
    prompts = read_prompts(config, generator.tokenizer)
    starts = [prompt for prompt in prompts for _ in range(config.num_samples)]
    ids_of = {prompt: generator.encode(prompt) for prompt in prompts}
    texts = list(starts)
    print("\n".join(generator.description), file=sys.stderr, flush=True)
    show(starts[0], end="")
    start_time = time.perf_counter()
    num_tokens = 0
    for row, text in generator.generate([ids_of[start] for start in starts]):
        num_tokens += 1
        texts[row] += text
        if row == 0:
            show(text, end="")
    seconds = time.perf_counter() - start_time
    print(f"\n{SEPARATOR}")
    for text in texts[1:]:
        show(f"{text}\n{SEPARATOR}")
    sys.stdout.flush()
    speed = num_tokens / seconds
    print(f"{num_tokens:,} tokens in {seconds:.1f} s: {speed:,.0f} tokens/s", file=sys.stderr)


def chat(generator, text):
    """Read lines, and let the model continue everything said so far, beginning with `text`."""
    with contextlib.suppress(ImportError):  # Windows has none; its console remembers lines itself
        import readline  # noqa: F401, arrow keys recall earlier lines
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    print("\n".join(generator.description), file=sys.stderr, flush=True)
    print(
        "Type, and the model continues. /new starts over; "
        "Ctrl-C stops a reply; Ctrl-D or /quit leaves."
    )
    separator = "\n" if "\n" in getattr(generator.tokenizer, "chars", "\n") else ""
    while True:
        try:
            line = input("> ")
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit leaves.")
            continue
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            text = ""
            continue
        extended = f"{text}{separator}{line}" if text and line else text or line  # empty: go on
        if not extended:
            continue
        try:
            prompt = generator.encode(extended)
        except DataError as error:
            print(error)
            continue
        text = extended + print_reply(generator, prompt)


def print_reply(generator, prompt):
    """Print the continuation of a prompt's ids, up to Ctrl-C. Returns its text."""
    reply = ""
    with contextlib.suppress(KeyboardInterrupt):
        for _, text in generator.generate([prompt]):
            reply += text
            show(text, end="")
    print()
    return reply


def main(argv=None):
    with command():
        config, params = parse_configs(argv, SampleConfig, SamplingParams, description=__doc__)
        advice = "the model alone is too large for this device; try --device=cpu"
        if config.num_samples > 1:
            advice = f"fewer samples at a time, as in --num_samples={config.num_samples // 2}"
        with out_of_memory_advice(advice):
            generator = TextGenerator(config, params)
            if not config.interactive:
                print_samples(generator, config)
            elif config.start:
                chat(generator, read_text_option(config.start[0], "start"))
            else:
                chat(generator, "")


if __name__ == "__main__":
    main()
