"""The JSON files of Hugging Face's folders."""

import json

from seugpt.errors import CheckpointError
from seugpt.files import read_text


def reject_constant(name):
    raise ValueError(f"{name} is not a number")


def read_json(path):
    """The object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(read_text(path), parse_constant=reject_constant)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return content
