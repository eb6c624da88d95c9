"""The shuffled-trace control: right answers behind traces that belong to other cases.

A model trained on it sees the same lines as a scratchpad model, but its answer can only come from the
question. Whatever an edit of its trace does to its answer is not rule execution.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cri.formats.scratchpad import scratchpad_trace
from cri.formats.traces import Edit, TraceLine
from cri.tasks import Task

_SEED = 2402


@lru_cache(maxsize=32)
def _permutation(task: Task) -> tuple[int, ...]:
    # one cycle through all cases in random order: no case keeps its own trace
    order = np.random.default_rng(_SEED).permutation(task.n_cases)
    target = np.empty_like(order)
    target[order] = np.roll(order, 1)
    return tuple(target.tolist())


def trace_owner(task: Task, a: int, b: int) -> tuple[int, int]:
    """The case whose trace case (a, b) is given, drawn once for a task; never the case itself."""
    return task.operands[_permutation(task)[task.id_of(a, b)]]


def shuffled_trace(task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
    """The scratchpad of `trace_owner(task, a, b)` up to its answer, then the answer of (a, b).

    An `edit` changes the other case's trace, the answer of (a, b) staying what it is. Raises `CriError`
    as `scratchpad_trace` does.
    """
    lines = scratchpad_trace(task, *trace_owner(task, a, b), edit)[:-1]
    own = scratchpad_trace(task, a, b)[-1]
    shift = (lines[-1].stop if lines else 0) - own.start
    elements = {name: (start + shift, stop + shift) for name, (start, stop) in own.elements.items()}
    return [*lines, own._replace(start=own.start + shift, stop=own.stop + shift, elements=elements)]
