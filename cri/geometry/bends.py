"""How straight the cases of one answer lie: the bend of an iso-answer line where it crosses a square."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from cri.geometry.spectra import means_by_value
from cri.geometry.subject import Subject

REACH = 3


def unit_step(acts: Float[np.ndarray, "case d"], sums: Int[np.ndarray, " case"]) -> float:
    """How far activations move for one more in the sum: the median distance of means of neighbouring sums."""
    values, means = means_by_value(acts, sums)
    steps = np.linalg.norm(np.diff(means, axis=0), axis=1)[np.diff(values) == 1]
    return float(np.median(steps)) if len(steps) else float("nan")


def bends(subject: Subject, acts: Float[np.ndarray, "case d"]) -> Float[np.ndarray, " inside"]:
    """Of every held-out case of the square: its distance from the chord of its iso-answer line, in unit steps.

    The chord runs between the mean activations of the first `REACH` cells of the line on either side of the square
    (trained on, of equal sum); the case is compared with the point of the chord at its own a - b. NaN where a side
    has no such cell. Args: `acts` of every case, in id order.
    """
    a, b = subject.cases.T
    total, along = a + b, a - b
    step = unit_step(acts[subject.outside], total[subject.outside])
    out = np.full(len(subject.inside), np.nan)
    sides: dict[tuple[int, int], tuple[float, np.ndarray] | None] = {}
    rim = ~subject.square & subject.train
    for i, case in enumerate(subject.inside):
        ends = []
        for sign in (-1, 1):
            key = (int(total[case]), sign)
            if key not in sides:
                sides[key] = _end(acts, np.flatnonzero(rim & (total == total[case])), along * sign)
            ends.append(sides[key])
        low, high = ends
        if low is None or high is None:
            continue
        (d0, x0), (d1, x1) = (-low[0], low[1]), (high[0], high[1])
        share = (along[case] - d0) / (d1 - d0)
        out[i] = np.linalg.norm(acts[case] - (x0 + share * (x1 - x0))) / step
    return out


def _end(
    acts: Float[np.ndarray, "case d"], line: Int[np.ndarray, " line"], along: Int[np.ndarray, " case"]
) -> tuple[float, Float[np.ndarray, " d"]] | None:
    """The mean of the line's first cells beyond the square on the side where `along` is positive."""
    beyond = line[along[line] > 0]
    if not len(beyond):
        return None
    first = beyond[np.argsort(along[beyond])[:REACH]]
    return float(along[first].mean()), acts[first].mean(0)
