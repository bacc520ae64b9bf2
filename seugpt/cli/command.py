"""What surrounds a command: its messages, exit codes and output streams."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from seugpt.errors import ConfigError, DeviceError, UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shells' convention
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
OUT_OF_MEMORY_PHRASES = (  # in messages of torch and Python
    "out of memory",
    "allocate memory",
    "size calculation overflowed",
    "index-sized integer",
    "are too long",
)


@contextlib.contextmanager
def command(distributed=False):
    """Run a command's body; a user's mistake ends it with one message and exit code 2.

    `distributed`: whether torchrun may run it as several processes, which is refused else. An
    OSError ends it with 2 as well, Ctrl-C with 130. Output is UTF-8 whatever the locale says, so
    that accented text can be printed on any console.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open until the process ends
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")
    try:
        if not distributed:
            check_one_process()
        yield
    except BrokenPipeError:  # the reader of our output has gone, as in `python sample.py | head`
        silence_stdout()
        sys.exit(EXIT_BROKEN_PIPE)
    except (UserError, OSError, UnicodeEncodeError) as error:  # the last: an accent in ASCII
        print_once(message_of(error))
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def check_one_process():
    """Raise ConfigError if torchrun started several processes, which would all do the same."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        script = Path(sys.argv[0]).name
        raise ConfigError(f"runs as one process: python {script}, without torchrun")


def message_of(error):
    """An error's message; for an OSError with the file name, for a full disk with advice."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    message = error.strerror
    if error.filename:
        message += f" ({error.filename})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message += ". Free some space there, then run the same command again"
    return message


def print_once(message):
    """Print to stderr; of torchrun's processes on this machine, only the first to fail prints."""
    if is_first_to_fail():
        rank = os.environ.get("RANK", "0")
        prefix = "" if rank == "0" else f"rank {rank}: "
        print(f"{Path(sys.argv[0]).name}: {prefix}{message}", file=sys.stderr)


def is_first_to_fail():
    """Whether this process is the first to fail; it creates a marker beside torchrun's error files.

    Without torchrun it is always the first.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # .../attempt_0/LOCAL_RANK/error.json
    if not error_file:
        return True
    marker = Path(error_file).parent.parent / "seugpt-failed"
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # printing twice beats not printing
        return True
    return True


def silence_stdout():
    """Discard everything printed from here on: its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_subcommand(argv, names, description):
    """(one of `names`, the arguments after it) of a command line (None: sys.argv).

    Prints `description` and exits on --help. Raises ConfigError.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(description)
        sys.exit(0)
    if name not in names:
        script = Path(sys.argv[0]).name
        choices = ", ".join(names)
        raise ConfigError(f"unknown command {name}; choose {choices} (python {script} --help)")
    return name, rest


@contextlib.contextmanager
def out_of_memory_advice(advice):
    """Turn running out of memory, on a GPU or the CPU, into a DeviceError with advice."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        is_out_of_memory = any(phrase in str(error) for phrase in OUT_OF_MEMORY_PHRASES)
        if not isinstance(error, MemoryError) and not is_out_of_memory:
            raise
        first_line = str(error).partition("\n")[0]
        details = f" ({first_line})" if first_line else ""
        raise DeviceError(f"out of memory: {advice}{details}") from error
