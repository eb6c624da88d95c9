"""The figures of `attribution_quality`, drawn from its recorded tables, without a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.attribution.methods import METHODS, find
from cri.options import FamilyName
from cri.plots.retraining import CONTROL, RETRAININGS, flip_curves, quality_bars, quality_points
from cri.retraining.config import PRESETS
from cri.storage import read_json
from cri.storage.compression import read_table, stored

EVERYWHERE, TARGET, HALF = "all", "reference", 0.5
REGIONS = {"all": "square split", "square": "in the square", "outside": "outside the square"}
DOMINATED = ("shared_operand",)
"""Left out of the first figure, which shows every other method that looks at no layer, the last layer's cosine, and the
mean over base models and over the largest ensemble."""
_LAYER = re.compile(r"cosine, layer (\d+)")
_MODELS = re.compile(r"EK-FAC, mean over (\d+) models")


def _largest(methods: list[str], pattern: re.Pattern[str]) -> str | None:
    found = {int(match[1]): method for method in methods if (match := pattern.fullmatch(method))}
    return found[max(found)] if found else None


def _name(method: str, n_base: int) -> str:
    """What figures call a method. Tables say "mean over seeds" of base models and of retrainings alike; figures must
    not."""
    if method in METHODS:
        return METHODS[method].label
    return method.replace("EK-FAC, mean over seeds", f"EK-FAC, {n_base} base models").replace("mean over ", "")


def _damping(manifest: dict[str, Any]) -> str:
    """What EK-FAC was damped by where its row says nothing else; tables older than the entry had the same value."""
    settings = manifest.get("methods", {}).get("EK-FAC", METHODS["EK-FAC"].settings)
    return f"EK-FAC: relative damping {settings['relative damping']:g}"


def _plans(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each recorded plan and region of its queries: halves before smaller removals, the square split
    before the random one, the square before the cases outside it."""
    found = [part for _, part in table.groupby(["subsets", "region"], sort=False)]
    order = list(REGIONS)
    out = []
    for part in sorted(
        found,
        key=lambda p: (-p["removed"].iloc[0], p["split"].iloc[0] != "square", order.index(p["region"].iloc[0])),
    ):
        removed, split, region = (part[name].iloc[0] for name in ("removed", "split", "region"))
        what = "halves" if removed == HALF else f"subsets, {removed:.0%} removed"
        where = REGIONS[region] if split == "square" else "random split"
        n = f"{int(part['n_queries'].iloc[0])} test cases"
        out.append((f"{where}\n{n}, {int(part['n_subsets'].iloc[0])} {what}", part))
    return out


def _ceiling(ceilings: pd.DataFrame | None, part: pd.DataFrame, retraining: str) -> float | None:
    """None where subsets were trained with one seed: nothing tells their noise."""
    if ceilings is None:
        return None
    what = "ceiling, mean over seeds" if retraining == "mean over seeds" else "ceiling, one seed"
    mine = (ceilings["subsets"] == part["subsets"].iloc[0]) & (ceilings["region"] == part["region"].iloc[0])
    found = ceilings.loc[mine & (ceilings["what"] == what), "estimate"]
    return float(found.iloc[0]) if len(found) else None


def _lds(table: pd.DataFrame, ceilings: pd.DataFrame | None, family: str) -> Any:
    """The methods that compete, against as many retrainings as there are: one panel a region of the random halves'
    queries, as there is less to predict in the square than outside."""
    plans = _plans(table[table["removed"] == HALF])
    fig, axes = plots.figure(1, len(plans), (max(7.4 / len(plans), 2.5), 3.9), sharex=True, sharey=True)
    for ax, (title, part) in zip(axes[0], plans, strict=True):
        retraining = next(r for r in reversed(RETRAININGS) if r in set(part["retraining"]))
        methods = part["method"].unique().tolist()
        cosine = _largest(methods, _LAYER)
        plain = set(METHODS).difference(DOMINATED)
        shown = {*plain, cosine, "EK-FAC, mean over seeds", _largest(methods, _MODELS)}
        rows = part[(part["retraining"] == retraining) & part["method"].isin(shown)]
        rows = rows.assign(name=rows["name"].mask(rows["method"] == cosine, "cosine, last layer"))
        quality_bars(rows, ax, ceiling=_ceiling(ceilings, part, retraining))
        what = "mean over retraining seeds" if retraining == "mean over seeds" else "one retraining each: noise unknown"
        ax.set_title(f"{title}\n{what}", pad=14)
    return _finish(fig, axes, family)


def _variants(table: pd.DataFrame, ceilings: pd.DataFrame | None, family: str) -> Any:
    """All methods, and each kind of retraining: one panel a plan."""
    plans = _plans(table)
    row = 0.25 if table["retraining"].nunique() > 1 else 0.17
    size = (3.6 if len(plans) < 3 else 3.0, 1.2 + row * table["method"].nunique())
    fig, axes = plots.figure(1, len(plans), size, sharex=True, sharey=True)
    for ax, (title, part) in zip(axes[0], plans, strict=True):
        lines = [_ceiling(ceilings, part, r) for r in ("fixed seed", "mean over seeds")]
        quality_points(part, ax, ceilings=[line for line in lines if line is not None])
        ax.set_title(title, pad=14)
    return _finish(fig, axes, family)


def _finish(fig: Any, axes: Any, family: str) -> Any:
    """Named, and with the legend of the panel that shows most."""
    handles, names = max((ax.get_legend_handles_labels() for ax in axes.flat), key=lambda found: len(found[0]))
    fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    fig.suptitle(family, fontsize=8)
    return fig


def _top_k(table: pd.DataFrame, n_base: int, family: str) -> Any:
    fig, axes = plots.figure(1, 1, (4.6, 2.8))
    names = [_name(method, n_base) for method in table["method"]]
    colors = [METHODS[method].color if method in METHODS else CONTROL for method in table["method"]]
    flip_curves(table.assign(name=names, color=colors), axes[0, 0])
    first = table.iloc[0]
    cases = f"{int(first['n_tests'])} right answers outside the square, {int(first['n_seeds'])} seeds"
    axes[0, 0].set_title(f"{family}\n{cases}")
    return fig


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws the figures from the tables in a folder; returns the files written."""
    manifest = read_json(tables / "manifest.json")
    family = FamilyName.parse(manifest["family"]).title
    damped = f"{family}; {_damping(manifest)}"
    lds = read_table(tables / "lds.csv")
    n_base = len(PRESETS[manifest["bank"]].seeds)
    lds = lds.assign(name=[_name(m, n_base) for m in lds["method"]], kind=[find(m).kind for m in lds["method"]])
    ceilings = read_table(tables / "ceiling.csv") if stored(tables / "ceiling.csv").exists() else None
    lds = lds[lds["target"] == TARGET]
    lines = None if ceilings is None else ceilings[ceilings["target"] == TARGET]
    everywhere = lds["region"] == EVERYWHERE
    by_region = lds[~everywhere | (lds["split"] != "square")]
    prefix = f"attribution_quality_{tables.name}"
    with plots.style():
        drawn = {"lds": _lds(by_region, lines, damped), "variants": _variants(lds[everywhere], lines, damped)}
        if stored(tables / "top_k.csv").exists():
            drawn["top_k"] = _top_k(read_table(tables / "top_k.csv"), n_base, damped)
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]
