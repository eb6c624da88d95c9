"""The figures of `counterfactual_removal`, drawn from its recorded tables, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.options import FamilyName
from cri.plots.marginal import marginal_effects
from cri.plots.retraining import difference_strip, removal_effects, strip_limit
from cri.storage.compression import read_table, tables_in
from cri.studies.common.spans import span
from cri.tasks import PLANTED

FAMILY = ["task", "format", "tokenizer", "split"]
EVERYWHERE = "all"
PLACES = {
    "all": "all regions", "square": "in the square", "centre": "centre", "edge": "edge", "outside": "outside",
    "random": "random split",
}  # fmt: skip
_ACROSS = 4
"""Panels in a row."""
CONTROLS = {"relabelled": "groups relabelled", "untrained": "untrained models"}


def _title(key: dict[str, str]) -> str:
    if key["task"] in PLANTED:
        return f"planted:\n{PLANTED[key['task']].planted}"
    return f"{FamilyName.of(key).title}\n{key['split']} split"


def _families(table: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Planted ones last."""
    found = [(dict(zip(FAMILY, key, strict=True)), part) for key, part in table.groupby(FAMILY, sort=False)]
    return sorted(
        found, key=lambda item: (item[0]["task"] in PLANTED, FamilyName.of(item[0]).order, item[0]["split"] != "square")
    )


