"""Ctrl-C, SIGTERM and a closed terminal: the run finishes its step and saves before it ends."""

import contextlib
import os
import signal

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
NOTICE = b"\nFinishing this step and saving; Ctrl-C again quits now.\n"


class SignalHandler:
    """While entered, the first of SIGNALS is only noted; a second one ends the process at once."""

    def __init__(self, quiet=False):
        self.received = 0  # 0: none
        self.quiet = quiet

    def __enter__(self):
        # nohup makes a process ignore SIGHUP.
        handled = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
        self.previous = {signum: signal.signal(signum, self.handle) for signum in handled}
        return self

    def __exit__(self, *_):
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def handle(self, signum, frame):
        if self.received:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = signum
        if not self.quiet:  # unbuffered: the signal may arrive while Python is writing to stderr
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(2, NOTICE)
