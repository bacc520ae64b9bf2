"""Downloads over a network that fails: what arrives is whole or is not there, and the message names the way out.

The server is a real one on loopback, and so are its faults; only the waiting between attempts is left out.
"""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import prepare
from seugpt.data import corpora, download, tokenizer
from seugpt.data.dataset import Dataset
from tests.helpers import ROOT

TEXT = b"Era conveniente ao romance " * 1000


def small_vocabulary():
    """GPT-2's two files in OpenAI's form, with a single merge."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    letters = [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    tokens = {token: rank for rank, token in enumerate([*letters, "ma", "<|endoftext|>"])}
    return b"#version: 0.2\nm a\n", json.dumps(tokens).encode()


MERGES, TOKENS = small_vocabulary()
BODIES = {"/corpus": TEXT, "/merges": MERGES, "/tokens": TOKENS}
NAMES = list(tokenizer.GPT2_FILES)


def small_gpt2():
    """What tiktoken makes of them: it looks for GPT-2's addresses in its cache, and compares the checksums."""
    urls = [tokenizer.GPT2_URL + name for name in ("vocab.bpe", "encoder.json")]
    ranks = data_gym_to_mergeable_bpe_ranks(
        *urls, sha256(MERGES).hexdigest(), sha256(TOKENS).hexdigest()
    )
    special = {"<|endoftext|>": len(ranks)}
    return {
        "name": "gpt2",
        "pat_str": tokenizer.GPT2_PATTERN,
        "mergeable_ranks": ranks,
        "special_tokens": special,
    }


