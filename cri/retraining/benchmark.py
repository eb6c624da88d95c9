"""An attribution method of your own against recorded retrainings, in about a minute on a CPU and without training.

`ground_truth` opens the retrainings and says which cases a method has to score; `benchmark` judges its scores by the
linear datamodeling score (`cri.statistics.datamodels`) and lays them beside the methods of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from cri.attribution.methods import METHODS, find, layer, of_kind
from cri.attribution.questions import Question
from cri.errors import CriError, unknown_name
from cri.options import FamilyName
from cri.retraining.config import NAME
from cri.retraining.judging import EVERYWHERE, FIXED, MEAN, judge, outputs_by_seed, questions, region_masks
from cri.retraining.records import Retrainings, load_retrainings
from cri.statistics.datamodels import query_blocks, resamples, subset_sums
from cri.statistics.intervals import N_BOOT
from cri.storage import is_complete, read_json
from cri.storage.compression import read_table, stored
from cri.training.jobs import progress_bar

Grid = Literal["paper", "small"]
Explained = Literal["true", "predicted"]
_BANKS: dict[str, str] = {"paper": "gpu", "small": "cpu"}
_PLANS = {"square": "subsets-50", "random": "subsets-random-50"}
_TARGETS = {"true": "reference", "predicted": "prediction"}
EXAMPLE = "addition/number/random"
RECORDED, NOW, CEILING = "recorded", "now", "noise ceiling"
_HERE = Path(__file__).parents[2] / "studies" / NAME
"""The records of a checkout that the package is imported from."""

Scorer = Callable[[Question], Any]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Recorded retrainings of one family of models on random halves of its training cases.

    Attributes:
        name: TASK/TOKENIZER/SPLIT, as it was asked for.
        question: what a method has to attribute: `train_ids` and `query_ids` are the case ids of the rows and columns
            of its scores, `train` and `queries` their tokens, `model` the explained model, `task` the task.
        kept: which of `train_ids` each subset holds, [subset, train].
        outputs: by seed of the retraining, the log-odds of each query's explained answer, [subset, query].
        seed: of the explained model.
        recorded: the scores of this package's methods, as the study `attribution_quality` recorded them; empty where
            it recorded none.
    """

    name: str
    question: Question
    kept: Bool[np.ndarray, "subset train"]
    outputs: dict[int, Float[np.ndarray, "subset query"]]
    seed: int
    recorded: pd.DataFrame

    @property
    def shape(self) -> tuple[int, int]:
        """(training cases, test cases): the shape that scores must have."""
        return len(self.question.train_ids), len(self.question.query_ids)

    def __repr__(self) -> str:
        n_train, n_queries = self.shape
        return (
            f"<ground truth {self.name}: scores are [{n_train} training cases, {n_queries} test cases]; "
            f"{len(self.kept)} halves, {len(self.outputs)} retrainings each>"
        )

    def cases(self) -> pd.DataFrame:
        """Which case each row and column of the scores is: `axis` (train, test), `position` on it, `case` (its id),
        `a, b` (its operands), `answer` (of a test case the one that is explained)."""
        asked = self.question
        parts = []
        for axis, ids in (("train", asked.train_ids), ("test", asked.query_ids)):
            answers = [asked.task.answers[i] for i in ids] if axis == "train" else asked.answers
            a, b = asked.task.cases[ids, 0], asked.task.cases[ids, 1]
            columns = {"axis": axis, "position": np.arange(len(ids)), "case": ids, "a": a, "b": b, "answer": answers}
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)


def records_folder(records: Path | str | None = None) -> Path:
    """The folder of recorded retrainings: the one given, else `studies/retraining_bank` below the working folder, else
    that of the checkout that this package lies in. Raises `CriError` where there is none."""
    places = [Path(records)] if records is not None else [Path("studies") / NAME, _HERE]
    for place in places:
        if place.is_dir():
            return place
    raise CriError(
        f"records: no folder {places[0]}; the recorded retrainings come with the repository and not with the installed "
        f"package: clone it, and give its studies/{NAME} as records"
    )


