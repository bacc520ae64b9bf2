"""prepare.py --shard_tokens: shards from files of documents, interruptions, bad input, nodes."""

import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import prepare
import train
from seugpt.data import corpora, shard_workers
from seugpt.data.corpora import Corpus, HubFiles
from seugpt.data.dataset import Dataset
from seugpt.data.shard_plan import load_record
from seugpt.data.shard_preparation import ShardConfig, check_shard_options
from seugpt.data.shard_writer import DocumentEncoder, encode_unit
from seugpt.data.shards import TokenArray
from seugpt.data.text import CHUNK_CHARS
from seugpt.data.tokenizer import END_OF_TEXT, bpe_tokenizer, load_tokenizer
from seugpt.errors import DataError
from tests.helpers import ROOT, logged_values, resume_state, start_script, wait_until

TOKENIZER = bpe_tokenizer([*(bytes([i]) for i in range(256)), b" a", b"o "])
SHARD_TOKENS = 2000
OPTIONS = [
    "web",
    "--input=web",
    "--tokenizer=tokenizer.json",
    f"--shard_tokens={SHARD_TOKENS}",
]


def random_documents(count, seed=0):
    rng = random.Random(seed)
    words = "o menino viu a maçã e não comeu; 🦜 \n".split(" ")
    return [" ".join(rng.choices(words, k=rng.randrange(1, 100))) for _ in range(count)]


DOCUMENTS = {f"{name}": random_documents(60, seed) for seed, name in enumerate("abcd")}


def write_documents(path, texts):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": number, "text": text} for number, text in enumerate(texts)]
    if path.suffix == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    else:
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, path, row_group_size=25)


def write_corpus(suffix, documents=DOCUMENTS):
    """web/a.jsonl and so on, of which the last is for validation, and tokenizer.json."""
    for name, texts in documents.items():
        write_documents(f"web/{name}{suffix}", texts)
    Path("tokenizer.json").write_text(json.dumps({"tokenizer": TOKENIZER.spec()}))
    return [*OPTIONS, f"--val_input=web/{max(documents)}{suffix}"]


def use_hub(monkeypatch):
    """Make the files of web/ a corpus that prepare.py knows by name. Returns the options."""
    hub = HubFiles(
        str(Path("web").absolute()),
        "main",
        train=tuple(f"{name}.parquet" for name in sorted(DOCUMENTS)[:-1]),
        val=(f"{max(DOCUMENTS)}.parquet",),
    )
    monkeypatch.setitem(corpora.CORPORA, "web", Corpus("gpt2", hub=hub))
    return ["web", *OPTIONS[2:]]


@pytest.fixture
def in_process(monkeypatch):
    """No child processes, which take a second to start."""

    def run_workers(folder, plan, units, num_workers, bar):
        tokenizer = load_tokenizer(plan.tokenizer_spec)
        encoder = DocumentEncoder(tokenizer, plan.keep_crlf)
        for unit in units:
            encode_unit(folder, plan, unit, load_record(folder, unit), encoder, bar.add)
            bar.complete(unit, load_record(folder, unit))

    monkeypatch.setattr(shard_workers, "run_workers", run_workers)


