"""Zero-shot tasks: a model of ours behind the interface of EleutherAI's lm-evaluation-harness.

evaluate.py --tasks=... runs it; the package lm_eval is needed, and for most tasks the network, for their questions.

Shapes: B rows, T tokens, V vocabulary.
"""

import contextlib
import difflib
import itertools
import logging
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from model import IGNORE
from seugpt.checkpoint import pretrained as weights
from seugpt.errors import ConfigError, DataError
from seugpt.generation.decoder import Decoder, Sampling, TextStream, generate

RESAMPLES = 1000  # of a task's questions, for the error of what is no mean: it is then known to a 40th of itself
DRAWING = {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
}  # of a task's generation_kwargs
READ = DRAWING | {"until", "max_gen_toks", "do_sample", "num_beams"}


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of questions, in batches of about the same length.

    A context longer than the model's window loses its beginning, as with the harness's own models for transformers.
    """

    def __init__(self, model, tokenizer, device, autocast, batch_size):
        super().__init__()
        self.model, self.tokenizer, self.autocast, self.batch_size = (
            model,
            tokenizer,
            autocast,
            batch_size,
        )
        self._device = device

    @property
    def eot_token_id(self):
        """The first id of a text before which another ends: its mark of a beginning, else of an end, else a newline."""
        return int(self.tokenizer.prompt(self.tokenizer.separator)[0])

    def tok_encode(self, string, add_special_tokens=None, **_):
        """The ids of a text, with the mark that its beginning has for the model, unless add_special_tokens is False."""
        if whole := getattr(self.tokenizer, "whole", None):  # a tokenizer.json of Hugging Face's
            return whole.encode(string, add_special_tokens=add_special_tokens is not False).ids
        try:
            return self.tokenizer.prompt(string).tolist() if string else []
        except DataError as error:
            raise DataError(f"a task has what the model never saw in training: {error}") from error

    def loglikelihood(self, requests, disable_tqdm=True):
        """[(log-probability in nats of a continuation after its context, whether it is the greedy one)]."""
        return super().loglikelihood(
            requests, disable_tqdm=disable_tqdm
        )  # which makes tokens of them, for the next

    def _loglikelihood_tokens(self, requests, **_):
        rows = [
            (context or [self.prefix_token_id], continuation)
            for _, context, continuation in requests
        ]
        return self.score(
            [(context + continuation, len(continuation)) for context, continuation in rows]
        )

    def loglikelihood_rolling(self, requests, disable_tqdm=True):
        """[log-probability in nats of a whole text]: of each token after as many as a window holds."""
        texts = [self.tok_encode(*request.args, add_special_tokens=False) for request in requests]
        return [
            total
            for total, _ in self.score([([self.prefix_token_id, *ids], len(ids)) for ids in texts])
        ]

    def score(self, rows):
        """[(sum of log-probabilities, whether all are the greedy choice)] of the last tokens of each row.

        rows: (ids, how many are scored), with at least one id before these. Where they do not fit into one window they
        are scored in several, the later ones each as full as can be.
        """
        parts, block_size = [], self.model.config.block_size
        for number, (ids, scored) in enumerate(rows):
            for begin in range(len(ids) - scored, len(ids), block_size):
                end = min(begin + block_size, len(ids))
                parts.append((number, ids[max(end - 1 - block_size, 0) : end], end - begin))
        parts.sort(
            key=lambda part: -len(part[1])
        )  # the longest first: if memory does not suffice, at once
        sums, greedy = [0.0] * len(rows), [True] * len(rows)
        with tqdm(total=len(parts), unit=" texts", leave=False, disable=None) as bar:
            for batch in batched(parts, self.batch_size):
                for (number, _, _), total, same in zip(
                    batch, *self.score_batch(batch), strict=True
                ):
                    sums[number] += total
                    greedy[number] &= same
                bar.update(len(batch))
        return list(zip(sums, greedy, strict=True))

    @torch.no_grad()
    def score_batch(self, parts):
        """(sums, whether greedy), a list with one of each for every part: (number, ids, how many are scored)."""
        shape = len(parts), max(len(ids) for _, ids, _ in parts) - 1
        x, y = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORE)
        for row, (_, ids, scored) in enumerate(
            parts
        ):  # padded on the right, where no scored token looks
            T, ids = len(ids) - 1, torch.tensor(ids)
            x[row, :T], y[row, T - scored : T] = ids[:-1], ids[T + 1 - scored :]
        x, y = x.to(self.device), y.to(self.device)
        with self.autocast:
            logits = self.model(x, y)[0]  # (B, T, V)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), y.flatten(), ignore_index=IGNORE, reduction="none"
        )
        same = (logits.argmax(dim=-1) == y) | (y == IGNORE)  # (B, T)
        return (-losses.view(shape).cpu().double().sum(dim=1)).tolist(), same.all(dim=1).tolist()

    def generate_until(self, requests, disable_tqdm=True):
        """[the text with which the model goes on from a context, up to the first of its stop texts]."""
        rows = [
            (self.tok_encode(context) or [self.eot_token_id], kwargs)
            for context, kwargs in map(args_of, requests)
        ]
        order = sorted(range(len(rows)), key=lambda i: (repr(rows[i][1]), -len(rows[i][0])))
        replies = {}
        with tqdm(total=len(rows), unit=" texts", leave=False, disable=None) as bar:
            for _, alike in itertools.groupby(
                order, key=lambda i: repr(rows[i][1])
            ):  # drawn in the same way
                for batch in batched(alike, self.batch_size):
                    contexts, kwargs = [rows[i][0] for i in batch], rows[batch[0]][1]
                    replies.update(zip(batch, self.write(contexts, kwargs), strict=True))
                    bar.update(len(batch))
        return [replies[i] for i in range(len(rows))]

    def write(self, contexts, kwargs):
        """The texts with which the model goes on from contexts, lists of ids, that are cut so that its reply fits.

        At least half a window stays of a context; then the window moves on with the reply, as in sample.py.
        """
        if unknown := kwargs.keys() - READ or (kwargs.get("num_beams", 1) != 1 and {"num_beams"}):
            raise DataError(
                f"a task asks for {', '.join(sorted(unknown))} in its generation_kwargs, which is not here"
            )
        tokens, block_size = kwargs["max_gen_toks"], self.model.config.block_size
        drawing = {name: value for name, value in kwargs.items() if name in DRAWING}
        sampling = Sampling(**{"temperature": 0.0, "top_k": None, **drawing})
        contexts = [
            context[-max(block_size - tokens, block_size // 2, 1) :] for context in contexts
        ]
        mark = self.tokenizer.separator
        stop = tuple(
            text for text in (*kwargs["until"], mark.strip()) if text
        )  # two line ends are no end of a text
        streams, texts = [TextStream(self.tokenizer, stop) for _ in contexts], [""] * len(contexts)
        with self.autocast:
            decoder = Decoder(self.model, len(contexts), max(map(len, contexts)) + tokens)
            for count, ids in enumerate(
                generate(decoder, contexts, tokens, self.tokenizer.vocab_size, sampling), 1
            ):
                for row, token in enumerate(ids.tolist()):
                    texts[row] += streams[row].feed(token, last=count == tokens)
                if all(stream.finished for stream in streams):
                    break
        return texts


def args_of(request):
    """The context and what its task says about the reply, in one form."""
    context, kwargs = request.args
    return context, normalize_gen_kwargs(kwargs)


def batched(items, size):
    """Lists of at most `size` items. itertools has it from Python 3.12 on."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


