"""What of a run is asked: its held-out cases, in parts where these are of several sorts, longer numbers among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int

from cri.data.splits import Split
from cri.data.token_table import TokenTable, encode
from cri.errors import CriError
from cri.tasks import Task, make_task
from cri.tasks.length_addition import LengthAddition
from cri.tasks.many_rules import ManyRules
from cri.training.runs import Run

FRESH_SEED = 1000
"""Of the pairs of longer numbers; the seeds that a run's own pairs are drawn with are small."""


@dataclass(frozen=True, eq=False)
class Part:
    """Held-out cases of one sort.

    Attributes:
        run: the run, its task extended by the cases where it lacks them.
        label: what tables call the task.
        held_out: case ids.
        first: whether this is the part that controls and further interventions are made of; of others edits alone.
    """

    run: Run
    label: str
    held_out: Int[np.ndarray, " case"]
    first: bool = True


@dataclass(frozen=True)
class _Longer(LengthAddition):
    """The cases of another task, and further pairs of one length behind them."""

    further: tuple[tuple[int, int], ...] = ()

    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        yield from super().enumerate_cases()
        yield from self.further


def parts_of(run: Run, lengths: Sequence[int], n: int) -> list[Part]:
    """The run's held-out cases; of many rules a part each group of rules, of numbers of any length one part more for
    each of `lengths`, of `n` pairs. Raises `CriError` for a task without lengths, and lengths that were trained on."""
    task, test = run.task, run.split.test_ids
    if isinstance(task, ManyRules):
        of_test = task.groups[test]
        groups = [group for group in task.asked if (of_test == group).any()]
        return [
            Part(run, f"{task.name}, {group} rules", test[of_test == group], first=i == 0)
            for i, group in enumerate(groups)
        ]
    return [Part(run, task.name, test), *(_longer(run, task, n_digits, n) for n_digits in lengths)]


def _longer(run: Run, task: Task, n_digits: int, n: int) -> Part:
    if not isinstance(task, LengthAddition):
        raise CriError(f"lengths: the numbers of {task.name} have no lengths; use runs of length_addition")
    if n_digits <= task.max_digits:
        raise CriError(f"lengths: {n_digits} is among the lengths of {run.path.name}; must be above {task.max_digits}")
    own = {"min_digits": n_digits, "max_digits": n_digits, "per_length": n, "seed": FRESH_SEED, "mixed": task.mixed}
    fresh = make_task("length_addition", **own)
    params = {name: getattr(task, name) for name in ("min_digits", "max_digits", "per_length", "seed", "mixed")}
    extended = _Longer(**params, further=tuple(fresh.operands))
    split = Split(np.concatenate([run.split.train, np.zeros(fresh.n_cases, dtype=bool)]), run.split.info)
    tokens = _joined(run.tokens, encode(fresh, run.format, run.tokenizer))
    ids = np.arange(task.n_cases, extended.n_cases)
    longer = replace(run, task=extended, split=split, tokens=tokens)
    return Part(longer, f"{task.name}, {n_digits} digits", ids, first=False)


def _joined(first: TokenTable, second: TokenTable) -> TokenTable:
    width = max(first.ids.shape[1], second.ids.shape[1])
    ids = [torch.nn.functional.pad(t.ids, (0, width - t.ids.shape[1]), value=first.pad) for t in (first, second)]
    prompts = torch.cat([first.prompt_lengths, second.prompt_lengths])
    return TokenTable(torch.cat(ids), prompts, torch.cat([first.lengths, second.lengths]), first.pad, first.eos)


def answered(run: Run, cases: Int[np.ndarray, " case"]) -> Run:
    """The run with predictions of these cases, too (long runs have a sample of theirs decoded)."""
    every = np.union1d(run.predictions["id"].to_numpy(), cases)
    return replace(run, predictions=run.decoded(every).reset_index(drop=True))


def solved_cases(run: Run) -> np.ndarray:
    """Whether each case of the grid was decoded and its text is right to the last token."""
    table = run.predictions
    right = table["correct"].to_numpy(dtype=bool) & (table["first_deviation"].to_numpy() == -1)
    solved = np.zeros(run.task.n_cases, dtype=bool)
    solved[table["id"].to_numpy()[right]] = True
    return solved
