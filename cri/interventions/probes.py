"""The direct format: what can be decoded from an activation, and whether the model uses it.

A linear probe shows that a quantity can be read off; swapping the probe's subspace between two cases shows
whether the model reads it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.linear_model import Ridge
from torch import Tensor

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.tokenization import encode_texts
from cri.errors import CriError, out_of_range, unknown_name
from cri.interventions.pairs import IGNORE, Pairs
from cri.models.activations import Site, collect
from cri.tasks import Addition, BaseAddition, Task
from cri.tasks.steps import digits
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

VARIABLES = ("units", "tens", "carry", "answer")
"""What probes read: the sum's units digit, its tens digit, the carry out of the units, the sum."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A ridge classifier on one site's activations.

    Attributes:
        weight: [d, class], bias: [class]; the class of x is argmax(x weight + bias).
        classes: what the columns stand for.
        basis: orthonormal columns spanning the weight's differences between classes, [d, k].
        pattern: likewise for the differences between the classes' mean activations. The weight avoids directions in
            which x varies for other reasons, the class means do not: a decodable variable is called unused only if
            swaps along both have no effect.
    """

    weight: Float[np.ndarray, "d class"]
    bias: Float[np.ndarray, " class"]
    classes: Int[np.ndarray, " class"]
    basis: Float[np.ndarray, "d k"]
    pattern: Float[np.ndarray, "d m"]

    def predict(self, x: Float[np.ndarray, "case d"]) -> Int[np.ndarray, " case"]:
        return self.classes[(x @ self.weight + self.bias).argmax(1)]


@checked
def fit_probe(
    x: Float[np.ndarray, "case d"], labels: Int[np.ndarray, " case"], *, ridge: float = 1e-3, max_rank: int = 16
) -> Probe:
    """Least squares of centred one-hot labels on centred activations, with a penalty of `ridge` times the
    mean variance of x; `max_rank` bounds both bases (their leading singular directions)."""
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise CriError("probe: all labels are the same")
    x = np.asarray(x, dtype=np.float64)
    targets = np.eye(len(classes))[index]
    penalty = max(ridge * x.var(axis=0).mean(), 1e-12)  # activations that do not vary stay solvable
    # scikit-learn's objective sums over cases, and its penalty with it
    fitted = Ridge(alpha=penalty * len(x), solver="cholesky").fit(x, targets)
    weight = np.ascontiguousarray(fitted.coef_.T)
    means = np.stack([x[index == i].mean(0) for i in range(len(classes))], axis=1)
    rank = min(max_rank, len(classes) - 1)
    return Probe(weight, fitted.intercept_, classes, _span(weight, rank), _span(means, rank))


def _span(columns: Float[np.ndarray, "d class"], rank: int) -> Float[np.ndarray, "d k"]:
    """The leading directions in which the columns differ, orthonormal."""
    u, s, _ = np.linalg.svd(columns - columns.mean(1, keepdims=True), full_matrices=False)
    return u[:, : min(rank, int((s > 1e-6 * max(s[0], 1e-9)).sum()))]


@checked
def probe_labels(task: Task, variable: str) -> tuple[Int[np.ndarray, " case"], Int[np.ndarray, " case"]]:
    """The variable's value of every case, and the key that determines it (the units digits of a and b; for
    `tens` those and the tens digits; for `answer` the case).

    Raises `UnknownNameError` for an unknown variable, `CriError` for a task other than the additions.
    """
    if variable not in VARIABLES:
        raise unknown_name("variables", variable, VARIABLES)
    if not isinstance(task, Addition | BaseAddition):
        raise CriError(f"task: {task.name} has no probe labels; use addition or base_addition")
    base = task.digit_base
    a, b = task.cases.T
    units, ids = (a % base) * base + b % base, np.arange(task.n_cases)
    total = a + b
    tens_key = ((a // base) * task.size + b // base) * 2 + (a % base + b % base) // base
    match variable:
        case "units":
            return total % base, units
        case "carry":
            return (a % base + b % base) // base, units
        case "tens":
            return total // base % base, tens_key
        case _:
            return total, ids


def control_labels(
    labels: Int[np.ndarray, " case"], keys: Int[np.ndarray, " case"], seed: int = 0
) -> Int[np.ndarray, " case"]:
    """The same labels assigned to the keys at random: the same classes, equally frequent, and still a function
    of the same inputs, but without arithmetic (Hewitt & Liang 2019)."""
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    return labels[first][order][inverse]


@checked
def probe_table(
    run: Run | Materials,
    sites: Sequence[Site],
    bridge: TransformerBridge,
    *,
    variables: Sequence[str] = VARIABLES,
    seed: int = 0,
    ridge: float = 1e-3,
) -> tuple[pd.DataFrame, dict[tuple[str, str], Probe]]:
    """Probes of each variable at each site, fitted on four fifths of the training cases.

    Returns:
        One row a site, variable and case that was not fitted on: `site, variable, id, part` (`train`: the
        other fifth; `test`: held-out cases), `right`, `control` (of the probe of control labels, on its
        own labels), `selectivity` (right minus control). And the probes by (site, variable).
    """
    import pandas as pd

    acts = collect(bridge, run.tokens, sites)
    order = np.random.default_rng(seed).permutation(run.split.train_ids)
    fitted = np.sort(order[: int(0.8 * len(order))])
    asked = np.concatenate([np.sort(order[len(fitted) :]), run.split.test_ids])
    tables, probes = [], {}
    for variable in variables:
        labels, keys = probe_labels(run.task, variable)
        control = control_labels(labels, keys, seed)
        for site in sites:
            x = acts[site]
            fits = [fit_probe(x[fitted], y[fitted], ridge=ridge) for y in (labels, control)]
            right = [probe.predict(x[asked]) == y[asked] for probe, y in zip(fits, (labels, control), strict=True)]
            probes[str(site), variable] = fits[0]
            rows = {
                "site": str(site), "variable": variable, "id": asked,
                "part": np.where(run.split.train[asked], "train", "test"),
                "right": right[0].astype(float), "control": right[1].astype(float),
                "selectivity": right[0].astype(float) - right[1],
            }  # fmt: skip
            tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True), probes


@checked
def swap_pairs(
    run: Run | Materials, variable: str, case_ids: Int[np.ndarray, " case"], *, n: int = 100, seed: int = 0
) -> Pairs:
    """Pairs of direct cases for swapping one variable of the answer.

    The rule's prediction: the base's answer with the source's units or tens digit, or with the source's
    carry into the tens; for `answer`, the source's answer. Pairs are drawn such that it differs from the
    base's answer, and (but for `answer`) from the source's.

    Raises `CriError` where no pair can be made.
    """
    labels, _ = probe_labels(run.task, variable)
    base = run.task.digit_base
    rng = np.random.default_rng(seed)
    case_ids = check_case_ids(case_ids, run.task.n_cases)
    values = run.task.values
    lengths = run.tokens.prompt_lengths.numpy()
    rows = []
    for case in rng.permutation(case_ids):
        others = case_ids[(lengths[case_ids] == lengths[case]) & (labels[case_ids] != labels[case])]
        for other in rng.permutation(others)[:20]:
            own = int(values[case])
            match variable:
                case "units":
                    new = own - own % base + int(labels[other])
                case "tens":
                    new = own + (int(labels[other]) - int(labels[case])) * base
                case "carry":
                    new = own + (int(labels[other]) - int(labels[case])) * base
                case _:
                    new = int(values[other])
            if new >= 0 and new != own and (variable == "answer" or new != values[other]):
                rows.append((int(case), int(other), new))
                break
        if len(rows) == n:
            break
    rows = [row for row in rows if lengths[row[0]] == lengths[rows[0][0]]]
    return _direct_pairs(run, variable, rows, base)


def _direct_pairs(run: Run | Materials, variable: str, rows: list[tuple[int, int, int]], base: int) -> Pairs:
    encoded = []
    for case, other, new in rows:
        new_text = "".join(map(str, digits(new, base)))
        try:
            texts = encode_texts(run.tokenizer, [run.task.answers[case], new_text, run.task.answers[other]])
        except CriError:  # a sum that occurs nowhere in the grid
            continue
        own, rule, source = ([*ids, run.tokens.eos] for ids in texts)
        apart = next(i for i, (x, y) in enumerate(zip(rule, own, strict=False)) if x != y)
        other_apart = next((i for i, (x, y) in enumerate(zip(rule, source, strict=False)) if x != y), 0)
        window = max(apart, other_apart) + 1
        encoded.append((case, other, rule[:window], own[: apart + 1], source[: other_apart + 1]))
    if not encoded:
        raise CriError(f"variables: no two cases of {run.task.name} differ in {variable}")
    width = max(len(row[2]) for row in encoded)
    length = int(run.tokens.prompt_lengths[encoded[0][0]])

    def padded(index: int) -> Int[Tensor, "pair window"]:
        return torch.tensor([row[index] + [IGNORE] * (width - len(row[index])) for row in encoded])

    def sequences(which: int) -> Int[Tensor, "pair pos"]:
        prompts = [run.tokens.ids[row[which], :length].tolist() for row in encoded]
        ends = [(row[2] + [run.tokens.eos] * (width - len(row[2])))[:-1] for row in encoded]
        return torch.tensor([p + e for p, e in zip(prompts, ends, strict=True)])

    first = sequences(0)
    return Pairs(
        first, sequences(1), length - 1, padded(2), padded(3), padded(4), np.array([row[0] for row in encoded]),
        np.array([row[1] for row in encoded]), variable, None,
        [str(run.tokenizer.decode([i])) for i in first[0, :length].tolist()],
    )  # fmt: skip


@checked
def ablate(
    bridge: TransformerBridge,
    run: Run | Materials,
    case_ids: Int[np.ndarray, " case"],
    site: Site,
    basis: Float[np.ndarray, "d k"],
) -> Float[np.ndarray, " case"]:
    """Whether the answer's first token is still right when a subspace of one site at the last prompt token is
    set to its mean over the cases; with no columns in `basis`, whether it is right at all."""
    case_ids = check_case_ids(case_ids, run.task.n_cases)
    last = run.tokens.prompt_lengths[case_ids] - 1
    rows = torch.arange(len(case_ids))
    mean = torch.from_numpy(collect(bridge, run.tokens, [site], case_ids)[site].mean(0))
    columns = torch.from_numpy(basis).float()
    if columns.shape[0] != mean.shape[0]:
        raise CriError(f"basis: columns of {columns.shape[0]} numbers, where {site} has {mean.shape[0]}")

    def write(tensor: Tensor, hook: object) -> Tensor:
        tensor = tensor.clone()
        part = tensor[rows, last]
        tensor[rows, last] = part - (part - mean) @ columns @ columns.T
        return tensor

    with torch.no_grad():
        ids = run.tokens.ids[case_ids, : int(last.max()) + 1]
        logits = bridge.run_with_hooks(ids, fwd_hooks=[(site.hook, write)])[rows, last]
    return (logits.argmax(-1) == run.tokens.ids[case_ids, last + 1]).float().numpy()


@checked
def random_basis(d: int, k: int, seed: int = 0) -> Float[np.ndarray, "d k"]:
    """Orthonormal columns spanning a random subspace (the control of a probe's). `k` may be 0, as the classes' means do
    not differ at all where every case has the same activation. Raises `CriError` for `d` below 1 or `k` below 0."""
    for name, size, least in (("d", d, 1), ("k", k, 0)):
        if size < least:
            raise out_of_range(name, size, f"at least {least}")
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))[0]
