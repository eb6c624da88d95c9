"""What one training case changes, from models trained on random halves of the cases.

With x_i(S) = 1 where subset S holds training case i, and y_q(S) the log-odds of query q after training on S, the effect
of i on q is beta_iq = cov(x_i, y_q) / var(x_i) over the subsets: the mean change of the log-odds for training on i in
place of an average other case (Ilyas et al. 2022 fit the same by a linear datamodel). One such effect is mostly noise;
a mean over many pairs of a kind is not. `kind_effects` takes one mean for each kind (kinds may overlap);
`membership_effects` fits overlapping memberships in one regression, which separates them or reports that it cannot.

Subsets and patches of queries are resampled, and training seeds enter by a t interval (`intervals.with_runs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from cri.data.memberships import Memberships
from cri.errors import CriError
from cri.statistics.intervals import LEVEL, N_BOOT, Interval, with_runs

if TYPE_CHECKING:
    import pandas as pd

MAX_VIF = 10.0
"""Variance inflation factor above which a membership's effect cannot be separated from the others' (the usual rule of
thumb: at 10, the other memberships predict nine tenths of its variance)."""
SAME = 0.999
"""Correlation of their counts above which two memberships are treated as one."""


@dataclass(frozen=True, eq=False)
class Halves:
    """Models trained on random subsets, as the effects need them.

    Attributes:
        kept: which training cases each subset holds, [subset, train].
        outputs: log-odds of each query after training on each subset with each seed, [seed, subset, query].
        blocks: patch of each query, resampled together (`datamodels.query_blocks`).
    """

    kept: Bool[np.ndarray, "subset train"]
    outputs: Float[np.ndarray, "seed subset query"]
    blocks: Int[np.ndarray, " query"]

    def __post_init__(self) -> None:
        n_seeds, n_subsets, n_queries = self.outputs.shape
        if self.kept.shape[0] != n_subsets or len(self.blocks) != n_queries or n_seeds < 1:
            shapes = f"{self.kept.shape}, {self.outputs.shape}, {self.blocks.shape}"
            raise CriError(f"kept, outputs, blocks: shapes {shapes} do not fit together")
        if n_subsets < 2:
            raise CriError("kept: at least two subsets are needed")

    @property
    def centered(self) -> Float[np.ndarray, "seed subset query"]:
        """Outputs minus their mean over subsets, each seed and query for itself."""
        return self.outputs - self.outputs.mean(axis=1, keepdims=True)

    def pair_effects(self) -> Float[np.ndarray, "train query"]:
        """beta_iq of every pair, averaged over seeds: noise one by one."""
        x = self.kept - self.kept.mean(axis=0)
        variance = (x**2).mean(axis=0)
        y = self.centered.mean(axis=0)
        effects = x.T.astype(np.float32) @ y.astype(np.float32) / (len(x) * np.maximum(variance, 1e-12)[:, None])
        effects[variance == 0] = np.nan
        return effects


@dataclass(frozen=True)
class Draws:
    """Bootstrap weights of subsets and of blocks of queries; the first row is the sample itself."""

    subsets: Float[np.ndarray, "boot subset"]
    blocks: Float[np.ndarray, "boot block"]


def bootstrap(n_subsets: int, n_blocks: int, n_boot: int = N_BOOT, seed: int = 0) -> Draws:
    """Draws of subsets and blocks with replacement, both at once. One block is not resampled."""
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> Float[np.ndarray, "boot n"]:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=n_boot) if n > 1 else np.ones((n_boot, 1))
        return np.concatenate([np.ones((1, n)), counts]).astype(np.float64)

    return Draws(drawn(n_subsets), drawn(n_blocks))


def _moments(halves: Halves, masks: Bool[np.ndarray, "kind train query"]) -> tuple[np.ndarray, np.ndarray]:
    """Products of counts with outputs, [seed, subset, block, kind], and of counts with counts, [subset, block, kind,
    kind], summed over the queries of a block. Counts are centred over subsets, each query for itself."""
    blocks, index = np.unique(halves.blocks, return_inverse=True)
    kept = halves.kept.astype(np.float32)
    counts = np.stack([kept @ mask.astype(np.float32) for mask in masks], axis=-1).astype(np.float64)
    counts -= counts.mean(axis=0)
    y = halves.centered
    n_seeds, n_subsets, _ = y.shape
    cross = np.zeros((n_seeds, n_subsets, len(blocks), len(masks)))
    square = np.zeros((n_subsets, len(blocks), len(masks), len(masks)))
    for b in range(len(blocks)):
        mine = index == b
        part = counts[:, mine]
        cross[:, :, b] = np.einsum("sqk,rsq->rsk", part, y[:, :, mine])
        square[:, b] = np.einsum("sqk,sql->skl", part, part)
    return cross, square


def kind_effects(
    halves: Halves, kinds: Mapping[str, Bool[np.ndarray, "train query"]], n_boot: int = N_BOOT, level: float = LEVEL
) -> pd.DataFrame:
    """Mean effect of one training case of each kind, every pair counting alike: kinds may overlap, and nothing is held
    fixed.

    Returns:
        One row a kind: `kind`, `effect`, `low`, `high`; `size`, the mean number of such training cases a query (of
        those with any); `total`, effect x size, with `total_low` and `total_high`; `n_queries`, how many have one;
        `n_subsets`, `n_seeds`.
    """
    import pandas as pd

    blocks, index = np.unique(halves.blocks, return_inverse=True)
    n_seeds, n_subsets, _ = halves.outputs.shape
    draws = bootstrap(n_subsets, len(blocks), n_boot)
    kept = halves.kept.astype(np.float32)
    share = halves.kept.mean()
    y = halves.centered
    rows = []
    for name, mask in kinds.items():
        sizes = mask.sum(axis=0)
        counts = kept @ mask.astype(np.float32)
        counts = counts - counts.mean(axis=0)
        product = counts[None] * y
        by_block = np.stack([product[:, :, index == b].sum(axis=2) for b in range(len(blocks))], axis=2)
        pairs = np.array([sizes[index == b].sum() for b in range(len(blocks))], dtype=np.float64)
        if not pairs.any():
            continue
        scale = n_subsets * share * (1 - share) * (draws.blocks @ pairs)
        scale = np.where(scale > 0, scale, np.nan)  # a resample of blocks without any such pair
        by_seed = np.einsum("ns,nb,rsb->rn", draws.subsets, draws.blocks, by_block, optimize=True) / scale
        value = with_runs(by_seed, level)
        size = float(sizes[sizes > 0].mean())
        total = {"total": value.estimate * size, "total_low": value.low * size, "total_high": value.high * size}
        n = {"n_queries": int((sizes > 0).sum()), "n_subsets": n_subsets, "n_seeds": n_seeds}
        rows.append(
            {"kind": name, "effect": value.estimate, "low": value.low, "high": value.high, "size": size, **total, **n}
        )
    return pd.DataFrame(rows)


def offset_kernel(
    halves: Halves,
    offsets: Int[np.ndarray, "train query 2"],
    reach: int,
    chosen: Bool[np.ndarray, "train query"] | None = None,
) -> pd.DataFrame:
    """Mean effect of a training case at each offset (row, col) from the query, up to `reach` in either direction.

    Returns:
        One row an offset with any pair: `d_row`, `d_col`, `effect`, `se`, `n_pairs`. `se` is the standard error over
        queries, whose effects are taken as independent, of the mean over seeds: for the picture; intervals of kinds
        come from `kind_effects`.
    """
    import pandas as pd

    effects = halves.pair_effects()
    near = (np.abs(offsets) <= reach).all(axis=2) & ~np.isnan(effects)
    if chosen is not None:
        near &= chosen
    side = 2 * reach + 1
    code = (offsets[..., 0] + reach) * side + offsets[..., 1] + reach
    code, values = code[near], effects[near].astype(np.float64)
    n = np.bincount(code, minlength=side * side)
    total = np.bincount(code, values, minlength=side * side)
    squares = np.bincount(code, values**2, minlength=side * side)
    found = np.flatnonzero(n > 1)
    mean = total[found] / n[found]
    variance = np.maximum(squares[found] / n[found] - mean**2, 0) * n[found] / (n[found] - 1)
    cells = {"d_row": found // side - reach, "d_col": found % side - reach, "effect": mean}
    return pd.DataFrame({**cells, "se": np.sqrt(variance / n[found]), "n_pairs": n[found]})


@dataclass(frozen=True, eq=False)
class Fit:
    """Effects of overlapping memberships, fitted together.

    Attributes:
        names: of the memberships, those that are one and the same joined by ` = `.
        samples: effects by seed and bootstrap sample, [seed, boot, kind]; sample 0 is the estimate.
        vif: variance inflation factor of each.
        closest: the other membership whose counts correlate most with its own, and how much.
        sizes: mean number of training cases a query has of each.
    """

    names: tuple[str, ...]
    samples: Float[np.ndarray, "seed boot kind"]
    vif: Float[np.ndarray, " kind"]
    closest: tuple[tuple[str, float], ...]
    sizes: Float[np.ndarray, " kind"]

    def interval(self, weights: Mapping[str, float], level: float = LEVEL) -> Interval:
        """Interval of a weighted sum of effects: {name: 1} is one effect, {near: 1, step: -1} a difference. Memberships
        that were joined count once; a difference between two of them cannot be estimated (NaN)."""
        by_index: dict[int, float] = {}
        for name, weight in weights.items():
            k = self.index(name)
            if by_index.setdefault(k, weight) != weight:
                return Interval(np.nan, np.nan, np.nan)
        value = sum(weight * self.samples[:, :, k] for k, weight in by_index.items())
        return with_runs(np.asarray(value), level)

    @property
    def parts(self) -> set[str]:
        """All memberships, joined ones one by one."""
        return {part for name in self.names for part in name.split(" = ")}

    def index(self, name: str) -> int:
        """Position of a membership, also of one that was joined with another."""
        for k, joined in enumerate(self.names):
            if name == joined or name in joined.split(" = "):
                return k
        raise CriError(f"membership: {name!r} is not in this fit; choose from {', '.join(self.names)}")

    def table(self, level: float = LEVEL) -> pd.DataFrame:
        """One row a membership: `membership`, `effect`, `low`, `high`, `size`, `total` (effect x size), `vif`,
        `closest`, `correlation`, `told_apart` (`MAX_VIF`)."""
        import pandas as pd

        rows = []
        for k, name in enumerate(self.names):
            value = self.interval({name: 1.0}, level)
            other, r = self.closest[k]
            rows.append({
                "membership": name, "effect": value.estimate, "low": value.low, "high": value.high,
                "size": self.sizes[k], "total": value.estimate * self.sizes[k], "vif": self.vif[k], "closest": other,
                "correlation": r, "told_apart": bool(self.vif[k] <= MAX_VIF),
            })  # fmt: skip
        return pd.DataFrame(rows)


def _resampled(
    square: Float[np.ndarray, "subset block kind kind"], draws: Draws, at_once: int = 200
) -> Float[np.ndarray, "boot kind kind"]:
    """Sums over subsets and blocks under each row of weights, some rows at a time: all at once would not fit."""
    n_subsets, n_blocks, n_kinds, _ = square.shape
    flat = square.reshape(n_subsets, -1)
    parts = []
    for start in range(0, len(draws.subsets), at_once):
        rows = slice(start, start + at_once)
        by_block = (draws.subsets[rows] @ flat).reshape(-1, n_blocks, n_kinds * n_kinds)
        parts.append(np.einsum("nb,nbk->nk", draws.blocks[rows], by_block))
    return np.concatenate(parts).reshape(-1, n_kinds, n_kinds)


def _joined(names: Sequence[str], correlation: np.ndarray) -> tuple[list[int], list[str]]:
    kept: list[int] = []
    labels: list[str] = []
    for k, name in enumerate(names):
        same = [j for j, i in enumerate(kept) if correlation[i, k] > SAME]
        if same:
            labels[same[0]] += f" = {name}"
        else:
            kept.append(k)
            labels.append(name)
    return kept, labels


def membership_effects(halves: Halves, members: Memberships, n_boot: int = N_BOOT) -> Fit:
    """Effects of overlapping memberships by one least-squares regression over subsets and queries.

    For each query the outputs over subsets are regressed on how many training cases of each membership a subset
    holds; effects are shared by all queries, so that a query without any case of a kind says nothing of it (it is not
    counted as 0). Memberships with the same counts everywhere are joined.
    """
    cross, square = _moments(halves, members.masks)
    total = square.sum(axis=(0, 1))
    scale = np.sqrt(np.diag(total))
    correlation = total / np.outer(scale, scale)
    kept, labels = _joined(members.names, correlation)
    cross, square = cross[..., kept], square[..., kept, :][..., kept]
    within = correlation[np.ix_(kept, kept)]
    vif = np.diag(np.linalg.pinv(within, hermitian=True))
    closest = []
    for k in range(len(kept)):
        others = np.where(np.arange(len(kept)) == k, 0, within[k])
        best = int(np.abs(others).argmax())
        closest.append((labels[best] if len(kept) > 1 else "", float(others[best])))
    draws = bootstrap(cross.shape[1], cross.shape[2], n_boot)
    gram = _resampled(square, draws)
    inverse = np.linalg.pinv(gram, hermitian=True)
    sums = np.einsum("ns,nb,rsbk->rnk", draws.subsets, draws.blocks, cross, optimize=True)
    samples = np.einsum("nkl,rnl->rnk", inverse, sums)
    sizes = members.masks[kept].sum(axis=1).mean(axis=1)
    return Fit(tuple(labels), samples, vif, tuple(closest), sizes)