def ground_truths(records: Path | str | None = None) -> pd.DataFrame:
    """What `ground_truth` can open: `name, grid, retrainings` (how many models)."""
    folder, rows = records_folder(records), []
    for grid, bank in _BANKS.items():
        for split, plan in _PLANS.items():
            for path in sorted((folder / bank).glob(f"*/{plan}")):
                if is_complete(path) and is_complete(path.parent / "base"):
                    task, fmt, tokenizer = path.parent.name.rsplit("-", 2)
                    parts = [task, *([] if fmt == "direct" else [fmt]), tokenizer, split]
                    n = read_json(path / "manifest.json")["n_replicas"]
                    rows.append({"name": "/".join(parts), "grid": grid, "retrainings": n})
    return pd.DataFrame(rows, columns=["name", "grid", "retrainings"])


def ground_truth(
    name: str = EXAMPLE, *, grid: Grid = "paper", target: Explained = "true", records: Path | str | None = None
) -> GroundTruth:
    """Opens recorded retrainings.

    Args:
        name: TASK/TOKENIZER/SPLIT, or TASK/FORMAT/TOKENIZER/SPLIT where the format is not the direct one;
            `ground_truths()` lists them.
        grid: `paper` (100 x 100 cases) or `small` (30 x 30 and less).
        target: whose answer is explained: the right one (`true`), or what the explained model says (`predicted`).
        records: their folder; see `records_folder`.

    Raises `CriError` naming the field for anything that was not recorded, and for no folder of records.
    """
    if grid not in _BANKS:
        raise unknown_name("grid", grid, _BANKS)
    if target not in _TARGETS:
        raise unknown_name("target", target, _TARGETS)
    known = ground_truths(records)
    names = known.loc[known["grid"] == grid, "name"].tolist()
    if name not in names:
        raise unknown_name("ground_truth", name, names)
    *family, split = name.split("/")
    if len(family) == 2:
        family.insert(1, "direct")
    folder = records_folder(records)
    place = folder / _BANKS[grid] / FamilyName(*family).folder
    base, record = load_retrainings(place / "base"), load_retrainings(place / _PLANS[split])
    held, asked = questions(base, split)
    question = asked[_TARGETS[target]]
    first = int(np.flatnonzero(base.table["split"] == split)[0])
    seed = int(base.table["seed"].iloc[first])
    masks, outputs = outputs_by_seed(record, held, _TARGETS[target])
    return GroundTruth(
        name, replace(question, model=base.bank().model(first), seed=seed), masks[:, question.train_ids], outputs, seed,
        _recorded(folder.parent, _BANKS[grid], family, record, _TARGETS[target]),
    )  # fmt: skip


_open = ground_truth  # `benchmark` has an argument of this name


def _recorded(studies: Path, bank: str, family: list[str], record: Retrainings, target: str) -> pd.DataFrame:
    """The rows of the study's table about these retrainings; none where it recorded none."""
    name = FamilyName(*family).folder
    folder = bank if family == ["addition", "direct", "number"] else f"{bank}-{name}"
    path = studies / "attribution_quality" / folder / "lds.csv"
    if not stored(path).exists():
        return pd.DataFrame(columns=["method", "retraining", "region", "lds", "lds_low", "lds_high"])
    table = read_table(path)
    return table[(table["subsets"] == record.path.name) & (table["target"] == target)]


def _scores(method: Any, truth: GroundTruth, name: str | None) -> dict[str, np.ndarray]:
    """Checked scores by name: one of an array or a function, one a layer of some methods of the registry."""
    if isinstance(method, str):
        chosen = find(method)
        scored = [(s, v) for s, v in chosen.score(truth.question) if layer(s) != -1]  # before layer 0 all are alike
        found = {chosen.at(site) if name is None else name: values for site, values in scored}
    elif callable(method):
        found = {name or getattr(method, "__name__", "yours"): method(truth.question)}
    else:
        found = {name or "yours": method}
    if not isinstance(method, str) and (taken := set(found) & set(METHODS)):
        raise CriError(f"name: {min(taken)!r} is a method of this package; call your scores something else")
    return {key: _checked(values, truth) for key, values in found.items()}


