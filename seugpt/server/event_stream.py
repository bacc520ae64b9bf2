"""Server-sent events."""

import json

from starlette.responses import StreamingResponse

from seugpt.server.errors import ApiError


class EventStream(StreamingResponse):
    """Each text of an async iterator as an event; whatever ends it frees the submission's rows."""

    def __init__(self, texts, submission):
        super().__init__(as_events(texts), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"
        self.submission = submission

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.submission.cancel()


async def as_events(texts):
    try:
        async for text in texts:
            yield f"data: {text}\n\n"
    except ApiError as error:  # too late for a status
        yield f"data: {json.dumps(error.content())}\n\n"
