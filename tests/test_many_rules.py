"""The grammar of rules over digit lists, its texts and traces, and the door through which a run trains on them."""

from __future__ import annotations

import random
import re
from collections import Counter, deque
from operator import add, mul, sub

import numpy as np
import pytest

from cri.config import RunConfig
from cri.data.splits import make_split
from cri.errors import CriError
from cri.formats import STATED, make_format
from cri.formats.rules.stated import HIGHEST, LOWEST, PLACES, parse_rule_text, pieces, rule_text, stated_trace
from cri.formats.traces import Edit, element_text, join
from cri.tasks import make_task
from cri.tasks.list_rules import HELD_OUT_PAIRS, PARTS, ListRule, all_rules, kept_out, pool, rule_number
from cri.tasks.many_rules import pack, sample_lists, unpack
from cri.training.setup import prepare

TASK = make_task("many_rules", rules=16, examples=160, fresh=2)
CONFIG = RunConfig(
    task="many_rules", task_params={"rules": 16, "examples": 160, "fresh": 2}, format="stated_rule", split="rules",
    model="nano-rope",
)  # fmt: skip


def executed(text: str, x: list[int], y: list[int]) -> list[int]:
    """What Python makes of a rule's text."""
    out: deque[int] = deque()
    names = {"out": out, "pairs": list(zip(x, y, strict=True))[::-1], "add": add, "mul": mul, "sub": sub}
    exec(text, names)
    return list(out)


def some_lists(n: int, seed: int) -> list[tuple[list[int], list[int]]]:
    return [unpack(b) for b in sample_lists(n, 3, f"test {seed}")]


def test_every_rule_does_what_python_makes_of_its_text():
    for i, rule in enumerate(all_rules()):
        for x, y in [*some_lists(6, i), ([9, 9, 9], [9, 9, 9]), ([0, 0], [9, 9])]:
            expected = executed(rule_text(rule), x, y)
            assert rule.apply(x, y) == expected, (rule, x, y)
            assert join(stated_trace(rule, x, y)).rpartition("= ")[2] == " ".join(map(str, expected))


def test_rules_differ_and_are_told_apart_by_answers():
    lists = some_lists(600, 0)
    assert len(all_rules()) == 960
    # the carry of max or min in base 10 that starts at 0 stays 0, kept or not: eight pairs of rules are one
    assert len({tuple(tuple(rule.apply(x, y)) for x, y in lists) for rule in all_rules()}) == 952


def test_texts_are_read_back_and_each_value_is_one_token():
    tokenizer = prepare(CONFIG).tokenizer
    for rule in all_rules():
        text = rule_text(rule)
        assert parse_rule_text(text) == rule
        assert tokenizer.tokenize(text) == pieces(rule)
    rule = ListRule()
    for part, values in PARTS.items():
        for value in values:
            edited = pieces(rule.with_part(part, value))
            differs = [i for i, (p, q) in enumerate(zip(edited, pieces(rule), strict=True)) if p != q]
            assert differs == ([PLACES[part]] if value != getattr(rule, part) else [])


def test_a_trace_by_hand():
    rule = ListRule("add", 10, carries=True, start=1, side="left", last=True)
    assert join(stated_trace(rule, [4, 7], [2, 8])) == " 7 8 15 1 16 1 6\n 4 2 6 1 7 0 7\n= 0 7 6"
    other = ListRule("sub", 5, carries=False, start=3, side="right", last=True)
    assert join(stated_trace(other, [1, 9], [8, 2])) == " 9 2 7 3 10 2 0\n 1 8 -7 3 -4 -1 1\n= 0 1 3"


def test_what_follows_an_edit_of_a_trace():
    rule = ListRule("add", 10, carries=True, start=0, side="left", last=True)
    lines = stated_trace(rule, [4, 7], [2, 8], Edit(0, "tens", "5"))
    assert join(lines) == " 7 8 15 0 15 5 5\n 4 2 6 5 11 1 1\n= 1 1 5"
    lines = stated_trace(rule, [4, 7], [2, 8], Edit(1, "value", "9"))
    assert element_text(lines[1], "total") == "10"
    with pytest.raises(CriError, match=r"edit\.text: 'x' is not a whole number"):
        stated_trace(rule, [4, 7], [2, 8], Edit(1, "value", "x"))
    with pytest.raises(CriError, match=r"edit\.element of line 0: unknown 'sum'"):
        stated_trace(rule, [4, 7], [2, 8], Edit(0, "sum", "1"))


