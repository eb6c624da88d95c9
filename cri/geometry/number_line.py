"""Fits of the operands' embeddings, and the same embeddings replaced by their fit.

The line and helix h(n) = C [1, n, cos 2πn/T, sin 2πn/T, ...] is that of Kantamneni & Tegmark (2025, arXiv 2502.00873).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cri.errors import CriError, out_of_range
from cri.geometry.subject import OPERANDS, Edit


@dataclass(frozen=True, eq=False)
class Fit:
    """A table of vectors and its fit.

    Attributes:
        fitted: [number, d].
        r2: share of the centred table's variance that the fit explains.
        rank: how many functions of n the fit has, the constant not counted.
    """

    fitted: Float[np.ndarray, "number d"]
    r2: float
    rank: int


def helix_basis(n: int, periods: Sequence[float], *, line: bool = True) -> Float[np.ndarray, "number k"]:
    """Columns 1, n (scaled to -1 .. 1, where `line`), then cos and sin of 2πn/T for each period T.

    Raises `CriError` for a period below 2 or beyond twice the numbers' range: no such wave can be told there.
    """
    x = np.arange(n)
    columns = [np.ones(n)]
    if line:
        columns.append(2 * x / max(n - 1, 1) - 1)
    for period in periods:
        if not 2 <= period <= 2 * n:
            raise out_of_range("periods", period, f"in 2..{2 * n} for numbers 0..{n - 1}")
        columns.append(np.cos(2 * np.pi * x / period))
        if period > 2:  # sin πn is 0 at every number
            columns.append(np.sin(2 * np.pi * x / period))
    return np.stack(columns, axis=1)


def fit_columns(table: Float[np.ndarray, "number d"], basis: Float[np.ndarray, "number k"]) -> Fit:
    """Least squares of the table on the columns of `basis`."""
    if len(basis) != len(table):
        raise CriError(f"basis: {len(basis)} rows for a table of {len(table)}")
    y = np.asarray(table, dtype=np.float64)
    fitted = basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
    total = ((y - y.mean(0)) ** 2).sum()
    return Fit(fitted, float(1 - ((y - fitted) ** 2).sum() / total) if total > 0 else 0.0, basis.shape[1] - 1)


def fit_helix(table: Float[np.ndarray, "number d"], periods: Sequence[float]) -> Fit:
    """The table on a line and a circle a period."""
    return fit_columns(table, helix_basis(len(table), periods))


def fit_pca(table: Float[np.ndarray, "number d"], rank: int) -> Fit:
    """The table's best approximation of equal rank: the control that may keep any shape."""
    from sklearn.decomposition import PCA

    if not 1 <= rank <= min(table.shape):
        raise out_of_range("rank", rank, f"in 1..{min(table.shape)}")
    pca = PCA(rank, svd_solver="full").fit(table)
    return Fit(pca.inverse_transform(pca.transform(table)), float(pca.explained_variance_ratio_.sum()), rank)


def random_curve(table: Float[np.ndarray, "number d"], periods: Sequence[float], seed: int) -> Fit:
    """A line and helix of the same periods, in random directions, as large as the fit at every frequency.

    It is as smooth as the fit but unrelated to the directions that the model reads: the control of a replacement.
    """
    basis = helix_basis(len(table), periods)
    y = np.asarray(table, dtype=np.float64)
    weights = np.linalg.lstsq(basis, y, rcond=None)[0]
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(weights.shape)
    noise *= np.linalg.norm(weights, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    noise[0] = weights[0]
    fitted = basis @ noise
    total = ((y - y.mean(0)) ** 2).sum()
    return Fit(fitted, float(1 - ((y - fitted) ** 2).sum() / total) if total > 0 else 0.0, basis.shape[1] - 1)


def replace_operands(table: Float[np.ndarray, "number d"]) -> Edit:
    """The edit that gives a and b other embeddings, [number, d]. A tied unembedding keeps its own."""
    new = torch.from_numpy(np.asarray(table, dtype=np.float32))

    def write(tensor: Tensor, ids: np.ndarray) -> Tensor:
        operands = np.divmod(ids, len(new))  # case ids count b within a
        for position, values in zip(OPERANDS, operands, strict=True):
            tensor[:, position] = new[torch.from_numpy(values)].to(tensor)
        return tensor

    return "embed.hook_out", write