def _checked(values: Any, truth: GroundTruth) -> Float[np.ndarray, "train query"]:
    """`values` as an array; raises `CriError` unless they are one finite number a training case and test case."""
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CriError("scores: no array of numbers; give one number a training case and test case") from error
    if scores.shape != truth.shape:
        raise CriError(
            f"scores: {truth.name} needs [training case, test case] = {list(truth.shape)}, these are "
            f"{list(scores.shape)}; ground_truth(...).cases() lists the rows and columns"
        )
    if not np.isfinite(scores).all():
        raise CriError("scores: some are not finite; every training case needs a number for every test case")
    return scores


def benchmark(
    method: str | np.ndarray | Scorer,
    ground_truth: str | GroundTruth = EXAMPLE,
    *,
    grid: Grid = "paper",
    target: Explained = "true",
    region: str = EVERYWHERE,
    name: str | None = None,
    n_boot: int = N_BOOT,
    records: Path | str | None = None,
) -> pd.DataFrame:
    """Does an attribution method predict what retraining does?

    A model was trained again on random halves of its training cases. For each test case the scores of a half's cases
    are summed; LDS is the rank correlation over halves of these sums with the log-odds that retraining gave, the mean
    over test cases.

    Args:
        method: scores [training case, test case], larger where the case supports the answer more; or a function that
            makes them from a `Question` (its `train_ids`, `query_ids`, `model`, `task`, `train`, `queries`); or the
            name of a method of `cri.attribution.methods`.
        ground_truth: a name for the function of this name, or what that function returned.
        grid, target, records: of the function `ground_truth`.
        region: test cases of the square split: `all`, `square` or `outside`.
        name: what the table calls the method.
        n_boot: bootstrap samples for the intervals (95 %, over halves and patches of test cases).

    Returns:
        One row a method, best first, below the ceiling that noise between seeds sets:

        - `lds`: against the mean over the seeds of each half (or its only seed); `_low` and `_high` are its interval;
        - `gain`: LDS minus that of the best model-free method (chosen after the fact, which favours it);
        - `partial`: LDS with that method held fixed: what the scores predict beyond it;
        - `source`: `now`, or `recorded`: read from the table of the study `attribution_quality`, which has no interval
          for the gain over this method.

    Raises `CriError` for scores of another shape or not finite, and as `ground_truth`.
    """
    truth = ground_truth
    if not isinstance(truth, GroundTruth):
        truth = _open(truth, grid=grid, target=target, records=records)
    regions = region_masks(truth.question, truth.name.rpartition("/")[2])
    if region not in regions:
        raise unknown_name("region", region, regions)
    mask = regions[region]
    own = _scores(method, truth, name)
    sums = {}
    names = of_kind("model-free")
    with progress_bar(len(names), "model-free methods", "method", leave=False, delay=2) as bar:
        for key in names:
            sums[key] = subset_sums(METHODS[key].only(truth.question), truth.kept)
            bar.update()
    sums |= {key: subset_sums(values, truth.kept) for key, values in own.items()}
    block = query_blocks(truth.question.task, truth.question.query_ids[mask])
    draws = resamples(len(truth.kept), block, n_boot)
    table, ceilings = judge(sums, truth.outputs, truth.seed, mask, draws, {})
    kind = MEAN if len(truth.outputs) > 1 else FIXED
    table = table[table["retraining"] == kind].assign(source=NOW)
    best = table.loc[table["method"] == table["best_baseline"].iloc[0], "lds"].iloc[0]
    known = truth.recorded[(truth.recorded["retraining"] == kind) & (truth.recorded["region"] == region)]
    known = known.loc[~known["method"].isin(table["method"]), ["method", "lds", "lds_low", "lds_high"]]
    known = known.assign(source=RECORDED, gain=known["lds"] - best)
    top = [
        {"method": CEILING, "lds": row["estimate"], "lds_low": row["low"], "lds_high": row["high"], "source": NOW}
        for row in ceilings if row["what"] == f"ceiling, {MEAN}"
    ]  # fmt: skip
    columns = ["method", "lds", "lds_low", "lds_high", "gain", "gain_low", "gain_high", "partial", "partial_low",
               "partial_high", "source"]  # fmt: skip
    parts = [part for part in (table, known) if len(part)]
    ranked = pd.concat(parts, ignore_index=True).sort_values("lds", ascending=False, kind="stable")
    return pd.concat([pd.DataFrame(top), ranked], ignore_index=True).reindex(columns=columns)
