"""Grid maps: one value per case, rows a from the top down, columns b, test squares framed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cri.checks import require_columns
from cri.plots.style import BEST, BLANK, FRAME, MISSING, RIGHT, SIGNED, WRONG, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Square = tuple[float, float, int]
"""(row, column, half side), as in `Split.squares`."""


def frame_square(ax: Axes, square: Square, color: str = FRAME) -> None:
    """Frames the cells within the half side of a square's centre; a white rim keeps it visible on any colour."""
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    row, col, half = square
    # cells are centred on whole coordinates, so the frame runs half a cell outside
    box = Rectangle((col - half - 0.5, row - half - 0.5), 2 * half + 1, 2 * half + 1, fill=False, ec=color, lw=1.3)
    box.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="white")])
    ax.add_patch(box)


def grid_map(
    table: pd.DataFrame,
    value: str,
    ax: Axes | None = None,
    *,
    squares: Sequence[Square] = (),
    axis_names: tuple[str, str] = ("a", "b"),
    limits: tuple[float | None, float | None] = (None, None),
    label: str = "",
    cmap: str | Colormap = "viridis",
    colorbar: bool = True,
) -> Axes:
    """One column of a table laid out on the grid.

    Args:
        table: one row a case with `row`, `col` (grid coordinates) and `value`; cells without a case, and
            NaN values, are grey.
        squares: (row, column, half side) of the squares to frame.
        axis_names: what rows and columns are (`Task.axis_names`).
        limits: ends of the colour scale; None takes them from the values.
        label: of the colour bar.
    """
    import matplotlib

    require_columns(table, ("row", "col", value))
    ax = new_axes(ax)
    rows, cols = table["row"].to_numpy(), table["col"].to_numpy()
    grid = np.full((int(rows.max()) + 1, int(cols.max()) + 1), np.nan)
    grid[rows, cols] = table[value].to_numpy(dtype=float)
    colors = matplotlib.colormaps.get_cmap(cmap).with_extremes(bad=MISSING)
    # nearest, and rasterised by imshow: cells stay sharp at any size and PDFs stay small
    image = ax.imshow(grid, cmap=colors, vmin=limits[0], vmax=limits[1], interpolation="nearest", origin="upper")
    for square in squares:
        frame_square(ax, square)
    ax.set_ylabel(axis_names[0])
    ax.set_xlabel(axis_names[1])
    ax.spines[["top", "right"]].set_visible(True)
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(label)
        bar.outline.set_linewidth(0.5)
    return ax


def accuracy_map(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    value: str = "correct",
    squares: Sequence[Square] = (),
    axis_names: tuple[str, str] = ("a", "b"),
    colorbar: bool = True,
) -> Axes:
    """Accuracy of every case on the grid, 0 dark to 1 bright.

    Args:
        table: one row a case with `row`, `col` and `value` (right or not of one run, or a fraction over
            seeds or samples).
    """
    return grid_map(
        table, value, ax, squares=squares, axis_names=axis_names, limits=(0.0, 1.0), label="accuracy",
        cmap="cividis", colorbar=colorbar,
    )  # fmt: skip


