"""The figures of `lso_map`, from its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.studies.lso_map.config import KEYS
from cri.tasks import Task, make_task

_MODEL_KEYS = [k for k in KEYS if k != "split"]
_PAGE = 7.4
"""Inches: text of 8 points can be read where a page shows the figure 850 pixels wide."""
_ACROSS = 4
LEARNT = 0.9
"""Accuracy on the training cases below which a map says nothing about the held-out ones, and is marked."""


def _task(name: str, manifest: Mapping[str, Any]) -> Task:
    return make_task(name, **({"size": manifest["size"]} if manifest["size"] else {}))


def _title(key: tuple[str, ...], cases: pd.DataFrame) -> str:
    """The task, and whatever else differs between the maps of the figure."""
    told = {k: v for k, v in zip(_MODEL_KEYS, key, strict=True) if k == "task" or cases[k].nunique() > 1}
    return ", ".join(f"{v} tokens" if k == "tokenizer" else v.replace("_", " ") for k, v in told.items())


def _legend(fig: Any, handles: list[Any]) -> None:
    """One key for all panels, as wide as the figure allows."""
    n_rows = -(-len(handles) // max(int(fig.get_figwidth() // 1.45), 1))
    columns = -(-len(handles) // n_rows)
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1.5)


def _swatch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, edgecolor="0.5", linewidth=0.4, label=label)


def _frame(label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(fill=False, edgecolor=plots.FRAME, linewidth=1.3, label=label)


def _maps(
    cases: pd.DataFrame, manifest: Mapping[str, Any], text: float, legend: float
) -> tuple[Any, Iterator[tuple[Any, ...]]]:
    """A figure of all maps, all of one size: a model's splits stand side by side, and models fill rows of at most
    `_ACROSS` maps. With it, for each map: axes, its cases, what both kinds of map are drawn with, and a title.

    Args:
        text: inches for what stands above and under a map.
        legend: inches for what stands under them all.
    """
    models, splits = list(cases.groupby(_MODEL_KEYS, sort=False)), list(dict.fromkeys(cases["split"]))
    abreast = min(len(models), max(_ACROSS // len(splits), 1))
    n_cols = abreast * len(splits)
    width = min(_PAGE / n_cols, 2.9)
    n_rows = -(-len(models) // abreast)
    fig, axes = plots.figure(n_rows, n_cols, size=(width, width + text + legend / n_rows))
    for ax in axes.flat:
        ax.set_visible(False)

    def each() -> Iterator[tuple[Any, ...]]:
        for i, (key, part) in enumerate(models):
            task = _task(key[0], manifest)  # pyright: ignore[reportIndexIssue]
            for j, split in enumerate(splits):
                table = part[part["split"] == split]
                if table.empty:
                    continue
                ax = axes[i // abreast, (i % abreast) * len(splits) + j]
                ax.set_visible(True)
                square = [(*task.center, manifest["half_side"])] if split == "square" else []
                options = {"squares": square, "axis_names": task.axis_names}
                yield ax, table, options, f"{_title(key, cases)}\n{split} split"  # pyright: ignore[reportArgumentType]

    return fig, each()


def draw_maps(cases: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Accuracy of every case over seeds, with one key to the colours of all maps; models that did not learn their
    training cases are marked."""
    import matplotlib
    from matplotlib.colors import to_hex

    learnt = cases[cases["train"]].groupby([*_MODEL_KEYS, "split"], sort=False)["accuracy"].mean()
    mixed = bool((learnt < LEARNT).any())
    fig, maps = _maps(cases, manifest, text=0.6 if mixed else 0.45, legend=0.5)
    gaps = False
    for ax, table, options, title in maps:
        plots.accuracy_map(table, ax, value="accuracy", colorbar=False, **options)
        held_out, learnt = table.loc[~table["train"], "accuracy"], float(table.loc[table["train"], "accuracy"].mean())
        n = int(table["n_seeds"].max())
        gaps |= len(table) < (table["row"].max() + 1) * (table["col"].max() + 1)
        poor = f"\ntrained on: {learnt:.2f}, not learnt" if learnt < LEARNT else "\n" * mixed
        ax.set_title(
            f"{title}, {n} seed{'s' * (n > 1)}\nheld out: {held_out.mean():.2f}, n = {len(held_out):,}{poor}",
            fontsize=7 if mixed else None,
        )
    n = int(cases["n_seeds"].max())
    # the map's own colours: a share of n seeds takes n + 1 values
    colors = [to_hex(c) for c in matplotlib.colormaps["cividis"].resampled(n + 1)(range(n + 1))]
    names = ["wrong", "right"] if n == 1 else [f"right in {i} of {n} seeds" for i in range(n + 1)]
    key = [_swatch(color, name) for color, name in zip(colors, names, strict=True)]
    key += [_frame("held-out square")] if "square" in set(cases["split"]) else []
    key += [_swatch(plots.MISSING, "no such case")] if gaps else []
    _legend(fig, key)
    return plots.save_figure(fig, figures / f"lso_map_{manifest['name']}")


