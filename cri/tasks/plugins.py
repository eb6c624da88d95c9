"""Plugin files: a user's own tasks, rules and attribution methods, in a Python file named on the command line.

A plugin is the user's own code, and it is run: `load_plugin` executes it, once. A run remembers the file that its task
came from, by path and SHA-256 (`origin`), and is opened with that very file or not at all (`require_origin`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cri.errors import CriError

VARIABLE = "CRI_PLUGINS"
"""Environment variable with the plugins of this process, for the workers that it starts."""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _module_name(path: Path) -> str:
    return f"cri_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def load_plugin(path: Path | str) -> None:
    """Runs a plugin file, unless this process has done so: what it enters (`@cri.task`, `@cri.attribution_method`) is
    known by name from then on, to worker processes as well.

    Raises `CriError` for a missing file, and for one that fails; a `CriError` of its own passes through.
    """
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise CriError(f"plugin: {path} is not a Python file")
    name = _module_name(file)
    if any(getattr(module, "__file__", None) == str(file) for module in [*sys.modules.values()]):
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except CriError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise CriError(f"plugin: {path} fails with {type(error).__name__}: {error}") from error
    known = os.environ.get(VARIABLE, "").split(os.pathsep)
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*filter(None, known), str(file)]))


def load_inherited() -> None:
    """Loads the plugins of the process that started this one."""
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load_plugin(path)


def origin(thing: Any) -> dict[str, str] | None:
    """Where a class or function outside of this package comes from: `file` (empty in a notebook) and `sha256`; None for
    one of this package."""
    if thing.__module__.partition(".")[0] == "cri":
        return None
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        return {"file": "", "sha256": ""}
    return {"file": str(Path(file).resolve()), "sha256": _sha256(Path(file))}


def require_origin(task: str, recorded: Mapping[str, str], known: bool, folder: Path) -> None:
    """Loads the file that a run's task came from, unless a task of this name is `known` already.

    The file is looked for where it was, in the working folder, and beside the folder of runs. Raises `CriError` naming
    the file where it is missing or was changed since, or where the task was defined in a notebook.
    """
    if known:
        return
    if not recorded["file"]:
        raise CriError(f"task: {task!r} of {folder} was defined in a notebook; run its cell before the run is opened")
    path = Path(recorded["file"])
    places = [path, Path.cwd() / path.name, folder.resolve().parent.parent / path.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise CriError(f"plugin: {folder} needs {path}, which defines the task {task!r}, and the file is missing")
    if _sha256(found) != recorded["sha256"]:
        raise CriError(
            f"plugin: {found} was changed since {folder} was made; load the file as it was, or train again "
            f"(cri.load_plugin takes it as it is)"
        )
    load_plugin(found)
