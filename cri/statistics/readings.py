"""From effects of memberships to words: what an answer rests on, several comparisons corrected together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from cri.data.memberships import CLOSENESS, LINE, MIRROR, NEAR, NEAR_ANSWER, NEAR_MIRROR, ONE_TOKEN
from cri.statistics.case_effects import Fit
from cri.statistics.intervals import LEVEL, Interval

CASES, LINES, IMAGE, COLUMN, ANYWHERE, TOKENS = (
    "nearby cases", "an operand's number line", "mirror image", "a step in its column", "steps anywhere",
    "cases one token away",
)  # fmt: skip
NOTHING = "nothing"
MECHANISMS = (CASES, LINES, IMAGE, COLUMN, ANYWHERE, TOKENS)
_TENS, _UNITS, _ELSEWHERE = "step of the tens", "step of the units", "step elsewhere"


class Score(NamedTuple):
    """Evidence for a mechanism: the interval of its effect, and that as a normal score."""

    value: Interval
    z: float


def z_score(value: Interval, level: float = LEVEL) -> float:
    """Estimate / standard error, the latter from the half of the interval that faces 0; 0 where that has no width."""
    half = value.estimate - value.low if value.estimate > 0 else value.high - value.estimate
    if not half > 0:
        return 0.0
    return float(value.estimate / half * norm.ppf((1 + level) / 2))


def holm(p_values: Sequence[float], level: float = LEVEL) -> Bool[np.ndarray, " test"]:
    """Which of several tests are significant together (Holm 1979): the smallest p-value is compared with alpha / m,
    the next with alpha / (m - 1), and so on until one fails."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    passed = p[order] <= (1 - level) / (len(p) - np.arange(len(p)))
    out = np.zeros(len(p), dtype=bool)
    out[order] = np.cumprod(passed).astype(bool)
    return out


def p_values(z: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Two-sided, of normal scores."""
    return 2 * norm.sf(np.abs(np.asarray(z, dtype=np.float64)))


def mechanism_scores(fit: Fit) -> dict[str, Score]:
    """Evidence for each mechanism that the fit's memberships can show.

    `nearby cases`: the effect of a near case by its place and answer (`near_sums`). The number line: what sharing an
    operand adds to the effect of a near case. A step anywhere: the effect of a shared units step, or of a step in
    another column than the test case's, whichever scores higher. A step in its column: that of a shared tens step.
    The mirror image: the effect of the image itself or of cases near it, whichever scores higher. Single tokens: the
    effect of a case that differs in one token.
    """
    present = fit.parts
    wanted: dict[str, list[dict[str, float]]] = {
        CASES: near_sums(present),
        LINES: [{LINE: 1.0}],
        IMAGE: [{MIRROR: 1.0}, {NEAR_MIRROR: 1.0}],
        COLUMN: [{_TENS: 1.0}],
        ANYWHERE: [{_UNITS: 1.0}, {_ELSEWHERE: 1.0}],
        TOKENS: [{ONE_TOKEN: 1.0}],
    }
    out: dict[str, Score] = {}
    for name, sums in wanted.items():
        found = [fit.interval(weights) for weights in sums if set(weights) <= present]
        scores = [Score(value, z_score(value)) for value in found]
        if scores:
            out[name] = max(scores, key=lambda score: score.z)
    if any(f"{ONE_TOKEN}" in name.split(" = ") and len(name.split(" = ")) > 1 for name in fit.names):
        out.pop(TOKENS, None)  # one token is an operand: not told apart
    return out


def near_sums(present: Collection[str]) -> list[dict[str, float]]:
    """The marginal effect of a case next to the test case by its place and answer, the nested memberships added up;
    and that of a case that is near, and no more."""
    whole = {name: 1.0 for name in CLOSENESS if name in present}
    near = {name: 1.0 for name in (NEAR, NEAR_ANSWER) if name in present}
    return [sums for sums in (whole, near) if sums]


def supported(scores: dict[str, Score], level: float = LEVEL) -> list[str]:
    """Mechanisms with a positive effect that survives Holm's correction, the clearest first."""
    names = list(scores)
    z = np.array([scores[name].z for name in names])
    significant = holm(p_values(z).tolist(), level) & (z > 0)
    return [names[i] for i in np.argsort(-z) if significant[i]]


def reading(scores: dict[str, Score], level: float = LEVEL) -> str:
    """The mechanism with the clearest effect, or `nothing`. Steps that count anywhere count in their column as well,
    so that `a step in its column` is read only where the other is not supported."""
    found = supported(scores, level)
    if not found:
        return NOTHING
    return ANYWHERE if found[0] == COLUMN and ANYWHERE in found else found[0]