def draw_rings(rings: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Accuracy by ring from the square's border inwards, one panel a task, format, tokenizer and model."""
    varying = [k for k in ("task", "format", "tokenizer", "model") if rings[k].nunique() > 1]
    panels = list(rings.groupby(varying, sort=False)) if varying else [((), rings)]
    columns = min(3, len(panels))
    fig, axes = plots.figure(-(-len(panels) // columns), columns, size=(3.4, 2.8))
    for ax, (names, part) in zip(axes.flat, panels, strict=False):
        plots.ring_accuracy(part, ax)
        told = dict(zip(varying, names, strict=True))
        name = ", ".join(f"{v} tokens" if k == "tokenizer" else v.replace("_", " ") for k, v in told.items())
        ax.set_title(name, pad=14)
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    return plots.save_figure(fig, figures / f"lso_rings_{manifest['name']}")


def draw_failures(cases: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Where traces first deviate, and how (first seed); nothing to draw for the direct format alone."""
    cases = cases[cases["format"] != "direct"]
    if cases.empty:
        return []
    fig, maps = _maps(cases, manifest, text=0.85, legend=0)  # room for a legend of three rows under each map
    for ax, table, options, title in maps:
        plots.category_map(table, "failure", plots.ERROR_COLORS, ax, **options)
        ax.set_title(f"{title}, seed 0\n{(table['failure'] != '').sum():,} of {len(table):,} wrong")
    return plots.save_figure(fig, figures / f"lso_failures_{manifest['name']}")


MOST = 20
"""Differences beyond this many are drawn as this many."""


def draw_errors(cases: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """The square enlarged: by how much answers are off, which digit is wrong, and, where answers were sampled, how
    often a sample is right. One row a model; nothing to draw for tables of before these columns."""
    inside = cases[(cases["split"] == "square") & ~cases["train"]]
    if "difference" not in cases or inside.empty:
        return []
    models = list(inside.groupby(_MODEL_KEYS, sort=False))
    shares = [("units", "units right"), ("tens", "tens right")]
    shares += [("sampled", f"right of {manifest.get('samples', 0)} samples")] if "sampled" in cases else []
    fig, axes = plots.figure(len(models), 1 + len(shares), size=(_PAGE / (1 + len(shares)), 2.2))
    for row, (key, part) in zip(axes, models, strict=True):
        task = _task(key[0], manifest)  # pyright: ignore[reportIndexIssue]
        numbers = part.assign(difference=pd.to_numeric(part["difference"], errors="coerce").clip(-MOST, MOST))
        plots.grid_map(
            numbers, "difference", row[0], limits=(-MOST, MOST), cmap=plots.SIGNED, axis_names=task.axis_names
        )
        n = int(part["n_seeds"].max())
        row[0].set_title(f"{_title(key, cases)}\npredicted minus true, median of {n}")  # pyright: ignore[reportArgumentType]
        for ax, (column, title) in zip(row[1:], shares, strict=True):
            plots.accuracy_map(part, ax, value=column, colorbar=ax is row[-1], axis_names=task.axis_names)
            ax.set_title(f"{title}\n{part[column].astype(float).mean():.2f} of the square")
            ax.set_ylabel("")
        for ax in row:
            ax.set_xlim(part["col"].min() - 0.5, part["col"].max() + 0.5)
            ax.set_ylim(part["row"].max() + 0.5, part["row"].min() - 0.5)
    return plots.save_figure(fig, figures / f"lso_errors_{manifest['name']}")


def draw_prediction(
    square: pd.DataFrame, cases: pd.DataFrame, steps: pd.DataFrame, manifest: Mapping[str, Any], figures: Path
) -> list[Path]:
    """The square enlarged, one panel a run: what each held-out case was answered, and a dot on those predicted to
    fail (a rule step that no case executes in training). One row a model, or one row of all where each has one seed."""
    from matplotlib.lines import Line2D

    square = square.assign(answer=square["correct"].map({True: "right", False: "wrong"}))
    square = square.merge(cases[[*KEYS, "id", "n_unseen"]], on=[*KEYS, "id"])
    models = list(square.groupby(_MODEL_KEYS, sort=False))
    seeds = list(dict.fromkeys(square["seed"]))
    rows = len(seeds) > 1
    n_rows, n_cols = (len(models), len(seeds)) if rows else (1, len(models))
    width = min(_PAGE / n_cols, 2.9)
    fig, axes = plots.figure(n_rows, n_cols, size=(width, width + (0.1 if rows else 0.6)))
    colors = {"right": plots.RIGHT, "wrong": plots.WRONG}
    dot = {"marker": "o", "color": "white", "markeredgecolor": "black", "markeredgewidth": 0.4, "markersize": 2.8}
    runs = [(key, seed, run) for key, part in models for seed, run in part.groupby("seed", sort=False)]
    for ax, (key, seed, run) in zip(axes.flat, runs, strict=True):
        task, half_side = _task(key[0], manifest), manifest["half_side"]  # pyright: ignore[reportIndexIssue]
        row, col = task.center
        plots.category_map(
            run, "answer", colors, ax, squares=[(row, col, half_side)], axis_names=task.axis_names, legend=False
        )
        predicted = run[run["n_unseen"] > 0]
        ax.plot(predicted["col"], predicted["row"], linestyle="none", **dot)
        ax.set_facecolor(plots.MISSING)
        ax.set_xlim(col - half_side - 2, col + half_side + 2)
        ax.set_ylim(row + half_side + 2, row - half_side - 2)
        title = f"{_title(key, cases)}, seed {seed}\n{run['correct'].sum()} of {len(run)} right"  # pyright: ignore[reportArgumentType]
        own = (steps[_MODEL_KEYS] == list(key)).all(axis=1) & (steps["split"] == "square")
        fit = steps[own & (steps["prediction"] == "unseen step")].iloc[0]
        agreement = f"MCC {fit['mcc']:.2f} [{fit['mcc_low']:.2f}, {fit['mcc_high']:.2f}]".replace("-", "−")
        if not rows:
            title += f"\n{agreement}"
        elif seed == seeds[0]:  # the agreement is of all seeds together
            ax.set_ylabel(f"dots and wrong answers:\n{agreement}\n\n{task.axis_names[0]}")
        ax.set_title(title)
    predicted = Line2D([], [], linestyle="none", label="predicted to fail: has a step that no training case has", **dot)
    key = [_swatch(color, name) for name, color in colors.items()]
    _legend(fig, [*key, predicted, _swatch(plots.MISSING, "trained on")])
    return plots.save_figure(fig, figures / f"lso_steps_{manifest['name']}")
