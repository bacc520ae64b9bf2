"""How many CPU threads torch uses: one instead of two while another program needs a core.

OpenMP's threads wait for each other in a loop that keeps a core busy. On two cores, one other busy
program makes a step several times slower with two threads, and hardly slower with one
(docs/SPEED.md).
"""

import os
import sys
import threading
import time
from concurrent.futures import Future
from typing import Annotated

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None

ThreadsOption = Annotated[
    int | None, "CPU threads; None: torch's choice, adapted to a busy machine", ">= 1"
]
WINDOW_SECONDS = 0.5  # over which the share of the CPU is measured
RETRY_SECONDS = 10.0  # until two threads are tried again, doubled each time that it fails
MAX_RETRY_SECONDS = 160.0
MAX_SHARE = 0.8  # of the CPU time that two threads have on a quiet machine
MIN_SWITCHES = 60  # per second; on a quiet machine some 30
ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")


class CpuThreads:
    """Adapts torch's number of threads to what the other programs on this machine leave.

    Only between one and two, which gave the same results bit for bit wherever it was tried, while
    three and four did not; only on Linux; and not where the environment says how many.
    """

    def __init__(self, wanted=None, notify=print):
        """`wanted`: --threads, a fixed number; `notify`: is called with a line for each change."""
        if wanted is not None:
            torch.set_num_threads(wanted)
        self.notify = notify
        is_free = wanted is None and not any(name in os.environ for name in ENVIRONMENT)
        self.adapts = is_free and torch.get_num_threads() == 2 and sys.platform == "linux"
        self.retry_seconds = RETRY_SECONDS
        self.retry_at = 0.0
        self.num_contended = 0  # windows in a row
        self.is_trial = False
        self.restart(time.perf_counter())

    def restart(self, now):
        """Begin a window."""
        self.start = now
        self.usage = process_usage() if self.adapts else None

    def tick(self):
        """To be called after each piece of work, such as a step or a token."""
        now = time.perf_counter()
        if not self.adapts or now < self.start + WINDOW_SECONDS:
            return
        if torch.get_num_threads() == 1:
            if now > self.retry_at:
                torch.set_num_threads(2)
                self.is_trial = True
        else:
            self.judge(self.is_contended(now), now)
        self.restart(now)

    def is_contended(self, now):
        """Whether this window's two threads had to share their cores with another program."""
        seconds = now - self.start
        cpu_seconds, switches = (b - a for a, b in zip(self.usage, process_usage(), strict=True))
        return cpu_seconds < 2 * MAX_SHARE * seconds and switches > MIN_SWITCHES * seconds

    def judge(self, contended, now):
        """Go to one thread after two contended windows, or one of a trial; stay with two else."""
        self.num_contended = self.num_contended + 1 if contended else 0
        if not contended:
            if self.is_trial:
                self.notify("the CPU is free again: two threads")
            self.is_trial = False
            self.retry_seconds = RETRY_SECONDS
        elif self.is_trial or self.num_contended > 1:
            if self.is_trial:
                self.retry_seconds = min(2 * self.retry_seconds, MAX_RETRY_SECONDS)
            else:
                self.notify("another program keeps the CPU busy: one thread, until it is free")
            torch.set_num_threads(1)
            self.is_trial = False
            self.num_contended = 0
            self.retry_at = now + self.retry_seconds


def start_in_own_thread(function, *args):
    """The Future of function(*args), called in a thread that ends with it.

    With that thread end the OpenMP threads that it used. Each thread that computes gets OpenMP
    threads of its own, which stay as long as it does. Once there are more of them than cores, all
    of them sleep instead of waiting in a loop, and the small operations of decoding take twice the
    time.
    """
    future = Future()
    future.set_running_or_notify_cancel()  # whoever waits may give up, but the call goes on

    def call():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()  # no Ctrl-C has to wait for it
    return future


def process_usage():
    """(CPU seconds, involuntary context switches) of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_nivcsw
