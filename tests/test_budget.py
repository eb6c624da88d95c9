"""How often a run is evaluated: as asked for, within a tenth of its time, whatever evaluation costs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.config import RunConfig, TrainConfig
from cri.errors import CriError
from cri.training.budget import SHARE, SIZES, EvaluationBudget, evaluation_steps
from cri.training.runs import train_run


@pytest.mark.parametrize(
    ("steps", "evals", "expected"),
    [
        (4000, 0, []),
        (4000, 1, [2000]),
        (4000, 3, [1000, 2000, 3000]),
        (100, 10, [25, 50, 75]),  # not closer than 25 steps
        (5, 10, []),
    ],
)
def test_evaluations_asked_for(steps, evals, expected):
    assert list(evaluation_steps(steps, evals)) == expected


@given(steps=st.integers(1, 10_000), evals=st.integers(0, 200))
def test_never_more_evaluations_than_asked_for_and_none_at_the_end(steps, evals):
    chosen = evaluation_steps(steps, evals)
    assert len(chosen) <= evals
    assert steps not in chosen


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    step_seconds=st.floats(1e-3, 5.0),
    fixed=st.floats(0.0, 1.0),
    per_case=st.floats(0.0, 1.0),
    stretches=st.lists(st.integers(25, 500), min_size=1, max_size=12),
)
def test_evaluation_takes_a_tenth_of_the_time_at_most(step_seconds, fixed, per_case, stretches):
    """Whatever an evaluation costs, as long as its first case takes no more than a third of a step a token."""
    clock, n_tokens = Clock(), 6
    budget = EvaluationBudget(n_tokens, clock)
    first = n_tokens * step_seconds / 3  # the assumption; an evaluation of n cases takes n times that at most

    def measure(n: int) -> dict[str, float]:
        clock.now += first * (fixed + per_case * n) / (fixed + per_case or 1) if fixed + per_case else 0.0
        return {"train_acc": 1.0, "test_acc": 0.0}

    for steps in stretches:
        budget.trained += steps * step_seconds
        found = budget.evaluate(step_seconds, measure)
        assert found is None or found["eval_cases"] in SIZES
        assert budget.spent <= SHARE * (budget.trained + budget.spent) + 1e-9
        assert budget.spent == pytest.approx(clock.now)


def test_cheap_evaluations_take_all_cases_and_dear_ones_none():
    clock = Clock()
    budget = EvaluationBudget(6, clock)
    budget.trained = 100.0
    assert budget.evaluate(0.1, lambda n: {"test_acc": 0.0}) == {"test_acc": 0.0, "eval_cases": SIZES[-1]}
    dear = EvaluationBudget(6, clock)
    dear.trained = 100.0
    assert dear.evaluate(10.0, lambda n: {"test_acc": 0.0}) is None  # 20 s expected for the first case


def test_a_run_is_evaluated_as_often_as_asked_for(tmp_path):
    config = RunConfig(
        task_params={"size": 8}, split_params={"half_side": 1}, train=TrainConfig(steps=400, batch_size=16)
    )
    for evals, most in ((0, 0), (2, 2)):
        folder = train_run(config, tmp_path / str(evals), device="cpu", evals=evals, progress=False)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len([row for row in rows if "test_acc" in row]) in range(min(1, most), most + 1)
        facts = json.loads((folder / "manifest.json").read_text())
        assert facts["evaluation_seconds"] <= SHARE * facts["train_seconds"] + 0.01
    with pytest.raises(CriError, match="evals: -1"):
        train_run(config, tmp_path, device="cpu", evals=-1, progress=False)
