"""Downloads over a faulty network: a file is complete or absent, and errors come with advice.

The server on loopback and its faults are real; only the pauses between attempts are left out.
"""

import http.server
import os
import signal
import threading
from pathlib import Path

import pytest
import tiktoken

import prepare
from seugpt.data import corpora, download, tokenizer
from seugpt.data.dataset import Dataset
from tests.data.download_server import (
    CORPUS,
    MERGES,
    TOKENS,
    VOCABULARY_NAMES,
    Handler,
    start_prepare,
    use_server,
)


@pytest.fixture
def address(workspace, monkeypatch):
    """The address of a server from which prepare.py gets a corpus and GPT-2's vocabulary."""
    Handler.reset()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "cache")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    # monkeypatch restores what use_server changes.
    monkeypatch.setitem(corpora.CORPORA, "served", None)
    monkeypatch.setattr(tokenizer, "GPT2_FILES", {})
    tiktoken.list_encoding_names()
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "gpt2", None)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    Path("t.txt").write_text("não é uma maçã\n" * 50, encoding="utf-8")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        use_server(url)
        yield url
        Handler.resume.set()
        server.shutdown()


# A command line, the files that it downloads, and the advice that an error message must give.
CORPUS_CASE = (
    ["served"],
    {"data/served/input.txt": CORPUS},
    "python prepare.py served --input=FILE",
)
VOCABULARY_CASE = (
    ["t", "--input=t.txt", "--tokenizer=gpt2"],
    {f"cache/{VOCABULARY_NAMES[0]}": MERGES, f"cache/{VOCABULARY_NAMES[1]}": TOKENS},
    "--tokenizer=bpe",
)
each_case = pytest.mark.parametrize(
    "argv, downloads, advice", [CORPUS_CASE, VOCABULARY_CASE], ids=["corpus", "vocabulary"]
)


def files_on_disk():
    """{path: bytes} of all files in data/ and cache/, except lock files."""
    paths = [path for top in ("data", "cache") for path in Path(top).rglob("*") if path.is_file()]
    return {path.as_posix(): path.read_bytes() for path in paths if path.name != ".lock"}


def assert_complete(argv, downloads):
    """The downloads are complete, the data set loads, and there are no other files."""
    files = files_on_disk()
    assert {name: content for name, content in files.items() if name in downloads} == downloads
    assert {Path(name).name for name in set(files) - set(downloads)} == set(prepare.FILES)
    assert Dataset(Path("data", argv[0])).tokens["train"] > 0


@each_case
def test_temporary_faults_are_retried_and_complete_files_kept(address, argv, downloads, advice):
    Handler.faults = [500, 503, "short"]
    prepare.main(argv)
    assert_complete(argv, downloads)
    assert len(Handler.requests) == 3 + len(downloads)
    Handler.requests.clear()
    tiktoken.registry.ENCODINGS.clear()
    prepare.main(argv)
    assert Handler.requests == []


@each_case
@pytest.mark.parametrize(
    "fault, word, attempts",
    [
        (404, "404", 1),
        (403, "403", 1),
        (500, "500", 4),
        (429, "429", 4),
        ("short", "bytes", 4),
        ("stall", "timed out", 4),
        ("other bytes", "sha256", 4),
        ("endless", "more than", 4),
    ],
)
def test_a_persistent_fault_is_named_and_leaves_no_files(
    address, refused, monkeypatch, argv, downloads, advice, fault, word, attempts
):
    """tiktoken itself tried only once, and waited forever for a server that stopped responding."""
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    Handler.faults = [fault] * 9
    message = refused(prepare.main, *argv)
    assert word in message
    assert address in message
    assert advice in message
    assert len(Handler.requests) == attempts
    assert files_on_disk() == {}
    assert not Path("data", argv[0]).exists()


def test_an_invalid_content_length_is_ignored(address):
    """A Content-Length that was not a number ended prepare.py with a ValueError."""
    Handler.faults = ["length not a number"]
    prepare.main(["served"])
    assert_complete(*CORPUS_CASE[:2])


