"""A grammar of rules over two lists of digits: 960 rules that differ in six parts, each with a few values.

A rule walks through two lists of equal length from their ends. At each place it works out
`total = carry + operation(a, b)`, splits the total into `tens, digit = divmod(total, base)`, keeps the tens as the next
carry or leaves the carry as it is, and puts the digit at one side of the result. In the end it puts the carry there,
or drops it. Digits run from 0 to 9 in every base, so that each rule is defined on each pair of lists, and a rule with
one part exchanged is again a rule of the grammar. Eight pairs of rules are one and the same function: the larger or
smaller digit in base 10 with a carry that starts at 0 never carries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal, NamedTuple, get_args

from cri.errors import CriError, out_of_range, unknown_name

Operation = Literal["add", "sub", "mul", "max", "min"]
Side = Literal["left", "right"]
Group = Literal["trained", "rule", "combination", "division", "start", "base"]
"""Of a rule: trained; not trained, though every pair of its values is in the pool (`rule`); with an operation and a
base that no rule of the pool has together, other operations having the same totals with that base (`combination`), or
none having them: negative ones, large ones (`division`); with a first carry, or a base, that no rule of the pool
has."""

OPERATIONS: dict[Operation, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "max": max,
    "min": min,
}
BASES = (5, 6, 7, 8, 9, 10)
STARTS = (0, 1, 2, 3)
HELD_OUT_BASE = 7
HELD_OUT_START = 2


class ListStep(NamedTuple):
    """One place of the lists, as a rule works through it."""

    a: int
    b: int
    value: int
    """operation(a, b)"""
    carry: int
    """The carry that comes in."""
    total: int
    tens: int
    digit: int


@dataclass(frozen=True)
class ListRule:
    """One rule of the grammar. Raises `CriError` for a value that the grammar does not have.

    Attributes:
        operation: what is done with the two digits.
        base: what the total is divided by.
        carries: whether the tens become the next carry.
        start: the carry before the first place.
        side: where digits are put into the result.
        last: whether the carry is put there in the end.
    """

    operation: Operation = "add"
    base: int = 10
    carries: bool = True
    start: int = 0
    side: Side = "left"
    last: bool = True

    def __post_init__(self) -> None:
        for name, values in PARTS.items():
            value = getattr(self, name)
            # 1 == True: a number is no truth value, nor the other way round
            if not any(value == v and type(value) is type(v) for v in values):
                raise out_of_range(f"rule.{name}", value, f"one of {', '.join(map(str, values))}")

    def step(self, a: int, b: int, carry: int) -> ListStep:
        """What the rule makes of two digits and a carry."""
        value = OPERATIONS[self.operation](a, b)
        tens, digit = divmod(value + carry, self.base)
        return ListStep(a, b, value, carry, value + carry, tens, digit)

    def steps(self, x: Sequence[int], y: Sequence[int]) -> list[ListStep]:
        """The rule's execution, the lists' last place first; raises `CriError` for lists of unequal length, empty
        ones, and items that are no digits."""
        check_lists(x, y)
        made, carry = [], self.start
        for a, b in zip(reversed(x), reversed(y), strict=True):
            made.append(self.step(a, b, carry))
            carry = self.next_carry(made[-1])
        return made

    def next_carry(self, step: ListStep) -> int:
        """The carry after a step."""
        return step.tens if self.carries else step.carry

    def collect(self, steps: Sequence[ListStep]) -> list[int]:
        """The result: the steps' digits, and the carry in the end, put where the rule puts them."""
        put = [step.digit for step in steps] + ([self.next_carry(steps[-1])] if self.last else [])
        return put[::-1] if self.side == "left" else put

    def apply(self, x: Sequence[int], y: Sequence[int]) -> list[int]:
        """The rule's result for two lists of digits, most significant first."""
        return self.collect(self.steps(x, y))

    def with_part(self, part: str, value: object) -> ListRule:
        """The rule with one part exchanged; raises `CriError` for an unknown part or value."""
        if part not in PARTS:
            raise unknown_name("rule", part, PARTS)
        return replace(self, **{part: value})


PARTS: dict[str, tuple[object, ...]] = {
    "operation": get_args(Operation),
    "base": BASES,
    "carries": (True, False),
    "start": STARTS,
    "side": get_args(Side),
    "last": (True, False),
}
"""The values of each part of a rule."""
assert list(PARTS) == [f.name for f in fields(ListRule)]


def check_lists(x: Sequence[int], y: Sequence[int]) -> None:
    """Raises `CriError` unless both are lists of digits of one length."""
    if len(x) != len(y) or not x:
        raise CriError(f"lists: {list(x)} and {list(y)} are not two lists of one length")
    for digit in (*x, *y):
        if not 0 <= digit <= 9:
            raise out_of_range("lists", digit, "a digit")


@functools.cache
def all_rules() -> tuple[ListRule, ...]:
    """Every rule of the grammar; a rule's number is its place here."""
    return tuple(ListRule(*values) for values in product(*PARTS.values()))  # pyright: ignore[reportArgumentType]


@functools.cache
def rule_number(rule: ListRule) -> int:
    """The number of a rule (see `all_rules`)."""
    return all_rules().index(rule)


HELD_OUT_PAIRS: dict[tuple[str, int], Group] = {
    ("add", 5): "combination", ("max", 9): "combination", ("min", 10): "combination", ("sub", 6): "division",
    ("mul", 8): "division",
}  # fmt: skip
"""Operations and bases that no trained rule has together. Subtraction alone has negative totals, and multiplication
alone those above 22: without these rules nothing shows how to divide such totals by 6, or by 8."""


def kept_out(rule: ListRule) -> Group | None:
    """Why a rule is never trained on; None for a rule of the pool that training rules are drawn from. Of rules with two
    reasons the first of base, start, operation and base together."""
    if rule.base == HELD_OUT_BASE:
        return "base"
    if rule.start == HELD_OUT_START:
        return "start"
    return HELD_OUT_PAIRS.get((rule.operation, rule.base))


@functools.cache
def pool() -> tuple[int, ...]:
    """Numbers of the 480 rules that training rules are drawn from."""
    return tuple(i for i, rule in enumerate(all_rules()) if kept_out(rule) is None)
