"""Settings and presets of `cri.studies.in_context`."""

from __future__ import annotations

from dataclasses import dataclass

from cri.errors import CriError, out_of_range, unknown_name
from cri.options import StudyOptions

NAME = "in_context"
LARGEST = 100
"""Grid size up to which every case is compared with every question asked: operands of two digits."""
RELATED = ("near", "mirror", "same_answer", "other_tens", "same_operand", "same_step", "far")
"""Kinds of example by their relation to the question (`cri.data.context_cases.KINDS`)."""
DRAWN = ("random", "near_shuffled")
"""Kinds that are drawn from others: any case but the question; near cases whose answers are exchanged among them."""


@dataclass(frozen=True)
class InContext(StudyOptions):
    """Which model, and which examples before which questions of addition."""

    model: str = "smollm2-135m"
    """A folder written by save_pretrained, `smollm2-135m`, or a hub id."""
    kinds: tuple[str, ...] = (
        "far", "random", "near", "near_shuffled", "mirror", "same_answer", "other_tens", "same_operand", "same_step",
    )  # fmt: skip
    """Kinds of example, each in prompts of its own."""
    k: tuple[int, ...] = (2, 8)
    """Examples in a prompt; prompts without any are asked as well."""
    questions: int = 64
    """Questions asked, the same for all kinds."""
    mixed: tuple[str, ...] = ("near", "other_tens", "same_answer", "same_step", "far")
    """Kinds that stand in one prompt together, where examples are removed, exchanged and hidden."""
    per_kind: int = 2
    """Examples of each of these kinds."""
    explained: int = 12
    """Questions of which that is done, the first ones."""
    size: int = 100
    """Grid size of addition, at most 100."""
    smallest: int = 10
    """Least operand of questions and examples."""
    radius: int = 2
    """Distance within which examples are near."""
    far: int = 10
    """Distance from which on examples are of another kind."""
    seed: int = 0
    name: str = "smollm2-135m"
    """Names the folder of tables and the figure."""

    def __post_init__(self) -> None:
        for field, values, valid in (("kinds", self.kinds, (*RELATED, *DRAWN)), ("mixed", self.mixed, RELATED)):
            for value in values:
                if value not in valid:
                    raise unknown_name(field, value, valid)
        for field, value in (("k", min(self.k, default=1)), ("per_kind", self.per_kind), ("radius", self.radius)):
            if value < 1:
                raise out_of_range(field, value, "at least 1")
        if not 1 <= self.explained <= self.questions:
            raise out_of_range("explained", self.explained, f"in 1..questions={self.questions}")
        if not 2 <= self.size <= LARGEST:
            raise out_of_range("size", self.size, f"in 2..{LARGEST}")
        if not 0 <= self.smallest < self.size:
            raise out_of_range("smallest", self.smallest, f"in 0..size-1={self.size - 1}")
        if self.far <= self.radius:
            raise out_of_range("far", self.far, f"more than radius={self.radius}")
        if self.per_kind * len(self.mixed) < 2:
            raise CriError("mixed: one example in a prompt leaves no others to compare it with; give two kinds or more")

    @property
    def needed(self) -> dict[str, int]:
        """How many cases of each kind a question must have."""
        longest = max(self.k)
        own = {kind: longest for kind in self.kinds if kind in RELATED}
        if "near_shuffled" in self.kinds:
            own["near"] = longest
        for kind in self.mixed:  # as many again to exchange them for
            own[kind] = max(own.get(kind, 0), 2 * self.per_kind)
        own["far"] = max(own.get("far", 0), self.per_kind * (len(self.mixed) + 1))
        return own


PRESETS: dict[str, InContext] = {
    "smollm2": InContext(),
    "test": InContext(
        kinds=("far", "near", "near_shuffled", "random"), k=(2,), questions=3, mixed=("near", "same_answer", "far"),
        explained=2, size=30, smallest=0, name="test",
    ),
}  # fmt: skip
