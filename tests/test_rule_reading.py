"""Edited rules, attention cut off and residuals exchanged: instruments checked where the answer is known."""

from __future__ import annotations

import re
import sys

import pandas as pd
import pytest
import torch

from cri.config import RunConfig
from cri.errors import CriError
from cri.evaluation.decoding import decode
from cri.formats.rules.stated import PLACES, parse_rule_text, rule_text, stated_trace
from cri.interventions.stated_rules import (
    EDITS,
    ask,
    cut_hooks,
    edited_questions,
    fresh_lists,
    outcomes,
    patch_hooks,
    stated_task,
    token_table,
    writes,
)
from cri.storage import config_hash
from cri.studies.rule_reading import config as settings
from cri.studies.rule_reading.config import CONTROLS, MAIN, PRESETS
from cri.studies.rule_reading.tables import edit_table, first_wrong_element
from cri.tasks.list_rules import HELD_OUT_BASE, HELD_OUT_START, PARTS, ListRule, all_rules
from cri.tasks.many_rules import unpack
from cri.training.runs import Run, load_run, train_run

CONFIG = RunConfig(
    task="many_rules", task_params={"rules": 3, "examples": 96, "fresh": 1, "digits": 2}, format=MAIN, split="rules",
    model="nano-rope",
).replace(steps=30, batch_size=16, lr=3e-3)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return load_run(train_run(CONFIG, tmp_path_factory.mktemp("runs"), progress=False, evals=1))


def test_questions_can_tell_and_are_new(run):
    task = stated_task(run)
    trained = {task.operands[i] for i in run.split.train_ids}
    questions = edited_questions(run, n=6)
    assert {q.kind for q in questions} == set(EDITS)
    for q in questions:
        old, new = (all_rules()[i] for i in (q.old, q.new))
        assert q.old in task.asked["trained"]
        assert [part for part in PARTS if getattr(old, part) != getattr(new, part)] == [q.part]
        assert old.apply(*unpack(q.lists)) != new.apply(*unpack(q.lists))
        assert (q.old, q.lists) not in trained
        assert (q.kind == "new_base") == (new.base == HELD_OUT_BASE)
        assert (q.kind == "new_start") == (new.start == HELD_OUT_START)
        prompt = run.format.prompt(task, q.new, q.lists)
        assert parse_rule_text(prompt.removesuffix(task.question(q.new, q.lists))) == new
    assert not trained & set(fresh_lists(run, task.asked["trained"], 5))
    with pytest.raises(CriError, match="kinds: unknown 'modulus'; choose from operation, base"):
        edited_questions(run, ["modulus"])


def test_one_token_of_the_prompt_differs(run):
    asked = ask(run, edited_questions(run, n=4))
    old, new = asked.tables["old", "old"], asked.tables["new", "new"]
    n = int(old.prompt_lengths.min())
    differs = old.ids[:, :n] != new.ids[:, :n]
    assert (differs.sum(1) == 1).all()
    assert torch.equal(differs.int().argmax(1), asked.places)
    assert (asked.others != asked.places).all()
    assert set(asked.places.tolist()) == set(PLACES.values())


def test_one_pass_tells_what_decoding_writes(run):
    task = stated_task(run)
    cases = fresh_lists(run, task.asked["trained"], 8)
    tokens = token_table(run, cases, cases)
    done = decode(run.model, tokens)
    own = tokens.with_completions([row[:n].tolist() for row, n in zip(done.ids, done.lengths, strict=True)])
    assert writes(run.bridge, own)[torch.from_numpy(done.finished)].all()  # what it decodes, it would write
    reference = [
        tokens.ids[i, int(tokens.prompt_lengths[i]) : int(tokens.lengths[i]) - 1].tolist() for i in range(len(tokens))
    ]
    same = [
        bool(done.finished[i]) and done.ids[i, : done.lengths[i]].tolist() == reference[i] for i in range(len(tokens))
    ]
    assert writes(run.bridge, tokens).tolist() == same


def test_a_token_that_is_cut_off_makes_no_difference(run):
    """With attention to the edited token cut from everywhere, both prompts lead to the same logits behind it."""
    asked = ask(run, edited_questions(run, n=4))
    logits = {}
    for prompt in ("old", "new"):
        tokens = asked.tables[prompt, "old"]
        hooks = cut_hooks(run.bridge, tokens, asked.places, "later")
        logits[prompt] = run.bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks)
    behind = torch.arange(tokens.ids.shape[1]) > asked.places[:, None]
    assert torch.allclose(logits["old"][behind], logits["new"][behind], atol=1e-5)
    plain = run.bridge(asked.tables["new", "old"].ids)
    assert not torch.allclose(logits["new"][behind], plain[behind], atol=1e-3)
    # cut from the trace alone, the rest of the prompt still sees it
    hooks = cut_hooks(run.bridge, tokens, asked.places, "trace")
    traced = run.bridge.run_with_hooks(tokens.ids, fwd_hooks=hooks)
    inside = behind & (torch.arange(tokens.ids.shape[1]) < tokens.prompt_lengths[:, None] - 1)
    assert torch.allclose(traced[inside], plain[inside], atol=1e-5)


