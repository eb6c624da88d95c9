"""Length data: uniform, without replacement, train and test lengths apart, numbers beyond 64 bits."""

from __future__ import annotations

import numpy as np
import pytest

from cri.data.splits import make_split
from cri.data.token_table import encode, task_tokenizer
from cri.errors import CriError
from cri.formats import FORMATS, make_format
from cri.tasks import make_task, task_from_dict
from cri.tasks.length_sampling import n_pairs, pair, sample_pairs


@pytest.mark.parametrize("n_digits", [1, 2])
def test_pairs_are_numbered_without_gaps(n_digits: int):
    pairs = [pair(i, n_digits) for i in range(n_pairs(n_digits))]
    expected = {(a, b) for a in range(10**n_digits) for b in range(10**n_digits) if len(str(max(a, b))) == n_digits}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


@pytest.mark.parametrize(("n_digits", "n"), [(1, 40), (2, 5000), (3, 1000), (12, 500), (40, 500)])
def test_sampling(n_digits: int, n: int):
    pairs = sample_pairs(n_digits, n, seed=3)
    assert len(set(pairs)) == len(pairs) == n
    assert {len(str(max(a, b))) for a, b in pairs} == {n_digits}
    assert pairs == sample_pairs(n_digits, n, seed=3)
    assert pairs != sample_pairs(n_digits, n, seed=4)


def test_sampling_is_uniform():
    """Leading digits are spread evenly, and neither operand is favoured."""
    pairs = np.array(sample_pairs(3, 20_000, seed=0))
    counts = np.bincount(pairs[:, 0] // 100, minlength=10)
    expected = np.array([0.9 / 9.9] + [1 / 9.9] * 9) * 20_000  # a < 100 only where b is long
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert (pairs[:, 0] < 100).mean() == pytest.approx((pairs[:, 1] < 100).mean(), abs=0.01)


def test_short_lengths_are_exhausted():
    task = make_task("length_addition", max_digits=2, per_length=500)
    assert task.n_cases == 100 + 500
    assert np.bincount(task.coords[:, 0]).tolist() == [0, 100, 500]
    assert task.coords[:, 1].tolist() == [*range(100), *range(500)]


def test_train_and_test_lengths_are_apart():
    task = make_task("length_addition", max_digits=8, per_length=200)
    split = make_split(task, "lengths", train_max=3, test_fraction=0.25)
    lengths = np.array([len(str(max(pair))) for pair in task.operands])
    assert split.train[lengths > 3].sum() == 0
    assert [int((~split.train[lengths == n]).sum()) for n in (1, 2, 3)] == [25, 50, 50]
    assert len(set(task.operands)) == task.n_cases
    longer = make_task("length_addition", max_digits=9, per_length=200)
    assert longer.operands[: task.n_cases] == task.operands


@pytest.mark.parametrize("fmt_name", FORMATS)
@pytest.mark.parametrize("kind", ["number", "digit"])
def test_thirty_digits_go_through_the_pipeline(fmt_name: str, kind: str):
    task = make_task("length_addition", min_digits=30, max_digits=31, per_length=2)
    fmt = make_format(fmt_name)
    for a, b in task.operands:
        text = fmt.completion(task, a, b)
        assert fmt.read(task, a, b, text, finished=True).answer == str(a + b)
    tokenizer = task_tokenizer(kind, task, fmt)
    table = encode(task, fmt, tokenizer)
    assert len(table.ids) == task.n_cases
    assert tokenizer.decode(table.ids[0, : table.lengths[0] - 1]) == fmt.prompt(
        task, *task.operands[0]
    ) + fmt.completion(task, *task.operands[0])


def test_config_round_trip_and_refusals():
    task = make_task("length_addition", max_digits=30, per_length=3, seed=5)
    assert task_from_dict(task.to_dict()) == task
    for attribute in ("cases", "values"):
        with pytest.raises(CriError, match=f"{attribute}: the numbers of length_addition exceed 64 bits"):
            getattr(task, attribute)
    with pytest.raises(CriError, match="max_digits"):
        make_task("length_addition", min_digits=5, max_digits=4)
    with pytest.raises(CriError, match="has no main square"):
        make_split(task, "square")
    with pytest.raises(CriError, match="split: lengths needs the task length_addition, not addition"):
        make_split(make_task("addition"), "lengths")
    with pytest.raises(CriError, match=r"split.train_max: 31 is not allowed; must be in 1..30"):
        make_split(task, "lengths", train_max=31)
