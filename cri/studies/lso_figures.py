"""The figures of `lso_map`, from its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.studies.lso_map import KEYS
from cri.tasks import Task, make_task

_MODEL_KEYS = [k for k in KEYS if k != "split"]


def _task(name: str, manifest: Mapping[str, Any]) -> Task:
    return make_task(name, **({"size": manifest["size"]} if manifest["size"] else {}))


def _panels(cases: pd.DataFrame) -> tuple[list[tuple[tuple[str, ...], pd.DataFrame]], list[str]]:
    models = [(tuple(key), part) for key, part in cases.groupby(_MODEL_KEYS, sort=False)]
    return models, list(dict.fromkeys(cases["split"]))


def _grid(n_models: int, n_splits: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Axes [split, model]; a single model's splits stand side by side."""
    if n_models == 1:
        fig, axes = plots.figure(1, n_splits, size=size)
        return fig, axes.T
    return plots.figure(n_splits, n_models, size=size)


def _title(key: tuple[str, ...], cases: pd.DataFrame) -> str:
    """The task, and whatever else differs between the maps of the figure."""
    return ", ".join([key[0], *(v for k, v in zip(_MODEL_KEYS[1:], key[1:], strict=True) if cases[k].nunique() > 1)])


def draw_maps(cases: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Accuracy of every case over seeds; one column a model, one row a split."""
    models, splits = _panels(cases)
    fig, axes = _grid(len(models), len(splits), size=(2.35, 2.5))
    for j, (key, part) in enumerate(models):
        task = _task(key[0], manifest)
        for i, split in enumerate(splits):
            table, ax = part[part["split"] == split], axes[i, j]
            if table.empty:
                ax.set_axis_off()
                continue
            square = [(*task.center, manifest["half_side"])] if split == "square" else []
            last = i == len(splits) - 1 if len(models) == 1 else j == len(models) - 1
            plots.accuracy_map(table, ax, value="accuracy", squares=square, axis_names=task.axis_names, colorbar=last)
            held_out, n = table.loc[~table["train"], "accuracy"].mean(), int(table["n_seeds"].max())
            ax.set_title(f"{_title(key, cases)}\n{split} split, {n} seed{'s' * (n > 1)}\nheld out: {held_out:.2f}")
    return plots.save_figure(fig, figures / f"lso_map_{manifest['name']}")


def draw_rings(rings: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Accuracy by ring from the square's border inwards, one panel a format, tokenizer and model."""
    varying = [k for k in ("format", "tokenizer", "model") if rings[k].nunique() > 1]
    panels = list(rings.groupby(varying, sort=False)) if varying else [((), rings)]
    constant = [k for k in ("task", "format") if rings[k].nunique() == 1]
    n_curves = max(
        len(part.groupby([k for k in ("task", "format", "split") if k not in constant])) for _, part in panels
    )
    fig, axes = plots.figure(1, len(panels), size=(3.4 + 2.2 * (n_curves > 4), 2.8))
    for ax, (names, part) in zip(axes[0], panels, strict=True):
        plots.ring_accuracy(part.drop(columns=constant), ax)
        ax.set_title(", ".join(map(str, names)))
    return plots.save_figure(fig, figures / f"lso_rings_{manifest['name']}")


def draw_failures(cases: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """Where traces first deviate, and how (first seed); nothing to draw for the direct format alone."""
    cases = cases[cases["format"] != "direct"]
    if cases.empty:
        return []
    models, splits = _panels(cases)
    fig, axes = _grid(len(models), len(splits), size=(2.35, 3.1))  # room for a legend of two rows under each map
    for j, (key, part) in enumerate(models):
        task = _task(key[0], manifest)
        for i, split in enumerate(splits):
            table, ax = part[part["split"] == split], axes[i, j]
            if table.empty:
                ax.set_axis_off()
                continue
            square = [(*task.center, manifest["half_side"])] if split == "square" else []
            plots.category_map(table, "failure", plots.ERROR_COLORS, ax, squares=square, axis_names=task.axis_names)
            ax.set_title(f"{_title(key, cases)}\n{split} split: {(table['failure'] != '').sum()} wrong, seed 0")
    return plots.save_figure(fig, figures / f"lso_failures_{manifest['name']}")


def draw_prediction(cases: pd.DataFrame, steps: pd.DataFrame, manifest: Mapping[str, Any], figures: Path) -> list[Path]:
    """The square enlarged: what was measured, and a dot on every case predicted to fail (a rule step that no case
    executes in training); one panel a model. Nothing for the direct format alone, which writes no steps."""
    cases = cases[(cases["format"] != "direct") & (cases["split"] == "square")]
    if cases.empty:
        return []
    models, _ = _panels(cases)
    fig, axes = plots.figure(1, len(models), size=(2.45, 2.7))
    for ax, (key, part) in zip(axes[0], models, strict=True):
        task, half_side = _task(key[0], manifest), manifest["half_side"]
        square = (*task.center, half_side)
        plots.accuracy_map(part, ax, value="accuracy", squares=[square], axis_names=task.axis_names,
                           colorbar=key == models[-1][0])  # fmt: skip
        predicted = part[~part["train"] & (part["n_unseen"] > 0)]
        ax.scatter(predicted["col"], predicted["row"], s=3, color=plots.FRAME, linewidths=0)
        row, col = task.center
        ax.set_xlim(col - half_side - 2.5, col + half_side + 2.5)
        ax.set_ylim(row + half_side + 2.5, row - half_side - 2.5)
        own = (steps[_MODEL_KEYS] == list(key)).all(axis=1) & (steps["split"] == "square")
        fit = steps[own & (steps["prediction"] == "unseen step")].iloc[0]
        ax.set_title(
            f"{_title(key, cases)}\n{len(predicted)} cases have an unseen step\n"
            f"agreement: MCC {fit['mcc']:.2f} [{fit['mcc_low']:.2f}, {fit['mcc_high']:.2f}]"
        )
    return plots.save_figure(fig, figures / f"lso_steps_{manifest['name']}")
