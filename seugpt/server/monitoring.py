"""/health for whoever starts the server, /metrics for Prometheus."""

from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from seugpt.server.errors import busy_error

CONTENT_TYPE = "text/plain; version=0.0.4"
COUNTERS = {
    "tokens": "Generated tokens.",
    "prompt_tokens": "Tokens of prompts.",
    "refused": "Requests refused because the queue was full.",
    "busy_seconds": "Seconds that models were computing.",
}


def monitoring_routes(engine):
    async def health(request):
        if engine.is_closed:
            raise busy_error("the server is shutting down")
        return JSONResponse({"status": "ok", "models": list(engine.models)})

    async def metrics(request):
        return PlainTextResponse(metrics_text(engine), media_type=CONTENT_TYPE)

    return [Route("/health", health), Route("/metrics", metrics)]


def metrics_text(engine):
    """The engine's counters in Prometheus' text format."""
    counts = engine.counts
    statuses = {
        f'{{status="{key.removeprefix("status_")}"}}': value
        for key, value in sorted(counts.items())
        if key.startswith("status_")
    }
    lines = metric("requests_total", "counter", "Answered HTTP requests.", statuses)
    for name, help_text in COUNTERS.items():
        lines += metric(f"{name}_total", "counter", help_text, {"": counts[name]})
    waiting, running = engine.num_waiting(), engine.num_running()
    lines += metric("waiting", "gauge", "Texts that wait for a place.", {"": waiting})
    lines += metric("running", "gauge", "Texts that are being generated.", {"": running})
    return "\n".join(lines) + "\n"


def metric(name, kind, help_text, values):
    """The lines of one metric; values: {labels: number}."""
    head = [f"# HELP seugpt_{name} {help_text}", f"# TYPE seugpt_{name} {kind}"]
    return head + [f"seugpt_{name}{labels} {value}" for labels, value in values.items()]
