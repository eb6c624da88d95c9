"""Chickens and rabbits: from the legs and heads of a farm to its animals, asked and answered in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from cri.checks import check_memory
from cri.config import TrainConfig
from cri.tasks.base import BYTES_A_CASE, RuleCode, ScratchpadWriter, Task, require
from cri.tasks.registry import task
from cri.tasks.steps import Step, halve_steps, sub_steps

SENTENCE = "There are {} rabbits and {} chickens."


@task
class ChickenRabbit(Task):
    """Legs (a, even) and heads (b) of a farm -> how many rabbits and chickens.

    Ids run over heads (outer) and legs (inner); grid coordinates are (legs / 2, heads). The scratchpad calculates
    legs/2, minus heads (the rabbits), heads minus rabbits (the chickens), every block with its equation; then the
    answer's sentence.
    """

    name: ClassVar[str] = "chicken_rabbit"
    axis_names: ClassVar[tuple[str, str]] = ("legs / 2", "heads")
    color: ClassVar[str] = "#E69F00"
    answer_pattern: ClassVar[str] = r"There are \d+ rabbits and \d+ chickens\."
    square_sides: ClassVar[tuple[int, int]] = (5, 14)
    recipes: ClassVar[dict[str, TrainConfig]] = {
        "direct": TrainConfig(steps=5000, batch_size=128, lr=8e-3),
        "scratchpad": TrainConfig(steps=4000, batch_size=128, lr=4e-3),
    }
    small_grid: ClassVar[dict[str, int]] = {"size": 24, "half_side": 2}  # traces are the longest: 300 cases, not 400
    small_recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "direct": {"steps": 3000, "batch_size": 32, "lr": 4e-3},
        "scratchpad": {"steps": 2500, "batch_size": 16, "lr": 4e-3},
        "rfft": {"steps": 1500, "batch_size": 8, "lr": 4e-3},
    }

    size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 2, "size", self.size, "at least 2")
        check_memory("size", self.size, BYTES_A_CASE * self.size**2, f"a grid of {self.size**2:,} cases")

    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        return ((legs, heads) for heads in range(self.size) for legs in range(2 * heads, 4 * heads + 1, 2))

    def coordinates(self, a: int, b: int) -> tuple[int, int]:
        return a // 2, b

    @property
    def center(self) -> tuple[int, int]:
        return 7 * self.size // 10, self.size // 2

    def question(self, a: int, b: int) -> str:
        return (
            "Rabbits have 4 legs and 1 head. Chickens have 2 legs and 1 head. "
            f"There are {a} legs and {b} heads on the farm. How many rabbits and chickens are there?"
        )

    def value(self, a: int, b: int) -> int:
        return a // 2 - b

    def answer(self, a: int, b: int) -> str:
        return SENTENCE.format(a // 2 - b, 2 * b - a // 2)

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        rabbits = a // 2 - b
        return tuple(halve_steps(a) + sub_steps(a // 2, b) + sub_steps(b, rabbits))

    def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
        pairs = pad.result(pad.equation("/", str(a), "2"))
        rabbits = pad.result(pad.equation("-", pairs, str(b)))
        chickens = pad.result(pad.equation("-", str(b), rabbits))
        pad.sentence(SENTENCE, rabbits=rabbits, chickens=chickens)

    @property
    def rule(self) -> RuleCode:
        lists = ("pairs", "rabbits", "chickens")
        return RuleCode(count_rabbits_and_chickens, sentence=SENTENCE, answer_lists=lists)


def count_rabbits_and_chickens(legs: list[int], heads: list[int]) -> tuple[list[int], list[int]]:
    pairs = []
    carry = 0
    while legs:
        digit1 = legs.pop(0)
        total = carry * 10 + digit1
        pairs.append(total // 2)
        carry = total % 2
    while len(pairs) > 1 and pairs[0] == 0:
        pairs.pop(0)
    num1 = pairs
    num2 = list(heads)
    rabbits = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 - digit2 + carry
        rabbits.insert(0, total % 10)
        carry = total // 10
    while len(rabbits) > 1 and rabbits[0] == 0:
        rabbits.pop(0)
    num1 = heads
    num2 = list(rabbits)
    chickens = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 - digit2 + carry
        chickens.insert(0, total % 10)
        carry = total // 10
    while len(chickens) > 1 and chickens[0] == 0:
        chickens.pop(0)
    return rabbits, chickens
