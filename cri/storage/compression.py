"""Files that are kept compressed, behind the names of what they hold: one writer, one reader.

`cases.csv` may lie as `cases.csv.gz`, `record.safetensors` as `record.safetensors.xz`. Checksums are those of the
content, so that packing a file changes no completion marker, nor any hash that rests on one. Packed bytes are
reproducible: a gzip header holds no time here, and an xz header never does.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

GZIP, XZ = ".gz", ".xz"
TABLE_LIMIT = 600_000
"""Bytes beyond which a table is kept compressed; smaller ones can be read where they lie."""
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""What reading a damaged file raises."""
_FLOATS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 2, "pb": 2}]
"""Told that numbers are four bytes long, xz finds the exponents alike: losses shrink to a third (to 0.7 otherwise)."""


def stored(path: Path) -> Path:
    """The file that holds the content of `path`: itself or, where there is none, its compressed form."""
    if not path.exists():
        for suffix in (GZIP, XZ):
            packed = path.with_name(path.name + suffix)
            if packed.exists():
                return packed
    return path


def content_name(name: str) -> str:
    """The name of what a file of this name holds, as completion markers list it."""
    return name.removesuffix(GZIP).removesuffix(XZ) if name.endswith((f".csv{GZIP}", f".safetensors{XZ}")) else name


def open_content(path: Path) -> io.BufferedIOBase:
    """Opens the content of `path` for reading, wherever `stored` finds it."""
    found = stored(path)
    if found == path:
        return path.open("rb")
    return gzip.GzipFile(found) if found.suffix == GZIP else lzma.LZMAFile(found)


def read_content(path: Path) -> bytes:
    """The content of `path`, unpacked."""
    with open_content(path) as file:
        return file.read()


def pack_table(table: pd.DataFrame, path: Path, **options: Any) -> tuple[Path, bytes]:
    """Where a table that is to be read as `path` goes, and the bytes to write there; `options` are `to_csv`'s."""
    text = table.to_csv(index=False, **options).encode()
    if len(text) <= TABLE_LIMIT:
        return path, text
    return path.with_name(path.name + GZIP), gzip.compress(text, 9, mtime=0)


def read_table(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV table, compressed or not; `options` are those of `pandas.read_csv`."""
    import pandas as pd

    with open_content(path) as file:
        return pd.read_csv(file, **options)


def tables_in(folder: Path) -> dict[str, Path]:
    """The tables of a folder by name, each as the path to give to `read_table`."""
    names = sorted({content_name(p.name) for p in folder.glob("*.csv*") if content_name(p.name).endswith(".csv")})
    return {name.removesuffix(".csv"): folder / name for name in names}


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as a safetensors file in xz, without loss."""
    import numpy as np
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return lzma.compress(content, filters=_FLOATS)


def pack_file(path: Path) -> tuple[Path, bytes]:
    """Where the compressed form of a safetensors file goes, and its bytes; readers that go through this module see no
    difference between the two."""
    return path.with_name(path.name + XZ), lzma.compress(path.read_bytes(), filters=_FLOATS)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, compressed or not."""
    from safetensors.numpy import load

    return load(read_content(path))
