"""What clients send: JSON, checked field by field."""

import json
from dataclasses import dataclass, fields
from typing import Annotated

from starlette.concurrency import run_in_threadpool

from seugpt.cli.values import coerce_option, options_of, text_problem
from seugpt.errors import DataError
from seugpt.server.batch import GenerationRequest
from seugpt.server.errors import ApiError


@dataclass(frozen=True)
class SamplingFields:
    """How tokens are drawn, with the names and the limits of OpenAI's API and vLLM's."""

    model: Annotated[str | None, "a name of /v1/models"] = None
    temperature: Annotated[float, "randomness", ">= 0", "<= 100"] = 1.0
    top_k: Annotated[int, "keep the k likeliest tokens; 0: all", ">= 0"] = 0
    top_p: Annotated[float, "keep the likeliest that reach it", "> 0", "<= 1"] = 1.0
    min_p: Annotated[float, "drop tokens far below the likeliest", ">= 0", "<= 1"] = 0.0
    repetition_penalty: Annotated[float, "as in sample.py", "> 0", "<= 100"] = 1.0
    presence_penalty: Annotated[float, "as in sample.py", ">= -100", "<= 100"] = 0.0
    frequency_penalty: Annotated[float, "as in sample.py", ">= -100", "<= 100"] = 0.0
    seed: Annotated[int | None, "random seed", ">= -2**63", "< 2**63"] = None

    def generation_request(self, prompt_ids, max_tokens, **more):
        names = {field.name for field in fields(SamplingFields)} - {"model", "seed"}
        sampling = {name: getattr(self, name) for name in names}
        return GenerationRequest(self.model, prompt_ids, max_tokens, **sampling, **more)


async def read_object(request):
    """The JSON object in a request's body. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no other site's page can send unasked
        raise ApiError(415, "the request must have the header Content-Type: application/json")
    body = await request.body()
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ApiError(400, f"the body is not JSON: {reason}") from None
    if not isinstance(content, dict):
        raise ApiError(400, 'the body must be a JSON object, as in {"prompt": "Once"}')
    return content


def parse_fields(cls, content, ignored=(), special=()):
    """The fields of `cls` from a JSON object; null stands for the default. Raises ApiError.

    Fields that are `ignored` change nothing; those that are `special` are read elsewhere.
    """
    options = options_of(cls)
    values = {}
    for name, value in content.items():
        if value is None or name in ignored or name in special:
            continue
        if name not in options:
            raise ApiError(400, f"{name[:100]!r} is not supported here", param=name[:100])
        values[name] = check_value(options[name], value)
    return cls(**values)


def check_value(option, value):
    """Raises ApiError."""
    try:
        if isinstance(value, str) and option.type in (int, float, bool, int | None):
            raise ValueError(f"{option.name} must be a number or a boolean, not a text")
        return coerce_option(option, value)
    except ValueError as error:
        raise ApiError(400, str(error), param=option.name) from None


def check_text(text, name, max_chars):
    """Raise ApiError unless `text` is one that a tokenizer can take."""
    if not isinstance(text, str):
        raise ApiError(400, f"{name} must be a text", param=name)
    if len(text) > max_chars:
        message = f"{name} has {len(text):,} characters, at most {max_chars:,} can be sent"
        raise ApiError(400, message, param=name, code="text_too_long")
    problem = text_problem(text.replace("\0", ""), ())
    if problem or any("\ud800" <= c <= "\udfff" for c in text):
        raise ApiError(400, f"{name} {problem or 'contains a lone surrogate'}", param=name)


async def encode(tokenizer, text, name, limits, is_prompt=True):
    """The ids of a text. Raises ApiError naming the characters unknown to the model."""
    check_text(text, name, limits.max_body)
    encoder = tokenizer.encode_prompt if is_prompt else tokenizer.encode
    try:
        ids = await run_in_threadpool(encoder, text)
    except DataError as error:
        message = f"{name} has characters that the model never saw in training: {error}"
        raise ApiError(400, message, param=name, code="unknown_characters") from None
    return check_ids(tokenizer, list(map(int, ids)), name, limits)


async def read_ids(tokenizer, content, limits):
    """The ids of a request's text, or those that it gives. Raises ApiError."""
    text = content.get("text")
    ids = content.get("ids")
    if (text is None) == (ids is None):
        raise ApiError(400, "give either text or ids", param="text")
    if text is not None:
        return await encode(tokenizer, text, "text", limits)
    if not isinstance(ids, list):
        raise ApiError(400, "ids must be a list of token ids", param="ids")
    return check_ids(tokenizer, ids, "ids", limits)


def check_ids(tokenizer, ids, name, limits):
    """Raise ApiError unless `ids` is a list of 1 to max_prompt ids of the tokenizer."""
    if not ids:
        message = f"{name} has no tokens; give at least one"
        raise ApiError(400, message, param=name, code="empty_text")
    if len(ids) > limits.max_prompt:
        message = f"{name} has {len(ids):,} tokens; max_prompt={limits.max_prompt:,}"
        raise ApiError(400, message, param=name, code="text_too_long")
    for token in ids:
        if type(token) is not int or not 0 <= token < tokenizer.vocab_size:
            message = f"{name} has {str(token)[:50]}; ids go from 0 to {tokenizer.vocab_size - 1:,}"
            raise ApiError(400, message, param=name)
    return ids


def check_max_tokens(max_tokens, limits, name="max_tokens"):
    if max_tokens > limits.max_reply:
        message = f"{name}={max_tokens:,} exceeds max_reply={limits.max_reply:,}"
        raise ApiError(400, message, param=name, code="reply_too_long")


def token_text(tokenizer, token):
    """A token's text; one that is no whole UTF-8 is written as OpenAI does, as in bytes:\\xc3."""
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
