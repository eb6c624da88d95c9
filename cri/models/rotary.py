"""Rotary frequencies for structured positions: some pairs see band and column only, the others see lines."""

from __future__ import annotations

from typing import Any

import numpy as np

FEW_WITHIN_LINE = (121, 100, 81, 50, 27, 9, 3, 1)
"""Turns of the rotary pairs over the 256 positions of a line. Their mean cosine, what attention by position starts
from, is up to 0.53 at positions other than the one sought, first at 10 columns away."""
WITHIN_LINE = (127, 109, 101, 98, 96, 79, 52, 42, 38, 36, 32, 25, 15, 9, 3, 1)
"""The same for heads of at least 64: 9, 3 and 1, and 13 turns chosen by random search for the lowest side lobes (0.22
at most)."""


def rope_parameters(period: int, head_size: int, theta: float = 10_000.0) -> dict[str, Any]:
    """Rotary frequencies for structured positions, as transformers' `longrope` takes them.

    Half of the pairs turn by multiples of 2 pi / period and so see band and column only, whatever the line; the others
    turn slowly and see lines. `period` is a multiple of 256.
    """
    pairs = head_size // 2
    table = WITHIN_LINE if pairs >= 2 * len(WITHIN_LINE) else FEW_WITHIN_LINE
    lines = np.array([1.5, 0.8, 0.4, 0.2, 0.1, 0.05, 0.02, 0.005])
    pick = np.linspace(0, len(table) - 1, max(1, pairs // 2)).round().astype(int)
    turns = np.maximum(1, (np.array(table)[pick] / 256 * period).round()) / period
    if period > 256:
        turns = np.where(pick == len(table) - 1, 1 / period, turns)
    rest = np.interp(np.linspace(0, 7, pairs - len(pick)), np.arange(8), np.log(lines))
    wanted = np.concatenate([2 * np.pi * turns, np.exp(rest) / period])
    plain = theta ** -(np.arange(pairs) / pairs)
    factors = (plain / wanted).tolist()
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 65_536,
        "factor": 1.0,
        "attention_factor": 1.0,
    }
