"""Play with a model in a browser, and let other programs use it through OpenAI's protocol.

    python serve.py --out_dir=out-quickstart --open
    python serve.py --out_dir=out-mytext --compare=out-quickstart --reload
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json"
      -d '{"prompt": "Once", "max_tokens": 50}'

The address is this machine's own unless --host says otherwise, which needs an --api_key.
"""

import seugpt.cli.interrupt  # noqa: F401, for a quiet Ctrl-C during the imports below

import math
import socket
import sys
import webbrowser
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from model import allow_tf32, pick_device
from seugpt.checkpoint.pretrained import ModelSource
from seugpt.cli.command import command, out_of_memory_advice
from seugpt.cli.config_parser import parse_configs
from seugpt.cli.text_option import read_text_option
from seugpt.errors import ConfigError
from seugpt.server.limits import Limits
from seugpt.server.loaded_model import ModelLoader
from seugpt.threads import CpuThreads, ThreadsOption, start_in_own_thread

BACKLOG = 512  # connections that the system holds until the server takes them


@dataclass(frozen=True)
class ServeConfig(ModelSource):
    compare: Annotated[
        tuple[str, ...], "another model to serve, as in init_from; may be repeated", "path"
    ] = ()
    host: Annotated[str, "address to listen at; 0.0.0.0 for all of this machine's", "not empty"] = (
        "127.0.0.1"
    )
    port: Annotated[int, "TCP port; 0: any that is free", ">= 0", "<= 65535"] = 8000
    api_key: Annotated[
        str | None, "key that clients must send, or FILE:path; needed with --host", "not empty"
    ] = None
    open: Annotated[bool, "open the page in a browser"] = False
    reload: Annotated[bool, "serve the latest.pt of a run in training as it changes"] = False
    threads: ThreadsOption = None
    device: Annotated[str, "auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "dtype of the weights"] = (
        "auto"
    )


def import_server():
    """The packages uvicorn and seugpt.server. Raises ConfigError if one is missing."""
    try:
        import uvicorn

        import seugpt.server.app
        import seugpt.server.engine
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serve.py needs the package {error.name}: "
            "python -m pip install starlette==1.10.0 uvicorn==0.54.0"
        ) from error
    return uvicorn, seugpt.server


def listen(config):
    """The listening socket. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # where it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at host={config.host} port={config.port}: {error.strerror}; "
            f"another port may be free, as in --port={(config.port + 1) % 65536}"
        ) from error
    listener.listen(BACKLOG)
    return listener


def describe(loaded):
    facts = [f"{loaded.model.num_params():,} parameters"]
    if loaded.step:
        facts.append(f"step {loaded.step:,}")
    if loaded.val_loss is not None:
        facts.append(f"validation loss {loaded.val_loss:.4f}")
    return f"{loaded.name}: {', '.join(facts)}"


def serve(config, limits):
    """Load the models and answer requests until a signal. Raises UserError."""
    uvicorn, server = import_server()
    notify = partial(print, file=sys.stderr, flush=True)
    if config.api_key:
        config = replace(config, api_key=read_text_option(config.api_key, "api_key").strip())
    server.app.check_host(config)
    listener = listen(config)
    device = pick_device(config.device)
    allow_tf32(device)
    loader = ModelLoader(device, config.dtype, config.reload)
    models = start_in_own_thread(loader.load_all, [config.source, *config.compare]).result()
    engine = server.engine.Engine(models, limits, CpuThreads(config.threads, notify))
    app = server.app.create_app(engine, config, loader if config.reload else None)
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{port}"
    for loaded in models.values():
        notify(describe(loaded))
    print(f"{url} (Ctrl-C stops)", flush=True)
    if config.open:
        webbrowser.open(url)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=math.ceil(limits.max_seconds),
    )
    uvicorn.Server(settings).run(sockets=[listener])


def main(argv=None):
    with command():
        config, limits = parse_configs(argv, ServeConfig, Limits, description=__doc__)
        with out_of_memory_advice("a smaller model, or --device=cpu"):
            serve(config, limits)


if __name__ == "__main__":
    main()
