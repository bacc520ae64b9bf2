"""Ctrl-C, SIGTERM and a closed terminal: the run finishes its step and saves before it ends."""

import contextlib
import os
import signal
import threading
import time

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
NOTICE = b"\nFinishing this step and saving; Ctrl-C again quits now.\n"
REPEAT_SECONDS = 2  # a signal may arrive twice: from a shell and the kernel, or from torchrun


class SignalHandler:
    """While entered, the first of SIGNALS is only noted, in `received`.

    Further ones are ignored, except for Ctrl-C after REPEAT_SECONDS, which ends the process at
    once: a closed terminal sends SIGHUP twice within a millisecond, and torchrun passes on to its
    processes what they have received themselves. In another thread than the main one nothing is
    handled: signals are not ours there.
    """

    def __init__(self, quiet=False):
        self.received = 0  # 0: none
        self.received_at = 0.0
        self.quiet = quiet

    def __enter__(self):
        handled = []
        if threading.current_thread() is threading.main_thread():
            # nohup makes a process ignore SIGHUP.
            handled = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
        self.previous = {signum: signal.signal(signum, self.handle) for signum in handled}
        return self

    def __exit__(self, *_):
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def handle(self, signum, frame):
        if not self.received:
            self.received = signum
            self.received_at = time.monotonic()
            if not self.quiet:  # unbuffered: it may arrive while Python is writing to stderr
                with contextlib.suppress(OSError):  # nobody reads it any more
                    os.write(2, NOTICE)
        elif signum == signal.SIGINT and time.monotonic() > self.received_at + REPEAT_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
