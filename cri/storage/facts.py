"""JSON files of ours, read back: an object, of the shape that it was written with, or one line that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cri.errors import CorruptRunError

_OBJECTS = ("accuracy", "identity", "model", "sha256", "statuses", "train")
"""Keys of our files whose values are objects, wherever they occur."""


class _Facts(dict[str, Any]):
    """A JSON object of a file of ours, which says so where it lacks what is asked for."""

    path: Path

    def __missing__(self, key: str) -> Any:
        raise CorruptRunError(f"run: {self.path} has no {key!r}; it is of another version, or was altered")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file of ours holds; raises `CorruptRunError` when the file is missing, cut short or no
    such object, and when a key is looked up that it lacks."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptRunError(f"run: {path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise CorruptRunError(f"run: {path} holds no JSON object; it was altered")
    for key in _OBJECTS:
        if key in found and not isinstance(found[key], dict | (str if key in ("identity", "model") else dict)):
            raise CorruptRunError(f"run: {path}: {key} is no object; the file was altered")
    facts = _Facts(found)
    facts.path = path
    return facts
