"""Prepare a data set in shards on several processes, and on several machines.

A worker is a child process that encodes one source file after another. This process hands out the
files, shows the progress, and at last writes meta.json.
"""

import hashlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import wait

from tqdm import tqdm

from seugpt.data.dataset_dir import RECORDS, SHARD_KEYS, write_meta
from seugpt.data.shard_plan import begin, load_record
from seugpt.data.shard_writer import DocumentEncoder, encode_unit
from seugpt.data.tokenizer import load_tokenizer
from seugpt.errors import DataError
from seugpt.files import acquire_lock, atomic_write, remove_temporaries

PROGRESS_SECONDS = 0.2  # between a worker's messages


def available_cores():
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """A child process, which encodes the units that it is sent; `pipe` tells when it answers."""

    def __init__(self, folder, plan):
        spawn = multiprocessing.get_context("spawn")  # a fork would lack the threads of pyarrow
        self.pipe, child_pipe = spawn.Pipe()
        args = (child_pipe, folder, plan)
        self.process = spawn.Process(target=serve, args=args, daemon=True)
        self.process.start()
        child_pipe.close()  # so that the end of the child is the end of the pipe

    def send(self, unit):
        """Raises DataError if the worker is dead."""
        try:
            self.pipe.send(unit)
        except OSError:
            raise self.death() from None

    def receive(self):
        """(unit or None, bytes encoded since the last message). Raises what ended the worker."""
        try:
            unit, num_bytes, error = self.pipe.recv()
        except (EOFError, OSError):  # OSError: in the middle of a message
            raise self.death() from None
        if error:
            raise error
        return unit, num_bytes

    def death(self):
        """The error of a worker whose pipe is closed."""
        self.process.join()
        return DataError(
            f"a worker process died (exit code {self.process.exitcode}), perhaps for want of "
            "memory. Nothing is lost: run the same command again, with fewer --workers"
        )


def serve(pipe, folder, plan):
    """In the worker: encode the units that come through the pipe, until it closes.

    It ends by os._exit: the threads of a stream that is not read to its end, as after an error,
    make the interpreter abort when it exits the usual way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    try:
        encode_units(pipe, folder, plan)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pass
    except Exception as error:  # raised again in the parent
        error.add_note(traceback.format_exc())
        pipe.send((None, 0, error))
    sys.stderr.flush()
    os._exit(0)


def encode_units(pipe, folder, plan):
    tokenizer = load_tokenizer(plan.tokenizer_spec, folder)
    encoder = DocumentEncoder(tokenizer, plan.keep_crlf)
    progress = Progress(pipe)
    while True:
        unit = pipe.recv()
        encode_unit(folder, plan, unit, load_record(folder, unit), encoder, progress.add)
        pipe.send((unit, progress.take(), None))


class Progress:
    """Tells the parent now and then how many bytes were encoded."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.num_bytes = 0
        self.sent_at = time.monotonic()

    def add(self, num_bytes):
        self.num_bytes += num_bytes
        now = time.monotonic()
        if now > self.sent_at + PROGRESS_SECONDS:
            self.sent_at = now
            self.pipe.send((None, self.take(), None))

    def take(self):
        num_bytes = self.num_bytes
        self.num_bytes = 0
        return num_bytes


class Bar:
    """A progress bar over bytes of text, whose total becomes exact as units are completed."""

    def __init__(self, units, records):
        """`records`: {name of the unit: Record}."""
        self.expected = {unit.name: unit.expected_bytes for unit in units}
        self.actual = {}
        done = sum(records[unit.name].total("bytes") for unit in units)
        for unit in units:
            if records[unit.name].is_complete:
                self.actual[unit.name] = records[unit.name].total("bytes")
        self.bar = tqdm(
            total=self.total(),
            initial=done,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        )

    def total(self):
        """The bytes of all units; None as long as nothing tells the size of one."""
        known = {**self.expected, **self.actual}
        sizes = [size for size in known.values() if size is not None]
        return sum(sizes) * len(known) // len(sizes) if sizes else None

    def add(self, num_bytes):
        self.bar.update(num_bytes)

    def complete(self, unit, record):
        self.actual[unit.name] = record.total("bytes")
        self.bar.total = self.total()
        line = f"{unit.name}  {record.total('tokens'):>13,} tokens  {unit.source.name}"
        self.bar.write(line, file=sys.stdout)


