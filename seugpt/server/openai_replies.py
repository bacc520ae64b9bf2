"""What completions look like in OpenAI's protocol, whole and token by token."""

import secrets
import time

from seugpt.data.tokenizer import decode
from seugpt.server.request_fields import token_text


class Reply:
    """The frame of an answer; subclasses say how a choice looks."""

    prefix = object = chunk_object = None

    def __init__(self, loaded, prompts, fields, include_usage):
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.prompts = prompts
        self.fields = fields
        self.include_usage = include_usage
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def envelope(self, choices, **more):
        kind = self.chunk_object if self.fields.stream else self.object
        head = {"id": self.id, "object": kind, "created": self.created}
        return {**head, "model": self.loaded.name, "choices": choices, **more}

    def usage(self, completion_tokens):
        prompt_tokens = sum(map(len, self.prompts))
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class TextReply(Reply):
    """Of /v1/completions."""

    prefix = "cmpl"
    object = chunk_object = "text_completion"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.offsets = {}  # of each choice's next token, in a stream

    def echoed(self, index):
        """The prompt as text, where the reply begins with it and its tokens are not reported."""
        if not self.fields.echo or self.fields.logprobs is not None:
            return ""
        return decode(self.tokenizer, self.prompts[index // self.fields.n])

    def choice(self, index, tokens):
        return {
            "index": index,
            "text": self.echoed(index) + "".join(token.text for token in tokens),
            "logprobs": self.logprobs(index, tokens),
            "finish_reason": tokens[-1].finish_reason,
        }

    def opening(self, index):
        """What a stream begins with, before a choice's first token."""
        text = self.echoed(index)
        if text:
            yield {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def chunk(self, index, token):
        return {
            "index": index,
            "text": token.text,
            "logprobs": self.logprobs(index, [token]),
            "finish_reason": token.finish_reason,
        }

    def logprobs(self, index, tokens):
        """The four lists of the protocol, from which the token that ends a text is left out."""
        if self.fields.logprobs is None:
            return None
        ends = self.tokenizer.special.eos_ids(self.tokenizer)
        tokens = [token for token in tokens if token.is_prompt or token.id not in ends]
        texts = [token_text(self.tokenizer, token.id) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self.top_logprobs(token) for token in tokens],
            "text_offset": self.text_offsets(index, tokens),
        }

    def top_logprobs(self, token):
        if token.logprob is None:
            return None
        top = {token_text(self.tokenizer, id): logprob for id, logprob in token.top}
        return top | {token_text(self.tokenizer, token.id): token.logprob}

    def text_offsets(self, index, tokens):
        """Where each token begins, in characters of the reply's text."""
        offsets = []
        offset = self.offsets.get(index, 0)
        for token in tokens:
            offsets.append(offset)
            offset += len(decode(self.tokenizer, [token.id]))
        self.offsets[index] = offset
        return offsets


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, index, tokens):
        text = "".join(token.text for token in tokens)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self.logprobs(tokens),
            "finish_reason": tokens[-1].finish_reason,
        }

    def opening(self, index):
        delta = {"role": "assistant", "content": ""}
        yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index, token):
        return {
            "index": index,
            "delta": {"content": token.text},
            "logprobs": self.logprobs([token]),
            "finish_reason": token.finish_reason,
        }

    def logprobs(self, tokens):
        if not self.fields.logprobs:
            return None
        content = []
        for token in tokens:
            top = [self.describe(id, logprob) for id, logprob in token.top]
            content.append({**self.describe(token.id, token.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def describe(self, token, logprob):
        data = list(self.tokenizer.decode_bytes([token]))
        return {"token": token_text(self.tokenizer, token), "logprob": logprob, "bytes": data}
