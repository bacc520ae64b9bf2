"""Text and tokens: tokenizers, the token files, the built-in corpora. Nothing here imports torch."""

import contextlib
import os
from pathlib import Path


class DataError(ValueError):
    """A problem with a data set, a text or a download, and what to do about it."""


@contextlib.contextmanager
def replacing(path):
    """A temporary name beside `path` to write to. When the body ends well the file takes the place of `path`, whole
    and on the disk; when it fails, or is killed, `path` is what it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
