"""The figures of `neighbor_attribution`, drawn from its recorded tables, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cri import plots
from cri.attribution.methods import PARAMETERS, find, layer
from cri.plots.retraining import group_points
from cri.storage import read_json
from cri.storage.compression import read_table, tables_in
from cri.studies.neighbor_attribution.config import CONTROLS

_MOST_SITES = 4
"""Panels beside each other; of deeper models, sites spread evenly from the first to the last."""
_WINDOW = 25
"""Cells shown on each side of an example's case."""


def short_site(site: str) -> str:
    """`embed`, `L0`, `L1` ... for residual-stream sites; gradients and baselines are named by method."""
    number = layer(site)
    return "embed" if number == -1 else f"L{number}"


def _columns(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The table cut into the panels of a row: one for each similarity, the gradients, the baselines; `site`
    holds the names under each axis."""
    kinds = table["method"].map(lambda method: find(method).kind)
    panels = []
    for method, part in table[kinds == "similarity"].groupby("method", sort=False):
        panels.append((find(str(method)).label, part.assign(site=part["site"].map(short_site))))
    others = {"gradients": kinds.isin(("gradients", "influence")), "model-free": kinds == "model-free"}
    for title, mine in others.items():
        if mine.any():
            part = table[mine]
            panels.append((title, part.assign(site=[find(method).label for method in part["method"]])))
    return panels


def _connected(title: str) -> bool:
    """Whether the points of a panel follow one another: layers do, methods do not."""
    return title not in ("gradients", "model-free")


def damping(manifest: dict[str, Any]) -> str:
    """What EK-FAC was damped by, of a study's manifest: those without the entry had 0.1."""
    settings = manifest["identity"].get("methods", {}).get("EK-FAC", {"relative damping": 0.1})
    return f"EK-FAC: relative damping {settings['relative damping']:g}"


def _maps(tables: dict[str, pd.DataFrame], manifest: dict[str, Any]) -> Any:
    """Rows: held-out cases of the first seed; columns: methods. Scores of different methods have no common unit, so
    each map has its own scale, written above it, and one bar says what share of it a colour is."""
    from matplotlib.cm import ScalarMappable

    maps, examples = tables["maps"], tables["examples"]
    methods = list(dict.fromkeys(c.split("|")[1] for c in maps.columns if c.count("|") == 1))
    options, (down, across) = manifest["identity"]["options"], manifest["axis_names"]
    fig, axes = plots.figure(len(examples), len(methods), (7.4 / len(methods), 2.35))
    for i, case in enumerate(examples.to_dict("records")):
        for j, method in enumerate(methods):
            name, cell = f"{case['place']}|{method}", (case["row"], case["col"])
            ax = plots.score_map(
                maps, name, axes[i, j], test_case=cell, squares=[tuple(manifest["square"])], top=f"{name}|top",
                window=_WINDOW, colorbar=False,
            )  # fmt: skip
            named = f"{find(method).label}{', last layer' if method == 'cosine' else ''}\n" if i == 0 else ""
            best = maps.loc[maps[f"{name}|top"].astype(bool), ["row", "col"]].to_numpy()
            n_out = int((np.abs(best - cell).max(axis=1) > _WINDOW).sum())
            beyond = f", {n_out} outside" if n_out else ""
            scale = float(f"{ax.images[0].get_clim()[1]:.2g}")
            ax.set_title(f"{named}scale ±{scale:g}{beyond}")
            ax.set_ylabel("")
            ax.set_xlabel(across if i == len(examples) - 1 else "")
        outcome = "right" if str(case["prediction"]) == str(case["answer"]) else f"answer: {case['answer']}"
        axes[i, 0].set_ylabel(
            f"{case['place']} ({case['a']}, {case['b']})\npredicts {case['prediction']} ({outcome})\n\n{down}"
        )
    colors = ScalarMappable(cmap=plots.SIGNED)
    colors.set_clim(-1, 1)
    bar = fig.colorbar(colors, ax=axes, orientation="horizontal", shrink=0.5, aspect=40, ticks=[-1, 0, 1], pad=0.02)
    bar.set_label("score, as a share of the map's scale")
    _maps_key(fig, options["k"])
    what = f"square split, seed {options['seeds'][0]}: scores of the training cases for one held-out case"
    fig.suptitle(f"{what}; {damping(manifest)}", fontsize=8)
    return fig


def _maps_key(fig: Any, k: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    star = Line2D([], [], marker="*", color="white", markeredgecolor="black", markersize=9, label="the held-out case")
    ring = Line2D([], [], marker="o", color="none", markeredgecolor=plots.BEST, markersize=5)
    ring.set_label(f"its {k} best training cases")
    square = Patch(facecolor=plots.MISSING, edgecolor=plots.FRAME, linewidth=1.3, label="held-out square")
    fig.legend(handles=[star, ring, square], loc="outside lower center", ncols=3)


def _enrichment(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    # model-free methods do not depend on training, so the controls, in the middle, have no such panel
    controls = [(name, "full", name) for name in CONTROLS if name in set(table["model"])]
    rows = (("square", "full", "square split"), *controls, ("random", "own", "random split"))
    widths = [max(len(p["site"].unique()), 2) for _, p in _columns(table[table["model"] == "square"])]
    fig, axes = plots.figure(len(rows), len(widths), (2.1, 1.9), sharey=True, width_ratios=widths)
    for ax in axes[:-1].flat:
        ax.tick_params(labelbottom=False)
    for i, (model, which, title) in enumerate(rows):
        part = table[(table["model"] == model) & (table["set"] == which)]
        panels = _columns(part)
        for j, (name, panel) in enumerate(panels):
            ax = plots.enrichment_curves(panel, axes[i, j], connect=_connected(name), legend=False)
            ax.set_ylabel("")
            if i == 0:
                ax.set_title(name)
        for ax in axes[i, len(panels) :]:
            ax.set_visible(False)
        axes[i, 0].set_ylabel(f"{title} (n = {part['n'].max()})\nenrichment in top-k")
    handles = {name: h for ax in axes.flat for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    fig.suptitle(damping(manifest), fontsize=8)
    return fig


_CONTRASTS = {"near": "near cases", "near, mirror apart": "near cases,\nmirror images apart", "step": "shared steps"}
_FLOOR = 2.0**-5
"""Enrichments below are drawn there: none of a kind among the nearest would have no place on a log scale."""
_LOW = 0.1
"""A contrast all of whose intervals lie below this is drawn low."""


def _matched(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    """One row of panels a contrast and set of cases, on one scale; rows where nothing is found are low."""
    model_free = np.array([find(method).kind == "model-free" for method in table["method"]], dtype=bool)
    table = table[~model_free & (table["measure"] == "excess") & table["set"].isin(("full", "common"))]
    rows = [(c, s) for c in _CONTRASTS for s in ("full", "common") if c in set(table["contrast"])]
    parts = {row: table[(table["contrast"] == row[0]) & (table["set"] == row[1])] for row in rows}
    # of a square of one patch there are no intervals
    low = float(table[["low", "estimate"]].min(axis=None)) - 0.04
    high = float(table[["high", "estimate"]].max(axis=None)) + 0.04
    flat = {row: float(part[["low", "high"]].abs().max(axis=None)) < _LOW for row, part in parts.items()}
    widths = [max(len(p["site"].unique()), 2) for _, p in _columns(table)]
    heights = [0.45 if flat[row] else 1.0 for row in rows]
    size = (2.3, 1.9 * sum(heights) / len(rows) + 0.35)
    fig, axes = plots.figure(len(rows), len(widths), size, sharex="col", width_ratios=widths, height_ratios=heights)
    for i, (contrast, which) in enumerate(rows):
        part = parts[contrast, which]
        for j, (name, panel) in enumerate(_columns(part)):
            ax = plots.matched_curves(panel, axes[i, j], connect=_connected(name), legend=False)
            ax.set_ylabel("")
            ax.set_ylim((-_LOW, _LOW) if flat[contrast, which] else (low, high))
            if j:
                ax.tick_params(labelleft=False)
            if i == 0:
                ax.set_title(name)
        cases = "all held-out" if which == "full" else "held out by both"
        axes[i, 0].set_ylabel(f"{_CONTRASTS[contrast]}\n{cases}\nn = {part['n'].max()}")
    handles = {name: h for ax in axes[:2, 0] for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(
        handles.values(), handles, loc="outside lower center", ncols=3,
        title="excess in the top-k, outputs matched", title_fontsize=7,
    )  # fmt: skip
    fig.suptitle(damping(manifest), fontsize=8)
    return fig


def _distance(table: pd.DataFrame, aucs: pd.DataFrame) -> Any:
    rows = (("square", "full", "square split"), ("random", "own", "random split"))
    table, aucs = (t[t["method"] == "euclidean"] for t in (table, aucs))
    spread = table.groupby("site", sort=False)["distance"].agg(lambda d: d.max() - d.min())
    # before any attention the last prompt token is the same for all cases of a task
    sites = spread.index[spread > 1e-6]
    if len(sites) > _MOST_SITES:
        sites = sites[np.linspace(0, len(sites) - 1, _MOST_SITES).round().astype(int)]
    fig, axes = plots.figure(2, len(sites), (2.9, 2.0))
    for i, (model, which, title) in enumerate(rows):
        for j, site in enumerate(sites):
            chosen = {"model": model, "set": which, "site": site}
            part, auc = (_select(t, chosen) for t in (table, aucs))
            ax = plots.distance_correctness(part, axes[i, j])
            value = auc.set_index("control")["auc"]
            within = f", within rings {value['ring']:.2f}" if model == "square" else ""
            ax.set_title(f"{short_site(site)}: AUC {value['none']:.2f}{within}")
            ax.set_ylabel(f"{title}\ntest cases" if j == 0 else "")
            ax.set_xlabel(ax.get_xlabel() if i == len(rows) - 1 else "")
    return fig


def _select(table: pd.DataFrame, values: dict[str, str]) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def _umap(table: pd.DataFrame) -> Any:
    fig, axes = plots.figure(1, 2, (3.4, 3.1))
    for ax, (model, part) in zip(axes[0], table.groupby("model", sort=False), strict=True):
        plots.embedding_map(part, ax)
        ax.set_title(f"{model} split, {short_site(part['site'].iloc[0])}")
    fig.suptitle("UMAP: which cases lie together says something, how far apart groups lie does not", fontsize=7)
    return fig


def _kinds(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    """How far each kind of training case is enriched by three methods, by model. Kinds overlap."""
    last = [site for site in table["site"].unique() if layer(site) is not None][-1]
    methods = {"cosine": last, "GradCos": PARAMETERS, "EK-FAC": PARAMETERS}
    chosen = [(model, "own" if model == "random" else "full") for model in ("square", *CONTROLS, "random")]
    kinds = list(table["kind"].unique())
    fig, axes = plots.figure(1, len(methods), (2.6, 0.27 * len(kinds) + 0.8), sharey=True)
    for ax, (method, site) in zip(axes[0], methods.items(), strict=True):
        here = table[(table["method"] == method) & (table["site"] == site)]
        for i, (model, which) in enumerate(chosen):
            part = here[(here["model"] == model) & (here["set"] == which)].set_index("kind").reindex(kinds)
            if part["estimate"].isna().all():
                continue
            x, low, high = (np.maximum(part[c].to_numpy(dtype=float), _FLOOR) for c in ("estimate", "low", "high"))
            bars = np.maximum(np.stack([x - low, high - x]), 0)
            at = np.arange(len(kinds)) + (i - (len(chosen) - 1) / 2) * 0.17
            ax.errorbar(
                x, at, xerr=bars, fmt="o", markersize=3, elinewidth=1, color=plots.MODEL_COLORS[model],
                label=model if model in CONTROLS else f"{model} split",
            )  # fmt: skip
        ax.axvline(1.0, color="0.5", linewidth=0.8, linestyle=":")
        ax.set_xscale("log", base=2)
        where = f", {short_site(site)}" if site == last else ""
        ax.set_title(f"{find(method).label}{where}")
        ax.set_xlabel("enrichment in the top-k")
    axes[0, 0].set_yticks(range(len(kinds)), kinds)
    axes[0, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    fig.suptitle(f"kinds overlap; 1: the base rate; less than 1/32 is drawn there; {damping(manifest)}", fontsize=8)
    return fig


def _causal(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    """The marginal effect of each group's cases, and how far three methods enrich it. The two ask about different
    answers, and each panel says which. (What removing a group does is in the table: too few cases to measure.)"""
    groups = table.drop_duplicates("group")
    first = table.iloc[0]
    fig, axes = plots.figure(1, 2, (3.4, 2.7), width_ratios=(1, 1.4))
    gain, enrichment = axes[0]
    group_points(groups, "gain", gain)
    gain.set_title(
        f"measured: {first['per']:.0f} cases more\n{first['n_queries']} cases of the square,\nthe right answer"
    )
    gain.set_ylabel("gain of log-odds")
    last = [site for site in table["site"].unique() if "resid_post" in site][-1]
    sites = {"cosine": last, "GradCos": PARAMETERS, "EK-FAC": PARAMETERS}
    keys = np.array([find(method).key for method in table["method"]])
    parts = []
    for method, site in sites.items():
        where = f", {short_site(site)}" if site == last else ""
        chosen = table[(keys == method) & (table["site"] == site)]
        parts.append(chosen.assign(site=f"{find(method).label}{where}"))
    part = pd.concat(parts)
    plots.enrichment_curves(part.rename(columns={"enrichment": "estimate"}), enrichment, connect=False, legend=False)
    k = manifest["identity"]["options"]["k"]
    enrichment.set_title(
        f"predicted: enrichment in the {k} best\n{first['n'] // first['n_runs']} cases of the square × "
        f"{first['n_runs']} models,\nthe model's own answer"
    )
    enrichment.set_ylabel("enrichment\n(1 = base rate)")
    handles, labels = enrichment.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    fig.suptitle(damping(manifest), fontsize=8)
    return fig


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws every figure of the study from the tables in a folder; returns the files written."""
    manifest = read_json(tables / "manifest.json")
    t = {name: read_table(path, keep_default_na=name != "examples") for name, path in tables_in(tables).items()}
    prefix = f"neighbor_attribution_{tables.name}"
    with plots.style():
        drawn = {
            "maps": _maps(t, manifest),
            "enrichment": _enrichment(t["enrichment"], manifest),
            "matched": _matched(t["matched"], manifest),
            "umap": _umap(t["embedding"]),
        }
        if "euclidean" in set(t["distance"]["method"]):
            drawn["distance"] = _distance(t["distance"], t["distance_auc"])
        if "kinds" in t:
            drawn["kinds"] = _kinds(t["kinds"], manifest)
        if "causal" in t:
            drawn["causal"] = _causal(t["causal"], manifest)
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]
