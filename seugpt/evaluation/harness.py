"""Zero-shot tasks: our models behind the interface of EleutherAI's lm-evaluation-harness.

evaluate.py --tasks=... uses it. It needs the package lm_eval, and for most tasks the network, for
their questions.

Shapes: B rows, T tokens, V vocabulary.
"""

import contextlib
import difflib
import itertools
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from model import IGNORE_INDEX
from seugpt.errors import ConfigError, DataError, UserError, one_line
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import TextStream, stream_texts

BOOTSTRAP_ITERS = 1000  # resamples for the standard error of a metric that is not a mean
SAMPLING_KEYS = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
GENERATION_KEYS = SAMPLING_KEYS | {"until", "max_gen_toks", "do_sample", "num_beams"}


@dataclass
class Segment:
    """A window of a text, of which the last `num_scored` ids are scored."""

    row: int
    ids: list[int]
    num_scored: int


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of requests, in batches of similar length.

    A context longer than the model's window loses its beginning, as with the harness's own models
    for transformers.
    """

    def __init__(self, model, tokenizer, device, autocast, batch_size):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.autocast = autocast
        self.batch_size = batch_size
        self._device = device

    @property
    def eot_token_id(self):
        """The id before a text: begin-of-text if there is one, else end-of-text or newline."""
        return int(self.tokenizer.encode_prompt(self.tokenizer.document_separator)[0])

    def tok_encode(self, string, add_special_tokens=None, **_):
        """The ids of a text, with its begin-of-text token unless add_special_tokens is False."""
        encoder = getattr(self.tokenizer, "prompt_encoder", None)  # a Hugging Face tokenizer's
        if encoder:
            return encoder.encode(string, add_special_tokens=add_special_tokens is not False).ids
        try:
            return self.tokenizer.encode_prompt(string).tolist() if string else []
        except DataError as error:
            problem = f"a task has characters that the model never saw in training: {error}"
            raise DataError(problem) from error

    def loglikelihood(self, requests, disable_tqdm=True):
        """[(log-probability in nats of a continuation, whether it is the greedy one)]."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests, **_):
        rows = []
        for _, context, continuation in requests:
            context = context or [self.prefix_token_id]
            rows.append((context + continuation, len(continuation)))
        return self.score(rows)

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        """[log-probability in nats of a whole text], each token given as many as a window holds."""
        rows = []
        for request in requests:
            ids = self.tok_encode(*request.args, add_special_tokens=False)
            rows.append(([self.prefix_token_id, *ids], len(ids)))
        return [total for total, _ in self.score(rows)]

    def score(self, rows):
        """[(sum of log-probabilities, whether all are greedy)] of the last tokens of each row.

        `rows`: (ids, number scored), with at least one id before the scored ones. A row that does
        not fit into one window is scored in several, each as full as possible.
        """
        segments = split_rows(rows, self.model.config.block_size)
        # Longest first: it runs out of memory at once or never.
        segments.sort(key=lambda segment: len(segment.ids), reverse=True)
        sums = [0.0] * len(rows)
        greedy = [True] * len(rows)
        with tqdm(total=len(segments), unit=" texts", leave=False, disable=None) as bar:
            for batch in batched(segments, self.batch_size):
                scores = zip(batch, *self.score_batch(batch), strict=True)
                for segment, total, is_greedy in scores:
                    sums[segment.row] += total
                    greedy[segment.row] &= is_greedy
                bar.update(len(batch))
        return list(zip(sums, greedy, strict=True))

    @torch.no_grad()
    def score_batch(self, segments):
        """(sums of log-probabilities, whether greedy): two lists with one item per segment."""
        shape = len(segments), max(len(segment.ids) for segment in segments) - 1
        x = torch.zeros(shape, dtype=torch.long)
        y = torch.full(shape, IGNORE_INDEX)
        for row, segment in enumerate(segments):  # padded on the right, where no scored token looks
            ids = torch.tensor(segment.ids)
            T = len(ids) - 1
            x[row, :T] = ids[:-1]
            y[row, T - segment.num_scored : T] = ids[T + 1 - segment.num_scored :]
        x = x.to(self.device)
        y = y.to(self.device)
        with self.autocast:
            logits, _ = self.model(x, y)  # (B, T, V)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        sums = -losses.view(shape).cpu().double().sum(dim=1)
        is_greedy = (logits.argmax(dim=-1) == y) | (y == IGNORE_INDEX)  # (B, T)
        return sums.tolist(), is_greedy.all(dim=1).tolist()

    def generate_until(self, requests, disable_tqdm=True):
        """[the continuation of each context, up to the first of its stop sequences]."""
        rows = []
        for request in requests:
            context, kwargs = request.args
            ids = self.tok_encode(context) or [self.eot_token_id]
            rows.append((ids, normalize_gen_kwargs(kwargs)))
        # Rows that are drawn in the same way form batches, the longest first.
        order = sorted(range(len(rows)), key=lambda i: (repr(rows[i][1]), -len(rows[i][0])))
        replies = {}
        with tqdm(total=len(rows), unit=" texts", leave=False, disable=None) as bar:
            for _, group in itertools.groupby(order, key=lambda i: repr(rows[i][1])):
                for batch in batched(group, self.batch_size):
                    contexts = [rows[i][0] for i in batch]
                    kwargs = rows[batch[0]][1]
                    replies.update(zip(batch, self.generate(contexts, kwargs), strict=True))
                    bar.update(len(batch))
        return [replies[i] for i in range(len(rows))]

    def generate(self, contexts, kwargs):
        """The continuations of contexts, lists of ids, cut so that the reply fits into the window.

        At least half a window of context is kept; beyond that the window moves on, as in sample.py.
        """
        check_generation_kwargs(kwargs)
        max_new_tokens = kwargs["max_gen_toks"]
        sampling = {key: value for key, value in kwargs.items() if key in SAMPLING_KEYS}
        params = SamplingParams(**{"temperature": 0.0, "top_k": None, **sampling})
        block_size = self.model.config.block_size
        kept = max(block_size - max_new_tokens, block_size // 2, 1)
        contexts = [context[-kept:] for context in contexts]
        stops = tuple(stop for stop in kwargs["until"] if stop)
        stop_ids = self.tokenizer.special.eos_ids(self.tokenizer)
        streams = [TextStream(self.tokenizer, stops, stop_ids) for _ in contexts]
        num_rows = len(contexts)
        vocab_size = self.tokenizer.vocab_size
        texts = [""] * num_rows
        with self.autocast:
            decoder = Decoder(self.model, num_rows, max(map(len, contexts)) + max_new_tokens)
            tokens = generate_tokens(decoder, contexts, max_new_tokens, vocab_size, params)
            for row, text in stream_texts(tokens, streams, max_new_tokens):
                texts[row] += text
        return texts


def split_rows(rows, block_size):
    """The Segments of rows (ids, number scored)."""
    segments = []
    for row, (ids, num_scored) in enumerate(rows):
        for start in range(len(ids) - num_scored, len(ids), block_size):
            end = min(start + block_size, len(ids))
            window = ids[max(end - 1 - block_size, 0) : end]
            segments.append(Segment(row, window, end - start))
    return segments


def check_generation_kwargs(kwargs):
    """Raise DataError if a task's generation_kwargs ask for something that is not supported."""
    unsupported = kwargs.keys() - GENERATION_KEYS
    if kwargs.get("num_beams", 1) != 1:
        unsupported |= {"num_beams"}
    if unsupported:
        raise DataError(
            f"a task's generation_kwargs are not supported: {', '.join(sorted(unsupported))}"
        )


def batched(items, size):
    """Lists of at most `size` items; itertools has this from Python 3.12 on."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


@contextlib.contextmanager
def without_our_evaluate():
    """Hide our evaluate.py while tasks import Hugging Face's package of the same name."""
    root = Path(__file__).resolve().parents[2]
    path = sys.path
    ours = sys.modules.pop("evaluate", None)
    sys.path = [folder for folder in path if Path(folder).resolve() != root]
    try:
        yield
    finally:
        sys.path = path
        if ours:
            sys.modules["evaluate"] = ours


class Tasks(TaskManager):
    """The harness's tasks; if one fails to load, that is one message."""

    def load(self, names):
        try:
            return super().load(names)
        except Exception as error:  # the network's, the data set's or the task's own, of any type
            advice = ""
            if isinstance(error, OSError):
                advice = (
                    ". Most tasks' questions come from the Hugging Face hub: "
                    "connect to the network, or give the .yaml file of a local task"
                )
            raise DataError(
                f"tasks={','.join(names)}: lm-evaluation-harness "
                f"cannot load them: {one_line(error)}{advice}"
            ) from error


def find_tasks(names):
    """The harness's task manager, if it knows each of the names. Raises ConfigError."""
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    for name in files:
        if not Path(name).is_file():
            raise ConfigError(f"tasks={name}: there is no such file")
    manager = Tasks(include_defaults=files != names)  # listing the built-in tasks takes seconds
    unknown = [name for name in names if name not in files and name not in manager.task_index]
    if unknown:
        matches = difflib.get_close_matches(unknown[0], manager.all_tasks, 3)
        suggestion = f"did you mean {', '.join(matches)}? " if matches else ""
        raise ConfigError(
            f"tasks={unknown[0]}: there is no such task; {suggestion}To list all: lm_eval ls tasks"
        )
    return manager


def results_table(results):
    """The harness's results as lines: each metric of a task, with its standard error."""
    rows = [("task", "samples", "n-shot", "metric", "value", "stderr")]
    for task, metrics in results["results"].items():
        num_samples = str(results["n-samples"].get(task, {}).get("effective", ""))
        num_fewshot = str(results["n-shot"].get(task, ""))
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            name = metric if filter_name == "none" else f"{metric} ({filter_name})"
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            numbers = (format_number(value), format_number(stderr))
            rows.append((task, num_samples, num_fewshot, name, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def format_number(value):
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def print_tasks(lm, tasks, num_fewshot, limit):
    """Run zero-shot tasks, a comma-separated list, on a HarnessModel and print their metrics.

    Raises ConfigError, DataError.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    logging.disable(logging.WARNING)  # the harness's, and one for each retry of the hub
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would start a process for each core
    print(f"loading {', '.join(names)} ...", file=sys.stderr, flush=True)
    # What the harness prints is not a result.
    with without_our_evaluate(), contextlib.redirect_stdout(sys.stderr):
        try:
            results = simple_evaluate(
                lm,
                tasks=names,
                task_manager=find_tasks(names),
                num_fewshot=num_fewshot,
                limit=limit,
                bootstrap_iters=BOOTSTRAP_ITERS,
                log_samples=False,
            )
        except (UserError, MemoryError, RuntimeError):  # RuntimeError: possibly out of memory
            raise
        except Exception as error:  # of a task, of its metrics or of what they need
            raise DataError(
                f"tasks={tasks}: lm-evaluation-harness stopped: {one_line(error)}"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    print("\n".join(results_table(results)))
