"""Run folders: atomic files, checksums, manifests, completion markers, locking.

A run lies in `runs/<name>-<confighash>/`. Files are written to a temporary name, flushed to disk and
renamed, so that a process killed at any moment leaves whole files or none. The completion marker is
written last and holds the checksum of every file it vouches for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cri.errors import CorruptRunError, CriError

MARKER = "complete.json"


def canonical_json(data: Mapping[str, Any]) -> str:
    """One spelling for equal data, for hashing and comparing."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def config_hash(config: Mapping[str, Any]) -> str:
    """First 10 hexadecimal digits of the config's SHA-256."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:10]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well, removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CriError(f"{path.name}: cannot be written to {path.parent}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Failures to write within the block (a full disk, say) as one `CriError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CriError(f"out: cannot write to {folder} ({reason}); the run resumes when there is room") from error


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON; raises `CorruptRunError` when the file is missing or cut short."""
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptRunError(f"run: {path} cannot be read ({error})") from error


def run_folder(out: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Where the run of `config` lies below `out`."""
    return out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{config_hash(config)}"


@contextlib.contextmanager
def locked(folder: Path, announce: bool = True) -> Iterator[None]:
    """Holds the run for this process; a second process waits. The lock ends with its process, however
    that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if announce:
                print(f"waiting for another process that works on {folder}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise CriError(f"out: {folder} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def is_complete(folder: Path) -> bool:
    return (folder / MARKER).exists()


def mark_complete(folder: Path, files: list[str]) -> None:
    """Writes the completion marker with the checksums of `files` (paths relative to the folder)."""
    write_json(folder / MARKER, {"sha256": {name: file_sha256(folder / name) for name in sorted(files)}})


def verify(folder: Path) -> None:
    """Raises `CorruptRunError` naming the first file that is missing, truncated or altered."""
    if not folder.is_dir():
        raise CriError(f"run: {folder} is not a folder")
    if not is_complete(folder):
        raise CorruptRunError(f"run: {folder} is not finished; run the command that made it again to resume it")
    for name, expected in read_json(folder / MARKER)["sha256"].items():
        path = folder / name
        if not path.exists():
            raise CorruptRunError(f"run: {path} is missing; remove the folder and train again")
        if file_sha256(path) != expected:
            raise CorruptRunError(f"run: {path} was altered or cut short (checksum); remove the folder and train again")


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """Commit and dirty flag, versions, machine: what a recorded number needs to be traced.

    Where the code lies without its repository (a machine lent for an hour), CRI_COMMIT names the commit.
    """
    import torch

    versions = {}
    for package in ("cri", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn", "umap-learn", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    status = _git("status", "--porcelain")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("CRI_COMMIT"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "cpus": os.cpu_count(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
