"""Designed removals, leave-X-out designs, planted tasks, records of retrainings, and the studies that read them."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from cri.attribution.methods import METHODS, NO_MODEL, Method
from cri.attribution.outputs import log_likelihood
from cri.config import RunConfig, TrainConfig
from cri.data.case_relations import grid_distance, mirror_images, shared_steps
from cri.data.held_out import DESIGNS, PLACES, diagonal_square, leave_out, mirror_designs
from cri.data.splits import Split, square
from cri.data.step_coverage import step_coverage
from cri.ensembles.bank import load_bank
from cri.ensembles.engine import Replica
from cri.errors import CorruptRunError, CriError
from cri.plots.retraining import flip_curves
from cri.retraining import bank as retraining_bank
from cri.retraining import config as bank_config
from cri.retraining import plans as bank_plans
from cri.retraining import records as retrainings
from cri.retraining.records import load_retrainings, log_odds, retrain
from cri.retraining.removals import random_removal, removal_groups
from cri.storage import write_json
from cri.studies.attribution_quality import figures as quality_figures
from cri.studies.attribution_quality import study as attribution_quality
from cri.studies.attribution_quality.tables import top_k_table
from cri.studies.case_effects import study as case_effects
from cri.studies.counterfactual_removal import study as counterfactual_removal
from cri.studies.leave_x_out import study as leave_x_out
from cri.studies.leave_x_out.tables import sliding_summary, symmetry_table
from cri.tasks import make_task
from cri.training.setup import prepare

TINY = RunConfig(
    task_params={"size": 8}, split_params={"half_side": 1}, train=TrainConfig(steps=12, batch_size=16, lr=5e-3)
)


@pytest.fixture(scope="module")
def addition():
    task = make_task("addition", size=40)
    split = square(task, half_side=4)
    return task, split.train_ids, np.array(task.answers)[split.train_ids]


def test_removal_groups_share_what_they_say_and_nothing_else(addition):
    task, train_ids, answers = addition
    test_id = task.id_of(21, 18)
    groups = removal_groups(task, train_ids, test_id, answers, "39", 12, seed=0)
    assert list(groups) == ["near", "same_answer", "same_operand", "same_step"]
    assert {len(ids) for ids in groups.values()} == {12}
    assert len(np.unique(np.concatenate(list(groups.values())))) == 48
    test = np.array([test_id])
    distance = {name: grid_distance(task, ids, test) for name, ids in groups.items()}
    assert all(distance["near"].max() < distance[name].min() for name in ("same_answer", "same_operand", "same_step"))
    assert {task.answers[i] for i in groups["same_answer"]} == {"39"}
    shares = [bool({21, 18} & set(pair) and (pair[0] == 21 or pair[1] == 18)) for pair in
              (task.operands[i] for i in groups["same_operand"])]  # fmt: skip
    assert all(shares)
    assert (shared_steps(task, groups["same_step"], test) > 0).all()
    # nobody nearer was passed over
    rest = np.setdiff1d(train_ids, groups["near"])
    assert grid_distance(task, rest, test).min() >= distance["near"].max()


def test_removals_are_of_one_size_reproducible_and_refuse_training_cases(addition):
    task, train_ids, answers = addition
    test_id = task.id_of(20, 20)
    large = removal_groups(task, train_ids, test_id, answers, "40", 10_000 // 10, seed=1)
    # all distant cases that share a step, and as many near ones; fewer have the same answer
    assert len(large["near"]) == len(large["same_step"])
    assert "same_answer" not in large
    again = removal_groups(task, train_ids, test_id, answers, "40", 1000, seed=1)
    assert all((large[name] == again[name]).all() for name in large)
    assert "same_answer" not in removal_groups(task, train_ids, test_id, answers, "", 5, seed=1)
    with pytest.raises(CriError, match="is a training case"):
        removal_groups(task, train_ids, int(train_ids[0]), answers, "1", 5, seed=1)
    with pytest.raises(CriError, match="size"):
        random_removal(train_ids, len(train_ids), 0)


def test_groups_that_are_not_wanted_are_not_set_apart():
    """Of a task of one step all cases that share it have the same answer, and some an operand too."""
    task = make_task("digit_table", size=40)
    test_id = task.id_of(23, 17)
    train_ids = np.setdiff1d(np.arange(task.n_cases), [test_id])
    answers = np.array(task.answers)[train_ids]
    label = task.answers[test_id]
    assert removal_groups(task, train_ids, test_id, answers, label, 50, seed=0) == {}
    groups = removal_groups(task, train_ids, test_id, answers, label, 50, 0, ("near", "same_step"))
    assert list(groups) == ["near", "same_step"]
    pairs = sorted(task.operands[i] for i in groups["same_step"])
    assert pairs == [(a, b) for a in (3, 13, 23, 33) for b in (7, 17, 27, 37) if (a, b) != (23, 17)]


@pytest.mark.parametrize("name", ["addition", "chicken_rabbit"])
def test_leave_out_designs_are_of_the_squares_size_and_hold_out_what_they_say(name):
    task = make_task(name, size=40)
    held = {design: leave_out(task, design, 81, seed=0) for design in DESIGNS}
    sizes = {design: int(mask.sum()) for design, mask in held.items()}
    assert {n for design, n in sizes.items() if design != "step"} == {81}
    assert abs(sizes["step"] - 81) <= 12
    assert (held["square"] == square(task, half_side=4).test).all()
    unseen = {d: step_coverage(task, Split(~mask, {}))["n_unseen"].to_numpy()[mask] > 0 for d, mask in held.items()}
    assert unseen["step"].all()
    assert unseen["random"].mean() < 0.2
    kept = task.values[~held["answers"]]
    gone = np.unique(task.values[held["answers"]])
    assert np.isin(gone, kept).sum() <= 1  # all but part of the last answer
    difference = task.coords[held["band"]]
    assert np.ptp(difference[:, 0] - difference[:, 1]) <= 4
    assert (leave_out(task, "random", 81, seed=1) != held["random"]).any()


@pytest.mark.parametrize("place", PLACES)
def test_mirror_designs_differ_in_their_mirror_images(place):
    task = make_task("addition", size=40)
    image = mirror_images(task)
    assert task.operands[image[task.operands.index((7, 21))]] == (21, 7)
    held = mirror_designs(task, 81, place)
    own = diagonal_square(task, 81, place)
    assert own.sum() == 81
    assert own[image[own & (image >= 0)]].all()  # it contains its own images
    assert task.values[own].mean() == task.values[held["apart"]].mean()
    share = {design: (~mask[image[mask]]).mean() for design, mask in held.items()}
    assert share == {"apart": 1, "mirrored": 0, "one_sided": 1}
    assert held["apart"].sum() == 81
    assert held["mirrored"].sum() == held["one_sided"].sum() == 162
    distance = {d: grid_distance(task, np.flatnonzero(~m), np.flatnonzero(m)).min(axis=0) for d, m in held.items()}
    assert distance["mirrored"].mean() == distance["apart"].mean() < distance["one_sided"].mean()
    assert (mirror_images(make_task("linear_regression", size=12)) == -1).all()
    with pytest.raises(CriError, match="one side of the diagonal"):
        mirror_designs(make_task("addition", size=12), 49)
    with pytest.raises(CriError, match="place"):
        mirror_designs(task, 81, 3)


def test_mirror_designs_are_trained_with_every_seed():
    options = dataclasses.replace(bank_config.PRESETS["test"], leave_out_seeds=(0, 3))
    family = bank_plans.make_family("addition:direct:number", options)
    replicas = list(bank_plans.leave_outs_mirror(family, options))
    assert [(r.seed, r.note["design"]) for r in replicas] == [
        (seed, design) for seed in (0, 3) for design in ("apart", "mirrored", "one_sided")
    ]
    assert [int((~r.train).sum()) for r in replicas] == [r.note["n_held_out"] for r in replicas] == 2 * [9, 18, 18]


def test_a_plan_of_a_place_trains_two_designs_with_one_seed():
    options = bank_config.PRESETS["test"]
    family = bank_plans.make_family("addition:direct:number", options)
    for plan, designs in (("image-2-7", ("mirrored", "one_sided")), ("diagonal-1-0", ("diagonal", "apart"))):
        replicas = list(bank_plans.PLANS[plan](family, options, None))  # pyright: ignore[reportArgumentType]
        assert tuple(r.note["design"] for r in replicas) == designs
        assert {(r.note["place"], r.seed) for r in replicas} == {(int(plan.split("-")[1]), int(plan.split("-")[2]))}
    assert "image-2-8" not in bank_plans.PLANS


def test_leave_out_refuses_bad_designs():
    task = make_task("addition", size=12)
    with pytest.raises(CriError, match="choose from square, scattered"):
        leave_out(task, "sqare", 9, 0)
    with pytest.raises(CriError, match="odd number squared"):
        leave_out(task, "square", 16, 0)
    with pytest.raises(CriError, match="n: 144"):
        leave_out(task, "random", 144, 0)


def test_planted_tasks_hold_what_was_planted():
    table, patches = make_task("digit_table", size=30), make_task("patchwork", size=30, n_sites=30)
    digits = table.cases % 10
    by_pair = pd.Series(table.values).groupby([digits[:, 0], digits[:, 1]]).nunique()
    assert (by_pair == 1).all()
    # neighbours agree in the patchwork and not in the table
    grid, other = patches.values.reshape(30, 30), table.values.reshape(30, 30)
    assert (grid[:, 1:] == grid[:, :-1]).mean() > 0.7
    assert (other[:, 1:] == other[:, :-1]).mean() < 0.2
    assert len(np.unique(patches.values)) > 10


def test_log_odds_of_a_completion():
    p = np.array([0.2, 0.5, 0.99])
    np.testing.assert_allclose(log_odds(-np.log(p)), np.log(p / (1 - p)), atol=1e-9)
    assert np.isfinite(log_odds(np.array([0.0, 80.0]))).all()


def _replicas(n: int, name: str) -> list[Replica]:
    masks = np.random.default_rng(0).random((n, 64)) < 0.8
    return [Replica(seed, mask, note={"explains": name.format(seed)}) for seed, mask in enumerate(masks)]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two base models, and three retrainings that explain the second."""
    folder = tmp_path_factory.mktemp("records")
    queries = np.array([3, 27, 28, 60])
    options = {"device": "cpu", "jobs": 1, "progress": False}
    base = load_retrainings(retrain(folder / "base", TINY, _replicas(2, "square:{}"), queries, None, **options))
    tables = {f"square:{i}": base.predicted(i, prepare(TINY).tokens) for i in range(2)}
    retrained = retrain(folder / "more", TINY, _replicas(3, "square:1"), queries, tables, method="stacked", **options)
    return folder, queries, base, tables, load_retrainings(retrained), options


