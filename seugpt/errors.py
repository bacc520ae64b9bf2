"""What ends a command with one message and exit code 2."""


class UserError(ValueError):
    """What a user can put right: its message says what is wrong, the value, the limit and the next command."""


class ConfigError(UserError):
    """A user's mistake in the options: one message, several lines where there are several problems."""


class DataError(UserError):
    """A problem with a data set, a text or a download, and what to do about it."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, is not there, or is not one of ours."""


class DeviceError(UserError):
    """A device or number format that was asked for and is not there."""


class TrainingError(UserError):
    """A run that cannot go on."""