def write_shards(folder, plan, tokenizer, source, num_workers, node, num_nodes):
    """Write this node's shards, and meta.json once those of all nodes are there.

    `source`: where the text is from, for meta.json. Raises DataError; what is written by then
    stays, and the next call goes on from there.
    """
    begin(folder, plan)
    units = plan.units[node::num_nodes]
    with acquire_lock(folder / RECORDS / f"node-{node}-of-{num_nodes}.lock", folder):
        for unit in units:
            remove_temporaries(folder, unit.name)
            remove_temporaries(folder / RECORDS, unit.name)
        records = {unit.name: load_record(folder, unit) for unit in units}
        bar = Bar(units, records)
        missing = [unit for unit in units if not records[unit.name].is_complete]
        with bar.bar:
            run_workers(folder, plan, missing, min(num_workers, len(missing)), bar)
        finish(folder, plan, tokenizer, source)


def run_workers(folder, plan, units, num_workers, bar):
    """Encode `units` in child processes. Raises the first error of any of them."""
    workers = {}
    remaining = list(reversed(units))
    try:
        for _ in range(num_workers):
            worker = Worker(folder, plan)
            workers[worker.pipe] = worker
            worker.send(remaining.pop())
        while workers:
            for pipe in wait(list(workers)):
                unit, num_bytes = workers[pipe].receive()
                bar.add(num_bytes)
                if unit is None:
                    continue
                bar.complete(unit, load_record(folder, unit))
                if remaining:
                    workers[pipe].send(remaining.pop())
                else:
                    workers.pop(pipe).pipe.close()
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.join()


def finish(folder, plan, tokenizer, source):
    """Write meta.json if all units are complete; say what is missing else. Raises DataError."""
    records = {unit.name: load_record(folder, unit) for unit in plan.units}
    num_missing = sum(not record.is_complete for record in records.values())
    if num_missing:
        print(
            f"{num_missing:,} of {len(records):,} source files are left to other nodes. The last "
            f"node to finish writes {folder / 'meta.json'}; if they do not share this folder, copy "
            "theirs into it, then run this command again"
        )
        return
    splits = {}
    for split in ("train", "val"):
        splits[split] = merge([records[u.name] for u in plan.units if u.split == split])
        entry = splits[split]
        if entry["tokens"] < 2:
            raise DataError(f"the {split} split needs at least 2 tokens; use more text")
        print(
            f"{split:5}  {entry['bytes']:>17,} bytes  {entry['tokens']:>15,} tokens  "
            f"{len(entry['shards']):,} shards"
        )
    print_notes(list(records.values()))
    digests = [shard["sha256"] for split in splits.values() for shard in split["shards"]]
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
    with atomic_write(folder / "meta.json") as temporary:
        write_meta(temporary, tokenizer, splits, source, sha256)
    print(f"vocabulary: {tokenizer.vocab_size:,} tokens; written to {folder}")


def merge(records):
    """A split's entry in meta.json."""
    shards = [shard for record in records for shard in record.shards]
    return {
        "tokens": sum(record.total("tokens") for record in records),
        "bytes": sum(record.total("bytes") for record in records),
        "shards": [{key: shard[key] for key in SHARD_KEYS} for shard in shards],
    }


def print_notes(records):
    num_empty = sum(record.num_empty for record in records)
    num_documents = sum(record.num_documents for record in records)
    num_lost = sum(record.total("lost_bytes") for record in records)
    if num_empty:
        print(f"note: {num_empty:,} of {num_documents:,} documents are empty and were left out")
    if num_lost:
        print(
            f"note: the tokens leave out {num_lost:,} bytes of the text: the tokenizer drops or "
            "replaces characters"
        )
