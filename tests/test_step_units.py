"""(case, step) as the unit: sums over tokens, memberships by hand, gradients against autograd, planted mechanisms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cri.attribution.gradients import gradient_scores
from cri.attribution.methods import METHODS
from cri.attribution.outputs import log_likelihood
from cri.attribution.step_questions import STEP_METHODS, StepQuestion, planted_scores, written_units
from cri.config import RunConfig
from cri.data import step_units as units
from cri.data.step_places import places
from cri.errors import CriError
from cri.formats.shuffled import trace_owner
from cri.statistics import grid_blocks
from cri.statistics.memberships import membership_regression, overlapping_enrichment
from cri.training.setup import prepare


@pytest.fixture(scope="module")
def source():
    config = RunConfig(
        task_params={"size": 16}, format="scratchpad", tokenizer="digit", split="square", split_params={"half_side": 2}
    )
    return prepare(config)


@pytest.fixture(scope="module")
def question(source):
    table = units.two_digit(places(source, "step:all"))
    train, test = (table[table["train"] == t].reset_index(drop=True) for t in (True, False))
    return StepQuestion.ask(source, train, test, source.model)


def token_units(tokens, case_ids):
    """Every completion token of the cases as a unit of one token."""
    rows = [
        (case, position - 1, 1)
        for case in np.asarray(case_ids).tolist()
        for position in range(int(tokens.prompt_lengths[case]), int(tokens.lengths[case]))
    ]
    return pd.DataFrame(rows, columns=["case", "position", "n_tokens"])


def log_p(model, tokens):
    with torch.no_grad():
        return log_likelihood(model(input_ids=tokens.ids[:, :-1]).logits, tokens)


def test_tokens_of_a_case_add_up_to_the_case(source):
    cases = np.array([3, 200, 77])
    table = token_units(source.tokens, cases)
    parts = log_p(source.model, units.unit_tokens(source.tokens, table))
    total = torch.zeros(len(cases)).index_add(0, torch.from_numpy(np.searchsorted([3, 77, 200], table["case"])), parts)
    assert torch.allclose(total, log_p(source.model, source.tokens[np.sort(cases)]), atol=1e-4)


def test_gradient_of_a_case_is_the_sum_of_its_tokens(source, question):
    cases = question.train_units["case"].unique()[:4]
    test = units.unit_tokens(source.tokens, question.test_units.head(3))
    whole = gradient_scores(source.model, source.tokens[cases], test, target="reference", progress=False).dot
    table = token_units(source.tokens, cases)
    by_token = gradient_scores(
        source.model, units.unit_tokens(source.tokens, table), test, target="reference", progress=False
    ).dot
    summed = np.stack([by_token[(table["case"] == case).to_numpy()].sum(axis=0) for case in cases])
    assert np.allclose(whole, summed, atol=1e-4 * np.abs(whole).max())


def test_gradient_of_a_step_is_autograd_of_its_tokens(source, question):
    model, tokens = source.model, source.tokens

    def gradient(row):
        case, start, n = int(row["case"]), int(row["position"]) + 1, int(row["n_tokens"])
        ids = tokens.ids[case : case + 1, : start + n]
        log_probabilities = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)[0]
        value = torch.stack([log_probabilities[start + i - 1, ids[0, start + i]] for i in range(n)]).sum()
        found = torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad])
        return torch.cat([g.flatten() for g in found])

    train, test = question.train_units.iloc[[0, 40, 90]], question.test_units.iloc[[0, 7]]
    model.eval()
    expected = (
        torch.stack([gradient(r) for _, r in train.iterrows()])
        @ torch.stack([gradient(r) for _, r in test.iterrows()]).T
    )
    found = gradient_scores(
        model, units.unit_tokens(tokens, train), units.unit_tokens(tokens, test), target="reference", progress=False
    ).dot
    assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_written_units_are_the_models_own(source, question):
    reference = units.unit_tokens(source.tokens, question.test_units)
    written, same = written_units(source.model, reference, batch_size=7)
    for i in range(0, len(written), 9):
        n = int(written.lengths[i])
        start = int(written.prompt_lengths[i])
        with torch.no_grad():
            best = source.model(input_ids=reference.ids[i : i + 1, : n - 1]).logits.argmax(-1)[0]
        assert written.ids[i, start:n].tolist() == best[start - 1 :].tolist()
        assert same[i] == (written.ids[i, :n].tolist() == reference.ids[i, :n].tolist())


def test_memberships_pair_by_pair(source, question):
    task = source.task
    masks = units.step_memberships(task, question.train_units, question.test_units)
    rng = np.random.default_rng(0)
    for i, j in zip(
        rng.integers(len(question.train_units), size=300), rng.integers(len(question.test_units), size=300), strict=True
    ):
        a, b = question.train_units.iloc[i], question.test_units.iloc[j]
        step = all(a[c] == b[c] for c in ("op", "x", "y", "carry"))
        assert masks[units.SAME_STEP][i, j] == (step and a["column"] == b["column"])
        assert masks[units.STEP_ELSEWHERE][i, j] == (step and a["column"] != b["column"])
        assert masks[units.RESULT][i, j] == (a["text"] == b["text"])
        assert masks[units.MIRROR_STEP][i, j] == (
            (a["op"], a["x"], a["y"], a["carry"]) == (b["op"], b["y"], b["x"], b["carry"]) and a["x"] != a["y"]
        )
        one, other = task.operands[a["case"]], task.operands[b["case"]]
        assert masks[units.OPERAND][i, j] == (one[0] == other[0] or one[1] == other[1])
    distance = np.abs(
        task.coords[question.train_units["case"]][:, None] - task.coords[question.test_units["case"]][None]
    ).max(-1)
    for j in range(0, len(question.test_units), 11):
        near = masks[units.NEAR][:, j]
        assert len(set(question.train_units["case"][near])) >= units.N_NEAR
        assert distance[near, j].max() < distance[~near, j].min()


def test_enrichment_of_overlapping_groups_by_hand():
    scores = np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    masks = {
        "a": np.array([[1, 1], [1, 0], [0, 0], [0, 0]], bool),
        "b": np.array([[1, 0], [0, 0], [1, 1], [0, 0]], bool),
    }
    table = overlapping_enrichment(scores, masks, k=2).set_index(["group", "test"])
    assert table.loc[("a", 0), ["share", "base"]].tolist() == [1.0, 0.5]
    assert table.loc[("b", 0), ["share", "base"]].tolist() == [0.5, 0.5]
    assert table.loc[("a", 1), "share"] == pytest.approx(0.25)  # four ties share two places
    inner = overlapping_enrichment(scores, masks, k=1, candidates=np.array([[0, 0], [1, 1], [1, 1], [1, 0]], bool))
    found = inner.set_index(["group", "test"])
    assert found.loc[("a", 0), "share"] == 1.0
    assert found.loc[("b", 0), ["share", "base"]].tolist() == [0.0, pytest.approx(1 / 3)]


def test_regression_tells_overlapping_memberships_apart():
    rng = np.random.default_rng(0)
    a, b = rng.random((300, 40)) < 0.2, rng.random((300, 40)) < 0.3
    b |= a & (rng.random((300, 40)) < 0.7)  # they overlap
    scores = 2.0 * a + rng.standard_normal((300, 40))
    block = np.arange(40) // 4
    found = membership_regression(scores, {"a": a, "b": b}, block, ("a", "b"), n_boot=300).set_index("group")
    assert found.loc["a", "low"] > 0.8
    assert found.loc["b", "low"] < 0 < found.loc["b", "high"]
    assert found.loc["difference", "low"] > 0
    beyond = membership_regression(scores, {"a": a, "b": b}, block, minus=scores).set_index("group")
    assert np.allclose(beyond["effect"], 0)


def test_planted_mechanisms_are_read_rightly(source, question):
    masks = units.step_memberships(source.task, question.train_units, question.test_units)
    block = grid_blocks(source.task, question.test_units["case"].to_numpy(), 2)
    contrast = (units.SAME_STEP, units.NEAR)
    for mechanism, sign in (("step", 1), ("case", -1)):
        scores = planted_scores(source, question.train_units, question.test_units, mechanism)
        found = membership_regression(scores, masks, block, contrast, n_boot=300).set_index("group")
        low, high = sign * found.loc["difference", ["low", "high"]].to_numpy()
        assert min(low, high) > 0.5
        own, other = contrast if mechanism == "step" else contrast[::-1]
        assert abs(found.loc[other, "effect"]) < 0.2 * found.loc[own, "effect"]
        # another case's steps in place of its own: nothing is left of the steps
        moved = question.test_units.assign(**{
            c: np.roll(question.test_units[c].to_numpy(), 17) for c in ("op", "x", "y", "carry", "column", "text")
        })  # fmt: skip
        masks_moved = units.step_memberships(source.task, question.train_units, moved)
        control = membership_regression(scores, masks_moved, block, contrast, n_boot=300).set_index("group")
        assert abs(control.loc[units.SAME_STEP, "effect"]) < 0.2 * found.loc[own, "effect"]
    with pytest.raises(CriError, match="choose from step, case"):
        planted_scores(source, question.train_units, question.test_units, "rule")


def test_methods_score_units(source, question):
    small = StepQuestion.ask(source, question.train_units.head(30), question.test_units.head(6), source.model)
    sites = set()
    for key in STEP_METHODS:
        for site, scores in METHODS[key].score(small):
            assert scores.shape == (30, 6)
            assert np.isfinite(scores).all()
            sites.add((key, site.partition("@")[0]))
    assert {("EK-FAC", "all parameters"), ("cosine", "blocks.1.hook_resid_post")} <= sites
    assert [answer == text for answer, text in zip(small.answers, small.test_units["text"], strict=True)] == list(
        small.as_reference
    )
    with pytest.raises(CriError, match="at least one unit"):
        StepQuestion.ask(source, question.train_units.head(0), question.test_units, source.model)


def test_shuffled_traces_are_units_of_their_owner():
    config = RunConfig(task_params={"size": 12}, format="shuffled_scratchpad", tokenizer="digit", split="random")
    source = prepare(config)
    table = places(source, "step:units", [7])
    a, b = trace_owner(source.task, *source.task.operands[7])
    assert (table.loc[0, "x"], table.loc[0, "y"]) == (a % 10, b % 10)


def test_positions_outside_are_refused(source, question):
    with pytest.raises(CriError, match="outside its case's sequence"):
        units.unit_tokens(source.tokens, pd.DataFrame({"case": [0], "position": [500], "n_tokens": [1]}))