def _effects(groups: pd.DataFrame, target: str) -> Any:
    """One panel a family and size, each on a scale of its own, in rows of `_ACROSS`."""
    groups = groups[groups["target"] == target]
    panels = [
        (key, part[part["size"] == size])
        for key, part in _families(groups)
        for size in sorted(part["size"].unique().tolist())
    ]
    n_cols = min(_ACROSS, len(panels))
    fig, axes = plots.figure(-(-len(panels) // n_cols), n_cols, (2.3, 2.0))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for i, (ax, (key, rows)) in enumerate(zip(axes.flat, panels, strict=False)):
        removal_effects(rows, ax, legend=False)
        ax.set_title(_title(key))
        tests, seeds = int(rows["n_tests"].max()), int(rows["n_runs"].max())
        ax.set_xlabel(f"{rows['n_removed'].mean():.0f} cases removed on average\n{tests} test cases, {seeds} seeds")
        ax.set_ylabel("" if i % n_cols else "drop of log-odds\nbeyond random")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, title="removed (scales differ)", title_fontsize=7)
    return fig


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row a trained model in the order to draw, with its `group` (one a family; all planted ones together and
    first: the instrument before what it is used on) and `name`."""
    main = table["removed"].mode().iloc[0] if "removed" in table else None
    rows = []
    for row in table[table["model"] == "trained"].to_dict("records"):
        planted = row["task"] in PLANTED
        row["group"] = "planted mechanisms" if planted else FamilyName.of(row).title
        kind = list(PLANTED).index(row["task"]) if planted else 0
        row["order"] = (
            not planted, kind, *FamilyName.of(row).order, list(PLACES).index(row["region"]), -row.get("removed", 0)
        )  # fmt: skip
        share = f", {row['removed']:.0%} removed" if row.get("removed") != main else ""
        kind = f"{PLANTED[row['task']].planted}, " if planted else ""
        row["name"] = f"{kind}{PLACES[row['region']]}{share} (n = {row['n']})"
        rows.append(row)
    return pd.DataFrame(sorted(rows, key=lambda row: row["order"]))


def _strips(table: pd.DataFrame, cases: pd.DataFrame | None, keys: list[str], title: str) -> Any:
    """Near minus step of trained models, and the same rows for each control beside it, on one scale.

    Args:
        table: rows of all models, told apart by `model` and `keys`.
        cases: as `difference_strip` takes them, with `keys` for `group` and `name`.
    """
    rows = _rows(table)
    limit = strip_limit(table)
    controls = [name for name in CONTROLS if name in set(table["model"])]
    height = 1.1 + 0.17 * (len(rows) + rows["group"].nunique())
    widths = [2.4, *[1.0] * len(controls)]
    fig, axes = plots.figure(1, len(widths), (7.4 / len(widths), height), width_ratios=widths)
    labels = rows[[*keys, "group", "name"]]
    difference_strip(rows, None if cases is None else cases.merge(labels, on=keys), axes[0, 0], limit=limit)
    axes[0, 0].set_title(title)
    for ax, control in zip(axes[0, 1:], controls, strict=True):
        beside = table[table["model"] == control].drop(columns="n")
        difference_strip(labels.merge(beside, on=keys, how="left"), None, ax, limit=limit, pale=True)
        ax.set_yticklabels([])
        ax.set_title(f"control:\n{CONTROLS[control]}")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles, names, loc="outside lower center", ncols=len(names),
        title="effect of near cases minus that of shared steps (log-odds), with its 95 % interval, coloured by its "
        "reading", title_fontsize=7,
    )  # fmt: skip
    return fig


def _index(index: pd.DataFrame, cases: pd.DataFrame) -> Any:
    """From designed removals, at the largest size of each family."""
    index = index[(index["target"] == "prediction") & (index["size"] == index.groupby(FAMILY)["size"].transform("max"))]
    cases = cases[cases["target"] == "prediction"]
    # every case again in the row of all regions together
    cases = pd.concat([cases, cases.assign(region=EVERYWHERE)], ignore_index=True)
    cases = cases.assign(difference=cases["near"] - cases["step"])
    title = f"designed removals of up to {span(index['size'])} cases,\n{span(index['n_seeds'])} seeds"
    return _strips(index, cases, [*FAMILY, "size", "region"], title)


def _dose_index(table: pd.DataFrame) -> Any:
    """From random subsets: the marginal effect of near cases against that of as many cases that share a step."""
    share = f"{table['removed'].mode().iloc[0]:.0%} removed"
    title = f"{span(table['n_subsets'])} random subsets, {share},\n{span(table['n_seeds'])} seeds"
    return _strips(table, None, [*FAMILY, "removed", "region"], title)


def _marginal(doses: pd.DataFrame) -> Any:
    """The marginal effect of ten more training cases of each kind: one row of panels a family, one column a region,
    each on a scale of its own, with the number of such cases beside each point."""
    families = list(dict.fromkeys(doses["family"]))
    regions = [r for r in ("square", "outside", "random") if r in set(doses["region"])]
    fig, axes = plots.figure(len(families), len(regions), (2.6, 1.95))
    for i, family in enumerate(families):
        for j, region in enumerate(regions):
            ax = axes[i, j]
            rows = doses[(doses["family"] == family) & (doses["region"] == region)]
            if len(rows) == 0:
                ax.set_visible(False)
                continue
            marginal_effects(rows, ax, names=j == 0)
            first = rows.iloc[0]
            where = {"square": "in the held-out square", "outside": "outside it", "random": "random split"}[region]
            seeds = f"{first['n_seeds']} seed" + ("s" if first["n_seeds"] > 1 else "")
            title = f"{where} (n = {rows['n_queries'].max()})\n{first['n_subsets']} halves, {seeds}"
            ax.set_title(title if len(families) == 1 else f"{family if j == 0 else ''}\n{title}")
    if len(families) == 1:
        fig.suptitle(families[0], fontsize=8)
    said = ("change of the right answer's log-odds for ten more training cases of a kind",
            "(scales differ); right: mean number of such cases")  # fmt: skip
    fig.supxlabel((" " if len(regions) > 2 else "\n").join(said), fontsize=8)
    return fig


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws every figure of the study from the tables in a folder; returns the files written."""
    t = {name: read_table(path) for name, path in tables_in(tables).items()}
    cases = t["cases"]
    if "cases_other" in t:
        other = t["cases_other"].rename(columns={"index": "cri", "index_low": "cri_low", "index_high": "cri_high"})
        cases = pd.concat([cases, other], ignore_index=True)
    prefix = f"counterfactual_removal_{tables.name}"
    with plots.style():
        drawn = {"index": _index(t["index"], cases)}
        if "dose_index" in t:
            drawn["dose_index"] = _dose_index(t["dose_index"])
        if "doses_matched" in t:
            halves = t["doses_matched"][t["doses_matched"]["removed"] == 0.5]
            rows = [row for row in halves.to_dict("records") if row["task"] not in PLANTED]
            effects = pd.DataFrame(
                [
                    {**row, "family": FamilyName.of(row).title}
                    for row in sorted(rows, key=lambda row: FamilyName.of(row).order)
                ]
            )
            # both tokenizers of the direct format together: what one hides from the model the other shows
            main = (effects["task"] == "addition") & (effects["format"] == "direct")
            for name, part in (("marginal", effects[main]), ("marginal_others", effects[~main])):
                if len(part):
                    drawn[name] = _marginal(part)
        # addition beside its calibration, the other tasks apart: one row of panels holds no more
        main = t["groups"]["task"].isin(["addition", *PLANTED])
        for name, part in (("effects", t["groups"][main]), ("effects_tasks", t["groups"][~main])):
            if len(part):
                drawn[name] = _effects(part, "prediction")
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]
