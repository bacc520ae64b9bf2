"""lm-evaluation-harness asks our models what it asks the same weights in transformers, and hears the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers and datasets: these tests need no network
import pytest
import torch

pytest.importorskip(
    "lm_eval", reason="--tasks needs the package lm_eval: python -m pip install lm_eval==0.4.13"
)
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

import evaluate
import export
from seugpt.checkpoint import pretrained as weights
from seugpt.data.tokenizer import load_tokenizer
from seugpt.evaluation import harness
from seugpt.generation.decoder import Decoder, Sampling, generate
from tests.helpers import (
    BLOCK_SIZE,
    EVAL_ARCHITECTURES,
    EVAL_TEXT,
    LLAMA,
    llama2_like,
    load_with_transformers,
    save_perturbed_gpt,
)

CONTEXT = "O menino viu a maçã — 🦜"
CHARS = {"kind": "char", "chars": "".join(sorted(set(EVAL_TEXT)))}
PAIRS = [
    (CONTEXT, " e não comeu."),
    ("O", " menino"),
    ("O menino ", "viu"),  # the blank moves into what is scored
    ("", "O menino viu"),  # after the mark of a beginning
    (EVAL_TEXT, " ação"),  # longer than the window: cut on the left
    ("viu", EVAL_TEXT[:3]),
]
TASKS = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{i}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "fewshot_split": "test",
    },
    "likely": {
        "output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[0]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}{{choices[0]}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "written": {
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


@pytest.fixture
def tasks(workspace):
    """TASKS with a few questions, as .yaml files below tasks/."""
    Path("tasks").mkdir()
    questions = [
        {"q": "O menino viu", "choices": [" a maçã", " comeu.", " ação"], "i": 0},
        {"q": "Síssifo disse: 'não", "choices": ["!'", " 🦜🦜"], "i": 1},
        {"q": "e não comeu.", "choices": ["\n\n", " O"], "i": 0},
        {"q": "O menino viu a maçã —", "choices": [" 🦜", " 1234"], "i": 1},
    ]
    Path("tasks/q.jsonl").write_text(
        "".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8"
    )
    for name, task in TASKS.items():
        task = {"task": name, "dataset_path": "json", "test_split": "test", **task}
        task["dataset_kwargs"] = {"data_files": {"test": "tasks/q.jsonl"}}
        Path(f"tasks/{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return [f"tasks/{name}.yaml" for name in TASKS]


@pytest.fixture(autouse=True)
def no_cache(workspace, monkeypatch):
    """What the package datasets makes of a .jsonl goes into the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", workspace / "cache")


def ours(eval_spec, batch_size=3):
    content = weights.load("out")
    model = weights.build(content)[0].eval()
    autocast = torch.autocast("cpu", enabled=False)
    return harness.HarnessModel(
        model, load_tokenizer(eval_spec), torch.device("cpu"), autocast, batch_size
    )


def ask(lm, kind, *arguments):
    requests = [
        Instance(request_type=kind, doc={}, arguments=args, idx=i)
        for i, args in enumerate(arguments)
    ]
    return getattr(lm, kind)(requests)


def log_probability(model, ids, scored):
    """Of the last ids, one forward pass of transformers' model for each, with what the window then holds before it."""
    total, greedy = 0.0, True
    with torch.no_grad():
        for place in range(len(ids) - scored, len(ids)):
            logits = model(torch.tensor([ids[max(place - BLOCK_SIZE, 0) : place]])).logits[0, -1]
            total += logits.double().log_softmax(-1)[ids[place]].item()
            greedy = greedy and logits.argmax().item() == ids[place]
    return total, greedy


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_log_likelihoods_are_those_of_the_same_weights_in_transformers(eval_spec, name):
    """In batches of any size; in one window, which ends with the text."""
    save_perturbed_gpt(eval_spec, padding=3, **EVAL_ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=hf"])
    theirs, their_tokenizer = load_with_transformers("hf")
    lm, found = ours(eval_spec), None
    for batch_size in (1, 4, 100):
        lm.batch_size = batch_size
        answers = ask(lm, "loglikelihood", *PAIRS)
        assert found is None or answers == [
            (pytest.approx(total, abs=1e-3), same) for total, same in found
        ]
        found = answers
    prefix = their_tokenizer.eos_token_id
    prefix = their_tokenizer.convert_tokens_to_ids("\n") if prefix is None else prefix
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        whole = their_tokenizer(context + continuation)["input_ids"]
        scored = len(whole) - len(their_tokenizer(context.rstrip())["input_ids"] if context else [])
        whole = [*([] if context else [prefix]), *whole]
        ids = whole[-(BLOCK_SIZE + 1) :]  # one window
        with torch.no_grad():
            logits = theirs(torch.tensor([ids[:-1]])).logits[0, -scored:].double()
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids[-scored:])[:, None]).sum().item()
        assert total == pytest.approx(wanted, abs=1e-3), (context, continuation)
        assert greedy == (logits.argmax(-1).tolist() == ids[-scored:])


