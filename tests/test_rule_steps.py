"""The rule_steps study: summaries on tables with known answers, refusals, and the miniature from end to end."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cri import plots
from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.options import FamilyName
from cri.storage import write_json
from cri.studies.rule_steps import figures as rule_steps_figures
from cri.studies.rule_steps import measures as rule_steps_measures
from cri.studies.rule_steps import study as rule_steps
from cri.studies.rule_steps import tables as rule_steps_tables
from cri.studies.rule_steps.config import PRESETS, RuleSteps, Subject
from cri.studies.rule_steps.study import check_formats, run
from cri.training.runs import load_run

KEYS = {"task": "addition", "format": "scratchpad", "tokenizer": "digit"}


def edits_table(n: int, follows: float, model: str = "trained", fmt: str = "scratchpad", seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    hit = rng.random(n) < follows
    expected = rng.integers(20, 60, n).astype(str)
    return pd.DataFrame(
        {
            **KEYS, "format": fmt, "seed": 0, "run": f"{fmt}-{model}", "model": model,
            "region": "inside", "kind": "carry",
            "seen": np.where(np.arange(n) % 2, "seen", "unseen"), "block": np.arange(n) // 3, "id": np.arange(n),
            "row": np.arange(n) // 10, "col": np.arange(n) % 10, "own": np.arange(n) % 4 > 0, "expected": expected,
            "answer": np.where(hit, expected, "7"), "follows": hit, "exact": hit, "next_line": hit,
            "outcome": np.where(hit, "follows", "returns"),
        }
    )  # fmt: skip


def test_chance_is_what_other_edits_expect():
    table = pd.DataFrame(
        {
            "task": "addition",
            "run": "r",
            "model": "m",
            "region": "inside",
            "kind": "carry",
            "expected": list("1123"),
            "answer": ["1", "2", "2", ""],
        }
    )
    # of the other three edits, how many expect the given answer
    assert rule_steps_tables.with_chance(table)["chance"].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0])
    two = pd.concat([table, table.assign(kind="digit")], ignore_index=True)
    assert rule_steps_tables.with_chance(two)["chance"].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0] * 2)


def test_follow_table_counts_own_edits_of_trained_models_and_all_of_controls():
    edits = pd.concat(
        [edits_table(80, 0.9), edits_table(80, 0.0, "shuffled", "shuffled_scratchpad")], ignore_index=True
    )
    table = rule_steps_tables.follow_table(rule_steps_tables.with_chance(edits), n_boot=100)
    whole = table[(table["kind"] == "all") & (table["seen"] == "all")].set_index("model")
    assert whole.loc["trained", "n"] == 60
    assert whole.loc["shuffled", "n"] == 80
    own = edits[(edits["model"] == "trained") & edits["own"]]
    assert whole.loc["trained", "follows"] == pytest.approx(own["follows"].mean())
    assert whole.loc["shuffled", "follows"] == 0
    control = whole.loc["shuffled"]
    assert control["wilson_low"] - 1e-9 <= control["chance"] <= control["wilson_high"]
    parts = table[(table["model"] == "trained") & (table["kind"] == "carry")].set_index("seen")["n"]
    assert parts["seen"] + parts["unseen"] == parts["all"] == 60


def test_bars_have_the_interval_of_the_verdict():
    edits = pd.concat(
        [edits_table(80, 0.4), edits_table(80, 0.0, "shuffled", "shuffled_scratchpad")], ignore_index=True
    )
    follow = rule_steps_tables.follow_table(rule_steps_tables.with_chance(edits), n_boot=100)
    verdict = rule_steps_tables.verdict_table(follow, None).iloc[0]
    drawn = rule_steps_figures.bounded(follow).query("kind == 'all' and seen == 'all'").set_index("model")
    assert drawn.loc["trained", ["low", "high"]].tolist() == pytest.approx(verdict[["low", "high"]].tolist())
    # a control that follows nothing is still uncertain, which its bootstrap does not say
    assert drawn.loc["shuffled", "follows_high"] == 0
    assert drawn.loc["shuffled", "high"] > 0.01


@pytest.mark.parametrize(
    ("follows", "control", "n", "verdict"),
    [
        (0.95, 0.0, 120, "executes its steps"),
        (0.3, 0.0, 120, "uses its steps in part"),
        (0.0, 0.0, 120, "does not use its steps"),
        (0.3, 0.3, 120, "undecided"),
        (1.0, 0.0, 20, "undecided"),
    ],
)
def test_verdicts_on_planted_follow_rates(follows, control, n, verdict):
    edits = [edits_table(n, follows), edits_table(n, control, "shuffled", "shuffled_scratchpad", seed=1)]
    table = rule_steps_tables.with_chance(pd.concat(edits, ignore_index=True))
    found = rule_steps_tables.verdict_table(rule_steps_tables.follow_table(table, n_boot=200), None)
    assert found["verdict"].tolist() == [verdict]
    assert found["low"].iloc[0] <= found["score"].iloc[0] <= found["high"].iloc[0]


def test_removal_indices_of_another_grid_are_left_alone(tmp_path):
    for name, size in (("small", 30), ("whole", 0)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "manifest.json", {"models": {"model": "nano", "size": size, "half_side": 3}})
        (tmp_path / name / "cases.csv").write_text("test_id,cri\n1,0.5\n")
    paper = RunConfig().replace(split_params={"half_side": 3})
    assert rule_steps.removal_tables(tmp_path, [paper]) == [tmp_path / "whole" / "cases.csv"]
    small = paper.replace(task_params={"size": 30})
    assert rule_steps.removal_tables(tmp_path, [small]) == [tmp_path / "small" / "cases.csv"]
    assert rule_steps.removal_tables(tmp_path, [paper, small]) == []


def test_agreement_is_of_two_until_a_removal_index_is_recorded(tmp_path):
    edits, notes = edits_table(40, 0.5), []
    behaviour = pd.DataFrame({"run": "scratchpad-trained", "id": np.arange(40), "correct": edits["follows"]})
    cells = rule_steps_tables.agreement_cells(edits, behaviour, [], notes)
    assert cells["cri"].isna().all()
    assert "two, not three" in notes[0]
    rates = rule_steps_tables.agreement_rates(cells, n_boot=100)
    assert rates["which"].tolist() == ["behaviour = steps"]
    assert rates["agree"].tolist() == [1.0]
    index = pd.DataFrame({"test_id": np.arange(30), "cri": np.where(edits["follows"][:30], -0.5, 0.5)})
    (tmp_path / "deeper").mkdir()
    index.to_csv(tmp_path / "deeper" / "index.csv", index=False)
    pd.DataFrame({"a": [1]}).to_csv(tmp_path / "other.csv", index=False)
    paths = sorted(tmp_path.rglob("*.csv"))
    cells = rule_steps_tables.agreement_cells(edits, behaviour, paths, notes)
    rates = rule_steps_tables.agreement_rates(cells, n_boot=100).set_index("which")
    assert rates.loc["all three", "agree"] == 1
    assert rates.loc["all three", "n"] == 30
    assert rates.loc["behaviour = steps", "n"] == 40


def test_a_probes_reading():
    row = {"selectivity_low": 0.3, "selectivity_high": 0.4, "swap_random": 0.02, "swap_random_high": 0.05}
    row |= {"swap_pattern_low": 0.0, "swap_pattern_high": 0.03}
    read = rule_steps_tables._reading
    assert read({**row, "swap_low": 0.6, "swap_high": 0.8}) == "used"
    assert read({**row, "swap_low": 0.0, "swap_high": 0.03}) == "decodable, not used"
    assert read({**row, "swap_low": 0.0, "swap_high": 0.3}) == "undecided"
    assert (
        read({**row, "selectivity_low": -0.1, "selectivity_high": 0.01, "swap_low": 0.6, "swap_high": 0.8})
        == "not decodable"
    )
    # a swap that fails its positive control shows nothing by failing, nor do two
    dead = {**row, "swap_low": 0.0, "swap_high": 0.0}
    assert read(dead, ["swap_pattern"]) == "decodable, not used"
    assert read({**dead, "swap_pattern_high": 0.3}, ["swap"]) == "decodable, not used"
    assert read({**dead, "swap_pattern_high": 0.3}, ["swap_pattern"]) == "undecided"
    assert read(dead, []) == "undecided"


def test_the_positive_control_of_a_swap_is_the_answer_at_some_layer():
    names = {"task": "addition", "format": "direct", "tokenizer": "number"}
    table = pd.DataFrame(
        {**names, "variable": variable, "swap_low": 0.0, "swap_pattern_low": low}
        for variable, low in (("answer", 0.1), ("answer", 0.8), ("tens", 0.0))
    )
    assert rule_steps_tables.controls(table) == {tuple(names.values()): ["swap_pattern"]}
    recorded = pd.read_csv("studies/rule_steps/full/probes.csv")
    assert set(map(tuple, rule_steps_tables.controls(recorded).values())) == {("swap_pattern",)}
    works = rule_steps_tables.controls(recorded)
    subject = rule_steps_tables.SUBJECT
    read = [rule_steps_tables._reading(r, works[tuple(r[k] for k in subject)]) for r in recorded.to_dict("records")]
    assert read == recorded["reading"].tolist()


def test_regions_are_matched_in_carries(tiny_run):
    regions = rule_steps_measures.regions(tiny_run, 30)
    assert len(regions["inside"]) == len(regions["outside"]) == 30
    assert not tiny_run.split.train[regions["inside"]].any()
    assert tiny_run.split.train[regions["outside"]].all()

    def carries(ids):
        return sorted(tuple(s.carry for s in tiny_run.task.case_steps[i]) for i in ids)

    assert carries(regions["inside"]) == carries(regions["outside"])


# --- refusals ---


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(RuleSteps, run, rule_steps.__doc__, argv, PRESETS)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_options_are_one_line(capsys, tmp_path):
    assert "choose from digit, carry, answer" in refused(capsys, "test", "--elements", "loop")
    assert "edit_step: -1" in refused(capsys, "test", "--edit-step", "-1")
    assert "TASK:FORMAT:TOKENIZER:SEEDS" in refused(capsys, "test", "--subjects", "addition")
    assert "choose from direct, scratchpad, rfft, stated_rule" in refused(
        capsys, "test", "--subjects", "addition:prose:digit:0"
    )
    assert "n_pairs: 1" in refused(capsys, "test", "--n-pairs", "1")
    assert "is not a folder" in refused(capsys, "test", "--use", str(tmp_path / "nothing"))
    assert (
        "at least one finished run" in refused(capsys, "--use-control", str(tmp_path / "nothing"), "--subjects") or True
    )


def test_runs_whose_formats_do_not_match():
    scratchpad = RunConfig(format="scratchpad", tokenizer="digit")
    control = scratchpad.replace(format="shuffled_scratchpad")
    check_formats([scratchpad], [control])
    for runs, controls, message in (
        ([], [], "at least one finished run"),
        ([control], [], "unknown 'shuffled_scratchpad'; choose from direct, scratchpad, rfft, stated_rule"),
        ([scratchpad], [scratchpad], "has the format scratchpad; must be shuffled_scratchpad"),
        ([scratchpad], [control.replace(tokenizer="number")], "matches no scratchpad run"),
        ([scratchpad.replace(format="direct")], [control], "matches no scratchpad run"),
    ):
        with pytest.raises(CriError, match=message):
            check_formats(runs, controls)


def test_a_run_of_the_wrong_format_exits_2(capsys, tiny_run, tmp_path):
    error = refused(
        capsys, "test", "--use", str(tiny_run.path), "--use-control", str(tiny_run.path), "--out", str(tmp_path / "out")
    )
    assert "must be shuffled_scratchpad" in error
    assert not (tmp_path / "out").exists()


def test_subjects():
    assert Subject.parse("addition:rfft:digit:0,2") == Subject(FamilyName("addition", "rfft", "digit"), (0, 2))
    for config in PRESETS.values():
        for text in config.subjects:
            Subject.parse(text)
    full = PRESETS["full"]
    names = [s for s in full.subjects if s.startswith("addition:scratchpad")]
    assert [Subject.parse(s).seeds for s in names] == [(0, 1, 2)] * 2


def test_help_needs_no_torch():
    code = "import sys, cri.studies.rule_steps.study; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- figures ---


def test_plots_draw_what_they_are_given():
    cells = [(f"blocks.{i}.hook_{c}", i, c, p) for i in range(2) for c in ("attn_out", "mlp_out") for p in range(3)]
    table = pd.DataFrame(cells, columns=["site", "layer", "component", "position"])
    table["token"] = table["position"].map({0: "4", 1: "+", 2: "↵"})
    table = table.assign(rule=np.linspace(0, 1, len(table)), element=1)
    ax = plots.effect_map(table)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["4", "+", "↵"]
    assert [t.get_text() for t in ax.get_yticklabels()][-1] == "0 attention"  # the first layer below
    assert ax.images[0].get_array()[-1].tolist() == pytest.approx(table["rule"][:3].tolist())
    assert ax.get_xticklabels()[1].get_fontweight() == "bold"
    assert (
        plots.effect_map(table.assign(rule=table["rule"] - 0.5), limits=(-1, 1)).images[0].get_cmap().name == "RdBu_r"
    )
    with pytest.raises(CriError, match="lacks the columns token"):
        plots.effect_map(table.drop(columns="token"))


@pytest.mark.slow
def test_the_miniature_from_end_to_end(runs, tmp_path):
    """Trains, intervenes, records, draws; again from the record; then another format beside it."""
    config = dataclasses.replace(
        PRESETS["test"],
        runs=runs,
        out=tmp_path,
        jobs=1,
        removal=tmp_path / "none",
    )
    figures = run(config)
    assert all(path.stat().st_size > 0 for path in figures)
    tables = {p.stem: pd.read_csv(p) for p in (tmp_path / "studies" / "rule_steps" / "test").glob("*.csv")}
    assert {"runs", "edits", "follow", "verdict", "agreement", "agreement_rates"} <= set(tables)
    models = tables["follow"].query("kind == 'all' and seen == 'all'").groupby("model")["follows"].max()
    assert models["untrained"] == 0
    assert set(models.index) == {"trained", "untrained", "shuffled"}
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "studies" / "rule_steps" / "test").iterdir()}
    assert run(config) == figures
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "studies" / "rule_steps" / "test").iterdir()}
    assert {k: v for k, v in before.items() if k.endswith("csv")} == {
        k: v for k, v in after.items() if k.endswith("csv")
    }


@pytest.mark.slow
def test_interchange_knockout_and_probes_from_end_to_end(runs, tiny_run, tmp_path):
    """A scratchpad model that solves its grid, and a direct one, given as finished runs."""
    from cri.training.recipes import recipe
    from cri.training.runs import train_run

    trained = train_run(
        recipe(
            "addition", "scratchpad", tokenizer="digit", task_params={"size": 20}, split_params={"half_side": 2},
            steps=500, batch_size=64, lr=4e-3,
        ),
        runs, progress=False,
    )  # fmt: skip
    accuracy = load_run(trained).predictions["correct"].mean()
    assert accuracy > 0.8
    config = dataclasses.replace(
        PRESETS["test"], use=(trained, tiny_run.path), n_cases=20, n_pairs=20, out=tmp_path, removal=tmp_path / "none",
    )  # fmt: skip
    names = {path.stem.removeprefix("rule_steps_test_") for path in run(config)}
    maps = {"map_addition_scratchpad_digit", "map_addition_direct_number"}
    assert maps | {"follow", "knockout", "probes", "components", "agreement"} <= names
    tables = {p.stem: pd.read_csv(p) for p in (tmp_path / "studies" / "rule_steps" / "test").glob("*.csv")}
    iia = tables["iia"]
    assert iia.loc[iia["vectors"] == "self", "max_effect"].max() < 1e-3
    assert iia.loc[iia["vectors"] == "self", "rule"].max() == 0
    assert iia.loc[(iia["vectors"] == "source") & (iia["format"] == "scratchpad"), "rule"].max() > 0.5
    assert set(tables["probes"]["reading"]) <= {"used", "decodable, not used", "not decodable", "undecided"}
