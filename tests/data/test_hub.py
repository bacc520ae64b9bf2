"""Models on the Hugging Face hub, from a small one on this machine."""

import contextlib
import hashlib
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

import prepare
import sample
from seugpt.data.hub import EXTRAS, OPENAI, download_model
from seugpt.data.tokenizer import CharTokenizer, read_spec
from seugpt.errors import CheckpointError
from tests.checkpoint.hf_models import CHARS, check_logits, make_gpt2, make_llama
from tests.helpers import ROOT

UNREACHABLE = "http://127.0.0.1:9"  # nobody listens there


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of huggingface.co that a download needs, with faults on request.

    The folder served/ is every model that `revisions` names. `faults`: a list of what goes wrong in
    the next downloads of model.safetensors: an HTTP status, "short", "other content", or "stall",
    which releases `half_sent` and waits for `resume`.
    """

    def do_GET(self):
        self.reply(True)

    def do_HEAD(self):
        self.reply(False)

    def reply(self, with_body):
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        path = Path("served", file)
        status, code = self.refusal(repository, revision, path)
        body = b"" if code else path.read_bytes()
        fault = None
        if with_body and path.suffix == ".safetensors" and self.faults:
            fault = self.faults.pop(0)
        self.send_response(fault if isinstance(fault, int) else status)
        if code:
            self.send_header("X-Error-Code", code)
        etag = hashlib.sha256(body).hexdigest()  # as for large files
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if with_body and not isinstance(fault, int):
            self.send_body(body, fault)

    def refusal(self, repository, revision, path):
        """The status of a reply, and the code by which the hub says why it refuses."""
        if repository == "org/gated":
            return 403, "GatedRepo"
        if repository not in self.revisions:
            return 401, "RepoNotFound"
        if revision not in self.revisions[repository]:
            return 404, "RevisionNotFound"
        return (200, None) if path.is_file() else (404, "EntryNotFound")

    def send_body(self, body, fault):
        if fault == "other content":
            self.wfile.write(b"?" * len(body))
        elif fault == "short":
            self.wfile.write(body[:1000])
        elif fault == "stall":
            self.wfile.write(body[:1000])
            self.half_sent.release()
            self.resume.wait(60)
            self.wfile.write(body[1000:])
        else:
            self.wfile.write(body)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed or has closed
            super().handle()

    def log_message(self, *_):
        pass


def use_endpoint(monkeypatch, endpoint):
    """Make huggingface_hub in this process download from `endpoint` to home/hub."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(Path("home/hub").absolute()),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()  # its next one reads these values


@pytest.fixture
def hub(workspace, monkeypatch):
    """The URL of a local hub that serves a small gpt2; this process downloads from it."""
    make_gpt2(vocab_size=len(CHARS)).save_pretrained("served")
    text = CharTokenizer(CHARS).to_json()
    Path("served/tokenizer.json").write_text(text, encoding="utf-8")
    Hub.faults = []
    Hub.revisions = {"openai-community/gpt2": ["main"], "org/small": ["main", "v1", "a" * 40]}
    Hub.half_sent = threading.Semaphore(0)
    Hub.resume = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        use_endpoint(monkeypatch, endpoint)
        yield endpoint
        Hub.resume.set()
        server.shutdown()
    huggingface_hub.close_session()


@pytest.fixture
def no_sleep(monkeypatch):
    """Make huggingface_hub retry without waiting."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def start_download(endpoint):
    """Start downloading gpt2 in a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(Path("home").absolute()),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    code = """
from seugpt.data.hub import download_model
from seugpt.cli.command import command
with command():
    download_model("gpt2")
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, encoding="utf-8"
    )


def cached():
    """{name: content} of the files that huggingface_hub's cache has under their final names."""
    return {path.name: path.read_bytes() for path in Path("home").rglob("snapshots/*/*")}


def served():
    return {path.name: path.read_bytes() for path in Path("served").iterdir()}


SHORT = ["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=abc"]


def test_model_on_the_hub_is_downloaded_once(hub, monkeypatch, capsys):
    """The second time it is loaded from the cache, without a network."""
    sample.main(["--init_from=gpt2", *SHORT])
    first = capsys.readouterr().out
    assert first.startswith("abc")
    use_endpoint(monkeypatch, UNREACHABLE)
    sample.main(["--init_from=gpt2", *SHORT])
    assert capsys.readouterr().out == first


