"""The removal index: does a prediction rest on nearby cases or on shared steps, as measured by retraining?

With f the output after retraining (log-odds of an answer), the effect of removing group G from the training cases is

    delta_G = f(random removal of the same nominal size) - f(G removed),

positive where the prediction rests on G more than on any cases; then

    CRI = (delta_near - delta_step) / (|delta_near| + |delta_step|),

+1 where only nearby cases matter, -1 where only shared steps do. A CRI around 0 means equal effects or no measurable
effect, so it is reported with the intervals of both effects. (A group may hold fewer cases than the nominal size, where
fewer cases share a step; the random removal that both groups are compared with always has the nominal size.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from cri.errors import CriError, out_of_range
from cri.statistics.intervals import LEVEL, N_BOOT, resample_counts

if TYPE_CHECKING:
    import pandas as pd

CASES, STEPS, UNDECIDED = "nearby cases", "shared steps", "undecided"
NEAR, STEP, RANDOM = "near", "same_step", "random"


Numbers = Num[np.ndarray, "*shape"] | float


def index(near: Numbers, step: Numbers) -> Float[np.ndarray, "*shape"]:
    """The CRI of two effects; 0 where both vanish (nothing was moved by either)."""
    near, step = np.asarray(near, dtype=np.float64), np.asarray(step, dtype=np.float64)
    scale = np.abs(near) + np.abs(step)
    return np.divide(near - step, scale, out=np.zeros_like(near), where=scale > 0)


def effects(outputs: pd.DataFrame) -> pd.DataFrame:
    """delta_G of every designed removal.

    Args:
        outputs: one row a retraining and test case: `test_id`, `region`, `seed`, `size`, `group`, `output`. Rows of
            group `random` are needed for every test case, seed and size; several draws are averaged.

    Returns:
        One row a test case, seed, size and group: `delta`; `noise`, the standard deviation of `output` between the
        random removals of one test case and size, taken within seeds, with its `degrees` of freedom; `n_random`, how
        many of these are averaged for a seed.
    """
    import pandas as pd

    keys = ["test_id", "seed", "size"]
    drawn = outputs[outputs["group"] == RANDOM]
    removed = outputs[outputs["group"] != RANDOM]
    expected = drawn.groupby(keys)["output"].mean().rename("expected").reset_index()
    spread = drawn.groupby(keys)["output"].agg(["var", "count"]).reset_index()
    spread["weight"] = spread["count"] - 1
    spread["sum"] = spread["var"].fillna(0) * spread["weight"]
    pooled = spread.groupby(["test_id", "size"])[["sum", "weight"]].sum()
    sd = np.sqrt(pooled["sum"] / pooled["weight"].where(pooled["weight"] > 0))
    n_random = spread.groupby(["test_id", "size"])["count"].mean()
    noise = pd.DataFrame({"noise": sd, "degrees": pooled["weight"], "n_random": n_random}).reset_index()
    table = removed.merge(expected, on=keys, how="left").merge(noise, on=["test_id", "size"], how="left")
    if table["expected"].isna().any():
        raise CriError("outputs: some removals have no random removal of the same test case, seed and size beside them")
    table["delta"] = table["expected"] - table["output"]
    return table.drop(columns=["expected", "output"])


def paired_effects(table: pd.DataFrame) -> pd.DataFrame:
    """`near` and `step` effects side by side: one row a test case, seed and size that has both."""
    keys = [c for c in ("task", "format", "tokenizer", "split", "region", "test_id", "seed", "size") if c in table]
    wide = table[table["group"].isin((NEAR, STEP))].pivot_table(index=keys, columns="group", values="delta")
    if NEAR not in wide or STEP not in wide:
        raise CriError(f"effects: need the groups {NEAR} and {STEP}")
    return wide.dropna(subset=[NEAR, STEP]).reset_index().rename(columns={NEAR: "near", STEP: "step"})


def index_table(
    pairs: pd.DataFrame, by: Sequence[str], *, n_boot: int = N_BOOT, level: float = LEVEL, seed: int = 0
) -> pd.DataFrame:
    """The CRI of mean effects per group of rows, with intervals over seeds and test cases.

    Args:
        pairs: from `paired_effects`.
        by: columns that make a row of the result (region, size, task ...).

    Returns:
        `by`; `cri`, `near`, `step` (mean effects), `difference` (near minus step), each with `_low` and `_high`;
        `reading`, what the intervals support (see `read`); `p_relabelled`, the share of random swaps of the labels near
        and step within each test case whose mean |near - step| is at least as large (the |CRI| itself is 1 wherever the
        signs differ); `n` (test cases), `n_seeds`.
    """
    import pandas as pd

    if n_boot < 1:
        raise out_of_range("n_boot", n_boot, "at least 1")
    rows = []
    for key, part in pairs.groupby(list(by), sort=False):
        near, step = part["near"].to_numpy(dtype=float), part["step"].to_numpy(dtype=float)
        runs = part["seed"].to_numpy()
        cases = np.unique(part["test_id"].to_numpy(), return_inverse=True)[1]
        counts = resample_counts(runs, cases, n_boot, seed)
        mean_near, mean_step = float(near.mean()), float(step.mean())
        point = {"cri": float(index(mean_near, mean_step)), "near": mean_near, "step": mean_step,
                 "difference": mean_near - mean_step}  # fmt: skip
        if counts is None:
            ends = dict.fromkeys(point, (np.nan, np.nan))
        else:
            total = counts.sum(axis=1)
            means = {"near": counts @ near / total, "step": counts @ step / total}
            samples = {"cri": index(means["near"], means["step"]), **means, "difference": means["near"] - means["step"]}
            ends = {name: np.quantile(x, [(1 - level) / 2, (1 + level) / 2]) for name, x in samples.items()}
        row = dict(zip(by, key, strict=True))
        for name, value in point.items():
            row |= {name: value, f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
        # labels are exchanged per test case, over all its seeds: those share the groups, and are no new draws
        swap = np.random.default_rng(seed).random((n_boot, cases.max() + 1))[:, cases] < 0.5
        swapped = np.where(swap, step - near, near - step).mean(axis=1)
        row["p_relabelled"] = float((np.abs(swapped) >= abs((near - step).mean()) - 1e-12).mean())
        row |= {"reading": read(row), "n": part["test_id"].nunique(), "n_seeds": part["seed"].nunique()}
        rows.append(row)
    return pd.DataFrame(rows)


def read(row: Mapping[str, Any]) -> str:
    """`nearby cases` where the CRI's interval and that of delta_near lie above 0; `shared steps` where the CRI's lies
    below 0 and that of delta_step above; else `undecided`."""
    if row["cri_low"] > 0 and row["near_low"] > 0:
        return CASES
    if row["cri_high"] < 0 and row["step_low"] > 0:
        return STEPS
    return UNDECIDED


def case_table(table: pd.DataFrame, *, n_draws: int = N_BOOT, level: float = LEVEL, seed: int = 0) -> pd.DataFrame:
    """The CRI of every test case and size, effects averaged over seeds.

    Intervals take the noise of one retraining from the random removals (`noise` of `effects`) and draw the two mean
    effects, and the mean of the random removals that both are measured against, from t distributions with the degrees
    of freedom of that noise: three seeds are too few to resample.

    Returns:
        `test_id`, `region`, `size`, `near`, `step`, `cri`, `cri_low`, `cri_high`, `n_seeds`.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    keys = [c for c in ("task", "format", "tokenizer", "split", "region", "test_id", "size") if c in table]
    noise = table.groupby(keys)[["noise", "n_random", "degrees"]].first()
    rows = []
    for key, part in paired_effects(table).groupby(keys, sort=False):
        names = dict(zip(keys, key, strict=True))
        n_seeds = part["seed"].nunique()
        near, step = float(part["near"].mean()), float(part["step"].mean())
        spread, n_random, degrees = noise.loc[key]
        row = {**names, "near": near, "step": step, "cri": float(index(near, step))}
        if degrees > 0:
            sd = float(spread) / np.sqrt(n_seeds)
            errors = rng.standard_normal((3, n_draws)) / np.sqrt(rng.chisquare(degrees, n_draws) / degrees)
            common = sd * errors[2] / np.sqrt(n_random)
            drawn = index(near + sd * errors[0] + common, step + sd * errors[1] + common)
            row["cri_low"], row["cri_high"] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        else:
            row["cri_low"], row["cri_high"] = np.nan, np.nan
        rows.append({**row, "n_seeds": n_seeds})
    return pd.DataFrame(rows)
