"""The thread that generates: requests from the web server in, tokens out.

The event loop submits requests and awaits their tokens; one thread owns the models' batches and
gives each of them a step in turn.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from functools import partial

from seugpt.errors import UserError, one_line
from seugpt.server.batch import Batch, Row
from seugpt.server.errors import ApiError, busy_error
from seugpt.threads import start_in_own_thread

RELOAD_SECONDS = 2.0  # between looks at the checkpoint of a run in training


class Engine:
    """Models, the first of which is the default, and the requests that they work on."""

    def __init__(self, models, limits, threads=None):
        """models: {name: LoadedModel}; threads: a CpuThreads, told of each step."""
        self.models = models
        self.limits = limits
        self.threads = threads
        self.counts = Counter()  # for /metrics
        self.changed = threading.Condition()
        self.batches = {}  # {LoadedModel: Batch}, of those with requests
        self.events = []  # of this step, for the event loop
        self.is_closed = False
        self.thread = None
        self.loop = None

    # Called from the event loop

    def start(self):
        self.loop = asyncio.get_running_loop()
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()

    def close(self):
        """End the thread; what is still in work fails."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()
        self.thread.join()

    def find(self, name):
        """The LoadedModel of a name, the default for None. Raises ApiError."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"there is no model {name!r} here; it serves {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[name]

    def num_waiting(self):
        return sum(len(batch.waiting) for batch in list(self.batches.values()))

    def num_running(self):
        rows = [row for batch in list(self.batches.values()) for row in list(batch.rows)]
        return sum(not row.is_over for row in rows)

    def submit(self, requests, streams=True):
        """A Submission of several requests, all or none of which are taken.

        `streams`: whether each token is wanted at once, or all of a text at its end, which costs
        less. Raises ApiError if the queue is full.
        """
        submission = Submission()
        deadline = time.monotonic() + self.limits.max_seconds
        loaded = [self.find(request.model) for request in requests]
        with self.changed:
            if self.is_closed:
                raise busy_error("the server is shutting down")
            if self.num_waiting() + len(requests) > self.limits.max_queue:
                self.counts["refused"] += 1
                raise busy_error(
                    f"{self.num_waiting()} texts are waiting and {len(requests)} more exceed "
                    f"max_queue={self.limits.max_queue}; try again in a second"
                )
            for index, (model, request) in enumerate(zip(loaded, requests, strict=True)):
                row = Row(request, index, self.deliver, deadline, submission.queue, streams)
                submission.rows.append(row)
                if model not in self.batches:
                    self.batches[model] = Batch(model, self.limits.max_rows)
                self.batches[model].waiting.append(row)
            self.counts["prompt_tokens"] += sum(len(request.prompt_ids) for request in requests)
            self.changed.notify()
        return submission

    async def generate(self, request):
        """Yields the Tokens of one request. Closing the generator frees its row.

        Raises ApiError.
        """
        submission = self.submit([request])
        try:
            async for _, token in submission.tokens():
                yield token
        finally:
            submission.cancel()

    # Called from the engine's thread

    def run(self):
        """Work until close(); whatever ends it, no client waits in vain."""
        try:
            while busy := self.next_batches():
                for batch in busy:
                    self.advance(batch)
                self.flush()
        finally:
            with self.changed:
                self.is_closed = True
            for batch in self.batches.values():
                self.fail([*batch.rows, *batch.waiting], "the server is shutting down")
            self.flush()

    def next_batches(self):
        """The batches with work to do, once there are any; an empty list after close()."""
        with self.changed:
            while not self.is_closed:
                busy = [batch for batch in self.batches.values() if not batch.is_idle()]
                if busy:
                    return busy
                served = self.models.values()  # without those that were loaded again
                self.batches = {key: self.batches[key] for key in self.batches if key in served}
                self.changed.wait()
            return []

    def advance(self, batch):
        """One step of a batch, which a row that waits may join first.

        If that fails its request does, if the step fails all requests do, and the server goes on.
        """
        start = time.perf_counter()
        try:
            self.admit_next(batch)
            self.counts["tokens"] += batch.advance()
        except Exception as error:  # memory that has run out, or a bug
            self.fail(batch.rows, f"generation failed: {one_line(error)}")
            traceback.print_exc(file=sys.stderr)
            batch.restart()
        self.counts["busy_seconds"] += time.perf_counter() - start
        if self.threads is not None:
            self.threads.tick()

    def admit_next(self, batch):
        with self.changed:
            joining = batch.next_waiting()
        if joining is None:
            return
        try:
            batch.admit(joining)
        except Exception as error:
            self.fail([joining], f"the prompt cannot be read: {one_line(error)}")
            traceback.print_exc(file=sys.stderr)

    def fail(self, rows, message):
        for row in rows:
            if not row.is_over:
                row.is_over = True
                self.deliver(row, ApiError(500, message))

    def deliver(self, row, item):
        """Collect a Token or an exception for the client of a row."""
        row.undelivered.append(item)
        if row.streams or isinstance(item, Exception) or item.finish_reason:
            self.events.append((row, row.undelivered))
            row.undelivered = []

    def flush(self):
        """Hand all events of a step to the event loop at once: waking it is what costs time."""
        events = self.events
        self.events = []
        if events:
            self.loop.call_soon_threadsafe(partial(hand_out, events))


def hand_out(events):
    for row, items in events:
        row.queue.put_nowait((row.index, items))


class Submission:
    """Requests in work, and the queue of what they report."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.rows = []

    async def tokens(self):
        """Yields (index of the request, Token), as they come. Raises ApiError."""
        unfinished = len(self.rows)
        while unfinished:
            index, items = await self.queue.get()
            for item in items:
                if isinstance(item, Exception):
                    raise item
                yield index, item
                unfinished -= item.finish_reason is not None

    def end(self, error):
        """Let tokens() raise an exception."""
        self.queue.put_nowait((None, [error]))

    def cancel(self):
        """Free the rows that are still in work, within a token."""
        for row in self.rows:
            row.is_over = True


async def reload_models(engine, loader):
    """Load a model again whenever its checkpoint has been written anew, for as long as it runs."""
    while True:
        await asyncio.sleep(RELOAD_SECONDS)
        for name, loaded in list(engine.models.items()):
            mtime_ns = loader.changed(loaded)
            if mtime_ns is None:
                continue
            try:
                loading = start_in_own_thread(loader.load, name, loaded.path)
                engine.models[name] = await asyncio.wrap_future(loading)
                print(f"{name}: step {engine.models[name].step:,}", file=sys.stderr, flush=True)
            except UserError as error:  # until the file changes again
                loaded.mtime_ns = mtime_ns
                print(f"{name}: step {loaded.step:,} goes on; {error}", file=sys.stderr, flush=True)