def contents(folder="data/web"):
    """{name: bytes} of all files of a data set."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.suffix != ".lock"
    }


def read_meta(folder="data/web"):
    return json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))


def joined(documents):
    return "".join(END_OF_TEXT + text for text in documents)


# What is written


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_shards_hold_every_document_behind_a_separator(workspace, in_process, capsys, suffix):
    prepare.main(write_corpus(suffix))
    assert "web/d" not in capsys.readouterr().err
    dataset = Dataset("data/web")
    train_documents = [*DOCUMENTS["a"], *DOCUMENTS["b"], *DOCUMENTS["c"]]
    for split, documents in (("train", train_documents), ("val", DOCUMENTS["d"])):
        text = joined(documents)
        ids = dataset.ids[split][:]
        np.testing.assert_array_equal(ids, TOKENIZER.encode(text))
        assert dataset.bytes[split] == len(text.encode())
    assert dataset.tokenizer.spec() == TOKENIZER.spec()


def test_a_shard_ends_with_the_first_document_after_shard_tokens(workspace, in_process):
    prepare.main(write_corpus(".jsonl"))
    entries = read_meta()["splits"]["train"]["shards"]
    files = [entry["file"] for entry in entries]
    assert files == sorted(files)
    assert files[:2] == ["train_00000_0000.npy", "train_00000_0001.npy"]
    for unit, name in enumerate("abc"):
        shards = sorted(Path("data/web").glob(f"train_{unit:05d}_*.npy"))
        arrays = [np.load(path) for path in shards]
        assert len(arrays) > 2
        sizes = [len(TOKENIZER.encode(joined([text]))) for text in DOCUMENTS[name]]
        expected = [0]
        for size in sizes:
            if expected[-1] >= SHARD_TOKENS:
                expected.append(0)
            expected[-1] += size
        assert [len(array) for array in arrays] == expected
        assert {array.dtype for array in arrays} == {np.dtype("<u2")}
        assert {array[0] for array in arrays} == {TOKENIZER.token_id(END_OF_TEXT)}


def test_meta_json_and_the_records_describe_each_shard(workspace, in_process):
    prepare.main(write_corpus(".jsonl"))
    meta = read_meta()
    assert meta["source"] == "web"
    for split in ("train", "val"):
        for entry in meta["splits"][split]["shards"]:
            content = Path("data/web", entry["file"]).read_bytes()
            ids = np.load(Path("data/web", entry["file"]))
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()
            assert entry["tokens"] == len(ids)
            assert entry["largest_id"] == ids.max()
    record = json.loads(Path("data/web/records/train_00001.json").read_text())
    assert record["source"]["file"] == "b.jsonl"
    assert record["documents"] == len(DOCUMENTS["b"])
    ranges = [(shard["first_document"], shard["last_document"]) for shard in record["shards"]]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(DOCUMENTS["b"]) - 1
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(ranges))


def test_uint32_shards_for_large_vocabularies(workspace, in_process):
    ranks = [bytes([a, b]) for a in range(256) for b in range(256)]
    tokenizer = bpe_tokenizer([*(bytes([i]) for i in range(256)), *ranks[:65_400]])
    options = write_corpus(".jsonl")
    Path("tokenizer.json").write_text(json.dumps({"tokenizer": tokenizer.spec()}))
    prepare.main(options)
    array = np.load("data/web/val_00000_0000.npy")
    assert array.dtype == np.dtype("<u4")
    assert array.max() == tokenizer.vocab_size - 1


def test_a_document_cannot_forge_a_separator(workspace, in_process):
    documents = {"a": ["um " + END_OF_TEXT + " dois"] * 30, "b": ["fim"] * 9}
    prepare.main(write_corpus(".jsonl", documents))
    ids = Dataset("data/web").ids["train"][:]
    assert (ids == TOKENIZER.token_id(END_OF_TEXT)).sum() == 30
    assert TOKENIZER.decode_bytes(ids).decode() == joined(documents["a"])


def test_long_documents_and_windows_line_ends(workspace, in_process):
    documents = {"a": [" " * (3 * CHUNK_CHARS) + "\r\nfim"], "b": ["um\r\ndois"]}
    options = write_corpus(".jsonl", documents)
    prepare.main(options)
    text = TOKENIZER.decode_bytes(Dataset("data/web").ids["train"][:]).decode()
    assert text == joined([" " * (3 * CHUNK_CHARS) + "\nfim"])
    prepare.main(["crlf", *options[1:], "--keep_crlf=True"])
    text = TOKENIZER.decode_bytes(Dataset("data/crlf").ids["val"][:]).decode()
    assert text == joined(documents["b"])


def test_another_column_of_texts(workspace, in_process):
    write_corpus(".parquet")
    for path in Path("web").iterdir():
        table = pyarrow.parquet.read_table(path).rename_columns(["text", "content"])
        pyarrow.parquet.write_table(table, path)
    options = [*OPTIONS, "--val_input=web/d.parquet"]
    prepare.main([*options, "--field=content"])
    ids = Dataset("data/web").ids["val"][:]
    np.testing.assert_array_equal(ids, TOKENIZER.encode(joined(DOCUMENTS["d"])))


# Processes, interruptions, nodes


def undisturbed(argv):
    """The files of an undisturbed preparation by one process, which are then removed."""
    prepare.main([*argv, "--workers=1"])
    expected = contents()
    shutil.rmtree("data/web")
    assert len(expected) > 15
    return expected


@pytest.mark.parametrize("kind", [".jsonl", pytest.param(".parquet", marks=pytest.mark.slow)])
def test_two_processes_write_what_one_does(workspace, kind):
    argv = write_corpus(kind)
    expected = undisturbed(argv)
    prepare.main([*argv, "--workers=2"])
    assert contents() == expected


def test_the_package_datasets_reads_the_same_documents(workspace, monkeypatch, in_process):
    """The call is the hub's, with a folder for the name of the repository."""
    prepare.main(write_corpus(".parquet"))
    local = contents()
    shutil.rmtree("data/web")
    prepare.main(use_hub(monkeypatch))
    hub = contents()
    shards = [name for name in local if name.endswith(".npy")]
    assert {name: hub[name] for name in shards} == {name: local[name] for name in shards}
    assert read_meta()["source"] == f"{Path('web').absolute()}@main"


