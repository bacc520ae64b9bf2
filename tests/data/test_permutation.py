"""The order of windows in an epoch: each once, computed for any part of it alone."""

from collections import Counter

import numpy as np
import pytest

from seugpt.data.permutation import permuted_windows


@pytest.mark.parametrize("num_windows", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("seed", [0, 2**62])
def test_each_epoch_has_each_window_once(num_windows, seed):
    for epoch in range(3):
        windows = permuted_windows(epoch * num_windows, num_windows, num_windows, seed)
        assert windows.dtype == np.int64
        assert sorted(windows.tolist()) == list(range(num_windows))


@pytest.mark.parametrize("num_windows", [1, 3, 100])
def test_any_part_of_the_sequence_can_be_computed_alone(num_windows):
    """Parts may end in the middle of an epoch, or span several."""
    whole = permuted_windows(0, 130, num_windows, seed=1)
    for first, count in ((0, 1), (7, 20), (99, 2), (50, 80)):
        part = permuted_windows(first, count, num_windows, seed=1)
        np.testing.assert_array_equal(part, whole[first : first + count])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [permuted_windows(0, 1000, 1000, seed) for seed in range(5)]
    orders += [permuted_windows(1000, 1000, 1000, seed=0)]
    for n, order in enumerate(orders):
        assert not np.array_equal(order, np.arange(1000))
        for other in orders[:n]:
            assert np.mean(order == other) < 0.02  # two random orders agree in one place of 1,000


def test_all_orders_are_about_equally_likely():
    """Of the 6 orders of 3 windows each comes 100 times in 600, give or take 9."""
    counts = Counter(tuple(permuted_windows(0, 3, 3, seed).tolist()) for seed in range(600))
    assert len(counts) == 6
    chi_squared = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_squared < 25  # 5 degrees of freedom; p = 1e-4


def test_neighbours_in_the_text_are_no_neighbours_in_the_order():
    windows = permuted_windows(0, 100_000, 100_000, seed=0)
    steps = np.abs(np.diff(windows))
    assert np.mean(steps) == pytest.approx(100_000 / 3, rel=0.02)  # of independent uniform numbers


def test_huge_data_sets_need_no_memory():
    """10 trillion windows; a list of them would take 80 TB."""
    windows = permuted_windows(7 * 10**12, 1000, 10**13, seed=0)
    assert len(set(windows.tolist())) == 1000
    assert windows.min() >= 0
    assert windows.max() < 10**13
