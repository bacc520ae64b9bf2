"""A server with tiny models: in this process through TestClient, or on a real socket."""

import contextlib
import socket
import threading
from types import SimpleNamespace

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

import seugpt.server.app
import seugpt.server.engine
from seugpt.data.special_tokens import SpecialTokens
from seugpt.data.tokenizer import train_bpe
from seugpt.server.app import create_app
from seugpt.server.engine import Engine
from seugpt.server.limits import Limits
from seugpt.server.loaded_model import ModelLoader
from tests.helpers import LLAMA, save_perturbed_gpt

CHARS = "\n abcdefghijklmnopqrstuvwxyz.,!?TãçéA🦜"
BLOCK_SIZE = 32
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """out/best.pt knows characters; bpe/best.pt byte-level BPE, and a chat template."""
    folder = tmp_path_factory.mktemp("serve")
    spec = {"kind": "char", "chars": CHARS}
    save_perturbed_gpt(spec, folder / "out" / "best.pt", padding=3, block_size=BLOCK_SIZE)
    spec = bpe_spec()
    save_perturbed_gpt(spec, folder / "bpe" / "best.pt", block_size=BLOCK_SIZE, **LLAMA)
    return folder


def bpe_spec():
    spec = train_bpe(["O menino viu a maçã e não comeu. 🦜 <|endoftext|>"] * 20, 280).spec()
    special = SpecialTokens(eos=("<|endoftext|>",), chat_template=TEMPLATE)
    return {**spec, "special": special.to_json()}


def load_models(folder):
    loader = ModelLoader(torch.device("cpu"), "float32")
    return loader.load_all([str(folder / "out"), str(folder / "bpe")])


@pytest.fixture(scope="session")
def models(folder):
    """{name: LoadedModel}: out, bpe."""
    return load_models(folder)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page in place of the real one."""
    (tmp_path / "index.html").write_text("<p>a page</p>", encoding="utf-8")
    monkeypatch.setattr(seugpt.server.app, "STATIC", tmp_path)


@pytest.fixture
def make_client(models, page):
    """make_client(api_key=None, host="127.0.0.1", **limits): a TestClient with an .engine."""
    with contextlib.ExitStack() as stack:

        def make(api_key=None, host="127.0.0.1", **limits):
            engine = Engine(dict(models), Limits(**limits))
            app = create_app(engine, SimpleNamespace(host=host, api_key=api_key))
            client = TestClient(app, f"http://{host}:8000", raise_server_exceptions=False)
            client.engine = engine
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def make_server(models):
    """make_server(api_key=None, **limits): a server on loopback; its .url, .port and .engine."""
    with contextlib.ExitStack() as stack:

        def make(api_key=None, **limits):
            return stack.enter_context(running_server(models, limits, api_key))

        yield make


@contextlib.contextmanager
def running_server(models, limits, api_key):
    engine = Engine(dict(models), Limits(**limits))
    app = create_app(engine, SimpleNamespace(host="127.0.0.1", api_key=api_key))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
    port = listener.getsockname()[1]
    settings = uvicorn.Config(app, log_level="error", access_log=False)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", port=port, engine=engine)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def make_reloading_client(page, monkeypatch):
    """make_reloading_client(run): a TestClient of `serve.py --reload`, which looks often."""
    monkeypatch.setattr(seugpt.server.engine, "RELOAD_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:

        def make(run):
            loader = ModelLoader(torch.device("cpu"), "float32", newest=True)
            engine = Engine(loader.load_all([str(run)]), Limits())
            app = create_app(engine, SimpleNamespace(host="127.0.0.1", api_key=None), loader)
            return stack.enter_context(TestClient(app, "http://127.0.0.1:8000"))

        yield make
