"""Errors that end a command with one message and exit code 2.

Anything else is a bug and keeps its traceback.
"""


class UserError(ValueError):
    """Something the user can fix.

    The message says what is wrong, the value, the limit and the next command.
    """


class ConfigError(UserError):
    """Invalid options."""


class DataError(UserError):
    """A missing, damaged or unsuitable text, data set, tokenizer or download."""


class CheckpointError(UserError):
    """A checkpoint or pretrained model that cannot be written, found, read or used."""


class DeviceError(UserError):
    """A device, dtype or amount of memory that this machine does not have."""


class TrainingError(UserError):
    """A run that cannot continue."""


def one_line(error, max_chars=300):
    """An exception of any type as one line for a message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:max_chars]
