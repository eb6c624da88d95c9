"""Leave-X-out at equal size: held-out sets of as many cases as a square has, that differ in what they share.

If a model rests on nearby cases, it fails where the held-out cases are contiguous (`square`, `band`); if on steps,
where a step is never trained (`step`); if it looks answers up, where none of an answer's cases is trained
(`answers`). `random` is the control. `scattered`, `rows` and `columns` are designs that the authors of
arXiv 2402.17709 tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Int

from cri.checks import checked
from cri.data.case_relations import informative_steps
from cri.data.splits import in_square, square
from cri.errors import CriError, out_of_range, unknown_name
from cri.tasks import Task

Held = Bool[np.ndarray, " case"]
_ORDERS = 500


def _fill(parts: Iterable[Int[np.ndarray, " _"]], n: int, rng: np.random.Generator, n_cases: int) -> Held:
    """Holds out whole parts, one after the other, until `n` cases are held out; the last part only as far as needed."""
    held = np.zeros(n_cases, dtype=bool)
    for part in parts:
        new = part[~held[part]]
        missing = n - int(held.sum())
        held[new if len(new) <= missing else rng.choice(new, size=missing, replace=False)] = True
        if held.sum() == n:
            break
    return held


def _by_value(values: Int[np.ndarray, " case"], order: Iterable[int]) -> list[Int[np.ndarray, " _"]]:
    return [np.flatnonzero(values == value) for value in order]


def _side(n: int) -> int:
    """Side length of a square of `n` cases that has a middle case; raises `CriError` for any other `n`."""
    side = math.isqrt(n)
    if side * side != n or side % 2 == 0:
        raise out_of_range("n", n, "the cases of a square: an odd number squared")
    return side


def _square(task: Task, n: int, rng: np.random.Generator) -> Held:
    return square(task, half_side=_side(n) // 2).test


def _random(task: Task, n: int, rng: np.random.Generator) -> Held:
    return _fill([np.arange(task.n_cases)], n, rng, task.n_cases)


def _lines(axis: int) -> Callable[[Task, int, np.random.Generator], Held]:
    def held(task: Task, n: int, rng: np.random.Generator) -> Held:
        values = task.coords[:, axis]
        return _fill(_by_value(values, rng.permutation(np.unique(values)).tolist()), n, rng, task.n_cases)

    return held


def _scattered(task: Task, n: int, rng: np.random.Generator) -> Held:
    rows, cols = (rng.permutation(np.unique(task.coords[:, axis])) for axis in (0, 1))
    crossings = (
        np.flatnonzero(np.isin(task.coords[:, 0], rows[:k]) & np.isin(task.coords[:, 1], cols[:k]))
        for k in range(1, 1 + max(len(rows), len(cols)))
    )
    return _fill(crossings, n, rng, task.n_cases)


def _consecutive(values: Int[np.ndarray, " case"], n: int, rng: np.random.Generator) -> Held:
    """Cases of consecutive values, around one drawn from the middle half of the values."""
    present = np.unique(values)
    middle = rng.choice(present[len(present) // 4 : len(present) - len(present) // 4])
    order = sorted(present.tolist(), key=lambda value: (abs(value - middle), value))
    return _fill(_by_value(values, order), n, rng, len(values))


def _band(task: Task, n: int, rng: np.random.Generator) -> Held:
    return _consecutive(task.coords[:, 0] - task.coords[:, 1], n, rng)


def _answers(task: Task, n: int, rng: np.random.Generator) -> Held:
    return _consecutive(task.values, n, rng)


def _step(task: Task, n: int, rng: np.random.Generator) -> Held:
    """All cases of some steps: of `_ORDERS` random orders of the steps, the one that comes closest to `n` cases."""
    cases, columns = informative_steps(task).nonzero()
    members = [cases[columns == column] for column in np.unique(columns)]
    if not members:
        raise CriError(f"task: {task.name} has no informative steps at this size; take a larger grid")
    best = np.zeros(task.n_cases, dtype=bool)
    for _ in range(_ORDERS):
        held = np.zeros(task.n_cases, dtype=bool)
        for column in rng.permutation(len(members)):
            held[members[column]] = True
            if abs(held.sum() - n) < abs(best.sum() - n):
                best = held.copy()
            if held.sum() >= n:
                break
    return best


DESIGNS: dict[str, Callable[[Task, int, np.random.Generator], Held]] = {
    "square": _square,
    "scattered": _scattered,
    "rows": _lines(0),
    "columns": _lines(1),
    "band": _band,
    "answers": _answers,
    "step": _step,
    "random": _random,
}


@checked
def mirror_designs(task: Task, n: int, place: int = 1) -> dict[str, Held]:
    """Squares of `n` cases held out away from the diagonal, all at one distance from it, which differ in whether the
    mirror images of their cases (the operands exchanged) are trained.

    - `apart`: one square; its image is trained;
    - `mirrored`: the square and its image;
    - `one_sided`: the square and another one side by side: as many cases, farther from what is trained, but all their
      images are.

    Place 1 is midway between the diagonal and the grid's corner, on the middle sum; place 2 next to the diagonal, on
    larger sums. Raises `CriError` for an `n` that is not an odd number squared, or too large for the grid, and for
    another place.
    """
    side, (row, col), away = _beside_the_diagonal(task, n, place)
    one = _block(task, row - away, col + away, n)
    return {
        "apart": one,
        "mirrored": one | _block(task, row + away, col - away, n),
        "one_sided": one | _block(task, row - away - side, col + away, n),
    }


@checked
def diagonal_square(task: Task, n: int, place: int = 1) -> Held:
    """The square of `n` cases on the diagonal that has the sums of `mirror_designs` at this place: it contains its own
    mirror images."""
    _, (row, col), _ = _beside_the_diagonal(task, n, place)
    return _block(task, row, col, n)


PLACES = (1, 2)


def _beside_the_diagonal(task: Task, n: int, place: int) -> tuple[int, tuple[int, int], int]:
    """Side of the squares, the place's point on the diagonal, and the squares' distance from it along either axis."""
    side = _side(n)
    low, high = task.coords.min(axis=0), task.coords.max(axis=0)
    row, col = ((low + high + 1) // 2).tolist()
    least = -(-side // 2)
    most = min(row - int(low[0]), int(high[1]) - col) - side // 2 - side
    if most < least:
        raise out_of_range("n", n, "small enough for two squares on one side of the diagonal")
    if place not in PLACES:
        raise out_of_range("place", place, f"one of {PLACES}")
    if place == 1:
        return side, (row, col), (least + most) // 2
    further = (int(high[1]) - col - least - side // 2) // 2
    return side, (row + further, col + further), least


def _block(task: Task, row: int, col: int, n: int) -> Held:
    held = in_square(task, (row, col), math.isqrt(n) // 2)
    if held.sum() != n:
        raise CriError(f"task: {task.name} has no whole square of {n} cases at {(row, col)}")
    return held


@checked
def leave_out(task: Task, design: str, n: int, seed: int) -> Bool[np.ndarray, " case"]:
    """Mask of `n` held-out cases.

    - `square`: contiguous in both directions, at the task's centre (needs an odd number squared);
    - `scattered`: the crossings of random rows with random columns;
    - `rows`, `columns`: random whole rows or columns, part of the last one;
    - `band`: along a diagonal (row - column constant): contiguous across it, every answer and step trained;
    - `answers`: all cases of consecutive answers, a band across the diagonal for a sum, part of the last one;
    - `step`: all cases of a few random informative steps (`case_relations.informative_steps`); `n` is met as nearly as
      whole steps allow;
    - `random`.

    Raises `CriError` for an unknown design or an `n` that does not fit.
    """
    if design not in DESIGNS:
        raise unknown_name("design", design, DESIGNS)
    if not 1 <= n < task.n_cases:
        raise out_of_range("n", n, f"in 1..{task.n_cases - 1}")
    return DESIGNS[design](task, n, np.random.default_rng([seed, list(DESIGNS).index(design)]))