def point_at(address):
    """Let a corpus named "served" and GPT-2's vocabulary come from there."""
    corpora.CORPORA["served"] = corpora.Corpus(
        "char", f"{address}/corpus", sha256(TEXT).hexdigest(), len(TEXT)
    )
    for name, path in zip(NAMES, ("/merges", "/tokens"), strict=True):
        body = BODIES[path]
        tokenizer.GPT2_FILES[name] = {
            "url": address + path,
            "sha256": sha256(body).hexdigest(),
            "size": len(body),
        }
    tiktoken.list_encoding_names()  # or tiktoken would find its own again
    tiktoken.registry.ENCODING_CONSTRUCTORS["gpt2"] = small_gpt2


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODIES; `plan` lists what each request gets instead: a status, or the name of a fault."""

    plan, asked = [], []
    half_sent, go_on = threading.Semaphore(0), threading.Event()

    def do_GET(self):
        body, step = BODIES[self.path], self.plan.pop(0) if self.plan else 200
        self.asked.append(self.path)
        self.send_response(step if isinstance(step, int) else 200)
        if step != "endless":
            self.send_header("Content-Length", "many" if step == "no number" else str(len(body)))
        self.end_headers()
        half = len(body) // 2
        if step == "stall":
            self.wfile.write(body[:half])
            self.half_sent.release()
            self.go_on.wait(60)
            self.wfile.write(body[half:])
        else:
            parts = {200: body, "no number": body, "short": body[:half], "other": b"?" * len(body)}
            self.wfile.write(parts.get(step, b""))
        while step == "endless":
            self.wfile.write(body)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed, or has heard enough
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture
def served(workspace, monkeypatch):
    """The address of the server, from which this process gets the corpus and the vocabulary."""
    Server.plan, Server.asked = [], []
    Server.half_sent, Server.go_on = threading.Semaphore(0), threading.Event()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setitem(
        corpora.CORPORA, "served", None
    )  # put back after the test, as the following
    monkeypatch.setattr(tokenizer, "GPT2_FILES", {})
    tiktoken.list_encoding_names()
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "gpt2", None)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    Path("t.txt").write_text("não é uma maçã\n" * 50, encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        point_at(address := f"http://127.0.0.1:{server.server_port}")
        yield address
        Server.go_on.set()
        server.shutdown()


# What is typed, the files that come, and the way out that a message must name.
CORPUS = ["served"], {"data/served/input.txt": TEXT}, "python prepare.py served --input=FILE"
VOCABULARY = (
    ["t", "--input=t.txt", "--tokenizer=gpt2"],
    {f"cache/{NAMES[0]}": MERGES, f"cache/{NAMES[1]}": TOKENS},
    "--tokenizer=bpe, which needs no download",
)
both = pytest.mark.parametrize(
    "argv, files, way_out", [CORPUS, VOCABULARY], ids=["corpus", "vocabulary"]
)


def left():
    """What is in data/ and cache/, temporary files included: {path: bytes}."""
    paths = [path for top in ("data", "cache") for path in Path(top).rglob("*") if path.is_file()]
    return {path.as_posix(): path.read_bytes() for path in paths}


def assert_whole(argv, files):
    """Everything has come, it makes a data set, and nothing else is left."""
    assert {name: content for name, content in left().items() if name in files} == files
    assert {Path(name).name for name in set(left()) - set(files)} == set(prepare.FILES)
    assert Dataset(Path("data", argv[0])).tokens["train"] > 0


@both
def test_a_server_that_stumbles_is_asked_again(served, argv, files, way_out):
    Server.plan = [500, 503, "short"]
    prepare.main(argv)
    assert_whole(argv, files)
    assert len(Server.asked) == 3 + len(files)
    Server.plan = [404]  # not asked again: the files are there and their checksums right
    tiktoken.registry.ENCODINGS.clear()
    prepare.main(argv)
    assert Server.plan == [404]


@both
@pytest.mark.parametrize(
    "fault, words, asked",
    [
        (404, "HTTP Error 404", 1),
        (403, "HTTP Error 403", 1),
        (500, "HTTP Error 500", 4),
        (429, "HTTP Error 429", 4),
        ("short", "bytes arrived", 4),
        ("stall", "timed out", 4),
        ("other", "the sha256 of what arrived is", 4),
        ("endless", "more than", 4),
    ],
)
def test_a_fault_that_stays_names_the_way_out_and_leaves_nothing(
    served, refused, monkeypatch, argv, files, way_out, fault, words, asked
):
    """GPT-2's vocabulary was tiktoken's to download: once, and a server that fell silent kept it waiting for ever."""
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    Server.plan = [fault] * 9
    message = refused(prepare.main, *argv)
    assert words in message and served in message and way_out in message
    assert (
        len(Server.asked) == asked and left() == {} and not Path("data").joinpath(argv[0]).exists()
    )


def test_a_length_that_is_no_number_does_no_harm(served):
    """It was a ValueError, and a traceback."""
    Server.plan = ["no number"]
    prepare.main(["served"])
    assert_whole(*CORPUS[:2])


def test_what_is_damaged_in_the_cache_is_fetched_anew(served):
    prepare.main(VOCABULARY[0])
    Path("cache", NAMES[1]).write_bytes(TOKENS[:100])
    tiktoken.registry.ENCODINGS.clear()
    prepare.main(VOCABULARY[0])
    assert_whole(*VOCABULARY[:2])


@both
@pytest.mark.parametrize(
    "address, attempts", [("http://nowhere.invalid", 1), ("http://127.0.0.1:9", 4)]
)
def test_without_a_network_nobody_waits(
    served, refused, monkeypatch, argv, files, way_out, address, attempts
):
    """A name without an address is no passing trouble, as a server that is not there right now may be."""
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    point_at(address)
    assert way_out in refused(prepare.main, *argv)
    assert waits == [0, 1, 2, 4][:attempts]


def test_a_cache_that_cannot_be_written_is_named(served, refused, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "t.txt")
    message = refused(prepare.main, *VOCABULARY[0])
    assert (
        "cannot keep GPT-2's vocabulary in t.txt: " in message
        and "Set TIKTOKEN_CACHE_DIR" in message
    )


def test_where_the_system_has_no_certificates_there_are_some(monkeypatch):
    """Python for macOS comes without any, and https failed until a script of its own was run."""
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", "nowhere")
    assert len(download.certificates().get_ca_certs()) > 50


def start(served, *argv, before="pass"):
    """prepare.py as a process of its own, which downloads from the same server."""
    code = f"{before}; import sys; from tests.data import test_download; test_download.point_at(sys.argv[1]); "
    code += "import prepare; prepare.main(sys.argv[2:])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, served, *argv]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")
@both
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_who_is_stopped_half_way_leaves_no_half_file_and_can_begin_again(
    served, argv, files, way_out, number
):
    Server.plan = ["stall"]
    process = start(served, *argv)
    assert Server.half_sent.acquire(timeout=60)
    process.send_signal(getattr(signal, number))
    _, message = process.communicate(timeout=60)
    if number == "SIGINT":
        assert process.returncode == 130 and message.strip() == "Interrupted." and left() == {}
    else:
        assert process.returncode == -getattr(signal, number)
    assert not set(files) & set(left())
    prepare.main(argv)
    assert_whole(argv, files)


@both
def test_two_at_once_do_each_other_no_harm(served, argv, files, way_out):
    Server.plan = ["stall", "stall"]
    processes = [start(served, *argv) for _ in range(2)]
    assert all(
        Server.half_sent.acquire(timeout=60) for _ in processes
    )  # both are in the middle of it
    Server.go_on.set()
    for process in processes:
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    assert_whole(argv, files)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of a file's size to set")
def test_a_disk_that_takes_no_more_is_not_the_networks_fault(served):
    """It was tried four times, and the advice was to get the file another way."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    process = start(served, "served", before=limit)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2 and message.strip().endswith(
        f"File too large ({Path('data/served')})"
    )
    assert Server.asked == ["/corpus"] and left() == {}
