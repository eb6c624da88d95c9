"""How a page holds numbers: gzipped typed arrays in base64, and activations in few bits.

Numbers are little-endian, each array on a multiple of 8 bytes, so that a browser looks at them without a copy.
"""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int8

from cri.errors import CriError

_KINDS = {"float32": "f4", "uint8": "u1", "int8": "i1", "uint16": "u2", "uint32": "u4"}
LEVELS = 15
"""Steps on either side of 0 in which a map of scores is kept, even in the square root of the score."""


@dataclass
class Blob:
    """Arrays that the page decodes together."""

    parts: list[bytes] = field(default_factory=list)
    index: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds an array under a name; its type must be one that JavaScript has."""
        data = np.ascontiguousarray(array)
        if data.dtype.name not in _KINDS:
            raise CriError(f"array: {name} is of type {data.dtype.name}; must be one of {', '.join(_KINDS)}")
        raw = data.astype(data.dtype.newbyteorder("<")).tobytes()
        self.index[name] = {"type": _KINDS[data.dtype.name], "at": self.size, "shape": list(data.shape)}
        padded = raw + bytes(-len(raw) % 8)
        self.parts.append(padded)
        self.size += len(padded)

    def encoded(self) -> str:
        """Gzipped (without a date: equal data, equal text) and in base64."""
        return packed(b"".join(self.parts))


def packed(data: bytes) -> str:
    """gzip, then base64."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def ids(array: np.ndarray) -> np.ndarray:
    """Case ids or ranks in 16 bits where they fit."""
    return array.astype(np.uint16 if array.size == 0 or int(array.max()) < 2**16 else np.uint32)


def coded_vectors(blob: Blob, x: Float[np.ndarray, "case d"]) -> None:
    """Adds activations as `mean` + `z` · `step`, in their principal directions and 8 bits.

    The directions are those of all cases, so lengths, distances and cosines come out as in the original axes; z is
    [direction, case]. The step of a direction is the geometric mean of the finest one for it and that of the widest
    direction: narrow ones then take few values and pack well, and are still told apart by the whitened cosine.
    """
    mean = x.astype(np.float64).mean(0)
    centred = x - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1]
    # an eigenvector's sign is arbitrary: fixed, so that equal activations give equal pages
    directions = directions * np.where(directions[np.abs(directions).argmax(0), range(directions.shape[1])] < 0, -1, 1)
    z = centred @ directions
    finest = np.maximum(np.abs(z).max(0) / 127, 1e-30)
    step = np.sqrt(finest * finest.max())
    blob.add("z", np.round(z / step).astype(np.int8).T)
    blob.add("step", step.astype(np.float32))
    blob.add("mean", (mean @ directions).astype(np.float32))


def coded_scores(scores: Float[np.ndarray, "train query"]) -> tuple[Int8[np.ndarray, "query train"], np.ndarray]:
    """Scores in 2 · LEVELS + 1 steps, even in their square root, and the largest size of each query's."""
    largest = np.maximum(np.abs(scores).max(0), 1e-30)
    coded = np.sign(scores) * np.round(np.sqrt(np.abs(scores) / largest) * LEVELS)
    return coded.astype(np.int8).T, largest.astype(np.float32)
