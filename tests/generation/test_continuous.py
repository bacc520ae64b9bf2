"""Rows that join and leave a running batch."""

import pytest
import torch

from model import ModelConfig
from seugpt.generation.continuous import ContinuousDecoder
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams, sample_token
from tests.helpers import perturbed_gpt

SHAPE = {"block_size": 12, "vocab_size": 31, "n_layer": 2, "n_head": 4, "n_embd": 32}
PROMPTS = ([3], [5, 9, 2, 2, 7], list(range(12)), list(range(20)), [30, 1])
LENGTHS = (30, 7, 25, 3, 40)  # past block_size too
ARCHITECTURES = [{}, {"position": "rope"}, {"position": "rope", "n_kv_head": 1, "norm": "rmsnorm"}]


def make_model(**changes):
    return perturbed_gpt(ModelConfig(**{**SHAPE, **changes}))


def greedy_alone(model, prompt, length):
    decoder = Decoder(model, 1, len(prompt) + length)
    params = SamplingParams(temperature=0.0)
    tokens = generate_tokens(decoder, [prompt], length, SHAPE["vocab_size"], params)
    return [int(ids[0]) for ids in tokens]


def greedy_together(decoder, jobs, steps):
    """Continue each (first step, prompt, length) in one batch. Returns {number of the job: ids}."""
    texts = {number: [] for number in range(len(jobs))}
    rows = []  # the job of each row
    for step in range(steps):
        for number, (first_step, prompt, length) in enumerate(jobs):
            if first_step == step:
                assert decoder.add(prompt, length) == len(rows)
                rows.append(number)
        if not rows:
            continue
        next_ids = decoder.step().argmax(dim=-1).tolist()
        for row in reversed(range(len(rows))):
            texts[rows[row]].append(next_ids[row])
            if len(texts[rows[row]]) == jobs[rows[row]][2]:
                decoder.remove(row)
                rows[row] = rows[-1]
                rows.pop()
                next_ids[row] = next_ids[-1]
                next_ids.pop()
        for row, token in enumerate(next_ids):
            decoder.append(row, token)
    assert len(decoder) == 0
    return texts


@pytest.mark.parametrize("changes", ARCHITECTURES)
@pytest.mark.parametrize("starts", [(0, 0, 0, 0, 0), (0, 2, 9, 20, 21), (25, 13, 1, 40, 0)])
def test_rows_that_come_and_go_continue_as_if_alone(changes, starts):
    model = make_model(**changes)
    jobs = list(zip(starts, PROMPTS, LENGTHS, strict=True))
    texts = greedy_together(ContinuousDecoder(model, len(jobs)), jobs, steps=90)
    for number, (_, prompt, length) in enumerate(jobs):
        assert texts[number] == greedy_alone(model, prompt, length), number


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_block_sizes(position, block_size):
    model = make_model(position=position, block_size=block_size)
    texts = greedy_together(ContinuousDecoder(model, 2), [(0, [4, 8], 9), (3, [1], 5)], steps=12)
    assert texts[0] == greedy_alone(model, [4, 8], 9)
    assert texts[1] == greedy_alone(model, [1], 5)


def test_the_cache_is_as_long_as_the_longest_row_needs():
    decoder = ContinuousDecoder(make_model(block_size=64), 4)
    decoder.add([1, 2], 5)
    assert decoder.cache.length == 7
    decoder.add([1, 2], 6)
    assert decoder.cache.length == 14
    decoder.add([1, 2], 1000)
    assert decoder.cache.length == 64


def test_a_row_with_a_generator_of_its_own_is_drawn_as_if_alone():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(top_k=30, top_p=0.9)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(5)]

    together, alone = generators(), generators()
    for _ in range(20):
        ids = sample_token(logits, params, together)
        for row, rng in enumerate(alone):
            assert torch.equal(sample_token(logits[row : row + 1], params, rng), ids[row : row + 1])
