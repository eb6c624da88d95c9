"""What the best-scored training cases are: group enrichment, output-matched contrasts, the vote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from cri.checks import checked
from cri.data.case_groups import GROUPS, Groups
from cri.errors import CriError, out_of_range

if TYPE_CHECKING:
    import pandas as pd

Scores = Num[np.ndarray, "train test"]
DISTANCE_MATCH = 2
"""Cells by which distances from the test case may differ between the cases that the step contrast compares."""


class TopK(NamedTuple):
    """The k best training cases of every test case, as weighted (row, column) entries in column order.

    A case above the k-th best score weighs 1; the m cases tied with it share the places left, weighing
    (k - number above) / m each: what breaking ties at random gives on average. Weights of a column sum
    to k.
    """

    rows: Int[np.ndarray, " entry"]
    columns: Int[np.ndarray, " entry"]
    weights: Float[np.ndarray, " entry"]
    k: int
    kth_score: Num[np.ndarray, " test"]


@checked
def top_k(scores: Scores, k: int) -> TopK:
    """The k best training cases of each test case; raises `CriError` for scores that are not finite."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or not 1 <= k <= len(scores):
        raise out_of_range("k", k, f"in 1..{len(scores)} (scores of shape {scores.shape})")
    if not np.isfinite(scores).all():
        raise CriError("scores: hold values that are not finite")
    # contiguous rows make the partition several times faster
    by_test = np.ascontiguousarray(scores.T)
    n = by_test.shape[1]
    kth = np.partition(by_test, n - k, axis=1)[:, n - k]
    columns, rows = np.nonzero(by_test >= kth[:, None])
    tied = by_test[columns, rows] == kth[columns]
    n_test = len(by_test)
    above = np.bincount(columns[~tied], minlength=n_test)
    ties = np.bincount(columns[tied], minlength=n_test)
    weights = np.where(tied, ((k - above) / np.maximum(ties, 1))[columns], 1.0)
    return TopK(rows, columns, weights, k, kth)


def _check(scores: Scores, groups: Groups) -> None:
    if scores.shape != groups.codes.shape:
        raise CriError(f"scores: shape {scores.shape} is not [train, test] = {groups.codes.shape}")


@checked
def enrichment(scores: Scores, groups: Groups, k: int = 10) -> pd.DataFrame:
    """Each group's share of the top-k neighbours and of the attribution mass, per test case.

    For test case t and group g, with weights w of `TopK`, N training cases and scores s:

        share = Σ_{i ∈ g} w_i / k,   base = |g| / N,   enrichment = share / base,
        mass  = Σ_{i ∈ g} max(s_i, 0) / Σ_i max(s_i, 0).

    Returns:
        One row a test case and group: `test_id`, `group`, `share`, `base`, `enrichment`,
        `log2_enrichment` (-inf for a share of 0; both NaN for an empty group), `mass` (NaN without
        positive scores: minus a distance has no zero to measure mass from).

    For a mean over test cases use `estimate(table, "share", by, over="base")`, the ratio of means.
    """
    import pandas as pd

    scores = np.asarray(scores)
    _check(scores, groups)
    best = top_k(scores, k)
    n_train, n_test = scores.shape
    n_groups = len(GROUPS)
    cell = groups.codes[best.rows, best.columns].astype(np.int64) + n_groups * best.columns
    share = np.bincount(cell, best.weights, minlength=n_groups * n_test).reshape(n_test, n_groups) / k
    size, mass = np.empty((n_test, n_groups)), np.empty((n_test, n_groups))
    positive = np.maximum(scores, 0)
    for g in range(n_groups):
        mask = groups.codes == g
        size[:, g] = mask.sum(axis=0)
        mass[:, g] = np.einsum("ij,ij->j", positive, mask, dtype=np.float64)
    total = mass.sum(axis=1, keepdims=True)
    base = size / n_train
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = share / base
        return pd.DataFrame(
            {
                "test_id": np.repeat(groups.test_ids, n_groups),
                "group": np.tile(GROUPS, n_test),
                "share": share.ravel(),
                "base": base.ravel(),
                "enrichment": ratio.ravel(),
                "log2_enrichment": np.log2(ratio).ravel(),
                "mass": (mass / np.where(total > 0, total, np.nan)).ravel(),
            }
        )


