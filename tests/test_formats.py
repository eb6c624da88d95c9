"""Formats against the public data, against Python's arithmetic, and against injected deviations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cri.data.splits import make_split
from cri.data.step_coverage import step_coverage
from cri.data.tokenization import build_tokenizer, encode_texts
from cri.errors import CriError, UnknownNameError
from cri.formats import FORMATS, make_format
from cri.formats.rules.task_rules import task_rule
from cri.formats.traces import Edit, TraceLine, join
from cri.tasks import TASKS, Task, make_task

ROWS = [json.loads(line) for line in (Path(__file__).parent / "reference_cases.jsonl").read_text().splitlines()]
SETTINGS = settings(deadline=None, max_examples=40)
PARAMS: dict[str, list[dict[str, int]]] = {
    "addition": [{}],
    "base_addition": [{}, {"base": 2}, {"base": 7}],
    "mod_addition": [{}, {"modulus": 1000}, {"size": 7, "modulus": 7}],
    "linear_regression": [{}, {"slope_a": 3, "slope_b": 9, "intercept": 125}, {"slope_b": 1, "intercept": 0}],
    "chicken_rabbit": [{}],
}


@st.composite
def cases(draw: st.DrawFn, large: bool = True) -> tuple[Task, int, int]:
    """A task with the paper's or other parameters, and operands beyond the grid too."""
    name = draw(st.sampled_from(sorted(TASKS)))
    task = make_task(name, **draw(st.sampled_from(PARAMS[name])))
    numbers = st.integers(0, 99) | st.integers(0, 10**6) if large else st.integers(0, 99)
    a, b = draw(numbers), draw(numbers)
    if name == "mod_addition":
        a, b = a % getattr(task, "modulus"), b % getattr(task, "modulus")  # noqa: B009
    if name == "chicken_rabbit":
        a, b = 2 * a + 4 * b, a + b
    return task, a, b


FORMAT = st.sampled_from([make_format(name) for name in FORMATS])


def line_of(lines: list[TraceLine], position: int) -> int:
    return next(i for i, line in enumerate(lines) if position < line.stop)


@pytest.mark.parametrize(("task_name", "fmt_name"), sorted({(r["task"], r["format"]) for r in ROWS}))
def test_public_rows(task_name: str, fmt_name: str):
    task, fmt = make_task(task_name), make_format(fmt_name)
    rows = [r for r in ROWS if (r["task"], r["format"]) == (task_name, fmt_name)]
    assert len(rows) == 30
    for row in rows:
        assert fmt.prompt(task, row["a"], row["b"]) == row["question"]
        assert fmt.completion(task, row["a"], row["b"]) == row["answer"]


def test_scratchpads_of_our_own():
    fmt = make_format("scratchpad")
    linear = "84*2=,84*2,,C:0,8*2,8,C:0,*2,68,C:1,*2,168,C:0,168,8+168=,8+168,,C:0,+16,6,C:1,+1,76,C:0,+,176,C:0,176"
    assert fmt.completion(make_task("linear_regression"), 8, 84).replace("\n", ",").startswith(linear)
    assert fmt.completion(make_task("chicken_rabbit"), 156, 42).splitlines() == [
        "156/2=", "156/2,,C:0", "56/2,0,C:1", "6/2,07,C:1", "/2,078,C:0", "78",
        "78-42=", "78-42,,C:0", "7-4,6,C:0", "-,36,C:0", "36",
        "42-36=", "42-36,,C:0", "4-3,6,C:-1", "-,06,C:0", "6",
        "There are 36 rabbits and 6 chickens.",
    ]  # fmt: skip


@SETTINGS
@given(cases(), FORMAT)
def test_traces(case: tuple[Task, int, int], fmt):
    task, a, b = case
    lines = fmt.trace(task, a, b)
    text = fmt.completion(task, a, b)
    assert join(lines) == text
    assert [line.start for line in lines] == [0, *(line.stop for line in lines[:-1])]
    for line in lines:
        assert text[line.start : line.stop] == line.text
        assert line.text.count("\n") == (line is not lines[-1])
        assert line.elements.keys() == line.roles.keys()
        for start, stop in line.elements.values():
            assert line.start <= start <= stop <= line.stop
    reading = fmt.read(task, a, b, text, finished=True)
    assert (reading.status, reading.answer, reading.first_deviation) == ("right", task.answer(a, b), None)
    if fmt.name != "direct":
        assert tuple(line.step for line in lines if line.executes) == task.steps(a, b)
        assert {line.step for line in lines} - {None} == set(task.steps(a, b))


