"""Batches read ahead in a thread: the same ones, the reader's errors, the end of the thread."""

import threading

import numpy as np
import pytest

import train
from seugpt.data.dataset import Dataset
from seugpt.data.prefetch import Prefetcher
from seugpt.errors import DataError
from tests.helpers import logged_values, nested_equal, resume_state, wait_until


class Reader:
    """Returns what it is asked for; `asked` has the indices so far."""

    def __init__(self):
        self.asked = set()

    def __call__(self, split, index, *shape):
        self.asked.add(index)
        return split, index, *shape


def test_the_next_batch_is_read_while_this_one_is_used():
    reader = Reader()
    read = Prefetcher(reader)
    read("train", 3, 8, 16)
    for index in range(7, 20, 4):
        assert read("train", index, 8, 16) == ("train", index, 8, 16)
        wait_until(lambda: index + 4 in reader.asked)  # noqa: B023
    read.close()
    assert reader.asked == {3, 7, 11, 15, 19, 23}


@pytest.mark.parametrize("indices", [[0, 1, 2, 9, 10, 3], [5, 5, 6, 6], [2, 1, 0], [0, 2, 3, 5]])
def test_a_wrong_guess_changes_no_batch(indices):
    read = Prefetcher(Reader())
    for index in indices:
        assert read("train", index) == ("train", index)
    assert read("val", indices[-1]) == ("val", indices[-1])
    read.close()


def test_batches_of_a_data_set_are_those_without_a_thread(tiny):
    dataset = Dataset("data/tiny")
    read = Prefetcher(dataset.batch)
    for index in range(20):
        batch = read("train", index, 4, 16, 1337)
        list(dataset.evaluation_batches("train", 2, 4, 16))  # reads the same file meanwhile
        np.testing.assert_array_equal(batch, dataset.batch("train", index, 4, 16, 1337))
    read.close()


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def read(split, index):
        if index == 3:
            raise DataError("index 3")
        return index

    prefetcher = Prefetcher(read)
    assert [prefetcher("train", index) for index in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="index 3"):
        prefetcher("train", 3)
    prefetcher.close()


def test_close_ends_the_thread():
    before = threading.active_count()
    read = Prefetcher(Reader())
    for index in range(3):
        read("train", index)
    assert threading.active_count() == before + 1
    read.close()
    assert threading.active_count() == before


def test_a_run_with_prefetched_batches_is_the_run_without(tiny, run, monkeypatch):
    """Losses and weights bit for bit, with evaluations and layer statistics in between."""
    monkeypatch.setattr(train, "draw_loss_curve", lambda log: None)
    options = {"dropout": 0.2, "snapshot_interval": 5}
    train.main(run(**options, out_dir="ahead"))

    class Direct:
        def __init__(self, read):
            self.read = read

        def __call__(self, *arguments):
            return self.read(*arguments)

        def close(self):
            pass

    monkeypatch.setattr(train, "Prefetcher", Direct)
    train.main(run(**options, out_dir="direct"))
    assert logged_values("ahead", "loss") == logged_values("direct", "loss")
    assert nested_equal(resume_state("ahead"), resume_state("direct"))
