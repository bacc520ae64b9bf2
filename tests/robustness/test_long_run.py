"""A run of many steps needs no more memory and no more open files than one of few."""

import os
import re
from pathlib import Path

import pytest

from tests.helpers import start_script

STEPS = 20_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_and_file_handles_stay_flat(tiny, run):
    """It prints what it measured: python -m pytest -m slow -s -n 0 tests/robustness/test_long_run.py"""
    shape = {"n_layer": 1, "n_embd": 16, "block_size": 8, "gradient_accumulation_steps": 1}
    process = start_script(run(max_iters=STEPS, lr_decay_iters=STEPS, eval_interval=1000, **shape))
    measured = {}
    while process.poll() is None:
        text = Path("output").read_text(encoding="utf-8")
        evaluated = re.findall(r"^step (\d+): train loss", text, re.MULTILINE)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
        except OSError:
            break
        if evaluated and (memory := re.search(r"VmRSS:\s+(\d+)", status)):
            measured.setdefault(int(evaluated[-1]), []).append((int(memory[1]), files))
    assert process.wait() == 0
    resident = {
        step: max(memory for memory, _ in values) / 1024 for step, values in measured.items()
    }
    files = {step: max(files for _, files in values) for step, values in measured.items()}
    for step in sorted(resident):
        print(f"after step {step:6,}: {resident[step]:7.1f} MB resident, {files[step]} open files")
    assert resident[STEPS - 1000] - resident[STEPS // 2] < 8
    assert files[STEPS - 1000] <= files[2000]
