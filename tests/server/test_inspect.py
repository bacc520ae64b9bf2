"""What the page shows of a model: the numbers that visualize.py draws, and its refusals."""

import json
import math
import threading

import numpy as np
import pytest
import torch

from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import sample_text
from seugpt.plots.internals import (
    attention_weights,
    load_model_and_text,
    logit_lens,
    next_token_logits,
    sampling_probs,
    surprisal,
)
from seugpt.plots.style import token_label
from seugpt.server import inspect
from tests.helpers import wait_until

TEXT = "O menino viu a maçã."
ROUNDING = 1e-5


@pytest.fixture(params=["out", "bpe"])
def name(request):
    return request.param


@pytest.fixture
def source(folder, name):
    """(model, tokenizer, ids) as visualize.py loads them."""
    text = TEXT if name == "bpe" else TEXT.lower()
    return load_model_and_text(str(folder / name), text)


@pytest.fixture
def look(client, name):
    """look("tokens", layer=1, ...): what the server answers on TEXT."""
    text = TEXT if name == "bpe" else TEXT.lower()

    def ask(path, **fields):
        content = {"model": name, "text": text, **fields}
        response = client.post(f"/api/{path}", json=content)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


def test_tokens_are_the_ids_that_the_model_reads(look, source):
    _, tokenizer, ids = source
    tokens = look("tokens")["tokens"]
    assert [token["id"] for token in tokens] == ids.tolist()
    data = [tokenizer.decode_bytes([i]) for i in ids.tolist()]
    assert [bytes.fromhex(token["bytes"]) for token in tokens] == data
    assert [token["label"] for token in tokens] == [token_label(each) for each in data]


def test_a_character_of_several_tokens_comes_with_the_last_of_them(client):
    content = {"model": "bpe", "text": "é😀\n"}
    tokens = client.post("/api/tokens", json=content).json()["tokens"]
    assert "".join(token["text"] for token in tokens) == "é😀\n"
    emoji = [token for token in tokens if set(token["bytes"].split()) & {"f0", "9f", "98", "80"}]
    assert [token["text"] for token in emoji] == [""] * (len(emoji) - 1) + ["😀"]
    assert [token["is_open"] for token in emoji] == [True] * (len(emoji) - 1) + [False]
    assert len(emoji) > 1
    assert tokens[-1]["label"] == "↵"
    again = {"model": "bpe", "ids": [token["id"] for token in tokens]}
    assert client.post("/api/tokens", json=again).json()["tokens"] == tokens


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_is_what_its_map_draws(look, source, layer):
    model, _, ids = source
    expected = attention_weights(model, ids[None])[layer][0]
    answer = look("attention", layer=layer)
    assert answer["total"] == len(answer["tokens"]) == len(ids)
    assert len(answer["weights"]) == model.config.n_head
    for head, rows in zip(expected, answer["weights"], strict=True):
        for n, row in enumerate(rows):
            np.testing.assert_allclose(row, head[n, : n + 1], atol=ROUNDING)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.5}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}],
    ids=str,
)
def test_next_token_is_what_sample_token_draws_from(look, source, fields):
    model, tokenizer, ids = source
    logits = next_token_logits(model, tokenizer.vocab_size, ids)
    params = SamplingParams(**{"temperature": 1.0, "top_k": None, **fields})
    probs = sampling_probs(logits, params)
    all_probs = sampling_probs(logits, SamplingParams(params.temperature, top_k=None))
    answer = look("next", **fields)
    listed = [token["id"] for token in answer["top"]]
    assert listed == logits.argsort(descending=True, stable=True)[: len(listed)].tolist()
    for key, expected in (("p", probs), ("p_all", all_probs)):
        values = [token[key] for token in answer["top"]]
        np.testing.assert_allclose(values, expected[listed], atol=ROUNDING)
    assert answer["num_others"] == tokenizer.vocab_size - len(listed)
    assert answer["p_others"] == pytest.approx(1 - probs[listed].sum().item(), abs=ROUNDING)


