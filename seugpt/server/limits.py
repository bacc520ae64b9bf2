"""How much one request, and all of them together, may take."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Limits:
    """The options of serve.py that bound its work."""

    max_rows: Annotated[int, "texts of a model that are generated at once", ">= 1", "<= 1024"] = 16
    max_queue: Annotated[int, "texts that may wait; then 503", ">= 1", "<= 100000"] = 128
    max_choices: Annotated[int, "texts of one request: its prompts times n", ">= 1"] = 64
    max_prompt: Annotated[int, "tokens of a prompt", ">= 1"] = 32768
    max_reply: Annotated[int, "tokens of a reply", ">= 1"] = 4096
    max_body: Annotated[int, "bytes of a request", ">= 1"] = 2**20
    max_seconds: Annotated[float, "seconds of a request, with waiting and sending", "> 0"] = 300.0
