"""Splits: the reference's counts, torch's permutation, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.data.splits import depth, in_square, make_split
from cri.errors import CriError
from cri.tasks import TASKS, make_task

REFERENCE = [json.loads(line) for line in (Path(__file__).parent / "reference_cases.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "square", "random"),
    [
        ("addition", 9559, 7000),
        ("mod_addition", 12328, 8938),
        ("base_addition", 9559, 7000),
        ("linear_regression", 9559, 7000),
        ("chicken_rabbit", 4609, 3535),
    ],
)
def test_train_counts_are_the_papers(name, square, random):
    task = make_task(name)
    assert int(make_split(task, "square").train.sum()) == square
    assert int(make_split(task, "random").train.sum()) == random


def test_public_parts_are_reproduced():
    masks = {name: make_split(make_task(name), "square").train for name in TASKS}
    for row in REFERENCE:
        assert masks[row["task"]][row["id"]] == (row["part"] == "train"), row


def test_random_split_is_torchs():
    task = make_task("addition", size=20)
    train, _ = torch.utils.data.random_split(range(400), [280, 120], generator=torch.Generator().manual_seed(42))  # pyright: ignore[reportArgumentType]
    assert set(make_split(task, "random").train_ids.tolist()) == set(train)


@given(row=st.integers(3, 16), col=st.integers(3, 16), h=st.integers(0, 3))
def test_square_is_what_it_says(row, col, h):
    task = make_task("addition", size=20)
    split = make_split(task, "square", center=(row, col), half_side=h)
    rings = depth(task, (row, col), h)
    assert int(split.test.sum()) == (2 * h + 1) ** 2
    assert np.array_equal(split.test, rings >= 0)
    assert rings[task.id_of(row, col)] == h


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["addition", "chicken_rabbit"]))
def test_drawn_squares_never_overlap_nor_leave_the_grid(seed, name):
    task = make_task(name)
    split = make_split(task, "squares", seed=seed)
    masks = [in_square(task, s[:2], s[2]) for s in split.squares]
    assert len(masks) == 3
    assert [int(m.sum()) for m in masks] == [(2 * s[2] + 1) ** 2 for s in split.squares]
    assert np.array_equal(sum(m.astype(int) for m in masks), split.test.astype(int))


def test_lines_and_scattered_cells():
    task = make_task("addition")
    assert int(make_split(task, "rows", n=3).test.sum()) == 300
    assert len(np.unique(task.coords[make_split(task, "columns", n=3).test, 1])) == 3
    scattered = make_split(task, "scattered")
    assert int(scattered.test.sum()) == 441
    assert len(np.unique(task.coords[scattered.test, 0])) == 21


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("sqare", {}, "choose from square"),
        ("square", {"halfside": 3}, "choose from center, half_side"),
        ("square", {"center": [2, 50]}, "leaves the grid"),
        ("square", {"center": [2]}, "two grid coordinates"),
        ("square", {"half_side": -1}, "non-negative"),
        ("squares", {"centers": [[30, 30], [33, 33]], "half_sides": [5, 5]}, "overlap"),
        ("squares", {"centers": [[30, 30]]}, "both or neither"),
        ("squares", {"n": 40}, "do not fit"),
        ("random", {"fraction": 1.5}, "between 0 and 1"),
        ("rows", {"n": 100}, "1..99"),
    ],
)
def test_bad_splits_are_refused_by_field(kind, params, message):
    with pytest.raises(CriError, match=message):
        make_split(make_task("addition"), kind, **params)


def test_the_public_square_that_leaves_the_grid_keeps_its_existing_cells():
    task = make_task("chicken_rabbit")
    with pytest.raises(CriError, match=r"432 of its 441 cells are cases; existing_only=true"):
        make_split(task, "square", center=[75, 50])
    split = make_split(task, "square", center=[75, 50], existing_only=True)
    assert split.test.sum() == 432
    assert (np.abs(task.coords[split.test_ids] - [75, 50]).max(axis=1) <= 10).all()
    assert make_split(task, "square", **{k: v for k, v in split.info.items() if k != "kind"}).test.sum() == 432
    with pytest.raises(CriError, match="0 of its 441 cells"):
        make_split(task, "square", center=[500, 500], existing_only=True)
    assert "existing_only" not in make_split(task, "square").info
