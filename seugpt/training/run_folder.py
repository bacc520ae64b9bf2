"""A run's folder: one run at a time writes into it, and what an earlier run left is moved aside."""

import itertools
import os
import socket
import tempfile

from seugpt.checkpoint.storage import numbered
from seugpt.errors import ConfigError

RUN_FILES = (
    "latest.pt",
    "best.pt",
    "metrics.jsonl",
    "training.log",
    "loss.png",
    "config.py",
    "snapshots",
)
RUN_FILES += ("tensorboard", "wandb_run_id")  # of services.py


def open_folder(folder, resume):
    """Make out_dir and lock it, and unless the run goes on there move an earlier run's files to a folder in it.

    Not those of a run that ended before its first checkpoint: it has left nothing to go on from, and its log goes on.
    Returns the lock, to be closed at the end, and that folder or None. Raises ConfigError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # the surest question whether it can be written
    except OSError as error:
        raise ConfigError(
            f"out_dir={folder} cannot be written ({error.strerror}); choose another --out_dir"
        ) from None
    lock = open_lock(folder)
    earlier = [folder / name for name in RUN_FILES if (folder / name).exists()] + numbered(folder)
    without = (folder / "training.log").exists() and not any(
        path.suffix == ".pt" for path in earlier
    )
    if resume or not earlier or without:
        return lock, None
    previous = next(
        path for n in itertools.count(1) if not (path := folder / f"previous-{n}").exists()
    )
    previous.mkdir()
    for path in earlier:
        path.rename(previous / path.name)
    return lock, previous


def open_lock(folder):
    """The open file of the folder's lock. The system releases it when the process ends, however it ends.

    Raises ConfigError where another run has it.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115, open for as long as the run
    try:
        lock_file(file)
    except (BlockingIOError, PermissionError):  # on Windows the second one
        file.seek(0)
        owner = file.readline().strip() or "another process"
        file.close()
        raise ConfigError(
            f"out_dir={folder} is in use: {owner} trains there. Wait for it, end it, or choose another --out_dir"
        ) from None
    except OSError:  # a network's file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def lock_file(file):
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(1 << 30)  # a byte far behind the text, which stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
