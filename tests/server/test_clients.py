"""Clients that nobody here wrote: the openai package, curl, lm-evaluation-harness."""

import asyncio
import json
import shutil
import subprocess

import openai
import pytest
import torch

import export
from tests.server.conftest import BLOCK_SIZE


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
        yield api


def test_openai_lists_the_models(api):
    assert [model.id for model in api.models.list()] == ["out", "bpe"]
    assert api.models.retrieve("bpe").owned_by == "seugpt"


def test_openai_completes(api):
    reply = api.completions.create(
        model="out", prompt=["o menino", "a"], max_tokens=12, n=2, seed=1
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert all(len(choice.text) == 12 for choice in reply.choices)
    assert all(choice.finish_reason == "length" for choice in reply.choices)
    assert reply.usage.completion_tokens == 48
    assert reply.object == "text_completion"


def test_openai_streams_the_same_text(api):
    ask = {"model": "out", "prompt": "o menino", "max_tokens": 20, "seed": 1, "logprobs": 3}
    whole = api.completions.create(**ask).choices[0]
    chunks = list(api.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == "length"
    tokens = [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens]
    assert tokens == whole.logprobs.tokens == list(whole.text)
    assert all(len(top) in (3, 4) for top in whole.logprobs.top_logprobs)
    for logprob, top, token in zip(
        whole.logprobs.token_logprobs, whole.logprobs.top_logprobs, tokens, strict=True
    ):
        assert top[token] == logprob <= 0


def test_openai_chats(api):
    ask = {"model": "bpe", "messages": [{"role": "user", "content": "O"}], "seed": 1}
    ask |= {"max_completion_tokens": 8, "logprobs": True, "top_logprobs": 2}
    whole = api.chat.completions.create(**ask)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(
        api.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_openai_raises_its_own_errors(api):
    with pytest.raises(openai.NotFoundError) as failed:
        api.completions.create(model="gpt-9", prompt="a")
    assert failed.value.code == "model_not_found"
    assert failed.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="chat template"):
        api.chat.completions.create(model="out", messages=[{"role": "user", "content": "a"}])


def test_openai_waits_as_retry_after_says(make_server):
    """Its own retries get every text out of a server that refuses most of them at first."""
    server = make_server(max_rows=1, max_queue=4)
    api = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=9)

    async def ask(seed):
        return await api.completions.create(model="out", prompt="a", max_tokens=8, seed=seed)

    async def ask_all():
        return await asyncio.gather(*map(ask, range(7)))

    replies = asyncio.run(ask_all())
    assert [len(reply.choices[0].text) for reply in replies] == [8] * 7
    assert server.engine.counts["refused"] > 0


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(server):
    body = json.dumps({"prompt": "o menino", "max_tokens": 5, "temperature": 0})
    command = ["curl", "-sS", "-N", "-H", "Content-Type: application/json", "-d"]
    url = f"{server.url}/v1/completions"
    whole = subprocess.run([*command, body, url], capture_output=True, text=True, check=True)
    text = json.loads(whole.stdout)["choices"][0]["text"]
    body = json.dumps({**json.loads(body), "stream": True})
    stream = subprocess.run([*command, body, url], capture_output=True, text=True, check=True)
    *events, done = stream.stdout.strip().split("\n\n")
    assert done == "data: [DONE]"
    parts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(parts) == text


PAIRS = [
    ("O menino viu a maçã", " e não comeu."),
    ("O", " menino"),
    ("O menino ", "viu"),
    ("", "O menino viu"),
    ("O menino viu a maçã e não comeu. 🦜 " * 4, "O"),  # longer than the window
]


@pytest.mark.slow
def test_lm_evaluation_harness_gets_the_log_likelihoods_of_evaluate_py(
    server, models, folder, tmp_path
):
    pytest.importorskip("lm_eval", reason="needs the package lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from model import make_autocast
    from seugpt.evaluation.harness import HarnessModel

    export.main([f"--init_from={folder / 'bpe'}", f"--to={tmp_path / 'hf'}"])
    remote = LocalCompletionsAPI(
        model="bpe",
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(tmp_path / "hf"),
        tokenizer_backend="huggingface",
        max_length=BLOCK_SIZE + 2,  # it keeps one for a generated token
        batch_size=2,
    )
    loaded = models["bpe"]
    device = torch.device("cpu")
    autocast = make_autocast(device, torch.float32)
    local = HarnessModel(loaded.model, loaded.tokenizer, device, autocast, batch_size=2)

    def ask(lm, kind, *requests):
        instances = [Instance(kind, {}, request, i) for i, request in enumerate(requests)]
        return getattr(lm, kind)(instances, disable_tqdm=True)

    theirs = ask(remote, "loglikelihood", *PAIRS)
    ours = ask(local, "loglikelihood", *PAIRS)
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
    assert [total for total, _ in theirs] == pytest.approx([total for total, _ in ours], abs=1e-4)
    texts = [(context + end,) for context, end in PAIRS]
    theirs = ask(remote, "loglikelihood_rolling", *texts)
    assert theirs == pytest.approx(ask(local, "loglikelihood_rolling", *texts), abs=1e-3)
