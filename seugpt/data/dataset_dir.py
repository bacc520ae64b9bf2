"""data/NAME: the folder of a data set, and how its train.bin, val.bin and meta.json are written.

train.bin and val.bin are flat little-endian token ids, uint16 (uint32 for more than 65,536 tokens),
as nanoGPT reads them. meta.json describes the tokenizer and the files. A large data set has shards
instead, train_00000_0000.npy and so on (see shard_workers.py), and meta.json a list of them.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from seugpt.errors import DataError
from seugpt.files import check_regular, lock_folder, read_text

FORMAT = 1
ROOT = Path("data")  # relative to the folder in which the command runs
RECORDS = "records"  # what a preparation in shards has done; see shard_plan.py
PLAN = f"{RECORDS}/plan.json"
SHARD_KEYS = {  # of a shard in meta.json
    "file": str,
    "tokens": int,
    "largest_id": int,
    "sha256": str,
    "fingerprint": str,
}
SHARD_SAMPLES = 4  # parts of a shard that its fingerprint covers
NUM_SAMPLES = 64  # parts of a file that a fingerprint covers
FINGERPRINT_BYTES = 1 << 16  # of each part


def dataset_path(name):
    """The folder data/NAME, or an absolute path itself. NAME may have parts, as in books/poems.

    Raises DataError.
    """
    path = Path(name)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    is_valid = all(part.isprintable() and len(os.fsencode(part)) < 256 for part in parts)
    is_hidden = any(part.startswith((".", "_")) for part in parts) and not path.is_absolute()
    if not parts or not is_valid or is_hidden:
        raise DataError(
            f"dataset={name!r} must be the name of a folder in data/, such as shakespeare_char, "
            "or an absolute path"
        )
    if path.parts[0] == ROOT.name and len(path.parts) > 1 and not (ROOT / path).exists():
        inside = path.relative_to(ROOT)
        raise DataError(f"dataset={name!r}: names begin inside data/; write --dataset={inside}")
    return ROOT / path


def dataset_name(path):
    """The name by which dataset_path gives `path`."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@contextlib.contextmanager
def creating_dataset_dir(folder):
    """Write to the folder of a data set as its only writer; removed again if it stays empty.

    Raises ConfigError if another process is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    try:
        yield
    finally:
        lock.close()
        if os.listdir(folder) == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def token_dtype(vocab_size):
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenWriter:
    """Writes token ids to a .bin file as they come; `num_tokens` counts them."""

    def __init__(self, path, vocab_size):
        self.path = path
        self.dtype = token_dtype(vocab_size)
        self.num_tokens = 0

    def __enter__(self):
        self.file = open(self.path, "wb")
        return self

    def write(self, ids):
        self.file.write(np.asarray(ids).astype(self.dtype).tobytes())
        self.num_tokens += len(ids)

    def __exit__(self, *_):
        self.file.close()


def fingerprint(path, num_samples=NUM_SAMPLES):
    """A checksum of a file's size and of evenly spaced samples, all of it for up to 4 MiB.

    It tells in milliseconds whether a .bin file belongs to its meta.json; reading 20 GB would delay
    each start by a minute.
    """
    check_regular(path)
    size = Path(path).stat().st_size
    last_offset = max(size - FINGERPRINT_BYTES, 0)
    sha256 = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for n in range(num_samples):
            file.seek(last_offset * n // max(num_samples - 1, 1))
            sha256.update(file.read(FINGERPRINT_BYTES))
    return sha256.hexdigest()


def write_meta(path, tokenizer, splits, source, sha256):
    """Write meta.json.

    `splits`: {"train": {"tokens": ..., "bytes": ..., "fingerprint": ...}, "val": ...}, with the
    bytes of the UTF-8 text, or "shards" for "fingerprint": a list of entries with SHARD_KEYS;
    `source` and `sha256`: where the text came from, and the checksum of its files, or of all
    checksums of the shards.
    """
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
    # A file name may contain bytes that are not UTF-8, lone surrogates in Python; JSON writes them
    # as \udce9.
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def read_meta(path, splits):
    """The content of meta.json.

    Raises ValueError, KeyError or TypeError if it is not what write_meta writes.
    """
    meta = json.loads(read_text(path))
    if meta["format"] != FORMAT or "tokenizer" not in meta:
        raise ValueError(f"format {meta['format']}, expected {FORMAT}")
    if meta["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype {meta['dtype']!r}")
    for split in splits:
        for count in ("tokens", "bytes"):
            if type(meta["splits"][split][count]) is not int:
                raise TypeError(f"splits.{split}.{count} is not an integer")
        if "shards" in meta["splits"]["train"]:
            check_shard_entries(meta["splits"][split]["shards"])
    return meta


def check_shard_entries(shards):
    """Raise ValueError, KeyError or TypeError unless it is a list as write_meta writes it."""
    if not shards:
        raise ValueError("a split has no shards")
    for shard in shards:
        for key, expected_type in SHARD_KEYS.items():
            if type(shard[key]) is not expected_type:
                raise TypeError(f"{key} of a shard is not of type {expected_type.__name__}")
        if Path(shard["file"]).name != shard["file"]:
            raise ValueError(f"{shard['file']!r} is not the name of a file in this folder")