def test_held_out_rules_are_what_their_group_says():
    trained = [all_rules()[i] for i in pool()]
    assert len(trained) == 480
    assert {r.base for r in trained} == {5, 6, 8, 9, 10}
    assert {r.start for r in trained} == {0, 1, 3}
    assert not {(r.operation, r.base) for r in trained} & set(HELD_OUT_PAIRS)
    combinations = [r for r in all_rules() if kept_out(r) == "combination"]
    for rule in combinations:  # each value is in the pool, the pair is not
        assert any(r.operation == rule.operation for r in trained)
        assert any(r.base == rule.base for r in trained)
    # but for the held-out pair, every pair of values that a combination has stands in the pool
    names = list(PARTS)
    pairs = {(p, getattr(r, p), q, getattr(r, q)) for r in trained for p in names for q in names}
    for rule in combinations:
        for p in names:
            for q in names:
                if {p, q} != {"operation", "base"}:
                    assert (p, getattr(rule, p), q, getattr(rule, q)) in pairs


def test_combinations_need_no_division_that_is_not_trained():
    lists = [(x, y) for seed in range(8) for x, y in some_lists(60, seed)] + [([9, 9, 9], [9, 9, 9])]
    trained = {(s.total, r.base) for i in pool() for r in [all_rules()[i]] for x, y in lists for s in r.steps(x, y)}
    for group, covered in (("combination", True), ("division", False)):
        rules = [r for r in all_rules() if kept_out(r) == group]
        needed = {(s.total, r.base) for r in rules for x, y in lists for s in r.steps(x, y)}
        assert (needed <= trained) == covered


def test_cases_groups_and_split():
    split = make_split(TASK, "rules")
    assert len(set(TASK.operands)) == TASK.n_cases
    assert split.train.sum() == 160
    assert Counter(TASK.groups[~split.train].tolist()) == {
        "trained": 32, "rule": 200, "combination": 144, "division": 96, "start": 200, "base": 200
    }  # fmt: skip
    assert set(TASK.groups[split.train]) == {"trained"}
    assert (np.bincount(TASK.coords[split.train, 0])[list(TASK.order[:16])] == 10).all()
    more = make_task("many_rules", rules=64, examples=640, fresh=2)
    assert more.order[:16] == TASK.order[:16]
    assert more.asked["rule"] == TASK.asked["rule"]
    assert not set(more.asked["trained"]) & set(more.asked["rule"])
    only = make_task("many_rules", rules=1, examples=4000)
    assert make_split(only, "rules").train.sum() == 4000


def test_prompts_hold_the_rule_or_hide_it():
    a, b = TASK.operands[0]
    rule, question = TASK.rule_of(a), TASK.question(a, b)
    prompts = {name: fmt.prompt(TASK, a, b) for name, fmt in STATED.items()}
    assert all(prompt.endswith(question) for prompt in prompts.values())
    assert prompts["stated_rule"] == rule_text(rule) + question
    other = parse_rule_text(prompts["shuffled_rule"].removesuffix(question))
    assert other != rule
    assert len({STATED["shuffled_rule"].prompt(TASK, a, b).splitlines()[0:2][0] for a, b in TASK.operands}) > 1
    tokens = prepare(CONFIG).tokenizer.tokenize
    scrambled = prompts["scrambled_rule"].removesuffix(question)
    tokenizer = prepare(CONFIG.replace(format="scrambled_rule")).tokenizer
    assert sorted(tokenizer.tokenize(scrambled)) == sorted(tokens(rule_text(rule)))
    assert scrambled != rule_text(rule)
    ids = {STATED["rule_id"].prompt(TASK, i, b).removesuffix(question) for i in range(len(all_rules()))}
    assert len(ids) == 960
    assert all(re.fullmatch(r"rule \d+ \d+\n", text) for text in ids)
    # the name says nothing of the rule's parts: its numbers are no more like those of a rule that differs in one part
    assert prompts["rule_id"] != STATED["rule_id"].prompt(TASK, rule_number(rule.with_part("side", "right")), b)


