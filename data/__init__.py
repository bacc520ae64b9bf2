"""Text and tokens: tokenizers, the .bin files, the built-in corpora. Nothing here imports torch."""


class DataError(ValueError):
    """A problem with a data set, a text or a download, and what to do about it."""
