"""Elements of a stated rule's trace (`cri.formats.rules.stated`), and what an edit may put in their place."""

from __future__ import annotations

import functools

from cri.tasks import Task
from cri.tasks.many_rules import ManyRules

STEP_KINDS = {"a": "operands", "b": "operands", "value": "digit", "carry": "carry", "total": "digit", "tens": "carry",
              "digit": "digit"}  # fmt: skip
"""Kind of each element of a step's line, as `cri.interventions.edits` tells them apart."""
_VALUES = {"add": (0, 18), "sub": (-9, 9), "mul": (0, 81), "max": (0, 9), "min": (0, 9)}
_FIRST_CARRIES = (0, 3)


def base_of(task: Task, a: int) -> int:
    """The base in which the case's rule works: its own, where every case has a rule of its own."""
    return task.rule_of(a).base if isinstance(task, ManyRules) else task.digit_base


@functools.cache
def carries(operation: str, base: int) -> tuple[int, int]:
    """The least and the greatest carry that steps of an operation can give."""
    low, high = _FIRST_CARRIES
    least, greatest = _VALUES[operation]
    while True:
        wider = min(low, (least + low) // base), max(high, (greatest + high) // base)
        if wider == (low, high):
            return wider
        low, high = wider


def step_values(element: str, operation: str, base: int) -> range:
    """What an element of a step's line can hold."""
    (low, high), (least, greatest) = carries(operation, base), _VALUES[operation]
    match element:
        case "a" | "b":
            return range(10)
        case "digit":
            return range(base)
        case "value":
            return range(least, greatest + 1)
        case "carry" | "tens":
            return range(low, high + 1)
        case _:
            return range(least + low, greatest + high + 1)