def test_answers_are_read_back():
    fmt = make_format("stated_rule")
    for a, b in TASK.operands[:40]:
        text = fmt.completion(TASK, a, b)
        assert fmt.read_answer(TASK, text) == TASK.answer(a, b)
        assert fmt.read(TASK, a, b, text, finished=True).status == "right"
    assert fmt.read_answer(TASK, " 1 2 3 0 3 0 3\n") is None
    wrong = text.replace("= ", "= 5 ")
    assert fmt.read(TASK, a, b, wrong, finished=True).status == "wrong"


def test_pairs_of_lists_are_whole_numbers():
    rng = random.Random(0)
    for n in range(1, 5):
        x, y = ([rng.randrange(10) for _ in range(n)] for _ in "xy")
        assert unpack(pack(x, y)) == (x, y)
    for b in (5, 99, 1234, 2123):
        with pytest.raises(CriError, match=f"b: {b} stands for no two lists"):
            unpack(b)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"rules": 480}, "rules: 480 is not allowed; must be in 1..479"),
        ({"rules": 0}, "rules: 0 is not allowed; must be in 1..479"),
        ({"rules": 64, "examples": 10}, "examples: 10 is not allowed; must be at least rules=64"),
        ({"rules": 1, "digits": 2, "examples": 6000}, "examples: 6000 is not allowed; must be at most 5045"),
        ({"digits": 9}, "digits: 9 is not allowed; must be in 2..6"),
        ({"digits": "3"}, "digits: '3' is not allowed"),
        ({"ruls": 3}, "parameter of task many_rules: unknown 'ruls'"),
    ],
)
def test_bad_parameters_are_named(params, said):
    with pytest.raises(CriError, match=re.escape(said)):
        make_task("many_rules", **params)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("base", 11, "rule.base: 11 is not allowed; must be one of 5, 6, 7, 8, 9, 10"),
        ("base", True, "rule.base: True is not allowed"),
        ("carries", 1, "rule.carries: 1 is not allowed; must be one of True, False"),
        ("operation", "div", "rule.operation: 'div' is not allowed; must be one of add, sub, mul, max, min"),
        ("modulus", 5, "rule: unknown 'modulus'; choose from operation, base, carries, start, side, last"),
    ],
)
def test_a_rule_outside_the_grammar_is_refused(part, value, said):
    with pytest.raises(CriError, match=re.escape(said)):
        ListRule().with_part(part, value)


def test_a_text_outside_the_grammar_is_refused():
    text = rule_text(ListRule())
    with pytest.raises(CriError, match=r"rule\.base: '12' is not allowed; must be one of 5, 6, 7, 8, 9, 10"):
        parse_rule_text(text.replace("total, 10", "total, 12"))
    with pytest.raises(CriError, match="is no rule of the grammar"):
        parse_rule_text(text.replace("carry = tens", "carry = total"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "addition", "task_params": {}, "split": "random"}, "stated_rule needs the task many_rules"),
        ({"task": "addition", "task_params": {}}, "split: rules needs the task many_rules, not addition"),
        ({"split": "square"}, "many_rules has no main square; use split rules"),
        ({"format": "scratchpad"}, "format: task many_rules has no scratchpad"),
        ({"format": "rfft"}, "format: task many_rules has no rule"),
        ({"positions": "structured"}, "positions: the format stated_rule has no lists"),
    ],
)
def test_runs_that_cannot_be_are_refused(changes, said):
    with pytest.raises(CriError, match=said):
        prepare(CONFIG.replace(**changes))


def test_all_that_any_rule_can_write_has_a_token():
    tokenizer = prepare(CONFIG).tokenizer
    written = set()
    for rule in all_rules():
        carries = {rule.start}
        while True:  # all carries that any lists lead to
            steps = [rule.step(a, b, carry) for carry in carries for a in range(10) for b in range(10)]
            more = carries | {rule.next_carry(step) for step in steps}
            if more == carries:
                break
            carries = more
        written |= carries | {n for step in steps for n in step}
    assert (min(written), max(written)) == (LOWEST, HIGHEST)
    assert all(len(tokenizer.tokenize(f" {n}")) == 1 for n in range(LOWEST, HIGHEST + 1))
    assert tokenizer.unk_token not in tokenizer.tokenize("".join(f" {n}" for n in range(LOWEST, HIGHEST + 1)))