def test_model_that_another_program_has_cached_needs_no_network(hub, monkeypatch, capsys):
    """Without huggingface_hub's notes on files that do not exist."""
    download_model("org/small")
    for folder in Path("home").rglob(".no_exist"):
        shutil.rmtree(folder)
    use_endpoint(monkeypatch, UNREACHABLE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    sample.main(["--init_from=org/small", *SHORT])
    assert capsys.readouterr().out.startswith("abc")
    for path in Path("home").rglob("model.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="cannot download org/small"):
        download_model("org/small")


def test_unreachable_hub_is_one_message(workspace, monkeypatch, refused, no_sleep):
    """It says how to use files that were downloaded in another way."""
    use_endpoint(monkeypatch, UNREACHABLE)
    message = refused(sample.main, "--init_from=gpt2", "--device=cpu")
    assert "openai-community/gpt2" in message
    assert "give their folder instead" in message


def test_failed_download_is_retried(hub, no_sleep):
    Hub.faults = [500, "short"]
    download_model("gpt2")
    assert Hub.faults == []
    assert cached() == served()


@pytest.mark.parametrize("source", ["org/small", "org/small@v1", f"org/small@{'a' * 40}"])
def test_model_is_named_by_its_organization_and_revision(hub, capsys, source):
    sample.main([f"--init_from={source}", *SHORT])
    assert capsys.readouterr().out.startswith("abc")


def test_all_shards_of_a_model_are_downloaded(hub):
    theirs = make_llama(num_hidden_layers=3, hidden_size=64, vocab_size=len(CHARS))
    shutil.rmtree("served")
    theirs.save_pretrained("served", max_shard_size="60KB")
    folder = download_model("org/small")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    check_logits(theirs, folder)


@pytest.mark.parametrize(
    "source, words",
    [
        ("org/other", "no file or folder org/other, and the Hugging Face hub has no model"),
        ("org/small@v2", "org/small has no such revision"),
        ("org/small@refs/pr/1", "org/small has no such revision"),
        ("https://huggingface.co/org/small", "is written org/name"),
        ("org/gated", "accept its licence at https://huggingface.co/org/gated"),
    ],
)
def test_refusal_of_the_hub_is_one_message(hub, refused, source, words):
    assert words in refused(sample.main, f"--init_from={source}", "--device=cpu")


@pytest.mark.parametrize("source", ["org/model.pt", "out/best.pt", "hf/config.json", "/no/model"])
def test_path_that_does_not_exist_is_not_looked_for_on_the_hub(hub, refused, source):
    assert "hub" not in refused(sample.main, f"--init_from={source}", "--device=cpu").lower()
    assert cached() == {}


def test_pickled_model_is_refused_with_the_command_that_converts_it(hub, refused):
    """transformers reads it; the folder that it writes is read here."""
    Path("served/model.safetensors").rename("served/pytorch_model.bin")
    message = refused(sample.main, "--init_from=org/small", "--device=cpu")
    assert "pickles such as pytorch_model.bin are never loaded" in message
    [code] = re.findall(r'python -c "(.*?)"', message)
    assert "from_pretrained('org/small')" in code
    assert "pytorch_model.bin" not in cached()
    torch.save(load_file("served/pytorch_model.bin"), "served/pytorch_model.bin")
    Path("served/tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    message = refused(sample.main, "--init_from=served", "--device=cpu")
    [code] = re.findall(r'python -c "(.*?)"', message)
    subprocess.run([sys.executable, "-c", code], check=True)
    sample.main(["--init_from=hf", *SHORT])


def test_download_with_a_wrong_checksum_is_refused_and_not_cached(hub):
    """huggingface_hub compares only sizes, so damaged weights were used and stayed in its cache."""
    Hub.faults = ["other content"]
    with pytest.raises(CheckpointError, match=r"model\.safetensors arrived with sha256"):
        download_model("gpt2")
    assert "model.safetensors" not in cached()
    download_model("gpt2")
    assert cached()["model.safetensors"] == served()["model.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_download_can_be_started_again(hub, name):
    """Nothing is left of the first one: no traceback, no partial file."""
    signum = getattr(signal, name)
    Hub.faults = ["stall"]
    process = start_download(hub)
    assert Hub.half_sent.acquire(timeout=100)
    process.send_signal(signum)
    message = process.communicate(timeout=100)[1]
    assert "Traceback" not in message
    assert "model.safetensors" not in cached()
    assert process.returncode == (130 if name == "SIGINT" else -signum)
    download_model("gpt2")
    assert cached()["model.safetensors"] == served()["model.safetensors"]
    assert not list(Path("home").rglob("*.incomplete"))


def test_concurrent_downloads_wait_for_each_other(hub):
    Hub.faults = ["stall"]
    with ThreadPoolExecutor(1) as pool:
        process = start_download(hub)
        assert Hub.half_sent.acquire(timeout=100)
        second = pool.submit(download_model, "gpt2")
        Hub.resume.set()
        second.result(timeout=100)
    assert process.wait(timeout=100) == 0
    assert cached()["model.safetensors"] == served()["model.safetensors"]


def test_models_on_the_hub_have_nanogpts_names():
    assert list(OPENAI) == ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]


def test_install_commands_name_the_versions_of_requirements_dev():
    text = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    required = dict(re.findall(r"^(\w+)==(\S+)", text, re.MULTILINE))
    for package, version in EXTRAS.items():
        assert required[package] == version, package
    source = (ROOT / "seugpt/data/tokenizer_json.py").read_text(encoding="utf-8")
    assert f"tokenizers=={required['tokenizers']}" in source


def test_text_is_prepared_with_the_tokenizer_of_a_model_on_the_hub(hub):
    """Its weights are not downloaded for that."""
    Path("text.txt").write_text("abc def\n" * 50, encoding="utf-8")
    prepare.main(["mine", "--input=text.txt", "--tokenizer=org/small@v1"])
    assert read_spec("data/mine") == read_spec("served")
    assert "model.safetensors" not in cached()
