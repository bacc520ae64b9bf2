"""Where the tokens of a data set lie: for each split one file or many, read as one long array.

prepare.py writes train.bin, val.bin and meta.json. Without meta.json three layouts from elsewhere are known:

    train.bin, val.bin                          nanoGPT: little-endian uint16 and nothing else
    X_train_000001.npy ..., X_val_000000.npy    NumPy, as in fineweb-edu: one dimension of uint16 or uint32
    X_train_000001.bin ..., X_val_000000.bin    llm.c: 256 int32 (magic, version, number of tokens, zeros), then uint16

None of them names its tokenizer; their makers use GPT-2's.
"""

import itertools
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from io import FileIO

import numpy as np

from seugpt.errors import DataError

SPLITS = ("train", "val")
UINT16, UINT32 = np.dtype("<u2"), np.dtype("<u4")
NAME = re.compile(
    r"(?:[^.].*_)?(train|val)(?:_.*)?\.(bin|npy)"
)  # greedy: of several, the last _train or _val counts
HEADER = 256 * 4  # bytes before llm.c's tokens
GPT2_MAGIC, GPT2_VERSION, LLAMA3_MAGIC = 20240520, 1, 20240801  # llm.c, dev/data/data_common.py
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PIECE = 2**20  # tokens read at a time where all are looked at: they fit into a processor's cache


@dataclass(frozen=True)
class Shard:
    """One open file of tokens. Raises DataError where it is not as long as it should be, or has no tokens."""

    file: FileIO
    dtype: np.dtype
    offset: int  # bytes before the first token
    tokens: int

    def __post_init__(self):
        size, whole = (
            os.fstat(self.file.fileno()).st_size,
            self.offset + self.tokens * self.dtype.itemsize,
        )
        if size != whole:
            header = f" and its header of {self.offset:,}" if self.offset else ""
            raise DataError(
                f"{self.file.name} has {size:,} bytes; {self.tokens:,} tokens of {self.dtype.name}{header} are "
                f"{whole:,}. Copy or download it again"
            )
        if not self.tokens:
            raise DataError(
                f"{self.file.name} has no tokens. Take it out of its folder, or make it again"
            )

    def read(self, out, first):
        """Fill `out` with the tokens from number `first` on. Raises DataError where the file ends before."""
        self.file.seek(
            self.offset + first * self.dtype.itemsize
        )  # os.pread would be one call, but not on Windows
        rest = out.view(np.uint8)
        while len(rest):
            count = self.file.readinto(rest)
            if not count:
                raise DataError(
                    f"{self.file.name} became shorter than its {self.tokens:,} tokens while it was in use. "
                    "Restore it, then go on with --init_from=resume"
                )
            rest = rest[count:]


class Tokens:
    """The tokens of a split, whose files follow one another without a gap, as an array that gives slices.

    The files stay open, so that a run whose data is prepared anew keeps the old tokens. They are read, not mapped: to
    map anew at each access is slower, a mapping that lives for a whole run lets every page that was ever read count as
    this process's memory, and a file that is cut short would end the process with a bus error, without a word.
    """

    def __init__(self, shards):
        self.shards, self.dtype = shards, shards[0].dtype
        self.starts = list(itertools.accumulate((shard.tokens for shard in shards), initial=0))
        self.name = f"{shards[0].file.name}" + (
            f" (and {len(shards) - 1:,} more)" if len(shards) > 1 else ""
        )
        for shard in shards:
            if shard.dtype != self.dtype:
                raise DataError(
                    f"{shard.file.name} holds {shard.dtype.name}, {shards[0].file.name} {self.dtype.name}. "
                    "Save all files of a split with the same dtype"
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
            number = bisect_right(self.starts, start) - 1
            while len(row):  # what lies beyond this file's end comes from the next
                shard, first = self.shards[number], start - self.starts[number]
                part = row[: shard.tokens - first]
                shard.read(part, first)
                row, start, number = row[len(part) :], start + len(part), number + 1
        return out

    def pieces(self):
        """(file name, ids) over all tokens, in pieces that lie in one file each."""
        for shard in self.shards:
            for first in range(0, shard.tokens, PIECE):
                ids = np.empty(min(PIECE, shard.tokens - first), self.dtype)
                shard.read(ids, first)
                yield shard.file.name, ids


def open_file(path):
    try:
        file = FileIO(path)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}") from error
    if not os.fstat(file.fileno()).st_size:
        raise DataError(f"{path} is empty. Copy or download it again, or take it out of its folder")
    return file


