"""Experiment trackers: each line of metrics.jsonl, sent to Weights & Biases and TensorBoard.

A tracker that does not start ends the run before its first step; one that fails later costs a log
line, not the run.
"""

import contextlib
import os
import sys
from pathlib import Path

from seugpt.errors import ConfigError, one_line
from seugpt.files import atomic_write, read_text
from seugpt.training.metrics import iterate_metrics


class Wandb:
    """A run of Weights & Biases.

    A resumed run continues there, except offline, where each part is its own run.
    """

    name = "wandb"
    option = "wandb_log"
    package = "wandb==0.31.0"
    advice = "try wandb login, or"

    def __init__(self, config, resume_step):
        # Without the package, `import wandb` would succeed: earlier runs leave a folder wandb/.
        from wandb import init, teardown

        # Without a network, finishing keeps a run waiting. Environment variables of the user win.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")  # seconds
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        path = Path(config.out_dir, "wandb_run_id")
        run_id = None
        if resume_step is not None and path.exists():
            run_id = read_text(path).strip()
        self.run = init(
            project=config.wandb_project,
            name=config.wandb_run_name,
            config=vars(config),
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.teardown = teardown
        # wandb's own step must increase with every call: ours is a metric like the others.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def open(self, folder):
        if not self.run.offline:
            with atomic_write(folder / "wandb_run_id") as temporary:
                temporary.write_text(self.run.id + "\n", encoding="utf-8")

    def log(self, values):
        self.run.log(values)

    def close(self):
        failed = sys.exc_info()[0] is not None
        try:
            self.run.finish(exit_code=int(failed))
        finally:
            self.teardown()  # otherwise at exit, with a traceback if wandb's process has died


class TensorBoard:
    """Event files in out_dir/tensorboard. purge_step hides what a resumed run does again."""

    name = "TensorBoard"
    option = "tensorboard"
    package = "tensorboard==2.21.0"
    advice = "try"

    def __init__(self, config, resume_step):
        from torch.utils.tensorboard import SummaryWriter

        self.writer_class = SummaryWriter
        self.resume_step = resume_step or 0

    def open(self, folder):
        self.writer = self.writer_class(str(folder / "tensorboard"), purge_step=self.resume_step)
        # The evaluation at resume_step is purged too, so it is written again.
        for values in iterate_metrics(folder / "metrics.jsonl"):
            if values and values["step"] == self.resume_step:
                self.log(values)

    def log(self, values):
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, values["step"])
        self.writer.flush()  # line by line, like metrics.jsonl, so that a crash loses nothing

    def close(self):
        self.writer.close()


class Trackers:
    """The enabled trackers. `warn` reports one that fails."""

    def __init__(self, warn):
        self.warn = warn
        self.running = []

    def start(self, config, resume_step):
        """Connect, before anything is written; `resume_step` None: a new run.

        Raises ConfigError.
        """
        for tracker_class in (Wandb, TensorBoard):
            if getattr(config, tracker_class.option):
                with starting(tracker_class):
                    self.running.append(tracker_class(config, resume_step))

    def open(self, folder):
        """Let them write to out_dir, once it belongs to this run. Raises ConfigError."""
        for tracker in self.running:
            with starting(tracker):
                tracker.open(folder)

    def log(self, values):
        """A line of metrics.jsonl: {name: number}, among them the step."""
        for tracker in list(self.running):
            try:
                tracker.log(values)
            except Exception as error:
                self.running.remove(tracker)
                self.warn(
                    f"{tracker.name} disconnected ({one_line(error)}); the run continues without it"
                )
                with contextlib.suppress(Exception):
                    tracker.close()

    def close(self):
        while self.running:
            tracker = self.running.pop()
            try:
                tracker.close()
            except Exception as error:
                self.warn(
                    f"{tracker.name} disconnected at the end "
                    f"({one_line(error)}): its last lines may be missing"
                )


@contextlib.contextmanager
def starting(tracker):
    """Turn whatever the start of a tracker raises into a ConfigError with advice."""
    disable = f"--{tracker.option}=False"
    try:
        yield
    except ImportError:
        raise ConfigError(
            f"{tracker.option}=True needs the package {tracker.name.lower()}: "
            f"python -m pip install {tracker.package}, or {disable}"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"{tracker.name} does not start ({one_line(error)}); {tracker.advice} {disable}"
        ) from error
