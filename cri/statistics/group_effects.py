"""Marginal effect of a group of training cases, from random training subsets: no designed removal is needed.

For a query q and a subset S, let n_G(S) be how many cases of group G (relative to q) S holds. Over the subsets,

    output(S) ~ constant + sum over G of beta_G n_G(S)

by least squares; the groups are disjoint and subsets are of one size, so that the group left out is what the others
are compared with. beta_G is the mean effect of training on one more case of G in place of one of the rest. As equal
numbers of cases are compared, the removal index can be had from these effects as well (`dose_index`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int8, Num

from cri.data.case_groups import GROUPS
from cri.errors import CriError
from cri.statistics.datamodels import Resamples
from cri.statistics.intervals import LEVEL
from cri.statistics.removal_index import NEAR, STEP, index, read

if TYPE_CHECKING:
    import pandas as pd

REST = "rest"


def effects_by_query(
    codes: Int8[np.ndarray, "train query"],
    kept: Bool[np.ndarray, "subset train"],
    outputs: Num[np.ndarray, "subset query"],
    draws: Resamples,
    per: int = 10,
    names: Sequence[str] = GROUPS,
) -> dict[str, Float[np.ndarray, "boot query"]]:
    """Effect on every query of training on `per` more cases of each group, in every bootstrap sample of subsets.

    Args:
        codes: group of each training case relative to each query, an index into `names` (`Groups.codes`).
        kept: which training cases each subset holds.
        outputs: output of each query after training on each subset.
        draws: from `datamodels.resamples`.
        names: of the groups, `rest` among them.

    Returns:
        By group, `rest` left out, in units of the output. NaN for queries that have no case of a group, or as many in
        every subset: nothing was varied there, so that nothing is known of its effect.
    """
    n_subsets, n_queries = outputs.shape
    groups = [name for name in names if name != REST]
    if kept.shape != (n_subsets, codes.shape[0]) or codes.shape[1] != n_queries:
        raise CriError(f"kept, codes, outputs: shapes {kept.shape}, {codes.shape}, {outputs.shape} do not fit together")
    weights = draws.subsets / draws.subsets.sum(axis=1, keepdims=True)
    counts = np.stack([kept.astype(np.float32) @ (codes == names.index(g)).astype(np.float32) for g in groups])
    effects = np.full((len(groups), len(weights), n_queries), np.nan)
    for q in range(n_queries):
        x = counts[:, :, q].T.astype(np.float64)
        present = np.flatnonzero(x.std(axis=0) > 0)
        x = x[:, present]
        mean_x, mean_y = weights @ x, weights @ outputs[:, q]
        products = (x[:, :, None] * x[:, None, :]).reshape(n_subsets, -1)
        cov = (weights @ products).reshape(-1, len(present), len(present)) - mean_x[:, :, None] * mean_x[:, None, :]
        cross = weights @ (x * outputs[:, q, None]) - mean_x * mean_y[:, None]
        # a resample in which two counts coincide has no unique solution: the smallest one is taken
        beta = np.einsum("bij,bj->bi", np.linalg.pinv(cov, hermitian=True), cross)
        effects[present, :, q] = per * beta.T
    return dict(zip(groups, effects, strict=True))


def group_effects(
    effects: Mapping[str, Float[np.ndarray, "boot query"]],
    codes: Int8[np.ndarray, "train query"],
    draws: Resamples,
    per: int = 10,
    names: Sequence[str] = GROUPS,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Mean effects over the queries that have the group, with intervals over subsets and queries; each counts alike.

    Args:
        effects: from `effects_by_query`, which had the same `codes`, `draws`, `per` and `names`.

    Returns:
        One row a group: `group`, `effect`, `low`, `high`, `per`, `size` (mean number of training cases in the group),
        `n_queries` (those that have the group; 0 with an effect of NaN where none has), `n_subsets`.
    """
    import pandas as pd

    rows = []
    for name, values in effects.items():
        estimate, low, high = _interval(_means(values, draws), level)
        has = np.isfinite(values[0])
        size = float((codes == names.index(name)).sum(axis=0)[has].mean()) if has.any() else 0.0
        row = {"group": name, "effect": estimate, "low": low, "high": high, "per": per, "size": size}
        rows.append({**row, "n_queries": int(has.sum())})
    return pd.DataFrame(rows).assign(n_subsets=draws.subsets.shape[1])


def _means(values: Float[np.ndarray, "boot query"], draws: Resamples) -> Float[np.ndarray, " boot"]:
    """Means over the queries that have a group, as often as each sample drew them; NaN for samples that drew none."""
    has = np.isfinite(values)
    weights = draws.queries * has
    total = weights.sum(axis=1)
    sums = (np.where(has, values, 0.0) * weights).sum(axis=1)
    return np.divide(sums, total, out=np.full(len(sums), np.nan), where=total > 0)


def _interval(means: Float[np.ndarray, " boot"], level: float) -> tuple[float, float, float]:
    """The sample's own mean and the percentiles of the others; NaN where no query has the group."""
    if np.isnan(means[0]):
        return np.nan, np.nan, np.nan
    low, high = np.nanquantile(means[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(means[0]), float(low), float(high)


def dose_index(
    effects: Mapping[str, Float[np.ndarray, "boot query"]],
    draws: Resamples,
    near: str = NEAR,
    step: str = STEP,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The removal index (`removal_index.index`) of the mean effects of near cases and of those that share a step.

    Args:
        effects: from `effects_by_query`.
        near, step: the groups to compare.

    Returns:
        `cri`, `near`, `step`, `difference`, each with `_low` and `_high`, and `reading`, as `removal_index.index_table`
        has them.
    """
    means = {name: _means(effects[group], draws) for name, group in (("near", near), ("step", step))}
    samples = {"cri": index(means["near"], means["step"]), **means, "difference": means["near"] - means["step"]}
    row: dict[str, Any] = {}
    for name, values in samples.items():
        row[name], row[f"{name}_low"], row[f"{name}_high"] = _interval(values, level)
    return {**row, "reading": read(row)}
