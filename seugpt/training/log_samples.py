"""The samples that a run wrote into training.log, one after each evaluation."""

import re

from seugpt.files import check_regular

SAMPLE_INDENT = "    | "
EVALUATION = re.compile(r"step (\d+): train loss ")


def read_samples(path):
    """{step: sample}, in the order of the log; what a resumed run repeated counts once.

    Raises OSError.
    """
    check_regular(path)
    samples = {}
    step = None
    with open(path, encoding="utf-8", errors="replace", newline="\n") as log:
        for line in log:
            found = EVALUATION.match(line)
            if found:
                step = int(found[1])
                samples.pop(step, None)
            elif step is not None and line.startswith(SAMPLE_INDENT):
                lines = samples.setdefault(step, [])
                lines.append(line.removeprefix(SAMPLE_INDENT).removesuffix("\n"))
    return {step: "\n".join(lines) for step, lines in samples.items()}
