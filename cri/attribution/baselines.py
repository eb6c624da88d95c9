"""Content baselines: scores of training cases for test cases that no model was asked for.

On arithmetic they are strong (two cases with the same answer resemble each other in any model that
answers), so a model-based method counts for what it adds to the best of these.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from scipy import sparse

from cri.errors import CriError, out_of_range
from cri.tasks import Task

if TYPE_CHECKING:
    from cri.data import TokenTable

TrainIds = Int[np.ndarray, " train"]
TestIds = Int[np.ndarray, " test"]
Pairs = Float32[np.ndarray, "train test"]

MAX_STEP_FREQUENCY = 0.05
"""A step found in a larger fraction of the grid's cases is not informative (see `informative_steps`)."""


def grid_distance(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Int[np.ndarray, "train test"]:
    """Chebyshev distance on the grid, max(|row_i - row_t|, |col_i - col_t|): the measure in which the
    held-out squares are balls and their borders rings."""
    coords = task.coords.astype(np.int32)
    train, test = coords[train_ids], coords[test_ids]
    rows = np.abs(train[:, None, 0] - test[None, :, 0])
    return np.maximum(rows, np.abs(train[:, None, 1] - test[None, :, 1]), out=rows)


def mirror_images(task: Task) -> Int[np.ndarray, " case"]:
    """The case with the operands exchanged, of each case: its id where that is another case with the same answer, -1
    elsewhere."""
    ids = {operands: i for i, operands in enumerate(task.operands)}
    out = np.full(task.n_cases, -1)
    for i, (a, b) in enumerate(task.operands):
        other = ids.get((b, a), i)
        if other != i and task.answers[other] == task.answers[i]:
            out[i] = other
    return out


def nearest_operands(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Pairs:
    """Minus the grid distance."""
    return -grid_distance(task, train_ids, test_ids).astype(np.float32)


def shared_operands(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Pairs:
    """How many operands two cases share, each in its own place: 0 or 1 (2 only for the same case)."""
    train, test = task.cases[train_ids], task.cases[test_ids]
    return (train[:, None] == test[None]).sum(axis=2).astype(np.float32)


def same_answer(train_labels: Shaped[np.ndarray, " train"], test_labels: Shaped[np.ndarray, " test"]) -> Pairs:
    """1 where the training case's answer is the label of the test case, else 0.

    Args:
        train_labels: labels of the training cases' reference answers.
        test_labels: labels the model *predicts* for the test cases; an empty label matches nothing.
    """
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    return ((train[:, None] == test[None]) & (test != "")[None]).astype(np.float32)


def same_answer_by_distance(
    task: Task,
    train_ids: TrainIds,
    test_ids: TestIds,
    train_labels: Shaped[np.ndarray, " train"],
    test_labels: Shaped[np.ndarray, " test"],
) -> Pairs:
    """`same_answer` divided by the grid distance: the nearer of the cases with the answer count for more. Nothing is
    tuned in it, and a method that sees the model has to do better. Raises `CriError` where a test case is a training
    case."""
    distance = grid_distance(task, train_ids, test_ids)
    if (distance == 0).any():
        raise CriError("test_ids: some are training cases, at no distance from themselves")
    return same_answer(train_labels, test_labels) / distance.astype(np.float32)


def informative_steps(task: Task, max_frequency: float = MAX_STEP_FREQUENCY) -> sparse.csr_matrix:
    """Which informative rule steps each case executes, 1 or 0, [case, step].

    A step (operation, digits, carry-in; the place where it is applied is no part of it) is informative if

    - it works on two digits: copying down the last digit of the longer number is no arithmetic, and
      `compare` sees the whole total, so sharing it is sharing the answer;
    - at most `max_frequency` of the grid's cases execute it: steps that nearly all cases share
      (0 + 0, the units of the intercept) tell no two cases apart.

    For 100 x 100 addition each of the 181 digit pairs with a possible carry-in qualifies, found in 0.5 to
    1.6 % of the cases: as units pair (one case in a hundred, spread evenly over the grid) or as tens pair
    with its carry (most of a 10 x 10 block). On a 30 x 30 grid too both kinds qualify, units pairs found in 1 % of
    the cases and tens pairs in 5 %, so that most cases that share a step there share that of the tens.
    """
    if not 0 < max_frequency <= 1:
        raise out_of_range("max_frequency", max_frequency, "in (0, 1]")
    sets = [{s for s in steps if s.op != "compare" and None not in (s.x, s.y)} for steps in task.case_steps]
    counts = Counter(step for steps in sets for step in steps)
    columns = {step: j for j, step in enumerate(s for s, n in counts.items() if n <= max_frequency * task.n_cases)}
    pairs = [(i, columns[step]) for i, steps in enumerate(sets) for step in steps if step in columns]
    rows, cols = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    shape = (task.n_cases, len(columns))
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, cols)), shape=shape)


def shared_steps(
    task: Task, train_ids: TrainIds, test_ids: TestIds, max_frequency: float = MAX_STEP_FREQUENCY
) -> Pairs:
    """How many informative rule steps two cases share, wherever they are applied."""
    steps = informative_steps(task, max_frequency)
    return (steps[train_ids] @ steps[test_ids].T).toarray().astype(np.float32, copy=False)


def bm25(train: TokenTable, test: TokenTable, k1: float = 1.2, b: float = 0.75) -> Float[np.ndarray, "train test"]:
    """BM25 of every training sequence (document) for every test sequence (query), over token ids.

    score(i, t) = Σ_w q_t(w) · idf(w) · f_i(w) (k1 + 1) / (f_i(w) + k1 (1 - b + b |i| / mean|i|)),
    idf(w) = log(1 + (N - n_w + ½) / (n_w + ½)), with f_i and q_t the counts of token w in document and
    query, n_w the documents that hold it and N their number. Robertson & Zaragoza (2009). Prompt,
    completion and end of sequence all count; give the test cases with the completion the model
    *predicts*, as the other methods have it.
    """
    vocab = 1 + int(max(train.ids.max(), test.ids.max()))
    documents, queries = _token_counts(train, vocab), _token_counts(test, vocab)
    n = len(train)
    if n == 0:
        raise CriError("train: no documents")
    found = np.bincount(documents.indices, minlength=vocab)
    idf = np.log1p((n - found + 0.5) / (found + 0.5))
    lengths = np.asarray(documents.sum(axis=1)).ravel()
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    weights = documents.tocoo()
    data = idf[weights.col] * weights.data * (k1 + 1) / (weights.data + norm[weights.row])
    scored = sparse.csr_matrix((data, (weights.row, weights.col)), shape=documents.shape)
    return (scored @ queries.T).toarray().astype(np.float32)


def _token_counts(table: TokenTable, vocab: int) -> sparse.csr_matrix:
    rows, positions = table.token_mask.cpu().numpy().nonzero()
    ids = table.ids.cpu().numpy()[rows, positions]
    counts = sparse.coo_matrix((np.ones(len(rows)), (rows, ids)), shape=(len(table), vocab))
    return sparse.csr_matrix(counts)  # sums duplicates
