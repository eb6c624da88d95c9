"""What a field may hold: its annotated type, and the range that its name implies. The one place that guards values.

Command lines, settings, parameters of tasks and parameters of splits all pass through here, whether they come from a
shell, from JSON or from Python, where nothing else would stop `half_side="3"`, `seed=None` or a size in the billions.
"""

from __future__ import annotations

import builtins
import collections.abc
import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np

from cri.errors import CriError, out_of_range, shown, unknown_name

Function = TypeVar("Function", bound=Callable[..., Any])

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
        if value != own.default:  # 0 may stand for "the task's own" there
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
                parts = () if name.endswith("_params") else str(path).split("/")
                _require(all(len(os.fsencode(part)) < 256 for part in parts), name, str(path), "255 bytes long at most")


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


def checked(function: Function) -> Function:
    """A public function whose arguments are checked by its annotations before it runs: `check_type` and `check_range`,
    and of arrays their kind of number and their number of axes. A list where an array is wanted becomes one; who is
    asked for a module, a table or a site is told so by the argument's name."""

    @functools.cache
    def facts() -> tuple[inspect.Signature, dict[str, Any]]:
        return inspect.signature(function), _argument_hints(inspect.unwrap(function))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        signature, hints = facts()
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            bound.arguments[name] = _argument(name, value, hints.get(name, Any))
        _check_known(bound.arguments)
        _check_axes(bound.arguments, hints)
        return function(*bound.args, **bound.kwargs)

    return call  # pyright: ignore[reportReturnType]


def _argument(name: str, value: Any, annotation: Any) -> Any:
    """The value of one argument, a list as an array where one is wanted; raises `CriError` for what does not fit."""
    arrays = _arrays(annotation)
    plain = value.item() if isinstance(value, np.generic) else value
    if arrays and not (value is None and _fits(None, annotation)):
        if isinstance(value, list | tuple) and any(array.array_type is np.ndarray for array in arrays):
            try:
                value = np.asarray(value)
            except ValueError as error:
                raise CriError(f"{name}: rows of unequal length are no array") from error
        if name.endswith("ids") and isinstance(value, np.ndarray):
            return _ids(name, value)
        others = [a for a in _union(annotation) if not _is_array(a)]
        if not any(_fits_array(value, array) for array in arrays) and not any(_fits(plain, a) for a in others):
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, np.ndarray) else ""
            kind = f"{getattr(value, 'dtype', '')} {type(value).__name__}".strip()
            raise CriError(f"{name}: a {kind}{shape} is not allowed; must be {' or '.join(map(_array_words, arrays))}")
        return value
    given = _plain(plain, any(typing.get_origin(a) is collections.abc.Sequence for a in _union(annotation)))
    for option in _union(annotation):
        if typing.get_origin(option) is Literal and isinstance(given, str) and not _fits(given, annotation):
            raise unknown_name(name, given, typing.get_args(option))
    if not _fits(given, annotation):
        raise out_of_range(name, given, _words(annotation))
    if not name.endswith(("bytes", "limit")):
        check_range(name, given)
    # a whole number is a fraction too, but not its type
    return float(plain) if annotation is float and isinstance(plain, int) else plain


def _plain(value: Any, as_list: bool) -> Any:
    """A value with Python's own numbers in place of numpy's; any collection as a list where one is wanted."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if as_list and isinstance(value, collections.abc.Collection) and not isinstance(value, str | bytes | Mapping):
        value = value if isinstance(value, list | tuple) else list(value)
    if isinstance(value, list | tuple) and any(isinstance(item, np.generic) for item in value):
        own = [item.item() if isinstance(item, np.generic) else item for item in value]
        return own if isinstance(value, list) else tuple(own)
    return value


def _ids(name: str, value: np.ndarray) -> np.ndarray:
    """Case ids: no mask, no fraction, none that would count from the end."""
    if value.dtype == np.bool_:
        raise CriError(f"{name}: a mask is not a list of case ids; give np.flatnonzero(mask)")
    if value.ndim != 1:
        raise CriError(f"{name}: shape {value.shape} is not one id a case")
    if value.size and not np.issubdtype(value.dtype, np.integer):
        raise CriError(f"{name}: {value.dtype} values are not allowed; must be whole numbers")
    if value.size and value.min() < 0:
        raise CriError(f"{name}: {value[value < 0][:5].tolist()} is not allowed; must be case ids, from 0")
    return value if value.size else value.astype(np.int64)


def _union(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_array(annotation: Any) -> bool:
    return hasattr(annotation, "array_type") and hasattr(annotation, "dims")


def _arrays(annotation: Any) -> list[Any]:
    return [option for option in _union(annotation) if _is_array(option)]


def _fits_array(value: Any, annotation: Any) -> bool:
    """Whether an array has the annotated kind of number and number of axes. Not by `isinstance`: within a function
    whose shapes are checked, that would name this function's axes like those of its caller."""
    if annotation.array_type is not Any and not isinstance(value, annotation.array_type):
        return False
    if isinstance(annotation.dtypes, list | tuple):
        dtype = str(value.dtype).rpartition(".")[2]
        if not any(dtype == d if isinstance(d, str) else d.fullmatch(dtype) for d in annotation.dtypes):
            return False
    return annotation.index_variadic is not None or len(value.shape) == len(annotation.dims)


