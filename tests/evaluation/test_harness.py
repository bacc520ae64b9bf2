"""The harness scores our models as it scores the same weights in transformers."""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip(
    "lm_eval", reason="--tasks needs the package lm_eval: python -m pip install lm_eval==0.4.13"
)
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows

import evaluate
import export
from seugpt.checkpoint.pretrained import load_for_inference
from seugpt.data.tokenizer import load_tokenizer
from seugpt.evaluation import harness
from seugpt.generation.decoder import Decoder, generate_tokens
from seugpt.generation.sampling import SamplingParams
from tests.external_tokenizers import llama2_like
from tests.helpers import (
    BLOCK_SIZE,
    EVAL_ARCHITECTURES,
    EVAL_TEXT,
    LLAMA,
    load_with_transformers,
    save_perturbed_gpt,
)

CONTEXT = "O menino viu a maçã — 🦜"
CHARS = {"kind": "char", "chars": "".join(sorted(set(EVAL_TEXT)))}
PAIRS = [
    (CONTEXT, " e não comeu."),
    ("O", " menino"),
    ("O menino ", "viu"),  # the harness moves the space into the continuation
    ("", "O menino viu"),  # scored after the begin-of-text token
    (EVAL_TEXT, " ação"),  # longer than the window, so the beginning is cut
    ("viu", EVAL_TEXT[:3]),
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{i}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "fewshot_split": "test",
    },
    "likely": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity"},
            {"metric": "acc"},
        ],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}{{choices[0]}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
QUESTIONS = [
    {"q": "O menino viu", "choices": [" a maçã", " comeu.", " ação"], "i": 0},
    {"q": "Síssifo disse: 'não", "choices": ["!'", " 🦜🦜"], "i": 1},
    {"q": "e não comeu.", "choices": ["\n\n", " O"], "i": 0},
    {"q": "O menino viu a maçã —", "choices": [" 🦜", " 1234"], "i": 1},
]

MODELS = [("char", "gpt2"), ("bpe", "llama")]
each_model = pytest.mark.parametrize("eval_spec, name", MODELS, indirect=["eval_spec"])
each_model_and_gpt2s_tokenizer = pytest.mark.parametrize(
    "eval_spec, name", [*MODELS, ("gpt2", "gpt2")], indirect=["eval_spec"]
)
char_and_bpe = pytest.mark.parametrize("eval_spec", ["char", "bpe"], indirect=True)
char_only = pytest.mark.parametrize("eval_spec", ["char"], indirect=True)


@pytest.fixture
def tasks(workspace):
    """The paths of the .yaml files of TASKS, in tasks/; their questions are QUESTIONS."""
    Path("tasks").mkdir()
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    Path("tasks/q.jsonl").write_text(lines, encoding="utf-8")
    for name, task in TASKS.items():
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "tasks/q.jsonl"}},
            "test_split": "test",
            **task,
        }
        text = json.dumps(content)  # JSON is YAML
        Path(f"tasks/{name}.yaml").write_text(text, encoding="utf-8")
    return [f"tasks/{name}.yaml" for name in TASKS]


@pytest.fixture(autouse=True)
def datasets_cache(workspace, monkeypatch):
    """Make the package datasets write its cache into the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", workspace / "cache")


def harness_model(batch_size=3):
    """The HarnessModel of out/best.pt."""
    model, tokenizer, _ = load_for_inference("out")
    autocast = torch.autocast("cpu", enabled=False)
    return harness.HarnessModel(model, tokenizer, torch.device("cpu"), autocast, batch_size)


def ask(lm, request_type, *arguments):
    """The answers to requests of one type; `arguments` are one tuple for each request."""
    requests = [
        Instance(request_type=request_type, doc={}, arguments=args, idx=i)
        for i, args in enumerate(arguments)
    ]
    return getattr(lm, request_type)(requests)


def exported(eval_spec, name, **changes):
    """Save a model to out/ and export it. Returns transformers' model and tokenizer of it."""
    save_perturbed_gpt(eval_spec, **{**EVAL_ARCHITECTURES[name], **changes})
    export.main(["--out_dir=out", "--to=hf"])
    return load_with_transformers("hf")


@torch.no_grad()
def window_log_probs(model, ids, num_scored):
    """(sum of log-probabilities, whether all are greedy) of the last `num_scored` ids."""
    logits = model(torch.tensor([ids[:-1]])).logits[0, -num_scored:].double()
    targets = torch.tensor(ids[-num_scored:])
    log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
    return log_probs.sum().item(), logits.argmax(-1).tolist() == targets.tolist()


# Log-likelihoods


