"""The first lines of a run's log: what it consists of, and what it starts from."""

from seugpt.checkpoint.storage import describe
from seugpt.training.batch_ramp import describe_ramp


def count_of(number, singular, plural):
    return f"{number:,} {singular if number == 1 else plural}"


def describe_work(model, config, dataset, world_size):
    """Model and data; tokens per step, steps and epochs."""
    num_tokens = dataset.tokens["train"]
    lines = [
        f"model: {model.num_params():,} parameters",
        f"data: {dataset.path}, {num_tokens:,} training tokens",
        *(f"note: {note}" for note in dataset.notes),
    ]
    if config.eval_only:
        return lines
    block_size = model.config.block_size
    tokens_per_step = config.tokens_per_step(block_size)
    epochs = config.tokens_before(config.max_iters, block_size) / num_tokens
    accumulated = count_of(config.gradient_accumulation_steps, "micro-batch", "micro-batches")
    processes = count_of(world_size, "process", "processes")
    ramp = describe_ramp(config)
    return [
        *lines,
        f"tokens per step: {accumulated} x {config.batch_size} sequences x {block_size} tokens "
        f"= {tokens_per_step:,}",
        *([ramp] if ramp else []),
        f"training: {config.max_iters:,} steps, {epochs:.2f} epochs, {processes}",
    ]


def describe_pretrained(ckpt, adaptation_notes):
    """The source of a run's weights, and what became of them in another architecture."""
    return [
        *ckpt.get("notes", []),
        f"weights from {describe(ckpt)}; everything else starts fresh",
        *(f"    {note}" for note in adaptation_notes),
    ]


def describe_resume(ckpt, config, model_config):
    """The checkpoint that a run continues, and the options that have changed since."""
    stored = {**ckpt["train_config"], **ckpt["model_config"]}
    changed = []
    for name, value in {**vars(config), **vars(model_config)}.items():
        if name in stored and stored[name] != value:
            changed.append(f"{name} {stored[name]} -> {value}")
    best_val_loss = ckpt["train_state"]["best_val_loss"]
    return [
        *(f"note: {note}" for note in ckpt.get("notes", [])),
        f"resumed from {ckpt['path']} at step {ckpt['step']:,}, best validation loss "
        f"{best_val_loss:.4f}; changed options: {', '.join(changed) or 'none'}",
    ]


def schedule_notes(config):
    """Notes on a learning rate schedule that is probably a mistake."""
    if config.eval_only or not config.decay_lr:
        return []
    max_iters = f"max_iters={config.max_iters}"
    decay = f"note: lr_decay_iters={config.lr_decay_iters}"
    notes = []
    if config.lr_decay_iters > config.max_iters:
        notes.append(f"{decay} exceeds {max_iters}: the learning rate will not reach min_lr")
    if config.lr_decay_iters < config.max_iters:
        notes.append(f"{decay} is below {max_iters}: from there on the learning rate is min_lr")
    if config.warmup_iters > config.max_iters:
        warmup = f"note: warmup_iters={config.warmup_iters}"
        notes.append(f"{warmup} exceeds {max_iters}: the learning rate rises until the end")
    if config.min_lr > config.learning_rate:
        peak = f"learning_rate={config.learning_rate}"
        notes.append(f"note: min_lr={config.min_lr} exceeds {peak}: the learning rate will rise")
    return notes
