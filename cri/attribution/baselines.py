"""Content baselines: scores of training cases for test cases, computed without any model.

They are strong on arithmetic (two cases with the same answer resemble each other in any model that
predicts it), so a model-based method is judged by what it adds to the best of these baselines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse

from cri.checks import checked
from cri.data.case_relations import Pairs, TestIds, TrainIds, grid_distance, mirror_images, same_answer
from cri.data.memberships import token_distance
from cri.errors import CriError
from cri.tasks import Task

if TYPE_CHECKING:
    from cri.data.token_table import TokenTable


@checked
def nearest_operands(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Pairs:
    """Minus the grid distance."""
    return -grid_distance(task, train_ids, test_ids).astype(np.float32)


@checked
def same_answer_by_distance(
    task: Task,
    train_ids: TrainIds,
    test_ids: TestIds,
    train_labels: Shaped[np.ndarray, " train"],
    test_labels: Shaped[np.ndarray, " test"],
) -> Pairs:
    """`same_answer` divided by the grid distance: of the cases with the same answer, nearer ones score higher. Nothing
    in it is tuned; a method that uses the model has to beat it. Raises `CriError` where a test case is a training
    case."""
    distance = grid_distance(task, train_ids, test_ids)
    if (distance == 0).any():
        raise CriError("test_ids: some are training cases, at no distance from themselves")
    return same_answer(train_labels, test_labels) / distance.astype(np.float32)


@checked
def same_answer_with_mirror(
    task: Task,
    train_ids: TrainIds,
    test_ids: TestIds,
    train_labels: Shaped[np.ndarray, " train"],
    test_labels: Shaped[np.ndarray, " test"],
    length: float | None = None,
) -> Pairs:
    """`same_answer` by nearness to the test case or to its mirror image m (operands exchanged), which is one step
    away: 1/d + 1/(1 + d_m), or with a decay length exp(-d/length) + exp(-(1 + d_m)/length).

    For a model that has learnt that operands may be exchanged, cases near b + a are near. Where a case has no mirror
    image with the same answer, the second term is left out. Raises `CriError` where a test case is a training case.
    """
    distance = grid_distance(task, train_ids, test_ids).astype(np.float32)
    if (distance == 0).any():
        raise CriError("test_ids: some are training cases, at no distance from themselves")
    image = mirror_images(task)[test_ids]
    exists = image >= 0
    mirrored = np.full_like(distance, np.inf)
    mirrored[:, exists] = 1 + grid_distance(task, train_ids, image[exists])

    def near(d: Pairs) -> Pairs:
        return 1 / d if length is None else np.exp(-d / np.float32(length))

    return same_answer(train_labels, test_labels) * (near(distance) + near(mirrored))


@checked
def shared_tokens(task: Task, tokenizer: str, train_ids: TrainIds, test_ids: TestIds) -> Pairs:
    """exp(-h), h being how many tokens of the numbers in the question differ (Hamming's distance)."""
    return np.exp(-token_distance(task, tokenizer, train_ids, test_ids).astype(np.float32))


@checked
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
