"""The attribution methods, one entry each: name, kind, colour, what it needs, and how it scores.

Studies, figures and help texts read `METHODS` and nothing else, so that a new method is a new entry here. Importing
this module takes no torch: command lines print it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cri.attribution.damping import DAMPING
from cri.errors import CriError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from cri.attribution.questions import Question

    Scored = Iterator[tuple[str, np.ndarray]]
    Scorer = Callable[[Question], Any]

Kind = Literal["model-free", "similarity", "gradients", "influence"]
KIND_COLORS: dict[Kind, str] = {
    "model-free": "#AAAAAA", "similarity": "#9DC6E0", "gradients": "#56A0D3", "influence": "#0072B2"
}  # fmt: skip
"""Colours by kind, for figures of many methods; the baselines are pale."""
Need = Literal["cases", "activations", "gradients", "Fisher", "training"]
"""What a method is computed from: cases and tokens alone, the model's activations, its gradients, its Fisher matrix,
or another training."""
NO_MODEL, PARAMETERS, OWN = "no model", "all parameters", "own method"
"""The sites of methods that look at no site of the model."""
CHECKPOINTS = 5
"""Of TracIn."""


@dataclass(frozen=True)
class Method:
    """One way to score training cases for queries.

    Attributes:
        key: its name in tables, and in the notes of recorded retrainings.
        label: its name in figures.
        kind: what it looks at.
        color: where methods are told apart; `KIND_COLORS` where kinds are.
        needs: what it is computed from.
        score: (site, scores [train, query]) of each site it looks at; larger is more similar or more supporting.
        settings: numbers that its scores depend on, for manifests and captions.
        former: its names in older tables.
    """

    key: str
    label: str
    kind: Kind
    color: str
    needs: Need
    score: Callable[[Question], Scored]
    settings: Mapping[str, Any] = field(default_factory=dict)
    former: tuple[str, ...] = ()

    def at(self, site: str) -> str:
        """The method with the layer it looks at, where there are several: `cosine, layer 1`."""
        number = layer(site)
        return self.key if number is None else f"{self.label}, layer {number}"

    def only(self, question: Question) -> np.ndarray:
        """Scores of a method that looks at one site."""
        ((_, scores),) = self.score(question)
        return scores


def layer(site: str) -> int | None:
    """The number of the layer after which a residual-stream site stands, -1 after the embedding; None for others."""
    found = re.match(r"blocks\.(\d+)\.hook_resid_(pre|post)", site)
    return None if found is None else int(found[1]) - (found[2] == "pre")


def _relation(name: str) -> Callable[[Question], Scored]:
    """A relation between cases of `cri.data.case_relations`, or a baseline, by the name of its function."""

    def score(question: Question) -> Scored:
        from cri.attribution import baselines
        from cri.data import case_relations

        function = getattr(case_relations, name, None) or getattr(baselines, name)
        yield NO_MODEL, function(question.task, question.train_ids, question.query_ids)

    return score


def _same_answer(question: Question) -> Scored:
    from cri.data.case_relations import same_answer

    yield NO_MODEL, same_answer(question.train_labels, question.query_labels)


def _same_answer_by_distance(question: Question) -> Scored:
    from cri.attribution.baselines import same_answer_by_distance

    ids = question.train_ids, question.query_ids
    yield NO_MODEL, same_answer_by_distance(question.task, *ids, question.train_labels, question.query_labels)


def _answer_kernel(length: float | None) -> Callable[[Question], Scored]:
    """Same answer by nearness to the case or its mirror image, by a decay length or as 1/d."""

    def score(question: Question) -> Scored:
        from cri.attribution.baselines import same_answer_with_mirror

        ids = question.train_ids, question.query_ids
        yield (
            NO_MODEL,
            same_answer_with_mirror(question.task, *ids, question.train_labels, question.query_labels, length),
        )

    return score


def _shared_tokens(question: Question) -> Scored:
    from cri.attribution.baselines import shared_tokens
    from cri.data.tokenization import number_kind

    # not by the config's name: a pretrained model brings its own tokenizer
    tokenizer = number_kind(question.materials.tokenizer)
    yield NO_MODEL, shared_tokens(question.task, tokenizer, question.train_ids, question.query_ids)


def _answer_and_tokens(question: Question) -> Scored:
    (_, answers), (_, tokens) = next(_answer_kernel(None)(question)), next(_shared_tokens(question))
    yield NO_MODEL, answers + tokens


def _bm25(question: Question) -> Scored:
    from cri.attribution.baselines import bm25

    yield NO_MODEL, bm25(question.train, question.queries)


def _similarity(metric: str) -> Callable[[Question], Scored]:
    def score(question: Question) -> Scored:
        from cri.attribution.neighbors import similarity

        n = len(question.train_ids)
        for site, vectors in question.activations.items():
            yield site, similarity(vectors[:n], vectors[n:], metric)

    return score


def _grad_dot(question: Question) -> Scored:
    yield PARAMETERS, question.gradients.dot


def _grad_cos(question: Question) -> Scored:
    yield PARAMETERS, question.gradients.cos.astype("float32")


def _tracin(question: Question) -> Scored:
    yield PARAMETERS, question.tracin(CHECKPOINTS)


def _ekfac(question: Question) -> Scored:
    yield PARAMETERS, question.influence().astype("float32")


_ENTRIES = (
    Method("same_answer", "same answer", "model-free", "#009E73", "cases", _same_answer),
    Method(
        "same_answer_by_distance", "same answer / distance", "model-free", "#DDAA33", "cases", _same_answer_by_distance
    ),
    # the first decay length suits a 30 x 30 grid, the second a 100 x 100 one; neither was tuned on the other grid
    Method(
        "same_answer_mirror", "same answer / distance and mirror", "model-free", "#BBCC33", "cases",
        _answer_kernel(None),
    ),
    Method(
        "same_answer_decay_2", "same answer by decay (2 cells) and mirror", "model-free", "#999933",
        "cases", _answer_kernel(2.0), {"decay length": 2.0},
    ),
    Method(
        "same_answer_decay_3", "same answer by decay (3 cells) and mirror", "model-free", "#666633",
        "cases", _answer_kernel(3.0), {"decay length": 3.0},
    ),
    Method("shared_tokens", "shared tokens", "model-free", "#EE8866", "cases", _shared_tokens),
    Method("answer_and_tokens", "same answer and tokens", "model-free", "#FFAABB", "cases", _answer_and_tokens),
    Method("shared_operand", "shared operand", "model-free", "#117733", "cases", _relation("shared_operands")),
    Method("nearest_operands", "nearest operands", "model-free", "#AA3377", "cases", _relation("nearest_operands")),
    Method("shared_step", "shared step", "model-free", "#332288", "cases", _relation("shared_steps")),
    Method("bm25", "BM25", "model-free", "#777777", "cases", _bm25),
    Method("cosine", "cosine", "similarity", "#88CCEE", "activations", _similarity("cosine")),
    Method("euclidean", "Euclidean", "similarity", "#44AA99", "activations", _similarity("euclidean")),
    Method(
        "whitened_cosine", "whitened cosine", "similarity", "#6699CC", "activations", _similarity("whitened_cosine")
    ),
    Method("GradDot", "GradDot", "gradients", "#E69F00", "gradients", _grad_dot, former=("grad_dot",)),
    Method("GradCos", "GradCos", "gradients", "#D55E00", "gradients", _grad_cos, former=("grad_cos",)),
    Method("TracIn", "TracIn", "gradients", "#CC79A7", "training", _tracin, {"checkpoints": CHECKPOINTS}),
    Method(
        "EK-FAC", "EK-FAC", "influence", "#0072B2", "Fisher", _ekfac,
        {"relative damping": DAMPING, "labels": "sampled"}, ("ekfac",),
    ),
)  # fmt: skip
METHODS: dict[str, Method] = {method.key: method for method in _ENTRIES}
"""By key, in the order of tables."""


def attribution_method(
    function: Scorer | None = None,
    *,
    name: str = "",
    label: str = "",
    kind: Kind = "influence",
    needs: Need = "Fisher",
    color: str = "#000000",
) -> Any:
    """Decorator: enters a function under its name, or `name`, so that `run.influence`, `cri.benchmark` and the studies
    know it.

    Args:
        function: of a `cri.attribution.questions.Question`; returns scores [training case, query], larger where a case
            supports the query's answer more.
        name, label, kind, needs, color: see `Method`. What is entered as `model-free` is one of the baselines that the
            others are compared with.

    Raises `CriError` for a name that a method of this package has, and where it is called, for scores of another shape.
    """
    if function is None:
        return lambda given: attribution_method(given, name=name, label=label, kind=kind, needs=needs, color=color)
    if kind not in KIND_COLORS:
        raise unknown_name("kind", kind, KIND_COLORS)
    key = name or function.__name__
    if key in {method.key for method in _ENTRIES}:
        raise CriError(f"method {key}: this package has a method of this name; choose another")

    def score(question: Question) -> Scored:
        import numpy as np

        values = np.asarray(function(question))
        shape = (len(question.train_ids), len(question.query_ids))
        if values.shape != shape:
            raise CriError(f"method {key}: its scores are {list(values.shape)}, not [train, query] = {list(shape)}")
        yield OWN, values

    METHODS[key] = Method(key, label or key.replace("_", " "), kind, color, needs, score)
    return function


def find(name: str) -> Method:
    """The method named in a table's row: its key, label or former name, which the name of a variant may follow, as in
    `cosine, layer 1`, `EK-FAC, damping 0.1` and `EK-FAC + 8 CG steps`."""
    plain = re.split(r", | \+ ", name)[0]
    for method in METHODS.values():
        if plain in (method.key, method.label, *method.former):
            return method
    raise unknown_name("method", name, METHODS)


def of_kind(*kinds: Kind) -> list[str]:
    """Keys of all methods of some kinds."""
    return [key for key, method in METHODS.items() if method.kind in kinds]


def settings_text(method: Method) -> str:
    """`relative damping 1e-05, labels sampled`."""
    values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in method.settings.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())


def settings() -> dict[str, dict[str, Any]]:
    """The settings of all methods that have any, for the manifests of studies: where a setting has changed, a study's
    recorded tables are not reused."""
    return {key: dict(method.settings) for key, method in METHODS.items() if method.settings}


def methods_table() -> pd.DataFrame:
    """One row a method, as studies record it beside their scores: `method`, `label`, `kind`, `needs`, `settings`."""
    import pandas as pd

    return pd.DataFrame(
        {"method": key, "label": m.label, "kind": m.kind, "needs": m.needs, "settings": settings_text(m)}
        for key, m in METHODS.items()
    )


def help_text() -> str:
    """The methods by kind, for the help of a command."""
    parts = []
    for kind in KIND_COLORS:
        names = []
        for key in of_kind(kind):
            numbers = settings_text(METHODS[key])
            names.append(f"{key} ({numbers})" if numbers else key)
        parts.append(f"{kind}: {', '.join(names)}")
    return "Methods. " + "; ".join(parts) + "."
