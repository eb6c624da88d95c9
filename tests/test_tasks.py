"""Tasks against Python integers and the public data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.data.case_groups import make_groups
from cri.errors import CriError
from cri.formats import make_format
from cri.tasks import REGISTERED, TASKS, RuleCode, ScratchpadWriter, SquareGrid, make_task, task, task_from_dict
from cri.tasks.steps import Step, add_steps, digits, halve_steps, mul_steps, sub_steps, to_base

REFERENCE = [json.loads(line) for line in (Path(__file__).parent / "reference_cases.jsonl").read_text().splitlines()]
PAPER = {
    "addition": (10_000, (50, 50)),
    "mod_addition": (12_769, (56, 56)),
    "base_addition": (10_000, (50, 50)),
    "linear_regression": (10_000, (50, 50)),
    "chicken_rabbit": (5_050, (70, 50)),
}


@pytest.fixture(scope="module")
def tasks():
    return {name: make_task(name) for name in TASKS}


@pytest.mark.parametrize("name", PAPER)
def test_grid_sizes_and_centers_are_the_papers(tasks, name):
    assert (tasks[name].n_cases, tasks[name].center) == PAPER[name]


def test_public_rows_are_reproduced(tasks):
    assert len(REFERENCE) == 240
    for row in REFERENCE:
        task = tasks[row["task"]]
        assert task.id_of(row["a"], row["b"]) == row["id"]
        assert task.questions[row["id"]] == row["question"]
        if row["format"] == "direct":
            assert task.answers[row["id"]] == row["answer"]


@given(a=st.integers(0, 99), b=st.integers(0, 99))
def test_answers_against_python(a, b):
    assert make_task("addition").answer(a, b) == str(a + b)
    assert int(make_task("base_addition").answer(a, b), 9) == a + b
    assert make_task("mod_addition").value(a, b) == (a + b) % 113
    assert make_task("linear_regression").value(a, b) == a + 2 * b + 3


@given(rabbits=st.integers(0, 49), chickens=st.integers(0, 49))
def test_chicken_rabbit_counts_legs_and_heads(rabbits, chickens):
    answer = make_task("chicken_rabbit").answer(4 * rabbits + 2 * chickens, rabbits + chickens)
    assert answer == f"There are {rabbits} rabbits and {chickens} chickens."


def replay(steps: list[Step], base: int) -> int:
    """The number that column steps write, units first."""
    total, place, carry = 0, 1, 0
    for op, x, y, carry_in in steps:
        assert carry_in == carry
        value = {"add": (x or 0) + (y or 0), "sub": (x or 0) - (y or 0), "mul": (x or 0) * (y or 0)}[op] + carry
        total, place, carry = total + place * (value % base), place * base, value // base
    return total + place * carry


@given(a=st.integers(0, 10**12), b=st.integers(0, 10**12), base=st.integers(2, 10), factor=st.integers(0, 9))
def test_steps_compute_the_answer(a, b, base, factor):
    assert replay(add_steps(a, b, base), base) == a + b
    assert replay(sub_steps(max(a, b), min(a, b), base), base) == abs(a - b)
    assert replay(mul_steps(a, min(factor, base - 1), base), base) == a * min(factor, base - 1)
    assert int(to_base(a, base), base) == a
    quotient = [(carry * base + x) // 2 for _, x, _, carry in halve_steps(2 * a, base)]
    assert int("".join(map(str, quotient)), base) == a


def test_digits_refuses_negative_numbers():
    with pytest.raises(CriError, match="non-negative"):
        digits(-1)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("adition", {}, "choose from addition"),
        ("addition", {"sise": 3}, "choose from size"),
        ("addition", {"size": 1}, "at least 2"),
        ("addition", {"size": 2.5}, "a whole number"),
        ("base_addition", {"base": 11}, "in 2..10"),
        ("mod_addition", {"size": 20, "modulus": 7}, "at least size=20"),
        ("linear_regression", {"slope_b": 12}, "in 1..9"),
    ],
)
def test_bad_tasks_are_refused_by_field(name, params, message):
    with pytest.raises(CriError, match=message):
        make_task(name, **params)


def test_unknown_case_and_round_trip():
    task = make_task("base_addition", size=12, base=7)
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task
    with pytest.raises(CriError, match="case"):
        task.id_of(12, 0)


# --- a task of a user's own: one class ---


def larger_of(num1, num2):
    if len(num1) > len(num2) or (len(num1) == len(num2) and num1 >= num2):
        return num1
    return num2


@pytest.fixture
def larger():
    @task
    class Larger(SquareGrid):
        """The larger of two numbers."""

        name = "larger"
        rule = RuleCode(larger_of)
        size: int = 30

        def question(self, a: int, b: int) -> str:
            return f"{a}|{b}="

        def value(self, a: int, b: int) -> int:
            return max(a, b)

        def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
            pad.result(str(a) if pad.compare(str(a), str(b)) else str(b), last=True)

    yield Larger
    del REGISTERED["larger"]


def test_a_task_of_ones_own_is_one_class(larger):
    own = make_task("larger", size=12)
    assert (own.n_cases, own.center, own) == (144, (6, 6), task_from_dict(own.to_dict()))
    assert make_format("direct").completion(own, 7, 11) == "11"
    scratchpad = make_format("scratchpad")
    assert scratchpad.completion(own, 7, 11) == "7<11\n11"
    assert scratchpad.read_answer(own, "7<11\n11") == "11"
    rfft = make_format("rfft")
    assert "7|11=\ndef larger_of(num1, num2):\n" in rfft.prompt(own, 7, 11)
    assert rfft.read_answer(own, rfft.completion(own, 7, 11)) == "11"
    ids = np.arange(own.n_cases)
    assert (make_groups(own, ids[:100], ids[100:], own.answers[100:]).codes >= 0).all()  # it names no steps


def test_a_task_that_is_none_or_whose_name_is_taken_is_refused(larger):
    with pytest.raises(CriError, match="task larger: does not define question"):
        task(type("Other", (SquareGrid,), {"name": "larger", "value": lambda self, a, b: 0}))
    methods = {"value": lambda self, a, b: 0, "question": lambda self, a, b: ""}
    with pytest.raises(CriError, match="has this name already"):
        task(type("Other", (SquareGrid,), {"name": "larger", **methods}))
    with pytest.raises(CriError, match="needs a name"):
        task(type("Other", (SquareGrid,), methods))
    with pytest.raises(CriError, match="not a subclass"):
        task(int)
    with pytest.raises(CriError, match="patchwork has no rule"):
        make_format("rfft").prompt(make_task("patchwork"), 1, 2)