def test_exchanged_residuals_are_the_edit_before_the_first_layer(run):
    asked = ask(run, edited_questions(run, n=4))
    old, new = asked.tables["old", "new"], asked.tables["new", "new"]
    pos = torch.arange(old.ids.shape[1])
    here = pos == asked.places[:, None]
    patched = run.bridge.run_with_hooks(old.ids, fwd_hooks=patch_hooks(run.bridge, new, here, 0))
    behind = pos > asked.places[:, None]
    assert torch.allclose(patched[behind], run.bridge(new.ids)[behind], atol=1e-5)
    # another token's embedding is the same in both prompts: nothing changes
    other = pos == asked.others[:, None]
    unchanged = run.bridge.run_with_hooks(old.ids, fwd_hooks=patch_hooks(run.bridge, new, other, 0))
    assert torch.allclose(unchanged, run.bridge(old.ids), atol=1e-5)
    everywhere = torch.ones_like(here)
    last = run.bridge.run_with_hooks(old.ids, fwd_hooks=patch_hooks(run.bridge, new, everywhere, 1))
    assert torch.allclose(last, run.bridge(new.ids), atol=1e-5)


def test_outcomes_of_a_model_that_reads_and_of_one_that_does_not(run, monkeypatch):
    """Of planted texts: a reader writes the trace of the prompt's rule, a model that ignores it the old one's."""
    task, questions = stated_task(run), edited_questions(run, n=3)
    for reads in (True, False):
        written = [(run.format.completion(task, q.new if reads else q.old, q.lists), True) for q in questions]
        monkeypatch.setattr("cri.studies.rule_reading.tables.decoded_texts", lambda *_, w=written: w)
        table = edit_table(run, questions).query("group == 'all'")
        assert set(table["kind"]) == {"all known values", *EDITS}
        assert (table["follows"] == reads).all()
        assert (table["keeps"] == (not reads)).all()
        assert (table["neither"] == 0).all()
    written = [(run.format.completion(task, q.new, q.lists), False) for q in questions]  # cut short: no answer
    monkeypatch.setattr("cri.studies.rule_reading.tables.decoded_texts", lambda *_: written)
    assert (edit_table(run, questions)["neither"] == 1).all()
    asked = ask(run, questions)
    new, old = outcomes(run.bridge, asked, "new", lambda *_: [])
    assert not (new & old).any()


def test_the_first_wrong_element_is_named():
    lines = stated_trace(ListRule("add", 10), [4, 7], [2, 8])
    text = " 7 8 15 0 15 1 5\n 4 2 6 1 7 0 7\n= 0 7 5"
    for wrong, name in (
        (text, "end"), (text.replace("15 1", "15 2"), "tens"), (text.replace(" 15 0", " 16 0"), "value"),
        (text.replace("= 0", "= 1"), "item"), (text.replace("1 7 0", "1 77 0"), "total"), (text[:-2], "item"),
    ):  # fmt: skip
        assert first_wrong_element(lines, wrong) == name
    assert rule_text(ListRule()).count("\n") == 8


def test_presets_and_names():
    assert settings.EDITS == EDITS
    for preset in PRESETS.values():
        configs = list(preset.run_configs())
        assert len({config_hash(c.to_dict()) for c in configs}) == len(configs) > 0
        assert {c.format for c in configs} <= {MAIN, *CONTROLS}


def test_study_end_to_end(tmp_path, monkeypatch):
    from cri.studies.rule_reading.study import main

    where = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["rule_reading", "test", *where])
    main()
    folder = tmp_path / "studies" / "rule_reading" / "test"
    accuracy = pd.read_csv(folder / "accuracy.csv")
    assert set(accuracy["shown"]) == {MAIN, "rule_id"}
    assert set(accuracy["group"]) == {"trained", "rule", "combination", "division", "start", "base"}
    assert (accuracy["n"] >= 48).all()
    for name in ("knockout", "interchange"):
        assert set(pd.read_csv(folder / f"{name}.csv")["shown"]) == {MAIN}
    for what in ("accuracy", "edits"):
        assert (tmp_path / "figures" / f"rule_reading_test_{what}.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rules", "480"], "rules: 480 is not allowed; must be in 1..479"),
        (["--edits", "modulus"], "edits: unknown 'modulus'; choose from operation, base"),
        (["--controls", "none"], "controls: unknown 'none'; choose from rule_id"),
        (["--n-edits", "0"], "n_edits: 0 is not allowed; must be at least 1"),
        (["--examples", "1"], "examples: 1 is not allowed; must be at least rules=2"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    from cri.studies.rule_reading.study import main

    where = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["rule_reading", "test", *arguments, *where])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(said), error)
    assert len(error.splitlines()) == 1
