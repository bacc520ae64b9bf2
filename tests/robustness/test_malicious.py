"""Malicious files: whatever is read is data, and never runs as code."""

import ast
import io
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import sample
import train
import visualize
from seugpt.data.dataset import Dataset
from seugpt.errors import UserError
from tests.helpers import ROOT
from tests.robustness.loaders import (
    fine_tune,
    generate,
    plot_metrics,
    read_batches,
    resume,
    use_tokenizer,
)

CODE = (
    "__import__('os').mkdir('executed')",
    "os.mkdir('executed')",
    "cos\nmkdir\n(Vexecuted\ntR.",
    "{{ ''.__class__.__mro__ }}",
    "!!python/object/apply:os.mkdir ['executed']",
    "$(mkdir executed)",
)


class Payload:
    """Creates the folder `executed` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def check_nothing_ran():
    assert not list(Path().rglob("executed"))


def test_payload_runs_when_unpickled(workspace):
    """Without this, the other tests would pass with a payload that does nothing."""
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").exists()


# Pickles in place of files


def as_text(content):
    return pickle.dumps(content, protocol=0)


def torch_zip(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def torch_legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def object_array(content):
    buffer = io.BytesIO()
    np.save(buffer, np.array([content], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def safetensors_header(content):
    """A safetensors file whose header is a pickle."""
    header = pickle.dumps(content)
    return struct.pack("<Q", len(header)) + header


def npy_header(content):
    """A .npy file whose header is a function call instead of a dictionary."""
    header = b"__import__('os').mkdir('executed')".ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(40)


FORMS = (pickle.dumps, as_text, torch_zip, torch_legacy)
FORMS += (object_array, safetensors_header, npy_header)
READERS = {  # {file: (what loads it, from which argument)}
    "out/best.pt": (generate, "out/best.pt"),
    "out/latest.pt": (resume, "out"),
    "nano/ckpt.pt": (generate, "nano"),
    "hf/config.json": (generate, "hf"),
    "hf/tokenizer.json": (generate, "hf"),
    "hf/model.safetensors": (generate, "hf"),
    "sharded/model.safetensors.index.json": (generate, "sharded"),
    "sharded/model-0.safetensors": (fine_tune, "sharded"),
    "other/tokenizer.json": (use_tokenizer, "other"),
    "data/tiny/meta.json": (read_batches, "data/tiny"),
    "data/tiny/train.bin": (read_batches, "data/tiny"),
    "data/numpy/fineweb_edu_train_000001.npy": (read_batches, "data/numpy"),
    "data/llmc/fineweb_train_000001.bin": (read_batches, "data/llmc"),
}


@pytest.mark.parametrize("file", READERS)
def test_pickle_in_place_of_a_file_is_refused_and_not_run(intact_files, file):
    """In every form that a library might unpickle."""
    load, argument = READERS[file]
    for form in FORMS:
        for content in (Payload(), {"model": Payload()}, {"model_args": {}, "model": [Payload()]}):
            Path(file).write_bytes(form(content))
            with pytest.raises(UserError, match=f"{Path(file).name}|{argument}"):
                load(argument)
            check_nothing_ran()


@pytest.mark.parametrize("file", ["out/best.pt", "out/latest.pt", "nano/ckpt.pt"])
def test_payload_in_an_otherwise_intact_checkpoint_is_refused(intact_files, file):
    """Only the payload can be the reason, under any key."""
    load, argument = READERS[file]
    intact = torch.load(file, weights_only=True)
    for key in intact:
        torch.save({**intact, key: Payload()}, file)
        with pytest.raises(UserError, match=Path(file).name):
            load(argument)
        check_nothing_ran()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.bin", "pytorch_model-00001-of-00001.bin"]
)
def test_pickles_in_a_hugging_face_folder_are_never_loaded(intact_files, name):
    """Neither without model.safetensors, nor if an index names them."""
    Path("hf/model.safetensors").unlink()
    Path("hf", name).write_bytes(torch_zip({"model": Payload()}))
    index = json.dumps({"weight_map": {"wte.weight": name}})
    Path("hf/pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(UserError, match=r"hf has no model\.safetensors.* pickles"):
        generate("hf")
    index = json.dumps({"weight_map": {"model.norm.weight": name}})
    Path("hf/model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=f"{name} .*safetensors"):
        generate("hf")
    check_nothing_ran()


def test_code_next_to_model_files_is_never_run(intact_files):
    """Neither nanoGPT's meta.pkl, nor a Hugging Face folder's Python (trust_remote_code)."""
    spec = Dataset("data/tiny").tokenizer.spec()
    Path("data/tiny/meta.pkl").write_bytes(pickle.dumps(Payload()))
    assert Dataset("data/tiny").tokenizer.spec() == spec
    modules = ("modeling_llama", "sitecustomize", "conftest", "config", "tokenizer")
    for folder in ("hf", "data/tiny", "out"):
        for module in modules:
            Path(folder, f"{module}.py").write_text("import os\nos.mkdir('executed')\n")
    generate("hf")
    generate("out")
    read_batches("data/tiny")
    resume("out")
    check_nothing_ran()


def test_meta_pkl_without_meta_json_is_refused(intact_files):
    Path("data/nanogpt/meta.pkl").write_bytes(pickle.dumps({"stoi": Payload()}))
    with pytest.raises(UserError, match=r"meta\.pkl"):
        Dataset("data/nanogpt")
    check_nothing_ran()


# Code in strings


def with_each_string_replaced(value, text):
    """Copies of a JSON value, each with one of its strings replaced by `text`."""
    if isinstance(value, str):
        yield text
    keys = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        for changed in with_each_string_replaced(value[key], text):
            result = value.copy()
            result[key] = changed
            yield result
    if isinstance(value, dict):
        yield {**value, text: text}


@pytest.mark.parametrize("file", [file for file in READERS if file.endswith(".json")])
def test_code_in_a_json_string_is_only_text(intact_files, file):
    """The file loads, or is refused by name."""
    load, argument = READERS[file]
    intact = json.loads(Path(file).read_text(encoding="utf-8"))
    for text in CODE:
        for content in with_each_string_replaced(intact, text):
            Path(file).write_text(json.dumps(content), encoding="utf-8")
            try:
                load(argument)
            except UserError as error:
                assert argument in str(error)
            check_nothing_ran()


LINES = (
    pickle.dumps(Payload()),
    pickle.dumps(Payload(), protocol=0),
    *map(str.encode, CODE),
    *(json.dumps({"step": text}).encode() for text in CODE),
)


def test_code_in_metrics_is_dropped_as_a_damaged_line(intact_files):
    path = Path("out/metrics.jsonl")
    intact = path.read_bytes()
    for line in LINES:
        path.write_bytes(intact + line)
        plot_metrics("out/metrics.jsonl")
        check_nothing_ran()
        assert line not in path.read_bytes()


def test_index_cannot_name_a_file_outside_its_folder(intact_files):
    shutil.copy("sharded/model-0.safetensors", "outside.safetensors")
    path = Path("sharded/model.safetensors.index.json")
    intact = json.loads(path.read_text(encoding="utf-8"))
    absolute = str(Path("outside.safetensors").absolute())
    for name in ("../outside.safetensors", absolute, "..\\outside.safetensors"):
        index = {**intact, "weight_map": dict.fromkeys(intact["weight_map"], name)}
        path.write_text(json.dumps(index))
        with pytest.raises(UserError, match="not a file name in this folder"):
            generate("sharded")


# The program's own source


FORBIDDEN_MODULES = set("pickle cPickle dill cloudpickle joblib marshal shelve yaml code".split())
FORBIDDEN_BUILTINS = {"eval", "exec", "execfile", "compile"}
FORBIDDEN_FUNCTIONS = {"os.system", "torch.jit.load", "torch.package.PackageImporter"}
ALLOWED = {  # config files are Python, as documented
    ("seugpt/cli/config_parser.py", "exec"),
    ("seugpt/cli/config_parser.py", "compile"),
}


def dangers(source):
    """(name, line) of everything in a program that could run the content of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((name, node.lineno) for name in dangerous_imports(node))
        elif isinstance(node, ast.Call):
            yield from ((name, node.lineno) for name in dangerous_calls(node))


