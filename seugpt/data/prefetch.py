"""Read the next batch in a thread while the current one is trained on."""

from concurrent.futures import ThreadPoolExecutor


class Prefetcher:
    """prefetcher(split, index, ...) is read(split, index, ...), read one batch ahead.

    `read` is a pure function, such as Dataset.batch, so reading ahead changes no batch. The next
    index is guessed to be as far ahead as this one is from the last; a wrong guess costs time
    alone. An error of the reader is raised by the call that asks for its batch.
    """

    def __init__(self, read):
        self.read = read
        self.thread = ThreadPoolExecutor(1, "prefetch")
        self.arguments = None  # of the batch that is being read
        self.batch = None  # its Future
        self.last_index = None

    def __call__(self, split, index, *shape):
        arguments = (split, index, *shape)
        is_ahead = arguments == self.arguments
        batch = self.batch.result() if is_ahead else self.read(*arguments)
        stride = 0 if self.last_index is None else index - self.last_index
        self.last_index = index
        if stride > 0:
            self.arguments = (split, index + stride, *shape)
            self.batch = self.thread.submit(self.read, *self.arguments)
        return batch

    def close(self):
        """End the thread, once the batch that it reads is there."""
        self.thread.shutdown(cancel_futures=True)
