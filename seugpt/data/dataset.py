"""data/NAME/{train.bin, val.bin, meta.json}: flat little-endian token ids, their writer and their reader.

The ids are uint16 (uint32 past 65,536): nanoGPT can read these files. Its own, and shards.py's other layouts, lack
meta.json; they are taken as GPT-2's tokens.
"""

import hashlib
import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np

from seugpt.data.corpora import CORPORA
from seugpt.data.shards import LAYOUTS, SPLITS, find_foreign, open_all, open_flat
from seugpt.data.tokenizer import load_tokenizer
from seugpt.errors import DataError

FORMAT = 1
ROOT = Path("data")  # of the folder in which the command runs
IGNORE = -1  # the target that pads the last window; model.IGNORE
SAMPLES, SAMPLE = (
    64,
    1 << 16,
)  # a fingerprint looks at so many places of a file, and at so many bytes there


def dataset_path(name):
    """data/NAME, for a name that is one plain folder name. Raises DataError."""
    plain = name == Path(name).name and name.isprintable() and len(os.fsencode(name)) < 256
    if not name or not plain or name.startswith((".", "_")):
        raise DataError(
            f"dataset={name!r} must be one plain name, such as shakespeare_char: it becomes a folder in data/"
        )
    return ROOT / name


def token_dtype(vocab_size):
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenWriter:
    """Writes token ids to a .bin file as they come; `tokens` counts them. Use as a context manager."""

    def __init__(self, path, vocab_size):
        self.path, self.dtype, self.tokens = path, token_dtype(vocab_size), 0

    def __enter__(self):
        self.file = open(self.path, "wb")
        return self

    def write(self, ids):
        self.file.write(np.asarray(ids).astype(self.dtype).tobytes())
        self.tokens += len(ids)

    def __exit__(self, *_):
        self.file.close()


