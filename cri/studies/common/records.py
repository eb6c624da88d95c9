"""What a study leaves behind: tables and a manifest that says what they rest on, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"


def code_hash(*names: str) -> str:
    """Hash of the package without plots and studies, and of the named studies' files (glob patterns)."""
    from cri.storage import file_sha256

    package = Path(__file__).parents[2]
    studies = package / "studies"
    files = [f for f in sorted(package.rglob("*.py")) if f.relative_to(package).parts[0] not in ("plots", "studies")]
    files += [f for name in names for f in sorted(studies.glob(name))]
    listed = {str(f.relative_to(package)): file_sha256(f) for f in files}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def reusable(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `folder` holds finished tables that rest on just this; raises `CorruptRunError` where one was altered."""
    from cri.storage import is_complete, read_json, verify

    if not is_complete(folder):
        return False
    verify(folder)
    return read_json(folder / MANIFEST)["identity"] == identity


def write_record(folder: Path, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]) -> None:
    """Writes each table as CSV and the manifest (`facts`, machine and versions), then marks the folder complete. The
    caller holds its lock."""
    from cri.storage import MARKER, mark_complete, provenance, write_json, write_text

    (folder / MARKER).unlink(missing_ok=True)
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))
    write_json(folder / MANIFEST, {**facts, **provenance()})
    mark_complete(folder, [MANIFEST, *(f"{name}.csv" for name in tables)])
