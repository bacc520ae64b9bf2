"""The web application: routes behind one guard."""

import asyncio
import contextlib
import mimetypes
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from seugpt.errors import ConfigError
from seugpt.server.engine import reload_models
from seugpt.server.errors import ApiError
from seugpt.server.guard import Guard, is_loopback
from seugpt.server.inspect import inspect_routes
from seugpt.server.monitoring import monitoring_routes
from seugpt.server.openai_api import openai_routes
from seugpt.server.page_api import page_routes
from seugpt.server.runs import runs_routes

STATIC = Path(__file__).parent / "static"


def create_app(engine, config, loader=None):
    """The Starlette application of an Engine.

    config: a ServeConfig, or whatever has its `host` and its `api_key`, the key itself or None;
    loader: a ModelLoader, to load models again when their checkpoints change.
    """
    mimetypes.add_type("text/javascript", ".js")  # which some Windows takes for plain text
    routes = [
        *openai_routes(engine),
        *page_routes(engine),
        *inspect_routes(engine),
        *runs_routes(engine),
        *monitoring_routes(engine),
    ]
    guard = Middleware(
        Guard,
        host=config.host,
        api_key=config.api_key,
        limits=engine.limits,
        counts=engine.counts,
    )
    handlers = {ApiError: api_error, HTTPException: http_error, Exception: internal_error}
    app = Starlette(
        routes=routes,
        middleware=[guard],
        exception_handlers=handlers,
        lifespan=partial(lifespan, engine, loader),
    )
    # Not mounted at "/", which would take the requests that a route refuses for their method.
    app.router.default = StaticFiles(directory=STATIC, html=True, check_dir=False)
    return app


@contextlib.asynccontextmanager
async def lifespan(engine, loader, app):
    """What runs beside the requests."""
    engine.start()
    task = asyncio.create_task(reload_models(engine, loader)) if loader else None
    yield
    if task:
        task.cancel()
    await asyncio.to_thread(engine.close)


def check_host(config):
    """Raise ConfigError for a server that strangers could use."""
    if not is_loopback(config.host) and not config.api_key:
        raise ConfigError(
            f"host={config.host} lets other machines in; "
            "let them need a key, as in --api_key=FILE:key.txt"
        )


async def api_error(request, error):
    return error.response()


async def http_error(request, error):
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def internal_error(request, error):
    return ApiError(500, "an error inside the server; its terminal shows it").response()
