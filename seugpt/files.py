"""Text and tokens: tokenizers, the token files, the built-in corpora. Nothing here imports torch."""

import contextlib
import errno
import os
import re
from pathlib import Path


@contextlib.contextmanager
def replacing_all(*paths):
    """Temporary names beside `paths` to write to. When the body ends well the files take the places of `paths`, in
    this order, once all of them are whole and on the disk; when it fails, `paths` are what they were."""
    paths = [Path(path) for path in paths]
    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    for path in paths:
        remove_abandoned(path)
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ):  # write(2) does not know the name of its file
            error.filename = str(paths[0].parent)
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path):
    """replacing_all for one file, which is at every moment either the old one or the new one, whole."""
    with replacing_all(path) as [temporary]:
        yield temporary


def remove_abandoned(path):
    """Remove what processes that were killed while they wrote to `path` have left behind."""
    for file in path.parent.iterdir():
        match = re.fullmatch(re.escape(f".{path.name}.") + r"(\d+)\.tmp", file.name)
        if match and not process_exists(int(match[1])):
            with contextlib.suppress(OSError):
                file.unlink()


def process_exists(pid):
    """Whether this machine has such a process. On Windows, where to ask so would end it, always True."""
    try:
        if os.name != "nt":
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True
