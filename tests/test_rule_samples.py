"""Copies trained on a new rule: the same questions for all, the tables' arithmetic, and what a study of them leaves."""

from __future__ import annotations

import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from cri.config import RunConfig
from cri.errors import CriError
from cri.interventions.stated_rules import stated_task
from cri.storage.compression import read_table
from cri.studies.rule_samples.config import HELD_OUT, PRESETS, RuleSamples
from cri.studies.rule_samples.tables import cases_of, fits, learning_curves, n_right, new_rules, samples_needed, tuned
from cri.tasks.many_rules import ManyRules, most_lists, sample_lists
from cri.training.runs import Run, load_run, train_run

CONFIG = RunConfig(
    task="many_rules", task_params={"rules": 2, "examples": 40, "fresh": 1, "digits": 2}, format="stated_rule",
    split="rules", model="nano-rope",
).replace(steps=3, batch_size=8)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return load_run(train_run(CONFIG, tmp_path_factory.mktemp("runs"), progress=False, evals=0))


def test_rules_are_new_and_lists_are_fresh():
    task = ManyRules(rules=16, examples=160, digits=2)
    for group in HELD_OUT:
        rules = new_rules(task, group, 5, 0)
        assert len(set(rules)) == 5
        assert set(rules) <= set(task.asked[group])
        assert not set(rules) & set(task.asked["trained"])
        assert new_rules(task, group, 3, 0) == rules[:3]
    few, many = (cases_of(task, 7, 20, k, 0) for k in (30, 100))
    for tests, samples in (few, many):
        assert len(set(tests)) == 20
        assert not set(tests) & set(samples)
        assert len({len(str(b)) for _, b in tests}) == 2  # lists of one and of two digits
    with pytest.raises(CriError, match="rules: 500 is not allowed; must be at most 100, as many as group base has"):
        new_rules(task, "base", 500, 0)
    with pytest.raises(CriError, match="samples: 6000 is not allowed; must be at most 5030 beside 20 tests"):
        cases_of(task, 7, 20, 6000, 0)
    assert len(set(sample_lists(most_lists(2), 2, "all"))) == 50 + 5000
    with pytest.raises(CriError, match=re.escape("n: 5051 is not allowed; must be in 0..5050")):
        sample_lists(5051, 2, "too many")


def test_copies_learn_what_they_are_shown_and_the_model_stays(run):
    """A copy trained long on four questions answers these, whatever the model; the model itself is not changed."""
    before = {name: p.clone() for name, p in run.model.state_dict().items()}
    task = stated_task(run)
    _, samples = cases_of(task, new_rules(task, "base", 1, 0)[0], 4, 4, 0)
    own, loss = tuned(run, run.model, samples, RuleSamples(batch_size=4, lr=5e-3).optimisation(True, 150))
    assert loss < 0.1
    assert n_right(run, own, samples) == 4
    assert n_right(run, run.model, samples) == 0
    assert all(torch.equal(p, before[name]) for name, p in run.model.state_dict().items())
    same, none = tuned(run, run.model, [], RuleSamples().optimisation(True, 3))
    assert np.isnan(none)
    assert all(torch.equal(p, before[name]) for name, p in same.state_dict().items())


def test_both_arms_are_asked_the_same(run):
    config = PRESETS["test"]
    rows = [pd.DataFrame(fits(run, config, control)) for control in (False, True)]
    trained, control = rows
    assert set(trained["trained_on"]) == {2}
    assert set(control["trained_on"]) == {0}
    longer = control[control["steps"] == config.long_steps]
    assert longer["samples"].tolist() == [12, 12]
    control = control[control["steps"] == config.steps]
    both = control.merge(trained, on=["group", "rule", "samples", "steps"])
    assert len(both) == len(control) == 2 * 3  # one rule of each group
    assert (both["n_x"] == both["n_y"]).all()
    assert control.loc[control["samples"] == 0, "loss"].isna().all()
    # the first steps on the same samples: what is lower at once was learnt before
    assert (trained["loss"].mean() < control["loss"].mean()).all()


