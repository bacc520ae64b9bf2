"""The token files of a split: one or many, read as one long array.

prepare.py writes train.bin, val.bin and meta.json. Three external layouts, without meta.json, are
supported as well:

    train.bin, val.bin                     nanoGPT: little-endian uint16 and nothing else
    X_train_000001.npy, X_val_000000.npy   NumPy, as in fineweb-edu: uint16 or uint32, one dimension
    X_train_000001.bin, X_val_000000.bin   llm.c: 256 int32 (magic, version, number of tokens,
                                           zeros), then uint16

The first two do not name their tokenizer; the magic number of the third stands for GPT-2's.
"""

import itertools
import os
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from io import FileIO
from threading import Lock

import numpy as np

from seugpt.errors import DataError
from seugpt.files import check_regular

SPLITS = ("train", "val")
UINT16 = np.dtype("<u2")
UINT32 = np.dtype("<u4")
# Greedy: of several _train or _val in a name, the last one counts.
FILE_NAME = re.compile(r"(?:[^.].*_)?(train|val)(?:_.*)?\.(bin|npy)")
LLMC_HEADER_BYTES = 256 * 4
GPT2_MAGIC = 20240520  # llm.c, dev/data/data_common.py
GPT2_VERSION = 1
LLAMA3_MAGIC = 20240801
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
CHUNK_TOKENS = 2**20  # read at a time in a pass over all tokens: fits into a processor's cache
SPARE_FILES = 512  # open files that a run needs besides its token files


@dataclass(frozen=True)
class Shard:
    """One open token file. Raises DataError if its size does not match or it has no tokens."""

    file: FileIO
    dtype: np.dtype
    offset: int  # bytes before the first token
    num_tokens: int
    lock: Lock = field(default_factory=Lock, repr=False)  # training reads ahead in a thread

    def __post_init__(self):
        size = os.fstat(self.file.fileno()).st_size
        expected = self.offset + self.num_tokens * self.dtype.itemsize
        if size != expected:
            header = f" and a header of {self.offset:,}" if self.offset else ""
            raise DataError(
                f"{self.file.name} has {size:,} bytes; {self.num_tokens:,} {self.dtype.name} "
                f"tokens{header} take {expected:,}. Copy or download it again"
            )
        if not self.num_tokens:
            raise DataError(
                f"{self.file.name} has no tokens. Remove it from its folder, or write it again"
            )

    def read_into(self, out, first):
        """Fill `out` with the tokens from index `first` on.

        Raises DataError if the file ends too early.
        """
        remaining = out.view(np.uint8)
        with self.lock:
            self.file.seek(self.offset + first * self.dtype.itemsize)  # Windows has no os.pread
            while len(remaining):
                count = self.file.readinto(remaining)
                if not count:
                    raise DataError(
                        f"{self.file.name} was truncated to fewer than its {self.num_tokens:,} "
                        "tokens while in use. Restore it, then continue with --init_from=resume"
                    )
                remaining = remaining[count:]


class TokenArray:
    """The tokens of a split, the concatenation of its shards, as an array that supports slicing.

    The files stay open, so a run keeps its tokens even if the data is prepared again. They are
    read, not memory-mapped: mapping anew at each access is slower, a mapping that lives for the
    whole run makes every page ever read count as this process's memory, and truncating a mapped
    file kills the process with a bus error.
    """

    def __init__(self, shards):
        self.shards = shards
        self.dtype = shards[0].dtype
        self.starts = list(itertools.accumulate((shard.num_tokens for shard in shards), initial=0))
        self.name = str(shards[0].file.name)
        if len(shards) > 1:
            self.name += f" (and {len(shards) - 1:,} more)"
        for shard in shards:
            if shard.dtype != self.dtype:
                raise DataError(
                    f"{shard.file.name} has {shard.dtype.name} tokens, {shards[0].file.name} "
                    f"{self.dtype.name}. Save all files of a split with the same dtype"
                )

    def __len__(self):
        return self.starts[-1]

    def __getitem__(self, part):
        """tokens[start:stop], a new array."""
        assert part.step is None
        start, stop, _ = part.indices(len(self))
        return self.windows([start], max(stop - start, 0))[0]

    def windows(self, starts, length):
        """The `length` tokens from each of `starts` on, (len(starts), length)."""
        out = np.empty((len(starts), length), self.dtype)
        for row, start in zip(out, starts, strict=True):
            self.read_into(row, start)
        return out

    def read_into(self, row, start):
        """Fill `row` with the tokens from index `start` on, from as many shards as it takes."""
        index = bisect_right(self.starts, start) - 1
        while len(row):
            shard = self.shards[index]
            first = start - self.starts[index]
            part = row[: shard.num_tokens - first]
            shard.read_into(part, first)
            row = row[len(part) :]
            start += len(part)
            index += 1

    def chunks(self):
        """(file name, ids) over all tokens, in chunks that each lie in one file."""
        for shard in self.shards:
            for first in range(0, shard.num_tokens, CHUNK_TOKENS):
                ids = np.empty(min(CHUNK_TOKENS, shard.num_tokens - first), self.dtype)
                shard.read_into(ids, first)
                yield shard.file.name, ids


def open_file(path):
    try:
        check_regular(path)
        file = FileIO(path)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}") from error
    if not os.fstat(file.fileno()).st_size:
        raise DataError(f"{path} is empty. Copy or download it again, or remove it from its folder")
    return file


