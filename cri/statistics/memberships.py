"""What the best-scored units are, for memberships that overlap: enrichment, matched by output, and one regression.

A layer that determines the output puts units with the same result together, whatever the mechanism. So the share of a
group among the top k is compared with its base rate, also among candidates with the same result only; and one
regression of the scores on all memberships separates the effects of memberships that occur together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from cri.errors import CriError
from cri.statistics.enrichment import top_k
from cri.statistics.intervals import LEVEL, N_BOOT

if TYPE_CHECKING:
    import pandas as pd

Scores = Num[np.ndarray, "train test"]
Masks = Mapping[str, Bool[np.ndarray, "train test"]]


def overlapping_enrichment(
    scores: Scores, masks: Masks, k: int = 10, candidates: Bool[np.ndarray, "train test"] | None = None
) -> pd.DataFrame:
    """Share of each membership among the k best-scored training units of every test unit, and its base rate.

    Args:
        candidates: only these are ranked (those with the same result, say); all by default. A test unit has no row if
            it has at most k candidates, or if none or all of its candidates have the membership.

    Returns:
        One row a test unit and membership: `test` (column of `scores`), `group`, `share`, `base`, `excess` (share -
        base).
    """
    import pandas as pd

    scores = np.asarray(scores, dtype=np.float64)
    allowed = np.ones(scores.shape, dtype=bool) if candidates is None else candidates
    kept = np.flatnonzero(allowed.sum(axis=0) > k)
    if not len(kept):
        return pd.DataFrame(columns=["test", "group", "share", "base", "excess"])
    lowest = scores.min() - 1.0
    best = top_k(np.where(allowed[:, kept], scores[:, kept], lowest), k)
    n_allowed = allowed[:, kept].sum(axis=0)
    parts = []
    for name, mask in masks.items():
        here = mask[:, kept] & allowed[:, kept]
        base = here.sum(axis=0) / n_allowed
        share = np.bincount(best.columns, best.weights * here[best.rows, best.columns], minlength=len(kept)) / k
        told = (base > 0) & (base < 1)
        parts.append(
            pd.DataFrame(
                {"test": kept[told], "group": name, "share": share[told], "base": base[told],
                 "excess": (share - base)[told]}
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def membership_regression(
    scores: Scores,
    masks: Masks,
    block: Int[np.ndarray, " test"],
    contrast: tuple[str, str] | None = None,
    *,
    minus: Scores | None = None,
    n_boot: int = N_BOOT,
    level: float = LEVEL,
    seed: int = 0,
) -> pd.DataFrame:
    """Effects of memberships on the scores, all together: least squares over all pairs, with bootstrap intervals.

    The scores of each test unit are standardised over the training units, memberships centred; an effect is thus in
    standard deviations of a test unit's scores, other memberships held fixed. Blocks of test units (those of one patch
    of the grid) are resampled.

    Args:
        block: which block each test unit is in.
        contrast: two memberships whose effects are compared, first minus second.
        minus: scores of a control, standardised likewise and subtracted: effects are then those beyond the control's.

    Returns:
        One row a membership (and `difference` last): `group`, `effect`, `low`, `high`, `vif` (variance inflation: above
        10 the others nearly predict it, and it is not told apart), `n` (test units with any such training unit).

    Raises `CriError` where shapes do not fit.
    """
    import pandas as pd

    names = list(masks)
    x = np.stack([masks[name] for name in names]).astype(np.float64)
    if x.shape[1:] != scores.shape or len(block) != scores.shape[1]:
        raise CriError(f"masks, block: shapes {x.shape}, {np.shape(block)} do not fit scores of {scores.shape}")
    y = _standardised(scores) if minus is None else _standardised(scores) - _standardised(minus)
    x = x - x.mean(axis=1, keepdims=True)
    blocks, index = np.unique(block, return_inverse=True)
    gram = np.zeros((len(blocks), len(names), len(names)))
    cross = np.zeros((len(blocks), len(names)))
    for b in range(len(blocks)):
        mine = index == b
        gram[b] = np.einsum("kij,lij->kl", x[:, :, mine], x[:, :, mine], optimize=True)
        cross[b] = np.einsum("kij,ij->k", x[:, :, mine], y[:, mine])
    total = gram.sum(axis=0)
    scale = np.sqrt(np.maximum(np.diag(total), 1e-12))
    vif = np.diag(np.linalg.pinv(total / np.outer(scale, scale), hermitian=True))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=n_boot if len(blocks) > 1 else 0)
    weights = np.concatenate([np.ones((1, len(blocks))), draws])
    inverse = np.linalg.pinv(np.einsum("nb,bkl->nkl", weights, gram), hermitian=True)
    samples = np.einsum("nkl,nl->nk", inverse, weights @ cross)
    rows = [
        (name, *_interval(samples[:, k], level), float(vif[k]), int(masks[name].any(axis=0).sum()))
        for k, name in enumerate(names)
    ]
    if contrast is not None and set(contrast) <= set(names):
        one, other = (samples[:, names.index(name)] for name in contrast)
        rows.append(("difference", *_interval(one - other, level), np.nan, scores.shape[1]))
    return pd.DataFrame(rows, columns=["group", "effect", "low", "high", "vif", "n"])


def _standardised(scores: Scores) -> Float[np.ndarray, "train test"]:
    """Each test unit's scores with mean 0 and standard deviation 1 (0 where all are equal)."""
    y = np.asarray(scores, dtype=np.float64)
    deviation = y.std(axis=0)
    return (y - y.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


def _interval(samples: Float[np.ndarray, " boot"], level: float) -> tuple[float, float, float]:
    if len(samples) < 2:
        return float(samples[0]), np.nan, np.nan
    low, high = np.quantile(samples[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(samples[0]), float(low), float(high)
