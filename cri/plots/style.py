"""Colours, markers and saving: the same everywhere, and never by changing matplotlib's global state."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT_MARKERS = {"direct": "o", "scratchpad": "s", "rfft": "^"}
SPLIT_LINES = {"square": "-", "squares": "-", "random": "--"}
"""Line styles by split; any other design is drawn dash-dotted."""
# Paul Tol's muted palette, so that a group is not mistaken for a task
GROUP_COLORS = {
    "near": "#332288",
    "same_answer": "#CC6677",
    "same_operand": "#117733",
    "same_step": "#DDAA33",
    "rest": "#999999",
}
MODEL_COLORS = {"square": "#000000", "random": "#0077BB", "untrained": "#999999", "random weights": "#DDAA33"}
RIGHT, WRONG = "#0072B2", "#D55E00"
FRAME = "#FF3B30"
BEST = "#E000D0"
"""Rings around the best training cases: on neither side of `SIGNED`, nor the colour of frames."""
SIGNED = "BrBG"
"""Colour map of scores around 0."""
MISSING = "#E6E6E6"
BLANK = "#FAFAFA"
ERROR_COLORS = {
    "copy": "#0072B2",
    "digit": "#D55E00",
    "carry": "#009E73",
    "compare": "#56B4E9",
    "branch": "#CC79A7",
    "loop_count": "#E69F00",
    "answer": "#882255",
    "code": "#44AA99",
    "stop": "#999933",
    "format": "#888888",
    "truncated": "#000000",
}
"""First deviations of a trace (`cri.formats.traces.ERROR_KINDS`), and generations cut off at `max_new_tokens`."""

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
}


def style() -> AbstractContextManager[None]:
    """The figures' text sizes and lines, for the duration of a `with` block."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def figure(
    n_rows: int = 1, n_cols: int = 1, size: tuple[float, float] = (3.0, 2.6), **options: Any
) -> tuple[Figure, Any]:
    """A figure outside pyplot's registry with an [n_rows, n_cols] array of axes, `size` inches each.

    `options` go to `Figure.subplots` (`sharex`, `width_ratios`, ...).
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(size[0] * n_cols, size[1] * n_rows), layout="constrained")
    return fig, fig.subplots(n_rows, n_cols, squeeze=False, **options)


def new_axes(ax: Axes | None) -> Axes:
    """`ax`, or the axes of a new pyplot figure, which notebooks show."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]  # a saved figure keeps the label of its colour bar


def save_figure(fig: Figure, path: str | Path) -> list[Path]:
    """Writes `path`.png (200 dpi) and `path`.pdf, each whole or not at all, without dates: the same figure gives the
    same bytes.

    Args:
        path: file name without suffix; its folder is made.

    Returns:
        The two files written.
    """
    path = Path(path)
    png, pdf = path.with_name(path.name + ".png"), path.with_name(path.name + ".pdf")
    with atomic_path(png) as temporary:
        fig.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
        if not any(
            ax.images or any(c.get_array() is not None for c in ax.collections) for ax in fig.axes
        ):  # shades keep all of theirs
            fewer_colors(temporary)
    with atomic_path(pdf) as temporary:
        fig.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]


def fewer_colors(png: Path) -> None:
    """Writes a picture of lines again with a palette of 256 colours: it has few, and takes a third of the bytes so."""
    from PIL import Image

    with Image.open(png) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(png, format="PNG", optimize=True)
