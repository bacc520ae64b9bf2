"""OpenAI's protocol: /v1/models, /v1/completions, /v1/chat/completions."""

import asyncio
import json
import secrets
from dataclasses import dataclass
from typing import Annotated

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route

from seugpt.server.chat import render_chat
from seugpt.server.errors import ApiError
from seugpt.server.event_stream import EventStream
from seugpt.server.openai_replies import ChatReply, TextReply
from seugpt.server.request_fields import (
    SamplingFields,
    check_ids,
    check_max_tokens,
    check_text,
    encode,
    parse_fields,
    read_object,
)

# Fields that change no text, which clients send unasked.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
MAX_TOP = 20  # alternatives to a token
MAX_STOPS = 16
MAX_STOP_CHARS = 1000


@dataclass(frozen=True)
class CompletionFields(SamplingFields):
    max_tokens: Annotated[int, "tokens of the reply", ">= 0"] = 16
    n: Annotated[int, "texts for each prompt", ">= 1"] = 1
    stop: Annotated[tuple[str, ...], "end before these", "not empty"] = ()
    logprobs: Annotated[int | None, "alternatives at each token", ">= 0", f"<= {MAX_TOP}"] = None
    echo: Annotated[bool, "begin with the prompt"] = False
    stream: Annotated[bool, "send tokens as they come"] = False


@dataclass(frozen=True)
class ChatFields(SamplingFields):
    max_tokens: Annotated[int | None, "tokens of the reply", ">= 1"] = None
    max_completion_tokens: Annotated[int | None, "its newer name", ">= 1"] = None
    n: Annotated[int, "replies", ">= 1"] = 1
    stop: Annotated[tuple[str, ...], "end before these", "not empty"] = ()
    logprobs: Annotated[bool, "report log-probabilities"] = False
    top_logprobs: Annotated[int, "alternatives at each token", ">= 0", f"<= {MAX_TOP}"] = 0
    stream: Annotated[bool, "send tokens as they come"] = False


def openai_routes(engine):
    async def models(request):
        cards = [model_card(loaded) for loaded in engine.models.values()]
        return JSONResponse({"object": "list", "data": cards})

    async def one_model(request):
        return JSONResponse(model_card(engine.find(request.path_params["name"])))

    async def completions(request):
        return await complete(engine, request)

    async def chat(request):
        return await complete_chat(engine, request)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


def model_card(loaded):
    created = (loaded.mtime_ns or 0) // 10**9
    card = {"id": loaded.name, "object": "model", "created": created, "owned_by": "seugpt"}
    return {**card, "max_model_len": loaded.config.block_size}


async def complete(engine, request):
    """POST /v1/completions."""
    content = await read_object(request)
    fields = parse_fields(CompletionFields, content, IGNORED, ("prompt", "stream_options"))
    check_max_tokens(fields.max_tokens, engine.limits)
    scores_prompt = fields.echo and fields.logprobs is not None
    if not fields.max_tokens and not scores_prompt:
        raise ApiError(400, "max_tokens=0 is for echo with logprobs", param="max_tokens")
    loaded = engine.find(fields.model)
    prompts = await read_prompts(content.get("prompt"), loaded.tokenizer, engine.limits)
    if scores_prompt:
        check_scored(prompts, loaded.config.block_size)
    settings = {"num_top": fields.logprobs or 0, "score_prompt": scores_prompt}
    requests = make_requests(fields, prompts, fields.max_tokens, engine.limits, settings)
    reply = TextReply(loaded, prompts, fields, include_usage(content))
    return await answer(engine, request, requests, reply)


