"""Operand pairs of a given number of digits, sampled without replacement, for length generalisation."""

from __future__ import annotations

import random

from cri.errors import out_of_range


def n_pairs(n_digits: int) -> int:
    """How many ordered pairs have a longer operand of exactly `n_digits` digits (0 has one digit)."""
    if n_digits < 1:
        raise out_of_range("n_digits", n_digits, "at least 1")
    below = 10 ** (n_digits - 1) if n_digits > 1 else 0
    return 10 ** (2 * n_digits) - below**2


def pair(index: int, n_digits: int) -> tuple[int, int]:
    """The pair number `index` in 0..n_pairs - 1: first those with a long `a`, then those where only `b` is."""
    if not 0 <= index < n_pairs(n_digits):
        raise out_of_range("index", index, f"in 0..{n_pairs(n_digits) - 1}")
    above = 10**n_digits
    below = above // 10 if n_digits > 1 else 0
    long_a = (above - below) * above
    if index < long_a:
        return below + index // above, index % above
    index -= long_a
    return index // (above - below), below + index % (above - below)


def sample_pairs(n_digits: int, n: int, seed: int) -> list[tuple[int, int]]:
    """`n` distinct pairs of Python ints whose longer operand has `n_digits` digits, uniform over all such
    pairs (so about one pair in five has operands of unequal length), in random order.

    Where fewer than `n` exist, all of them. The draw depends on `seed` and `n_digits` alone: asking for
    other lengths as well changes nothing.
    """
    rng = random.Random(f"pairs {seed} {n_digits}")
    total = n_pairs(n_digits)
    if total <= 4 * n:
        return [pair(i, n_digits) for i in rng.sample(range(total), min(n, total))]
    chosen: dict[int, None] = {}  # in order of drawing; beyond 2**63 random.sample cannot take the range
    while len(chosen) < n:
        chosen[rng.randrange(total)] = None
    return [pair(i, n_digits) for i in chosen]


def sample_mixed_pairs(n_digits: int, n: int, seed: int) -> list[tuple[int, int]]:
    """`n` distinct pairs whose longer operand has `n_digits` digits, the other, on either side, as many in three of ten
    pairs and otherwise any number from 1 to `n_digits`, equally likely. All pairs where these are few, in random order.
    """
    rng = random.Random(f"mixed pairs {seed} {n_digits}")
    total = n_pairs(n_digits)
    if total <= 4 * n:
        return sample_pairs(n_digits, n, seed)
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < n:
        other = n_digits if rng.random() < 0.3 else rng.randint(1, n_digits)
        numbers = [rng.randrange(10 ** (k - 1) if k > 1 else 0, 10**k) for k in (n_digits, other)]
        if rng.random() < 0.5:
            numbers.reverse()
        chosen[numbers[0], numbers[1]] = None
    return list(chosen)
