"""The figures of `counterfactual_removal`, drawn from its recorded tables, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.planted import PLANTED
from cri.plots.removals import index_strip, removal_effects

FAMILY = ["task", "format", "tokenizer", "split"]
EVERYWHERE = "all"
_PLANTED_NAMES = {"patchwork": "planted: cases only", "digit_table": "planted: steps only"}


def _title(key: dict[str, str]) -> str:
    task = _PLANTED_NAMES.get(key["task"], key["task"].replace("_", " "))
    how = f"{key['format']}, {key['tokenizer']} tokens" if key["task"] not in PLANTED else ""
    return ", ".join(
        part for part in (task, how, f"{key['split']} split" if key["task"] not in PLANTED else "") if part
    )


def _families(table: pd.DataFrame) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Planted ones last."""
    found = [(dict(zip(FAMILY, key, strict=True)), part) for key, part in table.groupby(FAMILY, sort=False)]
    return sorted(found, key=lambda item: item[0]["task"] in PLANTED)


def _effects(groups: pd.DataFrame, target: str) -> Any:
    """One row of panels a size, one column a family."""
    groups = groups[groups["target"] == target]
    families = _families(groups)
    sizes = sorted(groups["size"].unique().tolist())
    widths = [max(part["region"].nunique(), 2.4) for _, part in families]
    fig, axes = plots.figure(len(sizes), len(families), (2.5, 2.0), width_ratios=widths)
    for j, (key, part) in enumerate(families):
        for i, size in enumerate(sizes):
            ax, rows = axes[i, j], part[part["size"] == size]
            if len(rows) == 0:
                ax.set_visible(False)
                continue
            removal_effects(rows, ax, legend=False)
            name, _, rest = _title(key).partition(", ")
            ax.set_title(f"{name}\n{rest}" if i == 0 or not axes[i - 1, j].get_visible() else "")
            tests, seeds = int(rows["n_tests"].max()), int(rows["n_runs"].max())
            ax.set_xlabel(f"{rows['n_removed'].mean():.0f} cases removed on average\n{tests} test cases, {seeds} seeds")
            ax.set_ylabel("drop of log-odds\nbeyond random" if j == 0 else "")
    handles, names = next(ax.get_legend_handles_labels() for ax in axes.flat if ax.get_visible())
    fig.legend(handles, names, loc="outside lower center", ncols=4)
    return fig


def _index(index: pd.DataFrame, cases: pd.DataFrame) -> Any:
    """Calibration above, the models below: one panel, at the largest size of each family."""
    index = index[(index["target"] == "prediction") & (index["size"] == index.groupby(FAMILY)["size"].transform("max"))]
    one_region = index.groupby(FAMILY)["region"].transform("nunique") == 1
    planted, trained = index["task"].isin(PLANTED), index["model"] == "trained"
    # planted tasks and controls as a whole, models by region
    whole = one_region | (index["region"] == EVERYWHERE)
    parts = (planted & trained & whole, ~trained & whole, ~planted & trained & (one_region | ~whole))
    table = pd.concat([index[part] for part in parts], ignore_index=True)
    names = []
    for row in table.to_dict("records"):
        where = "" if row["region"] in (EVERYWHERE, "random") else f", {row['region']}"
        control = "" if row["model"] == "trained" else f"{row['model']}: "
        names.append(f"{control}{_title(row)}{where} (n = {row['n']})")
    table["name"] = names
    keys = [*FAMILY, "size"]
    named = table.loc[table["model"] == "trained", [*keys, "region", "name"]].rename(columns={"region": "shown"})
    dots = cases[cases["target"] == "prediction"].merge(named, on=keys)
    dots = dots[(dots["shown"] == EVERYWHERE) | (dots["shown"] == dots["region"])]
    fig, axes = plots.figure(1, 1, (6.0, 0.6 + 0.2 * len(table)))
    index_strip(table, dots, axes[0, 0])
    return fig


def _dose_index(table: pd.DataFrame) -> Any:
    """The index from random subsets: trained models, then the same with relabelled groups."""
    table = table.sort_values("model", key=lambda m: m != "trained", kind="stable")
    names = []
    several = table["removed"].nunique() > 1
    places = {"square": ", in the square", "outside": ", outside"}
    for row in table.to_dict("records"):
        control = "" if row["model"] == "trained" else f"{row['model']}: "
        removed = f"{row['removed']:.0%} removed, " if several else ""
        what = _title(row).replace(", square split", "")
        names.append(f"{control}{what}{places.get(row['region'], '')} ({removed}n = {row['n']})")
    fig, axes = plots.figure(1, 1, (6.4, 0.6 + 0.2 * len(table)))
    index_strip(table.assign(name=names), pd.DataFrame({"name": [], "cri": []}), axes[0, 0])
    first = table.iloc[0]
    share = "" if several else f", {first['removed']:.0%} removed"
    axes[0, 0].set_title(f"{int(first['n_subsets'])} random subsets{share}")
    return fig


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws every figure of the study from the tables in a folder; returns the files written."""
    t = {p.stem: pd.read_csv(p) for p in sorted(tables.glob("*.csv"))}
    cases = t["cases"]
    if "cases_other" in t:
        other = t["cases_other"].rename(columns={"index": "cri", "index_low": "cri_low", "index_high": "cri_high"})
        cases = pd.concat([cases, other], ignore_index=True)
    prefix = f"counterfactual_removal_{tables.name}"
    with plots.style():
        drawn = {"index": _index(t["index"], cases)}
        if "dose_index" in t:
            drawn["dose_index"] = _dose_index(t["dose_index"])
        # addition beside its calibration, the other tasks apart: one row of panels holds no more
        main = t["groups"]["task"].isin(["addition", *PLANTED])
        for name, part in (("effects", t["groups"][main]), ("effects_tasks", t["groups"][~main])):
            if len(part):
                drawn[name] = _effects(part, "prediction")
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]
