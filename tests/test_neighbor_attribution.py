"""The neighbour study in miniature: from the command's config to verdict, tables and figures; reuse; bad input."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pandas as pd
import pytest

from cri.errors import CriError
from cri.studies.neighbor_attribution import PRESETS, run
from cri.studies.neighbor_figures import draw


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory):
    where = tmp_path_factory.mktemp("neighbors")
    config = dataclasses.replace(
        PRESETS["test"], steps=60, runs=runs, record=where / "record", figures=where / "figures", device="cpu"
    )
    return config, run(config)


def test_tables_hold_every_method_with_its_controls(study):
    config, _ = study
    folder = config.record / config.name
    enrichment = pd.read_csv(folder / "enrichment.csv")
    assert set(enrichment["model"]) == {"square", "random", "untrained"}
    assert {"cosine", "euclidean", "grad_dot", "grad_cos", "same_answer", "shared_operand", "nearest_operands"} <= set(
        enrichment["method"]
    )
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
    before = (config.record / config.name / "complete.json").stat().st_mtime_ns
    started = time.perf_counter()
    run(config)
    assert (config.record / config.name / "complete.json").stat().st_mtime_ns == before
    assert time.perf_counter() - started < 60
    assert {p.name for p in draw(config.record / config.name, tmp_path)} == {p.name for p in figures}


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
