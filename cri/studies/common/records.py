"""What a study leaves behind, wholly of one run or another: tables, a manifest that says what they rest on, figures.

A record is made in a folder beside its place and put there in one step, under a lock that its process holds from the
first training to the last figure. Figures lie elsewhere, so they are drawn into the record first, and handed out of it
when it is in its place; should the process be killed just then, the next one hands them out.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.errors import CriError

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
Draw = Callable[[Path, Path], list[Path]]
"""Draws the figures of the tables in the first folder into the second; returns the files written."""
_DRAWN = ".figures"
"""The folder inside a record of figures that are not yet handed out."""
_HANDING_OUT = "to.json"


def code_hash(*names: str) -> str:
    """Hash of what recorded tables are computed by: the package without plots and studies, what studies share, and the
    named studies' files (glob patterns). Comments, docstrings and layout do not count.

    Tables are made again where this differs: that takes minutes. Trained models are kept whatever the code: they are
    known by config, tokens, split and replicas (`Materials.identity`, `Replica.identity`), and a change of training
    that makes other models has to change one of these.
    """
    package = Path(__file__).parents[2]
    studies = package / "studies"
    files = [f for f in sorted(package.rglob("*.py")) if f.relative_to(package).parts[0] not in ("plots", "studies")]
    files += [f for name in ("common/*.py", *names) for f in sorted(studies.glob(name))]
    listed = {str(f.relative_to(package)): _statements(f.read_text()) for f in files}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache  # a second for the whole package, and a process may run several studies
def _statements(source: str) -> str:
    """Source code without comments, docstrings (of attributes too) and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            texts = [s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
            setattr(node, "body", [s for s in body if s not in texts])  # noqa: B010
    return ast.unparse(tree)


@contextlib.contextmanager
def recording(folder: Path, figures: Path | None = None) -> Iterator[Record]:
    """Holds the record in `folder`, and sees that it and the figures can be written before any work goes into them.

    Args:
        folder: of the record. What it holds is replaced as a whole, so it must be empty or hold a record.
        figures: folder of the figures, where the study draws any.

    Raises `CriError` for a folder that cannot be written or that holds something else.
    """
    from cri.storage import locked, recover, require_writable

    if folder.is_symlink():  # the link stays, what it leads to is replaced
        folder = folder.resolve()
    if folder.name in ("", ".."):
        raise CriError(f"record: {folder} is no name for a record")
    if figures is not None and (figures.resolve() == folder.resolve() or folder.resolve() in figures.resolve().parents):
        raise CriError(f"figures: {figures} lies in the record's folder, which is replaced as a whole; name another")
    require_writable("record", folder.parent)
    if figures is not None:
        require_writable("figures", figures)
    with locked(folder, lock=folder.with_name(f".{folder.name}.lock")):
        recover(folder)
        _require_record(folder)
        _hand_out(folder)
        yield Record(folder, figures)


def _require_record(folder: Path) -> None:
    """Raises `CriError` where `folder` holds files that are no record's, which would be lost."""
    if folder.exists() and not folder.is_dir():
        raise CriError(f"record: {folder} is not a folder")
    names = [p.name for p in sorted(folder.iterdir()) if not p.name.startswith(".")] if folder.exists() else []
    foreign = [name for name in names if not name.endswith((".csv", ".csv.gz", ".json"))]
    if names and (foreign or MANIFEST not in names):
        raise CriError(f"record: {folder} holds what is no record ({(foreign or names)[0]}); name another folder")


@dataclass(frozen=True)
class Record:
    """A record that this process holds (see `recording`).

    Attributes:
        folder: of tables and manifest.
        figures: folder of the figures, None where there are none.
    """

    folder: Path
    figures: Path | None

    def reusable(self, identity: Mapping[str, Any]) -> bool:
        """Whether the folder holds finished tables that rest on just this; raises `CorruptRunError` where one was
        altered."""
        from cri.storage import is_complete, read_json, verify

        if not is_complete(self.folder):
            return False
        verify(self.folder)
        return read_json(self.folder / MANIFEST)["identity"] == identity

    def write(
        self, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], draw: Draw | None = None
    ) -> list[Path]:
        """Replaces the record: each table as CSV, the manifest (`facts`, machine and versions), and what `draw` makes
        of these. Tables and figures of the former record that this one has not are removed. Returns the figures."""
        from cri.storage import provenance, write_bytes, write_json
        from cri.storage.compression import pack_table
        from cri.training.forecast import end_if_asked

        end_if_asked(f"the tables of {self.folder} rest on what is there")
        with self._made_beside() as new:
            for name, table in tables.items():
                write_bytes(*pack_table(table, new / f"{name}.csv", float_format="%.5g"))
            write_json(new / MANIFEST, {**facts, **provenance()})
            return self._put(new, draw)

    def redraw(self, draw: Draw) -> list[Path]:
        """Draws the figures again from the tables that are there; returns them."""
        from cri.storage import MARKER

        with self._made_beside() as new:
            for path in self.folder.iterdir():
                if path.name != MARKER and not path.name.startswith("."):
                    shutil.copy2(path, new)
            return self._put(new, draw)

    @contextlib.contextmanager
    def _made_beside(self) -> Iterator[Path]:
        """A folder of the record's name in a temporary one beside it, gone when the block ends."""
        from cri.storage import temporary_path

        outside = temporary_path(self.folder)
        new = outside / self.folder.name
        try:
            new.mkdir(parents=True)
            yield new
        except OSError as error:
            reason = error.strerror or error
            raise CriError(f"record: cannot write {self.folder} ({reason}); what was recorded before stands") from error
        finally:
            shutil.rmtree(outside, ignore_errors=True)

    def _put(self, new: Path, draw: Draw | None) -> list[Path]:
        """Draws the figures of the tables in `new`, puts it in the record's place, hands the figures out."""
        from cri.storage import file_sha256, mark_complete, read_json, swap_in, write_json

        drawn = []
        if draw is not None and self.figures is not None:
            drawn = draw(new, new / _DRAWN)
            checksums = {path.name: file_sha256(path) for path in drawn}
            former = self.folder / MANIFEST
            before = read_json(former).get("figures", {}) if former.exists() else {}
            gone = {name: checksum for name, checksum in before.items() if name not in checksums}
            write_json(new / _DRAWN / _HANDING_OUT, {"figures": str(self.figures.resolve()), "gone": gone})
            write_json(new / MANIFEST, {**read_json(new / MANIFEST), "figures": checksums})
        mark_complete(new, [path.name for path in sorted(new.iterdir()) if not path.name.startswith(".")])
        swap_in(new, self.folder)
        _hand_out(self.folder)
        return [self.figures / path.name for path in drawn] if self.figures else []


def _hand_out(folder: Path) -> None:
    """Moves figures that were drawn into a record to where they belong, and removes those that it no longer has (if
    they were not changed since)."""
    from cri.storage import file_sha256, read_json

    drawn = folder / _DRAWN
    if not (drawn / _HANDING_OUT).exists():
        return
    order = read_json(drawn / _HANDING_OUT)
    figures = Path(order["figures"])
    try:
        figures.mkdir(parents=True, exist_ok=True)
        for path in sorted(drawn.iterdir()):
            if path.name != _HANDING_OUT:
                _move(path, figures / path.name)
        for name, checksum in order["gone"].items():
            stale = figures / name
            if stale.is_file() and not stale.is_symlink() and file_sha256(stale) == checksum:
                stale.unlink()
        shutil.rmtree(drawn)
    except OSError as error:
        raise CriError(
            f"figures: cannot be written to {figures} ({error.strerror or error}); they wait in {drawn}"
        ) from error


def _move(source: Path, target: Path) -> None:
    """`source` to `target` in one step, be it on another file system."""
    from cri.storage import atomic_path, require_replaceable

    require_replaceable(target, "figures")
    try:
        os.replace(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
