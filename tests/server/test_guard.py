"""Strangers: wrong hosts, missing keys, malformed and oversized requests."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seugpt.errors import ConfigError
from seugpt.server.app import check_host
from seugpt.server.guard import is_allowed_host

POSTS = ("/v1/completions", "/v1/chat/completions", "/api/write")


def error_of(response, status, param=None):
    """The message of an error in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    return error["message"]


@pytest.mark.parametrize(
    "header, allowed",
    [
        ("127.0.0.1:8000", True),
        ("127.0.0.1", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("[::1]:8000", True),
        ("192.168.1.7:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8000", False),
        ("127.0.0.1:8000@evil.example", False),
        ("", False),
        (":8000", False),
    ],
)
def test_only_addresses_and_our_own_name_are_hosts(header, allowed):
    assert is_allowed_host(header, "127.0.0.1") == allowed


def test_the_name_given_by_host_is_allowed():
    assert is_allowed_host("Lab.example:80", "lab.example")
    assert not is_allowed_host("other.example:80", "lab.example")


@pytest.mark.parametrize("path", ["/", "/v1/models", "/api/info", "/health", "/metrics"])
def test_a_rebound_name_is_refused_everywhere(client, path):
    assert "Host" in error_of(client.get(path, headers={"Host": "evil.example"}), 421)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/x", "/api/info", "/metrics"])
@pytest.mark.parametrize("sent", [None, "Bearer ", "Bearer wrong", "secret", "Basic secret"])
def test_without_the_key_nothing_is_answered(make_client, path, sent):
    headers = {"Authorization": sent} if sent else {}
    response = make_client(api_key="secret").get(path, headers=headers)
    assert "key" in error_of(response, 401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_with_the_key_everything_is(make_client):
    client = make_client(api_key="chave-é")
    assert client.get("/health").status_code == 200
    headers = {"Authorization": "Bearer chave-é".encode()}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "lab.example"])
def test_other_machines_need_a_key(host):
    with pytest.raises(ConfigError, match="--api_key"):
        check_host(SimpleNamespace(host=host, api_key=None))
    check_host(SimpleNamespace(host=host, api_key="secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_none(host):
    check_host(SimpleNamespace(host=host, api_key=None))


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/v1/models", "/v1/completions"])
def test_every_answer_has_the_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_another_sites_page_cannot_post(client):
    """Without a preflight, which is answered with an error, a page can send other types alone."""
    body = json.dumps({"prompt": "abc"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = client.post("/v1/completions", content=body, headers={"Content-Type": kind})
        assert "application/json" in error_of(response, 415)
    error_of(client.options("/v1/completions", headers={"Origin": "http://evil.example"}), 405)


@pytest.mark.parametrize("path", POSTS)
def test_a_large_body_is_refused(make_client, path):
    client = make_client(max_body=1000)
    headers = {"Content-Type": "application/json"}
    response = client.post(path, content=b" " * 1001, headers=headers)
    assert "max_body=1,000" in error_of(response, 413)
    chunks = iter([b" " * 600] * 2)  # sent without a Content-Length
    response = client.post(path, content=chunks, headers=headers)
    assert "max_body=1,000" in error_of(response, 413)


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": "日本"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "a" * 101}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": 21}, "logprobs"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"suffix": "end"}, "suffix"),
        ({"echo": True, "logprobs": 1, "prompt": "a" * 40}, "prompt"),
    ],
)
def test_each_wrong_field_is_named(make_client, changes, param):
    client = make_client(max_prompt=100, max_choices=8, max_reply=50)
    body = json.dumps({"prompt": "abc", **changes})
    response = client.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert error_of(response, 400, param)


def test_an_unknown_model_is_named(client):
    response = client.post("/v1/completions", json={"prompt": "abc", "model": "gpt-9"})
    assert "'gpt-9'" in error_of(response, 404, "model")
    assert "out" in response.json()["error"]["message"]


def test_fields_that_change_no_text_are_accepted(client):
    body = {"prompt": "abc", "user": "ana", "metadata": {"a": "b"}, "best_of": None, "suffix": None}
    assert client.post("/v1/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b'"a"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000]
)
@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json_object_is_refused(client, path, body):
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    error_of(response, 400)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_methods_and_paths_have_the_same_shape(client, method):
    error_of(client.request(method, "/v1/completions"), 405)
    error_of(client.request(method, "/v1/nothing"), 404 if method == "GET" else 405)


def test_the_page_is_served_and_nothing_beside_it(client):
    assert client.get("/").text == "<p>a page</p>"
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/index.html/x"):
        assert client.get(path).status_code == 404, path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = (
    "model prompt text ids messages max_tokens n stop logprobs echo stream stream_options seed "
    "temperature top_p top_k min_p presence_penalty frequency_penalty top_logprobs"
).split()
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), JSON, max_size=5)


def fuzz(client, count):
    """Post `count` random bodies: no answer is an error of the server, and it still works after."""

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(POSTS), BODIES | st.binary(max_size=50), st.booleans())
    def post(path, body, valid):
        if isinstance(body, dict):
            if valid:
                known = {
                    "prompt": "ab",
                    "text": "ab",
                    "messages": [{"role": "user", "content": ""}],
                }
                body = {**known, "max_tokens": 2, **body}
            body = json.dumps(body).encode()
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code < 500, (path, body, response.text)
        if response.status_code != 200:
            error_of(response, response.status_code, response.json()["error"]["param"])

    post()
    assert client.post("/v1/completions", json={"prompt": "abc"}).status_code == 200
    assert client.engine.num_running() == client.engine.num_waiting() == 0


def test_random_bodies_are_answered(make_client):
    fuzz(make_client(max_reply=20), 60)


@pytest.mark.slow
def test_500_random_bodies_are_answered(make_client):
    fuzz(make_client(max_reply=20), 500)
