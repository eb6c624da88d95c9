"""Neighbours and content baselines against brute force."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.attribution import baselines
from cri.attribution.neighbors import METRICS, nearest, similarity, whiten
from cri.data import case_relations
from cri.data.token_table import TokenTable
from cri.errors import CriError, UnknownNameError
from cri.tasks import make_task


def vectors(n: int, d: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def brute(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    if metric == "euclidean":
        return np.array([[-math.dist(a, b) for b in y] for a in x])
    if metric == "whitened_cosine":
        mean, cov = x.mean(axis=0), np.cov(x.T)
        root = np.linalg.cholesky(np.linalg.inv(cov + 0.01 * np.trace(cov) / len(cov) * np.eye(len(cov))))
        x, y = (x - mean) @ root, (y - mean) @ root
    return np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in y] for a in x])


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_against_loops(metric: str) -> None:
    x, y = vectors(40) + 3, vectors(9, seed=1) + 3
    np.testing.assert_allclose(similarity(x, y, metric), brute(x, y, metric), atol=2e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block_bytes", [1, 4 * 40 * 4, 10**9])
def test_nearest_in_blocks_against_sorting(metric: str, block_bytes: int) -> None:
    x, y = vectors(40), vectors(9, seed=1)
    ids, scores = nearest(x, y, 5, metric, block_bytes=block_bytes)
    full = similarity(x, y, metric)
    np.testing.assert_array_equal(ids, np.argsort(-full, axis=0, kind="stable")[:5].T)
    np.testing.assert_allclose(scores, -np.sort(-full, axis=0)[:5].T, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_nearest_among_ties_takes_the_earlier_row(n: int, m: int, data: st.DataObject) -> None:
    values = st.lists(st.integers(-1, 1), min_size=2 * (n + m), max_size=2 * (n + m))
    points = np.array(data.draw(values), dtype=np.float32).reshape(-1, 2)
    x, y = points[:n], points[n:]
    k = data.draw(st.integers(1, n))
    ids, scores = nearest(x, y, k, "euclidean")
    full = similarity(x, y, "euclidean")
    np.testing.assert_array_equal(ids, np.argsort(-full, axis=0, kind="stable")[:k].T)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.slow
def test_approximate_neighbours_agree_with_exact() -> None:
    x, y = vectors(600), vectors(50, seed=1)
    for metric in ("cosine", "euclidean"):  # in one process: the search is compiled for most of a minute
        exact, _ = nearest(x, y, 10, metric)
        found, scores = nearest(x, y, 10, metric, exact_limit=0.0)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
        assert recall > 0.9
        full = similarity(x, y, metric)
        np.testing.assert_allclose(scores, np.take_along_axis(full.T, found, axis=1), atol=1e-4)
    assert torch.get_num_threads() == 1  # numba sets its own number, with which a later training would differ


def test_whitening_decorrelates() -> None:
    mix = np.random.default_rng(2).normal(size=(7, 7))
    x, _ = whiten(vectors(500) @ mix + 5, vectors(3), shrinkage=0.0)
    np.testing.assert_allclose(np.cov(x.T), np.eye(7), atol=1e-6)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-8)


def test_degenerate_activations_give_numbers() -> None:
    same = np.ones((5, 3), dtype=np.float32)
    for metric in METRICS:
        assert np.isfinite(similarity(same, same[:2], metric)).all()
    assert similarity(np.zeros((2, 3), dtype=np.float32), same[:1])[0, 0] == 0


def test_bad_input_is_named() -> None:
    x = vectors(5)
    with pytest.raises(UnknownNameError, match="choose from cosine"):
        similarity(x, x, "manhattan")
    with pytest.raises(CriError, match="not finite"):
        similarity(x * np.nan, x)
    with pytest.raises(CriError, match="k:"):
        nearest(x, x, 6)
    with pytest.raises(CriError, match="shrinkage"):
        whiten(x, x, shrinkage=-1.0)


# --- content baselines


@pytest.mark.parametrize("name", ["addition", "mod_addition", "linear_regression", "chicken_rabbit"])
def test_baselines_against_the_cases(name: str) -> None:
    task = make_task(name, size=30)
    rng = np.random.default_rng(0)
    order = rng.permutation(task.n_cases)
    train, test = np.sort(order[:40]), np.sort(order[40:60])
    distance = baselines.nearest_operands(task, train, test)
    operands = case_relations.shared_operands(task, train, test)
    steps = case_relations.shared_steps(task, train, test)
    counts = Counter(step for case in task.case_steps for step in set(case))
    for i, c in enumerate(train):
        for j, t in enumerate(test):
            assert -distance[i, j] == max(
                abs(int(p) - int(q)) for p, q in zip(task.coords[c], task.coords[t], strict=True)
            )
            assert operands[i, j] == sum(p == q for p, q in zip(task.operands[c], task.operands[t], strict=True))
            shared = {
                s
                for s in set(task.case_steps[c]) & set(task.case_steps[t])
                if s.op != "compare" and None not in (s.x, s.y) and counts[s] <= 0.05 * task.n_cases
            }
            assert steps[i, j] == len(shared)


def test_same_answer_ignores_missing_labels() -> None:
    scores = case_relations.same_answer(np.array(["1", "2", ""]), np.array(["2", ""]))
    np.testing.assert_array_equal(scores, [[0, 0], [1, 0], [0, 0]])


def test_nearer_cases_with_the_answer_count_for_more() -> None:
    task = make_task("addition", size=6)
    train, test = (np.array([task.id_of(*case) for case in cases]) for cases in ([(0, 4), (1, 3), (5, 5)], [(2, 2)]))
    texts = np.array(task.answers)
    scores = baselines.same_answer_by_distance(task, train, test, texts[train], texts[test])
    np.testing.assert_allclose(scores[:, 0], [1 / 2, 1, 0])
    with pytest.raises(CriError, match="test_ids"):
        baselines.same_answer_by_distance(task, train, train[:1], texts[train], texts[train[:1]])


def test_informative_steps_refuses_a_frequency_out_of_range() -> None:
    with pytest.raises(CriError, match="max_frequency"):
        case_relations.informative_steps(make_task("addition", size=5), 0.0)


def table(rows: list[list[int]]) -> TokenTable:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return TokenTable(ids, torch.ones(len(rows), dtype=torch.long), lengths, 0, 1)


def test_bm25_against_its_equation() -> None:
    documents, queries = [[5, 3, 5, 1], [4, 3, 1], [2, 2, 2, 2, 2, 1]], [[5, 3, 1], [2, 9, 2]]
    found = baselines.bm25(table(documents), table(queries))
    n, mean = len(documents), np.mean([len(d) for d in documents])
    for i, d in enumerate(documents):
        for j, q in enumerate(queries):
            expected = 0.0
            for w in q:
                holders = sum(w in e for e in documents)
                idf = math.log(1 + (n - holders + 0.5) / (holders + 0.5))
                f = d.count(w)
                expected += idf * f * 2.2 / (f + 1.2 * (1 - 0.75 + 0.75 * len(d) / mean))
            assert found[i, j] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_cosines_do_not_depend_on_scale(scale):
    x = np.random.default_rng(0).normal(size=(20, 8))
    found = similarity((x * scale).astype(np.float32), (x * scale).astype(np.float32), "cosine")
    np.testing.assert_allclose(found, similarity(x, x, "cosine"), atol=1e-5)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("metric", METRICS)
def test_every_similarity_scales_as_it_should(scale: float, metric: str) -> None:
    """Squares of such values leave float32's range: the self-cosine was 0, distances were nan."""
    x, y = vectors(20), vectors(6, seed=1)
    found = similarity((x * scale).astype(np.float32), (y * scale).astype(np.float32), metric)
    expected = similarity(x, y, metric).astype(np.float64) * (scale if metric == "euclidean" else 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * (scale if metric == "euclidean" else 1))
    ids, scores = nearest((x * scale).astype(np.float32), (y * scale).astype(np.float32), 3, metric)
    np.testing.assert_array_equal(ids, nearest(x, y, 3, metric)[0])
    assert np.isfinite(scores).all()


def test_distances_beyond_float32_and_no_cases_are_refused() -> None:
    x = vectors(5).astype(np.float64) * 1e200
    with pytest.raises(CriError, match="beyond float32"):
        similarity(x, x, "euclidean")
    with pytest.raises(CriError, match="train: no cases"):
        similarity(vectors(0), vectors(3), "whitened_cosine")
