"""The rules as functions, and the tracer against running the code."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.errors import CriError, UnknownNameError
from cri.formats.rules.language import parse_rule
from cri.formats.rules.task_rules import task_rule
from cri.formats.rules.tracer import trace_rule
from cri.formats.traces import Edit
from cri.tasks import TASKS, make_task
from cri.tasks.steps import digits
from cri.tasks.sums import add_digits

SETTINGS = settings(deadline=None, max_examples=60)
DIGITS = st.lists(st.integers(0, 9), max_size=5)


@SETTINGS
@given(st.sampled_from(sorted(TASKS)), st.integers(0, 10**6), st.integers(0, 10**6))
def test_rules_are_right_as_python(name: str, a: int, b: int):
    task = make_task(name)
    if name == "mod_addition":
        a, b = a % 113, b % 113
    if name == "chicken_rabbit":
        a, b = 2 * a + 4 * b, a + b
    rule, code = task_rule(task), task.rule
    returned = code.function(*rule.arguments(a, b), **code.constants)
    assert rule.answer(returned if isinstance(returned, tuple) else (returned,)) == task.answer(a, b)
    assert rule.run(a, b).result == returned


# --- rules of a user's own ---


def largest(items, low):
    """Docstrings and comments are no part of the source."""
    best = low
    position = -1
    for i in range(len(items)):
        if items[i] > best:  # strictly
            best = items[i]
            position = i
        elif items[i] == best and position < 0:
            position = 0
        else:
            low -= 1
    return [best, position, low]


def sorted_copy(items, low):
    out = list(items)
    done = len(out) < 2
    while not done:
        done = True
        for i in range(1, len(out)):
            if out[i - 1] > out[i]:
                small = out[i]
                out[i] = out[i - 1]
                out[i - 1] = small
                done = False
    return out, low


def early(items, low):
    while True:
        if not items or (len(items) == 1 and not low):
            return low
        first = items.pop(0) if items[0] < items[-1] else items.pop()
        low = (low + first) * 2 - (first - 3) % 7 // 2
        items[-1 if items else 0] *= 2 if low > 10 else -1


def truth_values(items, low):
    flag = low > 3 and items
    other = not flag
    if other:
        items.append(-low)
    return [flag, other, -low + -3, items[0] if items else low]


@SETTINGS
@given(st.sampled_from([largest, sorted_copy, early, truth_values]), DIGITS, st.integers(0, 9))
def test_tracing_is_running(function: Callable[..., object], items: list[int], low: int):
    before = copy.copy(items)
    try:
        expected = function(copy.copy(items), low)
    except IndexError:
        with pytest.raises(CriError, match=r"rule line \d+: .*index"):
            trace_rule(function, items, low)
        return
    trace = trace_rule(function, items, low)
    assert trace.result == expected
    assert items == before
    check_arithmetic(trace.text)


ALIASES = """
def aliases(items, low):
    other = items
    other += [low]
    items.insert(0, len(other))
    nested = [items, [low, True]]
    nested.append(other)
    items[0] -= 1
    other = other + [5]
    for x in items:
        if len(items) < 8:
            items.append(x)
    return nested, other
"""


@SETTINGS
@given(DIGITS, st.integers(0, 9))
def test_lists_alias_and_grow_as_in_python(items: list[int], low: int):
    names: dict[str, Callable[..., object]] = {}
    exec(ALIASES, names)
    assert trace_rule(ALIASES, items, low).result == names["aliases"](copy.copy(items), low)


def check_arithmetic(text: str) -> None:
    """Every `expression=value` that is written is true in Python."""
    for line in text.splitlines():
        for expression, value in re.findall(r"(?:^| )\w+=([\d()+*/%-]*\d)=(-?\d+)", line):
            assert eval(expression) == int(value)
        for expression, truth in re.findall(r"(?:^| |\()(-?\d+[<>=!]=?-?\d+) is (True|False)", line):
            assert str(eval(expression)) == truth


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> str:
    """Source of a random expression over x, y, z and items, every part in brackets."""
    form = draw(st.integers(0, 3 if depth else 0))
    if form == 0:
        return draw(st.sampled_from(["x", "y", "z", "0", "2", "10", "items[0]", "len(items)", "items.pop()", "True"]))
    inner = [draw(expressions(depth - 1)) for _ in range(form)]
    if form == 1:
        return f"({draw(st.sampled_from(['not ', '-']))}{inner[0]})"
    if form == 2:
        operator = draw(st.sampled_from(["+", "-", "*", "//", "%", "<", "==", ">=", "and", "or"]))
        return f"({inner[0]} {operator} {inner[1]})"
    return f"({inner[0]} if {inner[1]} else {inner[2]})"


@SETTINGS
@given(
    expressions(),
    expressions(),
    expressions(),
    st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.integers(0, 9), min_size=1),
)
def test_random_expressions(value: str, test: str, step: str, x: int, y: int, items: list[int]):
    """Values, side effects and errors of random expressions are Python's, as value, test and increment."""
    source = f"""
def rule(x, y, items):
    z = 1
    z = {value}
    if {test}:
        z += {step}
    elif z:
        z -= 1
    return [z, x, y, items]
"""
    names: dict[str, Callable[..., object]] = {}
    exec(source, names)
    try:
        expected = names["rule"](x, y, copy.copy(items))
    except (IndexError, ZeroDivisionError) as error:
        with pytest.raises(CriError, match=f"rule line .*{error}"):
            trace_rule(source, x, y, items)
        return
    trace = trace_rule(source, x, y, items)
    assert trace.result == expected
    check_arithmetic(trace.text)