KILLED = """
import sys
from seugpt.data import corpora
from seugpt.data.corpora import Corpus, HubFiles
import prepare

if sys.argv[1] == "hub":
    train = tuple(f"{name}.parquet" for name in "abc")
    hub = HubFiles(sys.argv[2], "main", train, ("d.parquet",))
    corpora.CORPORA["web"] = Corpus("gpt2", hub=hub)
if __name__ == "__main__":
    prepare.main(sys.argv[3:])
"""


def npy_files():
    return list(Path("data/web").glob("*.npy"))


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
@pytest.mark.parametrize(
    "kind", [".jsonl", *(pytest.param(k, marks=pytest.mark.slow) for k in (".parquet", "hub"))]
)
def test_a_preparation_killed_three_times_ends_with_the_same_bytes(workspace, monkeypatch, kind):
    """kill -9 of the parent alone, whose workers end by themselves, and of all processes."""
    documents = {name: random_documents(3000, seed) for seed, name in enumerate("abcd")}
    argv = write_corpus(".jsonl" if kind == ".jsonl" else ".parquet", documents)
    if kind == "hub":
        argv = use_hub(monkeypatch)
    argv[argv.index(f"--shard_tokens={SHARD_TOKENS}")] = "--shard_tokens=20000"
    expected = undisturbed(argv)
    Path("killed.py").write_text(KILLED, encoding="utf-8")
    command = [kind, str(Path("web").absolute()), *argv, "--workers=2"]
    for attempt in range(3):
        count = len(npy_files())
        process = start_script(command, script="killed.py", start_new_session=True)
        wait_until(lambda: len(npy_files()) > count + 1, process)  # noqa: B023
        if attempt == 1:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not Path("data/web/meta.json").exists()
    process = start_script(command, script="killed.py")
    assert process.wait() == 0, Path("output").read_text(encoding="utf-8")
    assert contents() == expected


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "before it is sent a file"])
def test_the_death_of_a_worker_is_one_message(workspace, refused, monkeypatch, waits):
    argv = write_corpus(".jsonl")
    start = shard_workers.Worker.__init__

    def start_and_kill(self, folder, plan):
        start(self, folder, plan)
        self.process.kill()
        if waits:
            self.process.join()

    with monkeypatch.context() as patch:
        patch.setattr(shard_workers.Worker, "__init__", start_and_kill)
        message = refused(prepare.main, *argv, "--workers=1")
    assert "exit code -9" in message
    assert "--workers" in message


def test_nodes_share_the_source_files_without_communication(workspace, in_process, capsys):
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    expected = contents()
    shutil.rmtree("data/web")
    prepare.main([*argv, "--node=1", "--nodes=2"])
    assert "2 of 4 source files are left" in capsys.readouterr().out
    assert not Path("data/web/meta.json").exists()
    assert {path.name[:11] for path in npy_files()} == {"train_00001", "val_00000_0"}
    with pytest.raises(DataError, match=r"not finished.*prepare\.py"):
        Dataset("data/web", tokenizer="gpt2")
    prepare.main([*argv, "--node=0", "--nodes=2"])
    assert contents() == expected


def test_nodes_without_a_shared_folder(workspace, in_process):
    """Their files are copied into one folder, where the command finds all of them."""
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    expected = contents()
    shutil.rmtree("data/web")
    for node in range(2):
        prepare.main([*argv, f"--node={node}", "--nodes=2"])
        Path("data/web").rename(f"node-{node}")
    for node in range(2):
        shutil.copytree(f"node-{node}", "data/web", dirs_exist_ok=True)
    prepare.main(argv)
    assert contents() == expected


