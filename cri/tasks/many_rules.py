"""Many rules over digit lists: which rule a case is answered by, its prompt says (or hides)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int, Shaped

from cri.checks import check_memory
from cri.config import TrainConfig
from cri.errors import CriError
from cri.tasks.base import BYTES_A_CASE, Task, require
from cri.tasks.list_rules import Group, ListRule, all_rules, kept_out, pool
from cri.tasks.registry import task
from cri.tasks.steps import Step

MAX_DIGITS = 6
_RECIPE = TrainConfig(steps=8000, batch_size=64, lr=3e-3, weight_decay=0.1, beta2=0.98)


@task
class ManyRules(Task):
    """Two lists of 1 to `digits` digits -> the list that one of `rules` rules makes of them.

    A case (a, b) is a rule's number (`cri.tasks.list_rules.all_rules`) and a pair of lists as a whole number (see
    `pack`). The training rules are drawn from the pool with `seed`: those of fewer rules are the first of those of
    more. They share `examples` training cases evenly, so that models trained on few and on many rules see as many.
    `fresh` further cases of each of at most 100 rules of every group are never trained on (`groups`).
    """

    name: ClassVar[str] = "many_rules"
    axis_names: ClassVar[tuple[str, str]] = ("rule", "index")
    color: ClassVar[str] = "#332288"
    recipes: ClassVar[dict[str, TrainConfig]] = dict.fromkeys(
        ("stated_rule", "shuffled_rule", "rule_id", "scrambled_rule"), _RECIPE
    )

    rules: int = 64
    examples: int = 32_000
    fresh: int = 5
    digits: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(pool())
        require(1 <= self.rules < most, "rules", self.rules, f"in 1..{most - 1}")
        require(self.examples >= self.rules, "examples", self.examples, f"at least rules={self.rules}")
        require(self.fresh >= 1, "fresh", self.fresh, "at least 1")
        require(2 <= self.digits <= MAX_DIGITS, "digits", self.digits, f"in 2..{MAX_DIGITS}")
        # half of the pairs of two digits and of the longest lists: the rest stay fresh
        room = most_lists(self.digits)
        n = -(-self.examples // self.rules) + self.fresh
        require(n <= room, "examples", self.examples, f"at most {(room - self.fresh) * self.rules} for these rules")
        check_memory("examples", self.examples, BYTES_A_CASE * self.examples, f"{self.examples:,} cases")

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The pool's rules in the order in which they become training rules."""
        return tuple(random.Random(f"training rules {self.seed}").sample(pool(), len(pool())))

    @cached_property
    def asked(self) -> dict[Group, tuple[int, ...]]:
        """Numbers of the rules of each group that cases are made of."""
        found: dict[Group, list[int]] = {"combination": [], "division": [], "start": [], "base": []}
        for i, rule in enumerate(all_rules()):
            if (group := kept_out(rule)) is not None:
                found[group].append(i)
        rng = random.Random(f"held-out rules {self.seed}")
        drawn: dict[Group, tuple[int, ...]] = {
            group: tuple(sorted(rng.sample(rules, min(100, len(rules))))) for group, rules in found.items()
        }
        # those that no number of training rules up to 380 reaches, so that all models are asked the same
        others = self.order[-min(100, len(pool()) - self.rules) :]
        return {"trained": self.order[: self.rules], "rule": others, **drawn}

    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        for group, rules in self.asked.items():
            share, more = divmod(self.examples, self.rules) if group == "trained" else (0, 0)
            for i, rule in enumerate(rules):
                n = self.fresh + share + (i < more)
                yield from ((rule, b) for b in sample_lists(n, self.digits, f"{self.seed} {rule}"))

    @cached_property
    def groups(self) -> Shaped[np.ndarray, " case"]:
        """The group of each case's rule."""
        of = {rule: group for group, rules in self.asked.items() for rule in rules}
        return np.array([of[rule] for rule, _ in self.operands])

    @cached_property
    def is_fresh(self) -> Shaped[np.ndarray, " case"]:
        """Whether a case is kept out of training: the first `fresh` of each rule, and all of rules not trained on."""
        return (self.groups != "trained") | (self.coords[:, 1] < self.fresh)

    @cached_property
    def coords(self) -> Int[np.ndarray, "case 2"]:
        rules = np.array([rule for rule, _ in self.operands], dtype=np.int64)
        new = np.r_[True, rules[1:] != rules[:-1]]
        starts = np.flatnonzero(new)
        index = np.arange(len(rules)) - starts[np.cumsum(new) - 1]
        return np.stack([rules, index], axis=1)

    @property
    def center(self) -> tuple[int, int]:
        raise CriError("split: many_rules has no main square; use split rules")

    def rule_of(self, a: int) -> ListRule:
        """The rule of number `a`; raises `CriError` outside the grammar."""
        require(0 <= a < len(all_rules()), "a", a, f"a rule's number, in 0..{len(all_rules()) - 1}")
        return all_rules()[a]

    def question(self, a: int, b: int) -> str:
        x, y = unpack(b)
        return "x" + items(x) + " y" + items(y) + "\n"

    def answer(self, a: int, b: int) -> str:
        return items(self.rule_of(a).apply(*unpack(b))).lstrip()

    def value(self, a: int, b: int) -> int:
        """The result read as a number in the rule's base (items need not be digits of it)."""
        rule = self.rule_of(a)
        return _number(rule.apply(*unpack(b)), rule.base)

    def read_value(self, answer: str) -> int | None:
        """None: which number a list stands for depends on its rule."""
        return None

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        rule = self.rule_of(a)
        return tuple(Step(rule.operation, s.a, s.b, s.carry) for s in rule.steps(*unpack(b)))