def test_record_holds_what_its_models_say(records):
    _, queries, base, tables, more, _ = records
    tokens = prepare(TINY).tokens
    bank = base.bank()
    for i in range(2):
        model = bank.model(i)
        for target, table in (("reference", tokens[queries]), ("prediction", tables[f"square:{i}"])):
            with torch.no_grad():
                want = -log_likelihood(model(input_ids=table.ids[:, :-1]).logits, table)
            np.testing.assert_allclose(base.loss[target][i], want.numpy(), atol=1e-4)
    assert (base.correct == bank.correct).all()
    assert (base.train == bank.train).all()
    # greedy: nothing the model could have said in one token more is likelier than what it did say
    assert (base.loss["prediction"] <= base.loss["reference"] + 1e-4).mean() > 0.5
    assert len(more) == 3
    assert more.train.sum(axis=1).tolist() == more.table["n_train"].tolist()
    # the first two retrainings are the base models again, in other arithmetic
    np.testing.assert_allclose(more.loss["reference"][:2], base.loss["reference"], atol=5e-3)
    np.testing.assert_allclose(more.loss["prediction"][1], base.loss["prediction"][1], atol=5e-3)


def test_record_is_compact_reused_and_guarded(records):
    folder, queries, _, tables, more, options = records
    assert not list((folder / "more").glob("bank-*"))
    with pytest.raises(CriError, match="kept no weights"):
        more.bank()
    before = (folder / "more" / "complete.json").stat().st_mtime_ns
    retrain(folder / "more", TINY, _replicas(3, "square:1"), queries, tables, **options)
    assert (folder / "more" / "complete.json").stat().st_mtime_ns == before
    with pytest.raises(CorruptRunError, match="other options"):
        retrain(folder / "more", TINY, _replicas(2, "square:1"), queries, tables, **options)