# Bad input


def test_empty_documents_are_left_out_with_a_note(workspace, in_process, capsys):
    documents = {
        "a": ["", *DOCUMENTS["a"], "", ""],
        "b": ["", ""],
        "c": DOCUMENTS["c"],
        "d": DOCUMENTS["d"],
    }
    prepare.main(write_corpus(".jsonl", documents))
    assert "note: 5 of 185 documents are empty" in capsys.readouterr().out
    ids = Dataset("data/web").ids["train"][:]
    expected = TOKENIZER.encode(joined(DOCUMENTS["a"] + DOCUMENTS["c"]))
    np.testing.assert_array_equal(ids, expected)
    before = contents()
    prepare.main([*OPTIONS, "--val_input=web/d.jsonl"])
    assert contents() == before


def truncate(path, size=None):
    os.truncate(path, Path(path).stat().st_size // 2 if size is None else size)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda: write_documents("web/b.parquet", []), "no column 'text'"),
        (lambda: truncate("web/b.parquet"), "cannot be read as Parquet"),
        (lambda: truncate("web/b.parquet", 0), "cannot be read as Parquet"),
        (lambda: Path("web/README.md").write_text("Web."), "README.md"),
    ],
)
def test_files_that_cannot_be_read_are_found_before_anything_is_written(
    workspace, refused, damage, words
):
    argv = write_corpus(".parquet")
    damage()
    message = refused(prepare.main, *argv)
    assert words in message
    assert "web/" in message
    assert not list(Path("data").glob("*"))


def test_a_parquet_file_without_the_column_names_those_it_has(workspace, refused):
    argv = write_corpus(".parquet")
    message = refused(prepare.main, *argv, "--field=content")
    assert "web/a.parquet has no column 'content'; it has id, text" in message
    assert "--field=COLUMN" in message


@pytest.mark.parametrize("option", ["input", "val_input"])
def test_a_missing_file_is_named(workspace, refused, option):
    argv = [*write_corpus(".jsonl"), f"--{option}=web/nothing.jsonl"]
    assert "cannot read web/nothing.jsonl" in refused(prepare.main, *argv)
    assert not list(Path("data").glob("*"))


def test_validation_must_leave_files_for_training(workspace, refused):
    argv = write_corpus(".jsonl")
    message = refused(prepare.main, *argv, "--val_input=web")
    assert "val_input=web leaves no file" in message


def test_a_bad_document_ends_the_run_and_costs_nothing_but_its_file(workspace, refused):
    """Here in real processes: the error of a child is the message of the command."""
    argv = write_corpus(".jsonl")
    good = Path("web/c.jsonl").read_text(encoding="utf-8")
    Path("web/c.jsonl").write_text(good + '{"text": 5}\n', encoding="utf-8")
    message = refused(prepare.main, *argv, "--workers=1")
    assert "web/c.jsonl: record 61 has no text in the field 'text', but int" in message
    written = {path: path.stat().st_mtime_ns for path in npy_files() if "00002" not in path.name}
    assert len(written) > 5
    Path("web/c.jsonl").write_text(good, encoding="utf-8")
    prepare.main([*argv, "--workers=1"])
    assert {path: path.stat().st_mtime_ns for path in written} == written
    ids = Dataset("data/web").ids["train"][:]
    expected = TOKENIZER.encode(joined(DOCUMENTS["a"] + DOCUMENTS["b"] + DOCUMENTS["c"]))
    np.testing.assert_array_equal(ids, expected)


def test_a_source_file_that_became_shorter_leaves_no_old_shards(workspace, in_process):
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    write_documents("web/b.jsonl", DOCUMENTS["b"][:20])
    prepare.main(argv)
    again = contents()
    shutil.rmtree("data/web")
    prepare.main(argv)
    assert contents() == again


