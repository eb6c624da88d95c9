"""Read-outs: what a linear map finds in an activation, fitted on some cells and asked on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num

from cri.errors import CriError, out_of_range

if TYPE_CHECKING:
    import pandas as pd

ALPHAS = tuple(10.0**k for k in range(-4, 5))


def targets_of(
    cases: Int[np.ndarray, "case 2"], periods: Sequence[int]
) -> tuple[dict[str, Num[np.ndarray, "case k"]], dict[str, Int[np.ndarray, " case"]]]:
    """What is read: numbers for ridge (a, b, a + b, a - b, and the phase of a + b at each period, as cos and sin), and
    classes for logistic regression (units and tens of the sum, the carry out of the units, a + b modulo small T)."""
    a, b = cases.T
    total = a + b
    numbers: dict[str, np.ndarray] = {"a": a[:, None], "b": b[:, None], "a+b": total[:, None], "a-b": (a - b)[:, None]}
    for period in periods:
        angle = 2 * np.pi * total / period
        numbers[f"phase {period}"] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    classes = {
        "units": total % 10,
        "tens": total // 10,
        "carry": (a % 10 + b % 10) // 10,
        "mod 2": total % 2,
        "mod 5": total % 5,
    }
    return numbers, classes


def shuffled_by(key: Int[np.ndarray, " case"], values: Num[np.ndarray, "case ..."], seed: int) -> np.ndarray:
    """Control labels: the same values handed to the keys at random (Hewitt & Liang 2019).

    `key` says what determines the value (the sum, say), so that the control is as regular a function of the same input
    and has no arithmetic in it.
    """
    found, first, index = np.unique(key, return_index=True, return_inverse=True)
    return values[first][np.random.default_rng(seed).permutation(len(found))][index]


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge read-out on standardised activations.

    Attributes:
        direction: [d, k]; moving an activation by v changes the read-out by v @ direction.
        predict: activations to read-outs, [case, d] -> [case, k].
    """

    direction: Float[np.ndarray, "d k"]
    predict: Any


def fit_ridge(x: Float[np.ndarray, "case d"], y: Num[np.ndarray, "case k"]) -> Ridge:
    """Ridge regression, each target's penalty chosen by leave-one-out error on the fitted cases (scikit-learn's
    `RidgeCV`)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(x) < 3:
        raise CriError(f"readout: {len(x)} cases to fit on; give at least 3")
    scaler, ridge = StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True)
    model: Any = make_pipeline(scaler, ridge).fit(x, y)
    direction = np.atleast_2d(np.asarray(ridge.coef_)) / np.asarray(scaler.scale_)
    return Ridge(direction.T, lambda acts: model.predict(acts).reshape(len(acts), -1))


def r_squared(truth: Num[np.ndarray, "case k"], read: Num[np.ndarray, "case k"], mean: Num[np.ndarray, " k"]) -> float:
    """1 - Σ(truth - read)² / Σ(truth - mean)², `mean` being that of the cases that were fitted: 0 is no better than
    the mean, and it may be negative."""
    total = ((truth - mean) ** 2).sum()
    return float(1 - ((truth - read) ** 2).sum() / total) if total > 0 else float("nan")


def cell_folds(coords: Int[np.ndarray, "case 2"], side: int, n_folds: int, seed: int) -> Int[np.ndarray, " case"]:
    """The fold of each case, patches of `side` x `side` cells kept together: a neighbour says much of its neighbour."""
    if n_folds < 2:
        raise out_of_range("n_folds", n_folds, "at least 2")
    patch = np.unique(coords // side, axis=0, return_inverse=True)[1].ravel()
    order = np.random.default_rng(seed).permutation(patch.max() + 1)
    return order[patch] % n_folds


def ridge_table(
    x: Float[np.ndarray, "case d"],
    cases: Int[np.ndarray, "case 2"],
    fitted: Int[np.ndarray, " fitted"],
    regions: Mapping[str, Int[np.ndarray, " case"]],
    periods: Sequence[int],
    *,
    n_folds: int = 5,
    side: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Read-outs of numbers from one site, fitted on the cases `fitted`, evaluated in each region.

    Cases of a region that are in `fitted` are read by a fit that left their patch out. Returns one row a target and
    region: `target, region, r2, rmse, bias, control_r2, n`; rmse and bias are in the target's own unit.
    """
    import pandas as pd

    numbers, _ = targets_of(cases, periods)
    keys = {"a": cases[:, 0], "b": cases[:, 1], "a-b": cases[:, 0] - cases[:, 1]}
    columns: dict[tuple[str, str], np.ndarray] = {}
    for name, y in numbers.items():
        columns[name, "own"] = y
        columns[name, "control"] = shuffled_by(keys[name] if name in keys else cases.sum(1), y, seed)
    stops = np.cumsum([y.shape[1] for y in columns.values()])
    everything = np.concatenate(list(columns.values()), axis=1).astype(np.float64)
    read_all = _cross_read(x, everything, fitted, cell_folds(cases, side, n_folds, seed), regions)
    read = dict(zip(columns, np.split(read_all, stops[:-1], axis=1), strict=True))
    rows = []
    for name, y in numbers.items():
        control = columns[name, "control"]
        for region, ids in regions.items():
            if not len(ids):
                continue
            error = read[name, "own"][ids] - y[ids]
            rows.append({
                "target": name, "region": region, "r2": r_squared(y[ids], read[name, "own"][ids], y[fitted].mean(0)),
                "rmse": float(np.sqrt((error**2).sum(1).mean())), "bias": float(error[:, 0].mean()),
                "control_r2": r_squared(control[ids], read[name, "control"][ids], control[fitted].mean(0)),
                "n": len(ids),
            })  # fmt: skip
    return pd.DataFrame(rows)


