"""The texts whose loss evaluate.py measures: a split of a data set, or files."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from model import IGNORE_INDEX
from seugpt.checkpoint.pretrained import check_tokenizer, config_of, tokenizer_of
from seugpt.cli.values import decode_argument
from seugpt.data.dataset import Dataset
from seugpt.data.dataset_dir import dataset_path
from seugpt.data.text import Text, find_files, split_at_word_boundaries
from seugpt.data.tokenizer import name_chars, num_chars
from seugpt.errors import ConfigError, DataError

UNITS = ("tokens", "bytes", "characters")
TOKENS, BYTES, CHARACTERS = range(3)  # indices into UNITS


@dataclass
class EvalText:
    """A text as chunks of token ids, all of them known to the model and the tokenizer."""

    name: str
    tokenizer: object
    chunks: Iterator[np.ndarray]
    size: int  # of the whole text, as known beforehand
    unit: int  # of `size`, an index into UNITS
    notes: list[str]


def text_from_dataset(ckpt, name, split):
    """A split of a data set (None: the one that the checkpoint was trained on).

    Raises ConfigError, DataError, CheckpointError.
    """
    name = name or ckpt["train_config"].get("dataset")
    if not isinstance(name, str):
        raise ConfigError(
            f"{ckpt['path']} does not say what it was "
            "trained on; give --dataset=NAME or --input=FILE"
        )
    dataset = Dataset(dataset_path(name), tokenizer="gpt2")
    check_tokenizer(ckpt, dataset.tokenizer.spec(), name)
    vocab_size = min(dataset.tokenizer.vocab_size, config_of(ckpt).vocab_size)
    dataset.check_ids(split, vocab_size)  # now, rather than after hours of work
    ids = dataset.ids[split]
    chunks = (chunk for _, chunk in ids.chunks())
    size = dataset.bytes[split]
    unit = BYTES
    if size is None:
        size = len(ids)
        unit = TOKENS
    return EvalText(
        f"{dataset.path}, {split}", dataset.tokenizer, chunks, size, unit, dataset.notes
    )


def text_from_files(ckpt, path, field=None, keep_crlf=False):
    """A file or the files of a folder, encoded by the checkpoint's tokenizer as prepare.py would.

    Raises DataError.
    """
    tokenizer = tokenizer_of(ckpt)
    separator = tokenizer.document_separator
    text = Text(find_files(path), separator, True, field, keep_crlf)
    unknown = sorted(text.alphabet - set(getattr(tokenizer, "chars", text.alphabet)))
    if unknown:
        chars = itertools.chain.from_iterable(text.chunks())
        position = next(number for number, char in enumerate(chars, start=1) if char in unknown)
        raise DataError(
            f"{path} has characters that the model never saw in training, first at character "
            f"{position:,}: {name_chars(unknown)}. Models with bpe or gpt2 tokens can read any text"
        )
    chunks = (tokenizer.encode(chunk) for chunk in split_at_word_boundaries(text.chunks()))
    return EvalText(
        decode_argument(path), tokenizer, chunks, text.num_chars, CHARACTERS, text.notes
    )


class TokenCounter:
    """Counts a text while it is evaluated, in UNITS.

    `scored`: the targets; `total`: with the first token, which is never a target; `context`: all
    tokens before the targets, summed.
    """

    def __init__(self, text, show_progress=True):
        self.text = text
        self.hide_bar = None if show_progress else True  # None: on a terminal only
        self.sizes = token_sizes(text.tokenizer)  # (V, 3)
        self.scored = np.zeros(3, dtype=np.int64)
        self.total = np.zeros(3, dtype=np.int64)
        self.context = 0

    def count(self, batches):
        """Yields the same batches, counted, with a progress bar on a terminal if it takes long."""
        unit = self.text.unit
        style = {"unit": f" {UNITS[unit]}", "unit_scale": True, "leave": False}
        with tqdm(total=self.text.size, delay=2, disable=self.hide_bar, **style) as bar:
            for x, y in batches:
                if not self.total.any():
                    self.total += self.sizes[x[0, 0]]
                is_target = y != IGNORE_INDEX
                scored = self.sizes[y[is_target]].sum(axis=0)
                self.scored += scored
                self.total += scored
                _, columns = np.nonzero(is_target)
                self.context += int((columns + 1).sum())
                yield x, y
                bar.update(self.total[unit] - bar.n)


def token_sizes(tokenizer):
    """For each token, int64 (V, 3): 1, its UTF-8 bytes, the characters that begin in it."""
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    return np.array([[1, len(token), num_chars(token)] for token in tokens])
