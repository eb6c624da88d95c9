"""The tables of `neighbor_attribution`: every model, method and site, scored and compared by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cri import statistics
from cri.attribution.flat import umap_xy
from cri.attribution.methods import METHODS, NO_MODEL, PARAMETERS, methods_table
from cri.attribution.questions import Question
from cri.data.splits import depth
from cri.evaluation.scoring import STATUSES
from cri.models.activations import Site, collect, residual_sites
from cri.models.loading import to_bridge
from cri.storage import read_json
from cri.storage.compression import read_table, stored
from cri.studies.common.memory import peak_memory
from cri.studies.neighbor_attribution.config import CONTROLS, GRADIENTS, METRICS, RANDOM_WEIGHTS, UNTRAINED
from cri.studies.neighbor_attribution.subjects import Comparison, Subject, differentiated, subjects
from cri.training.runs import Run, load_run

if TYPE_CHECKING:
    from cri.studies.neighbor_attribution.config import NeighborAttribution

KEYS = ["model", "set", "method", "site"]


@dataclass
class Collected:
    """Per-test-case results of all runs and models, in pieces."""

    enrichment: list[pd.DataFrame] = field(default_factory=list)
    matched: list[pd.DataFrame] = field(default_factory=list)
    vote: list[pd.DataFrame] = field(default_factory=list)
    distance: list[pd.DataFrame] = field(default_factory=list)
    groups: list[pd.DataFrame] = field(default_factory=list)
    kinds: list[pd.DataFrame] = field(default_factory=list)


def scored(subject: Subject, config: NeighborAttribution) -> Iterator[tuple[str, str, np.ndarray]]:
    """(method, site, scores [train, test]) of every method that needs no further training, one at a time to bound
    memory. Explained are the model's own answers."""
    queries = subject.run.explained(subject.test_ids, "prediction")
    question = Question(
        subject.run, subject.train_ids, subject.test_ids, queries, subject.predictions, subject.model,
        part=subject.part, layers_apart=config.layers_apart,
    )  # fmt: skip
    for method in METHODS.values():
        left_out = method.key in (*METRICS, *GRADIENTS) and method.key not in (*config.metrics, *config.gradients)
        # of the controls: model-free methods do not depend on the model
        free = subject.name in CONTROLS and method.kind == "model-free"
        unasked = subject.name == RANDOM_WEIGHTS and method.kind != "similarity"
        if method.needs == "training" or left_out or free or unasked:
            continue
        for site, scores in method.score(question):
            yield method.key, site, scores


