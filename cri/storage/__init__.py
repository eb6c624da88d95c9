"""Run folders: atomic files and folders, checksums, what all manifests share, completion markers, locking.

A run lies in `runs/<name>-<confighash>/`. Files are written to a temporary name, flushed to disk and
renamed, so that a process killed at any moment leaves whole files or none. The completion marker is
written last and holds the checksum of every file it vouches for. What a killed process left under a temporary
name is removed by the next one that holds the folder, or that writes the same file.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cri.errors import CorruptRunError, CriError
from cri.storage.compression import BROKEN, content_name, open_content, stored
from cri.storage.facts import read_json

MARKER = "complete.json"
LOCK = ".lock"
_READ_BACK = (".json", ".jsonl", ".csv", ".gz", ".safetensors", ".xz")
_UNFINISHED = re.compile(r"(checkpoint|part-.*)\.safetensors")
"""What a kill between the marker and the tidying leaves beside a finished run."""


def canonical_json(data: Mapping[str, Any]) -> str:
    """One spelling for equal data, for hashing and comparing."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def config_hash(config: Mapping[str, Any]) -> str:
    """First 10 hexadecimal digits of the config's SHA-256."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:10]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content (see `cri.storage.compression`)."""
    with open_content(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> list[Path]:
    """Makes `folder` with its parents; returns those that were not there, the innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes those of `folders` that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def require_writable(field: str, folder: Path) -> None:
    """Raises `CriError` naming `field` unless files can be made in `folder` (which may not exist yet); leaves nothing
    behind. Called before the work whose result is to lie there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = temporary_path(folder / "probe")
    try:
        make_folder(folder)
        clear_temporaries(folder / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CriError(f"{field}: {folder} cannot be written to: {error.strerror or error}") from error
    finally:
        remove_empty(missing)


def require_replaceable(path: Path, field: str | None = None) -> None:
    """Raises `CriError` where `path` is anything but a regular file or nothing: a folder, a link, a device, a FIFO."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing there; who cannot write there is told so when the file is made
        return
    if not stat.S_ISREG(mode):
        raise CriError(f"{field or path.name}: {path} is not a regular file, and nothing else is ever replaced")


def temporary_path(path: Path) -> Path:
    """This process's temporary name beside `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def clear_temporaries(path: Path, alive_too: bool = False) -> None:
    """Removes what processes that are no more left under temporary names of `path`.

    Args:
        path: the file or folder that was to be made.
        alive_too: those of living processes as well; the caller holds the lock, so that a process with this number
            is another one.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    for found in path.parent.iterdir():
        match = name.fullmatch(found.name)
        if match and (alive_too or not _is_alive(int(match[1]))):
            shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well, removed otherwise. Raises `CriError`
    where the file cannot be written, or something other than a regular file is in its place."""
    require_replaceable(path)
    temporary = temporary_path(path)
    made: list[Path] = []
    try:
        made = make_folder(path.parent)
        clear_temporaries(path)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CriError(f"{path.name}: cannot be written to {path.parent}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        remove_empty(made)


def swap_in(new: Path, folder: Path) -> None:
    """Puts the folder `new` in the place of `folder`, whose former contents are deleted. A process killed on the way
    leaves the one or the other, whole; where the file system cannot exchange two folders in one step, `recover` puts
    the former one back."""
    if not folder.exists():
        os.rename(new, folder)
    elif _exchange(new, folder):
        shutil.rmtree(new)
    else:
        former = _former(folder)
        try:
            os.rename(folder, former)
        except OSError:  # some layered file systems move no folder of a lower layer
            copy = temporary_path(former)
            shutil.copytree(folder, copy, symlinks=True)
            os.rename(copy, former)
            shutil.rmtree(folder)
        os.rename(new, folder)
        _discard(former)


def recover(folder: Path) -> None:
    """Undoes a `swap_in` that a kill cut short, and removes what it left; the caller holds the lock."""
    former = _former(folder)
    for path in (folder, former):
        clear_temporaries(path, alive_too=True)
    if former.exists():
        if folder.exists():
            _discard(folder)
        os.rename(former, folder)


def _discard(folder: Path) -> None:
    """Removes a folder so that a kill on the way leaves no part of it under its name."""
    gone = temporary_path(folder)
    try:
        os.rename(folder, gone)
    except OSError:  # see `swap_in`
        gone = folder
    shutil.rmtree(gone)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; false where the system cannot (renameat2(2) of Linux, renamex_np of macOS)."""
    libc = ctypes.CDLL(None)
    paths = os.fsencode(one), os.fsencode(other)
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP have the same value
    if hasattr(libc, "renameat2"):
        return libc.renameat2(here, paths[0], here, paths[1], exchange) == 0
    return hasattr(libc, "renamex_np") and libc.renamex_np(*paths, exchange) == 0


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Failures to write within the block (a full disk, say) as one `CriError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CriError(f"out: cannot write to {folder} ({reason}); the run resumes when there is space") from error


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def run_folder(out: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Where the run of `config` lies below `out`."""
    return out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{config_hash(config)}"


@contextlib.contextmanager
def locked(folder: Path, announce: bool = True, lock: Path | None = None) -> Iterator[None]:
    """Holds a run's `folder` for this process; a second process waits, and says for which. The lock ends with its
    process, however that ends. What killed processes left under temporary names is removed first, and a folder that
    was made for the lock and stays empty last.

    Args:
        folder: what is held.
        announce: say on stderr when there is another process to wait for.
        lock: the lock's file, where it is not to lie in the folder.
    """
    missing = [path for path in (folder if lock is None else lock.parent, *folder.parents) if not path.exists()]
    if lock is None:
        lock = folder / LOCK
        missing = list(dict.fromkeys([folder, *missing]))  # who waited for a holder that removed it makes it again
    try:
        descriptor = _acquire(lock, folder, announce)
    except OSError as error:
        remove_empty(missing)
        raise CriError(f"out: {folder} cannot be used: {error.strerror or error}") from error
    try:
        for stale in folder.rglob(".*.tmp") if folder.is_dir() else ():
            if stale.is_file():
                stale.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)  # while it is held: who waits for it finds that it is gone, and makes another
        os.close(descriptor)
        remove_empty(missing)


def _acquire(lock: Path, folder: Path, announce: bool) -> int:
    """The descriptor of the held lock file, which names this process."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if announce:
                    owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                    print(f"waiting for {owner}, which works on {folder}", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            held, named = os.fstat(descriptor), lock.stat() if lock.exists() else None
            if named is not None and (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has let it go and removed it


def is_complete(folder: Path) -> bool:
    return (folder / MARKER).exists()


def mark_complete(folder: Path, files: list[str]) -> None:
    """Writes the completion marker with the checksums of `files` (paths relative to the folder)."""
    names = sorted(content_name(name) for name in files)
    write_json(folder / MARKER, {"sha256": {name: file_sha256(folder / name) for name in names}})


def clear_unfinished(folder: Path) -> None:
    """Removes from a finished folder the checkpoints and parts that a kill left after the marker; its lock is held."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def verify(folder: Path) -> None:
    """Raises `CorruptRunError` naming the first file that is missing, truncated, altered, or that the marker does not
    vouch for although it would be read."""
    if not folder.is_dir():
        raise CriError(f"run: {folder} is not a folder")
    if not is_complete(folder):
        inside = sorted(path.name for path in folder.iterdir() if is_complete(path))
        if inside and not (folder / "config.json").exists():
            some = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
            raise CriError(f"run: {folder} is no run, but a folder of {len(inside)}; give one of them: {some}")
        raise CorruptRunError(f"run: {folder} is not finished; run the command that made it again to resume it")
    marker = read_json(folder / MARKER)
    listed = marker.get("sha256") if isinstance(marker, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise CorruptRunError(f"run: {folder / MARKER} lists no files; remove the folder and train again")
    for name, expected in listed.items():
        path = folder / name
        if not stored(path).is_file():
            raise CorruptRunError(f"run: {path} is missing; remove the folder and train again")
        try:
            found = file_sha256(path)
        except BROKEN:
            found = None
        if found != expected:
            raise CorruptRunError(f"run: {path} was altered or cut short (checksum); remove the folder and train again")
    for path in _readable(folder, {Path(name).parts[0] for name in listed if len(Path(name).parts) > 1}):
        name = str(path.relative_to(folder))
        if name not in listed and (content_name(name) not in listed or stored(folder / content_name(name)) != path):
            raise CorruptRunError(f"run: {path} is no file of this run ({MARKER} does not list it); remove it")


def _readable(folder: Path, inside: set[str]) -> Iterator[Path]:
    """The files of a finished folder that somebody might read back: all in the subfolders `inside`, which the marker
    vouches for, and in those without a marker of their own; beside them those of a format that is read."""
    for path in sorted(folder.iterdir()):
        if path.name == MARKER or path.name.startswith("."):
            continue
        if path.is_dir():
            if path.name in inside or not (path / MARKER).exists():
                yield from sorted(p for p in path.rglob("*") if not p.is_dir())
        elif path.suffix in _READ_BACK and not _UNFINISHED.fullmatch(path.name):
            yield path


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _program() -> str:
    """The module behind `python -m`, or the script's name: never a folder of this machine."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name


def provenance() -> dict[str, Any]:
    """Commit, whether the code differed from it (`dirty`; new records beside it do not count), versions, machine: what
    a recorded number needs to be traced.

    Where the code lies without its repository (a machine lent for an hour), CRI_COMMIT names the commit.
    """
    import torch

    versions = {}
    for package in ("cri", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn", "umap-learn", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    status = _git("status", "--porcelain", "--", ":/cri", ":/pyproject.toml", ":/constraints.txt")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("CRI_COMMIT"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "cpus": os.cpu_count(),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
