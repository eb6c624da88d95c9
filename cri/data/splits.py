"""Held-out designs: a boolean train mask over all case ids, plus what made it.

Squares are given by a centre in grid coordinates and a half side h: (2h + 1)^2 cells (the paper
calls 2h the side length). Random splits use the permutation that torch's `random_split` draws.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cri.checks import check_arguments, checked
from cri.errors import CriError, out_of_range, unknown_name
from cri.tasks import LengthAddition, Task
from cri.tasks.many_rules import ManyRules


@dataclass(frozen=True, eq=False)
class Split:
    """Which cases are trained on.

    Attributes:
        train: mask over case ids, True for training cases.
        info: what made it, as `make_split` takes it: `{"kind": ..., **parameters}`.
        squares: (row, column, half side) of each held-out square, for frames on maps.
    """

    train: Bool[np.ndarray, " case"]
    info: Mapping[str, Any]
    squares: tuple[tuple[int, int, int], ...] = field(default=())

    @property
    def test(self) -> Bool[np.ndarray, " case"]:
        return ~self.train

    @property
    def train_ids(self) -> Int[np.ndarray, " train"]:
        return np.flatnonzero(self.train)

    @property
    def test_ids(self) -> Int[np.ndarray, " test"]:
        return np.flatnonzero(self.test)


@checked
def in_square(task: Task, center: Sequence[int], half_side: int) -> Bool[np.ndarray, " case"]:
    """Mask of the cases within `half_side` of `center` in both grid coordinates."""
    return np.abs(task.coords - np.asarray(center)).max(axis=1) <= half_side


@checked
def depth(task: Task, center: Sequence[int], half_side: int) -> Int[np.ndarray, " case"]:
    """Rings from a square's border inwards: 0 on the border ring, `half_side` at the centre,
    negative outside (-1 is the first ring around the square)."""
    return half_side - np.abs(task.coords - np.asarray(center)).max(axis=1)


@checked
def square(task: Task, center: Sequence[int] | None = None, half_side: int = 10, existing_only: bool = False) -> Split:
    """One square held out (Leave-Square-Out); every cell of it must be a case of the grid, unless `existing_only` holds
    out those that are (the public chicken & rabbit square at (75, 50) with half side 10: 432 of 441)."""
    center = tuple(task.center if center is None else center)
    if len(center) != 2:
        raise out_of_range("split.center", center, "two grid coordinates")
    if half_side < 0:
        raise out_of_range("split.half_side", half_side, "non-negative")
    held_out = in_square(task, center, half_side)
    if not held_out.any() or (held_out.sum() != (2 * half_side + 1) ** 2 and not existing_only):
        raise CriError(
            f"split.center, split.half_side: the square at {center} with half side {half_side} leaves the "
            f"grid of {task.name}: {int(held_out.sum())} of its {(2 * half_side + 1) ** 2} cells are cases"
            + ("; existing_only=true holds those out" if held_out.any() else "")
        )
    info: dict[str, Any] = {"kind": "square", "center": list(center), "half_side": half_side}
    if existing_only:
        info["existing_only"] = True
    return Split(~held_out, info, ((*center, half_side),))


@checked
def squares(
    task: Task,
    n: int = 3,
    seed: int = 42,
    min_half_side: int | None = None,
    max_half_side: int | None = None,
    centers: Sequence[Sequence[int]] | None = None,
    half_sides: Sequence[int] | None = None,
) -> Split:
    """Several non-overlapping squares: given by `centers` and `half_sides`, or drawn with `seed`.

    Drawn half sides are uniform in `min_half_side..max_half_side` (the paper's 10..19, and 5..14 for
    chicken & rabbit). Raises `CriError` when squares overlap, leave the grid, or do not fit.
    """
    if centers is None and n < 1:
        raise out_of_range("split.n", n, "at least 1")
    if (centers is None) != (half_sides is None):
        raise CriError("split.centers, split.half_sides: give both or neither")
    chosen: list[tuple[int, int, int]] = []
    if centers is not None and half_sides is not None:
        if len(centers) != len(half_sides):
            raise CriError(f"split.half_sides: {len(half_sides)} values for {len(centers)} centers")
        for centre, h in zip(centers, half_sides, strict=True):
            square(task, centre, h)  # raises for what is no point, and where it leaves the grid
            row, col = centre
            for other in chosen:
                if _overlap(other, (row, col, h)):
                    raise CriError(f"split.centers: the squares at {other[:2]} and {(row, col)} overlap")
            chosen.append((row, col, h))
        info: dict[str, Any] = {"centers": [list(c) for c in centers], "half_sides": list(half_sides)}
    else:
        low = task.square_sides[0] if min_half_side is None else min_half_side
        high = task.square_sides[1] if max_half_side is None else max_half_side
        if not 0 <= low <= high:
            raise out_of_range("split.min_half_side", low, f"in 0..{high}")
        rng = np.random.default_rng(seed)
        coords = task.coords
        for _ in range(10_000):
            if len(chosen) == n:
                break
            h = int(rng.integers(low, high + 1))
            row, col = map(int, coords[rng.integers(len(coords))])
            candidate = (row, col, h)
            inside = in_square(task, (row, col), h).sum() == (2 * h + 1) ** 2
            if inside and not any(_overlap(candidate, other) for other in chosen):
                chosen.append(candidate)
        if len(chosen) < n:
            raise CriError(f"split.n: {n} non-overlapping squares of half side {low}..{high} do not fit {task.name}")
        info = {"n": n, "seed": seed, "min_half_side": low, "max_half_side": high}
    held_out = np.zeros(task.n_cases, dtype=bool)
    for row, col, h in chosen:
        held_out |= in_square(task, (row, col), h)
    return Split(~held_out, {"kind": "squares", **info}, tuple(chosen))


def _overlap(p: tuple[int, int, int], q: tuple[int, int, int]) -> bool:
    return max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= p[2] + q[2]


@checked
def random(task: Task, fraction: float = 0.7, seed: int = 42) -> Split:
    """A random `fraction` of the cases is trained on, by the permutation of torch's `random_split`."""
    if not 0 < fraction < 1:
        raise out_of_range("split.fraction", fraction, "between 0 and 1")
    import torch  # imported here so that command lines answer --help without it

    # random_split(range(n), [k, n - k], generator) takes the first k of this permutation
    order = torch.randperm(task.n_cases, generator=torch.Generator().manual_seed(seed)).numpy()
    train = np.zeros(task.n_cases, dtype=bool)
    train[order[: int(fraction * task.n_cases)]] = True
    return Split(train, {"kind": "random", "fraction": fraction, "seed": seed})


