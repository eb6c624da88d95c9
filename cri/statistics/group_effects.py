"""What a group of training cases is worth, from random training subsets: no removal need be designed for it.

For a query q and a subset S, let n_G(S) be how many cases of group G (relative to q) S holds. Over the subsets,

    output(S) ~ constant + sum over G of beta_G n_G(S)

by least squares; the groups are disjoint and subsets are of one size, so that the group left out is what the others
are compared with. beta_G is the mean effect of training on one more case of G in place of one of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int8, Num

from cri.errors import CriError
from cri.statistics.datamodels import Resamples
from cri.statistics.groups import GROUPS

if TYPE_CHECKING:
    import pandas as pd

REST = "rest"


def group_effects(
    codes: Int8[np.ndarray, "train query"],
    kept: Bool[np.ndarray, "subset train"],
    outputs: Num[np.ndarray, "subset query"],
    draws: Resamples,
    per: int = 10,
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean effect over queries of training on `per` more cases of each group, with intervals over subsets and queries.

    Args:
        codes: group of each training case relative to each query, an index into `GROUPS` (`Groups.codes`).
        kept: which training cases each subset holds.
        outputs: output of each query after training on each subset.
        draws: from `datamodels.resamples`.

    Returns:
        One row a group but `rest`: `group`, `effect`, `low`, `high` (in units of the output), `size` (mean number of
        training cases in the group), `n_queries`, `n_subsets`. Queries for which a group has no case count as 0 for
        it; weighted by nothing, every query counts alike.
    """
    import pandas as pd

    n_subsets, n_queries = outputs.shape
    names = [name for name in GROUPS if name != REST]
    if kept.shape != (n_subsets, codes.shape[0]) or codes.shape[1] != n_queries:
        raise CriError(f"kept, codes, outputs: shapes {kept.shape}, {codes.shape}, {outputs.shape} do not fit together")
    weights = draws.subsets / draws.subsets.sum(axis=1, keepdims=True)
    counts = np.stack([kept.astype(np.float32) @ (codes == GROUPS.index(g)).astype(np.float32) for g in names])
    effects = np.zeros((len(names), len(weights), n_queries))
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
    rows = []
    for i, name in enumerate(names):
        estimate, low, high = draws.interval(effects[i], level)
        size = float((codes == GROUPS.index(name)).sum(axis=0).mean())
        rows.append({"group": name, "effect": estimate, "low": low, "high": high, "per": per, "size": size})
    return pd.DataFrame(rows).assign(n_queries=n_queries, n_subsets=n_subsets)