def test_an_interrupted_record_goes_on_without_training_again(records, tmp_path, monkeypatch):
    _, queries, _, tables, more, options = records

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retrainings, "_measure", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(tmp_path / "more", TINY, _replicas(3, "square:1"), queries, tables, method="stacked", **options)
    monkeypatch.setattr("cri.ensembles.engine.train_stack", killed)  # trained models must be found, not made
    again = load_retrainings(
        retrain(tmp_path / "more", TINY, _replicas(3, "square:1"), queries, tables, method="stacked", **options)
    )
    np.testing.assert_array_equal(again.loss["prediction"], more.loss["prediction"])


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """The bank of the test preset, smaller still, with both planted tasks."""
    folder = tmp_path_factory.mktemp("bank")
    number = "addition:direct:number"
    plans = [
        f"{number}/{kind}"
        for kind in ("subsets-50", "removals-square", "removals-random", "leave-out", "sliding", "near-sizes")
    ]
    plans += [f"{task}:direct:number/removals-square" for task in ("patchwork", "digit_table")]
    config = dataclasses.replace(
        bank_config.PRESETS["test"], plans=tuple(plans), half_side=2, steps=15, n_subsets=3, n_tests=1,
        out=folder, jobs=1, device="cpu",
    )  # fmt: skip
    retraining_bank.run(config)
    return folder / "studies" / "retraining_bank"


