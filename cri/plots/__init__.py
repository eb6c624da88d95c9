"""Table in, Axes out: no computing, no global state.

Every plot takes a tidy DataFrame, as `cri.statistics` makes them and studies record them, and an optional
`ax`, and returns the Axes it drew on. Colours are safe for colour-blind readers; a task has the same
colour and a format the same marker in every figure.
"""

from cri.plots.curves import distance_correctness, enrichment_curves, matched_curves, ring_accuracy
from cri.plots.interventions import (
    agreement_map,
    component_bars,
    effect_map,
    follow_bars,
    knockout_bars,
    probe_bars,
    rule_edit_bars,
)
from cri.plots.maps import accuracy_map, category_map, embedding_map, frame_square, grid_map, score_map
from cri.plots.style import (
    BEST,
    ERROR_COLORS,
    FORMAT_MARKERS,
    FRAME,
    GROUP_COLORS,
    MISSING,
    MODEL_COLORS,
    RIGHT,
    SIGNED,
    SPLIT_LINES,
    WRONG,
    figure,
    save_figure,
    style,
)

__all__ = [
    "BEST",
    "ERROR_COLORS",
    "FORMAT_MARKERS",
    "FRAME",
    "GROUP_COLORS",
    "MISSING",
    "MODEL_COLORS",
    "RIGHT",
    "SIGNED",
    "SPLIT_LINES",
    "WRONG",
    "accuracy_map",
    "agreement_map",
    "category_map",
    "component_bars",
    "distance_correctness",
    "effect_map",
    "embedding_map",
    "enrichment_curves",
    "figure",
    "follow_bars",
    "frame_square",
    "grid_map",
    "knockout_bars",
    "matched_curves",
    "probe_bars",
    "ring_accuracy",
    "rule_edit_bars",
    "save_figure",
    "score_map",
    "style",
]
