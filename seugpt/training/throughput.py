"""How fast a run is: time per step, tokens per second, MFU."""

import contextlib
import re
import time

import torch

# Dense tensor core peaks in FLOP/s from NVIDIA's data sheets, in bfloat16 where supported; the keys
# are searched for in device names.
PEAK_FLOPS = {
    r"H200$": 989e12,
    r"H100 80GB HBM3": 989e12,
    r"H100 PCIe": 756e12,
    r"A100[- ]": 312e12,
    r"L40S$": 362e12,
    r"\bL4$": 121e12,
    r"A10$": 125e12,
    r"RTX 4090$": 165e12,
    r"RTX 3090$": 71e12,
    r"V100-SXM2": 125e12,
    r"\bT4$": 65e12,
}


def peak_flops(device, dtype):
    """The hardware's peak in FLOP/s, or None if it is unknown: no MFU beats a guessed one."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, name)), None)


class Throughput:
    """The speed of training since the last lap. What happens inside `paused` does not count."""

    def __init__(self, tokens_before, max_iters, flops_per_token, peak):
        """`tokens_before`: the function of a step that counts the tokens of all steps before it.

        `peak`: the FLOP/s of all devices together, or None if it is unknown.
        """
        self.tokens_before = tokens_before
        self.max_iters = max_iters
        self.flops_per_token = flops_per_token
        self.peak = peak
        self.is_first_lap = True
        self.restart(0)

    def restart(self, step):
        self.start_time = time.perf_counter()
        self.start_step = step

    @contextlib.contextmanager
    def paused(self):
        pause_start = time.perf_counter()
        yield
        self.start_time += time.perf_counter() - pause_start

    def lap(self, step):
        """{step_ms, tokens_per_s, mfu, eta_s} of the steps up to `step`, which starts the next lap.

        eta_s: seconds until max_iters, if all tokens until then take as long; None at first.
        """
        seconds = time.perf_counter() - self.start_time
        num_steps = step - self.start_step
        tokens = self.tokens_before(step)
        tokens_per_s = (tokens - self.tokens_before(self.start_step)) / seconds
        eta_s = (self.tokens_before(self.max_iters) - tokens) / tokens_per_s
        self.restart(step)
        is_first = self.is_first_lap  # and slower than the others
        self.is_first_lap = False
        return {
            "step_ms": 1000 * seconds / num_steps,
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * self.flops_per_token / self.peak if self.peak else None,
            "eta_s": None if is_first else eta_s,
        }