@SETTINGS
@given(cases(), FORMAT, st.data())
def test_deviation_is_located_at_its_line(case: tuple[Task, int, int], fmt, data: st.DataObject):
    task, a, b = case
    lines = fmt.trace(task, a, b)
    text = join(lines)
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from("0123456789x,=\n"))
    assume(character != text[position])
    reading = fmt.read(task, a, b, text[:position] + character + text[position + 1 :], finished=True)
    expected = line_of(lines, position)
    assert (reading.first_deviation, reading.step) == (expected, lines[expected].step)
    assert reading.error is not None
    hits = {name for name, (start, stop) in lines[expected].elements.items() if start <= position < stop}
    if hits and character.isdigit():
        assert reading.error in {lines[expected].roles[name] for name in hits} | {"loop_count"}


@SETTINGS
@given(cases(), FORMAT, st.data())
def test_cut_off_text_is_truncated_and_follows(case: tuple[Task, int, int], fmt, data: st.DataObject):
    task, a, b = case
    text = fmt.completion(task, a, b)
    cut = text[: data.draw(st.integers(0, len(text)))]
    reading = fmt.read(task, a, b, cut, finished=False)
    assert (reading.status, reading.first_deviation) == ("truncated", None)
    if cut != text:
        assert fmt.read(task, a, b, cut, finished=True).first_deviation == line_of(fmt.trace(task, a, b), len(cut))


@pytest.mark.parametrize(
    ("fmt_name", "old", "new", "status", "error"),
    [
        ("direct", "85", "86", "wrong", "answer"),
        ("direct", "85", "8", "wrong", "answer"),
        ("direct", "85", "855", "wrong", "answer"),
        ("direct", "85", "85.", "malformed", "stop"),
        ("direct", "85", "", "malformed", "stop"),
        ("scratchpad", "2+5,5,C:1", "2+5,5,C:0", "right", "carry"),
        ("scratchpad", "2+5,5,C:1", "2+5,6,C:1", "right", "digit"),
        ("scratchpad", "+,85,", "+,75,", "right", "digit"),
        ("scratchpad", "+,85,", "+,84,", "right", "copy"),
        ("scratchpad", "2+5,5", "1+5,5", "right", "copy"),
        ("scratchpad", "\n85", "\n95", "wrong", "answer"),
        ("scratchpad", "+,85,C:0\n", "", "right", "loop_count"),
        ("scratchpad", "\n85", "\n+,085,C:0\n085", "wrong", "loop_count"),
        ("scratchpad", "\n85", "\n85,", "malformed", "stop"),
        ("scratchpad", "\n85", "", "malformed", "stop"),
        ("rfft", "True: enter the loop", "True: end the loop", "right", "loop_count"),
        ("rfft", "True or True: enter", "False or True: enter", "right", "loop_count"),
        ("rfft", "False: skip the branch", "False: enter the branch", "right", "branch"),
        ("rfft", "carry=15//10=1", "carry=15//10=0", "right", "carry"),
        ("rfft", "total=7+8+0=15", "total=7+8+0=14", "right", "digit"),
        ("rfft", "total=7+8+0=15", "total=7+3+0=15", "right", "copy"),
        ("rfft", "num1=[2]\n", "num1=[7]\n", "right", "copy"),
        ("rfft", "\nif carry:", "\nreturn result", "right", "code"),
        ("rfft", "return [8,5]", "return [8,6]", "wrong", "answer"),
        ("rfft", "return [8,5]", "return [85]", "malformed", "answer"),
        ("rfft", "return [8,5]", "[8,5]", "malformed", "format"),
    ],
)
def test_reading_of_27_plus_58(fmt_name: str, old: str, new: str, status: str, error: str):
    task, fmt = make_task("addition"), make_format(fmt_name)
    text = fmt.completion(task, 27, 58)
    assert old in text
    reading = fmt.read(task, 27, 58, text.replace(old, new, 1), finished=True)
    assert (reading.status, reading.error) == (status, error)


def test_statuses():
    task, fmt = make_task("addition"), make_format("direct")
    assert fmt.read(task, 27, 58, "85", finished=False).status == "truncated"
    assert fmt.read(task, 27, 58, " 85\n", finished=True).status == "right"
    assert fmt.read(task, 27, 58, "085", finished=True).status == "wrong"
    farm = make_task("chicken_rabbit")
    assert fmt.read(farm, 14, 5, "There are 2 rabbits and 3 chickens.", finished=True).status == "right"
    assert fmt.read(farm, 14, 5, "There are 2 rabbits.", finished=True).status == "malformed"


