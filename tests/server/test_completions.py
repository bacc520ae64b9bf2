"""OpenAI's completions, compared with what the model computes directly."""

import json
import math

import pytest
import torch

from seugpt.data.tokenizer import decode
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams

URL = "/v1/completions"


def post(client, **body):
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def text_of(client, **body):
    return post(client, **body)["choices"][0]["text"]


def events(response):
    """The JSON of each event of a stream; its last one is [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def written(client, **body):
    """The tokens of /api/write."""
    lines = client.post("/api/write", json=body).text.split("\n\n")
    *tokens, last = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert last.keys() == {"done", "reason"}
    return tokens


def close(found, expected):
    """Whether two JSON values are equal; numbers may differ by rounding, as batches do."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-5)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            close(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == expected


def expected_text(loaded, prompt, length, seed, **params):
    """What sample.py would write with --num_samples=1."""
    rng = torch.Generator().manual_seed(seed)
    ids = loaded.tokenizer.encode_prompt(prompt)
    decoder = Decoder(loaded.model, 1, len(ids) + length)
    params = SamplingParams(**{"top_k": None, "temperature": 1.0, **params})
    vocab_size = loaded.tokenizer.vocab_size
    tokens = generate_tokens(decoder, [ids], length, vocab_size, params, rng)
    return decode(loaded.tokenizer, [int(ids[0]) for ids in tokens])


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 5, "min_p": 0.1},
        {"presence_penalty": 0.5, "frequency_penalty": 0.8, "repetition_penalty": 1.3},
    ],
)
def test_the_text_is_the_one_that_sample_py_draws_from_the_same_seed(client, models, params):
    text = text_of(client, prompt="O menino".lower(), max_tokens=50, seed=7, **params)
    assert text == expected_text(models["out"], "o menino", 50, 7, **params)


def test_a_text_does_not_depend_on_what_else_is_in_the_batch(client):
    alone = [text_of(client, prompt="abc", max_tokens=40, seed=seed) for seed in (5, 6, 7)]
    together = post(client, prompt=["abc", "T"], n=3, max_tokens=40, seed=5)
    assert [choice["text"] for choice in together["choices"][:3]] == alone
    assert len({choice["text"] for choice in together["choices"]}) == 6
    assert [choice["index"] for choice in together["choices"]] == list(range(6))


@pytest.mark.parametrize("model", ["out", "bpe"])
def test_a_stream_gives_the_same_as_a_whole_answer(client, model):
    body = {"model": model, "prompt": "menino", "max_tokens": 60, "seed": 3, "n": 2, "logprobs": 2}
    whole = post(client, **body)
    chunks = events(client.post(URL, json={**body, "stream": True}))
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in parts[:-1])
        for key, values in choice["logprobs"].items():
            assert close([value for part in parts for value in part["logprobs"][key]], values), key
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_usage_counts_tokens(client):
    usage = {"prompt_tokens": 7, "completion_tokens": 20, "total_tokens": 27}
    assert post(client, prompt=["abcd", "abc"], max_tokens=10)["usage"] == usage
    body = {"prompt": ["abcd", "abc"], "max_tokens": 10, "stream": True}
    chunks = events(client.post(URL, json={**body, "stream_options": {"include_usage": True}}))
    assert chunks[-1]["usage"] == usage
    assert chunks[-1]["choices"] == []
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}


def test_prompts_can_be_texts_or_ids(client, models):
    ids = models["out"].tokenizer.encode("menino").tolist()
    for prompt in ("menino", ["menino"], ids, [ids]):
        assert text_of(client, prompt=prompt, temperature=0) == text_of(
            client, prompt="menino", temperature=0
        )


def test_echoed_logprobs_are_the_models_own(client, models):
    loaded = models["out"]
    prompt = "o menino viu"
    body = {"prompt": prompt, "max_tokens": 3, "echo": True, "logprobs": 2, "temperature": 0}
    choice = post(client, **body)["choices"][0]
    found = choice["logprobs"]
    assert choice["text"].startswith(prompt)
    assert "".join(found["tokens"]) == choice["text"]
    assert [choice["text"][i] for i in found["text_offset"]] == found["tokens"]
    ids = torch.from_numpy(loaded.tokenizer.encode(choice["text"])).long()[None]
    with torch.no_grad():
        logits, _ = loaded.model(ids[:, :-1], ids[:, 1:].contiguous())
    logprobs = logits[0].double().log_softmax(-1)
    expected = logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    for top, row in zip(found["top_logprobs"][1:], logprobs, strict=True):
        best = row[: loaded.tokenizer.vocab_size].topk(2).values.tolist()
        assert sorted(top.values(), reverse=True)[:2] == pytest.approx(best, abs=1e-4)