@contextlib.contextmanager
def their_names():
    """Some tasks import Hugging Face's package evaluate: meanwhile our evaluate.py is not found by this name."""
    path, ours, here = (
        sys.path,
        sys.modules.pop("evaluate", None),
        Path(__file__).resolve().parents[2],
    )
    sys.path = [folder for folder in path if Path(folder).resolve() != here]
    try:
        yield
    finally:
        sys.path = path
        if ours:
            sys.modules["evaluate"] = ours


class Tasks(TaskManager):
    """The harness's tasks, whose failures to load are one message."""

    def load(self, names):
        try:
            return super().load(names)
        except (
            Exception
        ) as error:  # the network's, the data set's, the task's own, of whatever kind
            advice = "Most tasks' questions come from Hugging Face's hub: connect to the network, or name the .yaml of one"
            raise DataError(
                f"tasks={','.join(names)}: lm-evaluation-harness cannot load them: {in_a_line(error)}"
                + (f". {advice} of your own" if isinstance(error, OSError) else "")
            ) from error


def find_tasks(names):
    """The harness's manager of tasks, which knows each of the names. Raises ConfigError."""
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    if missing := [name for name in files if not Path(name).is_file()]:
        raise ConfigError(f"tasks={missing[0]}: there is no such file")
    manager = Tasks(include_defaults=files != names)  # to look for all that there are takes seconds
    if unknown := [name for name in names if name not in files and name not in manager.task_index]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, 3)
        advice = f"did you mean {', '.join(near)}? " if near else ""
        raise ConfigError(
            f"tasks={unknown[0]}: there is no such task; {advice}All are told by: lm_eval ls tasks"
        )
    return manager


def in_a_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def table(results):
    """The harness's results in lines: a task's metrics, each with its standard error where the harness has one."""
    rows = [("task", "questions", "examples", "metric", "value", "standard error")]
    for task, metrics in results["results"].items():
        asked = results["n-samples"].get(task, {}).get("effective", "")
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if filtered and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{filtered}")
                name = metric if filtered == "none" else f"{metric} ({filtered})"
                figures = [f"{x:.4f}" if isinstance(x, int | float) else "" for x in (value, error)]
                rows.append(
                    (task, str(asked), str(results["n-shot"].get(task, "")), name, *figures)
                )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def run(content, model, device, autocast, options):
    """Print how the model does in the tasks. Raises ConfigError, DataError."""
    names = list(dict.fromkeys(name.strip() for name in options.tasks.split(",") if name.strip()))
    lm = HarnessModel(model, weights.tokenizer_of(content), device, autocast, options.batch_size)
    logging.disable(logging.WARNING)  # of the harness, and of each time that the hub is asked again
    os.environ["DISABLE_MULTIPROC"] = (
        "1"  # the harness's resampling would start a process for each core
    )
    print(f"loading {', '.join(names)} ...", file=sys.stderr, flush=True)
    how = {"num_fewshot": options.num_fewshot, "limit": options.limit, "bootstrap_iters": RESAMPLES}
    with (
        their_names(),
        contextlib.redirect_stdout(sys.stderr),
    ):  # what the harness prints is no result
        try:
            manager = find_tasks(names)
            results = simple_evaluate(
                lm, tasks=names, task_manager=manager, log_samples=False, **how
            )
        except (
            ConfigError,
            DataError,
            MemoryError,
            RuntimeError,
        ):  # the last one may be for want of memory
            raise
        except Exception as error:  # of a task, of its metrics or of what they need
            raise DataError(
                f"tasks={options.tasks}: lm-evaluation-harness stopped: {in_a_line(error)}"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    print("\n".join(table(results)))