def fingerprint(path, samples=SAMPLES):
    """A checksum of a file's size and of evenly spaced samples of it; up to 4 MiB, of all its bytes.

    It tells in milliseconds whether a .bin belongs to its meta.json: to read 20 GB would delay each start by a minute.
    """
    size = Path(path).stat().st_size
    sha256 = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(samples):
            file.seek(max(size - SAMPLE, 0) * number // max(samples - 1, 1))
            sha256.update(file.read(SAMPLE))
    return sha256.hexdigest()


def write_meta(path, tokenizer, splits, source, sha256):
    """meta.json. splits: {"train": {"tokens": ..., "bytes": ..., "fingerprint": ...}, "val": ...}; bytes are the UTF-8
    text's. source and sha256: where the text came from, and the checksum of its files."""
    meta = {
        "format": FORMAT,
        "tokenizer": tokenizer.spec(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "splits": splits,
        "source": source,
        "sha256": sha256,
    }
    text = json.dumps(meta, ensure_ascii=False, indent=1)
    # A file name may hold bytes that are no UTF-8, lone surrogates in Python; JSON knows them as \\udce9.
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


class Dataset:
    """A data set of prepare.py's, or tokens from elsewhere. Raises DataError when a file is missing or damaged.

    ids[split]: the Tokens; tokens[split], bytes[split]: how many, and how many their UTF-8 text has (None: not known);
    notes: what a run should say about its data.
    """

    def __init__(self, path):
        self.path, self.notes = Path(path), []
        prepared = (self.path / "meta.json").exists()
        self.ids, self.bytes, spec = self.open_prepared() if prepared else self.open_foreign()
        self.tokens = {split: len(ids) for split, ids in self.ids.items()}
        self.fingerprint = self.checksum()  # now, as the files on the disk may be others tomorrow
        self.tokenizer = load_tokenizer(
            spec, self.path
        )  # after the files: GPT-2's may have to be downloaded

    def open_prepared(self):
        """The tokens and bytes of each split, and the tokenizer's description, of what prepare.py wrote."""
        meta = self.read_meta()
        dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        files = {split: self.path / f"{split}.bin" for split in SPLITS}
        for split, file in files.items():
            tokens, size = (
                meta["splits"][split]["tokens"],
                file.stat().st_size if file.exists() else None,
            )
            if size != tokens * dtype.itemsize:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise self.error(
                    f"{file} {found}; meta.json speaks of {tokens:,} tokens ({tokens * dtype.itemsize:,} bytes)"
                )
            known = meta["splits"][split].get(
                "fingerprint"
            )  # None: prepared before there were fingerprints
            if known and known != fingerprint(file):
                raise self.error(f"{file} is not the file that meta.json was written with")
        ids = open_all(
            {split: [file] for split, file in files.items()}, partial(open_flat, dtype=dtype)
        )
        return ids, {split: meta["splits"][split]["bytes"] for split in SPLITS}, meta["tokenizer"]

    def open_foreign(self):
        """The same of tokens that were prepared elsewhere."""
        layout, files = find_foreign(self.path)
        if layout is None:
            raise self.error(
                f"there is no data set in {self.path} (no meta.json, train.bin, *_train_*.npy or *_train_*.bin)"
            )
        self.notes.append(
            f"{self.path} has no meta.json: its ids are taken as GPT-2's tokens (layout of {layout}; files: "
            f"{len(files['train']):,} train, {len(files['val']):,} val)"
        )
        return open_all(files, LAYOUTS[layout]), dict.fromkeys(SPLITS), {"kind": "gpt2"}

    def checksum(self):
        """A checksum of all the files: of their order, their sizes and samples of what they hold."""
        files = [shard.file.name for split in SPLITS for shard in self.ids[split].shards]
        each = [fingerprint(file, max(SAMPLES // len(files), 1)) for file in files]
        return hashlib.sha256("".join(each).encode()).hexdigest()

    def error(self, message):
        prepared = ", ".join(
            sorted(meta.parent.name for meta in self.path.parent.glob("*/meta.json"))
        )
        own_text = (
            ""
            if self.path.name in CORPORA
            else " --input=FILE_OR_FOLDER --tokenizer=char (or bpe, or gpt2)"
        )
        others = f". Prepared so far, for --dataset: {prepared}" if prepared else ""
        return DataError(
            f"{message}. Prepare it with: python prepare.py {self.path.name}{own_text}{others}"
        )

    def read_meta(self):
        path = self.path / "meta.json"
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            if meta["format"] != FORMAT or "tokenizer" not in meta:
                raise ValueError(f"its format is {meta['format']}, this program reads {FORMAT}")
            if meta["dtype"] not in ("uint16", "uint32"):
                raise ValueError(f"dtype {meta['dtype']!r}")
            for split in SPLITS:
                for count in ("tokens", "bytes"):
                    if type(meta["splits"][split][count]) is not int:
                        raise TypeError(f"splits.{split}.{count} is no integer")
            return meta
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self.error(f"{path} cannot be used: {type(error).__name__} {error}") from error

    def check(self, vocab_size, block_size):
        """Raise DataError where a split is shorter than one window, or holds an id that the model has no row for."""
        for split, tokens in self.tokens.items():
            if tokens < block_size + 1:
                longest = min(self.tokens.values()) - 1
                raise DataError(
                    f"{self.ids[split].name} has {tokens:,} tokens; block_size={block_size} needs at least "
                    f"{block_size + 1:,}. Use --block_size={max(longest, 1)} or less, or more text"
                )
            self.check_ids(split, vocab_size)

    def check_ids(self, split, vocab_size):
        """Raise DataError where a split holds an id from vocab_size on."""
        for file, ids in self.ids[split].pieces():
            if (largest := int(ids.max())) >= vocab_size:
                raise self.error(
                    f"{file} holds the token id {largest}; the vocabulary ends at {vocab_size - 1}"
                )

    def batch(self, split, index, batch_size, block_size, seed):
        """Batch number `index` of an endless random sequence: a pure function of its arguments and the files.

        Returns x and y, int64 (batch_size, block_size): windows at uniformly drawn offsets, y one token later.
        """
        ids = self.ids[split]
        starts = np.random.default_rng((seed, index)).integers(
            len(ids) - block_size, size=batch_size
        )
        windows = ids.windows(starts.tolist(), block_size + 1)  # (batch_size, block_size + 1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)

    def evaluation_windows(self, split, count, batch_size, block_size):
        """The numbers of the windows, in their order, that `evaluation_batches` reads."""
        windows = math.ceil((len(self.ids[split]) - 1) / block_size)
        if 0 < count * batch_size < windows:
            return np.arange(count * batch_size) * windows // (count * batch_size)
        return np.arange(windows)

    def evaluation_batches(self, split, count, batch_size, block_size, rank=0, world_size=1):
        """`count` batches of evenly spaced windows, always the same; the whole split where count is 0 or covers it.

        Yields x, y int64 (batch_size, block_size) for every world_size-th batch from `rank` on. Windows do not overlap.
        What is left over in the last window and the last batch has targets IGNORE, so that all shapes are equal.
        """
        ids, chosen = self.ids[split], self.evaluation_windows(split, count, batch_size, block_size)
        for start in range(rank * batch_size, len(chosen), world_size * batch_size):
            x = np.zeros((batch_size, block_size), dtype=np.int64)
            y = np.full((batch_size, block_size), IGNORE, dtype=np.int64)
            for row, window in enumerate(chosen[start : start + batch_size]):
                tokens = ids[window * block_size : (window + 1) * block_size + 1]
                x[row, : len(tokens) - 1], y[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
            yield x, y
