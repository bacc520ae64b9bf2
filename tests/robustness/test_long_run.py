"""A long run needs no more memory and no more open files than a short one."""

import os
import re
import time
from pathlib import Path

import pytest

from tests.helpers import start_script

STEPS = 20_000


def sample_process(pid):
    """(resident kB, number of open files) of a process. Raises OSError once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    num_files = len(os.listdir(f"/proc/{pid}/fd"))
    memory = re.search(r"VmRSS:\s+(\d+)", status)
    if memory is None:  # a zombie
        raise OSError
    return int(memory[1]), num_files


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_and_open_files_stay_constant(tiny, run):
    """Sample the process of a run of 20,000 steps between its evaluations.

    To see what is measured: python -m pytest -m slow -s -n 0 tests/robustness/test_long_run.py
    """
    shape = {"n_layer": 1, "n_embd": 16, "block_size": 8, "gradient_accumulation_steps": 1}
    schedule = {"max_iters": STEPS, "lr_decay_iters": STEPS, "eval_interval": 1000}
    process = start_script(run(**schedule, **shape))
    samples = {}  # {step of the last evaluation: samples of the process since}
    while process.poll() is None:
        time.sleep(0.05)
        text = Path("output").read_text(encoding="utf-8")
        steps = re.findall(r"^step (\d+): train loss", text, re.MULTILINE)
        try:
            sample = sample_process(process.pid)
        except OSError:
            break
        if steps:
            samples.setdefault(int(steps[-1]), []).append(sample)
    assert process.wait() == 0
    resident = {step: max(kb for kb, _ in values) / 1024 for step, values in samples.items()}
    # The fewest seen: a checkpoint or a plot being written is open for a moment.
    open_files = {step: min(count for _, count in values) for step, values in samples.items()}
    for step in sorted(resident):
        print(f"after step {step:6,}: {resident[step]:7.1f} MB, {open_files[step]} open files")
    assert resident[STEPS - 1000] - resident[STEPS // 2] < 8
    assert open_files[STEPS - 1000] <= open_files[2000]
