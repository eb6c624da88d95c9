"""What a field may hold: its annotated type, and the range that its name stands for. The one place that guards values.

Command lines, settings, parameters of tasks and parameters of splits all pass through here, whether they come from a
shell, from JSON or from Python, where nothing else would stop `half_side="3"`, `seed=None` or a size in the billions.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from cri.errors import CriError, out_of_range

MAX_SEED = 2**63 - 1
"""What every generator that is seeded with it takes."""
MAX_JOBS = 1024
MAX_COUNT = 10**12
"""No count, size or coordinate is larger; int64 holds what is made of it."""

_NUMBERED = ("steps", "batch_size", "micro_batch", "size", "n_boot", "k", "n_cases")


def check_type(field: str, value: object, annotation: Any) -> None:
    """Raises `CriError` naming `field` where `value` is not what `annotation` says. A truth value is no number, a text
    no list, a fraction no whole number; numbers are finite."""
    if not _fits(value, annotation):
        raise out_of_range(field, value, _words(annotation))


def check_range(field: str, value: object) -> None:
    """Raises `CriError` where the number, or one of the numbers, is outside what `field` can mean: a seed below 0 or
    beyond 64 bits, jobs by the million, a count too large to be one."""
    name = field.rpartition(".")[2]
    if isinstance(value, str | bytes) or value is None:
        return
    if isinstance(value, Sequence):
        for item in value:
            check_range(field, item)
        return
    if not isinstance(value, int) or isinstance(value, bool):
        return
    if name.removesuffix("s").endswith("seed"):
        _require(0 <= value <= MAX_SEED, field, value, f"in 0..{MAX_SEED}")
    elif name == "jobs":
        _require(0 <= value <= MAX_JOBS, field, value, f"in 0..{MAX_JOBS} (0 for one a core)")
    else:
        low = 0 if name in _NUMBERED else -MAX_COUNT
        _require(low <= value <= MAX_COUNT, field, value, f"in {low}..{MAX_COUNT}")


def check_dataclass(settings: Any, field: str = "") -> None:
    """`check_type` and `check_range` of every field of a dataclass; `field` goes before the names."""
    hints = _hints(type(settings))
    for own in dataclasses.fields(settings):
        value, name = getattr(settings, own.name), f"{field}.{own.name}" if field else own.name
        if dataclasses.is_dataclass(value):
            continue  # checked when it was made
        check_type(name, value, hints[own.name])
        check_range(name, value)


def check_command(settings: Any) -> None:
    """`check_dataclass` of a command's settings, and what is true of every command: lists name different things and at
    least one, a name is a file's name, a square has a side."""
    check_dataclass(settings)
    hints = _hints(type(settings))
    for own in dataclasses.fields(settings):
        name, value = own.name, getattr(settings, own.name)
        _check_named(name, value)
        if isinstance(value, tuple) and typing.get_args(hints[name])[1:] == (...,):
            _require(bool(value) or own.default == (), name, value, "a list of at least one")
            _check_repeats(name, value)
        if isinstance(value, str) and name == "name":
            plain = value == Path(value).name and value not in ("", ".", "..") and value.isprintable()
            _require(plain and len(value) <= 100, name, value, "a plain file name")
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path | str):
                _require("\0" not in str(path), name, str(path), "without a zero byte")


def _check_repeats(name: str, items: Sequence[Any]) -> None:
    """No item twice; a folder is the same by whatever path it is reached."""
    seen = [item.resolve() if isinstance(item, Path) else item for item in items]
    for i, item in enumerate(seen):
        _require(item not in seen[:i], name, str(items[i]), "given once: a repeat is no replicate")


def _check_named(name: str, value: Any) -> None:
    """What a number of this name is in every command."""
    if name in ("lrs", "weight_decays"):
        low = "positive" if name == "lrs" else "at least 0"
        _require(all(x > 0 or (x == 0 and name != "lrs") for x in value), name, value, low)
    elif name == "half_side" and value is not None:
        _require(value >= 1, name, value, "at least 1")
    elif name == "size" and value is not None:
        _require(value == 0 or value >= 2, name, value, "at least 2 (0, where it is the default, for the paper's)")


def check_arguments(field: str, function: Callable[..., Any], arguments: Mapping[str, object]) -> None:
    """`check_type` and `check_range` of keyword arguments, by the function's own annotations."""
    hints = _hints(function)
    for key, value in arguments.items():
        check_type(f"{field}.{key}", value, hints[key])
        check_range(f"{field}.{key}", value)


def check_memory(field: str, value: object, n_bytes: float, what: str) -> None:
    """Raises `CriError` where `what` would need more memory than this machine has: before the hours, not after."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > have:
        raise CriError(
            f"{field}: {value!r} is too large here; {what} would need about {n_bytes / 2**30:,.0f} GiB of memory, and "
            f"this machine has {have / 2**30:,.0f}"
        )


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise out_of_range(field, value, allowed)


def _hints(of: Any) -> dict[str, Any]:
    """Annotations, resolved; a parameter without one takes anything."""
    hints = typing.get_type_hints(of)
    names = inspect.signature(of).parameters if inspect.isfunction(of) else ()
    return {name: hints.get(name, Any) for name in [*hints, *names]}


def _fits(value: object, annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple and args[1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin in (tuple, list, collections.abc.Sequence):
        kinds = (tuple,) if origin is tuple else (list, tuple)
        return isinstance(value, kinds) and all(_fits(item, args[0]) for item in value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    kind = origin or annotation
    return isinstance(value, kind) if isinstance(kind, type) else True


def _words(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(arg) for arg in args if arg is not type(None)))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, list, collections.abc.Sequence):
        return f"a list of {len(args) if origin is tuple and args[1:] != (...,) else ''} items".replace("  ", " ") + (
            f", each {_words(args[0])}" if args else ""
        )
    known = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", dict: "a table"}
    return known.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
