"""The neighbour study in miniature: from the command's config to verdict, tables and figures; reuse; bad input."""

from __future__ import annotations

import dataclasses
import sys
import time

import pandas as pd
import pytest
import torch

from cri import plots
from cri.errors import CriError
from cri.opened import load_run
from cri.storage import read_json, write_json
from cri.studies.neighbor_attribution import tables
from cri.studies.neighbor_attribution.config import NAME, PRESETS
from cri.studies.neighbor_attribution.study import causal_text, main, run, used
from cri.studies.neighbor_attribution.tables import causal
from cri.training.runs import train_run
from tests.conftest import TINY


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


def test_tables_are_reused_and_figures_come_from_them_alone(study):
    """A record draws from a copy of its tables in a folder of their own."""
    config, figures = study
    assert {f"neighbor_attribution_test_{name}.png" for name in ("maps", "umap", "kinds")} <= {p.name for p in figures}
    before = {path.name: path.stat().st_mtime_ns for path in (config.tables(NAME, config.name)).glob("*.csv")}
    started = time.perf_counter()
    assert run(config) == figures
    assert {path.name: path.stat().st_mtime_ns for path in (config.tables(NAME, config.name)).glob("*.csv")} == before
    assert time.perf_counter() - started < 60


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
    assert (near["gain"] == 0.2).all()
    asked = (enrichment["model"] == "square") & (enrichment["set"] == "full") & (enrichment["method"] == "EK-FAC")
    mine = enrichment[asked].set_index("group")
    assert near.set_index("method").loc["EK-FAC", "enrichment"] == mine.loc["near", "estimate"]
    assert "removed (60 cases)" in causal_text(table)
    assert set(table["n"]) == set(enrichment.loc[asked, "n"])
    assert set(table["n_tests"]) == {9}


@pytest.fixture(scope="module")
def fine_tuned(tiny_run, runs):
    """A run of each split whose base is a trained model, with adapters in its last layer."""
    config = TINY.replace(
        task_params={"size": 14}, split_params={"half_side": 2}, model=str(tiny_run.path / "model"), lora=True,
        lora_params={"r": 2, "dropout": 0}, last_layers=1, steps=3, batch_size=16,
    )  # fmt: skip
    both = [config, config.replace(split="random", split_params={})]
    return [train_run(c, runs, device="cpu", evals=0, progress=False) for c in both]


def test_finished_runs_are_taken_instead_with_the_models_they_began_with_as_controls(fine_tuned, tmp_path, monkeypatch):
    # what takes long is seen in `study`: written figures and UMAP
    monkeypatch.setattr(plots, "save_figure", lambda fig, path: [])
    monkeypatch.setattr(tables, "umap_xy", lambda vectors, seed: vectors[:, :2])
    config = dataclasses.replace(
        PRESETS["test"], use=tuple(fine_tuned[::-1]), runs=tmp_path / "none", out=tmp_path, n_boot=100, layers_apart=2,
        metrics=("cosine",),
    )  # fmt: skip
    run(config)
    folder = config.tables(NAME, config.name)
    assert not (tmp_path / "none").exists()
    manifest = read_json(folder / "manifest.json")
    assert manifest["square"] == [7, 7, 2]
    assert manifest["parameters"]["with gradients"] < manifest["parameters"]["of the model"] / 10
    assert manifest["peak_memory_gib"] > 0.1
    enrichment, kinds = (pd.read_csv(folder / f"{name}.csv") for name in ("enrichment", "kinds"))
    assert set(enrichment["model"]) == {"square", "random", "untrained", "random weights"}
    # the second of two layers, and what comes before both
    assert {"blocks.0.hook_resid_pre@prompt_end", "blocks.1.hook_resid_post@prompt_end"} == {
        site for site in enrichment["site"] if "blocks" in site
    }
    assert {"GradCos", "EK-FAC"} <= set(enrichment.loc[enrichment["model"] == "untrained", "method"])
    assert {"one operand, 1 away", "one operand, 10 away", "one token differs"} <= set(kinds["kind"])
    assert kinds.loc[(kinds["model"] == "square") & (kinds["set"] == "full"), "vs_untrained"].notna().all()


def test_runs_that_cannot_be_compared_are_refused(fine_tuned, tiny_run, tmp_path):
    square, random = fine_tuned
    for given, message in (
        ((tmp_path / "nowhere",), "run: .*nowhere is not a folder"),
        ((square,), "use: no run of the random split with seed 0"),
        ((square, square), "use: .* are both of the square split, seed 0"),
        ((random, tiny_run.path), r"use: .* differ in task_params \(.*14.* and .*24"),
    ):
        with pytest.raises(CriError, match=message):
            used(dataclasses.replace(PRESETS["test"], use=given))


def test_gradients_of_an_opened_run_are_those_of_what_was_trained(fine_tuned):
    opened = load_run(fine_tuned[0])
    part = opened.trained_part()
    assert part is not None
    assert {n.split(".")[-3] for n, p in part.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    ids = opened.tokens.ids[:5]
    with torch.no_grad():
        assert torch.allclose(part(input_ids=ids).logits, opened.model(input_ids=ids).logits, atol=1e-4)
    found = opened.influence(opened.case(7, 7), "GradDot", k=None)
    assert found["score"].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "seeds"),
        ({"k": 0}, "k: 0"),
        ({"layers_apart": 0}, "layers_apart: 0"),
        ({"metrics": ("cosin",)}, "choose from cosine"),
        ({"gradients": ("TracIn",)}, "choose from GradDot, GradCos, EK-FAC"),
        ({"gradients": ("EK-FAC",)}, "gradients: .*must be a list with GradCos"),
        ({"n_boot": 5}, "n_boot"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    with pytest.raises(CriError, match=message):
        dataclasses.replace(PRESETS["test"], **change)


@pytest.mark.parametrize(
    "args", [["tset"], ["test", "--task", "adition"], ["test", "--half-side", "40"], ["--use", "no"]]
)
def test_bad_input_is_one_line_and_exit_code_2(args, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["neighbor_attribution", *args])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
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
