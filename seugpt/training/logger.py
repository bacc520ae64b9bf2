"""What a run tells and leaves behind: the console; in out_dir training.log, metrics.jsonl, loss.png and config.py."""

import contextlib
import json
import math
import shlex
import signal
import sys
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from seugpt.checkpoint.storage import demand_unchanged, describe
from seugpt.cli.command import silence_stdout
from seugpt.cli.options import to_source
from seugpt.errors import ConfigError
from seugpt.files import replacing
from seugpt.training.layer_stats import drop_snapshots_after
from seugpt.training.metrics import drop_metrics_from
from seugpt.training.run_folder import open_folder
from seugpt.training.trackers import Services

NO_BETTER = 3  # evaluations after which a run says that it gets no better


def open_lines(path):
    """A file to append to, written line by line, so that a crash loses none. In it may stand any file's name."""
    return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)


def duration(seconds):
    """Seconds as 1:02:03, or as 4 days, 1:02:03."""
    return str(timedelta(seconds=min(round(seconds), timedelta.max // timedelta(seconds=1))))


def resume_command(folder):
    return f"python train.py --init_from=resume --out_dir={shlex.quote(str(folder))}"


class RunLog:
    """A run's console, training.log, metrics.jsonl, loss.png and services; silent on every rank but the first."""

    def __init__(self, options, resumed=None, silent=False):
        """Opens out_dir, unless the run only evaluates; resumed: the checkpoint from which it goes on.

        Raises ConfigError where out_dir or a service cannot be used, CheckpointError where another run just wrote it.
        """
        self.options, self.silent, self.resume_step = (
            options,
            silent,
            resumed["step"] if resumed else None,
        )
        self.folder = None if silent or options.eval_only else Path(options.out_dir)
        self.bar = self.log_file = self.metrics_file = self.lock = None
        self.services = Services(self.say)
        if self.folder:
            self.services.start(options, self.resume_step)
            self.lock, previous = open_folder(self.folder, resumed is not None)
            if resumed:
                demand_unchanged(resumed)
            damaged = drop_metrics_from(self.resume_step or 0, self.folder / "metrics.jsonl")
            drop_snapshots_after(self.resume_step or 0, self.folder)
            self.log_file = open_lines(self.folder / "training.log")
            self.metrics_file = open_lines(self.folder / "metrics.jsonl")
            if previous:
                self.say(f"the earlier run in {self.folder} is now in {previous}")
                if (previous / "latest.pt").exists():
                    self.say(f"    to go on with it: {resume_command(previous)}")
            if damaged:
                self.say(
                    f"{damaged} damaged line(s) of {self.folder / 'metrics.jsonl'} are left out"
                )
            self.services.open(self.folder)
        if self.folder and sys.stderr.isatty():
            form = (
                "{percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            )
            self.bar = tqdm(
                total=options.max_iters,
                initial=self.resume_step or 0,
                bar_format=form,
                dynamic_ncols=True,
            )

    def start(self, model, dataset, world_size, content=None, report=()):
        """The lines that open a run: its model, data, steps and starting point; and config.py, which repeats it."""
        options, T, training_tokens = self.options, model.config.block_size, dataset.tokens["train"]
        tokens = options.tokens_per_step(T)
        self.say(
            f"model: {model.parameter_count():,} parameters; {dataset.path}: {training_tokens:,} training tokens"
        )
        for note in dataset.notes:
            self.say(f"note: {note}")
        if not options.eval_only:
            self.say(
                f"a step: {options.gradient_accumulation_steps} micro-batches x {options.batch_size} sequences x "
                f"{T} tokens = {tokens:,} tokens"
            )
            passes = options.max_iters * tokens / training_tokens
            self.say(
                f"{options.max_iters:,} steps pass over the data {passes:.2f} times; processes: {world_size}"
            )
        if content and self.resume_step is None:
            for line in [
                *content.get("notes", []),
                f"weights from {describe(content)}; everything else starts anew",
            ]:
                self.say(line)
            for line in report:
                self.say("    " + line)
        elif content:
            for note in content.get("notes", []):
                self.say(f"note: {note}")
            theirs, ours = (
                {**content["train_config"], **content["model_config"]},
                {**vars(options), **vars(model.config)},
            )
            changed = [
                f"{k} {theirs[k]} -> {v}" for k, v in ours.items() if k in theirs and theirs[k] != v
            ]
            self.say(
                f"resumed from {content['path']} at step {content['step']:,}, best validation loss "
                f"{content['best_val_loss']:.4f}; changed since: {', '.join(changed) or 'nothing'}"
            )
        decay, end = options.lr_decay_iters, options.max_iters
        if options.decay_lr and decay > end:
            self.say(
                f"note: lr_decay_iters={decay} is beyond max_iters={end}: the rate will not come down to min_lr"
            )
        if options.decay_lr and decay < end:
            self.say(
                f"note: lr_decay_iters={decay} is below max_iters={end}: from there on the rate stays at min_lr"
            )
        if options.decay_lr and options.warmup_iters > end:
            self.say(
                f"note: warmup_iters={options.warmup_iters} is beyond max_iters={end}: the rate will still rise"
            )
        if options.decay_lr and options.min_lr > options.learning_rate:
            self.say(
                f"note: min_lr={options.min_lr} is above learning_rate={options.learning_rate}: the rate will rise"
            )
        if self.folder:
            with replacing(self.folder / "config.py") as temporary:
                temporary.write_text(to_source(model.config, options), encoding="utf-8")

    def say(self, text, to_console=True):
        """A line for the console, above the bar where there is one, and for training.log."""
        if self.silent:
            return
        if to_console:
            try:
                print(text, flush=True) if self.bar is None else self.bar.write(text)
            except OSError:  # the console has gone, as in `| head`: the run and its log go on
                silence_stdout()
        self.append(self.log_file, text)

    def append(self, file, line):
        """Write a line to the file, if it is open. Raises ConfigError."""
        try:
            if file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(
                f"cannot write {file.name} ({error.strerror}). Make room there, then go on from the last checkpoint: "
                f"{resume_command(self.options.out_dir)}"
            ) from error

    def metrics(self, **values):
        self.append(self.metrics_file, json.dumps(values))
        self.services.log(values)

    def step(self, step, step_ms, tokens_per_s, mfu, **values):
        """One logged step (values: loss, lr, grad_norm, clipped): the bar where there is one, a line elsewhere."""
        loss, lr = values["loss"], values["lr"]
        values = {
            "step": step,
            **values,
            "step_ms": step_ms,
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
        }
        self.metrics(**{name: value for name, value in values.items() if value is not None})
        speed = f"{tokens_per_s:,.0f} tokens/s" + ("" if mfu is None else f", MFU {mfu:.1%}")
        left = duration((self.options.max_iters - step - 1) * step_ms / 1000)
        line = f"step {step}: loss {loss:.4f}, lr {lr:.2e}, {step_ms:.1f} ms, {speed}, {left} left"
        self.say(line, to_console=self.bar is None)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}, {speed}", refresh=False)

    def tick(self):
        """One step was made."""
        if self.bar is not None:
            self.bar.update()

    def evaluation(self, step, losses, param_norm, text, vocab_size, best):
        self.metrics(
            step=step, train_loss=losses["train"], val_loss=losses["val"], param_norm=param_norm
        )
        best = best and not self.options.eval_only
        mark = " (best)" if best else ""
        self.say(
            f"step {step}: train loss {losses['train']:.4f}, validation loss {losses['val']:.4f}{mark}"
        )
        if step == 0 and self.options.init_from == "scratch":
            meaning = "a model that knows nothing finds all tokens about equally likely"
            if losses["val"] > math.log(vocab_size) + 1:
                meaning = (
                    "its first weights are too large, so that it is sure of what it cannot know"
                )
            self.say(
                f"before training the loss is {losses['val']:.4f}; ln(vocab_size) = ln({vocab_size}) = "
                f"{math.log(vocab_size):.4f}: {meaning}"
            )
        self.say("    | " + text.replace("\n", "\n    | "))

    def no_better(self, evaluations, best_val_loss, best_step):
        """A word of warning, once, where so many evaluations in a row were worse than the best one."""
        if evaluations == NO_BETTER:
            self.say(
                f"note: no better since step {best_step}, where the validation loss was {best_val_loss:.4f}; best.pt "
                "is of there. The model may be learning its text by heart: more text, a larger dropout or "
                "--patience=N, which ends such a run"
            )

    def done(self, step, best_val_loss, best_step, stop=0):
        """The lines that close a run; stop: the signal that ended it early."""
        if not self.folder:
            return
        if stop:
            self.say(
                f"{signal.Signals(stop).name}: saved at step {step}; to go on: {resume_command(self.folder)}"
            )
            return
        picture = self.folder / "loss.png"
        curves = f"; the curves are in {picture}" if picture.exists() else ""
        if step < self.options.max_iters:
            self.say(
                f"patience={self.options.patience} ended the run at step {step} of {self.options.max_iters}; to go on:"
            )
            self.say(f"    {resume_command(self.folder)} --patience=0")
        self.say(f"done: best validation loss {best_val_loss:.4f}, at step {best_step}{curves}")
        self.say(f"let it write: python sample.py --out_dir={shlex.quote(str(self.folder))}")

    def close(self):
        try:
            self.services.close()
        finally:
            for file in (self.log_file, self.metrics_file, self.lock):
                if file:
                    with contextlib.suppress(OSError):  # of what a full disk did not take
                        file.close()
            if self.bar is not None:
                self.bar.close()
