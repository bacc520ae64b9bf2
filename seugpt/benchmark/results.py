"""Results: their spread over rounds, ratios of paired rounds, and a file of JSON lines."""

import json
import re
import shlex
import statistics
import sys
from pathlib import Path

from seugpt.benchmark.hardware import machine_info


def median_range(values, form):
    """The median of several rounds, and in brackets the lowest and the highest."""
    median = statistics.median(values)
    return f"{median:{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours, theirs):
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def record(path, device, **result):
    """Append a result to a file, if one is given: a line of JSON with machine and command."""
    if not path:
        return
    line = {**result, **machine_info(device), "command": typed_command()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def typed_command():
    """The command line, without private paths: nanoGPT's source and the file of results."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    words = [word for word in words if not word.startswith("--results=")]
    joined = "\0".join(words).replace("\0--baseline\0", "\0--baseline=")
    path = r"--baseline=(?!transformers(\0|$))[^\0]*"
    joined = re.sub(path, "--baseline=PATH_TO_NANOGPT", joined)
    return "python " + shlex.join(joined.split("\0"))
