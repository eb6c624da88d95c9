"""What `retraining_bank` trains: each plan is a list of replicas with notes that say what was removed.

A family is a task, format and tokenizer. Its plan `base` trains on all cases but the test cases; all other plans train
again without some of these training cases, or hold out other cases. A model with fewer training cases than a base
model has proportionally smaller batches, so in the same number of steps it sees each case equally often.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from cri.attribution.methods import METHODS
from cri.attribution.questions import Question
from cri.config import RunConfig
from cri.data.case_groups import labels
from cri.data.case_ids import check_case_ids
from cri.data.held_out import DESIGNS, PLACES, diagonal_square, leave_out, mirror_designs
from cri.data.splits import depth, in_square, random
from cri.data.token_table import TokenTable
from cri.ensembles.engine import Replica
from cri.errors import CriError, unknown_name
from cri.options import EXAMPLE, FamilyName
from cri.retraining.records import EXPLAINS, Retrainings
from cri.retraining.removals import by_distance, random_removal, removal_groups
from cri.tasks import Task
from cri.training.setup import Materials, prepare

if TYPE_CHECKING:
    from cri.retraining.config import RetrainingBank

REGIONS = ("centre", "edge", "outside")


@dataclass(frozen=True, eq=False)
class Family:
    """One task, format and tokenizer, with the cases that all its plans hold out and ask about.

    Attributes:
        config: of its runs (the square split).
        materials: what that config names, prepared.
        outside: single cases held out outside the square, where training cases surround them.
        base: training cases of the base models: `square` (without `outside`) and `random`.
        queries: cases whose outputs are recorded: the square, `outside`, some held out by the random split.
        random_queries: those held out by the random split.
    """

    config: RunConfig
    materials: Materials
    outside: Int[np.ndarray, " case"]
    base: Mapping[str, Bool[np.ndarray, " case"]]
    queries: Int[np.ndarray, " query"]
    random_queries: Int[np.ndarray, " case"]

    @property
    def task(self) -> Task:
        return self.materials.task

    @property
    def square(self) -> Int[np.ndarray, " case"]:
        return self.materials.split.test_ids


def make_family(name: str, options: RetrainingBank) -> Family:
    """The family called TASK:FORMAT:TOKENIZER, at the bank's size."""
    materials = prepare(options.run_config(name))
    task, split = materials.task, materials.split
    rng = np.random.default_rng(0)
    outside = np.sort(
        rng.choice(split.train_ids, size=min(options.n_outside, len(split.train_ids) // 10), replace=False)
    )
    in_base = split.train.copy()
    in_base[outside] = False
    other = random(task)
    random_queries = np.sort(
        rng.choice(other.test_ids, size=min(options.n_random_queries, len(other.test_ids)), replace=False)
    )
    queries = np.unique(np.concatenate([split.test_ids, outside, random_queries]))
    base = {"square": in_base, "random": other.train}
    return Family(materials.config, materials, outside, base, queries, random_queries)


def region_cases(family: Family, options: RetrainingBank, region: str) -> Int[np.ndarray, " case"]:
    """Test cases of designed removals: `centre` (within two rings of it), `edge` (the border ring), `outside`, and
    `random` (held out by the random split). Those without a training case that shares a step without being near are
    passed over."""
    task = family.task
    rings = depth(task, task.center, options.half_side)
    candidates = {
        "centre": np.flatnonzero(rings >= max(options.half_side - 2, 1)),
        "edge": np.flatnonzero(rings == 0),
        "outside": family.outside,
        "random": family.random_queries,
    }[region]
    n_tests = options.n_tests * (2 if region == "random" else 1)
    order = np.random.default_rng(zlib.crc32(region.encode())).permutation(candidates)
    train_ids = np.flatnonzero(family.base["random" if region == "random" else "square"])
    answers = labels(task.answers)[train_ids]
    chosen: list[int] = []
    for test_id in order.tolist():
        sizes = [min(size, len(train_ids)) for size in options.removal_sizes]
        if all(removal_groups(task, train_ids, test_id, answers, "", size, 0, options.removed) for size in sizes):
            chosen.append(test_id)
        if len(chosen) == n_tests:
            break
    return np.array(sorted(chosen), dtype=np.int64)


def _name(split: str, seed: int) -> str:
    return f"{split}:{seed}"


def without(train: Bool[np.ndarray, " case"], removed: Int[np.ndarray, " removed"]) -> Bool[np.ndarray, " case"]:
    out = train.copy()
    out[check_case_ids(removed, len(train), "removed")] = False
    return out


def retrained(
    family: Family, split: str, seed: int, removed: Int[np.ndarray, " removed"], note: Mapping[str, Any]
) -> Replica:
    """The base model of `split` without some of its cases, each of the others seen as often as before.

    With the base model's batch size, half of the cases would each be seen twice as often, and models would differ
    between seeds, and from the base model, by more than the removed cases.
    """
    train = without(family.base[split], removed)
    batch_size = as_often(family.config, family.base[split], train)
    return Replica(seed, train, batch_size=batch_size, note={"split": split, **note})


def as_often(config: RunConfig, base: Bool[np.ndarray, " case"], train: Bool[np.ndarray, " case"]) -> int:
    """The batch size with which a model sees each of its cases as often as one trained on `base` does."""
    return max(1, round(config.train.batch_size * train.sum() / base.sum()))


def base(family: Family, options: RetrainingBank) -> Iterator[Replica]:
    """The models that all others are compared with."""
    for split in ("square", "random"):
        for seed in options.seeds:
            yield Replica(seed, family.base[split], note={"split": split, EXPLAINS: _name(split, seed)})


def subsets(family: Family, options: RetrainingBank, split: str, removed: float) -> Iterator[Replica]:
    """Random subsets of the base model's training cases: each is trained on with the base model's seed, and with new
    seeds that no base model has. All explain the first base model."""
    train_ids = np.flatnonzero(family.base[split])
    n_removed = round(removed * len(train_ids))
    first = options.seeds[0]
    new = [max(options.seeds) + 1 + i for i in range(options.n_new_seeds)]
    for seed in (first, *new):  # the fixed seed first
        for subset in range(options.n_subsets):
            gone = random_removal(train_ids, n_removed, 20_000 + 10_000 * (split == "random") + subset)
            note = {"removed": removed, "subset": subset, EXPLAINS: _name(split, first)}
            yield retrained(family, split, seed, gone, note)


def removals(family: Family, options: RetrainingBank, split: str, record: Retrainings) -> Iterator[Replica]:
    """Designed removals for test cases of each region, and random ones of the nominal sizes, with every base seed."""
    predicted = predictions(family, record)
    task = family.task
    train_ids = np.flatnonzero(family.base[split])
    answers = labels(task.answers)[train_ids]
    tests = [
        (r, t)
        for r in (REGIONS if split == "square" else ("random",))
        for t in region_cases(family, options, r).tolist()
    ]
    for seed in options.seeds:
        name = _name(split, seed)
        for size in options.removal_sizes:
            for draw in range(options.n_random_removals):
                gone = random_removal(train_ids, size, 1000 * seed + draw)
                note = {"group": "random", "test_id": -1, "region": "", "size": size, "n_removed": len(gone)}
                yield retrained(family, split, seed, gone, {**note, EXPLAINS: name})
        for region, test_id in tests:
            label = predicted[name][int(np.searchsorted(family.queries, test_id))]
            for size in options.removal_sizes:
                groups = removal_groups(task, train_ids, test_id, answers, label, size, seed, options.removed)
                for group, gone in ((kind, groups[kind]) for kind in options.removed if kind in groups):
                    note = {"group": group, "test_id": test_id, "region": region, "size": size, "n_removed": len(gone)}
                    yield retrained(family, split, seed, gone, {**note, EXPLAINS: name})


def near_sizes(family: Family, options: RetrainingBank) -> Iterator[Replica]:
    """Increasing numbers of the nearest cases, or as many random ones, removed for test cases of each region: to find
    the smallest number whose effect can be measured."""
    train_ids = np.flatnonzero(family.base["square"])
    tests = [(r, t) for r in REGIONS for t in region_cases(family, options, r).tolist()]
    sizes = [size for size in options.near_sizes if size < len(train_ids) // 2]
    for seed in options.seeds:
        for size in sizes:
            note: dict[str, Any] = {"size": size, "n_removed": size, EXPLAINS: _name("square", seed)}
            for draw in range(options.n_random_removals):
                gone = random_removal(train_ids, size, 2000 + 1000 * seed + draw)
                own = {"group": "random", "test_id": -1, "region": "", **note}
                yield retrained(family, "square", seed, gone, own)
            for region, test_id in tests:
                order, _ = by_distance(family.task, train_ids, test_id, np.random.default_rng([seed, test_id, size]))
                gone = train_ids[order[:size]]
                own = {"group": "near", "test_id": test_id, "region": region, **note}
                yield retrained(family, "square", seed, gone, own)


def leave_outs(family: Family, options: RetrainingBank) -> Iterator[Replica]:
    """Every leave-X-out design at the square's size; where a design is random, each seed has its own draw."""
    n = (2 * options.half_side + 1) ** 2
    for seed in options.leave_out_seeds:
        for design in DESIGNS:
            held = leave_out(family.task, design, n, seed)
            yield Replica(
                seed,
                ~held,
                note={"design": design, "n_held_out": int(held.sum()), EXPLAINS: _name("square", options.seeds[0])},
            )


def leave_outs_mirror(family: Family, options: RetrainingBank) -> Iterator[Replica]:
    """The square held out away from the diagonal, with and without its mirror image."""
    held_out = mirror_designs(family.task, (2 * options.half_side + 1) ** 2)
    for seed in options.leave_out_seeds:
        for design, held in held_out.items():
            note = {"design": design, "n_held_out": int(held.sum()), EXPLAINS: _name("square", options.seeds[0])}
            yield Replica(seed, ~held, note=note)


def at_place(
    family: Family, options: RetrainingBank, record: Retrainings, *, kind: str, place: int, seed: int
) -> Iterator[Replica]:
    """One seed of two designs of equal size at one place. `image`: a square off the diagonal with its mirror image, or
    with a neighbouring square instead; `diagonal`: a square on the diagonal, or off it. Each seed is a plan of its own,
    because claims are tested over seeds: the seeds trained so far can be analysed."""
    n = (2 * options.half_side + 1) ** 2
    held_out = mirror_designs(family.task, n, place)
    held_out["diagonal"] = diagonal_square(family.task, n, place)
    for design in {"image": ("mirrored", "one_sided"), "diagonal": ("diagonal", "apart")}[kind]:
        held = held_out[design]
        note = {"design": design, "place": place, "n_held_out": int(held.sum())}
        yield Replica(seed, ~held, note={**note, EXPLAINS: _name("square", options.seeds[0])})


def sliding(family: Family, options: RetrainingBank) -> Iterator[Replica]:
    """The held-out square at every place of a grid of centres where it fits."""
    task, half_side = family.task, options.half_side
    low, high = task.coords.min(axis=0) + half_side, task.coords.max(axis=0) - half_side
    axes = [np.unique(np.linspace(low[i], high[i], options.n_centers).round().astype(int)) for i in (0, 1)]
    for seed in options.sliding_seeds:
        for row in axes[0].tolist():
            for col in axes[1].tolist():
                held = in_square(task, (row, col), half_side)
                if held.sum() == (2 * half_side + 1) ** 2:
                    note = {"center_row": row, "center_col": col, EXPLAINS: _name("square", options.seeds[0])}
                    yield Replica(seed, ~held, note=note)


def top_k(family: Family, options: RetrainingBank, record: Retrainings) -> Iterator[Replica]:
    """For cases outside the square that the first base model answers rightly: the `k` training cases removed that each
    method ranks highest, or as many random ones. With the base model's seed and the first new one."""
    train_ids = np.flatnonzero(family.base["square"])
    first = options.seeds[0]
    name = _name("square", first)
    model = int(np.flatnonzero(record.table[EXPLAINS] == name)[0])
    right = family.outside[record.correct[model, family.outside]]
    tests = np.sort(np.random.default_rng(1).permutation(right)[: 2 * options.n_tests])
    if len(tests) == 0:
        return
    columns = np.searchsorted(family.queries, tests)
    tokens = record.predicted(model, family.materials.tokens)[columns]
    answers = [family.task.answers[i] for i in tests]  # those that are predicted
    question = Question(family.materials, train_ids, tests, tokens, answers, record.bank().model(model))
    scores = {key: METHODS[key].only(question) for key in TOP_K_METHODS}
    for seed in (first, max(options.seeds) + 1):
        for k in options.top_k:
            for draw in range(options.n_random_removals):
                note = {"method": "random", "test_id": -1, "k": k, EXPLAINS: name}
                yield retrained(family, "square", seed, random_removal(train_ids, k, 500 + draw), note)
            for method in TOP_K_METHODS:
                for column, test in enumerate(tests.tolist()):
                    # equal scores in random order
                    ties = np.random.default_rng([test, k]).random(len(train_ids))
                    best = np.lexsort((ties, -scores[method][:, column]))[:k]
                    note = {"method": method, "test_id": test, "k": k, EXPLAINS: name}
                    yield retrained(family, "square", seed, train_ids[best], note)


TOP_K_METHODS = ("EK-FAC", "GradCos", "same_answer", "nearest_operands")

N_PLACE_SEEDS = 8


Builder = Callable[[Family, "RetrainingBank", Retrainings], Iterator[Replica]]

PLANS: dict[str, Builder] = {
    "subsets-50": lambda family, options, record: subsets(family, options, "square", 0.5),
    "subsets-10": lambda family, options, record: subsets(family, options, "square", 0.1),
    "subsets-random-50": lambda family, options, record: subsets(family, options, "random", 0.5),
    "removals-square": lambda family, options, record: removals(family, options, "square", record),
    "removals-random": lambda family, options, record: removals(family, options, "random", record),
    "near-sizes": lambda family, options, record: near_sizes(family, options),
    "leave-out": lambda family, options, record: leave_outs(family, options),
    "leave-out-mirror": lambda family, options, record: leave_outs_mirror(family, options),
    "sliding": lambda family, options, record: sliding(family, options),
    "top-k": top_k,
    **{
        f"{kind}-{place}-{seed}": partial(at_place, kind=kind, place=place, seed=seed)
        for kind, place, seed in itertools.product(("image", "diagonal"), PLACES, range(N_PLACE_SEEDS))
    },
}
"""What can be trained of a family, given the record of its base models."""
BASE = "base"


def explained_predictions(record: Retrainings, tokens: TokenTable) -> dict[str, TokenTable]:
    """The queries with what each base model answers to them, by the model's name."""
    return {str(name): record.predicted(i, tokens) for i, name in enumerate(record.table[EXPLAINS])}


def predictions(family: Family, record: Retrainings) -> dict[str, list[str]]:
    """The labels that each base model predicts for the queries, by the model's name ("" where the decoding was
    cut off or gave no answer)."""
    texts: dict[str, list[str]] = {}
    for name, table in explained_predictions(record, family.materials.tokens).items():
        answers = []
        for i, case in enumerate(family.queries.tolist()):
            start, stop = int(table.prompt_lengths[i]), int(table.lengths[i]) - 1
            text = str(family.materials.tokenizer.decode(table.ids[i, start:stop].tolist()))
            a, b = family.task.operands[case]
            answers.append(family.materials.format.read(family.task, a, b, text, finished=True).answer or "")
        texts[name] = labels(answers).tolist()
    return texts


def plan_parts(plan: str) -> tuple[str, str]:
    """Family and kind of FAMILY/KIND; raises `CriError` for anything else."""
    name, _, kind = plan.partition("/")
    try:
        family = str(FamilyName.parse(name))
    except CriError:
        raise CriError(f"plans: {plan!r} is not TASK:FORMAT:TOKENIZER/KIND (for example {EXAMPLE}/base)") from None
    if kind not in (BASE, *PLANS):
        raise unknown_name("plans: kind", kind, (BASE, *PLANS))
    return family, kind


def build(kind: str, family: Family, options: RetrainingBank, record: Retrainings) -> list[Replica]:
    """The replicas of a plan other than `base`."""
    if record.queries.tolist() != family.queries.tolist():
        raise CriError(f"record: {record.path} asks other queries; remove it, or give another name to this bank")
    replicas = list(PLANS[kind](family, options, record))
    if not replicas:
        raise CriError(f"plans: {kind} has nothing to train at this size")
    return replicas
