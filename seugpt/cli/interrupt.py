"""Imported first by each command, so that Ctrl-C ends it quietly while it imports torch.

Where another program imports the command, nothing changes.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def excepthook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def is_command(module):
    """Whether a module is the file of one of our commands."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().parent == ROOT


if is_command(sys.modules["__main__"]):
    sys.excepthook = excepthook