def test_removal_study_from_records_to_figures(bank, tmp_path):
    config = dataclasses.replace(counterfactual_removal.PRESETS["test"], records=bank, out=tmp_path)
    figures = counterfactual_removal.run(config)
    names = {f.stem.removeprefix("counterfactual_removal_test_") for f in figures}
    assert names == {"index", "dose_index", "effects", "marginal"}
    assert all(f.stat().st_size > 0 for f in figures)
    index = pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "index.csv")
    assert set(index["model"]) == {"trained", "untrained", "relabelled"}
    assert set(index["task"]) == {"addition", "patchwork", "digit_table"}
    assert {"edge", "outside", "all", "random"} <= set(index["region"])
    assert index["cri"].between(-1, 1).all()
    cases = pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "cases.csv")
    assert (cases["cri_low"] <= cases["cri_high"]).all()
    assert set(cases["split"]) == {"square"}
    assert (
        pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "calibration.csv")["auc"]
        .between(0, 1)
        .all()
    )
    sizes = pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "near_sizes.csv")
    assert set(sizes["size"]) == {8, 30}
    assert (sizes["n_removed"] == sizes["size"]).all()
    doses = pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "doses.csv")
    assert set(doses["group"]) == {"near", "same_answer", "same_operand", "same_step"}
    found = pd.read_csv(tmp_path / "studies" / "counterfactual_removal" / "test" / "dose_index.csv")
    assert set(found["model"]) == {"trained", "relabelled"}
    assert (found["cri_low"] <= found["cri_high"]).all()


def test_case_effects_study_from_records_to_figures(bank, tmp_path):
    config = dataclasses.replace(case_effects.PRESETS["test"], records=bank, out=tmp_path)
    figures = case_effects.run(config)
    assert {f.stem.removeprefix("case_effects_test_") for f in figures} == {"kernel", "kinds"}
    tables = {p.stem: pd.read_csv(p) for p in (tmp_path / "studies" / "case_effects" / "test").glob("*.csv")}
    assert set(tables) == {"kernel", "kinds", "memberships", "verdicts"}
    assert tables["kernel"][["d_row", "d_col"]].abs().max().max() == 5
    kinds = tables["kinds"].dropna(subset=["low", "high"])
    assert len(kinds)
    assert (kinds["low"] <= kinds["high"]).all()
    assert set(tables["memberships"]["cases"]) == {"all cases", "answer held fixed"}
    assert (tables["memberships"]["vif"] >= 0.99).all()
    verdicts = tables["verdicts"]
    assert set(verdicts["model"]) == {"trained", "exchanged", "untrained"}
    assert set(verdicts["target"]) == {"reference", "prediction"}


def test_leave_x_out_study_from_records_to_figures(bank, tmp_path):
    config = dataclasses.replace(leave_x_out.PRESETS["test"], records=bank, out=tmp_path)
    assert len(leave_x_out.run(config)) == 4
    designs = pd.read_csv(tmp_path / "studies" / "leave_x_out" / "test" / "designs.csv").set_index("design")
    assert set(designs.index) == set(DESIGNS)
    symmetry = pd.read_csv(tmp_path / "studies" / "leave_x_out" / "test" / "symmetry.csv")
    assert symmetry["equal"].between(0, 1).all()
    assert designs.loc["answers", "image"] < designs.loc["random", "image"] <= 1
    record = load_retrainings(bank / "test" / "addition-direct-number" / "leave-out")
    row = int(np.flatnonzero(record.table["design"] == "band")[0])
    assert designs.loc["band", "accuracy"] == pytest.approx(record.correct[row, ~record.train[row]].mean(), abs=1e-4)
    assert len(pd.read_csv(tmp_path / "studies" / "leave_x_out" / "test" / "sliding.csv")) == 4
    places = pd.DataFrame({"center_row": range(9), "center_col": 0, "seed": 0, "distance": 2.0, "image": 1.0})
    family = {"task": "addition", "format": "direct", "tokenizer": "number"}
    slid = places.assign(accuracy=places["center_row"] / 9, same_answer=places["center_row"] ** 2, **family)
    row = sliding_summary(slid.assign(distance=-slid["accuracy"]), n_boot=50).iloc[0]
    assert row["rho_same_answer"] == pytest.approx(1)
    assert row["rho_distance_high"] == pytest.approx(-1)


