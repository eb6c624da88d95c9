"""`rule_steps` on a model with structured positions, at longer numbers too, and on one that is told its rule."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

from cri import interventions as iv
from cri.config import RunConfig
from cri.errors import CriError
from cri.formats.traces import Edit, element_text
from cri.interventions.edits import CaseEdit, alternatives, check_text, element_kind, step_edits
from cri.interventions.stated_edits import carries, step_values
from cri.storage.compression import read_table
from cri.studies.rule_steps.config import PRESETS
from cri.studies.rule_steps.parts import answered, parts_of, solved_cases
from cri.studies.rule_steps.study import run as run_study
from cri.studies.rule_steps.tables import iia_table
from cri.tasks import make_task
from cri.tasks.list_rules import OPERATIONS, all_rules
from cri.tasks.many_rules import pack, sample_lists, unpack
from cri.training.runs import Run, load_run, train_run
from tests.test_positions import RFFT

LENGTHS = RFFT.replace(
    task_params={"per_length": 6, "max_digits": 2, "mixed": 1}, split_params={"train_max": 2, "test_fraction": 0.3},
    positions="structured", position_params={"reach": 2}, decoded=1, steps=3,
)  # fmt: skip
STATED = RunConfig(
    task="many_rules", task_params={"rules": 2, "examples": 40, "fresh": 1, "digits": 2}, format="stated_rule",
    split="rules", model="nano-rope",
).replace(steps=3, batch_size=8)  # fmt: skip


@pytest.fixture(scope="module")
def lengths(tmp_path_factory) -> Run:
    return load_run(train_run(LENGTHS, tmp_path_factory.mktemp("runs"), progress=False, evals=0))


@pytest.fixture(scope="module")
def stated(tmp_path_factory) -> Run:
    return load_run(train_run(STATED, tmp_path_factory.mktemp("runs"), progress=False, evals=0))


def test_parts_of_runs(lengths, stated):
    own, three, four = parts_of(lengths, (3, 4), 3)
    assert own.run is lengths
    assert own.held_out.tolist() == lengths.split.test_ids.tolist()
    for part, n_digits in ((three, 3), (four, 4)):
        task, n = part.run.task, lengths.task.n_cases
        assert part.label == f"length_addition, {n_digits} digits"
        assert not part.first
        assert part.held_out.tolist() == [n, n + 1, n + 2]
        assert not part.run.split.train[part.held_out].any()
        assert list(task.operands[:n]) == list(lengths.task.operands)
        for case in part.held_out:
            a, b = task.operands[case]
            assert len(str(max(a, b))) == n_digits
            row = part.run.tokens.ids[case, : part.run.tokens.lengths[case] - 1]
            expected = lengths.format.prompt(task, a, b) + lengths.format.completion(task, a, b)
            assert lengths.tokenizer.decode(row) == expected
        assert torch.equal(part.run.tokens[np.arange(n)].ids, lengths.tokens.ids)
    groups = parts_of(stated, (), 3)
    assert [part.label.split(", ")[1] for part in groups][:2] == ["trained rules", "rule rules"]
    assert sum(len(part.held_out) for part in groups) == len(stated.split.test_ids)
    assert [part.first for part in groups] == [True] + [False] * (len(groups) - 1)
    with pytest.raises(CriError, match=r"lengths: 2 is among the lengths of .*; must be above 2"):
        parts_of(lengths, (2,), 2)
    with pytest.raises(CriError, match="lengths: the numbers of addition have no lengths"):
        parts_of(dataclasses.replace(lengths, task=make_task("addition")), (7,), 2)


def test_cases_that_were_not_decoded_are_answered(lengths):
    asked = np.array([0, 7, 11])
    assert not set(asked) <= set(lengths.predictions["id"])
    run = answered(lengths, asked)
    assert set(asked) <= set(run.predictions["id"])
    assert run.predictions["id"].is_monotonic_increasing
    assert len(run.predictions.columns) == len(lengths.predictions.columns)
    assert solved_cases(run).shape == (run.task.n_cases,)
    assert answered(run, asked).predictions.equals(run.predictions)
    edits = iv.sample_edits(run.task, run.format, [1], ("carry",), tokenizer=run.tokenizer)
    assert set(iv.step_edits(lengths, edits)["own"]) == {None}  # of case 1 no text is known


def as_written(run, starts, model):
    """Continuations of a model that writes what it is compared with."""
    return [(text, True) for _, text, _ in starts]


def test_edits_of_a_model_that_executes_the_rule_are_followed(lengths, monkeypatch):
    """A stand-in that goes on as the rule does, at trained and at longer numbers."""
    for part in parts_of(lengths, (3,), 3):
        cases = part.held_out[:3].tolist()
        edits = iv.sample_edits(part.run.task, part.run.format, cases, tokenizer=part.run.tokenizer)
        assert len({edit.case for edit in edits}) == len(cases)
        with monkeypatch.context() as patched:
            patched.setattr("cri.interventions.edits.continuations", as_written)
            table = step_edits(part.run, edits, completions={})
        assert table["follows"].all()
        assert table["exact"].all()
        assert (table["expected"] != table["unedited"]).all()


def test_elements_of_a_stated_rules_trace(stated):
    task, fmt = stated.task, stated.format
    lists = [unpack(b) for b in sample_lists(40, 3, "elements")]
    for number in range(0, 960, 37):
        rule = all_rules()[number]
        low, high = carries(rule.operation, rule.base)
        for x, y in lists:
            for step in rule.steps(x, y):
                assert low <= step.carry <= high
                for name in ("a", "b", "value", "carry", "total", "tens", "digit"):
                    assert getattr(step, name) in step_values(name, rule.operation, rule.base)
    assert set(OPERATIONS) == {"add", "sub", "mul", "max", "min"}
    assert carries("add", 10) == (0, 3)
    assert carries("sub", 10) == (-1, 3)
    a, b = task.operands[0][0], pack([4, 7], [2, 8])
    lines = fmt.trace(task, a, b)
    kinds = {name: element_kind(task, lines[0], name) for name in lines[0].elements}
    assert kinds == {"a": "operands", "b": "operands", "value": "digit", "carry": "carry", "total": "digit",
                     "tens": "carry", "digit": "digit"}  # fmt: skip
    assert element_kind(task, lines[-1], "item1") is None
    base = task.rule_of(a).base
    for name in kinds:
        texts = alternatives(lines[0], name, element_text(lines[0], name), base)
        assert element_text(lines[0], name) not in texts
        for text in texts:
            check_text(lines, Edit(0, name, text), base)
    with pytest.raises(CriError, match=re.escape("edit.text: '10' is not allowed; must be in 0..9, as a of this step")):
        check_text(lines, Edit(0, "a", "10"), base)


def test_edits_of_stated_rules_go_on_in_their_own_base(stated, monkeypatch):
    cases = stated.split.test_ids[::60].tolist()
    edits = iv.sample_edits(stated.task, stated.format, cases, tokenizer=stated.tokenizer)
    assert {edit.case for edit in edits} == set(cases)
    monkeypatch.setattr("cri.interventions.edits.continuations", as_written)
    table = step_edits(stated, edits)
    assert table["follows"].all()
    assert set(table["kind"]) == {"digit", "carry", "operands"}
    with pytest.raises(CriError, match=r"not a whole number|not allowed"):
        step_edits(stated, [CaseEdit(cases[0], Edit(0, "digit", "x"))])


@pytest.mark.parametrize("which", ["lengths", "stated"])
def test_study_end_to_end(which, request, tmp_path):
    run = request.getfixturevalue(which)
    config = dataclasses.replace(
        PRESETS["test"], use=(run.path,), lengths=(3,) if which == "lengths" else (), n_cases=4, n_pairs=2,
        elements=("digit", "carry"),
        out=tmp_path, removal=tmp_path / "none",
    )  # fmt: skip
    figures = run_study(config)
    assert all(path.stat().st_size > 0 for path in figures)
    folder = tmp_path / "studies" / "rule_steps" / "test"
    edits, verdict = read_table(folder / "edits.csv"), read_table(folder / "verdict.csv")
    labels = set(edits["task"])
    assert {"length_addition", "length_addition, 3 digits"} == labels or "many_rules, base rules" in labels
    assert set(verdict["task"]) <= labels
    assert set(edits.loc[edits["model"] == "untrained", "task"]) == {edits["task"].iloc[0]}
    agreement: pd.DataFrame = read_table(folder / "agreement.csv")
    assert not agreement.duplicated(["task", "run", "id"]).any()


def test_a_single_pair_picks_no_cell_and_bounds_nothing():
    """It has no other half of pairs on which the best cell could be chosen."""
    named = {"task": "t", "format": "rfft", "tokenizer": "list", "variable": "carry", "region": "all", "block": 0}
    pairs = pd.DataFrame([{**named, "vectors": "source", "run": "a", "rule": np.nan, "source": 0.0, "effect": 0.1}])
    row = iia_table(pairs, n_boot=100).iloc[0]
    assert (row["n"], row["rule_wilson_low"], row["rule_wilson_high"]) == (0, 0, 1)