@each_model_and_gpt2s_tokenizer
def test_log_likelihoods_equal_those_of_transformers(eval_spec, name):
    """They do for any batch size, and if the beginning of a context is cut."""
    theirs, their_tokenizer = exported(eval_spec, name, padding=3)
    lm = harness_model(batch_size=1)
    found = ask(lm, "loglikelihood", *PAIRS)
    for lm.batch_size in (4, 100):
        answers = ask(lm, "loglikelihood", *PAIRS)
        assert answers == [(pytest.approx(total, abs=1e-3), greedy) for total, greedy in found]
    prefix = their_tokenizer.eos_token_id
    if prefix is None:
        prefix = their_tokenizer.convert_tokens_to_ids("\n")
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        context_ids = their_tokenizer(context.rstrip())["input_ids"] if context else []
        ids = their_tokenizer(context + continuation)["input_ids"]
        num_scored = len(ids) - len(context_ids)
        if not context:
            ids = [prefix, *ids]
        expected, expected_greedy = window_log_probs(theirs, ids[-BLOCK_SIZE - 1 :], num_scored)
        assert total == pytest.approx(expected, abs=1e-3), (context, continuation)
        assert greedy == expected_greedy


@each_model
def test_a_text_longer_than_the_window_is_scored_as_by_the_harness(eval_spec, name):
    """It is scored in adjacent windows, the last one moved left until it is full."""
    theirs, _ = exported(eval_spec, name)
    lm = harness_model()
    texts = [EVAL_TEXT, "viu", EVAL_TEXT[:40]]
    totals = ask(lm, "loglikelihood_rolling", *((text,) for text in texts))
    for text, total in zip(texts, totals, strict=True):
        ids = load_tokenizer(eval_spec).encode(text).tolist()
        expected = 0.0
        windows = get_rolling_token_windows(ids, lm.prefix_token_id, BLOCK_SIZE, 1)
        for inputs, targets in windows:
            expected += window_log_probs(theirs, [*inputs, targets[-1]], len(targets))[0]
        assert total == pytest.approx(expected, abs=2e-3)


@char_only
def test_a_continuation_may_be_longer_than_the_window(eval_spec):
    save_perturbed_gpt(eval_spec)
    long, short = ask(harness_model(), "loglikelihood", ("viu", EVAL_TEXT), ("viu", EVAL_TEXT[:1]))
    assert long[0] < short[0] < 0


@char_only
def test_each_scored_token_sees_a_full_window(eval_spec):
    theirs, _ = exported(eval_spec, "gpt2")
    ids = load_tokenizer(eval_spec).encode(EVAL_TEXT).tolist()[: 2 * BLOCK_SIZE]
    prefixes = [ids[:end] for end in range(2, len(ids))]
    answers = harness_model().score([(prefix, 1) for prefix in prefixes])
    for prefix, (total, greedy) in zip(prefixes, answers, strict=True):
        expected, expected_greedy = window_log_probs(theirs, prefix[-BLOCK_SIZE - 1 :], 1)
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


@char_and_bpe
def test_greedy_continuations_are_recognized(eval_spec):
    model = save_perturbed_gpt(eval_spec)
    tokenizer = load_tokenizer(eval_spec)
    prompt = tokenizer.encode("O menino viu").tolist()
    greedy = SamplingParams(temperature=0.0)
    decoder = Decoder(model, 1, BLOCK_SIZE)
    tokens = generate_tokens(decoder, [prompt], 3, tokenizer.vocab_size, greedy)
    first, second, third = torch.cat(list(tokens)).tolist()
    rows = [
        ([*prompt, first, second, third], 3),
        ([*prompt, first, second, (third + 1) % 2], 3),
        (prompt, 0),
    ]
    answers = harness_model().score(rows)
    assert [is_greedy for _, is_greedy in answers] == [True, False, True]


@char_and_bpe
def test_a_context_of_spaces_is_scored_after_the_begin_of_text_token(eval_spec):
    """The harness moves the spaces into the continuation, which would leave no context."""
    save_perturbed_gpt(eval_spec)
    lm = harness_model()
    blank, empty = ask(lm, "loglikelihood", ("  ", "viu"), ("", "  viu"))
    assert blank == empty


def test_begin_of_text_tokens_are_where_transformers_puts_them(workspace):
    tokenizer = llama2_like()
    save_perturbed_gpt({"kind": "huggingface", "json": tokenizer.to_str()}, **LLAMA)
    lm = harness_model()
    begin = tokenizer.token_to_id("<s>")
    assert lm.eot_token_id == lm.prefix_token_id == begin
    assert lm.tok_encode("o men") == tokenizer.encode("o men").ids
    assert lm.tok_encode("o men")[0] == begin
    without_begin = tokenizer.encode("o men", add_special_tokens=False).ids
    assert lm.tok_encode("o men", add_special_tokens=False) == without_begin
    assert lm.tok_encode("") == [begin]
    asked = []

    def record(rows):
        asked.extend(rows)
        return [(0.0, True)] * len(rows)

    lm.score = record
    ask(lm, "loglikelihood", ("", "o men"), ("  ", "viu"))
    ask(lm, "loglikelihood_rolling", ("o men",))
    assert len(asked) == 3
    for ids, num_scored in asked:
        assert ids[0] == begin
        assert ids.count(begin) == 1
        assert len(ids) - num_scored == 1