def score_map(
    table: pd.DataFrame,
    value: str,
    ax: Axes | None = None,
    *,
    test_case: tuple[int, int],
    squares: Sequence[Square] = (),
    axis_names: tuple[str, str] = ("a", "b"),
    top: str | None = None,
    window: int | None = None,
    label: str = "",
    colorbar: bool = True,
) -> Axes:
    """Similarity or attribution of every training case to one test case, which is marked by a star.

    Args:
        table: one row a case with `row`, `col` and the score `value` (NaN for held-out cases).
        test_case: grid coordinates (row, column) of the test case.
        top: a boolean column marking the k best training cases, drawn as rings.
        window: show only the cells at most so many rows and columns away from the test case.

    The colour scale is centred on 0, since these scores have a sign, and ends at the 99.9th percentile of their
    size over the whole table, so that one extreme score does not hide the rest.
    """
    from matplotlib import patheffects

    require_columns(table, ("row", "col", value, *([] if top is None else [top])))
    limit = float(np.nanpercentile(np.abs(table[value].to_numpy(dtype=float)), 99.9))
    ax = grid_map(
        table, value, ax, squares=squares, axis_names=axis_names, limits=(-limit, limit), label=label, cmap=SIGNED,
        colorbar=colorbar,
    )  # fmt: skip
    if top is not None:
        best = table[table[top].astype(bool)]
        rim = [patheffects.withStroke(linewidth=2.6, foreground="white")]
        ax.scatter(
            best["col"], best["row"], s=25, facecolors="none", edgecolors=BEST, linewidths=1.2, path_effects=rim,
            zorder=3,
        )  # fmt: skip
    row, col = test_case
    ax.scatter(col, row, marker="*", s=90, color="white", edgecolors="black", linewidths=0.8, zorder=4)
    if window is not None:
        ax.set_xlim(max(col - window, 0) - 0.5, min(col + window, table["col"].max()) + 0.5)
        ax.set_ylim(min(row + window, table["row"].max()) + 0.5, max(row - window, 0) - 0.5)
    return ax


def embedding_map(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "answer", colorbar: bool = True) -> Axes:
    """A two-dimensional embedding (UMAP, PCA) of all cases, coloured by their answer's value.

    Args:
        table: one row a case with `x`, `y`, `value` (a number to colour by) and `mark`: "right" or
            "wrong" for the test cases to mark, empty or NaN for the others.
    """
    require_columns(table, ("x", "y", "value", "mark"))
    ax = new_axes(ax)
    marks = table["mark"].fillna("")
    plain = table[marks == ""]
    points = ax.scatter(plain["x"], plain["y"], c=plain["value"], s=2, cmap="viridis", linewidths=0, rasterized=True)
    for mark, color, symbol in (("right", RIGHT, "o"), ("wrong", WRONG, "x")):
        chosen = table[marks == mark]
        if len(chosen):
            edge, face = (color, "none") if symbol == "o" else (None, color)
            label_n = f"test, {mark} (n = {len(chosen)})"
            ax.scatter(
                chosen["x"],
                chosen["y"],
                s=9,
                marker=symbol,
                linewidths=0.7,
                label=label_n,
                facecolors=face,
                edgecolors=edge,
            )
    # distances between far points of such an embedding mean nothing, so neither do its axes' numbers
    ax.set_xticks([])
    ax.set_yticks([])
    if (marks != "").any():
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, handletextpad=0.2, columnspacing=1.0)
    if colorbar:
        bar = ax.figure.colorbar(points, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(label)
        bar.outline.set_linewidth(0.5)
    return ax


def category_map(
    table: pd.DataFrame,
    value: str,
    colors: Mapping[str, str],
    ax: Axes | None = None,
    *,
    squares: Sequence[Square] = (),
    axis_names: tuple[str, str] = ("a", "b"),
    legend: bool = True,
) -> Axes:
    """A column of names laid out on the grid, one colour a name; names without a colour are left pale.

    Args:
        table: one row a case with `row`, `col` and `value`.
        colors: name -> colour, in the order of the legend; names that do not occur are left out of it.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    counts = table[value].value_counts()
    present = [name for name in colors if counts.get(name, 0)]
    codes = table.assign(code=table[value].map({name: i for i, name in enumerate(present)}).astype(float))
    ax = grid_map(codes.assign(code=codes["code"].fillna(-1)), "code", ax, squares=squares, axis_names=axis_names,
                  limits=(-1, max(len(present) - 1, 0)), cmap=ListedColormap([BLANK, *(colors[n] for n in present)]),
                  colorbar=False)  # fmt: skip
    if legend and present:
        handles = [Patch(color=colors[name], label=f"{name} ({counts[name]})") for name in present]
        # as far below as the axis' name needs, at any size of the map
        ax.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, ncols=2, handlelength=1.0
        )
    return ax