def dangerous_imports(node):
    imported = [alias.name for alias in node.names]
    modules = imported if isinstance(node, ast.Import) else [node.module or ""]
    if modules == ["pickle"] and imported == ["dumps"]:  # writing runs nothing
        return
    for module in modules:
        if module.split(".")[0] in FORBIDDEN_MODULES:
            yield module


def dangerous_calls(node):
    function = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if function in FORBIDDEN_BUILTINS:
        yield function
    if function == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load"
    if function.startswith(("np.", "numpy.")) and "allow_pickle" in keywords:
        yield "allow_pickle"
    if "trust_remote_code" in keywords or function in FORBIDDEN_FUNCTIONS:
        yield function


@pytest.mark.parametrize(
    "source, name",
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("from pickle import dumps, loads", "pickle"),
        ("from pickle import *", "pickle"),
        ("eval('1')", "eval"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("torch.load(path, weights_only=safe)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("os.system('ls')", "os.system"),
    ],
)
def test_dangers_finds_each_kind(source, name):
    assert [found for found, _ in dangers(source)] == [name]


def test_program_never_runs_the_content_of_a_file():
    """Except for config files, no module has a call or an import that could."""
    found = {}
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(("tests/", "venv/", ".", "out")):
            continue
        for name, line in dangers(path.read_text(encoding="utf-8")):
            found.setdefault((file, name), []).append(line)
    assert found.keys() == ALLOWED, found


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    "file, main, argv",
    [
        ("data/tiny/meta.json", train.main, ["--dataset=tiny"]),
        ("data/tiny/train.bin", train.main, ["--dataset=tiny"]),
        ("data/tiny/meta.json", prepare.main, ["t", "--input=tiny.txt", "--tokenizer=data/tiny"]),
        ("out/metrics.jsonl", train.main, ["--init_from=resume", "--max_iters=31"]),
        ("out/training.log", train.main, ["--init_from=resume", "--max_iters=31"]),
        ("out/metrics.jsonl", visualize.main, ["loss", "out"]),
        ("out/best.pt", sample.main, ["--init_from=out/best.pt"]),
        ("prompt", sample.main, ["--start=FILE:prompt"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_pipe_in_place_of_a_file_is_refused_without_reading_it(
    trained, refused, file, main, argv
):
    """Nobody writes to it, so opening it waited for ever."""
    Path(file).unlink(missing_ok=True)
    os.mkfifo(file)
    assert Path(file).name in refused(main, *argv)
