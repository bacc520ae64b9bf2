"""What the page asks for: which models there are, and a text as it is written."""

import json
import math
import secrets
from dataclasses import dataclass
from typing import Annotated

from starlette.responses import JSONResponse
from starlette.routing import Route

from seugpt.plots.token_text import token_label
from seugpt.server.event_stream import EventStream
from seugpt.server.request_fields import (
    SamplingFields,
    check_max_tokens,
    parse_fields,
    read_ids,
    read_object,
)

NUM_TOP = 10  # alternatives shown at each token
VERSION = "0.1"


@dataclass(frozen=True)
class WriteFields(SamplingFields):
    max_tokens: Annotated[int, "tokens of the reply", ">= 1"] = 200


def page_routes(engine):
    """/api/info and /api/write."""

    async def info(request):
        models = [describe_model(loaded) for loaded in engine.models.values()]
        return JSONResponse({"models": models, "version": VERSION})

    async def write(request):
        return await write_text(engine, request)

    return [Route("/api/info", info), Route("/api/write", write, methods=["POST"])]


def describe_model(loaded):
    config = loaded.config
    names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    return {
        "name": loaded.name,
        "parameters": loaded.model.num_params(),
        **{name: getattr(config, name) for name in names},
        "tokenizer": loaded.tokenizer.spec()["kind"],
        "step": loaded.step,
        "val_loss": loaded.val_loss,
    }


async def write_text(engine, request):
    """{model, text or ids, max_tokens, ...} -> a stream of tokens, each with its alternatives."""
    content = await read_object(request)
    fields = parse_fields(WriteFields, content, special=("text", "ids"))
    check_max_tokens(fields.max_tokens, engine.limits)
    tokenizer = engine.find(fields.model).tokenizer
    ids = await read_ids(tokenizer, content, engine.limits)
    seed = fields.seed if fields.seed is not None else secrets.randbits(62)
    generation = fields.generation_request(ids, fields.max_tokens, seed=seed, num_top=NUM_TOP)
    submission = engine.submit([generation])
    return EventStream(write_events(submission, tokenizer), submission)


async def write_events(submission, tokenizer):
    async for _, token in submission.tokens():
        top = [
            {"id": id, "label": token_label(tokenizer, id), "p": math.exp(logprob)}
            for id, logprob in token.top
        ]
        event = {"id": token.id, "label": token_label(tokenizer, token.id), "text": token.text}
        event |= {"p": math.exp(token.logprob), "top": top}
        yield json.dumps(event)
        if token.finish_reason:
            yield json.dumps({"done": True, "reason": token.finish_reason})
