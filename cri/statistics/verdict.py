"""The verdict table: what the evidence on one model, method and site supports, conservatively."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cri.checks import checked
from cri.statistics.intervals import N_BOOT, estimate, paired

if TYPE_CHECKING:
    import pandas as pd

NEARBY, STEPS, BOTH, OUTPUT, UNDECIDED = (
    "nearby cases",
    "shared steps",
    "nearby cases and shared steps",
    "same output only",
    "undecided",
)
VERDICTS = (NEARBY, STEPS, BOTH, OUTPUT, UNDECIDED)
KEYS = ("task", "format", "method", "site")
MARGIN = 0.05
"""An excess (share of the top-k) or difference of two below this counts as none."""
MIN_TESTS = 20
"""Fewer test cases than this decide nothing."""


@checked
def verdicts(
    matched: pd.DataFrame,
    enrichment: pd.DataFrame,
    *,
    margin: float = MARGIN,
    n_boot: int = N_BOOT,
    level: float = 0.95,
) -> pd.DataFrame:
    """One row for each task, format, method and site, with the evidence and what it supports.

    For each contrast c of `matched` (near, step), three numbers with their intervals: the output-matched
    excess among the top-k of the square model; its paired difference from the random-split model; that from
    the untrained model.

    - The association with c *holds* if the intervals of all three lie above 0.
    - It is *absent* if the interval of the excess, or that of its difference from the untrained model, lies
      below `margin`: the trained model then has no such preference of at least `margin`, or had it before
      training. An association that is as strong in the random-split model neither holds (it is not specific
      to the held-out square) nor is absent (that model may rest on nearby cases too). Too little evidence gives the
      same result: the association neither holds nor is absent.

    Then, with `same_answer` counted as enriched if the interval of its enrichment in the square model
    lies above 1 and that of its paired difference in share from the untrained model above 0:

    - near holds, step is absent                        -> "nearby cases"
    - step holds, near is absent                        -> "shared steps"
    - both hold                                         -> "nearby cases and shared steps"
    - both are absent and `same_answer` is enriched     -> "same output only"
    - anything else, or fewer than `MIN_TESTS` test cases behind a number used -> "undecided"

    These are statements of association: which training cases the model (or its gradients) treats as
    akin, beyond output and operands. Whether a prediction would change without them takes retraining.
    Levels are per interval, with no correction for the number of rows: name the rows that count
    beforehand (`overall`).

    Args:
        matched: output of `statistics.matched`, stacked, with `KEYS`, `model` ("square", "random",
            "untrained"), `set` ("full": every test and training case of the square split; "common":
            the test and training cases it shares with the random split, where neighbourhoods are alike),
            `run` and `block`.
        enrichment: output of `statistics.enrichment` in the same form.

    Returns:
        `KEYS`, `verdict`, `why`, `n`, `n_runs`; for c in near, step: `c_excess`, `c_vs_random`,
        `c_vs_untrained`, each with `_low`, `_high`, `_n`; likewise `output_enrichment`,
        `output_vs_untrained`.
    """

    by = list(KEYS)
    options: dict[str, Any] = {"n_boot": n_boot, "level": level}
    pieces: dict[str, pd.DataFrame] = {}
    for contrast in ("near", "step"):
        rows = matched[matched["contrast"] == contrast]
        full, common = rows[rows["set"] == "full"], rows[rows["set"] == "common"]
        pieces[f"{contrast}_excess"] = estimate(full[full["model"] == "square"], "excess", by, **options)
        pieces[f"{contrast}_vs_random"] = paired(common, "excess", ("square", "random"), by, **options)
        pieces[f"{contrast}_vs_untrained"] = paired(full, "excess", ("square", "untrained"), by, **options)
    same = enrichment[(enrichment["group"] == "same_answer") & (enrichment["set"] == "full")]
    pieces["output_enrichment"] = estimate(same[same["model"] == "square"], "share", by, "base", **options)
    pieces["output_vs_untrained"] = paired(same, "share", ("square", "untrained"), by, **options)

    table: pd.DataFrame = pieces["output_enrichment"][[*by, "n", "n_runs"]]
    for name, piece in pieces.items():
        columns = {"estimate": name, "low": f"{name}_low", "high": f"{name}_high", "n": f"{name}_n"}
        table = table.merge(piece.rename(columns=columns)[[*by, *columns.values()]], on=by, how="left")
    decided = [decide(row, margin) for row in table.to_dict("records")]
    table.insert(len(by), "verdict", [verdict for verdict, _ in decided])
    table.insert(len(by) + 1, "why", [why for _, why in decided])
    return table


@checked
def decide(row: dict[str, Any], margin: float = MARGIN) -> tuple[str, str]:
    """The verdict on one row of evidence and its reason in words (see `verdicts`)."""
    used = [row[f"{c}_{x}_n"] for c in ("near", "step") for x in ("excess", "vs_random", "vs_untrained")]
    # comparisons with NaN are false: an interval that could not be had neither holds nor is absent
    if not all(n >= MIN_TESTS for n in used):
        return UNDECIDED, f"fewer than {MIN_TESTS} test cases behind some number"
    holds, absent = {}, {}
    for c in ("near", "step"):
        conditions = {
            "chance": row[f"{c}_excess_low"] > 0,
            "random split": row[f"{c}_vs_random_low"] > 0,
            "untrained": row[f"{c}_vs_untrained_low"] > 0,
        }
        holds[c] = all(conditions.values())
        absent[c] = row[f"{c}_excess_high"] < margin or row[f"{c}_vs_untrained_high"] < margin
        failed = ", ".join(name for name, ok in conditions.items() if not ok)
        row[f"{c}_words"] = "holds" if holds[c] else f"{'absent' if absent[c] else 'open'} (not above {failed})"
    output = row["output_enrichment_low"] > 1 and row["output_vs_untrained_low"] > 0
    why = f"near {row.pop('near_words')}; step {row.pop('step_words')}; same answer {'' if output else 'not '}enriched"
    if holds["near"] and holds["step"]:
        return BOTH, why
    if holds["near"] and absent["step"]:
        return NEARBY, why
    if holds["step"] and absent["near"]:
        return STEPS, why
    if absent["near"] and absent["step"] and output:
        return OUTPUT, why
    return UNDECIDED, why


@checked
def overall(table: pd.DataFrame, primary: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One verdict for each task and format: that on which all `primary` (method, site) rows agree.

    Rows that disagree, or a primary row that is missing, give "undecided". Naming the primary rows before
    looking keeps a table of many sites and methods from being searched for the verdict one likes.
    """
    import pandas as pd

    rows = []
    for (task, fmt), part in table.groupby(["task", "format"], sort=False):
        found = {(m, s): v for m, s, v in zip(part["method"], part["site"], part["verdict"], strict=True)}
        chosen = [found.get(key, "missing") for key in primary]
        verdict = chosen[0] if len(set(chosen)) == 1 and chosen[0] in VERDICTS else UNDECIDED
        basis = "; ".join(f"{m} at {s}: {v}" for (m, s), v in zip(primary, chosen, strict=True))
        rows.append((task, fmt, verdict, basis))
    return pd.DataFrame(rows, columns=["task", "format", "verdict", "basis"])