def test_trace_of_a_small_rule():
    def count(n):
        total = 0
        for i in range(n):
            if i % 2 == 0:
                total += i
        return total

    assert trace_rule(count, 2).text.replace("```\n", "") == (
        "n=2\ntotal = 0\ntotal=0\n"
        "for i in range(n):\nn=2\nleft=range(0,2): enter the loop\ni=0\n"
        "if i % 2 == 0:\n0%2==0: enter the branch\ntotal += i\ntotal=0+0=0\n"
        "for i in range(n):\nleft=range(1,2): enter the loop\ni=1\n"
        "if i % 2 == 0:\n1%2==0: skip the branch\n"
        "for i in range(n):\nleft=range(2,2): end the loop\n"
        "return total\nreturn 0"
    )


def test_lines_know_their_iteration():
    lines = trace_rule(add_rule(), [2, 7], [5, 8]).lines
    assert [x.iteration for x in lines if x.text.startswith("total=")] == [0, 1]
    assert [x.iteration for x in lines if x.text == "while num1 or num2:\n"] == [0, 1, None]
    assert lines[0].iteration is lines[-1].iteration is None


def add_rule():
    return parse_rule(add_digits, base=10)


def test_edited_read_changes_the_variable():
    lines = trace_rule("def f(x):\n    y = [x]\n    y.append(4)\n    return y", 3).lines
    read = next(i for i, line in enumerate(lines) if line.kind == "reads" and "y" in line.elements)
    edited = trace_rule("def f(x):\n    y = [x]\n    y.append(4)\n    return y", 3, edit=Edit(read, "y[0]", "8"))
    assert edited.result == [8, 4]


UNSUPPORTED = [
    ("def f(x):\n    import os\n    return x", 2, "statement Import"),
    ("def f(x):\n    x = [i for i in x]\n    return x", 2, "expression ListComp"),
    ("def f(x):\n    y = x\n    return y ** 2", 3, "operator Pow"),
    ("def f(x):\n    return x / 2", 2, "operator Div"),
    ("def f(x):\n    x **= 2\n    return x", 2, "operator Pow"),
    ("def f(x):\n    return x[1:]", 2, "expression Slice"),
    ("def f(x):\n    return 0 < x < 3", 2, "chained comparison"),
    ("def f(x):\n    return 1 in x", 2, "comparison In"),
    ("def f(x):\n    return 'a'", 2, "constant 'a'"),
    ("def f(x):\n    return 1.5", 2, "constant 1.5"),
    ("def f(x):\n    print(x)\n    return x", 2, "expression as a statement"),
    ("def f(x):\n    return sum(x)", 2, "call of sum"),
    ("def f(x):\n    x.sort()\n    return x", 2, "method sort"),
    ("def f(x):\n    y = x.append(1)\n    return y", 2, "the value of append"),
    ("def f(x):\n    x[0].append(1)\n    return x", 2, "append of what is not a variable"),
    ("def f(x):\n    x.pop(0, 1)\n    return x", 2, "pop with these arguments"),
    ("def f(x):\n    y = z = 1\n    return x", 2, "assignment to several targets"),
    ("def f(x):\n    y, z = 1, 2\n    return x", 2, "assignment to"),
    ("def f(x):\n    len = 2\n    return x", 2, "assignment to len"),
    ("def f(x):\n    while x:\n        break\n    return x", 3, "statement Break"),
    ("def f(x):\n    while x:\n        x = 0\n    else:\n        x = 1\n    return x", 2, "else of a while loop"),
    ("def f(x):\n    for i, j in x:\n        x = 1\n    return x", 2, "loop target other than a name"),
    ("def f(x):\n    y = range(3)\n    return y", 2, "call of range"),
    ("def f(x):\n    return", 2, "return without a value"),
    ("def f(x):\n    def g():\n        return 1\n    return x", 2, "statement FunctionDef"),
    ("def f(x):\n    try:\n        x = 1\n    finally:\n        x = 2\n    return x", 2, "statement Try"),
    ("def f(x, y=1):\n    return x", 1, "parameters"),
    ("def f(*x):\n    return x", 1, "parameters"),
    ("@staticmethod\ndef f(x):\n    return x", 2, "decorator"),
    ("def f(x):\n    return x +", 2, "not valid Python"),
    ("def f(x):\n    return y", 2, "'y' is not a variable of the rule"),
]