@checked
def kind_shares(
    scores: Scores, kinds: Mapping[str, Bool[np.ndarray, "train test"]], test_ids: Int[np.ndarray, " test"], k: int = 10
) -> pd.DataFrame:
    """The share of the top-k neighbours that are of each kind; kinds may overlap, and their shares add up to no 1.

    Returns:
        One row a kind and test case that has such training cases: `test_id`, `kind`, `share`, `base` (their share of
        all training cases), `size`.
    """
    import pandas as pd

    scores = np.asarray(scores)
    best = top_k(scores, k)
    n_train, n_test = scores.shape
    parts = []
    for kind, mask in kinds.items():
        if mask.shape != scores.shape:
            raise CriError(f"kinds: {kind} has shape {mask.shape}, not [train, test] = {scores.shape}")
        share = np.bincount(best.columns, best.weights * mask[best.rows, best.columns], minlength=n_test) / k
        size = mask.sum(axis=0)
        has = size > 0
        parts.append(pd.DataFrame({
            "test_id": test_ids[has], "kind": kind, "share": share[has], "base": size[has] / n_train, "size": size[has]
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


MIRROR_APART = "near, mirror apart"


@checked
def matched(scores: Scores, groups: Groups, k: int = 10) -> pd.DataFrame:
    """Output-matched contrasts: does the score prefer near (or step-sharing) cases to others *with the same
    answer*?

    Three contrasts, each over a pool of training cases that share no operand with the test case t, and each
    holding the other trait fixed (near cases often share the tens step, and step-sharing cases lie at
    particular distances):

        near: near cases against far ones, in the pool of those that share no step with t;
        near, mirror apart: the same without the cases near t's mirror image. Around the diagonal these are near cases
            too, elsewhere they are far ones, so that sets of cases differ in how many `near` counts;
        step: cases that share a step against those that do not, in the pool of far ones.

    Two measures. The *excess* of the trait among the top-k, standardised by output: with w the weights of
    `TopK`, and p_i the fraction of cases with the trait among those of the pool that have i's answer (for
    `step` also a distance from t within `DISTANCE_MATCH` of i's),

        share = Σ_{i in pool} w_i trait_i / k,   expected = Σ_{i in pool} w_i p_i / k,   excess = share - expected.

    A score that looks at outputs only, however graded, has an excess of 0 (for `step` to within 0.001). And
    the *AUC* of the score, trait against no trait, P(higher) + ½ P(equal), over the pairs of the pool that
    both have the label predicted for t (for `step` distances as above); chance is 0.5. The AUC uses all such
    pairs; the excess uses only the best-scored cases, whatever their answer.

    Returns:
        One row a test case and contrast: `test_id`, `contrast`, `share`, `expected`, `excess`, `auc` (NaN
        without pairs), `n_pairs`.
    """
    import pandas as pd

    scores = np.asarray(scores)
    _check(scores, groups)
    best = top_k(scores, k)
    starts = np.searchsorted(best.columns, np.arange(len(groups.test_ids) + 1))
    _, answers = np.unique(groups.train_labels, return_inverse=True)
    weights = np.zeros(len(scores))
    rows = []
    for j, test_id in enumerate(groups.test_ids.tolist()):
        chosen = best.rows[starts[j] : starts[j + 1]]
        weights[chosen] = best.weights[starts[j] : starts[j + 1]]
        s, near, step, same = (x[:, j] for x in (scores, groups.near, groups.step, groups.answer))
        usable = ~groups.operand[:, j]
        distance = groups.distance[:, j]
        for contrast, trait, pool, reach in (
            ("near", near, usable & ~step, None),
            (MIRROR_APART, near, usable & ~step & ~groups.mirror[:, j], None),
            ("step", step, usable & ~near, DISTANCE_MATCH),
        ):
            members = np.flatnonzero(pool)
            has, d = trait[members], distance[members]
            rate = _rates(answers[members], d, has, reach)
            w = weights[members] / k
            share, expected = float(w @ has), float(w @ rate)
            i = np.flatnonzero(same[members])
            pairs = has[i][:, None] & ~has[i]
            if reach is not None:
                pairs &= np.abs(d[i][:, None] - d[i]) <= reach
            difference = s[members[i]][:, None] - s[members[i]]
            n_pairs = int(pairs.sum())
            wins = (pairs * ((difference > 0) + 0.5 * (difference == 0))).sum()
            auc = wins / n_pairs if n_pairs else np.nan
            rows.append((test_id, contrast, share, expected, share - expected, auc, n_pairs))
        weights[chosen] = 0
    return pd.DataFrame(rows, columns=["test_id", "contrast", "share", "expected", "excess", "auc", "n_pairs"])


def _rates(
    answers: Int[np.ndarray, " case"],
    distance: Int[np.ndarray, " case"],
    has: Bool[np.ndarray, " case"],
    reach: int | None,
) -> Float[np.ndarray, " case"]:
    """For each case the fraction that `has` the trait among the cases with its answer, of those whose
    distance is within `reach` of its own (None: at any distance)."""
    if reach is None:
        return (np.bincount(answers, has) / np.maximum(np.bincount(answers), 1))[answers]
    width = int(distance.max(initial=0)) + 1 + 2 * reach
    cell = answers * width + distance + reach
    n_cells = (int(answers.max(initial=0)) + 1) * width
    # window sums over distance as differences of running sums
    found, all_ = (
        np.cumsum(np.bincount(cell, weight, minlength=n_cells + reach + 1)) for weight in (has, np.ones(len(cell)))
    )
    below = cell - reach - 1
    in_window = [sums[cell + reach] - np.where(below >= 0, sums[below], 0) for sums in (found, all_)]
    return in_window[0] / in_window[1]


@checked
def vote(scores: Scores, groups: Groups, true_labels: Shaped[np.ndarray, " test"], k: int = 10) -> pd.DataFrame:
    """Does the commonest answer among the k nearest training cases predict the model's output?

    Returns:
        One row a test case: `test_id`, `agrees` (probability that the vote is the label the model
        predicts: 1, 0, or 1/m when m labels share the lead), `agrees_true` (the same for the true
        label), `base` (share of all training cases that have the predicted label), `correct`.

    Neighbours tied at the k-th place vote with the weights of `TopK`.
    """
    import pandas as pd

    scores = np.asarray(scores)
    _check(scores, groups)
    true_labels = np.asarray(true_labels)
    best = top_k(scores, k)
    names, codes = np.unique(groups.train_labels, return_inverse=True)
    n_test = scores.shape[1]
    cells, inverse = np.unique(best.columns * len(names) + codes[best.rows], return_inverse=True)
    # rounded: otherwise the rounding errors of sums of thirds would break ties between labels
    votes = np.round(np.bincount(inverse, best.weights), 9)
    test, label = np.divmod(cells, len(names))
    lead = np.zeros(n_test)
    np.maximum.at(lead, test, votes)
    leading = votes == lead[test]
    share = leading / np.bincount(test, leading, minlength=n_test)[test]
    out = {}
    for column, wanted in (("agrees", groups.test_labels), ("agrees_true", true_labels)):
        out[column] = np.bincount(test, share * (names[label] == wanted[test]), minlength=n_test)
    return pd.DataFrame(
        {
            "test_id": groups.test_ids,
            **out,
            "base": groups.answer.mean(axis=0),
            "correct": groups.test_labels == true_labels,
        }
    )


@checked
def neighbor_distance(scores: Scores, k: int = 10) -> Num[np.ndarray, " test"]:
    """Minus the k-th best score of each test case: for `euclidean` the distance to its k-th neighbour,
    for cosines that distance up to a constant."""
    return -top_k(scores, k).kth_score