def test_a_source_file_that_changes_while_it_is_read_is_refused(
    workspace, refused, monkeypatch, in_process
):
    argv = write_corpus(".jsonl")
    write_shard = sys.modules["seugpt.data.shard_writer"].write_shard

    def write_and_change(path, *arguments):
        if path.name.startswith("train_00001"):
            write_documents("web/b.jsonl", DOCUMENTS["a"] * 2)
        return write_shard(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("seugpt.data.shard_writer.write_shard", write_and_change)
        assert "b.jsonl changed while it was read" in refused(prepare.main, *argv)
    prepare.main(argv)
    expected = TOKENIZER.encode(joined(DOCUMENTS["a"] * 3 + DOCUMENTS["c"]))
    np.testing.assert_array_equal(Dataset("data/web").ids["train"][:], expected)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "change, words",
    [
        (["--shard_tokens=3000"], "shard_tokens=2000 then, shard_tokens=3000 now"),
        (["--tokenizer=other.json"], "another tokenizer"),
        (["--val_input=web/c.jsonl"], "source files"),
        (["--keep_crlf=True"], "keep_crlf=False then"),
    ],
)
def test_other_settings_are_refused_for_what_was_begun(
    workspace, refused, in_process, finished, change, words
):
    argv = write_corpus(".jsonl")
    other = bpe_tokenizer([bytes([i]) for i in range(256)])
    Path("other.json").write_text(json.dumps({"tokenizer": other.spec()}))
    prepare.main(argv if finished else [*argv, "--nodes=2"])
    before = contents()
    message = refused(prepare.main, *argv, *change)
    assert words in message
    assert f"delete the folder {Path('data/web')}" in message
    assert contents() == before


def test_shards_and_token_files_do_not_mix(workspace, refused, in_process):
    argv = write_corpus(".jsonl")
    Path("t.txt").write_text("abc" * 30)
    prepare.main(["web", "--input=t.txt"])
    assert "has a data set already" in refused(prepare.main, *argv)
    shutil.rmtree("data/web")
    prepare.main(argv)
    assert "is for shards" in refused(prepare.main, "web", "--input=t.txt")
    assert Dataset("data/web").tokens["val"] > 100


def test_a_full_disk_is_named_and_the_next_run_goes_on(workspace, refused, monkeypatch, in_process):
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    expected = contents()
    shutil.rmtree("data/web")
    fsync = os.fsync
    count = itertools.count()

    def full(descriptor):
        if next(count) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = refused(prepare.main, *argv)
    assert f"No space left on device ({Path('data/web')}" in message
    assert len(npy_files()) > 3
    prepare.main(argv)
    assert contents() == expected


@pytest.mark.parametrize("package, kind", [("datasets", "hub"), ("pyarrow", ".parquet")])
def test_a_missing_package_is_named_with_its_install_command(
    workspace, refused, monkeypatch, in_process, package, kind
):
    argv = write_corpus(".parquet")
    if kind == "hub":
        argv = use_hub(monkeypatch)
    monkeypatch.setitem(sys.modules, package, None)
    required = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")
    [requirement] = re.findall(rf"^{package}==\S+", required, re.MULTILINE)
    assert f"python -m pip install {requirement}" in refused(prepare.main, *argv)


def test_what_the_package_datasets_cannot_read_is_one_message(
    workspace, refused, monkeypatch, in_process
):
    write_corpus(".parquet")
    argv = use_hub(monkeypatch)
    truncate("web/b.parquet")
    message = refused(prepare.main, *argv)
    assert "cannot read b.parquet of " in message
    assert "--input=FOLDER" in message
    assert len(npy_files()) > 2


def test_the_corpora_of_the_hub_are_pinned():
    for name in ("tinystories", "openwebtext", "fineweb_edu"):
        hub = corpora.CORPORA[name].hub
        assert re.fullmatch(r"[0-9a-f]{40}", hub.revision)
        assert hub.train and hub.val
        assert not set(hub.train) & set(hub.val)
        config = prepare.PrepareConfig(name=name)
        assert check_shard_options(config, ShardConfig(), needs_text=False)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--tokenizer=bpe"], "tokenizer=bpe: shards need one that exists: --tokenizer=gpt2"),
        (["--node=2", "--nodes=2"], "node=2 must be less than nodes=2"),
        (["--val_fraction=0.2"], "val_fraction=0.2"),
        (["--shard_tokens=0"], "shard_tokens=0: must be at least 1"),
        (["--shard_tokens=None", "--workers=2"], "--shard_tokens=1e8"),
        (["--shard_tokens=None", "--nodes=2"], "--shard_tokens=1e8"),
    ],
)
def test_options_that_do_not_go_together(workspace, refused, argv, words):
    message = refused(prepare.main, *write_corpus(".jsonl"), *argv)
    assert words in message
    assert not list(Path("data").glob("*"))