def test_curves_and_samples_needed():
    arm = {"trained_on": 4, "seed": 0, "steps": 9, "n": 20}
    rows = pd.DataFrame(
        [
            {**arm, "group": group, "rule": rule, "samples": k, "right": right}
            for group, rule, rights in (("base", 1, "0 20 18 20"), ("base", 2, "0 10 19 19"), ("rule", 3, "20 " * 4))
            for k, right in zip((0, 10, 30, 100), [int(n) / 20 for n in rights.split()], strict=True)
        ]
    )  # fmt: skip
    needed = samples_needed(rows, 0.95).set_index("rule")["needed"]
    assert needed.to_dict() == {1: 100, 2: 30, 3: 0}  # 1.0 at 10 samples and less at 30 is not yet learnt
    assert samples_needed(rows, 0.96).set_index("rule")["needed"].isna()[2]
    curves = learning_curves(rows).drop(columns="steps").set_index(["group", "samples"])
    assert set(curves.index.get_level_values(0)) == {"base", "rule", "all"}
    assert curves.loc[("base", 10), "right"] == 0.75
    assert curves.loc[("all", 0), "right"] == pytest.approx(1 / 3)
    assert curves.loc[("all", 0), ["n", "n_rules"]].tolist() == [60, 3]
    assert curves.loc[("rule", 0), "low"] == pytest.approx(0.84, abs=0.01)  # Wilson's, of 20 of 20
    assert curves.loc[("base", 10), "low"] == 0.5  # the lower rule twice
    assert (curves["low"] <= curves["right"]).all()
    assert (curves["right"] <= curves["high"]).all()


def test_study_end_to_end(run, tmp_path, monkeypatch):
    from cri.studies.rule_samples.study import main

    monkeypatch.setattr(sys, "argv", ["rule_samples", "test", "--use", str(run.path), "--out", str(tmp_path)])
    main()
    folder = tmp_path / "studies" / "rule_samples" / "test"
    found = read_table(folder / "fits.csv")
    assert len(found) == (2 * 2 + 2 * 1) * 3 + 2
    assert set(read_table(folder / "curves.csv")["group"]) == {"combination", "base", "all"}
    assert len(read_table(folder / "needed.csv")) == 6 + 2
    assert read_table(folder / "runs.csv")["run"].tolist() == [run.path.name]
    assert (tmp_path / "figures" / "rule_samples_test.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "use: give the folder of a finished run in the format stated_rule"),
        (["--use", "RUN", "--groups", "trained"], "groups: unknown 'trained'; choose from rule, combination"),
        (["--use", "RUN", "--samples", "10", "3"], "samples: (10, 3) is not allowed; must be numbers of at least 0"),
        (["--use", "RUN", "--samples", "12", "9000"], "samples: 9000 is not allowed; must be at most 5046"),
        (["--use", "RUN", "--control-rules", "3"], "control_rules: 3 is not allowed; must be in 0..2"),
        (["--use", "RUN", "--rules", "101"], "rules: 101 is not allowed; must be at most 72"),
        (["--use", "RUN", "--target", "0"], "target: 0.0 is not allowed; must be above 0"),
        (["--use", "RUN", "--long-steps", "0"], "long_steps: 0 is not allowed; must be at least 1"),
        (["--use", "RUN", "--long-samples", "3"], "long_samples: 3 is not allowed; must be one of samples"),
        (["--use", "RUN", "--tests", "0"], "tests: 0 is not allowed; must be at least 1"),
        (["--use", "nowhere"], "run: nowhere"),
    ],
)
def test_bad_input_is_one_line(run, arguments, said, tmp_path, monkeypatch, capsys):
    from cri.studies.rule_samples.study import main

    given = [str(run.path) if word == "RUN" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["rule_samples", "test", *given, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_runs_that_cannot_be_compared_are_refused(run, tmp_path):
    from cri.studies.rule_samples.tables import check_runs

    other = {"rules": 2, "examples": 40, "fresh": 1, "digits": 3}
    wider = load_run(train_run(CONFIG.replace(task_params=other, steps=1), tmp_path, progress=False, evals=0))
    with pytest.raises(CriError, match="has other lists or other held-out rules"):
        check_runs([run, wider], ("base",))
    hidden = load_run(train_run(CONFIG.replace(format="rule_id", steps=1), tmp_path, progress=False, evals=0))
    with pytest.raises(CriError, match="has the format rule_id; must be stated_rule"):
        check_runs([hidden], ("base",))