# Generation


@each_model_and_gpt2s_tokenizer
def test_replies_equal_transformers_greedy_ones_up_to_a_stop_sequence(eval_spec, name):
    """They do for contexts of several lengths in one batch, one longer than the window."""
    theirs, their_tokenizer = exported(eval_spec, name, block_size=64)
    contexts = [CONTEXT, "viu", EVAL_TEXT]
    expected = []
    for context in contexts:
        ids = their_tokenizer(context, return_tensors="pt")["input_ids"][:, -(64 - 20) :]
        options = {"max_new_tokens": 20, "do_sample": False}
        output = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        text = their_tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=False)
        expected.append(text.split("<|endoftext|>")[0])

    def reply(until, batch_size=3):
        kwargs = {"until": until, "max_gen_toks": 20}
        lm = harness_model(batch_size)
        return ask(lm, "generate_until", *((context, kwargs) for context in contexts))

    assert reply(until=[]) == expected
    assert reply(until=[], batch_size=1) == expected
    stop = expected[0][4:6]
    assert reply(until=stop) == [text.split(stop)[0] for text in expected]


@char_and_bpe
def test_the_end_of_text_token_ends_a_reply(eval_spec, monkeypatch):
    save_perturbed_gpt(eval_spec)
    tokenizer = load_tokenizer(eval_spec)
    ids = tokenizer.encode(f"viu{tokenizer.document_separator}O").tolist()
    monkeypatch.setattr(harness, "generate_tokens", lambda *_: (torch.tensor([i]) for i in ids))
    [reply] = ask(harness_model(), "generate_until", ("O", {"max_gen_toks": len(ids)}))
    # A character vocabulary has no such token, and newlines do not end a text.
    assert reply == ("viu\n\nO" if eval_spec["kind"] == "char" else "viu")


@char_and_bpe
def test_a_reply_may_be_longer_than_the_window(eval_spec):
    save_perturbed_gpt(eval_spec)
    long, empty_context = ask(
        harness_model(),
        "generate_until",
        (EVAL_TEXT, {"max_gen_toks": 3 * BLOCK_SIZE}),
        ("", {"max_gen_toks": 5}),
    )
    if eval_spec["kind"] == "char":  # with BPE, an end-of-text token may end it earlier
        assert len(long) >= 2 * BLOCK_SIZE
    assert isinstance(empty_context, str)


@char_only
def test_a_reply_may_be_sampled(eval_spec):
    save_perturbed_gpt(eval_spec)
    lm = harness_model()
    kwargs = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0, "top_p": 0.9}
    torch.manual_seed(0)
    assert len(set(ask(lm, "generate_until", *[("viu", kwargs)] * 4))) > 1
    kwargs["do_sample"] = False
    assert len(set(ask(lm, "generate_until", *[("viu", kwargs)] * 4))) == 1
    with pytest.raises(ValueError, match="num_beams"):
        ask(lm, "generate_until", ("viu", {"num_beams": 4}))


# The command