def test_options_that_shards_need(refused):
    message = refused(prepare.main, "web", "--input=web", "--shard_tokens=2000")
    assert "input=web, val_input=None" in message
    assert "tokenizer=None: shards need one that exists: --tokenizer=gpt2" in message
    message = refused(prepare.main, "fineweb_edu", "--val_input=v.parquet")
    assert "val_input=v.parquet: fineweb_edu has validation files" in message


# Training on shards


@pytest.fixture
def no_loss_curve(monkeypatch):
    monkeypatch.setattr(train, "draw_loss_curve", lambda log: None)


def test_training_on_shards_is_training_on_their_tokens(
    workspace, run, in_process, no_loss_curve, monkeypatch
):
    """It neither scans them at its start nor depends on how they are cut."""
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    prepare.main(["one", *argv[1:], "--shard_tokens=1e8"])
    assert len(list(Path("data/one").glob("*.npy"))) == 4
    monkeypatch.setattr(TokenArray, "chunks", None)  # the scan
    for name in ("web", "one"):
        train.main(run(dataset=name, out_dir=name, max_iters=4, eval_interval=2))
    assert logged_values("web", "loss") == logged_values("one", "loss")
    assert len(logged_values("web", "loss")) == 4


def test_a_recorded_id_beyond_the_vocabulary_is_refused(workspace, in_process):
    prepare.main(write_corpus(".jsonl"))
    dataset = Dataset("data/web")
    dataset.check(TOKENIZER.vocab_size, 16)
    with pytest.raises(DataError, match=r"train_00000_0000\.npy has the token id 258"):
        dataset.check(TOKENIZER.vocab_size - 1, 16)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 2),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        Path.unlink,
        flip,
    ],
    ids=["cut", "empty", "zeros", "missing", "flipped"],
)
def test_a_damaged_shard_is_named_and_the_same_command_restores_it(workspace, in_process, damage):
    argv = write_corpus(".jsonl")
    prepare.main(argv)
    before = contents()
    damage(Path("data/web/train_00001_0001.npy"))
    with pytest.raises(DataError, match=r"train_00001_0001\.npy.*prepare\.py command") as error:
        Dataset("data/web")
    assert "\n" not in str(error.value)
    prepare.main(argv)
    assert contents() == before
    Dataset("data/web")


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../web/train_00000_0000.npy"},
        {"file": 5},
        {"largest_id": "258"},
        {"tokens": None},
        {"fingerprint": "0"},
    ],
)
def test_a_damaged_entry_of_meta_json_is_refused(workspace, in_process, change):
    prepare.main(write_corpus(".jsonl"))
    meta = read_meta()
    meta["splits"]["train"]["shards"][0].update(change)
    Path("data/web/meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"prepare\.py"):
        Dataset("data/web")


def test_an_epoch_of_a_permutation_trains_on_each_window_once(workspace, in_process):
    prepare.main(write_corpus(".jsonl"))
    dataset = Dataset("data/web")
    num_windows = (dataset.tokens["train"] - 1) // 16
    batches = [dataset.permuted_batch("train", index, 8, 16, 1337) for index in range(num_windows)]
    x = np.concatenate([x for x, _ in batches])
    y = np.concatenate([y for _, y in batches])
    windows = dataset.ids["train"][: num_windows * 16].astype(np.int64).reshape(-1, 16)
    for epoch in range(8):
        rows = x[epoch * num_windows : (epoch + 1) * num_windows]
        assert sorted(rows.tolist()) == sorted(windows.tolist())
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])


def test_a_resumed_permutation_goes_on_where_it_was(tiny, run, no_loss_curve):
    options = {"sampling": "permutation", "batch_size": 16}  # 10 steps are an epoch
    train.main(run(**options, out_dir="whole"))
    train.main(run(**options, max_iters=5))
    train.main(["--init_from=resume", "--out_dir=out", "--max_iters=10"])
    assert logged_values("out", "loss") == logged_values("whole", "loss")
    for key, value in resume_state("out")["model"].items():
        assert value.equal(resume_state("whole")["model"][key])
    train.main(run(out_dir="random"))
    assert logged_values("random", "loss") != logged_values("whole", "loss")
