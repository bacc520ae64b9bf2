"""What the server says of itself."""

import re

import pytest

LINE = re.compile(r'(seugpt_\w+)(\{status="\d+"\})? (\d+(?:\.\d+)?(?:e-\d+)?)')


def metrics(client):
    """{name with its labels: number}; every line has the form that Prometheus reads."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    declared = set()
    for line in response.text.splitlines():
        if line.startswith("# TYPE"):
            declared.add(line.split()[2])
        elif not line.startswith("# HELP"):
            name, labels, value = LINE.fullmatch(line).groups()
            assert name in declared
            values[name + (labels or "")] = float(value)
    return values


def test_metrics_count_what_was_done(make_client):
    client = make_client(max_queue=2)
    before = metrics(client)
    assert before["seugpt_tokens_total"] == 0
    client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 7})
    client.post("/v1/completions", json={"prompt": "abc", "n": 3})
    client.get("/v1/models/none")
    after = metrics(client)
    assert after["seugpt_tokens_total"] == 7
    assert after["seugpt_prompt_tokens_total"] == 3
    assert after["seugpt_refused_total"] == 1
    assert after['seugpt_requests_total{status="503"}'] == 1
    assert after['seugpt_requests_total{status="404"}'] == 1
    assert after['seugpt_requests_total{status="200"}'] == 2  # with the first /metrics
    assert after["seugpt_busy_seconds_total"] > 0
    assert after["seugpt_waiting"] == after["seugpt_running"] == 0


def test_health_fails_once_nothing_is_generated_any_more(client):
    assert client.get("/health").json() == {"status": "ok", "models": ["out", "bpe"]}
    client.engine.close()
    assert client.get("/health").status_code == 503
    assert client.post("/v1/completions", json={"prompt": "abc"}).status_code == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_if_the_engines_thread_dies_no_client_waits_in_vain(client, monkeypatch):
    def die(batch):
        raise SystemError("a bug outside every guard")

    monkeypatch.setattr(client.engine, "advance", die)
    response = client.post("/v1/completions", json={"prompt": "abc"})
    assert response.status_code == 500
    assert client.get("/health").status_code == 503