def items(values: list[int]) -> str:
    """A list as texts show it: each number with a space before it."""
    return "".join(f" {value}" for value in values)


def pack(x: list[int], y: list[int]) -> int:
    """Two lists of one length as a whole number: their digits, x before y, behind a 1."""
    return int("1" + "".join(map(str, [*x, *y])))


def unpack(b: int) -> tuple[list[int], list[int]]:
    """Inverse of `pack`; raises `CriError` for a number that stands for no two lists."""
    text = str(b)
    if b < 100 or text[0] != "1" or len(text) % 2 == 0:
        raise CriError(f"b: {b} stands for no two lists of digits; use cri.tasks.many_rules.pack")
    values = [int(digit) for digit in text[1:]]
    return values[: len(values) // 2], values[len(values) // 2 :]


def _most(n: int, longest: int) -> int:
    """How many pairs of `n` digits a rule may be given: half of them, so that fresh ones are left."""
    return 100**n // 2 if n <= longest else 0


def most_lists(longest: int) -> int:
    """How many pairs of lists `sample_lists` can draw at most."""
    return sum(_most(n, longest) for n in range(1, longest + 1))


def sample_lists(n: int, longest: int, key: str) -> list[int]:
    """`n` different pairs of lists of 1 to `longest` digits, as whole numbers (see `pack`): each length equally likely,
    until half of its pairs are drawn. The first of many are the same as of few. Raises `CriError` for more than half of
    all pairs (see `most_lists`)."""
    require(0 <= n <= most_lists(longest), "n", n, f"in 0..{most_lists(longest)}, half of the pairs of lists")
    rng = random.Random(f"lists {key}")
    left = {length: _most(length, longest) for length in range(1, longest + 1)}
    drawn: dict[int, None] = {}
    while len(drawn) < n:
        length = rng.choice([k for k, room in left.items() if room])
        b = 10 ** (2 * length) + rng.randrange(100**length)
        if b not in drawn:
            drawn[b] = None
            left[length] -= 1
    return list(drawn)


def _number(values: list[int], base: int) -> int:
    total = 0
    for value in values:
        total = total * base + value
    return total
