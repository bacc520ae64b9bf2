"""What ends a run early: a loss that is no number; or Ctrl-C, SIGTERM, a closed terminal, which let it save first."""

import contextlib
import os
import signal

import torch

from seugpt.errors import TrainingError

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def not_finite(found, step, dtype, options):
    """The TrainingError of a step whose loss or gradient, `found`, is no number; with what may have caused it."""
    rates = f"learning_rate={options.learning_rate}"
    rates += f" and muon_lr={options.muon_lr}" if options.optimizer == "muon" else ""
    return TrainingError(
        f"stopped in step {step}: {found}, {dtype}. That step is not in the weights, and the checkpoints "
        f"in {options.out_dir} are of before. Try a tenth of {rates}"
        + (", or --dtype=float32" if dtype != torch.float32 else "")
    )


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
        if (
            not self.silent
        ):  # written past Python's buffers, in the middle of whose work a signal may come
            with contextlib.suppress(OSError):  # nobody reads any more
                os.write(
                    2, b"\nThe step is finished and saved first; once more ends the run at once.\n"
                )
