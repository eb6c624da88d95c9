"""Representation similarity: which training cases lie nearest to a test case at a site.

Scores are similarities, larger meaning closer: the cosine itself, or *minus* the Euclidean distance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int

from cri.checks import checked
from cri.errors import CriError, out_of_range, unknown_name

METRICS: tuple[str, ...] = ("cosine", "euclidean", "whitened_cosine")


@checked
def whiten(
    train: Float[np.ndarray, "train d"], test: Float[np.ndarray, "test d"], shrinkage: float = 0.01
) -> tuple[Float[np.ndarray, "train d"], Float[np.ndarray, "test d"]]:
    """Both sets centred on the training mean and decorrelated by the training covariance.

    x -> (x - μ) U (Λ + s · mean(Λ))^-½ with Σ = U Λ Uᵀ the covariance of `train` and s the `shrinkage`,
    which keeps directions of (next to) no variance from being blown up. Computed in float64.
    """
    if shrinkage < 0:
        raise out_of_range("shrinkage", shrinkage, "non-negative")
    train64, test64 = train.astype(np.float64), test.astype(np.float64)
    mean = train64.mean(axis=0)
    centered = train64 - mean
    values, vectors = np.linalg.eigh(centered.T @ centered / max(len(train) - 1, 1))
    values = np.maximum(values, 0)
    scale = values + shrinkage * values.mean()
    # a covariance of nothing at all (one case, or equal cases) leaves nothing to scale
    transform = vectors / np.sqrt(np.where(scale > 0, scale, 1.0))
    return centered @ transform, (test64 - mean) @ transform


def _prepare(
    train: Float[np.ndarray, "train d"], test: Float[np.ndarray, "test d"], metric: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Float32 matrices (rows of length 1 for the cosines) and the factor to multiply their distances by; checks shapes,
    the metric's name and the values once."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    train, test = np.asarray(train), np.asarray(test)
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise CriError(f"train, test: shapes {train.shape} and {test.shape} are not [case, d] with one d")
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise CriError("train, test: activations hold values that are not finite")
    if not len(train):
        raise CriError("train: no cases")
    if metric == "cosine":
        return _unit(train), _unit(test), 1.0
    # squares of values beyond about 1e19, or below 1e-23, leave float32's range, so the largest is brought to 1
    largest = max((float(np.abs(x).max()) for x in (train, test) if x.size), default=0.0) or 1.0
    train64, test64 = (x.astype(np.float64) / largest for x in (train, test))
    if metric == "whitened_cosine":
        white = whiten(train64, test64)
        return _unit(white[0]), _unit(white[1]), 1.0
    # distances do not depend on the origin, and near it float32 keeps more of their digits
    mean = train64.mean(axis=0)
    centred = train64 - mean, test64 - mean
    radius = max((float(np.abs(x).max()) for x in centred if x.size), default=0.0) or 1.0
    x, y = ((c / radius).astype(np.float32) for c in centred)
    if not radius * largest * 2 * np.sqrt(x.shape[1]) < np.finfo(np.float32).max:
        raise CriError(f"train, test: distances of about {radius * largest:.1g} are beyond float32; scale them down")
    return x, y, radius * largest


def _unit(x: Float[np.ndarray, "case d"]) -> Float32[np.ndarray, "case d"]:
    """Rows of length one; a zero row stays zero, with cosine 0 to everything."""
    # squares of rows beyond about 1e19, or below 1e-23, leave float32's range: bring each row's largest entry to 1
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0.0)
    x = (x / np.where(largest > 0, largest, 1.0).astype(x.dtype)).astype(np.float32)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1.0)


def _score(train: np.ndarray, test: np.ndarray, metric: str, scale: float = 1.0) -> Float32[np.ndarray, "train test"]:
    products = train @ test.T
    if metric != "euclidean":
        return products
    # |x - y|² = |x|² + |y|² - 2 x·y, rounding may push it below 0
    squares = (train**2).sum(axis=1)[:, None] + (test**2).sum(axis=1) - 2 * products
    return -np.sqrt(np.maximum(squares, 0, out=squares)) * np.float32(scale)


@checked
def similarity(
    train: Float[np.ndarray, "train d"], test: Float[np.ndarray, "test d"], metric: str = "cosine"
) -> Float32[np.ndarray, "train test"]:
    """Similarity of every training case to every test case.

    Args:
        train, test: activations at one site.
        metric: `cosine` (x·y / |x||y|, not centred), `euclidean` (-|x - y|), or `whitened_cosine` (the
            cosine after `whiten`).

    Raises `UnknownNameError` for another metric, `CriError` for shapes that do not match or activations
    that are not finite.
    """
    x, y, scale = _prepare(train, test, metric)
    return _score(x, y, metric, scale)


@checked
def nearest(
    train: Float[np.ndarray, "train d"],
    test: Float[np.ndarray, "test d"],
    k: int,
    metric: str = "cosine",
    *,
    exact_limit: float = 4e10,
    block_bytes: int = 256_000_000,
) -> tuple[Int[np.ndarray, "test k"], Float32[np.ndarray, "test k"]]:
    """The k nearest training cases of every test case, best first, without the whole score matrix.

    Exact, by matrix products in blocks of at most `block_bytes` of scores, up to `exact_limit` scores
    (train x test; the default takes minutes on one core); approximate by `pynndescent` beyond.

    Returns:
        Rows of `train`, and their similarities as `similarity` has them. Among equal similarities the
        exact search takes the earlier row.
    """
    x, y, scale = _prepare(train, test, metric)
    if not 1 <= k <= len(x):
        raise out_of_range("k", k, f"in 1..{len(x)}")
    if len(x) * len(y) > exact_limit:
        return _approximate(x, y, k, metric, scale)
    ids = np.empty((len(y), k), dtype=np.int64)
    scores = np.empty((len(y), k), dtype=np.float32)
    block = max(1, int(block_bytes // (4 * len(x))))
    for start in range(0, len(y), block):
        rows = slice(start, start + block)
        s = np.ascontiguousarray(_score(x, y[rows], metric, scale).T)
        # everything at least as good as the k-th best: no more than a few beyond k, so sorting is cheap
        cut = np.partition(s, len(x) - k, axis=1)[:, len(x) - k]
        for i, row in enumerate(s):
            candidates = np.flatnonzero(row >= cut[i])
            best = candidates[np.argsort(-row[candidates], kind="stable")[:k]]
            ids[start + i], scores[start + i] = best, row[best]
    return ids, scores


def _approximate(x: np.ndarray, y: np.ndarray, k: int, metric: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    from pynndescent import NNDescent  # compiles for seconds when imported

    from cri.models.device import same_threads

    with same_threads():
        # on unit rows the Euclidean order is the cosine order
        index = NNDescent(x, metric="euclidean", n_neighbors=max(30, 2 * k), random_state=0)
        ids, distances = index.query(y, k=k)
    scores = -distances * scale if metric == "euclidean" else 1 - distances**2 / 2
    return ids.astype(np.int64), scores.astype(np.float32)