def test_logit_lens_is_what_its_plot_draws(look, source):
    model, tokenizer, ids = source
    answer = look("logit_lens")
    T = len(answer["tokens"])
    probs, likeliest = logit_lens(model, tokenizer.vocab_size, ids[:T])
    assert [[cell["id"] for cell in row] for row in answer["rows"]] == likeliest.tolist()
    values = [[cell["p"] for cell in row] for row in answer["rows"]]
    np.testing.assert_allclose(values, probs, atol=ROUNDING)
    assert answer["next_ids"] == ids[1 : T + 1].tolist()


def test_surprisal_is_what_its_plot_draws(look, source):
    model, tokenizer, ids = source
    expected = surprisal(model, ids)
    answer = look("surprisal")
    assert answer["bits"][0] is None
    np.testing.assert_allclose(answer["bits"][1:], expected[1:], atol=ROUNDING)
    total = expected[1:].sum().item()
    assert answer["per_token"] == pytest.approx(total / (len(ids) - 1), rel=1e-4)
    if len(ids) == len(TEXT):  # characters
        assert answer["per_char"] == pytest.approx(answer["per_token"])
    assert answer["uniform"] == pytest.approx(math.log2(tokenizer.vocab_size))


def test_what_is_longer_than_the_context_is_shown_in_part(client):
    answer = client.post("/api/attention", json={"text": "menino " * 40}).json()
    assert (answer["total"], len(answer["tokens"])) == (280, 32)
    answer = client.post("/api/surprisal", json={"text": "menino " * 40}).json()
    assert len(answer["bits"]) == 280


def test_no_hook_stays_on_a_model(look, models, name):
    for path in ("attention", "logit_lens", "surprisal"):
        look(path)
    modules = list(models[name].model.modules())
    assert not any(module._forward_pre_hooks for module in modules)


@pytest.mark.parametrize(
    "path, content, status, param, words",
    [
        ("attention", {"text": "a", "layer": 2}, 400, "layer", "layers 0 to 1"),
        ("attention", {"text": "a", "layer": -1}, 400, "layer", "at least 0"),
        ("next", {"text": "a", "top_p": 0}, 400, "top_p", "greater than 0"),
        ("next", {"text": "a", "seed": 1}, 400, "seed", "not supported"),
        ("tokens", {}, 400, "text", "either text or ids"),
        ("tokens", {"text": "a", "ids": [1]}, 400, "text", "either text or ids"),
        ("tokens", {"ids": "a"}, 400, "ids", "list"),
        ("tokens", {"ids": [10**6]}, 400, "ids", "ids go from 0"),
        ("tokens", {"text": ""}, 400, "text", "at least one"),
        ("tokens", {"text": "Ω"}, 400, "text", "U+03A9"),
        ("surprisal", {"text": "a"}, 400, "text", "longer text"),
        ("tokens", {"text": "a", "model": "x"}, 404, "model", "out"),
    ],
)
def test_refusals_have_openais_shape(client, path, content, status, param, words):
    response = client.post(f"/api/{path}", json=content)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]


def test_too_many_looks_at_once_are_refused(client, monkeypatch):
    monkeypatch.setattr("seugpt.server.inspect.MAX_WAITING", 0)
    response = client.post("/api/tokens", json={"text": "a"})
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_the_page_writes_what_sample_text_draws(client, models):
    """The same seed throws the same dice as in sample.py."""
    loaded = models["out"]
    ids = loaded.tokenizer.encode("menino ")
    with torch.no_grad():
        expected = sample_text(loaded.model, loaded.tokenizer, ids.tolist(), 7, 20)
    content = {"text": "menino ", "max_tokens": 20, "seed": 7, "temperature": 0.8, "top_k": 200}
    events = client.post("/api/write", json={"model": "out", **content}).text
    assert streamed_text(events) == expected


def streamed_text(events):
    tokens = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line]
    return "".join(token["text"] for token in tokens if "text" in token)


def test_a_look_leaves_no_thread_that_computed(client, monkeypatch):
    """Its OpenMP threads, beside those that generate, made each token take twice the time."""
    threads = []

    def weights(*args):
        threads.append(threading.current_thread())
        return attention_weights(*args)

    monkeypatch.setattr(inspect, "attention_weights", weights)
    assert client.post("/api/attention", json={"text": "abc"}).status_code == 200
    [thread] = threads
    wait_until(lambda: not thread.is_alive())
