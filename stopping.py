"""Ctrl-C, SIGTERM and a closed terminal while a run trains: the step is finished and saved, then the process ends."""

import contextlib
import os
import signal

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """While entered, the first of SIGNALS is only noted, in `signal`; a second one ends the process at once."""

    def __init__(self, silent=False):
        self.signal, self.silent = 0, silent  # 0: none came

    def __enter__(self):
        numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as by nohup
        self.before = {number: signal.signal(number, self.note) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        if not self.silent:  # written past Python's buffers, in the middle of whose work a signal may come
            with contextlib.suppress(OSError):  # nobody reads any more
                os.write(2, b"\nThe step is finished and saved first; once more ends the run at once.\n")