def open_flat(path, dtype=UINT16):
    """A file of tokens and nothing else: nanoGPT's, and ours. Raises DataError."""
    file = open_file(path)
    return Shard(file, dtype, 0, os.fstat(file.fileno()).st_size // dtype.itemsize)


def open_npy(path):
    """A NumPy .npy file; only its header is parsed, so pickled objects are never loaded.

    Raises DataError.
    """
    file = open_file(path)
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = NPY_HEADERS[version](file)
    except Exception as error:  # ValueError, or what ast and tokenize raise for a damaged header
        raise DataError(
            f"{path} has no valid .npy header of version 1 or 2 ({type(error).__name__}). "
            "Copy or download it again"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{path} contains pickled objects, which are never loaded. Save its ids as uint16"
        )
    if dtype not in (UINT16, UINT32) or len(shape) != 1:
        name = path.as_posix()  # a backslash would be an escape in Python
        convert = f"np.save('{name}', np.load('{name}').ravel().astype('<u4'))"
        raise DataError(
            f"{path} is a {dtype} array of shape {shape}; tokens must be little-endian uint16 or "
            f'uint32 in one dimension. Convert it: python -c "import numpy as np; {convert}"'
        )
    return Shard(file, dtype, file.tell(), shape[0])


def open_llmc(path):
    """A .bin file of llm.c with GPT-2 tokens. Raises DataError."""
    file = open_file(path)
    header = file.read(LLMC_HEADER_BYTES).ljust(LLMC_HEADER_BYTES, b"\0")
    magic, version, num_tokens = np.frombuffer(header, "<i4")[:3].tolist()
    if magic == LLAMA3_MAGIC:
        raise DataError(
            f"{path} has Llama 3 tokens (llm.c's magic number {magic}); only GPT-2 "
            "tokens are supported. Write it again with llm.c's GPT-2 tokenizer"
        )
    if magic != GPT2_MAGIC:
        raise DataError(
            f"{path} begins with the number {magic}; llm.c's files of GPT-2 tokens begin with "
            f"{GPT2_MAGIC}. If these are uint16 tokens without a header, name them train.bin and "
            "val.bin"
        )
    if version != GPT2_VERSION:
        raise DataError(
            f"{path} has version {version} of llm.c's layout; only version "
            f"{GPT2_VERSION} is supported. Write it again with the latest llm.c"
        )
    return Shard(file, UINT16, LLMC_HEADER_BYTES, num_tokens)


LAYOUTS = {"nanoGPT": open_flat, "NumPy": open_npy, "llm.c": open_llmc}
LAYOUTS_OF_GPT2 = ("llm.c",)  # whose files say that their tokens are GPT-2's


def find_external(folder):
    """The layout of a folder without meta.json, and {"train": files, "val": files}, sorted by name.

    (None, None) if it has no token files. Raises DataError for several layouts, a missing split, or
    nanoGPT's meta.pkl, which means that the tokens are not GPT-2's.
    """
    found = {}  # {layout: {split: files}}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := FILE_NAME.fullmatch(path.name):
            files = found.setdefault(layout_of(path), {split: [] for split in SPLITS})
            files[match[1]].append(path)
    if not found:
        return None, None
    if (folder / "meta.pkl").exists():
        text = folder / "input.txt"  # nanoGPT leaves it there
        source = text if text.exists() else "FILE_OR_FOLDER"
        raise DataError(
            f"{folder / 'meta.pkl'} means that the tokens are not GPT-2's, and pickles are never "
            f"loaded. Prepare the text again: python prepare.py {folder.name} --input={source} "
            "--tokenizer=char"
        )
    if len(found) > 1:
        examples = [
            f"{(files['train'] + files['val'])[0].name} ({layout})"
            for layout, files in found.items()
        ]
        raise DataError(
            f"{folder} has token files of several layouts: "
            f"{' and '.join(examples)}. Keep those of one"
        )
    [(layout, files)] = found.items()
    check_both_splits(folder, files)
    return layout, files


def layout_of(path):
    if path.suffix == ".npy":
        return "NumPy"
    return "nanoGPT" if path.stem in SPLITS else "llm.c"


def check_both_splits(folder, files):
    """Raise DataError if a split has no files, with how to name one."""
    for present, missing in (SPLITS, SPLITS[::-1]):
        if files[missing]:
            continue
        last = files[present][-1]
        start, end = FILE_NAME.fullmatch(last.name).span(1)
        renamed = last.with_name(last.name[:start] + missing + last.name[end:])
        has_several = len(files[present]) > 1
        advice = f"use one of them: mv {last} {renamed}" if has_several else f"add {renamed}"
        raise DataError(
            f"{folder} has token files for {present} ({last.name}) but none for {missing}; {advice}"
        )


def allow_open_files(count):
    """Raise this process's limit of open files to fit `count` more.

    The usual limit is 1,024 (256 on macOS), and 100 billion tokens come in 1,000 files. Opening
    files anew at each access would avoid that, but then a file that was replaced would slip into a
    running training. Raises DataError at the system's own limit.
    """
    try:
        import resource
    except ImportError:  # Windows, whose C runtime allows 8,192
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{count:,} token files must stay open, but this system allows a "
            f"process {hard:,} open files. Merge them into fewer, larger files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def open_all(files, open_shard):
    """{"train": TokenArray, "val": TokenArray} of {"train": files, "val": files}.

    Raises DataError.
    """
    allow_open_files(sum(map(len, files.values())))
    return {
        split: TokenArray([open_shard(path) for path in paths]) for split, paths in files.items()
    }
