"""What a run saves and restores: best.pt for inference, latest.pt to resume; or sharded folders."""

import math
from dataclasses import asdict
from pathlib import Path

import torch

from seugpt.checkpoint.content import INFERENCE_KEYS
from seugpt.checkpoint.pretrained import build_from_checkpoint, config_of
from seugpt.checkpoint.sharded import is_step_folder, load_merged, read_run, step_folder
from seugpt.checkpoint.storage import load_checkpoint, rotate_checkpoints, save_checkpoint
from seugpt.errors import CheckpointError
from seugpt.training.optimizer import restore_optimizers
from seugpt.training.run_description import count_of
from seugpt.training.sharded_checkpoint import ShardedSaver, restore_sharded

BEST_KEYS = ("best_val_loss", "best_step", "evals_since_best")  # of TrainState
DAMAGE_ERRORS = (  # what state of the wrong type, shape or content makes torch raise
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def save_run(trainer):
    """Save everything that a run needs to continue, and its best model."""
    rng_states = trainer.dist_env.all_gather(get_rng_states(trainer.device))
    trainer.log.sync()
    state = trainer.state
    evaluated = trainer.last_eval_step == state.step
    ckpt = {
        "model_config": vars(trainer.raw_model.config),
        "train_config": vars(trainer.config),
        "tokenizer": trainer.dataset.tokenizer.spec(),
        "step": state.step,
        "val_loss": trainer.val_loss if evaluated else math.nan,
        "scaler": trainer.scaler.state_dict(),
        "rng_states": rng_states,
        "train_state": asdict(state),
        "eval_signature": eval_signature(trainer),
        "fingerprint": trainer.dataset.fingerprint,
    }
    trainer.saver.save(trainer.raw_model, trainer.optimizers, ckpt)


def make_saver(config, dist_env):
    """What writes the checkpoints of a run. Raises ConfigError."""
    if config.dp_shard_size > 1 and not config.eval_only:
        return ShardedSaver(config, dist_env)
    return FileSaver(config.out_dir, config.keep_last, dist_env.rank)


class FileSaver:
    """Writes best.pt and latest.pt, on rank 0; each `save` ends with the files on the disk."""

    def __init__(self, out_dir, keep_last, rank):
        self.out_dir = Path(out_dir)
        self.keep_last = keep_last
        self.rank = rank

    def save(self, model, optimizers, ckpt):
        """Write best.pt if this step's evaluation is the best so far, then latest.pt.

        In the other order, a crash between the two would lose the best model.
        """
        if self.rank > 0:
            return
        ckpt = {"model": model.state_dict(), **ckpt}
        evaluated = not math.isnan(ckpt["val_loss"])
        if evaluated and ckpt["train_state"]["best_step"] == ckpt["step"]:
            self.save_best(ckpt)
        ckpt["optimizer"] = [optimizer.state_dict() for optimizer in optimizers]
        latest = self.out_dir / "latest.pt"
        save_checkpoint(latest, ckpt)
        if self.keep_last and evaluated:
            rotate_checkpoints(latest, ckpt["step"], self.keep_last)

    def save_best(self, ckpt):
        best = {key: ckpt[key] for key in INFERENCE_KEYS if key in ckpt}
        save_checkpoint(self.out_dir / "best.pt", best)

    def finish(self):
        """Nothing is being written between two saves."""

    def close(self):
        """Nothing to close."""


def get_rng_states(device):
    """The states of torch's global random generators, from which dropout draws."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_rng_states(states, device):
    """The reverse of get_rng_states; a device without a saved state keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type in ("cuda", "mps") and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])


def eval_signature(trainer):
    """What must be equal for two validation losses to be of the same tokens."""
    num_windows = trainer.config.eval_iters * trainer.config.batch_size
    return [trainer.dataset.fingerprint, num_windows, trainer.raw_model.config.block_size]


