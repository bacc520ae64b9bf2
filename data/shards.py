"""Where the tokens of a data set lie: for each split one file or many, read as one long array."""

import itertools
import os
from bisect import bisect_right
from dataclasses import dataclass
from io import FileIO

import numpy as np

from data import DataError

SPLITS = ("train", "val")
PIECE = 2**20  # tokens read at a time where all are looked at: they fit into a processor's cache


@dataclass(frozen=True)
class Shard:
    """One open file of tokens. Raises DataError where it is not as long as it should be, or has no tokens."""

    file: FileIO
    dtype: np.dtype
    offset: int  # bytes before the first token
    tokens: int

    def __post_init__(self):
        size, whole = os.fstat(self.file.fileno()).st_size, self.offset + self.tokens * self.dtype.itemsize
        if size != whole:
            header = f" and its header of {self.offset:,}" if self.offset else ""
            raise DataError(
                f"{self.file.name} has {size:,} bytes; {self.tokens:,} tokens of {self.dtype.name}{header} are "
                f"{whole:,}. Copy or download it again"
            )
        if not self.tokens:
            raise DataError(f"{self.file.name} has no tokens. Take it out of its folder, or make it again")

    def read(self, out, first):
        """Fill `out` with the tokens from number `first` on. Raises DataError where the file ends before."""
        self.file.seek(self.offset + first * self.dtype.itemsize)  # os.pread would be one call, but not on Windows
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
        self.name = f"{shards[0].file.name}" + (f" (and {len(shards) - 1:,} more)" if len(shards) > 1 else "")
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


def open_flat(path, dtype):
    """A file of tokens and nothing else. Raises DataError."""
    file = open_file(path)
    return Shard(file, dtype, 0, os.fstat(file.fileno()).st_size // dtype.itemsize)


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
