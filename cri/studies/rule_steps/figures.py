"""The figures of `rule_steps`, drawn from its recorded tables, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.storage import read_json
from cri.storage.compression import read_table, tables_in

SUBJECT = ["task", "format", "tokenizer"]


def _title(key: Any) -> str:
    return ", ".join(str(part).replace("_", " ") for part in (key if isinstance(key, tuple) else (key,)))


def _maps(table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """One figure a subject. Rows: variable; left the rule's prediction, right the source's own text (first seed, cases
    outside the square where there are any)."""
    table = table[table["seed"] == table.groupby(SUBJECT)["seed"].transform("min")]
    for key, subject in table.groupby(SUBJECT, sort=False):
        panels = []
        for variable, part in subject.groupby("variable", sort=False):
            region = "outside" if "outside" in set(part["region"]) else "inside"
            panels.append((str(variable), part[part["region"] == region], region))
        width = max(part["position"].nunique() for _, part, _ in panels)
        # code lines of a rule's trace are printed upright, and need the height
        height = 1.5 if subject["token"].str.len().max() <= 4 else 2.3
        fig, axes = plots.figure(len(panels), 2, (max(3.2, min(0.17 * width + 0.6, 6.5)), height), sharey=True)
        for row, (variable, part, region) in zip(axes, panels, strict=True):
            for ax, value, what in zip(row, ("rule", "source"), ("rule", "source's own text"), strict=True):
                plots.effect_map(part, ax, value=value, colorbar=False)
                most = f"n = {part['n'].max()}, at most {part[value].max():.2f}"
                ax.set_title(f"{variable} swapped: {what}\n{region}, {most}")
        bar = fig.colorbar(axes[0, 0].images[0], ax=axes, fraction=0.02, pad=0.01, aspect=30)
        bar.set_label("share of pairs")
        fig.suptitle(_title(key), fontsize=9)
        yield "_".join(map(str, key)), fig  # pyright: ignore[reportGeneralTypeIssues]


def bounded(table: pd.DataFrame) -> pd.DataFrame:
    """With the verdicts' interval: the wider of bootstrap (over seeds and blocks of cases) and Wilson on either side,
    since a bootstrap of no successes has no width."""
    ends = {"low": table[["follows_low", "wilson_low"]].min(axis=1)}
    return table.assign(**ends, high=table[["follows_high", "wilson_high"]].max(axis=1))


def _follow(table: pd.DataFrame) -> Any:
    """One panel a subject, scratchpads first."""
    whole = bounded(table[table["seen"] == "all"])
    trained = whole[whole["format"] != "shuffled_scratchpad"]
    if trained.empty:
        return None
    fig, panels = _subjects(trained)
    for ax, (task, fmt, tokenizer), part in panels:
        # the control is of the scratchpad
        owner = (whole["format"] == "shuffled_scratchpad") & (fmt == "scratchpad")
        control = whole[owner & (whole["task"] == task) & (whole["tokenizer"] == tokenizer)]
        plots.follow_bars(pd.concat([part, control]), ax, legend=False)
    names = {
        "inside": "inside the square (elsewhere: held out)",
        "outside": "outside (elsewhere: trained)",
        "returns": "returns to the unedited answer (rest: breaks off)",
        "shuffled": "control: trained on another case's trace",
        "untrained": "control: untrained",
        "chance": "chance, at most this",
    }
    note = "below: edits inside | outside; whiskers: 95 % over seeds and blocks of cases"
    controls = whole[(whole["model"] != "trained") & (whole["kind"] != "all")]
    if len(controls):
        runs = int(controls["n_runs"].max())
        few, many = controls["n"].min(), controls["n"].max()
        note += f"; controls: {runs} seed{'s' * (runs > 1)}, {few} to {many} edits a kind"
    _follow_key(fig, names, note)
    return fig


def _subjects(table: pd.DataFrame) -> tuple[Any, list[tuple[Any, tuple[str, str, str], pd.DataFrame]]]:
    """A figure with two panels a row, one a subject (scratchpads and number tokens first): axes, name and rows."""
    tasks = list(dict.fromkeys(table["task"]))
    groups = [(tuple(map(str, key)), part) for key, part in table.groupby(SUBJECT, sort=False)]  # pyright: ignore[reportArgumentType]
    groups.sort(key=lambda g: (g[0][1] != "scratchpad", tasks.index(g[0][0]), g[0][2] != "number"))
    columns = min(2, len(groups))
    n_rows = -(-len(groups) // columns)
    fig, axes = plots.figure(n_rows, columns, (7.4 / columns, 2.2 + 0.6 / n_rows), sharey=True)
    for ax in list(axes.flat)[len(groups) :]:
        ax.set_visible(False)
    panels = []
    for ax, (key, part) in zip(axes.flat, groups, strict=False):
        n = int(part["n_runs"].max())
        task, *how = key
        ax.set_title(f"{_title(task)}\n{_title(tuple(how))} tokens ({n} seed{'s' * (n > 1)})")
        panels.append((ax, key, part))
    return fig, panels


def _follow_key(fig: Any, names: dict[str, str], note: str) -> None:
    """One key below all panels, in the order of `names`, with a note on what has no colour."""
    handles = {}
    for ax in fig.axes:
        handles |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [name for name in names if name in handles]
    fig.legend([handles[n] for n in shown], [names[n] for n in shown], loc="outside lower center", ncols=3,
               title=note, title_fontsize=7)  # fmt: skip


def _seen(table: pd.DataFrame) -> Any:
    part = table[(table["model"] == "trained") & table["seen"].isin(["seen", "unseen"]) & (table["kind"] != "all")]
    if part.empty:
        return None
    fig, panels = _subjects(part)
    for ax, _, rows in panels:
        # both regions together: weighted by their edits
        total = rows.groupby(["seen", "kind"], as_index=False).apply(_pooled, include_groups=False)
        plots.follow_bars(total.assign(model="trained"), ax, by="seen", legend=False)
    names = {
        "seen": "all steps after the edit are seen in training",
        "unseen": "some are not",
        "chance": "chance, at most this",
    }
    _follow_key(fig, names, "below: edits seen | unseen; whiskers: 95 %, Wilson, the edits of all seeds pooled")
    return fig


def _pooled(rows: pd.DataFrame) -> pd.Series:
    from cri.statistics import wilson

    n = int(rows["n"].sum())
    rate = float((rows["follows"] * rows["n"]).sum() / n)
    low, high = wilson(round(rate * n), n)
    chance = float((rows["chance"] * rows["n"]).sum() / n)
    return pd.Series({"follows": rate, "low": low, "high": high, "chance": chance, "n": n})


def _panels(
    table: pd.DataFrame, by: list[str], size: tuple[float, float], plot: Callable[..., Any], columns: int = 2,
    **options: Any,
) -> Any:  # fmt: skip
    groups = list(table.groupby(by, sort=False))
    n_rows = -(-len(groups) // columns)
    fig, axes = plots.figure(n_rows, min(columns, len(groups)), size)
    for ax, (key, part) in zip(axes.flat, groups, strict=False):
        plot(part, ax, **options)
        ax.set_title(_title(key))
    for ax in list(axes.flat)[len(groups) :]:
        ax.set_visible(False)
    return fig


def _rule_edits(table: pd.DataFrame) -> Any:
    """One row a subject, its regions side by side; one key for all."""
    fig = _panels(table, [*SUBJECT, "region"], (3.4, 2.2), plots.rule_edit_bars, legend=False)
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _probes(table: pd.DataFrame) -> Any:
    """One row of panels a subject, one column a variable, the answer (where the swap has to work at the last layer:
    its positive control) to the right; one key for all."""
    fig = _panels(table, [*SUBJECT, "variable"], (1.9, 1.9), plots.probe_bars, columns=4, legend=False)
    for ax in fig.axes:
        *_, tokenizer, variable = ax.get_title().split(", ")
        control = "\n(positive control: last layer)" if variable == "answer" else "\n"
        ax.set_title(f"{tokenizer} tokens: {variable}{control}")
    fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _agreement(table: pd.DataFrame, squares: dict[str, Any]) -> Any:
    mean = table.groupby([*SUBJECT, "id", "row", "col"], as_index=False, sort=False)[
        ["correct", "follow", "cri"]
    ].mean()
    inside = mean.merge(table.loc[table["region"] == "inside", [*SUBJECT, "id"]].drop_duplicates(), on=[*SUBJECT, "id"])
    groups = [(key, part) for key, part in inside.groupby(SUBJECT, sort=False) if squares[key[0]]["squares"]]  # pyright: ignore[reportIndexIssue]
    if not groups:
        return None
    columns = min(2, len(groups))
    fig, axes = plots.figure(-(-len(groups) // columns), columns, (3.2, 3.2))
    for ax, (key, part) in zip(axes.flat, groups, strict=False):
        where = squares[key[0]]  # pyright: ignore[reportIndexIssue]
        framed, names = [tuple(s) for s in where["squares"]], tuple(where["axis_names"])
        plots.agreement_map(part, ax, squares=framed, axis_names=names, legend=False)  # pyright: ignore[reportArgumentType]
        ax.set_title(f"{_title(key)} (n = {len(part)})")
    for ax in list(axes.flat)[len(groups) :]:
        ax.set_visible(False)
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return fig


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws every figure that the tables in a folder allow; returns the files written."""
    facts = read_json(tables / "manifest.json")
    texts = ("map", "edits")
    t = {name: read_table(path, keep_default_na=name not in texts) for name, path in tables_in(tables).items()}
    drawn: dict[str, Any] = {}
    with plots.style():
        if "map" in t:
            numeric = pd.to_numeric(t["map"]["element"], errors="coerce")
            drawn |= {f"map_{name}": fig for name, fig in _maps(t["map"].assign(element=numeric))}
        if "follow" in t:
            drawn["follow"] = _follow(t["follow"])
            addition = t["follow"][t["follow"]["task"].eq("addition") & ~t["follow"]["format"].eq("rfft")]
            drawn["follow_summary"] = _follow(addition)
            drawn["seen"] = _seen(t["follow"])
            drawn["agreement"] = _agreement(t["agreement"], facts["squares"])
        if "knockout" in t:
            drawn["knockout"] = _panels(t["knockout"], SUBJECT, (3.4, 2.2), plots.knockout_bars)
        if "rule_edits" in t:
            drawn["rule_edits"] = _rule_edits(t["rule_edits"])
        if "probes" in t:
            short = t["probes"]["site"].str.extract(r"blocks\.(\d+)\.hook_(resid_pre|resid_post)")
            named = t["probes"].assign(site=["embed" if c == "resid_pre" else f"L{i}" for i, c in short.to_numpy()])
            drawn["probes"] = _probes(named)
        if "components" in t:
            drawn["components"] = _panels(t["components"], [*SUBJECT, "region"], (3.6, 2.2), plots.component_bars)
        prefix = figures / f"rule_steps_{tables.name}"
        return [
            path
            for name, fig in drawn.items()
            if fig is not None
            for path in plots.save_figure(fig, prefix.with_name(f"{prefix.name}_{name}"))
        ]
