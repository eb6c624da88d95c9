"""Plots draw what the table says, on the axes they are given, and leave matplotlib as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cri import plots
from cri.errors import CriError
from cri.plots import marginal
from cri.plots import retraining as removals
from cri.statistics import GROUPS
from cri.tasks import TASKS

N = 12
ROWS, COLS = (x.ravel() for x in np.mgrid[:N, :N])


def cases(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"row": ROWS, "col": COLS, **columns})


RINGS = pd.DataFrame(
    {"task": "addition", "format": "direct", "split": ["square"] * 4 + ["random"] * 4, "ring": [-1, 0, 1, 2] * 2,
     "accuracy": [1, 0.9, 0.5, 0.1] * 2, "low": 0.05, "high": 1.0, "wilson_low": 0.02, "wilson_high": 1.0, "n": 40,
     "n_runs": 3}
)  # fmt: skip
RATIOS = dict(zip(GROUPS, (8.0, 4.0, 1.0, 0.0, 0.9), strict=True))
ENRICHMENT = pd.DataFrame(
    [
        {"site": site, "group": group, "estimate": e, "low": 0.5 * e, "high": 2 * e}
        for site in ("embed", "L0")
        for group, e in RATIOS.items()
    ]
)
MATCHED = pd.DataFrame(
    [
        {"site": s, "model": m, "estimate": 0.6, "low": 0.5, "high": 0.7}
        for s in ("L0", "L1")
        for m in ("square", "random")
    ]
)
DISTANCE = pd.DataFrame({"distance": np.linspace(1, 2, 30), "correct": np.arange(30) < 12})
EMBEDDING = pd.DataFrame(
    {"x": np.arange(9.0), "y": np.arange(9.0), "value": np.arange(9), "mark": ["right", "wrong", *[np.nan] * 7]}
)
EFFECTS = pd.DataFrame(
    [
        {"region": region, "group": group, "estimate": e, "low": e - 1, "high": e + 1}
        for region in ("edge", "outside")
        for group, e in RATIOS.items()
    ]
)
INDEX = pd.DataFrame(
    {"group": ["planted", "addition", "addition"], "name": ["cases", "square", "random"],
     "difference": [9.0, -0.2, np.nan], "difference_low": [3.0, -0.6, np.nan], "difference_high": [20, 0.3, np.nan],
     "reading": ["nearby cases", "undecided", np.nan]}
)  # fmt: skip
DESIGNS = pd.DataFrame(
    {
        "design": ["square", "square", "step"],
        "accuracy": [0.1, 0.0, 0.8],
        "unseen": [0.4, 0.4, 1.0],
        "train_accuracy": [0.99, 0.5, 0.95],
    }
)
QUALITY = pd.DataFrame(
    {"name": ["same answer", "EK-FAC"], "kind": ["model-free", "influence"], "retraining": "new seed",
     "lds": [0.2, 0.5], "lds_low": 0.1, "lds_high": 0.6}
)  # fmt: skip
FLIPS = pd.DataFrame(
    {
        "name": ["random", "EK-FAC"] * 2,
        "color": ["#999999", "#0072B2"] * 2,
        "k": [5, 5, 20, 20],
        "lost": [0, 0.5, 0.2, 1],
        "low": 0,
        "high": 1,
    }
)
SLIDING = pd.DataFrame(
    {"center_row": [5, 5, 9], "center_col": [5, 9, 5], "default_row": 6, "default_col": 9, "accuracy": [0.0, 0.5, 1.0],
     "train_accuracy": [0.99, 0.5, 0.95]}
)  # fmt: skip
POINTS = pd.DataFrame({"group": ["near", "same_step"], "effect": [1.0, 0.1], "effect_low": 0.0, "effect_high": 2.0})
FOLLOW = pd.DataFrame(
    [
        {"kind": kind, "region": region, "model": model, "follows": f, "low": max(f - 0.1, 0), "high": f + 0.1,
         "chance": 0.02, "n": 40}
        for kind, rate in (("carry", 0.2), ("all", 0.4))
        for region in ("inside", "outside")
        for model, f in (("trained", rate + 0.1 * (region == "outside")), ("shuffled", 0.01))
    ]
)  # fmt: skip
PLOTS: dict[str, Callable[..., Any]] = {
    "removal_effects": lambda ax=None: removals.removal_effects(EFFECTS, ax),
    "difference_strip": lambda ax=None: removals.difference_strip(INDEX, INDEX, ax),
    "design_accuracy": lambda ax=None: removals.design_accuracy(DESIGNS, ax),
    "quality_bars": lambda ax=None: removals.quality_bars(QUALITY, ax, ceiling=0.6),
    "quality_points": lambda ax=None: removals.quality_points(QUALITY, ax, ceilings=(0.6,)),
    "flip_curves": lambda ax=None: removals.flip_curves(FLIPS, ax),
    "sliding_map": lambda ax=None: removals.sliding_map(SLIDING, ax),
    "group_points": lambda ax=None: removals.group_points(POINTS, "effect", ax),
    "accuracy_map": lambda ax=None: plots.accuracy_map(cases(correct=ROWS > 5), ax, squares=[(6, 6, 2)]),
    "score_map": lambda ax=None: plots.score_map(
        cases(s=np.where(ROWS == 3, np.nan, COLS), top=ROWS == 1), "s", ax, test_case=(6, 6), top="top"
    ),
    "follow_bars": lambda ax=None: plots.follow_bars(FOLLOW, ax),
    "embedding_map": lambda ax=None: plots.embedding_map(EMBEDDING, ax),
    "ring_accuracy": lambda ax=None: plots.ring_accuracy(RINGS, ax),
    "enrichment_curves": lambda ax=None: plots.enrichment_curves(ENRICHMENT, ax),
    "matched_curves": lambda ax=None: plots.matched_curves(MATCHED, ax),
    "distance_correctness": lambda ax=None: plots.distance_correctness(DISTANCE, ax),
}


@pytest.mark.parametrize("name", PLOTS)
def test_draws_on_the_given_axes_and_changes_no_global_state(name: str) -> None:
    before = dict(matplotlib.rcParams)
    with plots.style():
        fig, axes = plots.figure()
        assert PLOTS[name](axes[0, 0]) is axes[0, 0]
        fig.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_makes_axes_when_given_none() -> None:
    import matplotlib.pyplot as plt

    ax = PLOTS["matched_curves"]()
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


def test_map_lays_rows_down_and_columns_right_with_the_square_framed() -> None:
    _, axes = plots.figure()
    ax = plots.accuracy_map(cases(correct=(ROWS == 2) & (COLS == 7)), axes[0, 0], squares=[(6, 5, 2)])
    image = np.asarray(ax.images[0].get_array())
    assert image[2, 7] == 1
    assert image.sum() == 1
    low, high = ax.get_ylim()
    assert low > high  # row 0 on top
    frame = ax.patches[0]
    # cells 4..8 by 3..7, whole
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (2.5, 3.5, 5, 5)  # pyright: ignore
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("a", "b")


def test_scores_around_zero_are_coloured_around_zero_and_shown_in_a_window() -> None:
    _, axes = plots.figure()
    scores = np.where(ROWS < 6, 1.0, -4.0)
    ax = plots.score_map(cases(s=scores, top=ROWS == 1), "s", axes[0, 0], test_case=(6, 2), top="top", window=3)
    assert ax.images[0].get_clim() == (-4, 4)
    assert ax.get_xlim() == (-0.5, 5.5)  # the grid ends before the window
    assert ax.get_ylim() == (9.5, 2.5)
    rings = next(c for c in ax.collections if len(c.get_offsets()) == N)
    assert set(np.asarray(rings.get_offsets())[:, 1]) == {1.0}


def test_follow_bars_pair_regions_and_name_their_edits() -> None:
    _, axes = plots.figure()
    ax = plots.follow_bars(FOLLOW, axes[0, 0])
    # the whole first, whatever the table's order
    assert [t.get_text() for t in ax.get_xticklabels()] == ["40 | 40\nall", "40 | 40\ncarry"]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.4, 0.2, 0.5, 0.3])  # pyright: ignore
    names = [t.get_text() for t in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert sorted(names) == ["chance", "inside", "outside", "shuffled"]
    assert {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"} == {0.02}  # pyright: ignore


def test_grid_without_some_cases_is_grey_there() -> None:
    _, axes = plots.figure()
    ax = plots.grid_map(cases(v=1.0).iloc[5:], "v", axes[0, 0])
    assert np.ma.getmaskarray(np.ma.masked_invalid(ax.images[0].get_array()))[0, :5].all()


def test_rings_show_runs_and_n() -> None:
    _, axes = plots.figure()
    ax = plots.ring_accuracy(RINGS, axes[0, 0])
    names = [t.get_text() for t in ax.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert names[0] == "square (3 runs, n = 160)"  # by the split, and by what differs


def test_groups_absent_from_every_top_k_are_drawn_at_the_floor() -> None:
    _, axes = plots.figure()
    ax = plots.enrichment_curves(ENRICHMENT, axes[0, 0])
    floor = [c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 2]
    assert any(np.asarray(points)[:, 1].tolist() == [0.0625, 0.0625] for points in floor)


def test_models_that_learnt_nothing_are_crossed_out_and_the_default_square_is_framed() -> None:
    _, axes = plots.figure(1, 2)
    ax = removals.sliding_map(SLIDING, axes[0, 0])
    crosses = [np.asarray(c.get_offsets()).tolist() for c in ax.collections if len(c.get_offsets())]
    assert crosses == [[[pytest.approx(1.33), pytest.approx(-0.33)]]]  # column 9, row 5
    frame = ax.patches[0]
    assert (frame.get_x(), frame.get_y()) == (0.5, -0.25)  # pyright: ignore
    ax = removals.design_accuracy(DESIGNS, axes[0, 1])
    _, names = ax.get_legend_handles_labels()
    assert names.count(removals.POOR) == 1


def test_every_group_of_differences_has_a_header_row_and_every_case_its_place() -> None:
    _, axes = plots.figure()
    ax = removals.difference_strip(INDEX, INDEX[1:2], axes[0, 0])
    assert ax.get_yticks().tolist() == [1, 3, 4]
    assert [text.get_text() for text in ax.texts] == ["planted", "addition"]
    (dots,) = (c for c in ax.collections if c.get_label() == "dot: one test case")
    assert np.round(np.asarray(dots.get_offsets())).tolist() == [[-0.0, 3.0]]
    control = removals.difference_strip(INDEX, ax=plots.figure()[1][0, 0], pale=True)
    assert control.get_ylim() == ax.get_ylim()


def test_colours_are_distinct() -> None:
    tasks = {name: task.color for name, task in TASKS.items()}
    for palette in (tasks, plots.GROUP_COLORS, plots.MODEL_COLORS, plots.FORMAT_MARKERS):
        assert len(set(palette.values())) == len(palette)
    assert set(plots.GROUP_COLORS) == set(GROUPS)


def test_missing_columns_are_named() -> None:
    with pytest.raises(CriError, match="lacks the columns row, col"):
        plots.accuracy_map(pd.DataFrame({"correct": [True]}))


def test_saved_twice_is_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for folder in ("one", "two"):
        with plots.style():
            fig, axes = plots.figure()
            PLOTS["accuracy_map"](axes[0, 0])
            written.append(plots.save_figure(fig, tmp_path / folder / "map.v1"))
    assert [p.name for p in written[0]] == ["map.v1.png", "map.v1.pdf"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_kinds_without_cases_are_left_out():
    table = pd.DataFrame({"group": list(marginal.KINDS), "effect": 1.0, "low": 0.5, "high": 2.0, "size": 3.0})
    table.loc[table["group"] == "mirror_same_answer", "size"] = 0.0
    ax = marginal.marginal_effects(table)
    assert [text.get_text() for text in ax.texts] == ["3.0"] * (len(marginal.KINDS) - 1)  # and how many there are
    drawn = [len(container.lines[0].get_xdata()) for container in ax.containers]
    assert drawn == [int(kind != "mirror_same_answer") for kind in marginal.KINDS]
    assert [label.get_text() for label in ax.get_yticklabels()] == [label for label, _ in marginal.KINDS.values()]