def _lines(task: Task, axis: int, kind: str, n: int, seed: int) -> Split:
    values = np.unique(task.coords[:, axis])
    if not 0 < n < len(values):
        raise out_of_range("split.n", n, f"in 1..{len(values) - 1}")
    chosen = np.random.default_rng(seed).choice(values, size=n, replace=False)
    return Split(~np.isin(task.coords[:, axis], chosen), {"kind": kind, "n": n, "seed": seed})


@checked
def rows(task: Task, n: int = 4, seed: int = 42) -> Split:
    """`n` random whole rows (values of the first coordinate) held out."""
    return _lines(task, 0, "rows", n, seed)


@checked
def columns(task: Task, n: int = 4, seed: int = 42) -> Split:
    """`n` random whole columns (values of the second coordinate) held out."""
    return _lines(task, 1, "columns", n, seed)


@checked
def scattered(task: Task, n: int = 21, seed: int = 42) -> Split:
    """The crossings of `n` random rows with `n` random columns held out: as many cells as a square
    of half side (n - 1) / 2, not contiguous (a design the paper's authors tried and dropped)."""
    by_row, by_col = rows(task, n, seed), columns(task, n, seed + 1)
    return Split(by_row.train | by_col.train, {"kind": "scattered", "n": n, "seed": seed})


@checked
def lengths(task: Task, train_max: int = 3, test_fraction: float = 0.1, seed: int = 42) -> Split:
    """Numbers of up to `train_max` digits are trained on, except a random `test_fraction` of each length;
    all longer ones are held out. For `length_addition` only."""
    if not isinstance(task, LengthAddition):
        raise CriError(f"split: lengths needs the task length_addition, not {task.name}")
    if not task.min_digits <= train_max <= task.max_digits:
        raise out_of_range("split.train_max", train_max, f"in {task.min_digits}..{task.max_digits}")
    if not 0 <= test_fraction < 1:
        raise out_of_range("split.test_fraction", test_fraction, "in [0, 1)")
    train = task.n_digits <= train_max
    for n_digits in range(task.min_digits, train_max + 1):
        ids = np.flatnonzero(task.n_digits == n_digits)
        rng = np.random.default_rng([seed, n_digits])
        train[rng.permutation(ids)[: round(test_fraction * len(ids))]] = False
    return Split(train, {"kind": "lengths", "train_max": train_max, "test_fraction": test_fraction, "seed": seed})


@checked
def rules(task: Task) -> Split:
    """Cases of the training rules are trained on, except the `fresh` ones of each; all other rules' are held out. For
    `many_rules` only."""
    if not isinstance(task, ManyRules):
        raise CriError(f"split: rules needs the task many_rules, not {task.name}")
    return Split(~task.is_fresh, {"kind": "rules"})


SPLITS: dict[str, Callable[..., Split]] = {
    "square": square,
    "squares": squares,
    "random": random,
    "rows": rows,
    "columns": columns,
    "scattered": scattered,
    "lengths": lengths,
    "rules": rules,
}


@checked
def make_split(task: Task, kind: str, **params: Any) -> Split:
    """The split `kind` of `task`; raises `CriError` naming the field for unusable parameters."""
    if kind not in SPLITS:
        raise unknown_name("split", kind, SPLITS)
    valid = list(inspect.signature(SPLITS[kind]).parameters)[1:]
    for key in params:
        if key not in valid:
            raise unknown_name(f"parameter of split {kind}", key, valid)
    check_arguments("split", SPLITS[kind], params)
    split = SPLITS[kind](task, **params)
    if not (split.train.any() and split.test.any()):
        raise CriError(f"split: {kind} leaves no {'held-out' if split.train.any() else 'training'} cases of {task!r}")
    return split
