"""What to try when a run fails."""

import torch

from seugpt.errors import TrainingError


def memory_advice(config):
    """How to make the same step with less memory: a smaller micro-batch, more often."""
    batch_size = config.batch_size
    factor = next((n for n in range(2, batch_size + 1) if batch_size % n == 0), None)
    if factor is None:
        smaller = "a smaller --block_size, --n_embd or --n_layer needs less"
        if not config.gradient_checkpointing:
            smaller = f"--gradient_checkpointing or {smaller}"
        return f"batch_size=1 is the minimum: {smaller}"
    advice = (
        f"the same step in less memory: --batch_size={batch_size // factor} "
        f"--gradient_accumulation_steps={config.gradient_accumulation_steps * factor}"
    )
    if config.rampup_start:
        advice += f" --rampup_start={config.rampup_start * factor}"
    return advice


def not_finite_error(values, step, dtype, config):
    """The TrainingError of a step that gave NaN or infinity, with its likely causes."""
    suspects = f"learning_rate={config.learning_rate}"
    if config.optimizer == "muon":
        suspects += f" and muon_lr={config.muon_lr}"
    advice = f"Try a tenth of {suspects}"
    if dtype != torch.float32:
        advice += ", or --dtype=float32"
    return TrainingError(
        f"stopped in step {step}: {values}, {dtype}. "
        f"The checkpoints in {config.out_dir} are from before it. {advice}"
    )