def test_symmetric_mistakes_are_seen(bank):
    record = load_retrainings(bank / "test" / "addition-direct-number" / "base")
    task = make_task("addition", size=16)
    total = task.cases.sum(axis=1)[record.queries]
    symmetric = np.zeros_like(record.completions)
    symmetric[..., 0] = task.cases.prod(axis=1)[record.queries]  # of a + b and b + a alone the same
    lengths = np.ones(symmetric.shape[:2], dtype=int)
    of_sum = np.zeros_like(symmetric)
    of_sum[..., 0] = total + 1
    wrong = np.zeros_like(record.correct)
    for completions, others in ((symmetric, 0.0), (of_sum, 1.0)):
        made = dataclasses.replace(record, completions=completions, completion_lengths=lengths, correct=wrong)
        table = symmetry_table(made, task).set_index("pairs")["equal"]
        assert (table["mirror images"] == 1).all()
        assert (table["others"] == others).all()
    right = dataclasses.replace(record, correct=~wrong)
    assert len(symmetry_table(right, task)) == 0


def test_quality_study_from_records_to_figures(bank, tmp_path, monkeypatch):
    def operand(question):
        yield NO_MODEL, np.tile(question.task.cases[question.train_ids, :1], len(question.query_ids))

    # a new entry of the registry reaches the tables and figures by itself
    monkeypatch.setitem(METHODS, "operand", Method("operand", "larger a", "model-free", "black", "cases", operand))
    axes = []
    points = quality_figures.quality_points
    monkeypatch.setattr(quality_figures, "quality_points", lambda *args, **kw: axes.append(points(*args, **kw)))
    config = dataclasses.replace(
        attribution_quality.PRESETS["test"], records=bank, out=tmp_path, tracin=True,
        runs=tmp_path / "runs", jobs=1, device="cpu",
    )  # fmt: skip
    drawn = {f.stem.removeprefix("attribution_quality_test_") for f in attribution_quality.run(config)}
    assert drawn == {"lds", "variants"}
    lds = pd.read_csv(tmp_path / "studies" / "attribution_quality" / "test" / "lds.csv")
    assert {"same_answer", "bm25", "GradDot", "TracIn", "EK-FAC", "EK-FAC, mean over seeds"} <= set(lds["method"])
    assert {"cosine, layer 0", "cosine, layer 1", "operand"} <= set(lds["method"])
    assert "larger a" in {text.get_text() for ax in axes for text in ax.get_yticklabels()}
    assert "operand" in set(
        pd.read_csv(tmp_path / "studies" / "attribution_quality" / "test" / "methods.csv")["method"]
    )
    assert "EK-FAC, mean over 4 models" in set(lds["method"])
    (halves,) = (tmp_path / "runs").glob("bank-*")
    base = load_retrainings(bank / "test" / "addition-direct-number" / "base")
    train, others = base.train[0], load_bank(halves).train
    assert len(others) == 2
    assert not (others & ~train).any()
    judged = load_retrainings(bank / "test" / "addition-direct-number" / "subsets-50").train
    assert not (others[:, None] == judged).all(axis=2).any()  # none of the subsets that are predicted
    assert set(lds["retraining"]) == {"fixed seed", "new seed", "mean over seeds"}
    assert set(lds["target"]) == {"reference", "prediction"}
    assert lds["lds"].between(-1, 1).all()
    best = lds[lds["method"] == lds["best_baseline"]]
    assert best["gain"].abs().max() == 0