def _check_axes(arguments: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises `CriError` where an axis of one name has two lengths."""
    lengths: dict[str, tuple[int, str]] = {}
    for name, value in arguments.items():
        arrays = [a for a in _arrays(hints.get(name, Any)) if hasattr(value, "shape") and _fits_array(value, a)]
        if len(arrays) != 1 or arrays[0].index_variadic is not None:
            continue
        for dim, length in zip(arrays[0].dims, value.shape, strict=True):
            axis = getattr(dim, "name", None)
            first, where = lengths.setdefault(axis, (length, name)) if axis else (length, name)
            if length != first:
                raise CriError(f"{name}: {length} along {axis!r}, where {where} has {first}")


def _check_known(arguments: Mapping[str, Any]) -> None:
    """Raises `CriError` for case ids beyond those of the task that they are of."""
    n = getattr(getattr(arguments.get("run"), "task", arguments.get("task")), "n_cases", None)
    for name, value in arguments.items():
        if n is not None and name.endswith("ids") and isinstance(value, np.ndarray) and value.size and value.max() >= n:
            raise CriError(f"{name}: {value[value >= n][:5].tolist()} is not allowed; must be in 0..{n - 1}")


def require_columns(table: Any, columns: Sequence[str], field: str = "table") -> None:
    """Raises `CriError` naming the columns that are needed and the table lacks, and for what is no table, such as the
    row of one case."""
    if not hasattr(table, "columns"):
        raise CriError(f"{field}: a {type(table).__name__} is no table with a row a case; give the whole one")
    if missing := [column for column in columns if column not in table.columns]:
        have = ", ".join(map(str, table.columns))
        raise CriError(f"{field}: lacks the columns {', '.join(missing)}; it has {have}")


def _array_words(annotation: Any) -> str:
    return f"{annotation.dtype.__name__} array [{annotation.dim_str.strip()}]"


def _argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function, one by one: a name that is imported for type checkers alone is taken from where it is
    loaded, and stands for anything where it is not."""
    hints: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(one, function.__globals__, _Loaded(function.__globals__))
        except (NameError, AttributeError, TypeError):
            hints[name] = Any
    return hints


class _Loaded(dict[str, Any]):
    """Names that a module imports for type checkers alone, from wherever they are loaded."""

    def __init__(self, own: Mapping[str, Any]) -> None:
        super().__init__()
        self.own = own

    def __missing__(self, name: str) -> Any:
        if name in self.own or hasattr(builtins, name):
            raise KeyError(name)  # looked up there
        if name == "pd" and "pandas" in sys.modules:
            return sys.modules["pandas"]
        if name == "TransformerBridge" and "transformer_lens.model_bridge" in sys.modules:
            return sys.modules["transformer_lens.model_bridge"].TransformerBridge
        if name == "PreTrainedModel" and "torch" in sys.modules:
            return sys.modules["torch"].nn.Module
        for module in [m for key, m in sys.modules.items() if key.startswith("cri.")]:
            found = vars(module).get(name)
            if isinstance(found, type) and found.__module__.startswith("cri."):
                return found
        raise KeyError(name)


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(field: str, value: object, n_bytes: float, what: str) -> None:
    """Raises `CriError` where `what` would need more memory than this machine has: before the hours, not after."""
    have = machine_memory()
    if n_bytes > have:
        raise CriError(
            f"{field}: {shown(value)} is too large here; {what} would need about {n_bytes / 2**30:,.0f} GiB of "
            f"memory, and this machine has {have / 2**30:,.0f}"
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
    if origin in (collections.abc.Iterable, collections.abc.Collection):
        return isinstance(value, origin) and not isinstance(value, str)
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
        n = f"{len(args)} items" if origin is tuple and args[1:] != (...,) else "items"
        return f"a list of {n}" + (f", each {_words(args[0])}" if args else "")
    known = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", dict: "a table"}
    return known.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))
