"""Files that survive crashes: atomic writes, one writer at a time in a folder, regular files."""

import contextlib
import errno
import os
import re
import shutil
import socket
from pathlib import Path

from seugpt.errors import ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_regular(path):
    """Raise OSError if `path` is a folder, a pipe or a device, which can be read for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path):
    """The text of a UTF-8 file. Raises OSError, also for what is no regular file, or ValueError."""
    check_regular(path)
    return Path(path).read_text(encoding="utf-8")


@contextlib.contextmanager
def atomic_write_all(*paths):
    """Yields temporary paths to write to; they replace `paths`, in order, if the body succeeds.

    All of them are complete and on the disk before the first replaces its file. If the body fails,
    `paths` are unchanged.
    """
    paths = [Path(path) for path in paths]
    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
        sync_folder(paths[0].parent)
    except OSError as error:
        if error.errno in DISK_FULL:  # write(2) does not know the name of its file
            error.filename = str(paths[0].parent)
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def disk_space(error, folder):
    """ " (... bytes are free there)" if an error of writing may be a full disk, else "".

    torch and safetensors raise types of their own, which do not say the reason.
    """
    if isinstance(error, OSError) and error.errno not in DISK_FULL:
        return ""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f" ({shutil.disk_usage(existing).free:,} bytes are free there)"


def sync_folder(folder):
    """Have the names of its files on the disk; not possible on Windows, nor needed there."""
    if os.name != "nt":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError:  # some network file systems cannot
            pass
        finally:
            os.close(fd)


@contextlib.contextmanager
def atomic_write(path):
    """atomic_write_all for one file: at every moment it is the old or the new one, complete."""
    with atomic_write_all(path) as [temporary]:
        yield temporary


def lock_folder(folder):
    """Make `folder` this process's own to write to, and remove what killed writers left there.

    Returns the open lock file; closing it releases the lock, as does the end of the process,
    however it ends. Raises ConfigError if another process holds the lock.
    """
    file = acquire_lock(folder / ".lock", folder)
    remove_temporaries(folder)
    return file


def remove_temporaries(folder, prefix=""):
    """Remove what atomic_write of killed processes left of files that begin with `prefix`."""
    for path in folder.iterdir():
        if re.fullmatch(rf"\.{re.escape(prefix)}.+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def acquire_lock(path, folder):
    """Lock the file `path`. Raises ConfigError, naming `folder`, if another process has it."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, open while the lock is held
    try:
        lock_file(file)
    except (BlockingIOError, PermissionError):  # PermissionError on Windows
        file.seek(0)
        owner = file.readline().strip() or "another process"
        file.close()
        raise ConfigError(
            f"{folder} is in use by {owner}. Wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError:  # a network file system without locks
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

        file.seek(1 << 30)  # a byte far behind the text, so that the text stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
