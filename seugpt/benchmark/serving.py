"""A server in a process of its own, ours or transformers', and clients that ask it for texts."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seugpt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "The "
HEADERS = {"Content-Type": "application/json"}
LOG_CHARS = 1000  # of what a server said that did not start


class Server:
    """A running server of one model, asked for completions."""

    def __init__(self, process, host):
        self.process = process
        self.host = host  # with its port

    def ask(self, connection, tokens, seed):
        """One completion over an open connection. Returns how many tokens it has; None if lost."""
        body = {"prompt": PROMPT, "max_tokens": tokens, "seed": seed}
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
            response = connection.getresponse()
            reply = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException):
            connection.close()
            return None
        return reply["usage"]["completion_tokens"] if response.status == 200 else None

    def client(self, seeds, tokens):
        """Ask for one text after the other. Returns the tokens of each."""
        connection = http.client.HTTPConnection(self.host, timeout=600)
        with contextlib.closing(connection):
            return [self.ask(connection, tokens, seed) for seed in seeds]

    def load(self, num_clients, num_requests, tokens):
        """(seconds, tokens in all, lost requests) for `num_requests` from clients at a time."""
        shares = [range(i, num_requests, num_clients) for i in range(num_clients)]
        start = time.perf_counter()
        with ThreadPoolExecutor(num_clients) as pool:
            found = list(pool.map(self.client, shares, [tokens] * num_clients))
        seconds = time.perf_counter() - start
        counts = [count for client in found for count in client]
        return seconds, sum(filter(None, counts)), counts.count(None)

    def resident_mb(self):
        """Memory of the server's process, in MB; None where the system does not say."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


@contextlib.contextmanager
def running(words, **popen):
    """The process of a command, which ends with the block."""
    process = subprocess.Popen(list(map(str, words)), **popen)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def our_server(source, device):
    """serve.py with the model of a source. Raises ConfigError if it does not start."""
    words = [sys.executable, ROOT / "serve.py", f"--init_from={source}", "--port=0"]
    words += [f"--device={device}", "--max_queue=100000"]
    with running(words, stdout=subprocess.PIPE, encoding="utf-8") as process:
        line = process.stdout.readline()
        if not line.startswith("http://"):
            raise ConfigError(f"serve.py did not start; try it alone: {' '.join(map(str, words))}")
        yield Server(process, line.split()[0].removeprefix("http://"))


@contextlib.contextmanager
def transformers_server(source, device, *options):
    """`transformers serve` with the same model, exported. Raises ConfigError without an answer."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        export = [sys.executable, ROOT / "export.py", f"--init_from={source}", f"--to={model}"]
        if subprocess.run(export, stdout=subprocess.DEVNULL, check=False).returncode:
            raise ConfigError(f"{source} cannot be exported for transformers serve")
        host = f"127.0.0.1:{free_port()}"
        words = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, *options]
        words += ["--host=127.0.0.1", f"--port={host.partition(':')[2]}", f"--device={device}"]
        log = Path(folder, "log")
        with log.open("w") as file:
            environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
            with running(words, env=environ, stdout=file, stderr=file) as process:
                if not answers(process, host):
                    raise ConfigError(
                        "transformers serve did not start; it needs python -m pip install "
                        f"'transformers[serving]'. It said:\n{log.read_text()[-LOG_CHARS:]}"
                    )
                yield Server(process, host)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(process, host):
    """Wait until the server answers. Returns whether it does, and has not ended instead."""
    while process.poll() is None:
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    return False