def class_table(
    x: Float[np.ndarray, "case d"],
    cases: Int[np.ndarray, "case 2"],
    fitted: Int[np.ndarray, " fitted"],
    regions: Mapping[str, Int[np.ndarray, " case"]],
) -> pd.DataFrame:
    """`class_reads` of the classes of `targets_of`: units and tens of the sum, the carry, the sum modulo 2 and 5."""
    _, classes = targets_of(cases, ())
    keys = {name: cases.sum(1) for name in classes}
    keys["carry"] = cases[:, 0] % 10 * 10 + cases[:, 1] % 10
    return class_reads(x, classes, keys, cases, fitted, regions)


def class_reads(
    x: Float[np.ndarray, "case d"],
    classes: Mapping[str, Int[np.ndarray, " case"]],
    keys: Mapping[str, Int[np.ndarray, " case"]],
    cases: Int[np.ndarray, "case 2"],
    fitted: Int[np.ndarray, " fitted"],
    regions: Mapping[str, Int[np.ndarray, " case"]],
    *,
    seed: int = 0,
    max_fitted: int = 2000,
) -> pd.DataFrame:
    """Logistic read-outs of classes from one site: fitted on up to `max_fitted` of the cases `fitted` outside the
    regions' own patches, asked in each region. Control labels are the classes of other `keys` (what determines a
    class). One row a class and region: `target, region, accuracy, kappa` (Cohen's: 0 is chance), `control, n`."""
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    folds = cell_folds(cases, 5, 5, seed)
    kept = fitted[folds[fitted] != 0]
    kept = np.sort(rng.choice(kept, min(max_fitted, len(kept)), replace=False))
    rows = []
    for name, labels in classes.items():
        answers = {"right": labels, "control": shuffled_by(keys[name], labels, seed)}
        if any(len(np.unique(y[kept])) < 2 for y in answers.values()):
            continue  # one class alone: there is nothing to tell
        models = {
            kind: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-2, max_iter=3000)).fit(
                x[kept], y[kept]
            )
            for kind, y in answers.items()
        }
        for region, ids in regions.items():
            asked = ids[~np.isin(ids, fitted) | (folds[ids] == 0)]
            if not len(asked):
                continue
            read = {kind: model.predict(x[asked]) for kind, model in models.items()}
            rows.append({
                "target": name, "region": region, "accuracy": float((read["right"] == labels[asked]).mean()),
                "kappa": _kappa(labels[asked], read["right"]),
                "control": float((read["control"] == answers["control"][asked]).mean()), "n": len(asked),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _cross_read(
    x: Float[np.ndarray, "case d"],
    y: Num[np.ndarray, "case k"],
    fitted: Int[np.ndarray, " fitted"],
    folds: Int[np.ndarray, " case"],
    regions: Mapping[str, Int[np.ndarray, " case"]],
) -> Float[np.ndarray, "case k"]:
    """The read-out of every case of the regions, by a model that was not fitted on its patch."""
    read = np.full(y.shape, np.nan)
    asked = np.unique(np.concatenate([ids for ids in regions.values() if len(ids)]))
    new = asked[~np.isin(asked, fitted)]
    if len(new):
        read[new] = fit_ridge(x[fitted], y[fitted]).predict(x[new])
    old = asked[np.isin(asked, fitted)]
    for fold in np.unique(folds[old]):
        rest = fitted[folds[fitted] != fold]
        part = old[folds[old] == fold]
        read[part] = fit_ridge(x[rest], y[rest]).predict(x[part])
    return read


def _kappa(truth: Int[np.ndarray, " case"], read: Int[np.ndarray, " case"]) -> float:
    """Cohen's kappa; NaN where all cases are of one class, and nothing could be told."""
    from sklearn.metrics import cohen_kappa_score

    classes = np.unique(np.concatenate([truth, read]))
    return float(cohen_kappa_score(truth, read, labels=classes)) if len(classes) > 1 else float("nan")