@SETTINGS
@given(st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 8), st.integers(0, 9), st.data())
def test_edited_carry_is_carried_on(a: int, b: int, k: int, carry: int, data: st.DataObject):
    """What the rule makes of another carry after k + 1 digits, worked out with Python's integers."""
    task, power = make_task("addition"), 10 ** (k + 1)
    assume(max(a, b) >= 10**k)
    expected = (a // power + b // power + carry) * power + (a + b) % power
    fmt = make_format(data.draw(st.sampled_from(["scratchpad", "rfft"])))
    lines = fmt.trace(task, a, b)
    if fmt.name == "scratchpad":
        line = k + 1
    else:
        line = [i for i, x in enumerate(lines) if x.kind == "effects" and x.text.startswith("carry=")][k + 1]
    edited = fmt.trace(task, a, b, edit=Edit(line, "carry", str(carry)))
    assert edited[:line] == lines[:line]
    start, stop = edited[line].elements["carry"]
    assert join(edited)[start:stop] == str(carry)
    assert int(fmt.read_answer(task, join(edited)) or -1) == expected


@SETTINGS
@given(cases(large=False), FORMAT, st.data())
def test_edit_of_any_element(case: tuple[Task, int, int], fmt, data: st.DataObject):
    """An edit changes nothing before its element; writing the text that stands there changes nothing at all."""
    task, a, b = case
    lines = fmt.trace(task, a, b)
    index = data.draw(st.integers(0, len(lines) - 1))
    assume(lines[index].elements)
    name = data.draw(st.sampled_from(sorted(lines[index].elements)))
    start, stop = lines[index].elements[name]
    text = join(lines)[start:stop]
    assume(name != "answer" or lines[index].kind != "answer" or task.name != "chicken_rabbit")  # the whole sentence
    assert join(fmt.trace(task, a, b, edit=Edit(index, name, text))) == join(lines)
    if text.isdigit():
        other = text[:-1] + str((int(text[-1]) + 1) % 10)
        try:
            edited = fmt.trace(task, a, b, edit=Edit(index, name, other))
        except CriError:
            return  # the rule cannot go on with this value
        assert join(edited)[: start + len(other)] == join(lines)[:start] + other


@pytest.mark.parametrize("fmt_name", FORMATS)
def test_bad_edits(fmt_name: str):
    task, fmt = make_task("addition"), make_format(fmt_name)
    n = len(fmt.trace(task, 27, 58))
    with pytest.raises(CriError, match=rf"edit.line: {n} .* in 0..{n - 1}"):
        fmt.trace(task, 27, 58, edit=Edit(n, "carry", "1"))
    with pytest.raises(UnknownNameError, match=r"edit\.element of line 0: unknown 'colour'; choose from"):
        fmt.trace(task, 27, 58, edit=Edit(0, "colour", "1"))


@pytest.mark.parametrize(
    ("fmt_name", "line", "element", "text"),
    [("scratchpad", 1, "carry", "x"), ("scratchpad", 1, "digit", "12"), ("scratchpad", 0, "x", "a"),
     ("rfft", 0, "num1", "7"), ("rfft", 0, "num1[0]", "?"), ("rfft", 13, "decision", "leave")],
)  # fmt: skip
def test_illegal_texts(fmt_name: str, line: int, element: str, text: str):
    with pytest.raises(CriError, match=r"edit\.text"):
        make_format(fmt_name).trace(make_task("addition"), 27, 58, edit=Edit(line, element, text))


def test_edited_decision_is_obeyed():
    task, fmt = make_task("addition"), make_format("rfft")
    lines = fmt.trace(task, 27, 58)
    test = [i for i, line in enumerate(lines) if line.kind == "test"][1]
    edited = fmt.trace(task, 27, 58, edit=Edit(test, "decision", "end the loop"))
    assert join(edited).endswith("True: enter the branch\n```\nresult.insert(0, carry)\n```\nresult=[5], carry=1\n"
                                 "result=[1,5]\n```\nreturn result\n```\nreturn [1,5]")  # fmt: skip


@pytest.mark.parametrize("fmt_name", FORMATS)
@pytest.mark.parametrize("task_name", TASKS)
def test_refusals(task_name: str, fmt_name: str):
    for a, b in ((-1, 2), (2, -1)):
        with pytest.raises(CriError, match="-1 is not allowed; must be a non-negative integer"):
            make_format(fmt_name).trace(make_task(task_name), a, b)


def test_unknown_format():
    with pytest.raises(UnknownNameError, match="format: unknown 'cot'; choose from direct, scratchpad, rfft"):
        make_format("cot")


@settings(SETTINGS, max_examples=15)
@given(cases(), st.sampled_from(["number", "digit"]))
def test_rule_traces_as_tokens(case: tuple[Task, int, int], kind: str):
    """Encoding and decoding gives the trace back, code lines are one token, elements end at tokens."""
    task, a, b = case
    fmt = make_format("rfft")
    prompt, lines = fmt.prompt(task, a, b), fmt.trace(task, a, b)
    text = join(lines)
    tokenizer = build_tokenizer(kind, [prompt, text], fmt.atoms(task))
    ids = encode_texts(tokenizer, [prompt, text])
    pieces = [tokenizer.decode([i]) for i in ids[1]]
    assert "".join(pieces) == text
    assert {x.text.strip() for x in lines if x.kind == "code"} <= set(pieces)
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    for line in lines:
        for start, stop in line.elements.values():
            assert start in ends
            assert stop in ends
    assert set(task_rule(task).rule.code_lines) <= {tokenizer.decode([i]) for i in ids[0]}


def test_rule_traces_are_compact():
    task, fmt = make_task("addition"), make_format("rfft")
    text = fmt.completion(task, 123, 456)
    tokens = encode_texts(build_tokenizer("number", [text], fmt.atoms(task)), [text])[0]
    assert len(tokens) < 360


def test_prompt_shows_the_rule_and_its_constants():
    fmt = make_format("rfft")
    prompt = fmt.prompt(make_task("base_addition", base=7), 50, 3)
    assert prompt.startswith(
        "Follow the code step by step to answer the question:\n101+3=\ndef add_digits(num1, num2):\n"
    )
    assert "total % 7" in prompt
    assert "base" not in prompt
    assert "limit = [1, 1, 3]" in fmt.prompt(make_task("mod_addition"), 5, 3)
    linear = fmt.prompt(make_task("linear_regression"), 5, 3)
    assert "digit2 * 2" in linear
    assert "digit1 *" not in linear  # the slope of a is 1


@pytest.mark.parametrize(("half_side", "n_unseen"), [(5, 0), (10, 180), (15, 180), (20, 720)])
def test_step_coverage_of_addition(half_side: int, n_unseen: int):
    """Steps (tens pair, carry 1) that occur in the square alone: with h = 10 the pairs of 4 and 5, whose
    units carry in 45 of 100 cells each; with h = 5 none."""
    task = make_task("addition")
    split = make_split(task, "square", half_side=half_side)
    table = step_coverage(task, split)
    assert (table.loc[split.test, "n_unseen"] > 0).sum() == n_unseen
    assert table.index.tolist() == list(range(task.n_cases))


def test_step_coverage_by_column_of_addition():
    """In the column of tens, the pairs of 4 and 5 occur in the square alone, with a carry or without: 20 x 20 cases."""
    task = make_task("addition")
    split = make_split(task, "square")
    unseen = step_coverage(task, split, by_column=True)["n_unseen"].to_numpy() > 0
    assert unseen[split.test_ids].sum() == 400
    assert all(max(task.operands[i]) == 60 for i in split.test_ids[~unseen[split.test_ids]])


def test_step_coverage_by_hand():
    task = make_task("addition", size=12)
    split = make_split(task, "random", fraction=0.5, seed=1)
    table = step_coverage(task, split)
    for case in range(0, task.n_cases, 7):
        others = [s for i in split.train_ids.tolist() if i != case for s in task.case_steps[i]]
        counts = [others.count(step) for step in task.case_steps[case]]
        expected = [len(counts), counts.count(0), min(counts), sum(counts)]
        assert table.loc[case].tolist() == expected


def test_base_addition_as_published_repeats_the_last_state_line_in_564_cases():
    published, ours, task = (
        make_format("scratchpad_as_published"),
        make_format("scratchpad"),
        make_task("base_addition"),
    )
    different = [
        (a, b) for a, b in task.operands if published.completion(task, a, b) != ours.completion(task, a, b)
    ]  # fmt: skip
    assert len(different) == 564
    assert (0, 73) in different
    assert task.question(0, 73) == "0+81="
    assert published.completion(task, 0, 73) == "0+81,,C:0\n+8,1,C:0\n+,81,C:0\n+,81,C:0\n81"
    for a, b in different[::40]:
        lines = published.trace(task, a, b)
        text = join(lines)
        assert all(text[line.start : line.stop] == line.text for line in lines)
        assert lines[-2].text == lines[-3].text
        assert [line.step for line in lines if line.executes] == list(task.steps(a, b))
        start, stop = lines[-1].elements["answer"]
        assert text[start:stop] == task.answer(a, b)
        assert published.read(task, a, b, text, finished=True).status == "right"
        edited = published.trace(task, a, b, Edit(len(lines) - 3, "carry", "1"))
        assert edited[-1].text != lines[-1].text
        assert join(edited[-1:]) == join(
            published.trace(task, a, b, Edit(len(lines) - 1, "answer", edited[-1].text))[-1:]
        )
        with pytest.raises(CriError, match="repeats the one before it"):
            published.trace(task, a, b, Edit(len(lines) - 2, "carry", "1"))
    addition = make_task("addition")
    assert published.completion(addition, 99, 99) == ours.completion(addition, 99, 99)
