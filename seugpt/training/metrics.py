"""metrics.jsonl: one JSON object per line, read and truncated."""

import json

from seugpt.files import atomic_write, check_regular


def parse_line(line):
    """The {name: number} of a line, with its step; None for one damaged by a crash or an editor."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(map(is_number, values.values())):
        return None
    if type(values.get("step")) is not int or is_evaluation(values) != ("train_loss" in values):
        return None
    return values


def is_evaluation(values):
    return "val_loss" in values


def is_number(value):
    """Whether a plot can show it: no bool, no int beyond a float's range."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def iterate_metrics(path):
    """parse_line of each line, one by one: the lines of a long run would fill the memory."""
    check_regular(path)
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if line != b"\n":
                    yield parse_line(line)


def read_metrics(path):
    """(lines as dictionaries, number of damaged ones left out); no lines if there is no file."""
    parsed = list(iterate_metrics(path))
    metrics = [values for values in parsed if values is not None]
    return metrics, len(parsed) - len(metrics)


def truncate_metrics(path, resume_step):
    """Drop what a run will log again: what came after its checkpoint; all for a new run (None).

    Damaged lines are dropped too; returns their number.
    """
    metrics, num_damaged = read_metrics(path)
    kept = []
    if resume_step is not None:
        # An evaluation at resume_step belongs to the checkpoint; a training step is to come.
        kept = [
            values for values in metrics if values["step"] < resume_step + is_evaluation(values)
        ]
    text = "".join(json.dumps(values) + "\n" for values in kept)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return num_damaged