def restore_run(trainer, ckpt):
    """Continue where a checkpoint was written. Raises CheckpointError."""
    restore_state(trainer, ckpt)
    state = trainer.state
    state.step = ckpt["step"]
    trainer.last_save_step = state.step
    if trainer.config.eval_only:
        return
    trainer.val_loss = ckpt["val_loss"]
    same_tokens = ckpt["eval_signature"] == eval_signature(trainer)
    if same_tokens and not math.isnan(trainer.val_loss):
        trainer.last_eval_step = state.step
    best = {key: ckpt["train_state"][key] for key in BEST_KEYS}
    if trainer.dist_env.rank == 0:  # before the other ranks look: best.pt may be moved aside
        best, note = find_best(ckpt, best, trainer.config.out_dir, eval_signature(trainer))
        if note:
            trainer.log.info(note)
        if best["best_val_loss"] < math.inf:
            keep_best(trainer, best["best_step"])
    for key, value in trainer.dist_env.broadcast(best).items():
        setattr(state, key, value)
    num_ranks = len(ckpt["rng_states"])
    if num_ranks != trainer.dist_env.world_size:
        trainer.log.info(
            f"note: {ckpt['path']} was written by {count_of(num_ranks, 'process', 'processes')}: "
            "the order of the data stays the same, but dropout draws differently"
        )


def restore_state(trainer, ckpt):
    """Restore optimizers, scaler and RNG. Raises CheckpointError if their state does not fit."""
    rng_states = ckpt["rng_states"]
    if "model" not in ckpt:
        restore_sharded(trainer.raw_model, trainer.optimizers, ckpt, trainer.dist_env)
    try:
        if "model" in ckpt:
            restore_optimizers(trainer.optimizers, ckpt["optimizer"], ckpt["step"])
        if ckpt["scaler"]:  # empty unless the run was in float16
            trainer.scaler.load_state_dict(ckpt["scaler"])
        set_rng_states(rng_states[trainer.dist_env.rank % len(rng_states)], trainer.device)
    except DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"{ckpt['path']} has a damaged state: {type(error).__name__} {error}"
        ) from error


def best_path(out_dir, best_step):
    """Where the best model is: best.pt, or a sharded run's folder of that step."""
    folder = step_folder(out_dir, best_step)
    return folder if is_step_folder(folder) else Path(out_dir, "best.pt")


def keep_best(trainer, best_step):
    """Write best.pt for a run that was sharded before and is not from now on."""
    path = best_path(trainer.config.out_dir, best_step)
    if trainer.config.dp_shard_size == 1 and is_step_folder(path):
        trainer.saver.save_best(load_merged(path))


def find_best(ckpt, best, out_dir, signature):
    """({key of BEST_KEYS: value}, note or None): the best evaluation before `ckpt`.

    best.pt is moved aside if it cannot be read, or if validation losses will be of other tokens
    from now on.
    """
    path = best_path(out_dir, best["best_step"])
    problem = None
    if best["best_val_loss"] == math.inf:  # nothing has been evaluated
        return best, None
    if not path.exists():
        problem = f"{path} is missing"
    elif ckpt["eval_signature"] != signature:
        problem = "its loss was computed on other tokens than from now on"
    else:
        try:
            saved = read_run(path) if is_step_folder(path) else load_checkpoint(path)
        except CheckpointError as error:
            problem = str(error)
        else:
            if saved["model_config"] != ckpt["model_config"]:
                problem = "it belongs to another model"
            elif saved["val_loss"] < best["best_val_loss"]:  # the run died between saving the two
                best = {
                    "best_val_loss": saved["val_loss"],
                    "best_step": saved["step"],
                    "evals_since_best": 0,
                }
    if problem is None:
        return best, None
    if path.is_file():
        aside = path.with_name(f"best-until-{ckpt['step']}.pt")
        path.replace(aside)
        problem = f"{path} is now {aside}: {problem}"
    best = {"best_val_loss": math.inf, "best_step": ckpt["step"], "evals_since_best": 0}
    return best, f"note: best validation loss was reset. {problem}"


def log_source_loss(trainer, ckpt):
    """Log the loss of weights before they were adapted to another architecture."""
    block_size = trainer.raw_model.config.block_size
    if config_of(ckpt).block_size < block_size:
        trainer.log.info(
            "no loss before adaptation: the original model "
            f"cannot read block_size={block_size} tokens"
        )
        return
    source_model, _ = build_from_checkpoint(ckpt)
    loss = trainer.mean_loss(source_model.to(trainer.device).eval(), "val")
    trainer.log.info(
        f"validation loss before adaptation: {loss:.4f}; after it, untrained, at step 0"
    )
