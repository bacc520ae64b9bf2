"""A server in a process of its own, and clients that ask it for texts."""

import contextlib
import http.client
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seugpt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "The "
HEADERS = {"Content-Type": "application/json"}


class Server:
    """A running server, asked for completions of one model."""

    def __init__(self, process, host, model=None):
        self.process = process
        self.host = host  # with its port
        self.model = {"model": model} if model else {}

    def ask(self, connection, tokens, seed):
        """One completion over an open connection. Returns how many tokens it has; None if lost."""
        body = {**self.model, "prompt": PROMPT, "max_tokens": tokens, "seed": seed}
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
def our_server(source, device):
    """serve.py with the model of a source. Raises ConfigError if it does not start."""
    words = [sys.executable, ROOT / "serve.py", f"--init_from={source}", "--port=0"]
    process = subprocess.Popen(
        list(map(str, [*words, f"--device={device}", "--max_queue=100000"])),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        line = process.stdout.readline()
        if not line.startswith("http://"):
            raise ConfigError(f"serve.py did not start; try it alone: {' '.join(map(str, words))}")
        yield Server(process, line.split()[0].removeprefix("http://"))
    finally:
        process.terminate()
        process.wait()
