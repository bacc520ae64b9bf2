"""The data set that a run reads: batches of token ids for training and evaluation."""

import hashlib
import math
import shlex
from functools import partial
from pathlib import Path

import numpy as np

from model import IGNORE_INDEX
from seugpt.data.corpora import CORPORA
from seugpt.data.dataset_dir import (
    NUM_SAMPLES,
    PLAN,
    SHARD_SAMPLES,
    dataset_name,
    fingerprint,
    read_meta,
)
from seugpt.data.permutation import permuted_windows
from seugpt.data.shards import (
    LAYOUTS,
    LAYOUTS_OF_GPT2,
    SPLITS,
    find_external,
    open_all,
    open_flat,
    open_npy,
)
from seugpt.data.tokenizer import load_tokenizer
from seugpt.errors import DataError


class Dataset:
    """A data set written by prepare.py, or token files from elsewhere.

    `ids`, `tokens` and `bytes` have for each split the TokenArray, its length, and the size of its
    UTF-8 text (None if unknown). `fingerprint` is a checksum of all files; `notes` are what a run
    should log about its data.
    """

    def __init__(self, path, tokenizer=None):
        """`tokenizer`: "gpt2" for token files from elsewhere, which do not name it.

        Raises DataError if a file is missing or damaged.
        """
        self.path = Path(path)
        self.notes = []
        self.largest_ids = dict.fromkeys(SPLITS)  # {split: [(file, id), ...]}; None: unknown
        if (self.path / "meta.json").exists():
            self.ids, self.bytes, spec = self.open_prepared()
        else:
            self.ids, self.bytes, spec = self.open_external(tokenizer)
        self.tokens = {split: len(ids) for split, ids in self.ids.items()}
        self.fingerprint = self.compute_fingerprint()  # now: the files on the disk may change later
        # Last, as GPT-2's may have to be downloaded.
        self.tokenizer = load_tokenizer(spec, self.path)

    def open_prepared(self):
        """(tokens, bytes) of each split and the tokenizer spec, from what prepare.py wrote."""
        path = self.path / "meta.json"
        try:
            meta = read_meta(path, SPLITS)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self.error(f"{path} cannot be used: {type(error).__name__} {error}") from error
        sizes = {split: meta["splits"][split]["bytes"] for split in SPLITS}
        if "shards" in meta["splits"]["train"]:
            shards = {split: meta["splits"][split]["shards"] for split in SPLITS}
            return self.open_shards(shards), sizes, meta["tokenizer"]
        dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        files = {split: [self.path / f"{split}.bin"] for split in SPLITS}
        for split, [file] in files.items():
            self.check_file(file, meta["splits"][split], dtype)
        return open_all(files, partial(open_flat, dtype=dtype)), sizes, meta["tokenizer"]

    def check_file(self, file, described, dtype):
        """Raise DataError unless a .bin file is the one that meta.json describes."""
        expected = described["tokens"] * dtype.itemsize
        size = file.stat().st_size if file.exists() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size:,} bytes"
            says = f"{described['tokens']:,} tokens ({expected:,} bytes)"
            raise self.error(f"{file} {found}; meta.json says {says}")
        if described.get("fingerprint") != fingerprint(file):
            raise self.error(f"{file} is not the file that meta.json was written with")

    def open_shards(self, shards):
        """The tokens of the shards that meta.json lists; their largest ids are taken from there."""
        files = {split: [self.path / s["file"] for s in shards[split]] for split in SPLITS}
        try:
            arrays = open_all(files, open_npy)
            for split in SPLITS:
                for file, described in zip(files[split], shards[split], strict=True):
                    if fingerprint(file, SHARD_SAMPLES) != described["fingerprint"]:
                        raise DataError(f"{file} is not the file that meta.json was written with")
        except DataError as error:
            raise DataError(
                f"{error}. Run the prepare.py command of {self.path} again: it restores what is "
                "missing or damaged"
            ) from error
        for split in SPLITS:
            largest = [described["largest_id"] for described in shards[split]]
            self.largest_ids[split] = list(zip(files[split], largest, strict=True))
        return arrays

    def open_external(self, tokenizer):
        """The same for token files that were prepared elsewhere."""
        if (self.path / PLAN).exists():
            raise DataError(
                f"the preparation of {self.path} is not finished. Run its prepare.py command again"
            )
        layout, files = find_external(self.path)
        if layout is None:
            raise self.error(
                f"there is no data set in {self.path} (no meta.json, "
                "train.bin, *_train_*.npy or *_train_*.bin)"
            )
        if tokenizer is None and layout not in LAYOUTS_OF_GPT2:
            raise DataError(
                f"{self.path} has token files ({layout} layout) but no meta.json, which would name "
                "their tokenizer. If they are GPT-2 tokens, as nanoGPT's are, say so: "
                "--tokenizer=gpt2"
            )
        counts = f"{len(files['train']):,} train, {len(files['val']):,} val"
        self.notes.append(f"{self.path} has GPT-2 tokens in {layout} layout; files: {counts}")
        return open_all(files, LAYOUTS[layout]), dict.fromkeys(SPLITS), {"kind": "gpt2"}

    def compute_fingerprint(self):
        """A checksum of all files: their order, their sizes and samples of their content."""
        files = [shard.file.name for split in SPLITS for shard in self.ids[split].shards]
        num_samples = max(NUM_SAMPLES // len(files), 1)
        digests = [fingerprint(file, num_samples) for file in files]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def error(self, message):
        """A DataError that ends with the command that prepares this data set."""
        name = dataset_name(self.path)
        command = f"python prepare.py {shlex.quote(name)}"
        if name not in CORPORA:
            command += " --input=FILE_OR_FOLDER --tokenizer=char (or bpe, or gpt2)"
        folders = [meta.parent for meta in self.path.parent.glob("*/meta.json")]
        prepared = sorted(map(dataset_name, folders))
        others = f". Prepared so far, for --dataset: {', '.join(prepared)}" if prepared else ""
        return DataError(f"{message}. Prepare it with: {command}{others}")

    def check(self, vocab_size, block_size):
        """Raise DataError if a split is shorter than one window, or has too large an id."""
        for split, num_tokens in self.tokens.items():
            needed = block_size + 1
            if num_tokens < needed:
                longest = max(min(self.tokens.values()) - 1, 1)
                raise DataError(
                    f"{self.ids[split].name} has {num_tokens:,} tokens; block_size={block_size} "
                    f"needs at least {needed:,}. Use --block_size={longest} or less, or more text"
                )
            self.check_ids(split, vocab_size)

    def check_ids(self, split, vocab_size):
        """Raise DataError if a split has an id of `vocab_size` or more."""
        largest_ids = self.largest_ids[split]
        if largest_ids is None:
            largest_ids = ((file, int(ids.max())) for file, ids in self.ids[split].chunks())
        for file, largest in largest_ids:
            if largest >= vocab_size:
                limit = f"the largest id of the vocabulary is {vocab_size - 1}"
                raise self.error(f"{file} has the token id {largest}; {limit}")

    def batch(self, split, index, batch_size, block_size, seed):
        """Batch number `index` of an endless random sequence, a pure function of the arguments.

        Returns x and y, int64 (batch_size, block_size): windows at uniformly random offsets, and
        the same windows one token later.
        """
        ids = self.ids[split]
        rng = np.random.default_rng((seed, index))
        starts = rng.integers(len(ids) - block_size, size=batch_size)
        return self.read_windows(ids, starts, block_size)

    def permuted_batch(self, split, index, batch_size, block_size, seed):
        """As batch, but each epoch has each window once, in a random order of its own.

        The windows are (len - 1) // block_size consecutive ones, which do not overlap. Batches
        follow each other without a gap, so one may end an epoch and begin the next.
        """
        ids = self.ids[split]
        num_windows = (len(ids) - 1) // block_size
        windows = permuted_windows(index * batch_size, batch_size, num_windows, seed)
        return self.read_windows(ids, windows * block_size, block_size)

    def read_windows(self, ids, starts, block_size):
        windows = ids.windows(starts.tolist(), block_size + 1)  # (batch_size, block_size + 1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)

    def evaluation_windows(self, split, eval_iters, batch_size, block_size):
        """The indices of the windows that evaluation_batches reads, in order."""
        num_windows = math.ceil((len(self.ids[split]) - 1) / block_size)
        count = eval_iters * batch_size
        if 0 < count < num_windows:
            return np.arange(count) * num_windows // count
        return np.arange(num_windows)

    def evaluation_batches(self, split, eval_iters, batch_size, block_size, rank=0, world_size=1):
        """`eval_iters` batches of evenly spaced windows (0: the whole split), the same every time.

        Yields x, y, int64 (batch_size, block_size), for every world_size-th batch from `rank` on.
        Windows do not overlap, so a small split has fewer. The last window and the last batch are
        padded with targets IGNORE_INDEX, so that all shapes are equal; and so are whole batches, so
        that all ranks have equally many.
        """
        ids = self.ids[split]
        windows = self.evaluation_windows(split, eval_iters, batch_size, block_size)
        for first in range(0, len(windows), world_size * batch_size):
            start = first + rank * batch_size
            x = np.zeros((batch_size, block_size), dtype=np.int64)
            y = np.full((batch_size, block_size), IGNORE_INDEX, dtype=np.int64)
            for row, window in enumerate(windows[start : start + batch_size]):
                tokens = ids[window * block_size : (window + 1) * block_size + 1]
                x[row, : len(tokens) - 1] = tokens[:-1]
                y[row, : len(tokens) - 1] = tokens[1:]
            yield x, y