async def complete_chat(engine, request):
    """POST /v1/chat/completions, for models with a chat template."""
    content = await read_object(request)
    fields = parse_fields(ChatFields, content, IGNORED, ("messages", "stream_options"))
    loaded = engine.find(fields.model)
    text = await run_in_threadpool(render_chat, loaded, content.get("messages"))
    prompt = await encode(loaded.tokenizer, text, "messages", engine.limits, is_prompt=False)
    max_tokens = fields.max_completion_tokens or fields.max_tokens
    if max_tokens is None:  # what the window has left
        max_tokens = max(loaded.config.block_size - len(prompt), loaded.config.block_size // 2, 1)
        max_tokens = min(max_tokens, engine.limits.max_reply)
    check_max_tokens(max_tokens, engine.limits)
    settings = {"num_top": fields.top_logprobs}
    requests = make_requests(fields, [prompt], max_tokens, engine.limits, settings)
    reply = ChatReply(loaded, [prompt], fields, include_usage(content))
    return await answer(engine, request, requests, reply)


def make_requests(fields, prompts, max_tokens, limits, settings):
    """A GenerationRequest for each text, n for each prompt, each with a seed of its own."""
    count = fields.n * len(prompts)
    if count > limits.max_choices:
        message = f"{count} texts exceed max_choices={limits.max_choices}"
        raise ApiError(400, message, param="n")
    if len(fields.stop) > MAX_STOPS:
        raise ApiError(400, f"stop has {len(fields.stop)} texts, at most {MAX_STOPS}", param="stop")
    for stop in fields.stop:
        check_text(stop, "stop", MAX_STOP_CHARS)
    seed = fields.seed if fields.seed is not None else secrets.randbits(62)
    requests = []
    for index in range(count):
        settings["seed"] = (seed + index + 2**63) % 2**64 - 2**63  # wraps like a 64-bit integer
        prompt = prompts[index // fields.n]
        settings["stop"] = fields.stop
        requests.append(fields.generation_request(prompt, max_tokens, **settings))
    return requests


async def read_prompts(prompt, tokenizer, limits):
    """The ids of each prompt: a text, a list of texts, of ids, or of lists of ids."""
    if isinstance(prompt, str):
        return [await encode(tokenizer, prompt, "prompt", limits)]
    if not isinstance(prompt, list) or not prompt:
        raise ApiError(400, "prompt must be a text, texts, or lists of token ids", param="prompt")
    if len(prompt) > limits.max_choices and not isinstance(prompt[0], int):
        message = f"{len(prompt)} prompts exceed max_choices={limits.max_choices}"
        raise ApiError(400, message, param="prompt")
    if isinstance(prompt[0], str):
        return [await encode(tokenizer, text, "prompt", limits) for text in prompt]
    if isinstance(prompt[0], list):
        if not all(isinstance(ids, list) for ids in prompt):
            raise ApiError(400, "prompt mixes lists of ids with something else", param="prompt")
        return [check_ids(tokenizer, ids, "prompt", limits) for ids in prompt]
    return [check_ids(tokenizer, prompt, "prompt", limits)]


def check_scored(prompts, block_size):
    """Raise ApiError if a prompt is too long for each token to see all those before it."""
    longest = max(map(len, prompts))
    if longest > block_size + 1:
        message = (
            f"the prompt has {longest:,} tokens; echo with logprobs takes at most "
            f"block_size + 1 = {block_size + 1:,}"
        )
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")


def include_usage(content):
    options = content.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object", param="stream_options")
    return options.get("include_usage") is True


async def answer(engine, request, requests, reply):
    """The response: whole, or a stream of events."""
    submission = engine.submit(requests, reply.fields.stream)
    if reply.fields.stream:
        return EventStream(stream_reply(submission, reply), submission)
    tokens = await gather_tokens(request, submission)
    choices = [reply.choice(index, tokens[index]) for index in range(len(requests))]
    num_tokens = sum(not token.is_prompt for row in tokens for token in row)
    return JSONResponse(reply.envelope(choices, usage=reply.usage(num_tokens)))


async def gather_tokens(request, submission):
    """The tokens of each row, once all have ended; a client that leaves frees the rows."""
    leaving = asyncio.create_task(wait_for_disconnect(request, submission))
    tokens = [[] for _ in submission.rows]
    try:
        async for index, token in submission.tokens():
            tokens[index].append(token)
    finally:
        leaving.cancel()
        submission.cancel()
    return tokens


async def wait_for_disconnect(request, submission):
    while (await request.receive())["type"] != "http.disconnect":
        pass
    submission.end(ClientDisconnect())


async def stream_reply(submission, reply):
    num_tokens = 0
    more = {"usage": None} if reply.include_usage else {}
    for index in range(len(submission.rows)):
        for choice in reply.opening(index):
            yield json.dumps(reply.envelope([choice], **more))
    async for index, token in submission.tokens():
        num_tokens += not token.is_prompt
        yield json.dumps(reply.envelope([reply.chunk(index, token)], **more))
    if reply.include_usage:
        yield json.dumps(reply.envelope([], usage=reply.usage(num_tokens)))
    yield "[DONE]"
