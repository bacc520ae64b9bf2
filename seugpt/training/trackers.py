"""What a run tells to Weights & Biases and TensorBoard: each line of metrics.jsonl, where the options ask for it.

A service that does not start ends the run before its first step; one that is lost later costs a line, and no run.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

from seugpt.errors import ConfigError
from seugpt.files import replacing
from seugpt.training.metrics import parsed_lines


class Wandb:
    """A run of Weights & Biases. One that goes on is the same there, except offline, where each is of its own."""

    name, option, package, advice = "wandb", "wandb_log", "wandb==0.31.0", "try wandb login, or"

    def __init__(self, options, resume_step):
        from wandb import (
            init,
            teardown,
        )  # not the module: where a folder has its name, that would be taken for it

        # Without a network its end keeps a run waiting. As variables: yours stand, and an older wandb passes over them.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")  # seconds
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        path = Path(options.out_dir, "wandb_run_id")
        known = (
            path.read_text(encoding="utf-8").strip()
            if resume_step is not None and path.exists()
            else None
        )
        self.run = init(
            project=options.wandb_project,
            name=options.wandb_run_name,
            config=vars(options),
            id=known,
            resume="allow" if known else None,
        )
        self.teardown = teardown
        # Its own step must rise with every call, or what it is told is ignored: ours is a number like the others.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def open(self, folder):
        if not self.run.offline:
            with replacing(folder / "wandb_run_id") as temporary:
                temporary.write_text(self.run.id + "\n", encoding="utf-8")

    def log(self, values):
        self.run.log(values)

    def close(self):
        try:
            self.run.finish(
                exit_code=int(sys.exc_info()[0] is not None)
            )  # not 0 where an error ends the run
        finally:
            self.teardown()  # else it is done at Python's exit, with a traceback where wandb's process has died


class TensorBoard:
    """Event files in out_dir/tensorboard. A run that goes on takes back what it does again (purge_step)."""

    name, option, package, advice = "TensorBoard", "tensorboard", "tensorboard==2.21.0", "try"

    def __init__(self, options, resume_step):
        from torch.utils.tensorboard import SummaryWriter

        self.writer_class, self.resume_step = SummaryWriter, resume_step or 0

    def open(self, folder):
        self.excepthook, threading.excepthook = threading.excepthook, self.keep_silent
        self.writer = self.writer_class(str(folder / "tensorboard"), purge_step=self.resume_step)
        for values in parsed_lines(
            folder / "metrics.jsonl"
        ):  # of that step, the evaluation is not done again
            if values and values["step"] == self.resume_step:
                self.log(values)

    def keep_silent(self, args):
        """What ends SummaryWriter's thread, its next call raises in ours, where it is told: in a line, no traceback."""
        if not type(args.thread).__module__.startswith("tensorboard."):
            self.excepthook(args)

    def log(self, values):
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, values["step"])
        self.writer.flush()  # line by line, as metrics.jsonl, so that a crash loses none

    def close(self):
        threading.excepthook = self.excepthook
        self.writer.close()


class Services:
    """Those that a run's options ask for; say: what a line about one that is lost is told to."""

    def __init__(self, say):
        self.say, self.running = say, []

    def start(self, options, resume_step):
        """Connect to them, before anything is written. resume_step: where the run goes on, or None. ConfigError."""
        for kind in (Wandb, TensorBoard):
            if getattr(options, kind.option):
                with starting(kind):
                    self.running.append(kind(options, resume_step))

    def open(self, folder):
        """Let them write into the run's folder, now that it is this run's. Raises ConfigError."""
        for service in self.running:
            with starting(service):
                service.open(folder)

    def log(self, values):
        """A line of metrics.jsonl: {name: number}, among them the step."""
        for service in list(self.running):
            try:
                service.log(values)
            except Exception as error:
                self.running.remove(service)
                self.say(f"{service.name} is lost ({reason(error)}); the run goes on without it")
                with contextlib.suppress(Exception):
                    service.close()

    def close(self):
        while self.running:
            service = self.running.pop()
            try:
                service.close()
            except Exception as error:
                self.say(
                    f"{service.name} is lost at the end ({reason(error)}): it may lack the last lines"
                )


@contextlib.contextmanager
def starting(service):
    """Around what starts a service: what it raises, its own kinds too, becomes a ConfigError with the way on."""
    try:
        yield
    except ImportError:
        without = f"--{service.option}=False"
        needs = f"{service.option}=True needs the package {service.name.lower()}"
        raise ConfigError(
            f"{needs}: python -m pip install {service.package}, or {without}"
        ) from None
    except Exception as error:
        without = f"{service.advice} --{service.option}=False"
        raise ConfigError(f"{service.name} does not start ({reason(error)}); {without}") from error


def reason(error):
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
