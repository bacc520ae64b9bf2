"""The batch ramp: accumulation doubles from rampup_start to gradient_accumulation_steps.

All of it is a function of the step alone, never of the number of processes: the order of the data
is the same on any number of ranks, and a resumed run needs nothing but its step.
"""

from seugpt.errors import ConfigError


def possible_starts(accumulation_steps):
    """What doubles to `accumulation_steps`, in ascending order: 5, 10, 20, 40 for 40."""
    starts = [accumulation_steps]
    while starts[0] % 2 == 0:
        starts.insert(0, starts[0] // 2)
    return starts


def find_ramp_problem(config):
    """Why the options of the ramp contradict each other, or None."""
    start = f"rampup_start={config.rampup_start}"
    iters = f"rampup_iters={config.rampup_iters}"
    if bool(config.rampup_start) != bool(config.rampup_iters):
        return f"{start} with {iters}: a batch ramp needs both above 0; --rampup_start=0 is none"
    starts = possible_starts(config.gradient_accumulation_steps)
    if config.rampup_start and config.rampup_start not in starts:
        total = f"gradient_accumulation_steps={config.gradient_accumulation_steps}"
        choices = ", ".join(map(str, starts))
        return f"{start} cannot double to {total}; use --rampup_start={starts[0]} (of {choices})"
    return None


def doubling_steps(config):
    """The steps from which on accumulation is twice what it was; the last one is rampup_iters."""
    if not config.rampup_start:
        return []
    ratio = config.gradient_accumulation_steps // config.rampup_start
    count = ratio.bit_length() - 1
    return [-(-i * config.rampup_iters // count) for i in range(1, count + 1)]


def get_accumulation_steps(step, config):
    """The micro-batches of a step, on all ranks together."""
    doublings = sum(step >= doubling for doubling in doubling_steps(config))
    return (config.rampup_start or config.gradient_accumulation_steps) * 2**doublings


def num_micro_batches(num_steps, config):
    """The micro-batches of the first `num_steps` steps, on all ranks together."""
    accumulation_steps = config.rampup_start or config.gradient_accumulation_steps
    total = num_steps * accumulation_steps
    for doubling in doubling_steps(config):  # each adds as many as a step had before it
        total += max(num_steps - doubling, 0) * accumulation_steps
        accumulation_steps *= 2
    return total


def check_split(config, dist_env):
    """Raise ConfigError if the steps of any stage cannot be divided among the ranks."""
    total = config.gradient_accumulation_steps
    dist_env.split_step(total, config.batch_size)  # may raise
    for step in [0, *doubling_steps(config)]:
        accumulation_steps = get_accumulation_steps(step, config)
        try:
            dist_env.split_step(accumulation_steps, config.batch_size)
        except ConfigError as error:
            world_size = dist_env.world_size
            start = next(n for n in possible_starts(total) if n % world_size == 0)
            raise ConfigError(
                f"rampup_start={config.rampup_start}: the {accumulation_steps} micro-batches of "
                f"step {step} cannot be divided among {world_size} processes; "
                f"use --rampup_start={start}"
            ) from error


def describe_ramp(config):
    """A line for the log, or None without a ramp."""
    doublings = doubling_steps(config)
    if not doublings:
        return None
    steps = ", ".join(f"{step:,}" for step in doublings)
    return f"batch ramp: {config.rampup_start} micro-batches per step, doubled at steps {steps}"