def test_a_damaged_file_in_the_cache_is_downloaded_again(address):
    argv, downloads, _ = VOCABULARY_CASE
    prepare.main(argv)
    Path("cache", VOCABULARY_NAMES[1]).write_bytes(TOKENS[:100])
    tiktoken.registry.ENCODINGS.clear()
    prepare.main(argv)
    assert_complete(argv, downloads)


@each_case
@pytest.mark.parametrize(
    "broken_address, pauses", [("http://nowhere.invalid", []), ("http://127.0.0.1:9", [1, 2, 4])]
)
def test_an_unresolvable_host_is_not_retried(
    address, refused, monkeypatch, argv, downloads, advice, broken_address, pauses
):
    """A refused connection is retried; without a network, a retry would be useless."""
    slept = []
    monkeypatch.setattr(download.time, "sleep", slept.append)
    use_server(broken_address)
    assert advice in refused(prepare.main, *argv)
    assert slept == pauses


def test_a_cache_that_cannot_be_written_is_named(address, refused, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "t.txt")
    message = refused(prepare.main, *VOCABULARY_CASE[0])
    assert " t.txt: " in message
    assert "Set TIKTOKEN_CACHE_DIR" in message


def test_certifi_provides_certificates_if_the_system_has_none(monkeypatch):
    """Python for macOS comes without certificates, so https failed until they were installed."""
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", "nowhere")
    assert len(download.tls_context().get_ca_certs()) > 50


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")
@each_case
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_stopped_download_leaves_no_partial_file_and_can_be_repeated(
    address, argv, downloads, advice, name
):
    Handler.faults = ["stall"]
    process = start_prepare(address, *argv)
    assert Handler.half_sent.acquire(timeout=60)
    signum = getattr(signal, name)
    process.send_signal(signum)
    _, message = process.communicate(timeout=60)
    if name == "SIGINT":
        assert process.returncode == 130
        assert message.strip() == "Interrupted."
        assert files_on_disk() == {}
    else:
        assert process.returncode == -signum
    assert not set(downloads) & set(files_on_disk())
    prepare.main(argv)
    for path in Path().glob("cache/.*.tmp"):  # tiktoken's cache has no lock, and nothing cleans it
        path.unlink()
    assert_complete(argv, downloads)


def test_concurrent_downloads_of_the_vocabulary_both_succeed(address):
    argv, downloads, _ = VOCABULARY_CASE
    Handler.faults = ["stall", "stall"]
    commands = [argv, ["other", *argv[1:]]]
    processes = [start_prepare(address, *command) for command in commands]
    for _ in processes:  # until each is in the middle of its download
        assert Handler.half_sent.acquire(timeout=60)
    Handler.resume.set()
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    files = files_on_disk()
    assert {name: files[name] for name in downloads} == downloads
    for command in commands:
        assert Dataset(Path("data", command[0])).tokens["train"] > 0


def test_a_second_prepare_is_refused_while_the_first_downloads(address):
    """Both downloaded the same text, and the last to finish replaced the files of the other."""
    argv, downloads, _ = CORPUS_CASE
    Handler.faults = ["stall"]
    first = start_prepare(address, *argv)
    assert Handler.half_sent.acquire(timeout=60)
    second = start_prepare(address, *argv)
    _, message = second.communicate(timeout=60)
    assert second.returncode == 2
    assert str(Path("data/served")) in message
    assert f"process {first.pid} on " in message
    Handler.resume.set()
    assert first.communicate(timeout=60)[1] == ""
    assert first.returncode == 0
    assert_complete(argv, downloads)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_full_disk_is_not_blamed_on_the_network(address):
    """A full disk was retried four times, with the advice to get the file another way."""
    process = start_prepare(address, "served", max_file_bytes=1000)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"({Path('data/served')})" in message
    assert "--input" not in message
    assert Handler.requests == ["/corpus"]
    assert files_on_disk() == {}
