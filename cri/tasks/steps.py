"""Rule steps: single applications of a rule to digits, and the steps that whole calculations take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cri.errors import out_of_range


class Step(NamedTuple):
    """One application of a rule, independent of the place at which it is applied.

    `op` is `add` (x + y + carry), `sub` (x - y + carry, carry 0 or -1), `mul` (x * y + carry),
    `halve` (carry * base + x, floor-divided by 2) or `compare` (x >= y as whole numbers, carry 0).
    `x` and `y` are digits (None where a number has no digit left).
    """

    op: str
    x: int | None
    y: int | None
    carry: int


def digits(value: int, base: int = 10) -> list[int]:
    """Digits of a non-negative `value`, most significant first; 0 is `[0]`."""
    if value < 0:
        raise out_of_range("value", value, "a non-negative integer")
    out = [value % base]
    while value := value // base:
        out.append(value % base)
    return out[::-1]


def to_base(value: int, base: int) -> str:
    """`value` printed in `base` (2 to 10)."""
    return "".join(map(str, digits(value, base)))


def _columns(x: Sequence[int], y: Sequence[int]) -> Iterator[tuple[int | None, int | None]]:
    """Digit pairs from the units upwards, None where the shorter number has ended."""
    for i in range(max(len(x), len(y))):
        yield (x[-1 - i] if i < len(x) else None), (y[-1 - i] if i < len(y) else None)


def add_steps(a: int, b: int, base: int = 10) -> list[Step]:
    """Column addition of two numbers, units first."""
    steps, carry = [], 0
    for x, y in _columns(digits(a, base), digits(b, base)):
        steps.append(Step("add", x, y, carry))
        carry = ((x or 0) + (y or 0) + carry) // base
    return steps


def sub_steps(a: int, b: int, base: int = 10) -> list[Step]:
    """Column subtraction a - b >= 0, units first; a borrow is a carry of -1."""
    steps, carry = [], 0
    for x, y in _columns(digits(a, base), digits(b, base)):
        steps.append(Step("sub", x, y, carry))
        carry = ((x or 0) - (y or 0) + carry) // base
    return steps


def mul_steps(a: int, factor: int, base: int = 10) -> list[Step]:
    """Short multiplication of a number by a one-digit factor, units first."""
    steps, carry = [], 0
    for x in reversed(digits(a, base)):
        steps.append(Step("mul", x, factor, carry))
        carry = (x * factor + carry) // base
    return steps


def halve_steps(a: int, base: int = 10) -> list[Step]:
    """Short division of an even number by two, most significant digit first."""
    steps, carry = [], 0
    for x in digits(a, base):
        steps.append(Step("halve", x, 2, carry))
        carry = (carry * base + x) % 2
    return steps
