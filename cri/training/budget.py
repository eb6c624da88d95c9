"""How often a run is evaluated on its way: as asked for, and never for more than a tenth of its time.

So the clock decides how many cases such an evaluation takes, and these lines of `metrics.jsonl` differ from one
training to the next; the training itself, and what is decoded at its end, do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.1
"""Of the time of training and evaluation together."""
SIZES = (1, 4, 16, 64, 128)
"""Cases of each part that an evaluation may take, the smallest first."""


def evaluation_steps(steps: int, evals: int, at_least: int = 25) -> range:
    """The steps after which a run is evaluated: `evals` times evenly, before its end (where all is decoded anyway),
    and not closer than `at_least` steps; none for 0."""
    if evals == 0:
        return range(0)
    every = max(at_least, -(-steps // (evals + 1)))
    return range(every, steps, every)


class EvaluationBudget:
    """Decides how many cases an evaluation takes.

    What an evaluation costs is known from earlier ones of this run; before the first, one case of each part is taken
    to cost no more than a third of a training step for each token written (a step passes forwards and backwards
    through more tokens). From there it grows as far as a tenth of the time allows.

    Args:
        n_tokens: the most tokens that are written for a case.
        clock: seconds.
    """

    def __init__(self, n_tokens: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.n_tokens, self.clock = n_tokens, clock
        self.trained = self.spent = 0.0
        self._seconds: dict[int, float] = {}

    def affords(self, seconds: float) -> bool:
        """Whether so many seconds more keep evaluation within its share."""
        spent = self.spent + seconds
        return spent <= SHARE * (self.trained + spent)

    def expected(self, n: int, step_seconds: float) -> float:
        """Seconds that `n` cases of each part will take at most: as many as they did, or in proportion to fewer."""
        known = [m for m in self._seconds if m <= n]
        if not known:
            return n * self.n_tokens * step_seconds / 3
        return self._seconds[max(known)] * n / max(known)

    def evaluate(self, step_seconds: float, measure: Callable[[int], dict[str, float]]) -> dict[str, float] | None:
        """The result of `measure` for the most cases that can be afforded, None where not even one of each part can.

        Args:
            step_seconds: what a training step takes.
            measure: evaluates so many cases of each part.
        """
        result = None
        sizes = [n for n in SIZES if n >= max(self._seconds, default=0)] if self._fits_largest(step_seconds) else SIZES
        for n in sizes:
            if not self.affords(self.expected(n, step_seconds)):
                break
            started = self.clock()
            result = {**measure(n), "eval_cases": n}
            seconds = self.clock() - started
            self.spent += seconds
            self._seconds[n] = seconds
        return result

    def _fits_largest(self, step_seconds: float) -> bool:
        """Whether the largest evaluation so far can be afforded again: then it is taken without the smaller ones."""
        return bool(self._seconds) and self.affords(self.expected(max(self._seconds), step_seconds))
