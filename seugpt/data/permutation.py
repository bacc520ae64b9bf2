"""A random order of the windows of each epoch, without a list of them."""

import numpy as np

NUM_ROUNDS = 6  # of a Feistel network
MIN_BITS = 6  # with fewer, some orders of a few windows would be likelier than others
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, as in Fibonacci hashing


def permuted_windows(first, count, num_windows, seed):
    """Numbers `first` to `first + count` of an endless sequence of windows, int64 (count,).

    Each `num_windows` of the sequence are an epoch: a permutation of 0, ..., num_windows - 1, drawn
    from `seed` and the number of the epoch alone, so any part of it can be computed at any time.
    """
    windows = []
    last = first + count
    for epoch in range(first // num_windows, (last - 1) // num_windows + 1):
        start = max(first - epoch * num_windows, 0)
        stop = min(last - epoch * num_windows, num_windows)
        keys = np.random.SeedSequence((seed, epoch)).generate_state(NUM_ROUNDS, np.uint64)
        windows.append(permute(np.arange(start, stop, dtype=np.uint64), num_windows, keys))
    return np.concatenate(windows).astype(np.int64)


def permute(values, size, keys):
    """A permutation of 0, ..., size - 1, applied to `values`, uint64.

    A Feistel network permutes the numbers of as many bits as `size` needs. What falls outside is
    permuted again until it falls inside: "cycle walking" (Black and Rogaway 2002), which takes two
    rounds on average at most, except for a few windows.
    """
    num_bits = max((size - 1).bit_length(), MIN_BITS)
    values = feistel(values, num_bits, keys)
    while (outside := values >= size).any():
        values[outside] = feistel(values[outside], num_bits, keys)
    return values


def feistel(values, num_bits, keys):
    """A permutation of the numbers of `num_bits` bits, by an even number of keys.

    Each round changes one half by a hash of the other, and can be undone for any hash.
    """
    right_bits = np.uint64(num_bits // 2)
    left_mask = np.uint64((1 << num_bits - num_bits // 2) - 1)
    right_mask = np.uint64((1 << num_bits // 2) - 1)
    left, right = values >> right_bits, values & right_mask
    for key in keys:
        hashed = (right ^ key) * FACTOR  # modulo 2**64
        left, right = right, left ^ ((hashed ^ hashed >> 32) & left_mask)
        left_mask, right_mask = right_mask, left_mask
    return left << right_bits | right
