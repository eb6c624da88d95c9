"""A rule over digit lists as text in the prompt, and its execution as a trace.

The text is a short Python program over `pairs`, in which each value of the rule's six parts is one token, between
pieces that never change (`pieces`). All texts have equally many tokens, so that any part can be edited, cut off or
patched at its place. The trace has a line of seven numbers for each place of the lists (`ListStep`), then the result:

    put = out.appendleft                          x 4 7 y 2 8
    carry = 1                                     7 8 15 1 16 1 6
    for a, b in pairs:                            4 2 6 1 7 0 7
        total = carry + add(a, b)                 = 0 7 6
        tens, digit = divmod(total, 10)
        if True: carry = tens
        put(digit)
    if True: put(carry)
"""

from __future__ import annotations

import random
import re

from cri.errors import CriError
from cri.formats.traces import Edit, TraceLine, TraceWriter
from cri.tasks.list_rules import PARTS, ListRule, ListStep, all_rules, rule_number
from cri.tasks.steps import Step

_WORDS = {"side": {"left": "appendleft", "right": "append"}}
_PIECES = (
    "put = out.", "side", "\ncarry =", "start", "\nfor a, b in pairs:\n    total = carry +", "operation",
    "(a, b)\n    tens, digit = divmod(total,", "base", ")\n    if", "carries", ": carry = tens\n    put(digit)\nif",
    "last", ": put(carry)\n",
)  # fmt: skip
"""The text in order; names of parts stand for their values."""
PLACES = {part: _PIECES.index(part) for part in PARTS}
"""Which token of the text holds the value of each part."""
LOWEST, HIGHEST = -12, 101
"""What a rule's execution can write: 0 - 9 with a carry of -3, and 9 times 9 with one of 20, in base 5."""
STEP_ELEMENTS = {"a": "copy", "b": "copy", "value": "digit", "carry": "carry", "total": "digit", "tens": "digit",
                 "digit": "digit"}  # fmt: skip
_IDS = 32
_SEED = 2402


def _word(part: str, value: object) -> str:
    return _WORDS[part][str(value)] if part in _WORDS else f" {value}"


def pieces(rule: ListRule) -> list[str]:
    """The rule's text, token by token."""
    return [_word(piece, getattr(rule, piece)) if piece in PARTS else piece for piece in _PIECES]


def rule_text(rule: ListRule) -> str:
    """The rule as a program."""
    return "".join(pieces(rule))


_PATTERN = re.compile("".join(f"(?P<{p}>.*?)" if p in PARTS else re.escape(p) for p in _PIECES))


def parse_rule_text(text: str) -> ListRule:
    """Inverse of `rule_text`; raises `CriError` for a text that is no rule of the grammar."""
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise CriError(f"rule: {text.strip()[:80]!r} is no rule of the grammar (cri.formats.rules.stated)")
    chosen: dict[str, object] = {}
    for part, values in PARTS.items():
        by_word = {_word(part, value): value for value in values}
        if found[part] not in by_word:
            words = ", ".join(word.strip() for word in by_word)
            raise CriError(f"rule.{part}: {found[part].strip()!r} is not allowed; must be one of {words}")
        chosen[part] = by_word[found[part]]
    return ListRule(**chosen)  # pyright: ignore[reportArgumentType]


def scrambled_text(rule: ListRule) -> str:
    """A control: the same tokens in an order drawn for each rule."""
    return "".join(random.Random(f"{_SEED} order {rule_number(rule)}").sample(pieces(rule), len(_PIECES)))


def shuffled_text(rule: ListRule, key: str) -> str:
    """A control: the text of another rule, drawn for each case (`key`), so that it says nothing about the trace."""
    other = random.Random(f"{_SEED} other {key}").randrange(len(all_rules()) - 1)
    own = rule_number(rule)
    return rule_text(all_rules()[other + (other >= own)])


def rule_id(rule: ListRule) -> str:
    """A control: an opaque name of the rule, two numbers drawn without regard to its parts."""
    order = random.Random(f"{_SEED} ids").sample(range(len(all_rules())), len(all_rules()))
    high, low = divmod(order[rule_number(rule)], _IDS)
    return f"rule {high} {low}\n"


def stated_atoms() -> list[str]:
    """What is one token: the text's pieces, its values, and numbers with the space before them."""
    values = [_word(part, value) for part, of_part in PARTS.items() for value in of_part]
    numbers = [f" {n}" for n in range(LOWEST, HIGHEST + 1)]
    return list(dict.fromkeys([*(p for p in _PIECES if p not in PARTS), *values, *numbers]))


def stated_trace(rule: ListRule, x: list[int], y: list[int], edit: Edit | None = None) -> list[TraceLine]:
    """The lines of the rule's execution. With an `edit`, what follows from a changed element of a step, or of the
    result (`item1`, ...). Raises `CriError` for lists that are none, and for an edit that is none of a number."""
    writer, made, carry = TraceWriter(edit), [], rule.start
    for n, own in enumerate(rule.steps(x, y)):
        made.append(_write_step(writer, rule, own.a, own.b, carry))
        carry = rule.next_carry(made[-1])
        step = Step(rule.operation, own.a, own.b, made[-1].carry)
        writer.end_line("step", step, executes=True, iteration=n)
    writer.put("=")
    for n, value in enumerate(rule.collect(made)):
        writer.put(" ")
        writer.element(f"item{n + 1}", str(value), "answer")
    writer.end_line("answer", last=True)
    return writer.finish()


def _write_step(writer: TraceWriter, rule: ListRule, a: int, b: int, carry: int) -> ListStep:
    """Writes a step's line; what is worked out goes on from what was written, edited or not."""

    def put(name: str, value: int) -> int:
        writer.put(" ")
        text = writer.element(name, str(value), STEP_ELEMENTS[name])
        try:
            return int(text)
        except ValueError:
            raise CriError(f"edit.text: {text!r} is not a whole number") from None

    a, b = put("a", a), put("b", b)
    value = put("value", rule.step(a, b, 0).value)
    carry = put("carry", carry)
    total = put("total", value + carry)
    tens = put("tens", total // rule.base)
    return ListStep(a, b, value, carry, total, tens, put("digit", total % rule.base))


def read_result(text: str) -> str | None:
    """The result that a finished trace states on its last line, None where it states none."""
    found = re.fullmatch(r"=((?: -?\d+)+)", text.rpartition("\n")[2])
    return None if found is None else found[1].lstrip()