def test_top_k_removes_what_each_method_ranks_highest(bank, tmp_path):
    options = dataclasses.replace(bank_config.PRESETS["test"], half_side=2, steps=15)
    family = bank_plans.make_family("addition:direct:number", options)
    base = load_retrainings(bank / "test" / "addition-direct-number" / "base")
    # models of 15 steps answer nothing rightly
    with pytest.raises(CriError, match="nothing to train"):
        bank_plans.build("top-k", family, options, dataclasses.replace(base, correct=base.correct & False))
    replicas = list(bank_plans.top_k(family, options, dataclasses.replace(base, correct=base.correct | True)))
    assert {r.note["method"] for r in replicas} == {"random", *bank_plans.TOP_K_METHODS}
    answers = np.array(family.task.answers)
    for replica in replicas:
        gone = family.base["square"] & ~replica.train
        assert gone.sum() == replica.note["k"]
        if replica.note["method"] == "same_answer":
            test = replica.note["test_id"]
            others = (answers == answers[test]) & family.base["square"]
            assert (answers[gone] == answers[test]).sum() == min(others.sum(), replica.note["k"])
    # of every retraining that loses its own test case, the table tells
    notes = pd.DataFrame([{**r.note, "seed": r.seed} for r in replicas])
    correct = np.ones((len(notes), family.task.n_cases), dtype=bool)
    lost = (notes["method"] == "EK-FAC").to_numpy()
    correct[np.flatnonzero(lost), notes["test_id"][lost]] = False
    loss = {"prediction": np.ones((len(notes), len(family.queries)), dtype=np.float32)}
    record = dataclasses.replace(
        base, table=notes, correct=correct, loss=loss, train=np.stack([r.train for r in replicas]),
        completions=None, completion_lengths=None,
    )  # fmt: skip
    table = top_k_table(record).set_index("method")
    assert table.loc["EK-FAC", "lost"] == 1
    assert table.loc["GradCos", "lost"] == 0
    assert table.loc["random", "n"] == 2 * options.n_random_removals * len(notes.loc[lost, "test_id"].unique())
    drawn = flip_curves(table.reset_index().assign(name=table.index, color="black"))
    legend = drawn.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} >= {"EK-FAC", "random"}


def test_studies_make_the_bank_they_need(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(retraining_bank, "run", lambda config: asked.append(config))
    config = dataclasses.replace(
        counterfactual_removal.PRESETS["test"], records=tmp_path / "recorded", out=tmp_path, jobs=3
    )
    made = tmp_path / "studies" / "retraining_bank" / "test"
    assert retraining_bank.find_or_make(config, "removals-") == made
    assert [(c.out, c.jobs, c.name) for c in asked] == [(tmp_path, 3, "test")]
    # what is recorded is read, never written to
    for folder in (made, tmp_path / "recorded" / "test"):
        write_json(folder / "addition-direct-number" / "removals-square" / "complete.json", {"sha256": {}})
        assert retraining_bank.find_or_make(config, "removals-") == folder
    asked.clear()
    retraining_bank.find_or_make(dataclasses.replace(config, bank="cpu"), "removals-")
    assert [c.plans[0] for c in asked] == ["addition:direct:number/base", "patchwork:direct:number/base"]
    assert {c.name for c in asked} == {"cpu"}


@pytest.mark.parametrize("name", [name for name, bank in bank_config.PRESETS.items() if bank.name == "cpu"])
def test_every_family_of_the_small_presets_holds_its_square_out(name):
    options = bank_config.PRESETS[name]
    for family in {plan.partition("/")[0] for plan in options.plans}:
        config = options.run_config(family)
        found = bank_plans.make_family(family, options)
        assert len(found.square) == (2 * options.half_side + 1) ** 2
        assert len(found.queries) >= len(found.square) + len(found.outside)
        assert (config.train.steps, config.train.batch_size) == (options.steps, options.batch_size)
        if family.startswith("mod_addition"):  # sums do wrap
            assert (found.task.values < found.task.coords.sum(axis=1)).any()


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("retraining_bank", ["--plans", "addition/base"], "TASK:FORMAT:TOKENIZER/KIND"),
        ("retraining_bank", ["--plans", "addition:direct:number/bse"], "choose from base, subsets-50"),
        ("retraining_bank", ["--plans", "adition:direct:number/base"], "choose from addition"),
        ("retraining_bank", ["--removal-sizes", "0"], "removal_sizes"),
        ("counterfactual_removal", ["--bank", "gpus"], "choose from cpu, cpu-more, cpu-digit"),
        ("counterfactual_removal", ["--n-boot", "3"], "n_boot"),
        ("leave_x_out", ["--bank", "gpus"], "choose from cpu, cpu-more, cpu-digit"),
        ("attribution_quality", ["--family", "addition"], "TASK:FORMAT:TOKENIZER"),
        ("attribution_quality", ["test", "--family", "addition:rfft:digit"], "not recorded"),
        ("attribution_quality", ["--dampings", "-1"], "dampings"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(module, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *args])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"cri.studies.{module}.__main__").main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.rglob("*.csv"))
