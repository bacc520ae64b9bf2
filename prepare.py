"""Turn text into tokens: data/NAME/{train.bin, val.bin, meta.json}.

    python prepare.py python_docs                                a built-in corpus
    python prepare.py mytext --input=book.txt --tokenizer=bpe    a text of your own

The text is read in pieces, several times over, and never as a whole: memory does not grow with it.
"""

import contextlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from seugpt.cli.command import command
from seugpt.cli.options import Options
from seugpt.cli.values import in_utf8
from seugpt.data.corpora import CORPORA, obtain
from seugpt.data.dataset import TokenWriter, dataset_path, fingerprint, write_meta
from seugpt.data.text import Text, cut_between_words, find_files
from seugpt.data.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    read_spec,
    train_bpe,
)
from seugpt.errors import DataError
from seugpt.files import replacing_all

FILES = ("train.bin", "val.bin", "meta.json")


@dataclass(frozen=True)
class PrepareConfig:
    name: Annotated[
        str | None, "folder in data/ to write; None: python_docs; built in: " + ", ".join(CORPORA)
    ] = None
    input: Annotated[
        str | None,
        "your own UTF-8 text: a file, or a folder whose files are all read, in name order",
    ] = None
    val_input: Annotated[str | None, "text for validation; None: the end of the input"] = None
    tokenizer: Annotated[
        str | None,
        "char, gpt2, bpe (trained on your text), or a meta.json or tokenizer.json; None: the corpus's, or char",
    ] = None
    vocab_size: Annotated[int, "tokens of a bpe tokenizer"] = 4096
    val_fraction: Annotated[float, "share of the characters, at the end, that validates"] = 0.1

    def __post_init__(self):
        problems = [
            f"{name}= is empty: leave it out, or name something"
            for name, value in vars(self).items()
            if value == ""
        ]
        if self.name is None and self.input is not None:
            problems.append(
                f"a text of your own needs a name: python prepare.py NAME --input={self.input}"
            )
        if self.name not in (None, *CORPORA) and self.input is None:
            problems.append(
                f"name={self.name} is not built in ({', '.join(CORPORA)}). "
                f"For a text of your own: python prepare.py {self.name} --input=FILE_OR_FOLDER"
            )
        known = (None, "char", "gpt2", "bpe")
        if (
            self.tokenizer not in known
            and not self.tokenizer.endswith(".json")
            and not Path(self.tokenizer).is_dir()
        ):
            problems.append(
                f"tokenizer={self.tokenizer} is not char, gpt2, bpe or the path of a meta.json or tokenizer.json"
            )
        if not 257 <= self.vocab_size <= 2**32:
            problems.append(
                f"vocab_size={self.vocab_size} must be at least 257, 256 bytes and the end of text, and at most 2**32"
            )
        if not 0 < self.val_fraction < 1:
            problems.append(f"val_fraction={self.val_fraction} must be above 0 and below 1")
        if problems:
            raise ValueError("\n".join(problems))


def demand_apart(option, path, folder):
    """Raise DataError where an input contains the files that are to be written: the next time, they would be read."""
    source, target = (
        Path(os.path.realpath(place)) for place in (path, folder)
    )  # a loop of links is refused later
    if source in (target, *target.parents, *(target / name for name in FILES)):
        raise DataError(
            f"{option}={path} contains {folder}, which is to be written. Move the text into a folder of its own, such "
            f"as {folder / 'texts'}, or name its file: --{option}=FILE"
        )


def ready_tokenizer(choice):
    """The tokenizer that needs no text to be made: GPT-2's or another data set's; None for char and bpe."""
    if choice in ("char", "bpe"):
        return None
    if choice == "gpt2":
        return gpt2_tokenizer()
    return load_tokenizer(read_spec(choice), choice)


