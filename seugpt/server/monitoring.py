"""/health for whoever starts the server, /metrics for Prometheus."""

from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

CONTENT_TYPE = "text/plain; version=0.0.4"


def monitoring_routes(engine):
    async def health(request):
        return JSONResponse({"status": "ok", "models": list(engine.models)})

    async def metrics(request):
        return PlainTextResponse(metrics_text(engine), media_type=CONTENT_TYPE)

    return [Route("/health", health), Route("/metrics", metrics)]


def metrics_text(engine):
    """The counters in Prometheus' text format."""
    counts = engine.counts
    lines = ["# HELP seugpt_requests_total Answered HTTP requests.", *kind("requests", "counter")]
    for name in sorted(counts):
        if name.startswith("status_"):
            status = name.removeprefix("status_")
            lines.append(f'seugpt_requests_total{{status="{status}"}} {counts[name]}')
    for name, help_text in (
        ("tokens", "Generated tokens."),
        ("prompt_tokens", "Tokens of prompts."),
        ("refused", "Requests refused because the queue was full."),
        ("busy_seconds", "Seconds that models were computing."),
    ):
        lines += [f"# HELP seugpt_{name}_total {help_text}", *kind(name, "counter")]
        lines.append(f"seugpt_{name}_total {counts[name]}")
    for name, help_text, value in (
        ("waiting", "Texts that wait for a place in a batch.", engine.num_waiting()),
        ("running", "Texts that are being generated.", engine.num_running()),
    ):
        lines += [f"# HELP seugpt_{name} {help_text}", f"# TYPE seugpt_{name} gauge"]
        lines.append(f"seugpt_{name} {value}")
    return "\n".join(lines) + "\n"


def kind(name, type_name):
    return [f"# TYPE seugpt_{name}_total {type_name}"]