def test_echo_alone_scores_without_generating(client):
    body = {"prompt": "menino", "max_tokens": 0, "echo": True, "logprobs": 0}
    reply = post(client, **body)
    assert reply["choices"][0]["text"] == "menino"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 6
    assert reply["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_echo_without_logprobs_begins_with_the_prompt(client, stream):
    body = {"prompt": ["menino", "abc"], "max_tokens": 4, "echo": True, "stream": stream}
    response = client.post(URL, json=body)
    texts = ["", ""]
    for reply in events(response) if stream else [response.json()]:
        for choice in reply["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts[0].startswith("menino") and len(texts[0]) == 10
    assert texts[1].startswith("abc") and len(texts[1]) == 7


def test_a_stop_sequence_ends_a_text_before_it(client):
    text = text_of(client, prompt="abc", max_tokens=60, seed=1)
    stop = text[20:23]
    choice = post(client, prompt="abc", max_tokens=60, seed=1, stop=stop)["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    body = {"prompt": "abc", "max_tokens": 60, "seed": 1, "stop": ["@@@", stop], "stream": True}
    chunks = events(client.post(URL, json=body))
    assert "".join(c["choices"][0]["text"] for c in chunks) == choice["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_end_of_text_token_ends_a_text(client, models, monkeypatch):
    ids = [token["id"] for token in written(client, model="bpe", text="O", seed=1)]
    tokenizer = models["bpe"].tokenizer
    end = next(token for token in ids[5:] if token not in ids[:5])
    monkeypatch.setattr(type(tokenizer.special), "eos_ids", lambda *_: [end])
    body = {"model": "bpe", "prompt": "O", "max_tokens": 40, "seed": 1, "logprobs": 0}
    reply = post(client, **body)
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == decode(tokenizer, ids[: ids.index(end)])
    assert len(choice["logprobs"]["tokens"]) == ids.index(end)
    assert reply["usage"]["completion_tokens"] == ids.index(end) + 1


def test_characters_of_several_tokens_arrive_whole(client):
    """A stream's texts are valid on their own, and a half character at the end is replaced."""
    body = {"model": "bpe", "prompt": "🦜", "max_tokens": 80, "temperature": 3, "stream": True}
    text = "".join(chunk["choices"][0]["text"] for chunk in events(client.post(URL, json=body)))
    assert text.encode("utf-8").decode("utf-8") == text


def test_without_a_seed_texts_differ(client):
    texts = {text_of(client, prompt="abc", max_tokens=30) for _ in range(4)}
    assert len(texts) == 4


def test_models_are_listed(client, folder):
    listed = client.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["out", "bpe"]
    assert listed["data"][0]["created"] == int((folder / "out" / "best.pt").stat().st_mtime)
    assert client.get("/v1/models/bpe").json()["id"] == "bpe"
    assert client.get("/v1/models/nobody").status_code == 404


def test_chat_is_for_models_with_a_template(client, models):
    messages = [{"role": "user", "content": "O menino"}]
    body = {"model": "bpe", "messages": messages, "max_tokens": 12, "temperature": 0}
    reply = client.post("/v1/chat/completions", json=body).json()
    prompt = "<user>O menino\n<assistant>"
    body = {"model": "bpe", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    assert reply["choices"][0]["message"]["content"] == text_of(client, **body)
    assert reply["usage"]["prompt_tokens"] == len(models["bpe"].tokenizer.encode(prompt))

    refused = client.post("/v1/chat/completions", json={"model": "out", "messages": messages})
    assert refused.status_code == 400
    assert "chat template" in refused.json()["error"]["message"]
    assert "/v1/completions" in refused.json()["error"]["message"]


def test_a_chat_streams(client):
    body = {"model": "bpe", "messages": [{"role": "user", "content": "O"}], "max_tokens": 9}
    body |= {"seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == whole["message"]["content"]
    contents = [c["choices"][0]["logprobs"]["content"][0] for c in chunks[1:]]
    assert close(contents, whole["logprobs"]["content"])
    assert all(len(each["top_logprobs"]) == 2 for each in contents)


def test_the_page_gets_tokens_with_alternatives(client):
    tokens = written(client, text="menino", max_tokens=20, seed=4)
    text = text_of(client, prompt="menino", max_tokens=20, seed=4)
    assert "".join(token["text"] for token in tokens) == text
    for token in tokens:
        assert len(token["top"]) == 10
        ps = [each["p"] for each in token["top"]]
        assert ps == sorted(ps, reverse=True) and math.fsum(ps) <= 1 + 1e-6
        by_id = {each["id"]: each["p"] for each in token["top"]}
        assert by_id.get(token["id"], token["p"]) == token["p"]


def test_the_page_gets_facts_about_the_models(client):
    first, second = client.get("/api/info").json()["models"]
    assert first["name"] == "out"
    assert (first["n_layer"], first["block_size"], first["tokenizer"]) == (2, 32, "char")
    assert (first["step"], first["val_loss"]) == (1, 1.0)
    assert second["tokenizer"] == "bpe"
