"""What a checkpoint's dictionary must hold, whatever files it was read from."""

import math

from seugpt.errors import CheckpointError

FORMAT = 1
INFERENCE_KEYS = {  # what inference needs, with its type
    "format": int,
    "model": dict,
    "model_config": dict,
    "train_config": dict,
    "tokenizer": dict,
    "step": int,
    "val_loss": float,  # NaN: not evaluated at this step
}
RESUME_KEYS = {  # what a run needs to continue
    **INFERENCE_KEYS,
    "optimizer": list,
    "scaler": dict,
    "rng_states": list,
    "train_state": dict,
    "eval_signature": list,
    "fingerprint": str,
}


def check_content(path, ckpt, keys, checks=None):
    """Raise CheckpointError unless `ckpt` is a dictionary with valid values for {key: type}.

    `checks`: {key: function that says whether a value is valid}, beside those of CHECKS.
    """
    checks = {**CHECKS, **(checks or {})}
    missing = [key for key in keys if not isinstance(ckpt, dict) or key not in ckpt]
    if missing:
        can_infer = not set(missing) & INFERENCE_KEYS.keys()
        problem = "cannot be resumed" if can_infer else "is not a seuGPT checkpoint"
        raise CheckpointError(f"{path} {problem}: it has no {', '.join(missing)}")
    if type(ckpt["format"]) is not int or ckpt["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {ckpt['format']}; this version reads format {FORMAT}"
        )
    wrong = []
    for key, expected in keys.items():
        is_valid = checks.get(key, lambda value: True)
        if not isinstance(ckpt[key], expected) or not is_valid(ckpt[key]):
            wrong.append(key)
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(wrong)} has the wrong type or value")


def is_count(value):
    return type(value) is int and value >= 0


def is_signature(values):
    """Whether a list can be compared with that of run_checkpoint.eval_signature."""
    return all(isinstance(value, str | int) for value in values)


def is_train_state(state):
    """Whether a dictionary holds the fields of a TrainState (train.py)."""
    counts = [state.get(key) for key in ("step", "best_step", "evals_since_best")]
    best = state.get("best_val_loss")
    return all(map(is_count, counts)) and isinstance(best, float) and not math.isnan(best)


def is_options(values):
    """Whether a dictionary holds the values of options, of ordinary size."""
    return all(isinstance(name, str) and is_option(value) for name, value in values.items())


def is_option(value):
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float | str)


CHECKS = {
    "step": is_count,
    "train_config": is_options,
    "train_state": is_train_state,
    "eval_signature": is_signature,
}