@pytest.mark.parametrize(("source", "line", "construct"), UNSUPPORTED)
def test_unsupported_constructs_are_refused_by_line(source: str, line: int, construct: str):
    with pytest.raises(CriError, match=rf"^rule line {line}: .*{re.escape(construct)}") as raised:
        trace_rule(source, [1])
    assert "\n" not in str(raised.value)


def test_lines_of_functions_are_those_of_their_file():
    def bad(x):
        return x**2

    with pytest.raises(CriError, match=f"^rule line {bad.__code__.co_firstlineno + 1}: unsupported: operator Pow"):
        trace_rule(bad, 3)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("def f(x):\n    return x", [-1], "x: -1 is not allowed; must be non-negative"),
        ("def f(x):\n    return x", [[1, -2]], "x: -2 is not allowed; must be non-negative"),
        ("def f(x):\n    return x", [["12"]], "x: '12' is not allowed; must be an int, a bool or a list"),
        ("def f(x):\n    return x", [1, 2], "rule f: takes 1 arguments, not 2"),
        ("def f(x):\n    while x:\n        x *= x\n    return x", [9], "rule line 3: a number of more than"),
        ("def f(x):\n    while x:\n        x += x\n    return x", [[9]], "rule line 3: a list of more than"),
        ("def f(x):\n    if x:\n        return 1", [0], "rule f: ends without a return"),
        ("def f(x):\n    if x:\n        y = 1\n    return y", [0], "rule line 4: y has no value yet"),
        ("def f(x):\n    x.pop()\n    return x", [[]], "rule line 2: pop from empty list"),
        ("def f(x):\n    return x * 2", [[1]], r"rule line 2: \* of a list"),
        ("def f(x):\n    for i in x:\n        x = i\n    return x", [3], "rule line 2: cannot loop over 3"),
        ("x = 1", [], "rule: must be exactly one function"),
    ],
)
def test_rules_that_cannot_run(source: str, arguments: list, message: str):
    with pytest.raises(CriError, match=message):
        trace_rule(source, *arguments)


def test_loops_that_do_not_end():
    with pytest.raises(CriError, match="rule f: more than 300 statements; does the loop end"):
        trace_rule("def f(x):\n    while True:\n        x += 0\n    return x", 1, max_steps=300)


def test_constants():
    assert trace_rule(parse_rule(add_digits, base=7), digits(50, 7), digits(12, 7)).result == digits(62, 7)
    with pytest.raises(CriError, match="rule add_digits: give a value for base"):
        parse_rule(add_digits)
    with pytest.raises(UnknownNameError, match="constant of rule add_digits: unknown 'basis'; choose from base"):
        parse_rule(add_digits, basis=7)
    with pytest.raises(CriError, match="rule line 2: the constant k is assigned"):
        parse_rule("def f(x, *, k):\n    k = 2\n    return x", k=1)


def test_edited_source_is_another_rule():
    """How a study changes a rule: its source is a rule again."""
    source = add_rule().source
    assert trace_rule(source, [2, 7], [5, 8]).result == [8, 5]
    assert trace_rule(source.replace("digit2 + carry", "digit2 + 1"), [2, 7], [5, 8]).result == [8, 6]
