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
    # model-free methods do not depend on training, so the untrained row, in the middle, has no such panel
    rows = (("square", "full", "square split"), ("untrained", "full", "untrained"), ("random", "own", "random split"))
    widths = [max(len(p["site"].unique()), 2) for _, p in _columns(table[table["model"] == "square"])]
    fig, axes = plots.figure(3, len(widths), (2.1, 1.9), sharey=True, width_ratios=widths)
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


def _matched(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    rows = (("near", "full"), ("near", "common"), ("step", "full"), ("step", "common"))
    names = {"near": "near cases", "step": "shared steps"}
    model_free = np.array([find(method).kind == "model-free" for method in table["method"]], dtype=bool)
    table = table[~model_free & (table["measure"] == "excess")]
    widths = [max(len(p["site"].unique()), 2) for _, p in _columns(table)]
    fig, axes = plots.figure(4, len(widths), (2.3, 1.7), sharey=True, sharex="col", width_ratios=widths)
    for i, (contrast, which) in enumerate(rows):
        part = table[(table["contrast"] == contrast) & (table["set"] == which)]
        for j, (name, panel) in enumerate(_columns(part)):
            ax = plots.matched_curves(panel, axes[i, j], connect=_connected(name), legend=False)
            ax.set_ylabel("")
            if i == 0:
                ax.set_title(name)
        cases = "all held-out" if which == "full" else "held out by both"
        axes[i, 0].set_ylabel(f"{names[contrast]}\n{cases}, n = {part['n'].max()}\nexcess in top-k")
    handles = {name: h for ax in axes[:2, 0] for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    fig.suptitle(damping(manifest), fontsize=8)
    return fig


def _distance(table: pd.DataFrame, aucs: pd.DataFrame) -> Any:
    rows = (("square", "full", "square split"), ("random", "own", "random split"))
    table, aucs = (t[t["method"] == "euclidean"] for t in (table, aucs))
    spread = table.groupby("site", sort=False)["distance"].agg(lambda d: d.max() - d.min())
    # before any attention the last prompt token is the same for all cases of a task
    sites = spread.index[spread > 1e-6]
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
    return fig


def _causal(table: pd.DataFrame, manifest: dict[str, Any]) -> Any:
    """What removing each group does, the marginal effect of its cases, and how far three methods enrich it. The three
    ask different cases about different answers, and each panel says which."""
    groups = table.drop_duplicates("group")
    first = table.iloc[0]
    fig, axes = plots.figure(1, 3, (2.6, 2.7), width_ratios=(1, 1, 1.4))
    removal, worth, enrichment = axes[0]
    group_points(groups, "effect", removal)
    removal.set_title(
        f"measured: {groups['n_removed'].mean():.0f} cases removed\n"
        f"{first['n_tests']} cases in and outside the square,\nthe model's own answer"
    )
    removal.set_ylabel("drop of log-odds beyond random")
    group_points(groups, "worth", worth)
    worth.set_title(
        f"measured: {first['per']:.0f} cases more\n{first['n_queries']} cases of the square,\nthe right answer"
    )
    worth.set_ylabel("gain of log-odds")
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
    enrichment.set_ylabel("enrichment (1 = base rate)")
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
            "distance": _distance(t["distance"], t["distance_auc"]),
            "umap": _umap(t["embedding"]),
        }
        if "causal" in t:
            drawn["causal"] = _causal(t["causal"], manifest)
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]