def test_blanks_alone_are_no_context(eval_spec):
    """They are moved into what is scored, as the harness has it, and nothing would stand before that."""
    save_perturbed_gpt(eval_spec)
    assert ask(ours(eval_spec), "loglikelihood", ("  ", "viu")) == ask(
        ours(eval_spec), "loglikelihood", ("", "  viu")
    )


def test_the_end_of_a_text_ends_a_reply(eval_spec, monkeypatch):
    save_perturbed_gpt(eval_spec)
    tokenizer = load_tokenizer(eval_spec)
    ids = tokenizer.encode(f"viu{tokenizer.separator}O").tolist()
    monkeypatch.setattr(harness, "generate", lambda *_: (torch.tensor([i]) for i in ids))
    [reply] = ask(ours(eval_spec), "generate_until", ("O", {"max_gen_toks": len(ids)}))
    assert reply == (
        "viu\n\nO" if eval_spec["kind"] == "char" else "viu"
    )  # of characters, two line ends are no such mark


def test_the_greedy_continuation_is_told(eval_spec):
    model, tokenizer = save_perturbed_gpt(eval_spec), load_tokenizer(eval_spec)
    prompt = tokenizer.encode("O menino viu").tolist()
    decoder = Decoder(model, 1, BLOCK_SIZE)
    ids = torch.cat(
        list(generate(decoder, [prompt], 3, tokenizer.vocab_size, Sampling(temperature=0.0)))
    ).tolist()
    lm = ours(eval_spec)
    assert lm.score(
        [([*prompt, *ids], 3), ([*prompt, *ids[:2], (ids[2] + 1) % 2], 3), (prompt, 0)]
    )[0][1]
    assert [
        greedy for _, greedy in lm.score([([*prompt, *ids[:2], (ids[2] + 1) % 2], 3), (prompt, 0)])
    ] == [
        False,
        True,
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_longer_than_the_window_is_scored_whole_once(eval_spec, name):
    """In windows side by side, the last one moved left until it is full, as the harness has it for every model."""
    from lm_eval.utils import get_rolling_token_windows

    save_perturbed_gpt(eval_spec, **EVAL_ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=hf"])
    theirs, _ = load_with_transformers("hf")
    lm, texts = ours(eval_spec), [EVAL_TEXT, "viu", EVAL_TEXT[:40]]
    for text, total in zip(
        texts, ask(lm, "loglikelihood_rolling", *((text,) for text in texts)), strict=True
    ):
        ids, wanted = load_tokenizer(eval_spec).encode(text).tolist(), 0.0
        for window, scored in get_rolling_token_windows(ids, lm.prefix_token_id, BLOCK_SIZE, 1):
            with torch.no_grad():
                logits = theirs(torch.tensor([window])).logits[0, -len(scored) :].double()
            wanted += logits.log_softmax(-1).gather(1, torch.tensor(scored)[:, None]).sum().item()
        assert total == pytest.approx(wanted, abs=2e-3)
    long = ask(
        lm, "loglikelihood", ("viu", EVAL_TEXT), ("viu", EVAL_TEXT[:1])
    )  # a continuation may be longer, too
    assert long[0][0] < long[1][0] < 0


def test_each_token_has_all_that_its_window_holds(eval_spec):
    """One scored token at a time, in a long text, with the BLOCK_SIZE tokens before it."""
    save_perturbed_gpt(eval_spec, **EVAL_ARCHITECTURES["gpt2"])
    export.main(["--out_dir=out", "--to=hf"])
    theirs, lm = load_with_transformers("hf")[0], ours(eval_spec)
    ids = load_tokenizer(eval_spec).encode(EVAL_TEXT).tolist()[: 2 * BLOCK_SIZE]
    for end, (total, greedy) in zip(
        range(2, len(ids)), lm.score([(ids[:end], 1) for end in range(2, len(ids))]), strict=True
    ):
        assert (pytest.approx(total, abs=1e-4), greedy) == log_probability(theirs, ids[:end], 1)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_replies_are_transformers_greedy_ones_up_to_a_stop_text(eval_spec, name):
    """Contexts of several lengths in one batch, one of them so long that its beginning is cut."""
    save_perturbed_gpt(eval_spec, block_size=64, **EVAL_ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=hf"])
    theirs, their_tokenizer = load_with_transformers("hf")
    contexts, written = [CONTEXT, "viu", EVAL_TEXT], []
    for context in contexts:
        ids = their_tokenizer(context, return_tensors="pt")["input_ids"][:, -(64 - 20) :]
        out = theirs.generate(
            ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids)
        )
        written.append(their_tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=False))
    asked = [(context, {"until": [], "max_gen_toks": 20}) for context in contexts]
    replies = ask(ours(eval_spec), "generate_until", *asked)
    assert replies == [text.split("<|endoftext|>")[0] for text in written]
    stop = replies[0][4:6]
    cut = ask(
        ours(eval_spec),
        "generate_until",
        *((context, {"until": stop, "max_gen_toks": 20}) for context in contexts),
    )
    assert cut == [reply.split(stop)[0] for reply in replies]
    assert ask(ours(eval_spec, batch_size=1), "generate_until", *asked) == replies


def test_a_reply_may_be_longer_than_the_window_and_drawn(eval_spec):
    save_perturbed_gpt(eval_spec)
    lm = ours(eval_spec)
    long, none = ask(
        lm,
        "generate_until",
        (EVAL_TEXT, {"max_gen_toks": 3 * BLOCK_SIZE}),
        ("", {"max_gen_toks": 5}),
    )
    assert (
        len(load_tokenizer(eval_spec).encode(long)) >= 2 * BLOCK_SIZE or eval_spec["kind"] != "char"
    )
    assert isinstance(none, str)
    torch.manual_seed(0)
    how = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0, "top_p": 0.9}
    drawn = ask(lm, "generate_until", *[("viu", how)] * 4)
    assert len(set(drawn)) > 1
    assert len(set(ask(lm, "generate_until", *[("viu", {**how, "do_sample": False})] * 4))) == 1
    with pytest.raises(ValueError, match="num_beams"):
        ask(lm, "generate_until", ("viu", {"num_beams": 4}))


