"""A server on loopback with faults on demand, and prepare.py as a process that downloads from it.

    python -m tests.data.download_server ADDRESS ARGUMENTS_OF_PREPARE...

Nothing here imports torch, so that such a process starts quickly.
"""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import prepare
from seugpt.data import corpora, tokenizer

ROOT = Path(__file__).parent.parent.parent
CORPUS = b"Era conveniente ao romance " * 1000


def small_vocabulary():
    """GPT-2's two files in OpenAI's format, with a single merge."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    letters = [*map(chr, printable), *map(chr, range(256, 512 - len(printable)))]
    tokens = {token: rank for rank, token in enumerate([*letters, "ma", "<|endoftext|>"])}
    return b"#version: 0.2\nm a\n", json.dumps(tokens).encode()


MERGES, TOKENS = small_vocabulary()
BODIES = {"/corpus": CORPUS, "/merges": MERGES, "/tokens": TOKENS}
VOCABULARY_NAMES = list(tokenizer.GPT2_FILES)


def small_gpt2():
    """tiktoken's own constructor of an encoding, for this vocabulary.

    It reads the files from its cache, where they have the names of GPT-2's.
    """
    urls = [tokenizer.GPT2_URL + name for name in ("vocab.bpe", "encoder.json")]
    checksums = [sha256(body).hexdigest() for body in (MERGES, TOKENS)]
    ranks = data_gym_to_mergeable_bpe_ranks(*urls, *checksums)
    return {
        "name": "gpt2",
        "pat_str": tokenizer.GPT2_PATTERN,
        "mergeable_ranks": ranks,
        "special_tokens": {"<|endoftext|>": len(ranks)},
    }


def use_server(address):
    """Let a corpus named "served", and GPT-2's vocabulary, come from this address."""
    checksum = sha256(CORPUS).hexdigest()
    corpora.CORPORA["served"] = corpora.Corpus("char", f"{address}/corpus", checksum, len(CORPUS))
    for name, path in zip(VOCABULARY_NAMES, ("/merges", "/tokens"), strict=True):
        body = BODIES[path]
        tokenizer.GPT2_FILES[name] = {
            "url": address + path,
            "sha256": sha256(body).hexdigest(),
            "size": len(body),
        }
    tiktoken.list_encoding_names()  # fills the registry, which would otherwise replace ours later
    tiktoken.registry.ENCODING_CONSTRUCTORS["gpt2"] = small_gpt2


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODIES, or faults. Its state is shared by all requests; reset() it before a test."""

    @classmethod
    def reset(cls):
        cls.faults = []  # of the next requests; 200: no fault
        cls.requests = []  # paths
        cls.half_sent = threading.Semaphore(0)  # released by each response that stalls
        cls.resume = threading.Event()  # lets stalled responses finish

    def do_GET(self):
        body = BODIES[self.path]
        fault = self.faults.pop(0) if self.faults else 200
        self.requests.append(self.path)
        self.send_response(fault if isinstance(fault, int) else 200)
        if fault != "endless":
            length = "many" if fault == "length not a number" else str(len(body))
            self.send_header("Content-Length", length)
        self.end_headers()
        half = len(body) // 2
        if fault == "stall":
            self.wfile.write(body[:half])
            self.half_sent.release()
            self.resume.wait(60)
            self.wfile.write(body[half:])
        elif fault in (200, "length not a number"):
            self.wfile.write(body)
        elif fault == "short":
            self.wfile.write(body[:half])
        elif fault == "other bytes":
            self.wfile.write(b"?" * len(body))
        while fault == "endless":
            self.wfile.write(body)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed or hung up
            super().handle()

    def log_message(self, *args):
        pass


def start_prepare(address, *argv, max_file_bytes=None):
    """prepare.py as a process of its own that downloads from `address`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if max_file_bytes:
        environment["MAX_FILE_BYTES"] = str(max_file_bytes)
    command = [sys.executable, "-m", "tests.data.download_server", address, *argv]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def main():
    address, *argv = sys.argv[1:]
    limit = os.environ.get("MAX_FILE_BYTES")
    if limit:
        import resource  # Windows has none

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    use_server(address)
    prepare.main(argv)


if __name__ == "__main__":
    main()
