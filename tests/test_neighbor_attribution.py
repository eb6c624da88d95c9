"""The neighbour study in miniature: from the command's config to verdict, tables and figures; reuse; bad input."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pandas as pd
import pytest

from cri.errors import CriError
from cri.storage import write_json
from cri.studies.neighbor_attribution.config import NAME, PRESETS
from cri.studies.neighbor_attribution.figures import draw
from cri.studies.neighbor_attribution.study import causal_text, run
from cri.studies.neighbor_attribution.tables import causal


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory):
    where = tmp_path_factory.mktemp("neighbors")
    config = dataclasses.replace(PRESETS["test"], steps=60, runs=runs, out=where, device="cpu")
    return config, run(config)


def test_tables_hold_every_method_with_its_controls(study):
    config, _ = study
    folder = config.tables(NAME, config.name)
    enrichment = pd.read_csv(folder / "enrichment.csv")
    assert set(enrichment["model"]) == {"square", "random", "untrained"}
    assert {
        "cosine",
        "euclidean",
        "GradDot",
        "GradCos",
        "EK-FAC",
        "same_answer",
        "shared_operand",
        "nearest_operands",
    } <= set(enrichment["method"])
    assert {"near", "same_answer", "same_operand", "same_step", "rest"} <= set(enrichment["group"])
    assert (enrichment["low"] <= enrichment["high"] + 1e-9).all()
    verdicts = pd.read_csv(folder / "verdicts.csv")
    residual = {f"blocks.{i}.hook_resid_post@prompt_end" for i in range(2)}
    assert residual <= set(verdicts["site"])
    assert verdicts["verdict"].notna().all()
    # the content baseline finds what it looks for: same answers, far more often than their base rate
    mine = enrichment[(enrichment["method"] == "same_answer") & (enrichment["model"] == "square")]
    assert (mine.loc[mine["group"] == "same_answer", "estimate"] > 2).all()


def test_tables_are_reused_and_figures_come_from_them_alone(study, tmp_path):
    config, figures = study
    assert len(figures) >= 8
    before = {path.name: path.stat().st_mtime_ns for path in (config.tables(NAME, config.name)).glob("*.csv")}
    started = time.perf_counter()
    run(config)
    assert {path.name: path.stat().st_mtime_ns for path in (config.tables(NAME, config.name)).glob("*.csv")} == before
    assert time.perf_counter() - started < 60
    assert {p.name for p in draw(config.tables(NAME, config.name), tmp_path)} == {p.name for p in figures}


def test_measured_effects_stand_beside_enrichment_where_the_models_are_alike(study, tmp_path):
    config, _ = study
    enrichment = pd.read_csv(config.tables(NAME, config.name) / "enrichment.csv")
    keys = {"task": "addition", "format": "direct", "tokenizer": "number", "split": "square"}
    groups = ["near", "same_answer", "same_operand", "same_step"]
    ends = {"low": -1.0, "high": 3.0}
    effects = pd.DataFrame(
        {**keys, **ends, "target": "prediction", "region": "all", "size": 60, "n_removed": 60.0, "n_tests": 9,
         "group": groups, "estimate": [2.0, 1.0, 0.0, 0.5]}
    )  # fmt: skip
    doses = pd.DataFrame(
        {**keys, **ends, "region": "square", "removed": 0.5, "per": 10, "n_queries": 49, "group": groups,
         "effect": [0.2, 0.1, 0.0, 0.0]}
    )  # fmt: skip
    effects.to_csv(tmp_path / "groups.csv", index=False)
    doses.to_csv(tmp_path / "doses.csv", index=False)
    write_json(tmp_path / "manifest.json", {"models": {"model": "nano", "size": 0, "half_side": 10}})
    assert causal(enrichment, tmp_path, config) is None  # effects on a larger grid
    shape = {"model": "nano", "size": config.size, "half_side": config.half_side}
    write_json(tmp_path / "manifest.json", {"models": shape})
    table = causal(enrichment, tmp_path, config)
    assert table is not None
    assert {"cosine", "GradCos", "EK-FAC"} <= set(table["method"])
    near = table[table["group"] == "near"]
    assert (near["effect"] == 2.0).all()
    assert (near["worth"] == 0.2).all()
    asked = (enrichment["model"] == "square") & (enrichment["set"] == "full") & (enrichment["method"] == "EK-FAC")
    mine = enrichment[asked].set_index("group")
    assert near.set_index("method").loc["EK-FAC", "enrichment"] == mine.loc["near", "estimate"]
    assert "removed (60 cases)" in causal_text(table)
    assert set(table["n"]) == set(enrichment.loc[asked, "n"])
    assert set(table["n_tests"]) == {9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "seeds"),
        ({"k": 0}, "k: 0"),
        ({"metrics": ("cosin",)}, "choose from cosine"),
        ({"n_boot": 5}, "n_boot"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    with pytest.raises(CriError, match=message):
        dataclasses.replace(PRESETS["test"], **change)


@pytest.mark.parametrize("args", [["tset"], ["test", "--task", "adition"], ["test", "--half-side", "40"]])
def test_bad_input_is_one_line_and_exit_code_2(args, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cri.studies.neighbor_attribution", *args],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.csv"))


def test_the_end_is_three_sentences_with_their_intervals(study):
    from cri.studies.neighbor_attribution.summary import ending, sentences

    config, figures = study
    folder = config.tables(NAME, config.name)
    accuracy, verdicts = pd.read_csv(folder / "accuracy.csv"), pd.read_csv(folder / "verdicts.csv")
    said = sentences(accuracy, verdicts, config.k)
    right = accuracy.query("part == 'test' and model == 'square'").iloc[0]
    assert f"{right['right'] / right['n']:.2f} [" in said[0]
    last = verdicts.query("method == 'cosine'").sort_values("site").iloc[-1]
    assert f"{last['near_excess']:.2f} [{last['near_excess_low']:.2f}, {last['near_excess_high']:.2f}]" in said[1]
    assert said[1].endswith(f"{last['verdict']}.")
    assert "EK-FAC" in said[2]
    text = ending(folder, figures, config)
    assert "One seed:" in text
    assert str(folder) in text
    assert "Next: cri neighbors --seeds 0 1 2" in text


def test_one_seed_is_laid_beside_the_three_that_are_recorded():
    from pathlib import Path

    from cri.studies.neighbor_attribution.summary import caveat

    recorded = Path(__file__).parents[1] / "studies" / "neighbor_attribution" / "addition-again"
    known = pd.read_csv(recorded / "verdicts.csv")
    last = known.query("method == 'cosine'").sort_values("site").iloc[-1]
    other = known.assign(verdict="nearby cases")
    text = caveat(other, 1, recorded)
    assert f" say '{last['verdict']}'" in text
    assert f"{last['near_vs_random']:.2f} [" in text
    assert "also say" in caveat(known, 1, recorded)
    assert "Three" not in caveat(known, 1, Path("nowhere"))
    assert caveat(known, 3, recorded).startswith("3 seeds:")