def test_a_llamas_marks_are_where_transformers_puts_them(workspace):
    tokenizer = llama2_like()
    eval_spec = {"kind": "huggingface", "json": tokenizer.to_str()}
    save_perturbed_gpt(eval_spec, **LLAMA)
    lm = ours(eval_spec)
    assert lm.eot_token_id == lm.prefix_token_id == tokenizer.token_to_id("<s>")
    assert (
        lm.tok_encode("o men") == tokenizer.encode("o men").ids
        and lm.tok_encode("o men")[0] == lm.prefix_token_id
    )
    assert (
        lm.tok_encode("o men", add_special_tokens=False)
        == tokenizer.encode("o men", add_special_tokens=False).ids
    )
    assert lm.tok_encode("") == [lm.prefix_token_id]
    asked = []
    lm.score = lambda rows: asked.extend(rows) or [(0.0, True)] * len(rows)
    ask(lm, "loglikelihood", ("", "o men"), ("  ", "viu"))
    ask(lm, "loglikelihood_rolling", ("o men",))
    marks = [ids.count(lm.prefix_token_id) for ids, _ in asked]
    assert marks == [1, 1, 1] and all(ids[0] == lm.prefix_token_id for ids, _ in asked)
    assert [len(ids) - scored for ids, scored in asked] == [1, 1, 1]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_command_gives_the_metrics_of_the_harness_and_transformers(
    eval_spec, tasks, capsys, monkeypatch, name
):
    """The harness's own model for transformers answers the same questions."""
    for package in (
        "accelerate",
        "accelerate.utils",
    ):  # imported there, and not used for a model that is loaded
        monkeypatch.setitem(sys.modules, package, MagicMock())
    from lm_eval.models.huggingface import HFLM

    save_perturbed_gpt(eval_spec, block_size=64, **EVAL_ARCHITECTURES[name])
    export.main(["--out_dir=out", "--to=hf"])
    model, tokenizer = load_with_transformers("hf")
    if (
        tokenizer.eos_token is None
    ):  # of characters; the harness needs one, before the beginning of a text
        tokenizer.eos_token = "\n"
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64), tasks=tasks,
        task_manager=TaskManager(include_defaults=False), log_samples=False, bootstrap_iters=0,
    )  # fmt: skip
    capsys.readouterr()
    evaluate.main(["--out_dir=out", "--device=cpu", "--batch_size=3", f"--tasks={','.join(tasks)}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["out/best.pt:", "step", "1,", "validation", "loss", "1.0000"]
    assert lines[1] == ["task", "questions", "examples", "metric", "value", "standard", "error"]
    found = {(line[0], line[3]): line for line in lines[2:]}
    wanted = {
        (task, key.partition(",")[0]): value
        for task, metrics in theirs["results"].items()
        for key, value in metrics.items()
        if "," in key and "stderr" not in key
    }
    assert found.keys() == wanted.keys() and len(found) == 7
    for key, value in wanted.items():
        assert float(found[key][4]) == pytest.approx(value, rel=1e-4, abs=1e-4), key
        assert found[key][1:3] == ["4", "0"]
    assert float(found["likely", "perplexity"][5]) > 0  # by resampling


def test_limit_and_solved_examples(tasks, capsys):
    save_perturbed_gpt(CHARS, block_size=64)
    evaluate.main(
        [
            "--out_dir=out",
            "--device=cpu",
            "--tasks=tasks/choice.yaml",
            "--limit=3",
            "--num_fewshot=1",
        ]
    )
    out, err = capsys.readouterr()
    assert [line.split()[:4] for line in out.splitlines()[2:]] == [
        ["choice", "3", "1", "acc"], ["choice", "3", "1", "acc_norm"]
    ]  # fmt: skip
    assert "loading tasks/choice.yaml" in err


def test_a_task_may_use_hugging_faces_package_of_our_files_name(tasks, capsys):
    """Beside evaluate.py, `import evaluate` in a task's Python found our file."""
    Path("tasks/own.py").write_text(
        "import importlib.util\ndef text(doc):\n    place = importlib.util.find_spec('evaluate').origin\n"
        "    assert place.endswith('__init__.py'), place\n    return doc['q']\n",
        encoding="utf-8",
    )
    task = (
        Path("tasks/likely.yaml")
        .read_text(encoding="utf-8")
        .replace('"{{q}}"', "!function own.text")
    )
    Path("tasks/likely.yaml").write_text(task, encoding="utf-8")
    save_perturbed_gpt(CHARS)
    evaluate.main(["--out_dir=out", "--device=cpu", "--tasks=tasks/likely.yaml"])
    assert "likely" in capsys.readouterr().out and sys.modules["evaluate"] is evaluate


def test_mistakes_are_one_message(tasks, capsys):
    save_perturbed_gpt(CHARS)
    Path("tasks/broken.yaml").write_text("task: [", encoding="utf-8")
    Path("tasks/nodata.yaml").write_text(
        Path("tasks/likely.yaml").read_text(encoding="utf-8").replace("q.jsonl", "none.jsonl"),
        encoding="utf-8",
    )
    Path("tasks/hub.yaml").write_text(
        "task: hub\ndataset_path: nobody/nothing\ntest_split: test\n", encoding="utf-8"
    )
    Path("tasks/field.yaml").write_text(
        Path("tasks/likely.yaml").read_text(encoding="utf-8").replace("{{q}}", "{{nofield.x}}"),
        encoding="utf-8",
    )
    Path("tasks/unsafe.yaml").write_text(
        Path("tasks/likely.yaml")
        .read_text(encoding="utf-8")
        .replace("{", '{"unsafe_code": true, ', 1),
        encoding="utf-8",
    )
    for names, words in {
        "tasks/none.yaml": "tasks=tasks/none.yaml: there is no such file",
        "hellaswg,tasks/likely.yaml": "tasks=hellaswg: there is no such task; did you mean hellaswag",
        "tasks/broken.yaml": "tasks=tasks/broken.yaml: lm-evaluation-harness cannot load them",
        "tasks/nodata.yaml": "tasks=tasks/nodata.yaml: lm-evaluation-harness cannot load them",
        "tasks/hub.yaml": "Hugging Face's hub: connect to the network",
        "tasks/field.yaml": "cannot load them: UndefinedError: 'nofield' is undefined",
        "tasks/unsafe.yaml": "lm-evaluation-harness stopped: ValueError: Attempted to run task",
        ",": "lm-evaluation-harness stopped: ValueError: No tasks specified",
    }.items():
        message = complaint(capsys, f"--tasks={names}")
        assert words in message, message


def test_characters_that_a_model_does_not_know_are_named(workspace, tasks, capsys):
    save_perturbed_gpt({"kind": "char", "chars": "O menivu\n"})
    assert "a task has what the model never saw in training: " in complaint(
        capsys, "--tasks=tasks/likely.yaml"
    )


def test_without_the_package_the_command_says_how_to_install_it(tmp_path):
    """Not even harness.py's own imports are needed for all else."""
    code = "import sys; sys.modules['lm_eval'] = None; import evaluate; evaluate.main(['--tasks=hellaswag'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(evaluate.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert (
        result.stderr
        == "-c: --tasks needs the package lm_eval: python -m pip install lm_eval==0.4.13\n"
    )


def complaint(capsys, *argv):
    """The one message with which the command ends: the last line, after the harness's own."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        evaluate.main(["--out_dir=out", "--device=cpu", *argv])
    err = capsys.readouterr().err
    assert exit.value.code == 2 and "Traceback" not in err
    return err.rstrip("\n").splitlines()[-1]
