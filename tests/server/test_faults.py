"""Load and faults: many clients, clients that leave or do not read, failures, a full queue."""

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

import serve
from seugpt.checkpoint.storage import load_checkpoint, save_checkpoint
from seugpt.generation.continuous import ContinuousDecoder
from seugpt.server import engine
from seugpt.server.batch import Batch, GenerationRequest, Row
from seugpt.server.loaded_model import ModelLoader
from tests.helpers import ROOT, start_script, wait_until

HEADERS = {"Content-Type": "application/json"}


def post(port, timeout=60, **body):
    """(status, content) of a completion; each call has a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), HEADERS)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def open_stream(port, **body):
    """A socket over which a stream of tokens comes."""
    content = json.dumps({"prompt": "abc", "stream": True, **body}).encode()
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)  # so that it is soon full
    stream.settimeout(60)
    stream.connect(("127.0.0.1", port))
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\nContent-Type: application/json\r\n"
    )
    stream.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return stream


def read_all(client):
    data = b""
    while part := client.recv(2**16):
        data += part
    return data


def in_parallel(count, function):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, range(count)))


def test_16_clients_each_get_their_own_text(make_server):
    server = make_server()

    def text(seed):
        status, reply = post(server.port, prompt="abc"[: seed % 3 + 1], max_tokens=20, seed=seed)
        assert status == 200
        return reply["choices"][0]["text"]

    alone = [text(seed) for seed in range(16)]
    assert in_parallel(16, text) == alone
    assert len(set(alone)) == 16


def test_rows_are_decoded_together(make_server, monkeypatch):
    sizes = []
    advance = Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda self: sizes.append(n := advance(self)) or n)
    server = make_server(max_rows=5)
    status, reply = post(server.port, prompt="abc", n=12, max_tokens=30)
    assert status == 200
    assert max(sizes) == 5
    assert sum(sizes) == reply["usage"]["completion_tokens"] == 360


@pytest.mark.parametrize("stream, sizes", [(True, [1] * 20), (False, [20])])
def test_only_a_stream_wakes_the_event_loop_at_each_token(make_client, monkeypatch, stream, sizes):
    found = []

    def hand_out(events):
        found.extend(len(items) for _, items in events)
        original(events)

    original = engine.hand_out
    monkeypatch.setattr(engine, "hand_out", hand_out)
    body = {"prompt": "abc", "max_tokens": 20, "stream": stream}
    assert make_client().post("/v1/completions", json=body).status_code == 200
    assert found == sizes


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(make_server, stream):
    server = make_server(max_reply=10**6)
    client = open_stream(server.port, max_tokens=10**6, stream=stream)
    wait_until(lambda: server.engine.num_running() == 1)
    client.close()
    wait_until(lambda: server.engine.num_running() == 0)
    assert server.engine.counts["tokens"] < 10**6


def test_a_cancelled_row_gets_no_further_token(models):
    batch = Batch(models["out"], max_rows=4)
    request = GenerationRequest("out", [1, 2], max_tokens=50)
    events = []
    deadline = time.monotonic() + 60
    row = Row(request, 0, lambda row, event: events.append(event), deadline, None, streams=True)
    batch.waiting.append(row)
    batch.admit(batch.next_waiting())
    assert batch.advance() == 1
    row.is_over = True
    assert batch.next_waiting() is None
    assert batch.advance() == 0
    assert len(events) == 1


def test_a_client_that_does_not_read_delays_nobody(make_server):
    """Its row ends as soon as its text has; the others never wait for it."""
    server = make_server(max_rows=2)
    slow = open_stream(server.port, max_tokens=600, logprobs=20)
    wait_until(lambda: server.engine.num_running() == 1)
    for seed in range(3):
        assert post(server.port, prompt="abc", max_tokens=10, seed=seed)[0] == 200
    wait_until(lambda: server.engine.counts["tokens"] == 630)
    wait_until(lambda: server.engine.counts["status_200"] == 3)  # its own is not sent yet
    assert read_all(slow).endswith(b"[DONE]\n\n\r\n0\r\n\r\n")
    slow.close()


def test_a_client_that_does_not_read_is_dropped_in_time(make_server, monkeypatch):
    monkeypatch.setattr("seugpt.server.guard.GRACE_SECONDS", 0.0)
    server = make_server(max_reply=10**6, max_seconds=1.0)
    slow = open_stream(server.port, max_tokens=10**6, logprobs=20)
    wait_until(lambda: server.engine.counts["status_200"] == 1)
    assert server.engine.num_running() == 0
    slow.close()


def test_a_client_that_sends_its_request_slowly_is_told_so(make_server, monkeypatch):
    monkeypatch.setattr("seugpt.server.guard.GRACE_SECONDS", 0.0)
    server = make_server(max_seconds=0.5)
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    slow.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    assert b" 408 " in slow.recv(1000)
    slow.close()


def test_a_request_that_takes_too_long_is_told_so(make_server):
    server = make_server(max_reply=10**7, max_seconds=0.5)
    status, reply = post(server.port, prompt="abc", max_tokens=10**7)
    assert status == 504
    assert "max_seconds" in reply["error"]["message"]
    assert server.engine.num_running() == 0


def test_a_full_queue_is_told_at_once(make_server):
    server = make_server(max_rows=1, max_queue=3, max_reply=10**6)
    clients = [open_stream(server.port, max_tokens=10**6)]
    wait_until(lambda: server.engine.num_running() == 1)
    clients += [open_stream(server.port) for _ in range(3)]
    wait_until(lambda: server.engine.num_waiting() == 3)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "abc"}), HEADERS)
    response = connection.getresponse()
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    assert "max_queue=3" in json.loads(response.read())["error"]["message"]
    for client in clients:
        client.close()
    wait_until(lambda: server.engine.num_running() + server.engine.num_waiting() == 0)
    assert post(server.port, prompt="abc")[0] == 200


def test_a_request_is_queued_whole_or_not_at_all(make_server):
    server = make_server(max_queue=3)
    assert post(server.port, prompt="abc", n=4)[0] == 503
    assert server.engine.num_waiting() == 0
    assert post(server.port, prompt="abc", n=3)[0] == 200


def test_a_failed_step_fails_its_requests_and_no_later_one(make_server, monkeypatch, capfd):
    server = make_server()
    sample = Batch.sample

    def fail(self, logits):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Batch, "sample", fail)
    status, reply = post(server.port, prompt="abc")
    assert status == 500
    assert "allocate memory" in reply["error"]["message"]
    monkeypatch.setattr(Batch, "sample", sample)
    assert post(server.port, prompt="abc")[0] == 200
    assert "allocate memory" in capfd.readouterr().err


def test_a_model_that_computes_nan_says_so(client, models, monkeypatch):
    """JSON has no NaN: the answer was an error of the server without a reason."""
    step = ContinuousDecoder.step
    monkeypatch.setattr(ContinuousDecoder, "step", lambda self: step(self) * torch.nan)
    response = client.post("/v1/completions", json={"prompt": "abc", "logprobs": 1})
    assert response.status_code == 500
    assert "NaN" in response.json()["error"]["message"]


def test_a_failure_in_a_stream_is_its_last_event(client, monkeypatch):
    sample = Batch.sample

    def fail_later(self, logits):
        if self.rows[0].num_tokens == 3:
            raise RuntimeError("broken")
        return sample(self, logits)

    monkeypatch.setattr(Batch, "sample", fail_later)
    response = client.post("/v1/completions", json={"prompt": "abc", "stream": True})
    *tokens, error = response.text.strip().split("\n\n")
    assert len(tokens) == 3
    assert "broken" in json.loads(error.removeprefix("data: "))["error"]["message"]


def test_a_request_that_cannot_join_fails_alone(make_server, monkeypatch):
    server = make_server(max_reply=10**6)
    client = open_stream(server.port, max_tokens=10**6)
    wait_until(lambda: server.engine.num_running() == 1)
    admit = Batch.admit

    def fail(self, row):
        if row.request.seed == 13:
            raise RuntimeError("unlucky")
        admit(self, row)

    monkeypatch.setattr(Batch, "admit", fail)
    assert post(server.port, prompt="abc", seed=13)[0] == 500
    assert post(server.port, prompt="abc", seed=12)[0] == 200
    assert server.engine.num_running() == 1
    client.close()


# A checkpoint that changes


def rewrite(folder, step, scale):
    """Write latest.pt anew, as a run in training does."""
    ckpt = load_checkpoint(folder / "best.pt")
    ckpt["model"] = {name: scale * tensor for name, tensor in ckpt["model"].items()}
    ckpt.pop("path")
    ckpt.pop("mtime_ns")
    save_checkpoint(folder / "latest.pt", {**ckpt, "step": step})


def test_reload_serves_the_newest_checkpoint(folder, tmp_path, make_reloading_client, capfd):
    run = tmp_path / "run"
    shutil.copytree(folder / "out", run)
    rewrite(run, 10, 1.0)
    client = make_reloading_client(run)
    body = {"prompt": "abc", "temperature": 0, "max_tokens": 30}

    def step():
        return client.get("/api/info").json()["models"][0]["step"]

    first = client.post("/v1/completions", json=body).json()
    assert step() == 10
    rewrite(run, 20, -0.5)
    wait_until(lambda: step() == 20)
    assert client.post("/v1/completions", json=body).json()["choices"] != first["choices"]

    (run / "latest.pt").write_bytes(b"damaged")
    wait_until(lambda: "step 20 goes on" in capfd.readouterr().err)
    assert step() == 20
    rewrite(run, 30, 1.0)
    wait_until(lambda: step() == 30)
    assert client.post("/v1/completions", json=body).json()["choices"] == first["choices"]


def test_without_reload_a_replaced_checkpoint_changes_nothing(folder, tmp_path, make_client):
    run = tmp_path / "run"
    shutil.copytree(folder / "out", run)
    client = make_client()
    loader = ModelLoader(torch.device("cpu"), "float32")
    client.engine.models["out"] = loader.load("out", str(run))
    body = {"prompt": "abc", "temperature": 0, "max_tokens": 30}
    first = client.post("/v1/completions", json=body).json()["choices"]
    (run / "best.pt").write_bytes(b"damaged")
    assert client.post("/v1/completions", json=body).json()["choices"] == first
    shutil.rmtree(run)
    assert client.post("/v1/completions", json=body).json()["choices"] == first


# A process of its own


@pytest.fixture
def process(folder, workspace):
    """A running serve.py, and its port."""
    options = [f"--out_dir={folder / 'out'}", "--port=0", "--max_reply=100000", "--max_seconds=60"]
    process = start_script(options, script=ROOT / "serve.py")

    def port():
        found = [line for line in Path("output").read_text().splitlines() if "http://" in line]
        return found and int(found[0].split(":")[2].split()[0])

    process.port = wait_until(port, process)
    wait_until(lambda: is_listening(process.port))
    yield process
    process.kill()
    process.wait()


def is_listening(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def test_sigterm_finishes_what_runs_and_refuses_what_comes(process):
    clients = [open_stream(process.port, max_tokens=1500, seed=seed) for seed in range(8)]
    for client in clients:
        assert b"data: " in wait_for_event(client)
    os.kill(process.pid, signal.SIGTERM)
    wait_until(lambda: not is_listening(process.port))
    for client in clients:
        assert read_all(client).count(b'"finish_reason": "length"') == 1
    assert process.wait(60) == -signal.SIGTERM
    assert "Traceback" not in Path("output").read_text()


def test_ctrl_c_ends_it_quietly(process):
    assert post(process.port, prompt="abc")[0] == 200
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in Path("output").read_text()


def wait_for_event(client):
    data = b""
    while b"data: " not in data:
        data += client.recv(1000)
    return data


def test_a_port_in_use_is_one_message(refused, folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refused(serve.main, f"--out_dir={folder / 'out'}", f"--port={port}")
    assert f"port={port}" in message and f"--port={port + 1}" in message


def test_a_host_without_a_key_is_one_message(refused, folder):
    message = refused(serve.main, f"--out_dir={folder / 'out'}", "--host=0.0.0.0")
    assert "--api_key" in message


def test_a_missing_package_is_one_message(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = refused(serve.main)
    assert "pip install starlette==1.10.0 uvicorn==0.54.0" in message


def test_two_models_of_one_name_are_one_message(refused, folder):
    message = refused(
        serve.main, f"--out_dir={folder / 'out'}", f"--compare={folder / 'out'}", "--port=0"
    )
    assert "compare=" in message
