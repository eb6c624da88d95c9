"""The registry of attribution methods: names old and new, one damping, and a new entry that reaches every study."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cri.attribution import methods
from cri.attribution.damping import DAMPING
from cri.attribution.influence import influence
from cri.attribution.methods import METHODS, Method, find
from cri.attribution.questions import Question
from cri.errors import CriError
from cri.studies.neighbor_attribution import figures as neighbor_figures
from cri.studies.neighbor_attribution import tables as neighbor_tables
from cri.studies.neighbor_attribution.config import PRESETS
from cri.studies.neighbor_attribution.study import run


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("bm25", "bm25"), ("BM25", "bm25"), ("grad_dot", "GradDot"), ("ekfac", "EK-FAC"), ("cosine, layer 1", "cosine"),
        ("whitened cosine, layer 0", "whitened_cosine"), ("EK-FAC, damping 0.1", "EK-FAC"),
        ("EK-FAC + 8 CG steps", "EK-FAC"), ("EK-FAC, mean over 27 models", "EK-FAC"),
        ("same_answer_by_distance", "same_answer_by_distance"),
    ],
)  # fmt: skip
def test_rows_of_tables_name_their_method(name, key):
    assert find(name).key == key


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(CriError, match=r"method: unknown 'EKFAC'; choose from same_answer, .*EK-FAC"):
        find("EKFAC")


def test_keys_labels_and_former_names_are_unique():
    names = [name for m in METHODS.values() for name in {m.key, m.label, *m.former}]
    assert len(names) == len(set(names))
    assert len({m.color for m in METHODS.values()}) == len(METHODS)


def test_recorded_tables_name_registered_methods(pytestconfig):
    found = list((pytestconfig.rootpath / "studies").glob("*/*/*.csv*"))
    seen = 0
    for path in found:
        if path.parent.parent.name in ("attribution_quality", "neighbor_attribution"):
            table = pd.read_csv(path)
            if "method" in table:
                assert {find(name).key for name in set(table["method"]) - {"random"}}
                seen += 1
    assert seen > 8


def test_influence_is_damped_alike_everywhere(tiny_run):
    """The default of the function, the registry's scorer and what a study records are one number."""
    train_ids, query_ids = tiny_run.split.train_ids[:40], tiny_run.split.test_ids[:3]
    queries = tiny_run.explained(query_ids, "prediction")
    question = Question(tiny_run, train_ids, query_ids, queries, [], tiny_run.model)
    scores = METHODS["EK-FAC"].only(question)
    args = (tiny_run.model, question.fisher, question.train, queries)
    explicit = influence(*args, target="prediction", relative_damping=DAMPING, progress=False)
    assert np.array_equal(scores, explicit)
    assert np.array_equal(influence(*args, target="prediction", progress=False), explicit)
    assert not np.allclose(influence(*args, target="prediction", relative_damping=0.1, progress=False), explicit)
    assert methods.settings()["EK-FAC"]["relative damping"] == DAMPING


def test_what_is_explained_is_said_and_checked(tiny_run):
    wrong = tiny_run.predictions.index[~tiny_run.predictions["correct"]].to_numpy()[:3]
    train = tiny_run.tokens[tiny_run.split.train_ids[:200]]
    reference, prediction = (tiny_run.explained(wrong, target) for target in ("reference", "prediction"))
    assert (reference.target, prediction.target) == ("reference", "prediction")
    said = [tiny_run.tokenizer.decode(row[n:m].tolist()) for row, n, m in
            zip(prediction.ids, prediction.prompt_lengths, prediction.lengths - 1, strict=True)]  # fmt: skip
    assert said == tiny_run.predictions["completion"][wrong].tolist()
    question = Question(tiny_run, tiny_run.split.train_ids[:200], wrong, prediction, [], tiny_run.model)
    fisher = question.fisher
    for tokens, target in ((reference, "prediction"), (prediction, "reference")):
        with pytest.raises(CriError, match="target"):
            influence(tiny_run.model, fisher, train, tokens, target=target, progress=False)
    one, other = (
        influence(tiny_run.model, fisher, train, tokens, target=tokens.target, progress=False)
        for tokens in (reference, prediction)
    )
    assert np.corrcoef(one[:, 0], other[:, 0])[0, 1] < 0.9
    with pytest.raises(TypeError, match="target"):
        influence(tiny_run.model, fisher, train, reference)


def test_a_new_entry_reaches_tables_figures_and_help(runs, tmp_path, monkeypatch):
    """`test_retraining_bank` does the same with the other study."""

    def operand(question):
        yield methods.NO_MODEL, np.tile(question.task.cases[question.train_ids, :1], len(question.query_ids))

    entry = Method("operand", "larger a", "model-free", "black", "cases", operand, {"weight": 2.0})
    monkeypatch.setitem(METHODS, entry.key, entry)
    assert "operand (weight 2)" in methods.help_text()
    drawn = []
    folder = tmp_path / "studies" / "neighbor_attribution" / "test"

    def keep(fig, path):
        drawn.append(fig)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # a record counts its figures
        return [path]

    monkeypatch.setattr(neighbor_figures.plots, "save_figure", keep)
    config = dataclasses.replace(PRESETS["test"], size=16, half_side=2, steps=60, runs=runs, out=tmp_path, device="cpu")
    run(config)
    table = pd.read_csv(folder / "enrichment.csv")
    assert "operand" in set(table["method"])
    described = pd.read_csv(folder / "methods.csv").set_index("method")
    assert described.loc["operand", "settings"] == "weight 2"
    assert described.loc["EK-FAC", "settings"] == "relative damping 1e-05, labels sampled"
    ticks = {text.get_text() for fig in drawn for ax in fig.axes for text in ax.get_xticklabels()}
    assert "larger a" in ticks
    titles = [fig.get_suptitle() for fig in drawn]
    assert sum("EK-FAC: relative damping 1e-05" in title for title in titles) >= 3
    # tables made with other settings are made again
    monkeypatch.setattr(neighbor_tables, "compute", lambda *args: 1 / 0)
    monkeypatch.setitem(METHODS, entry.key, dataclasses.replace(entry, settings={"weight": 3.0}))
    with pytest.raises(ZeroDivisionError):
        run(config)


@pytest.mark.parametrize("study", ["neighbor_attribution", "attribution_quality"])
def test_help_lists_the_methods_without_torch(study):
    code = (
        f"import sys; sys.argv = ['x', '--help']\nfrom cri.studies.{study}.__main__ import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "EK-FAC (relative damping 1e-05" in " ".join(done.stdout.split())