def measure(
    subject: Subject,
    comparisons: Sequence[Comparison],
    config: NeighborAttribution,
    out: Collected,
    keep: Callable[[str, str, np.ndarray], None] | None = None,
) -> None:
    """Scores the subject by every method and adds the per-test-case results to `out`."""
    run, seed = subject.run, subject.run.config.seed
    true = statistics.labels(run.task.answers)
    correct = run.predictions["correct"].to_numpy(dtype=bool)
    rings = depth(run.task, run.task.center, config.half_side)
    for c in comparisons:
        table = c.groups.base_rates().assign(model=subject.name, set=c.name, run=seed, n_test=len(c.columns))
        out.groups.append(table)
    for method, site, scores in scored(subject, config):
        if keep is not None:
            keep(method, site, scores)
        for c in comparisons:
            full = scores.shape == (len(c.rows), len(c.columns))
            part = scores if full else np.ascontiguousarray(scores[np.ix_(c.rows, c.columns)])
            ids = c.groups.test_ids
            keys = {"model": subject.name, "set": c.name, "method": method, "site": site, "run": seed}
            k = min(config.k, len(c.rows))

            def stack(
                into: list[pd.DataFrame], table: pd.DataFrame, keys: dict[str, Any] = keys, c: Comparison = c
            ) -> None:
                block = np.repeat(c.block, len(table) // len(c.block))
                into.append(table.assign(**keys, block=block))

            stack(out.enrichment, statistics.enrichment(part, c.groups, k))
            stack(out.matched, statistics.matched(part, c.groups, k))
            stack(out.vote, statistics.vote(part, c.groups, true[ids], k))
            if site != NO_MODEL:
                shares = statistics.kind_shares(part, c.kinds, ids, k)
                block = dict(zip(ids.tolist(), c.block.tolist(), strict=True))
                out.kinds.append(shares.assign(**keys, block=shares["test_id"].map(block)))
            if site not in (PARAMETERS, NO_MODEL):
                table = pd.DataFrame({"test_id": ids, "distance": statistics.neighbor_distance(part, k)})
                # 1 - cosine, so that both metrics are distances
                table["distance"] += 0.0 if method == "euclidean" else 1.0
                stack(out.distance, table.assign(correct=correct[ids], ring=rings[ids]))


def summarize(out: Collected, config: NeighborAttribution) -> dict[str, pd.DataFrame]:
    """The recorded tables from the per-test-case ones."""
    options: dict[str, Any] = {"n_boot": config.n_boot}
    names = {"task": config.task, "format": config.format}
    enrichment, matched = pd.concat(out.enrichment), pd.concat(out.matched)
    vote, distance = pd.concat(out.vote), pd.concat(out.distance)
    shares = statistics.estimate(enrichment, "share", [*KEYS, "group"], "base", **options)
    masses = statistics.estimate(enrichment, "mass", [*KEYS, "group"], "base", **options)
    bases = enrichment.groupby([*KEYS, "group"], sort=False)["base"].mean().rename("base").reset_index()
    shares = shares.merge(bases, on=[*KEYS, "group"]).merge(
        masses[[*KEYS, "group", "estimate", "low", "high"]], on=[*KEYS, "group"], suffixes=("", "_mass")
    )
    votes = vote.assign(predicted=np.where(vote["correct"], "right", "wrong"))
    votes = pd.concat(
        statistics.estimate(votes, value, [*KEYS, "predicted"], **options).assign(quantity=value)
        for value in ("agrees", "agrees_true", "base")
    )
    rows = []
    for key, part in distance.groupby(KEYS, sort=False):
        closer, right = -part["distance"].to_numpy(), part["correct"].to_numpy(dtype=bool)
        run, block = part["run"].to_numpy(), part["block"].to_numpy()
        for control, stratum in (("none", np.zeros(len(part))), ("ring", part["ring"].to_numpy())):
            auc = statistics.stratified_auc(closer, right, stratum, run, block, **options)
            rows.append((*key, control, *auc, int(right.sum()), int((~right).sum())))
        if part["set"].iloc[0] != "own":  # off the square, rings are no depth
            rim = statistics.stratified_auc(-part["ring"].to_numpy(), right, np.zeros(len(part)), run, block, **options)
            rows.append((*key, "ring alone", *rim, int(right.sum()), int((~right).sum())))
    aucs = pd.DataFrame(rows, columns=[*KEYS, "control", "auc", "low", "high", "n_right", "n_wrong"])
    # content baselines are model-free, so there is nothing to decide about one
    asked = {"matched": matched, "enrichment": enrichment}
    named = {name: table[table["site"] != NO_MODEL].assign(**names) for name, table in asked.items()}
    return {
        "groups": pd.concat(out.groups),
        "enrichment": shares,
        "matched": pd.concat(
            statistics.estimate(matched, measure, [*KEYS, "contrast"], **options).assign(measure=measure)
            for measure in ("excess", "share", "expected", "auc")
        ),
        "vote": votes,
        "distance": distance[distance["set"] != "common"],
        "distance_auc": aucs,
        "kinds": kind_table(pd.concat(out.kinds), **options),
        "verdicts": statistics.verdicts(named["matched"], named["enrichment"], **options),
    }


def kind_table(kinds: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """How far each kind of training case is enriched among the nearest, over the test cases that have any: `estimate`,
    `low`, `high`, `n`; `base`, its share of all training cases, and `size`; and of the square model how much larger its
    `share` is than before training (`vs_untrained`, all its cases) and than in the random split's model (`vs_random`,
    the common cases), with intervals."""
    keys = [*KEYS, "kind"]
    table = statistics.estimate(kinds, "share", keys, "base", **options).drop(columns="n_blocks")
    sizes = kinds.groupby(keys, sort=False)[["share", "base", "size"]].mean().reset_index()
    table = table.merge(sizes, on=keys)
    for which, other in (("full", UNTRAINED), ("common", "random")):
        by = ["set", "method", "site", "kind"]
        gap = statistics.paired(kinds[kinds["set"] == which], "share", ("square", other), by, **options)
        name = f"vs_{other}"
        gap = gap.rename(columns={"estimate": name, "low": f"{name}_low", "high": f"{name}_high"})
        gap = gap[[*by, name, f"{name}_low", f"{name}_high"]].assign(model="square")
        table = table.merge(gap, on=["model", *by], how="left")
    return table


def example_maps(
    subject: Subject, scores: Mapping[str, np.ndarray], config: NeighborAttribution
) -> dict[str, pd.DataFrame]:
    """Scores of all training cases for three test cases, one column each, and who these are: the square's
    centre, the middle of its upper edge, its upper left corner (those that were answered)."""
    run, h = subject.run, config.half_side
    row, col = run.task.center
    coords = [tuple(c) for c in run.task.coords.tolist()]
    places = {"centre": (row, col), "edge": (row - h, col), "corner": (row - h, col - h)}
    cases = {place: coords.index(cell) for place, cell in places.items()}
    cases = {place: case for place, case in cases.items() if case in subject.test_ids}
    maps = run.predictions[["id", "row", "col"]].copy()
    for place, case in cases.items():
        column = int(np.searchsorted(subject.test_ids, case))
        for method, matrix in scores.items():
            values, best = np.full(len(maps), np.nan), np.zeros(len(maps), dtype=int)
            values[subject.train_ids] = matrix[:, column]
            best[subject.train_ids[np.argsort(-matrix[:, column], kind="stable")[: config.k]]] = 1
            maps[f"{place}|{method}"], maps[f"{place}|{method}|top"] = values, best
    columns = ["id", "row", "col", "a", "b", "answer", "prediction"]
    examples = run.predictions.loc[list(cases.values()), columns].assign(place=list(cases))
    return {"maps": maps, "examples": examples}


def embedding(run: Run, name: str, square_test: np.ndarray, seed: int) -> pd.DataFrame:
    """UMAP of the whole grid's last residual stream at the last prompt token.

    Marked are the held-out cases of the run that lie in the square.
    """
    bridge = to_bridge(run.model, run.tokenizer)  # not kept: a copy of a pretrained model is large
    site = residual_sites(bridge)[-1]
    vectors = collect(bridge, run.tokens, [site])[site]
    xy = umap_xy(vectors, seed)
    mark = np.full(len(vectors), "", dtype=object)
    shown = square_test[~run.split.train[square_test]]
    mark[shown] = np.where(run.predictions["correct"].to_numpy(dtype=bool)[shown], "right", "wrong")
    table = run.predictions[["id", "row", "col"]].assign(x=xy[:, 0], y=xy[:, 1], value=run.task.values, mark=mark)  # pyright: ignore
    return table.assign(model=name, site=str(site))


def accuracies(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Accuracy and how the answers ended, on training and held-out cases of each run."""
    rows = []
    for name, run in runs.items():
        for part, mask in (("train", run.split.train), ("test", run.split.test)):
            table = run.predictions[mask]
            ends = {status: int((table["status"] == status).sum()) for status in STATUSES}
            rows.append({"model": name, "run": run.config.seed, "part": part, "n": len(table),
                         "accuracy": table["correct"].mean(), **ends})  # fmt: skip
    return pd.DataFrame(rows)


def causal(enrichment: pd.DataFrame, removal: Path, config: NeighborAttribution) -> pd.DataFrame | None:
    """For each group of training cases, how far every method enriches it beside what retraining without it does.

    Returns:
        One row a method, site and group: `enrichment`, `low`, `high` of the square model (`n` cases, the same ones
        asked of `n_runs`); `effect`, `effect_low`, `effect_high`, the drop of the log-odds when cases of the group are
        removed (`n_removed` on average; beyond random removal, over the `n_tests` test cases of the square split) and
        `gain`, `gain_low`, `gain_high`, the effect of `per` training cases more of the group on the right answers
        of the square's `n_queries` cases, from random subsets. None where `removal` holds no tables of models like
        these.
    """
    shape = {"model": config.model, "size": config.size, "half_side": config.half_side}
    if not (removal / "manifest.json").exists() or read_json(removal / "manifest.json")["models"] != shape:
        return None
    names = {"task": config.task, "format": config.format, "tokenizer": config.tokenizer, "split": "square"}
    measured: dict[str, pd.DataFrame] = {}
    for name in ("groups", "doses"):
        if not stored(removal / f"{name}.csv").exists():
            return None
        table = read_table(removal / f"{name}.csv")
        measured[name] = table[np.all([table[key] == value for key, value in names.items()], axis=0)]
    effects = measured["groups"][
        (measured["groups"]["region"] == "all") & (measured["groups"]["target"] == "prediction")
    ]
    doses = measured["doses"][measured["doses"]["region"] == "square"]
    if effects.empty or doses.empty:
        return None
    # the size at which all groups could be removed
    effects = effects[effects["size"] == effects["size"].min()]
    ends = {"low": "effect_low", "high": "effect_high"}
    effects = effects.rename(columns={"estimate": "effect", **ends})
    effects = effects[["group", "effect", *ends.values(), "n_removed", "n_tests"]]
    doses = doses[doses["removed"] == doses["removed"].max()]
    ends = {"low": "gain_low", "high": "gain_high"}
    doses = doses.rename(columns={"effect": "gain", **ends})[["group", "gain", *ends.values(), "per", "n_queries"]]
    mine = enrichment[(enrichment["model"] == "square") & (enrichment["set"] == "full")]
    mine = mine.rename(columns={"estimate": "enrichment"})
    mine = mine[["method", "site", "group", "enrichment", "low", "high", "n", "n_runs"]]
    return mine.merge(effects, on="group").merge(doses, on="group")


def compute(
    paths: Sequence[tuple[Path, Path]], config: NeighborAttribution
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """All tables, from (square run, random run) folders, one pair a seed, and facts for the manifest; maps and UMAP are
    of the first pair."""
    out = Collected()
    tables: dict[str, pd.DataFrame] = {}
    accuracy, last, facts = [], "", {}
    for square, random in (map(load_run, pair) for pair in paths):
        runs = {"square": square, "random": random}
        accuracy.append(accuracies(runs))
        last = str(Site(f"blocks.{square.model.config.num_hidden_layers - 1}.hook_resid_post"))
        for subject, parts in subjects(square, random):
            kept: dict[str, np.ndarray] = {}

            def keep(
                method: str, site: str, scores: np.ndarray, kept: dict[str, np.ndarray] = kept, last: str = last
            ) -> None:
                if (method == "cosine" and site == last) or site == PARAMETERS:
                    kept[method] = scores

            wanted = subject.name == "square" and not tables
            measure(subject, parts, config, out, keep if wanted else None)
            if wanted:
                tables = example_maps(subject, kept, config)
                views = [embedding(run, name, square.split.test_ids, config.seeds[0]) for name, run in runs.items()]
                tables["embedding"] = pd.concat(views)
                facts = {
                    "square": [*square.task.center, config.half_side],
                    "axis_names": square.task.axis_names,
                    "parameters": differentiated(subject),
                }
    tables |= summarize(out, config)
    tables["overall"] = statistics.overall(tables["verdicts"], (("cosine", last), ("GradCos", PARAMETERS)))
    tables["accuracy"] = pd.concat(accuracy)
    tables["methods"] = methods_table()
    beside = causal(tables["enrichment"], config.removal, config)
    if beside is not None:
        tables["causal"] = beside
    return tables, {**facts, "peak_memory_gib": round(peak_memory() / 2**30, 2)}