def open_flat(path, dtype=UINT16):
    """A file of tokens and nothing else: nanoGPT's, and ours. Raises DataError."""
    file = open_file(path)
    return Shard(file, dtype, 0, os.fstat(file.fileno()).st_size // dtype.itemsize)


def open_npy(path):
    """NumPy's .npy; its header alone is parsed, so that pickled objects are never read. Raises DataError."""
    file = open_file(path)
    try:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # ValueError, or what ast and tokenize raise for a damaged header
        raise DataError(
            f"{path} does not begin as a .npy file of version 1 or 2 does ({type(error).__name__}). "
            "Copy or download it again"
        ) from error
    if dtype.hasobject:
        raise DataError(
            f"{path} holds pickled objects, which are never read. Save its ids as uint16"
        )
    if dtype not in (UINT16, UINT32) or len(shape) != 1:
        raise DataError(
            f"{path} is an array of {dtype} with the shape {shape}; tokens are little-endian uint16 or uint32 in one "
            f"dimension. Convert it: python -c \"import numpy as np; np.save('{path}', "
            f"np.load('{path}').ravel().astype('<u4'))\""
        )
    return Shard(file, dtype, file.tell(), shape[0])


def open_llmc(path):
    """A .bin of llm.c with GPT-2's tokens. Raises DataError."""
    file = open_file(path)
    magic, version, tokens = np.frombuffer(file.read(HEADER).ljust(HEADER, b"\0"), "<i4")[
        :3
    ].tolist()
    if magic == LLAMA3_MAGIC:
        raise DataError(
            f"{path} holds Llama 3's tokens (llm.c's magic number {magic}); only GPT-2's can be read. "
            "Make it again with llm.c's tokenizer for GPT-2"
        )
    if magic != GPT2_MAGIC:
        raise DataError(
            f"{path} begins with the number {magic}; llm.c's files with GPT-2's tokens begin with {GPT2_MAGIC}. "
            "Name files that are uint16 tokens without a header train.bin and val.bin"
        )
    if version != GPT2_VERSION:
        raise DataError(
            f"{path} has version {version} of llm.c's layout; only {GPT2_VERSION} can be read. "
            "Make it again with the newest llm.c"
        )
    return Shard(file, UINT16, HEADER, tokens)


LAYOUTS = {"nanoGPT": open_flat, "NumPy": open_npy, "llm.c": open_llmc}


def find_foreign(folder):
    """The layout of a folder without meta.json, and {"train": its files, "val": its files} in name order.

    (None, None) where there are no token files. Raises DataError for several layouts, a lacking split, and nanoGPT's
    meta.pkl, which says that the tokens are not GPT-2's.
    """
    found = {}  # layout -> split -> files
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            layout = (
                "NumPy" if path.suffix == ".npy" else "nanoGPT" if path.stem in SPLITS else "llm.c"
            )
            found.setdefault(layout, {split: [] for split in SPLITS})[match[1]].append(path)
    if not found:
        return None, None
    if (folder / "meta.pkl").exists():
        text = folder / "input.txt"  # nanoGPT leaves it there
        raise DataError(
            f"{folder / 'meta.pkl'} is nanoGPT's sign for tokens that are not GPT-2's, and a pickle is never read. "
            f"Prepare the text anew: python prepare.py {folder.name} "
            f"--input={text if text.exists() else 'FILE_OR_FOLDER'} --tokenizer=char"
        )
    if len(found) > 1:
        examples = " and ".join(
            f"{(files['train'] + files['val'])[0].name} ({k})" for k, files in found.items()
        )
        raise DataError(
            f"{folder} has token files of several layouts: {examples}. Leave those of one in it"
        )
    [(layout, files)] = found.items()
    for here, lacking in (SPLITS, SPLITS[::-1]):
        if not files[lacking]:
            last = files[here][-1]
            start, end = NAME.fullmatch(last.name).span(1)
            renamed = last.with_name(last.name[:start] + lacking + last.name[end:])
            advice = (
                f"use one of them: mv {last} {renamed}"
                if len(files[here]) > 1
                else f"add {renamed}"
            )
            raise DataError(
                f"{folder} has token files for {here} ({last.name}) and none for {lacking}; {advice}"
            )
    return layout, files


def allow_open_files(count):
    """Raise this process's limit of open files so that `count` more fit. Raises DataError at the system's own limit.

    The usual limit is 1,024, on macOS 256, and 100 billion tokens come in 1,000 files. To open files anew at each
    access would do without, but then one that was replaced would slip into the run.
    """
    try:
        import resource
    except ImportError:  # Windows, whose C runtime allows 8,192
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 512  # for all else that a run opens
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{count:,} token files are to stay open, and this system allows a process {hard:,} files. "
            "Join them to fewer and larger ones"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def open_all(files, open_one):
    """{"train": Tokens, "val": Tokens} of {"train": files, "val": files}. Raises DataError."""
    allow_open_files(sum(map(len, files.values())))
    return {split: Tokens([open_one(path) for path in paths]) for split, paths in files.items()}
