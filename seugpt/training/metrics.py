"""metrics.jsonl, one JSON object a line: read and shortened."""

import json

from seugpt.files import replacing


def parse(line):
    """The dictionary of a line: numbers, among them the step. None for a line that a crash or an editor damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(map(is_number, values.values())):
        return None
    return (
        values
        if type(values.get("step")) is int and ("val_loss" in values) == ("train_loss" in values)
        else None
    )


def is_number(value):
    """Whether it is one that a picture has a place for: no bool, no int beyond a float."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def parsed_lines(path):
    """What `parse` makes of each line of metrics.jsonl, one after the other: of a long run they fill the memory."""
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                if line != b"\n":
                    yield parse(line)


def read_metrics(path):
    """The dictionaries of metrics.jsonl, none where there is no file; and the number of damaged lines left out."""
    parsed = list(parsed_lines(path))
    metrics = [values for values in parsed if values is not None]
    return metrics, len(parsed) - len(metrics)


def drop_metrics_from(first_step, path):
    """A run that goes on from its last checkpoint does again what came after it: forget those lines.

    Returns the number of damaged lines, which are forgotten too.
    """
    metrics, damaged = read_metrics(path)
    kept = [m for m in metrics if m["step"] < first_step + ("val_loss" in m)]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
    return damaged
