"""Turn text into tokens: data/NAME/{train.bin, val.bin, meta.json}.

    python prepare.py python_docs                                a built-in corpus
    python prepare.py mytext --input=book.txt --tokenizer=bpe    a text of your own
    python prepare.py web --input=web --val_input=web/9.parquet --tokenizer=gpt2 --shard_tokens=1e8

The text is read in chunks, several times, and never as a whole: memory does not grow with its size.
With --shard_tokens, documents in .jsonl, .csv or .parquet files become data/NAME/*.npy, on several
processes and machines; the same command continues after any interruption.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from seugpt.cli.command import command
from seugpt.cli.config_parser import parse_configs
from seugpt.cli.values import decode_argument
from seugpt.data.corpora import CORPORA, download_corpus
from seugpt.data.dataset_dir import (
    TokenWriter,
    creating_dataset_dir,
    dataset_path,
    fingerprint,
    write_meta,
)
from seugpt.data.hub import download_model, is_hub_name
from seugpt.data.shard_preparation import (
    ShardConfig,
    check_no_shards,
    check_shard_options,
    prepare_shards,
)
from seugpt.data.shard_workers import available_cores
from seugpt.data.text import FieldOption, KeepCrlfOption, Text, find_files, split_at_word_boundaries
from seugpt.data.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    read_spec,
    train_bpe,
)
from seugpt.errors import DataError
from seugpt.files import atomic_write_all

DEFAULT_CORPUS = "python_docs"
TRAINED = {"char": CharTokenizer, "bpe": BPETokenizer}  # tokenizers that are made from the text
FILES = (
    "meta.json",
    "train.bin",
    "val.bin",
)  # in the order in which they appear, see write_dataset


@dataclass(frozen=True)
class PrepareConfig:
    name: Annotated[
        str | None,
        f"folder in data/ to write, or an absolute path; None: {DEFAULT_CORPUS}; built-in: "
        f"{', '.join(CORPORA)}",
        "path",
    ] = None
    input: Annotated[str | None, "your own UTF-8 text: a file, or a folder of files", "path"] = None
    val_input: Annotated[str | None, "validation text; None: the end of the input", "path"] = None
    field: FieldOption = None
    keep_crlf: KeepCrlfOption = False
    tokenizer: Annotated[
        str | None,
        "char, gpt2, bpe (trained on the text), or a meta.json "
        "or tokenizer.json, or of a model on the hub: org/name[@revision]; "
        "None: the corpus's, or char",
        "not empty",
    ] = None
    vocab_size: Annotated[int, "tokens of a bpe tokenizer", ">= 257", "<= 2**32"] = 4096
    val_fraction: Annotated[
        float, "fraction of the text, at its end, for validation", "> 0", "< 1"
    ] = 0.1

    def __post_init__(self):
        problems = []
        if self.name is None and self.input is not None:
            problems.append(
                f"name=None, but input={self.input} needs one: "
                f"python prepare.py NAME --input={self.input}"
            )
        if self.name not in (None, *CORPORA) and self.input is None:
            problems.append(
                f"name={self.name} is not built in ({', '.join(CORPORA)}). "
                f"For a text of your own: python prepare.py {self.name} --input=FILE_OR_FOLDER"
            )
        known = self.tokenizer in (None, "gpt2", *TRAINED) or is_hub_name(self.tokenizer)
        if not known and not self.tokenizer.endswith(".json") and not Path(self.tokenizer).is_dir():
            problems.append(
                f"tokenizer={self.tokenizer} is not char, gpt2, "
                "bpe or the path of a meta.json or tokenizer.json"
            )
        if self.field is not None and self.input is None:
            problems.append(f"field={self.field} is for a text of your own; give --input=FILE")
        if problems:
            raise ValueError("\n".join(problems))


def check_input_is_not_output(option, path, folder):
    """Raise DataError if an input contains the files to be written, and so its own output."""
    source = Path(os.path.realpath(path))  # of links; find_files refuses a loop
    target = Path(os.path.realpath(folder))
    if source in (target, *target.parents, *(target / name for name in FILES)):
        raise DataError(
            f"{option}={path} contains {folder}, which is to be written. Move the text to a "
            f"folder of its own, such as {folder / 'texts'}, or give its file: --{option}=FILE"
        )


def existing_tokenizer(choice):
    """GPT-2's tokenizer or another data set's; None for one that is made from the text."""
    if choice in TRAINED:
        return None
    if choice == "gpt2":
        return gpt2_tokenizer()
    folder = download_model(choice, weights=False) if is_hub_name(choice) else choice
    return load_tokenizer(read_spec(folder), choice)


def make_tokenizer(choice, parts, vocab_size):
    """A char tokenizer of all characters, or BPE trained on the training text."""
    if choice == "char":
        alphabet = set().union(*(text.alphabet for text, _, _ in parts.values()))
        return CharTokenizer("".join(sorted(alphabet)))
    text, start, stop = parts["train"]
    return train_bpe(split_at_word_boundaries(text.chunks(start, stop)), vocab_size)


def encode_ahead(chunks, tokenizer):
    """(chunk, ids) in order, encoded on all cores a few chunks ahead: tiktoken releases the GIL."""
    num_cores = available_cores()
    pending = deque()
    with ThreadPoolExecutor(num_cores) as pool:
        for chunk in chunks:
            pending.append((chunk, pool.submit(tokenizer.encode, chunk)))
            if len(pending) > 2 * num_cores:
                chunk, ids = pending.popleft()
                yield chunk, ids.result()
        for chunk, ids in pending:
            yield chunk, ids.result()


def write_tokens(path, text, start, stop, tokenizer):
    """Encode the characters from `start` to `stop` to a .bin file.

    Returns its entry in meta.json.
    """
    num_bytes = 0
    num_kept = 0
    chunks = split_at_word_boundaries(text.chunks(start, stop))
    with (
        TokenWriter(path, tokenizer.vocab_size) as writer,
        tqdm(total=stop - start, unit="char", unit_scale=True, leave=False, disable=None) as bar,
    ):
        for chunk, ids in encode_ahead(chunks, tokenizer):
            writer.write(ids)
            chunk_bytes = len(chunk.encode())
            num_bytes += chunk_bytes
            num_kept += chunk_bytes if tokenizer.keeps_every_byte else tokenizer.num_bytes(ids)
            bar.update(len(chunk))
    if num_kept != num_bytes:
        print(
            f"note: these tokens stand for {num_kept:,} bytes of the text's {num_bytes:,}: "
            "the tokenizer drops or replaces characters"
        )
    return {"tokens": writer.num_tokens, "bytes": num_bytes, "fingerprint": fingerprint(path)}


def write_dataset(folder, parts, tokenizer, source, sha256):
    """Write train.bin, val.bin and meta.json; they appear together, once all are complete.

    meta.json comes first: if the process is killed in between, files that are not those it
    describes are refused, but token files without it could be anyone's. Raises DataError.
    """
    splits = {}
    with atomic_write_all(*(folder / name for name in FILES)) as (meta_path, train_path, val_path):
        for split, path in (("train", train_path), ("val", val_path)):
            text, start, stop = parts[split]
            splits[split] = write_tokens(path, text, start, stop, tokenizer)
            print_split(split, stop - start, splits[split])
            if splits[split]["tokens"] < 2:
                raise DataError(f"the {split} split needs at least 2 tokens; use more text")
        write_meta(meta_path, tokenizer, splits, source, sha256)
    kind = tokenizer.spec()["kind"]
    print(f"vocabulary: {tokenizer.vocab_size:,} tokens ({kind}); written to {folder}")


def print_split(split, num_chars, entry):
    num_tokens = entry["tokens"]
    print(
        f"{split:5}  {num_chars:>13,} characters  {entry['bytes']:>13,} bytes  "
        f"{num_tokens:>13,} tokens  {num_chars / num_tokens:.2f} characters per token"
    )


def split_text(config, files, separator, with_alphabet):
    """{"train": (Text, start, stop), "val": ...}, in characters.

    Raises DataError if one is empty.
    """
    read = partial(
        Text,
        separator=separator,
        with_alphabet=with_alphabet,
        field=config.field,
        keep_crlf=config.keep_crlf,
    )
    text = read(files)
    if config.val_input is None:
        boundary = int(text.num_chars * (1 - config.val_fraction))  # the end is for validation
        parts = {"train": (text, 0, boundary), "val": (text, boundary, text.num_chars)}
    else:
        val_text = read(find_files(config.val_input))
        parts = {"train": (text, 0, text.num_chars), "val": (val_text, 0, val_text.num_chars)}
    for note in dict.fromkeys(note for part, _, _ in parts.values() for note in part.notes):
        print(f"note: {note}")
    for split, (part, start, stop) in parts.items():
        if start == stop:
            raise DataError(
                f"the {split} split would be empty: the text has {part.num_chars:,} character(s). "
                "Give a longer one, of 100 KB or more"
            )
    return parts


def prepare(config, shard_config):
    """Write the data set and print what is in it. Raises DataError."""
    name = config.name or DEFAULT_CORPUS
    folder = dataset_path(name)
    for option in ("input", "val_input"):
        path = getattr(config, option)
        if path is not None:
            check_input_is_not_output(option, path, folder)
    corpus = CORPORA.get(name)
    choice = config.tokenizer or (corpus.tokenizer if corpus else "char")
    is_sharded = check_shard_options(config, shard_config, needs_text=choice in TRAINED)
    tokenizer = existing_tokenizer(choice)
    if is_sharded:
        prepare_shards(folder, config, shard_config, tokenizer)
        return
    check_no_shards(folder)
    separator = (tokenizer or TRAINED[choice]).document_separator
    with creating_dataset_dir(folder):
        if config.input is None:
            download_corpus(name, folder / "input.txt")
        files = find_files(config.input or folder / "input.txt")
        parts = split_text(config, files, separator, with_alphabet=choice == "char")
        if tokenizer is None:
            tokenizer = make_tokenizer(choice, parts, config.vocab_size)
        source = decode_argument(config.input or corpus.url or name)
        text, _, _ = parts["train"]
        write_dataset(folder, parts, tokenizer, source, text.sha256)


def main(argv=None):
    with command():
        classes = (PrepareConfig, ShardConfig)
        configs = parse_configs(argv, *classes, description=__doc__, positional="name")
        prepare(*configs)


if __name__ == "__main__":
    main()
