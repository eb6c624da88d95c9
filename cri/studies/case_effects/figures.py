"""The figures of `case_effects`, from its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.options import FamilyName
from cri.plots.offsets import kind_points, offset_map
from cri.plots.retraining import difference_strip, strip_limit
from cri.storage.compression import read_table, tables_in
from cri.tasks import PLANTED

REGIONS = {"random": "random split", "outside": "outside the square", "square": "in the square"}
TOKEN_COLORS = {"number": "#0072B2", "digit": "#D55E00"}
LIMIT, LINEAR = 1.0, 0.05
"""Ends of the colour scale and where it stops being linear, in log-odds a training case."""


def draw(folder: Path, figures: Path) -> list[Path]:
    """Draws the figures from the tables in a folder; returns the files written."""
    tables = {name: read_table(path, keep_default_na=False, na_values=[""]) for name, path in tables_in(folder).items()}
    drawn: dict[str, Any] = {}
    with plots.style():
        if "kernel" in tables:
            kernel, kinds = (t[t["target"] == "reference"] for t in (tables["kernel"], tables["kinds"]))
            kernel, kinds = _with_families(kernel), _with_families(kinds)
            addition = (kernel["task"] == "addition") & (kernel["format"] == "direct")
            drawn["kernel"] = kernel_figure(kernel[addition])
            others = ~addition & ~kernel["task"].isin(PLANTED)
            if others.any():
                drawn["kernel_others"] = kernel_figure(kernel[others])
            mine = (kinds["task"] == "addition") & (kinds["format"] == "direct")
            drawn["kinds"] = kinds_figure(kinds[mine])
        if "confusion" in tables:
            drawn["confusion"] = confusion_figure(tables["confusion"])
        if "table" in tables:
            drawn["differences"] = verdicts_figure(tables["table"])
        name = f"case_effects_{folder.name}"
        return [path for key, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{name}_{key}")]


def _with_families(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.assign(family=[FamilyName.of(row).title for row in table.to_dict("records")])
    order = {f: i for i, f in enumerate(sorted({FamilyName.of(row).order for row in table.to_dict("records")}))}
    keys = [order[FamilyName.of(row).order] for row in table.to_dict("records")]
    return rows.assign(order=keys).sort_values("order", kind="stable")


def kernel_figure(kernel: pd.DataFrame) -> Any:
    """One row a family, one column a region."""
    if kernel["tokenizer"].nunique() == 1:  # what all share need not stand in every title
        kernel = kernel.assign(family=[f.removesuffix(", number tokens") for f in kernel["family"]])
    families = list(dict.fromkeys(kernel["family"]))
    regions = [r for r in REGIONS if r in set(kernel["region"])]
    fig, axes = plots.figure(len(families), len(regions), (2.3, 2.2), sharex=True, sharey=True)
    fig.set_layout_engine("compressed")  # panels are squares: nothing is left between them, and no label cut off
    for i, family in enumerate(families):
        for j, region in enumerate(regions):
            ax = axes[i, j]
            part = kernel[(kernel["family"] == family) & (kernel["region"] == region)]
            if part.empty:
                ax.set_visible(False)
                continue
            offset_map(part, ax, limit=LIMIT, linear=LINEAR)
            ax.set_title(f"{family}\n{REGIONS[region]}")
            if j:
                ax.set_ylabel("")
            if i < len(families) - 1:
                ax.set_xlabel("")
    bar = fig.colorbar(
        next(ax.images[0] for ax in axes.flat if ax.images),
        ax=axes,
        fraction=0.025,
        pad=0.02,
        ticks=[-1, -0.1, 0, 0.1, 1],
    )
    bar.ax.set_yticklabels(["-1", "-0.1", "0", "0.1", "1"])
    bar.set_label("log-odds for one training case")
    bar.outline.set_linewidth(0.5)
    return fig


def kinds_figure(kinds: pd.DataFrame) -> Any:
    """Effect of a case and of all cases of a kind side by side, one row a region, tokenizers beside each other."""
    regions = [r for r in REGIONS if r in set(kinds["region"])]
    fig, axes = plots.figure(len(regions), 2, (3.4, 3.0), sharey=False)
    for i, region in enumerate(regions):
        part = kinds[kinds["region"] == region]
        # kinds that every tokenizer has, so that rows are the same
        # subsets are of one size, so that all effects cancel: the total of the rest says nothing that others do not
        rest = part["kind"].str.startswith("nothing shared")
        part = part.assign(**{c: part[c].mask(rest) for c in ("total", "total_low", "total_high")})
        for k, tokenizer in enumerate(t for t in TOKEN_COLORS if t in set(part["tokenizer"])):
            mine = part[part["tokenizer"] == tokenizer]
            if tokenizer == "number" and "two tokens differ" in set(part["kind"]):
                filler = part[part["kind"] == "two tokens differ"].head(1)
                mine = pd.concat([mine, filler.assign(effect=float("nan"), total=float("nan"), low=float("nan"),
                                                      high=float("nan"), total_low=float("nan"),
                                                      total_high=float("nan"))])  # fmt: skip
            for j, value in enumerate(("effect", "total")):
                kind_points(mine, value, axes[i, j], names=j == 0, color=TOKEN_COLORS[tokenizer], shift=0.3 * k - 0.15)
        axes[i, 0].set_title(f"{REGIONS[region]}: one training case")
        axes[i, 1].set_title("all training cases of the kind")
        for ax in axes[i]:
            ax.set_xlabel("log-odds of the right answer")
    found = [t for t in TOKEN_COLORS if t in set(kinds["tokenizer"])]
    handles = [axes[0, 0].plot([], [], marker="o", color=TOKEN_COLORS[t])[0] for t in found]
    handles.append(axes[0, 0].plot([], [], marker="o", color="black", markerfacecolor="white", linestyle="none")[0])
    fig.legend(
        handles, [*(f"{t} tokens" for t in found), "not significant (Holm)"], loc="outside lower center", ncols=3
    )
    return fig


def confusion_figure(confusion: pd.DataFrame) -> Any:
    """How often each planted mechanism is read as each, one panel an instrument and noise level."""
    from cri.statistics.readings import MECHANISMS, NOTHING

    panels = list(confusion.groupby(["instrument", "reliability"], sort=False))
    names = [m for m in (*MECHANISMS, NOTHING) if m in set(confusion["planted"]) | set(confusion["reading"])]
    n_cols = min(3, len(panels))
    fig, axes = plots.figure(-(-len(panels) // n_cols), n_cols, (2.6, 3.6), sharex=True, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, ((instrument, reliability), part) in zip(axes.flat, panels, strict=False):
        shares = part.pivot_table(index="planted", columns="reading", values="share", fill_value=0.0)
        shares = shares.reindex(index=names, columns=names).fillna(0.0)
        ax.imshow(shares.to_numpy(), cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(shares.to_numpy()):
            for j, share in enumerate(row):
                if share > 0:
                    color = "white" if share > 0.5 else "black"
                    ax.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=5, color=color)
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
        ax.set_yticks(range(len(names)), names)
        ax.set_title(f"{instrument}\nreliability {reliability:g}, n = {int(part['n'].iloc[0])}")
    return fig


def verdicts_figure(table: pd.DataFrame) -> Any:
    """Nearby cases minus the clearest step for the right answer, one row a record and region, one column an instrument,
    all on one scale and coloured by the verdict; designed removals in the square ask about single cases of its parts,
    which the table has."""
    table = table[(table["target"] == "reference") & table["region"].isin(REGIONS)]
    table = table.assign(reading=table["verdict"])
    names = [*_FAMILY, "grid", "region"]
    rows = table[names].drop_duplicates()
    rows = rows.assign(order=[_place(row) for row in rows.to_dict("records")]).sort_values("order", kind="stable")
    titles = [
        f"planted: {PLANTED[row['task']].planted}" if row["task"] in PLANTED else FamilyName.of(row).title
        for row in rows.to_dict("records")
    ]
    grids = [f", {grid} x {grid}" for grid in rows["grid"]]
    rows = rows.assign(group=[t + g for t, g in zip(titles, grids, strict=True)], name=rows["region"].map(REGIONS))
    instruments = list(dict.fromkeys(table["instrument"]))
    height = 1.2 + 0.17 * (len(rows) + rows["group"].nunique())
    fig, axes = plots.figure(1, len(instruments), (8.6 / len(instruments), height), sharey=True)
    limit = strip_limit(table)
    labels: dict[str, Any] = {}
    for j, (ax, instrument) in enumerate(zip(axes[0], instruments, strict=True)):
        mine = rows.merge(table[table["instrument"] == instrument], on=names, how="left")
        difference_strip(mine, None, ax, limit=limit, names=j == 0)
        ax.set_title(instrument.replace(", ", ",\n"))
        labels |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels),
        title="log-odds of the right answer: a nearby case minus the clearest step (removals: groups of equal size), "
        "95 % interval, coloured by the verdict", title_fontsize=7,
    )  # fmt: skip
    return fig


_FAMILY = ["task", "format", "tokenizer"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Planted tasks first, then the paper's grid, then small grids; regions in their order."""
    return (row["task"] not in PLANTED, -row["grid"], *FamilyName.of(row).order, list(REGIONS).index(row["region"]))
