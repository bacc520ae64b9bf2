"""What a run shows and writes: console, training.log, metrics.jsonl, config.py and trackers."""

import contextlib
import json
import math
import os
import shlex
import signal
import sys
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from seugpt.checkpoint.sharded import step_folders
from seugpt.checkpoint.storage import check_unchanged
from seugpt.cli.command import silence_stdout
from seugpt.cli.config_parser import to_source
from seugpt.data.text import escape_control_chars
from seugpt.errors import ConfigError
from seugpt.files import atomic_write, check_regular
from seugpt.training.log_samples import SAMPLE_INDENT
from seugpt.training.metrics import truncate_metrics
from seugpt.training.run_description import (
    describe_pretrained,
    describe_resume,
    describe_work,
    schedule_notes,
)
from seugpt.training.run_folder import open_run_folder
from seugpt.training.snapshots import remove_snapshots_after
from seugpt.training.trackers import Trackers

EVALS_BEFORE_WARNING = 3  # without improvement
BAR_FORMAT = "{percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def open_log(path):
    """A file to append to, flushed at each line, so that a crash loses none."""
    check_regular(path)
    # A file name in the log may have bytes that are not UTF-8.
    return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)


def file_id(path):
    """What tells a file or folder from another of the same name; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def format_duration(seconds):
    """Seconds as 1:02:03, or 4 days, 1:02:03."""
    longest = timedelta.max // timedelta(seconds=1)
    return str(timedelta(seconds=min(round(seconds), longest)))


def resume_command(folder):
    return f"python train.py --init_from=resume --out_dir={shlex.quote(str(folder))}"


class RunLogger:
    """A run's console, training.log, metrics.jsonl and trackers; quiet on every rank but the first.

    `folder` is out_dir, or None if this process writes nothing.
    """

    def __init__(self, config, resumed=None, quiet=False):
        """Opens out_dir, unless the run only evaluates. `resumed`: the checkpoint to continue from.

        Raises ConfigError if out_dir or a tracker cannot be used, CheckpointError if another run
        just wrote there.
        """
        self.config = config
        self.quiet = quiet
        self.resume_step = resumed["step"] if resumed else None
        self.folder = None if quiet or config.eval_only else Path(config.out_dir)
        self.trackers = Trackers(warn=self.info)
        self.bar = None
        self.files = []  # open ones: training.log, metrics.jsonl and the lock
        self.log_file = None
        self.metrics_file = None
        self.run_config = ""  # the text of config.py
        if self.folder:
            try:
                self.trackers.start(config, self.resume_step)
                self.open_folder(resumed)
            except BaseException:
                self.close()
                raise
            if sys.stderr.isatty():
                self.bar = tqdm(
                    total=config.max_iters,
                    initial=self.resume_step or 0,
                    bar_format=BAR_FORMAT,
                    dynamic_ncols=True,
                )

    def open_folder(self, resumed=None):
        lock, previous = open_run_folder(self.folder, resume=resumed is not None)
        self.files = [lock]
        self.folder_id = file_id(self.folder)
        if resumed:
            check_unchanged(resumed)
        metrics_path = self.folder / "metrics.jsonl"
        resume_step = resumed["step"] if resumed else None
        num_damaged = truncate_metrics(metrics_path, resume_step)
        remove_snapshots_after(self.folder, resume_step or 0)
        self.log_file = open_log(self.folder / "training.log")
        self.metrics_file = open_log(metrics_path)
        self.files += [self.log_file, self.metrics_file]
        if previous:
            self.info(f"moved the earlier run in {self.folder} to {previous}")
            if (previous / "latest.pt").exists() or step_folders(previous):
                self.info(f"    to continue it: {resume_command(previous)}")
        if num_damaged:
            self.info(f"dropped {num_damaged} damaged line(s) of {metrics_path}")
        self.trackers.open(self.folder)

    def owns_folder(self):
        """Whether out_dir is still the folder that this run opened."""
        return self.folder is not None and file_id(self.folder) == self.folder_id

    def reopen_folder(self):
        """If out_dir was moved or deleted, continue in a new one. Returns whether it was.

        Raises ConfigError if another run writes there now.
        """
        if self.folder is None or self.owns_folder():
            return False
        self.close_files()
        self.open_folder()
        self.write_config()
        self.info(f"note: {self.folder} was moved or deleted; the run continues in a new folder")
        return True

    def write_config(self):
        with atomic_write(self.folder / "config.py") as temporary:
            temporary.write_text(self.run_config, encoding="utf-8")

    def start(self, model, dataset, world_size, ckpt=None, adaptation_notes=()):
        """Log what a run consists of and what it starts from; write config.py, which repeats it."""
        lines = describe_work(model, self.config, dataset, world_size)
        if ckpt and self.resume_step is None:
            lines += describe_pretrained(ckpt, adaptation_notes)
        elif ckpt:
            lines += describe_resume(ckpt, self.config, model.config)
        for line in [*lines, *schedule_notes(self.config)]:
            self.info(line)
        self.run_config = to_source(model.config, self.config)
        if self.folder:
            self.write_config()

    def info(self, text, to_console=True):
        """A line for the console, above the progress bar if there is one, and for training.log."""
        if self.quiet:
            return
        if to_console:
            with self.console():
                if self.bar is None:
                    print(text, flush=True)
                else:
                    self.bar.write(text)
        self.append(self.log_file, text)

    @contextlib.contextmanager
    def console(self):
        """If the console has gone, as in `| head` or a closed terminal, the run continues."""
        try:
            yield
        except OSError:
            silence_stdout()
            if self.bar is not None:
                self.bar.disable = True

    def append(self, file, line):
        """Write a line to a file, if it is open. Raises ConfigError."""
        try:
            if file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(
                f"cannot write {file.name} ({error.strerror}). Free some space there, then "
                f"continue from the last checkpoint: {resume_command(self.config.out_dir)}"
            ) from error

    def sync(self):
        """Have all metrics on the disk, as before a checkpoint that continues them."""
        if self.metrics_file is not None:
            os.fsync(self.metrics_file.fileno())

    def metrics(self, **values):
        self.append(self.metrics_file, json.dumps(values))
        self.trackers.log(values)

    def step(self, step, loss, lr, grad_norm, num_clipped_steps, step_ms, tokens_per_s, mfu, eta_s):
        """One logged step: on the progress bar if there is one, else as a line."""
        values = {
            "step": step,
            "loss": loss,
            "lr": lr,
            "num_clipped_steps": num_clipped_steps,
            "grad_norm": grad_norm,
            "step_ms": step_ms,
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
        }
        self.metrics(**{name: value for name, value in values.items() if value is not None})
        speed = f"{tokens_per_s:,.0f} tok/s"
        if mfu is not None:
            speed += f", MFU {mfu:.1%}"
        if eta_s is not None:
            speed += f", ETA {format_duration(eta_s)}"
        line = f"step {step}: loss {loss:.4f}, lr {lr:.2e}, {step_ms:.1f} ms, {speed}"
        self.info(line, to_console=self.bar is None)
        if self.bar is not None:
            postfix = f"loss {loss:.4f}, lr {lr:.1e}, {speed}"
            self.bar.set_postfix_str(postfix, refresh=False)

    def advance(self):
        """One step was made."""
        if self.bar is not None:
            with self.console():
                self.bar.update()

    def evaluation(self, step, losses, param_norm, sample, vocab_size, is_best):
        """One evaluation: its losses, and a short sample of the model's text."""
        self.metrics(
            step=step, train_loss=losses["train"], val_loss=losses["val"], param_norm=param_norm
        )
        mark = " (best)" if is_best and not self.config.eval_only else ""
        self.info(
            f"step {step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}{mark}"
        )
        if step == 0 and self.config.init_from == "scratch":
            self.explain_initial_loss(losses["val"], vocab_size)
        text = escape_control_chars(sample)
        self.info(SAMPLE_INDENT + text.replace("\n", f"\n{SAMPLE_INDENT}"))

    def explain_initial_loss(self, val_loss, vocab_size):
        expected = math.log(vocab_size)
        meaning = "an untrained model finds all tokens about equally likely"
        if val_loss > expected + 1:
            meaning = "the initial weights are too large, so the untrained model is overconfident"
        self.info(
            f"before training the loss is {val_loss:.4f}; ln(vocab_size) "
            f"= ln({vocab_size}) = {expected:.4f}: {meaning}"
        )

    def warn_no_improvement(self, state):
        """A warning, once, after several evaluations in a row without a new best one."""
        if state.evals_since_best == EVALS_BEFORE_WARNING:
            self.info(
                f"note: no improvement since step {state.best_step}, validation loss "
                f"{state.best_val_loss:.4f} (best.pt). The model may be overfitting: use more "
                "text, a higher dropout, or --patience=N, which stops such a run"
            )

    def end(self, state, signum=0):
        """The lines that close a run; `signum`: the signal that ended it early, or 0."""
        if not self.folder:
            return
        if signum:
            name = signal.Signals(signum).name
            self.info(
                f"{name}: saved at step {state.step}; to continue: {resume_command(self.folder)}"
            )
            return
        if state.step < self.config.max_iters:
            patience = f"patience={self.config.patience}"
            self.info(f"stopped at step {state.step} of {self.config.max_iters} by {patience}")
            self.info(f"    to continue: {resume_command(self.folder)} --patience=0")
        best = f"best validation loss {state.best_val_loss:.4f} at step {state.best_step}"
        self.info(f"done: {best}")
        plot = self.folder / "loss.png"
        if plot.exists():
            self.info(f"loss curves: {plot}")
        self.info(f"sample from it: python sample.py --out_dir={shlex.quote(str(self.folder))}")

    def close(self):
        try:
            self.trackers.close()
        finally:
            self.close_files()
            if self.bar is not None:
                with self.console():
                    self.bar.close()

    def close_files(self):
        for file in reversed(self.files):
            with contextlib.suppress(OSError):  # on a full disk it cannot be flushed
                file.close()
