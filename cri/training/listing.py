"""What lies in a folder of runs, read without opening any model: listing, comparing, removing.

Free of torch and pandas, so that it answers at once.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.config import RunConfig
from cri.errors import CriError
from cri.storage import is_complete, locked, read_json, verify


@dataclass(frozen=True)
class Listed:
    """One run's folder at a glance.

    Attributes:
        path: the folder.
        state: `finished`, `unfinished`, or `damaged` (a file cannot be read).
        config: its configuration, flat (`train.` left out of names), empty where it cannot be read.
        accuracy: by part, of a finished run.
    """

    path: Path
    state: str
    config: dict[str, Any]
    accuracy: dict[str, float]


def look(folder: Path) -> Listed:
    """One run; raises `CriError` where `folder` holds none."""
    if not (folder / "config.json").exists():
        raise CriError(f"run: {folder} holds no run")
    try:
        raw = read_json(folder / "config.json")
        config = {**{k: v for k, v in raw.items() if k != "train"}, **raw.get("train", {})}
        if not is_complete(folder):
            return Listed(folder, "unfinished", config, {})
        accuracy = read_json(folder / "manifest.json")["accuracy"]
        return Listed(folder, "finished", config, {k: float(v) for k, v in accuracy.items()})
    except (CriError, KeyError, TypeError, AttributeError, ValueError):
        return Listed(folder, "damaged", {}, {})


def load_config(path: Path) -> RunConfig:
    """The config of a finished run, without opening its model; raises `CriError` when `path` is no finished run,
    `CorruptRunError` when a file was altered."""
    verify(path)
    return RunConfig.from_dict(read_json(path / "config.json"))


def list_runs(out: Path) -> list[Listed]:
    """Every run below `out`, by name; none where there is no such folder."""
    if not out.is_dir():
        return []
    return [look(path) for path in sorted(out.iterdir()) if (path / "config.json").exists()]


def find_run(out: Path, name: str) -> Path:
    """The one run whose folder is `name`, or whose name below `out` begins so."""
    if Path(name).is_dir():
        return Path(name)
    found = [run.path for run in list_runs(out) if run.path.name.startswith(name)]
    if len(found) != 1:
        known = ", ".join(run.path.name for run in list_runs(out)[:5]) or "none"
        raise CriError(f"run: {name!r} begins the names of {len(found)} runs in {out}; there are: {known}")
    return found[0]


def listing(out: Path) -> str:
    """Name, state and accuracy of every run, a line each."""
    runs = list_runs(out)
    if not runs:
        return f"no runs in {out}; python -m cri.train makes one"
    width = max(len(run.path.name) for run in runs)
    lines = [f"{'run':<{width}}  state       train  test"]
    for run in runs:
        shown = "  ".join(
            f"{run.accuracy[part]:.3f}" if part in run.accuracy else "  -  " for part in ("train", "test")
        )
        lines.append(f"{run.path.name:<{width}}  {run.state:<10}  {shown}")
    return "\n".join(lines)


def shown(folder: Path) -> str:
    """Configuration, accuracy and provenance of one run; its files are verified first where it is finished."""
    run = look(folder)
    if run.state == "finished":
        verify(folder)
    manifest = read_json(folder / "manifest.json") if run.state == "finished" else {}
    lines = [f"{run.path} ({run.state})"]
    lines += [f"  {key}: {value}" for key, value in run.config.items()]
    lines += [f"  accuracy, {part}: {value:.4f}" for part, value in run.accuracy.items()]
    facts = ("train_seconds", "trained_on", "commit", "created")
    lines += [f"  {key}: {manifest[key]}" for key in facts if key in manifest]
    return "\n".join(lines)


def compared(folders: list[Path]) -> str:
    """What differs between runs, a line a setting, and their accuracies."""
    if len(folders) < 2:
        raise CriError("runs: give at least two to compare")
    runs = [look(folder) for folder in folders]
    lines = [f"run {chr(65 + i)}: {run.path.name}" for i, run in enumerate(runs)]
    keys = dict.fromkeys(key for run in runs for key in run.config)
    for key in keys:
        values = [run.config.get(key) for run in runs]
        if any(value != values[0] for value in values):
            lines.append(f"  {key}: " + " | ".join(str(value) for value in values))
    for part in dict.fromkeys(part for run in runs for part in run.accuracy):
        values = [f"{run.accuracy[part]:.4f}" if part in run.accuracy else "-" for run in runs]
        lines.append(f"  accuracy, {part}: " + " | ".join(values))
    return "\n".join(lines)


def remove(folder: Path) -> str:
    """Removes one run's folder, once no process works on it; raises `CriError` where it is none."""
    look(folder)
    with locked(folder):
        shutil.rmtree(folder)
    return f"removed {folder}"
