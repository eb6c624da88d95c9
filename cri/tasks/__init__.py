"""Every task by name. A task is one file of this folder: question, value, steps, scratchpad, rule, recipes, colour.

Parameters default to the paper's values (arXiv 2402.17709, public code GraphPKU/Case_or_Rule), so that
questions and answers reproduce its data exactly.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from cri.tasks.addition import Addition
from cri.tasks.base import RuleCode, ScratchpadWriter, SquareGrid, Task
from cri.tasks.base_addition import BaseAddition
from cri.tasks.chicken_rabbit import ChickenRabbit
from cri.tasks.digit_table import DigitTable
from cri.tasks.length_addition import LengthAddition
from cri.tasks.linear_regression import LinearRegression
from cri.tasks.mod_addition import ModAddition
from cri.tasks.patchwork import Patchwork
from cri.tasks.registry import REGISTERED, make_task, task, task_class, task_from_dict

for _module in pkgutil.iter_modules(__path__):  # a task's file enters it by `@task`
    import_module(f"{__name__}.{_module.name}")

TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Addition, ModAddition, BaseAddition, LinearRegression, ChickenRabbit)
}
"""The paper's five tasks; `make_task` knows `length_addition`, the planted ones and a user's own as well."""

PLANTED: dict[str, type[Task]] = {t.name: t for t in (Patchwork, DigitTable)}
"""Tasks with a planted mechanism: answered from nearby cases, and from steps."""

__all__ = [
    "PLANTED", "REGISTERED", "TASKS", "Addition", "BaseAddition", "ChickenRabbit", "DigitTable", "LengthAddition",
    "LinearRegression", "ModAddition", "Patchwork", "RuleCode", "ScratchpadWriter", "SquareGrid", "Task", "make_task",
    "task", "task_class", "task_from_dict",
]  # fmt: skip
