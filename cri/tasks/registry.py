"""Tasks by name. `@task` enters a class; every module of `cri.tasks` is imported, so that a file there is enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, dataclass_transform

from cri.checks import checked
from cri.errors import CriError, shown, unknown_name
from cri.tasks.base import Task
from cri.tasks.plugins import load_inherited

REGISTERED: dict[str, type[Task]] = {}
"""Every task by name, those of `cri.tasks` and a user's own."""

T = TypeVar("T", bound=Task)


@dataclass_transform(frozen_default=True)
def task(cls: type[T]) -> type[T]:
    """Class decorator: makes the class a frozen dataclass (its annotated fields are the task's parameters, whole
    numbers with defaults) and enters it under its `name`, so that `make_task`, configs and commands know it.

    Raises `CriError` for a class that is no `Task`, that has no name, that leaves a method out, or whose name another
    task has. A class of the same module and qualified name replaces the former one (a notebook's cell run again).
    """
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise CriError(f"task: {shown(cls)} is not a subclass of cri.tasks.base.Task")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise CriError(f"task: {cls.__qualname__} needs a name of letters, digits and _, not {name!r}")
    if cls.__abstractmethods__:
        raise CriError(f"task {name}: does not define {', '.join(sorted(cls.__abstractmethods__))}")
    known = REGISTERED.get(name)
    if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise CriError(f"task {name}: {known.__module__}.{known.__qualname__} has this name already")
    REGISTERED[name] = made = dataclasses.dataclass(frozen=True)(cls)
    return made


def task_class(name: str) -> type[Task]:
    """The class of the task called `name`; raises `UnknownNameError` for an unknown one."""
    if name not in REGISTERED:
        load_inherited()  # this process may be a worker of one that loaded the task's file
    if name not in REGISTERED:
        raise unknown_name("task", name, REGISTERED)
    return REGISTERED[name]


@checked
def make_task(name: str, **params: Any) -> Task:
    """The task called `name` with the paper's parameters, or those given.

    Raises `UnknownNameError` for an unknown task or parameter, `CriError` for a bad value.
    """
    cls = task_class(name)
    valid = [f.name for f in dataclasses.fields(cls)]
    for key in params:
        if key not in valid:
            raise unknown_name(f"parameter of task {name}", key, valid)
    return cls(**params)


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_dict`."""
    params = dict(data)
    return make_task(params.pop("name"), **params)