@each_model
def test_the_command_prints_the_metrics_of_the_same_model_in_transformers(
    eval_spec, tasks, capsys, monkeypatch, name
):
    # The harness imports these packages but does not use them for a model that is already loaded.
    for package in ("accelerate", "accelerate.utils"):
        monkeypatch.setitem(sys.modules, package, MagicMock())
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = exported(eval_spec, name, block_size=64)
    if tokenizer.eos_token is None:  # as in a character vocabulary; the harness needs one
        tokenizer.eos_token = "\n"
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64),
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        log_samples=False,
        bootstrap_iters=0,
    )
    expected = {}
    for task, metrics in theirs["results"].items():
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and "stderr" not in metric:
                expected[task, metric] = value

    capsys.readouterr()
    evaluate.main(["--out_dir=out", "--device=cpu", "--batch_size=3", f"--tasks={','.join(tasks)}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("out/best.pt: step 1, ")
    columns = ["task", "samples", "n-shot", "metric", "value", "stderr"]
    assert lines[1].split() == columns
    found = {(line.split()[0], line.split()[3]): line.split() for line in lines[2:]}
    assert found.keys() == expected.keys()
    assert len(found) == 7
    for key, value in expected.items():
        assert float(found[key][4]) == pytest.approx(value, rel=1e-4, abs=1e-4), key
        assert found[key][1:3] == ["4", "0"]
    assert float(found["likely", "perplexity"][5]) > 0  # the bootstrapped standard error


def test_limit_and_num_fewshot_reach_the_harness(tasks, capsys):
    save_perturbed_gpt(CHARS, block_size=64)
    options = ["--tasks=tasks/choice.yaml", "--limit=3", "--num_fewshot=1"]
    evaluate.main(["--out_dir=out", "--device=cpu", *options])
    out, err = capsys.readouterr()
    rows = [line.split()[:4] for line in out.splitlines()[2:]]
    assert rows == [["choice", "3", "1", "acc"], ["choice", "3", "1", "acc_norm"]]
    assert "tasks/choice.yaml" in err


OWN_FUNCTION = """
import importlib.util

def text(doc):
    origin = importlib.util.find_spec("evaluate").origin
    assert origin.endswith("__init__.py"), origin
    return doc["q"]
"""


def copy_task(name, old, new):
    """Write tasks/NAME.yaml, the task `likely` with one change."""
    text = Path("tasks/likely.yaml").read_text(encoding="utf-8")
    assert old in text
    Path(f"tasks/{name}.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_task_imports_hugging_faces_evaluate_and_not_ours(tasks, capsys):
    """`import evaluate` in a task's own code found our evaluate.py."""
    Path("tasks/own.py").write_text(OWN_FUNCTION, encoding="utf-8")
    copy_task("own", '"{{q}}"', "!function own.text")
    save_perturbed_gpt(CHARS)
    evaluate.main(["--out_dir=out", "--device=cpu", "--tasks=tasks/own.yaml"])
    assert "likely" in capsys.readouterr().out
    assert sys.modules["evaluate"] is evaluate


def refused_task(capsys, name):
    """The message with which --tasks=NAME ends: the last line, after those of the harness."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        evaluate.main(["--out_dir=out", "--device=cpu", f"--tasks={name}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert "Traceback" not in err
    return err.rstrip("\n").splitlines()[-1]


def test_a_task_that_fails_ends_in_one_message(tasks, capsys):
    save_perturbed_gpt(CHARS)
    hub_task = "task: hub\ndataset_path: nobody/nothing\ntest_split: test\n"
    Path("tasks/hub.yaml").write_text(hub_task, encoding="utf-8")
    Path("tasks/broken.yaml").write_text("task: [", encoding="utf-8")
    copy_task("nodata", "q.jsonl", "none.jsonl")
    copy_task("field", "{{q}}", "{{nofield.x}}")
    copy_task("unsafe", "{", '{"unsafe_code": true, ')
    for name, words in {
        "tasks/none.yaml": "no such file",
        "tasks/broken.yaml": "tasks=tasks/broken.yaml",
        "tasks/nodata.yaml": "tasks=tasks/nodata.yaml",
        "tasks/hub.yaml": "connect to the network",
        "tasks/field.yaml": "UndefinedError: 'nofield' is undefined",
        "tasks/unsafe.yaml": "ValueError: Attempted to run task",
        ",": "ValueError: No tasks specified",
    }.items():
        message = refused_task(capsys, name)
        assert f"tasks={name}" in message, message
        assert words in message, message


def test_an_unknown_task_is_refused_with_a_suggestion(tasks, capsys, monkeypatch):
    """TASKS stand in for the built-in ones, which take seconds to index."""
    save_perturbed_gpt(CHARS)
    builtin = Path("tasks/manager.py").absolute()
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(builtin))
    message = refused_task(capsys, "chioce,tasks/likely.yaml")
    assert "tasks=chioce:" in message
    assert "did you mean choice" in message


@pytest.mark.slow
def test_suggestions_include_the_built_in_tasks(workspace, capsys):
    save_perturbed_gpt(CHARS)
    assert "did you mean hellaswag" in refused_task(capsys, "hellaswg")


def test_characters_unknown_to_the_model_are_named(tasks, capsys):
    save_perturbed_gpt({"kind": "char", "chars": "O menivu\n"})
    message = refused_task(capsys, "tasks/likely.yaml")
    assert "never saw in training" in message
    assert "'ç' (U+00E7)" in message


def test_a_missing_package_is_named_before_a_model_is_loaded(workspace, refused, monkeypatch):
    """There is no model here: loading a large one first would be time lost."""
    monkeypatch.delitem(sys.modules, "seugpt.evaluation.harness")
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # import raises ModuleNotFoundError
    message = refused(evaluate.main, "--tasks=hellaswag")
    assert "python -m pip install lm_eval==" in message
