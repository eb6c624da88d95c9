"""The one place that guards values: what it lets through and what it refuses, in Python and on command lines."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri import checks, studies
from cri.cli import key_values
from cri.config import RunConfig, TrainConfig
from cri.data.splits import SPLITS, make_split
from cri.errors import CriError
from cri.studies.lso_map.config import LsoMapConfig
from cri.studies.matrix.config import Matrix
from cri.studies.rule_steps.config import RuleSteps
from cri.tasks import TASKS, make_task
from cri.training.setup import check

TASK = make_task("addition", size=12)


@pytest.mark.parametrize(
    ("split", "params", "said"),
    [
        ("square", {"half_side": "3"}, "split.half_side: '3'"),
        ("square", {"half_side": None}, "split.half_side: None"),
        ("square", {"half_side": True}, "split.half_side: True"),
        ("square", {"center": 5}, "split.center: 5"),
        ("rows", {"n": 1.5}, "split.n: 1.5"),
        ("rows", {"n": 2, "seed": None}, "split.seed: None"),
        ("squares", {"n": 0}, "split.n: 0"),
        ("squares", {"centers": [1], "half_sides": [1]}, "split.centers"),
        ("random", {"seed": -1}, "split.seed: -1"),
        ("random", {"fraction": float("nan")}, "split.fraction: nan"),
        ("random", {"fraction": 0.0001}, "no training cases"),
    ],
)
def test_parameters_of_splits(split, params, said):
    with pytest.raises(CriError, match=said):
        make_split(TASK, split, **params)


def test_sizes_say_what_they_would_need():
    with pytest.raises(CriError, match=r"size: 100000000 is too large here.*GiB of memory"):
        make_task("addition", size=10**8)
    with pytest.raises(CriError, match=r"steps: 3000000000 is too large here.*GiB of memory"):
        check(RunConfig(train=TrainConfig(steps=3_000_000_000)))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70, 1.0, True, None])
def test_seeds_fit_every_generator(seed):
    with pytest.raises(CriError, match="seed: "):
        TrainConfig(seed=seed)


def test_key_values_are_told_apart_from_words_and_repeats():
    with pytest.raises(CriError, match="no value of size"):
        key_values("task_params", ["size=abc"])
    with pytest.raises(CriError, match="size is given twice"):
        key_values("task_params", ["size=20", "size=30"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 15) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
SPLIT_KEYS = ("n", "seed", "half_side", "center", "centers", "half_sides", "fraction", "min_half_side", "max_half_side")
TASK_KEYS = ("size", "modulus", "base", "slope_a", "intercept")


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(SPLITS)), st.dictionaries(st.sampled_from(SPLIT_KEYS), VALUES, max_size=3))
def test_any_parameters_make_a_split_or_are_refused_by_name(kind, params):
    _split_or_refusal(kind, params)


def _split_or_refusal(kind, params):
    said = ""
    try:
        split = make_split(TASK, kind, **params)
    except CriError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert "split" in said
        return
    assert split.train.any()
    assert split.test.any()
    again = {key: value for key, value in split.info.items() if key != "kind"}
    assert (make_split(TASK, split.info["kind"], **again).train == split.train).all()


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(TASKS)), st.dictionaries(st.sampled_from(TASK_KEYS), VALUES, max_size=2))
def test_any_parameters_make_a_task_or_are_refused_by_name(name, params):
    said = None
    try:
        make_task(name, **params)
    except CriError as error:
        said = str(error)
    assert said is None or any(key in said for key in params)


def test_without_the_guard_the_faults_are_found(monkeypatch):
    """The properties above fail where values are not checked: they can find such faults."""
    monkeypatch.setattr("cri.checks._fits", lambda *args: True)
    for params in ({"half_side": "3"}, {"half_side": None}, {"center": 5}):
        with pytest.raises((TypeError, ValueError)) as raised:
            _split_or_refusal("square", params)
        assert not isinstance(raised.value, CriError)


COMMANDS = ("cri.train", "cri.sweep", "cri.studies.lso_map.study", "cri.studies.neighbor_attribution.study")
FAULTY = (
    ["--seed=-1"], ["--seed", str(2**64)], ["--micro-batch", str(2**63)], ["--device", "meta"], ["--jobs=10000000"],
    ["--half-side", "0"], ["--tasks"], ["--seeds", "0", "0"], ["--steps", "3000000000"], ["--size", "100000000"],
    ["--task-params", "size=abc"], ["--task-params", "size=20", "size=30"], ["--split-params", 'half_side="3"'],
    ["--split-params", "half_side=null"], ["--name", "../x"], ["--foo"], ["--steps", "x"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", FAULTY, ids=" ".join)
def test_faulty_command_lines(command, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [command, *words])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(command).main()
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    field = words[0].lstrip("-").partition("=")[0].replace("-", "_")
    assert any(name in said.replace("-", "_") for name in (field, "half_side", "size"))
    assert not list(tmp_path.iterdir())


def test_a_list_is_checked_in_its_items():
    with pytest.raises(CriError, match="seeds: -1"):
        checks.check_range("seeds", (0, -1))


def test_a_repeat_is_no_replicate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for runs in (("a", "a"), ("a", "./a"), ("a", "link/a"), ("a", str(tmp_path / "a"))):
        with pytest.raises(CriError, match=r"use: .* given once: a repeat is no replicate"):
            checks.check_command(RuleSteps(use=tuple(map(Path, runs))))
    for subjects in (("addition:scratchpad:digit:0,0",), ("addition:direct:digit:1", "addition:direct:digit:0,1")):
        with pytest.raises(CriError, match=r"subjects: .* given once"):
            RuleSteps(subjects=subjects)


@pytest.mark.parametrize("study", sorted(m.name for m in pkgutil.iter_modules(studies.__path__) if m.name != "common"))
def test_no_study_s_own_settings_are_refused(study):
    """What a command says of every command must let through what its presets say."""
    module = "cri.retraining.config" if study == "retraining_bank" else f"cri.studies.{study}.config"
    presets = importlib.import_module(module).PRESETS
    for preset in presets.values():
        checks.check_command(preset)


def test_zero_stands_for_the_task_s_own_only_where_it_is_the_default():
    checks.check_command(Matrix(half_side=0))
    with pytest.raises(CriError, match="half_side: 0 is not allowed; must be at least 1"):
        checks.check_command(LsoMapConfig(half_side=0))
