"""Files made by somebody who wishes harm: what is read is data, and never runs."""

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

from seugpt.data.dataset import Dataset
from tests.helpers import ROOT
from tests.robustness.loaders import (
    KNOWN_ERRORS,
    draw_logged,
    fine_tune,
    resume,
    speak,
    take_batches,
    take_tokenizer,
)

TEXTS = ("__import__('os').mkdir('executed')", "os.mkdir('executed')", "cos\nmkdir\n(Vexecuted\ntR.",
         "{{ ''.__class__.__mro__ }}", "!!python/object/apply:os.mkdir ['executed']", "$(mkdir executed)")  # fmt: skip


class Payload:
    """Unpickled, it makes a folder. (os.mkdir, as every program that reads pickles has it.)"""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_the_payload_works(workspace):
    """Else none of the others would show anything."""
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").exists()


def as_text(content):
    return pickle.dumps(content, protocol=0)


def zipped(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def object_array(content):
    buffer = io.BytesIO()
    np.save(buffer, np.array([content], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def headed(content):
    """A safetensors file whose header is a pickle."""
    header = pickle.dumps(content)
    return struct.pack("<Q", len(header)) + header


def npy_headed(content):
    """A .npy file whose header is a call in place of a dictionary."""
    header = b"__import__('os').mkdir('executed')".ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(40)


READERS = {  # file: what loads it, and from which argument
    "out/best.pt": (speak, "out/best.pt"),
    "out/latest.pt": (resume, "out"),
    "nano/ckpt.pt": (speak, "nano"),
    "hf/config.json": (speak, "hf"),
    "hf/tokenizer.json": (speak, "hf"),
    "hf/model.safetensors": (speak, "hf"),
    "sharded/model.safetensors.index.json": (speak, "sharded"),
    "sharded/model-0.safetensors": (fine_tune, "sharded"),
    "foreign/tokenizer.json": (take_tokenizer, "foreign"),
    "data/tiny/meta.json": (take_batches, "data/tiny"),
    "data/tiny/train.bin": (take_batches, "data/tiny"),
    "data/numpy/fineweb_edu_train_000001.npy": (take_batches, "data/numpy"),
    "data/llmc/fineweb_train_000001.bin": (take_batches, "data/llmc"),
}
FORMS = (pickle.dumps, as_text, zipped, legacy, object_array, headed, npy_headed)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("file", READERS)
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(sound_files, file, form):
    load, argument = READERS[file]
    for content in (Payload(), {"model": Payload()}, {"model_args": {}, "model": [Payload()]}):
        Path(file).write_bytes(form(content))
        with pytest.raises(KNOWN_ERRORS, match=f"{Path(file).name}|{argument}"):
            load(argument)
        assert not list(Path().rglob("executed"))


@pytest.mark.parametrize("where", ["best.pt", "latest.pt", "ckpt.pt"])
def test_a_payload_among_sound_things_is_refused_and_not_run(sound_files, where):
    """Everything else is there, so that nothing but the payload can be the reason."""
    file = next(Path().glob(f"*/{where}"))
    whole = torch.load(file, weights_only=True)
    load, argument = READERS[str(file.as_posix())]
    for key in whole:
        torch.save({**whole, key: Payload()}, file)
        with pytest.raises(KNOWN_ERRORS, match=where):
            load(argument)
        assert not list(Path().rglob("executed")), key


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.bin", "pytorch_model-00001-of-00001.bin"]
)
def test_the_pickles_of_a_hugging_face_folder_are_never_read(sound_files, name):
    Path("hf/model.safetensors").unlink()
    Path("hf", name).write_bytes(zipped({"model": Payload()}))
    Path("hf/pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"wte.weight": name}})
    )
    with pytest.raises(
        KNOWN_ERRORS, match=r"hf has no model.safetensors; other forms, .* are never read"
    ):
        speak("hf")
    index = {"weight_map": {"model.norm.weight": name}}
    Path("hf/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(KNOWN_ERRORS, match=f"{name} cannot be read as safetensors"):
        speak("hf")
    assert not list(Path().rglob("executed"))


def test_what_lies_beside_our_own_files_is_left_alone(sound_files):
    """nanoGPT's meta.pkl, and Python that Hugging Face's folders may bring along (trust_remote_code)."""
    before = Dataset("data/tiny").tokenizer.spec()
    Path("data/tiny/meta.pkl").write_bytes(pickle.dumps(Payload()))
    assert Dataset("data/tiny").tokenizer.spec() == before
    for folder in ("hf", "data/tiny", "out"):
        for name in (
            "modeling_llama.py",
            "sitecustomize.py",
            "conftest.py",
            "config.py",
            "tokenizer.py",
        ):
            Path(folder, name).write_text("import os\nos.mkdir('executed')\n")
    for argument in ("hf", "out"):
        speak(argument)
    take_batches("data/tiny")
    resume("out")
    assert not list(Path().rglob("executed"))


def test_a_meta_pkl_without_our_meta_json_is_refused(sound_files):
    Path("data/nanogpt/meta.pkl").write_bytes(pickle.dumps({"stoi": Payload()}))
    with pytest.raises(KNOWN_ERRORS, match=r"meta\.pkl .*a pickle is never read"):
        Dataset("data/nanogpt")
    assert not list(Path().rglob("executed"))


def with_text(value, text):
    """Every text in a JSON value replaced, one at a time."""
    if isinstance(value, str):
        yield text
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        for changed in with_text(value[key], text):
            result = value.copy()
            result[key] = changed
            yield result
    if isinstance(value, dict):
        yield {**value, text: text}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("file", [file for file in READERS if file.endswith(".json")])
def test_code_in_the_texts_of_json_is_text(sound_files, file, text):
    load, argument = READERS[file]
    whole = json.loads(Path(file).read_text(encoding="utf-8"))
    for content in with_text(whole, text):
        Path(file).write_text(json.dumps(content), encoding="utf-8")
        try:
            load(argument)
        except KNOWN_ERRORS as error:
            assert argument in str(error)
        assert not list(Path().rglob("executed"))


@pytest.mark.parametrize("line", [pickle.dumps(Payload()), pickle.dumps(Payload(), 0), *map(str.encode, TEXTS),
                                  *(json.dumps({"step": text}).encode() for text in TEXTS)])  # fmt: skip
def test_code_in_metrics_is_a_damaged_line(sound_files, line):
    path = Path("out/metrics.jsonl")
    path.write_bytes(path.read_bytes() + line)
    draw_logged("out/metrics.jsonl")
    assert not list(Path().rglob("executed")) and line not in path.read_bytes()


def test_a_name_in_the_index_does_not_lead_out_of_the_folder(sound_files):
    shutil.copy("sharded/model-0.safetensors", "outside.safetensors")
    whole = json.loads(Path("sharded/model.safetensors.index.json").read_text(encoding="utf-8"))
    for name in (
        "../outside.safetensors",
        str(Path("outside.safetensors").absolute()),
        "..\\outside.safetensors",
    ):
        content = {**whole, "weight_map": dict.fromkeys(whole["weight_map"], name)}
        Path("sharded/model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(KNOWN_ERRORS, match="is not a plain name in this folder"):
            speak("sharded")


# What turns data into code, and where it may stand: config files are Python, and documented to be.
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "execfile", "compile"}
ALLOWED = {("seugpt/cli/options.py", "exec"), ("seugpt/cli/options.py", "compile")}


def dangers(source):
    """(name, line) of everything in a program that could run what a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = [alias.name for alias in node.names]
            names = imported if isinstance(node, ast.Import) else [node.module or ""]
            if names == ["pickle"] and imported == ["dumps"]:  # writing runs nothing
                continue
            yield from (
                (name, node.lineno) for name in names if name.split(".")[0] in FORBIDDEN_MODULES
            )
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield node.func.id, node.lineno
        called = ast.unparse(node.func)
        safe = (
            isinstance(keywords.get("weights_only"), ast.Constant)
            and keywords["weights_only"].value is True
        )
        if called == "torch.load" and not safe:
            yield "torch.load", node.lineno
        if called.startswith(("np.", "numpy.")) and "allow_pickle" in keywords:
            yield "allow_pickle", node.lineno
        if "trust_remote_code" in keywords or called in (
            "os.system",
            "torch.jit.load",
            "torch.package.PackageImporter",
        ):
            yield called, node.lineno


@pytest.mark.parametrize("text, name", [
    ("import pickle", "pickle"), ("from pickle import loads", "pickle"), ("eval('1')", "eval"),
    ("from pickle import dumps, loads", "pickle"), ("from pickle import *", "pickle"),
    ("torch.load(path)", "torch.load"), ("torch.load(path, weights_only=False)", "torch.load"),
    ("torch.load(path, weights_only=safe)", "torch.load"), ("np.load(path, allow_pickle=True)", "allow_pickle"),
])  # fmt: skip
def test_each_danger_would_be_found(text, name):
    assert [found for found, _ in dangers(text)] == [name]


def test_the_program_never_runs_what_a_file_holds():
    found = set()
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(("tests/", "venv/", ".", "out")):
            continue
        found |= {(file, name, line) for name, line in dangers(path.read_text(encoding="utf-8"))}
    assert {(file, name) for file, name, _ in found} == ALLOWED, sorted(found)
