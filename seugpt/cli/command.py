"""Around a command's body: its messages, its exit codes, its output."""

import contextlib
import errno
import hashlib
import os
import sys
from pathlib import Path

from seugpt.errors import UserError


def message_of(error):
    """An error's message; one of the operating system's with the file, and where a disk is full with what to do."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    where = f" ({error.filename})" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{error.strerror}{where}" + (
        ". Make room there, then type the same command again" if full else ""
    )


def say_once(message):
    """Print it to stderr, unless another of the processes that torchrun started on this machine has said the same.

    Whoever is the first to make a file of that name says it; the folder that holds torchrun's error files is shared.
    """
    rank, error_file = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:  # .../attempt_0/LOCAL_RANK/error.json
        name = hashlib.sha256(message.encode(errors="backslashreplace")).hexdigest()
        said = Path(error_file).parent.parent / name
        try:
            with open(said, "x") as file:
                file.write(rank)
        except FileExistsError:
            if said.read_text() != rank:
                return
        except OSError:  # better said twice than not at all
            pass
    whose = "" if rank == "0" else f"rank {rank}: "
    print(f"{Path(sys.argv[0]).name}: {whose}{message}", file=sys.stderr)


def silence_stdout():
    """Let what is printed from here on go nowhere: its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def command():
    """Around a command's body: UserError and OSError end in one message and exit code 2, Ctrl-C in 130.

    Output is UTF-8 whatever the locale says: a model of Machado de Assis must be able to speak on any console.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, for as long as the process lives
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")
    try:
        yield
    except BrokenPipeError:  # the reader of our output has gone, as in `python sample.py | head`
        silence_stdout()
        sys.exit(141)  # as a shell has it for SIGPIPE
    except (
        UserError,
        OSError,
        UnicodeEncodeError,
    ) as error:  # the third: a name, in an ASCII locale
        say_once(message_of(error))
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
