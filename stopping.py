"""Ctrl-C and SIGTERM while a run trains: the step is finished and saved, and only then the process ends."""

import os
import signal


class Stop:
    """While entered, the first SIGINT or SIGTERM is only noted, in `signal`; a second one ends the process at once."""

    def __init__(self, silent=False):
        self.signal, self.silent = 0, silent  # 0: none came

    def __enter__(self):
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]  # as by nohup
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
            os.write(2, b"\nThe step is finished and saved first; once more ends the run at once.\n")
