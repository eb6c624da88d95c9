"""A long study's rows, kept piece by piece: a study that was killed goes on with the pieces that are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cri.studies.common.records import Record

Rows = list[dict[str, Any]]


class Pieces:
    """Pieces of one record, in a hidden folder beside it, held as JSON until the record is written.

    Args:
        record: that they are going to make, held by this process.
        identity: what they rest on; pieces made on something else are removed.
    """

    def __init__(self, record: Record, identity: Mapping[str, Any]) -> None:
        from cri.storage import canonical_json, write_json

        self.folder: Path = record.folder.with_name(f".{record.folder.name}.pieces")
        own = {"rests_on": canonical_json(identity)}
        if not self._is(own):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self.folder / "rests_on.json", own)

    def _is(self, own: Mapping[str, Any]) -> bool:
        from cri.storage import read_json

        mark = self.folder / "rests_on.json"
        return mark.exists() and read_json(mark) == own

    def rows(self, name: str, make: Callable[[], Rows]) -> Rows:
        """The rows of a piece, made where they are not there yet. Those that were just made are read back as well, so
        that a study that was killed has the rows of one that was not."""
        from cri.storage import read_json, write_json

        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, {"rows": make()})
        return read_json(path)["rows"]

    def clear(self) -> None:
        """Removes all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)