def encoded(pieces, tokenizer):
    """(piece, its ids) in order. All cores encode ahead, a few pieces each: tiktoken works without Python's lock."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(cores) as pool:
        ahead = deque()
        for piece in pieces:
            ahead.append((piece, pool.submit(tokenizer.encode, piece)))
            if len(ahead) > 2 * cores:
                piece, ids = ahead.popleft()
                yield piece, ids.result()
        for piece, ids in ahead:
            yield piece, ids.result()


def encode(text, start, stop, tokenizer, path):
    """Write the tokens of the characters from start to stop to `path`. Returns what meta.json says of them."""
    size = 0
    with (
        TokenWriter(path, tokenizer.vocab_size) as writer,
        tqdm(total=stop - start, unit="char", unit_scale=True, leave=False, disable=None) as bar,
    ):
        for piece, ids in encoded(cut_between_words(text.pieces(start, stop)), tokenizer):
            writer.write(ids)
            size += len(piece.encode())
            bar.update(len(piece))
    return {"tokens": writer.tokens, "bytes": size, "fingerprint": fingerprint(path)}


@contextlib.contextmanager
def filling(folder):
    """The folder of a data set, made where it is missing; what fails to write into an empty one leaves none."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def write(folder, parts, tokenizer, source, sha256):
    """Write both .bin files and meta.json; all take their names when all are complete, meta.json as the last."""
    splits = {}
    with replacing_all(*(folder / name for name in FILES)) as (train, val, meta):
        for split, path in (("train", train), ("val", val)):
            text, start, stop = parts[split]
            counts = splits[split] = encode(text, start, stop, tokenizer, path)
            characters, tokens = stop - start, counts["tokens"]
            print(
                f"{split:5}  {characters:>13,} characters  {counts['bytes']:>13,} bytes"
                f"  {tokens:>13,} tokens  {characters / tokens:.2f} characters per token"
            )
        write_meta(meta, tokenizer, splits, source, sha256)
    print(
        f"vocabulary of {tokenizer.vocab_size:,} ({tokenizer.spec()['kind']}); written to {folder}"
    )


def prepare(options):
    """Write the data set that the options describe and print what is in it. Raises DataError."""
    name = options.name or "python_docs"
    folder = dataset_path(name)
    for option in ("input", "val_input"):
        if (path := getattr(options, option)) is not None:
            demand_apart(option, path, folder)
    corpus = CORPORA.get(name)
    choice = options.tokenizer or (corpus.tokenizer if corpus else "char")
    tokenizer = ready_tokenizer(choice)
    separator = (tokenizer or {"char": CharTokenizer, "bpe": BPETokenizer}[choice]).separator
    if options.input is None:
        with filling(folder):
            obtain(name, folder / "input.txt")
    text = Text(find_files(options.input or folder / "input.txt"), separator, choice == "char")
    if options.val_input is None:
        # nanoGPT's split, counted in characters: the first 90% train
        boundary = int(text.characters * (1 - options.val_fraction))
        parts = {"train": (text, 0, boundary), "val": (text, boundary, text.characters)}
    else:
        val_text = Text(find_files(options.val_input), separator, choice == "char")
        parts = {"train": (text, 0, text.characters), "val": (val_text, 0, val_text.characters)}
    for split, (part, start, stop) in parts.items():
        if start == stop:
            raise DataError(
                f"nothing is left for {split}: the text has {part.characters:,} characters"
            )
    if choice == "char":
        tokenizer = CharTokenizer(
            "".join(sorted(set().union(*(part.alphabet for part, _, _ in parts.values()))))
        )
    elif choice == "bpe":
        _, start, stop = parts["train"]
        tokenizer = train_bpe(cut_between_words(text.pieces(start, stop)), options.vocab_size)
    with filling(folder):
        write(folder, parts, tokenizer, in_utf8(options.input or corpus.url or name), text.sha256)


def main(argv=None):
    with command():
        options = Options(argv, PrepareConfig, description=__doc__, positional="name")
        prepare(*options.build())


if __name__ == "__main__":
    main()
