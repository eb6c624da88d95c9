"""One model, looked into: every table of one run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from cri.attribution.flat import pca_xy, umap_xy
from cri.errors import CriError
from cri.geometry.bends import bends
from cri.geometry.lens import lens_ranks, logit_lens
from cri.geometry.number_line import fit_columns, fit_helix, fit_pca, random_curve, replace_operands
from cri.geometry.phase import phase_table
from cri.geometry.readouts import class_table, fit_ridge, ridge_table
from cri.geometry.spectra import power_by_frequency, variance_explained
from cri.geometry.steering import (
    from_cases,
    move_along,
    periodic_subspace,
    project_out,
    random_subspace,
    same_answer_sources,
    set_component,
    where_answers_lie,
)
from cri.geometry.subject import Edit, Subject, residual_hooks
from cri.geometry.units import head_coordinates, head_hook, neuron_hook, set_units, tuning
from cri.studies.representation_geometry.config import Geometry
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd

CODE_THERE = 0.5
"""A component of some period is moved only where its read-out explains this much of held-out cells outside the square:
elsewhere there is no such code to move."""
MOVES = (-10, -5, -2, -1, 1, 2, 5, 10)
LONGEST_PHASE = 40
N_OTHERS = 2500
"""Cases beside the square's that are drawn in the flat pictures."""


def measure(subject: Subject, config: Geometry) -> dict[str, pd.DataFrame]:
    """Every table of one model; none has columns that say which model it is."""
    if not len(subject.inside) or not len(subject.outside):
        raise CriError("split: the square holds out no case, or no training case has a sum that occurs in it")
    hooks = residual_hooks(subject.n_layers)
    acts = subject.collect(hooks)
    readouts = _readouts(subject, acts, config)
    return {
        "accuracy": _accuracy(subject),
        "spectra": _spectra(subject, acts),
        "bends": _bends(subject, acts),
        "readouts": readouts,
        "classes": _classes(subject, acts),
        "phases": _phases(subject, config),
        "embeddings": _embeddings(subject, config),
        "components": _components(subject, acts, readouts, config),
        "patches": _patches(subject, acts),
        "moves": _moves(subject, acts),
        "neurons": _neurons(subject),
        "units": _units(subject),
        "lens": _lens(subject, acts),
    }


def from_run(source: Run | Materials, subject: Subject, pictures: bool) -> dict[str, pd.DataFrame]:
    """Tables that need the run itself: what each component writes towards the answer (`direct`), and, where `pictures`
    are wanted, the last layer's activations on a plane (`shapes`) and single neurons over the grid (`neuron_maps`)."""
    tables = {"direct": _direct(source, subject)}
    return tables | {"shapes": _shapes(subject), "neuron_maps": _neuron_maps(subject)} if pictures else tables


def _direct(source: Run | Materials, subject: Subject) -> pd.DataFrame:
    """Direct contributions to the right answer's logit and to the given one's, by region and correctness."""
    import pandas as pd

    from cri.interventions import logit_attribution

    parts = []
    for region, ids in subject.regions().items():
        table = logit_attribution(source, ids)[0]
        means = table.groupby(["component", "correct"], sort=False)[["logit", "predicted"]].agg(["mean", "size"])
        parts.append(pd.DataFrame({
            "region": region, "true": means["logit", "mean"], "given": means["predicted", "mean"],
            "n": means["logit", "size"],
        }).reset_index())  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _shapes(subject: Subject) -> pd.DataFrame:
    """PCA and UMAP of the square's held-out cases and of others drawn at random, after the last layer."""
    import pandas as pd

    hook = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    others = np.setdiff1d(np.arange(len(subject.cases)), subject.inside)
    drawn = np.random.default_rng(0).choice(others, min(N_OTHERS, len(others)), replace=False)
    ids = np.sort(np.concatenate([subject.inside, drawn]))
    x = subject.collect([hook], ids)[hook]
    flat, share = pca_xy(x)
    near = umap_xy(x, 0)
    return pd.DataFrame({
        "site": hook, "id": ids, "sum": subject.sums[ids], "square": subject.square[ids], "train": subject.train[ids],
        "right": subject.right(ids), "pca_x": flat[:, 0].round(3), "pca_y": flat[:, 1].round(3),
        "pca_share": round(share, 4), "umap_x": near[:, 0].round(3), "umap_y": near[:, 1].round(3),
    })  # fmt: skip


def _neuron_maps(subject: Subject) -> pd.DataFrame:
    """Activations over the grid of the neuron that is most clearly tuned to each variable, layer by layer; of those
    tuned to the sum, of one that fires for sums of the square."""
    import pandas as pd

    tables = []
    for layer in range(subject.n_layers):
        acts, table = _tuned(subject, layer)
        for variable in ("a", "b", "a+b", "a-b", "mod 10"):
            chosen = table[table["tuned"] == variable]
            if variable == "a+b":
                sums = subject.sums[subject.inside]
                chosen = chosen[chosen["centre"].between(sums.min(), sums.max())]
            best = chosen.nlargest(1, variable)
            for neuron in best["neuron"]:
                values = acts[:, neuron].round(3)
                tables.append(pd.DataFrame({
                    "layer": layer, "neuron": neuron, "tuned": variable, "id": np.arange(len(values)),
                    "activation": values,
                }))  # fmt: skip
    columns = ["layer", "neuron", "tuned", "id", "activation"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _accuracy(subject: Subject) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for region, ids in subject.regions().items():
        error = subject.given(ids) - subject.sums[ids]
        rows.append({
            "region": region, "accuracy": float((error == 0).mean()), "n": len(ids),
            "error_median": float(np.median(error)), "error_iqr": float(np.subtract(*np.percentile(error, [75, 25]))),
            "within_3": float((np.abs(error) <= 3).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _spectra(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    """Power by frequency of the embeddings, and the share of every site's variance that lies between the values of a,
    b, a + b and a - b."""
    import pandas as pd

    rows = [
        {"site": "embedding", "variable": "n", "k": k + 1, "share": float(power)}
        for k, power in enumerate(power_by_frequency(subject.embedding()))
    ]
    a, b = subject.cases.T
    known = np.flatnonzero(subject.train)
    for hook, x in acts.items():
        for name, values in (("a", a), ("b", b), ("a+b", a + b), ("a-b", a - b)):
            share = variance_explained(x[known].astype(np.float64), values[known])
            rows.append({"site": hook, "variable": name, "k": 0, "share": share})
    return pd.DataFrame(rows)


def _bends(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for hook, x in acts.items():
        if hook == "blocks.0.hook_resid_pre":
            continue  # at the prompt's end the embedding is that of `=`
        found = bends(subject, x)
        rows.append({"site": hook, "bend": float(np.nanmedian(found)), "n": int(np.isfinite(found).sum())})
    return pd.DataFrame(rows)


def _readouts(subject: Subject, acts: dict[str, np.ndarray], config: Geometry) -> pd.DataFrame:
    import pandas as pd

    fitted = np.flatnonzero(subject.train)
    tables = [
        ridge_table(x, subject.cases, fitted, subject.regions(), config.periods).assign(site=hook)
        for hook, x in acts.items()
        if hook != "blocks.0.hook_resid_pre"
    ]
    return pd.concat(tables, ignore_index=True)


def _classes(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    fitted = np.flatnonzero(subject.train)
    tables = [
        class_table(acts[hook], subject.cases, fitted, subject.regions()).assign(site=hook)
        for hook in (f"blocks.{i}.hook_resid_post" for i in range(subject.n_layers))
    ]
    return pd.concat(tables, ignore_index=True)


def _phases(subject: Subject, config: Geometry) -> pd.DataFrame:
    logits = subject.logits(np.arange(len(subject.cases)))
    periods = tuple(p for p in config.periods if p <= LONGEST_PHASE)
    return phase_table(logits, subject.sums, subject.regions(), periods)


def _effects(subject: Subject, edits: list[Edit], **labels: object) -> list[dict[str, object]]:
    """Accuracy inside and outside with some edits."""
    return [
        {**labels, "region": region, "accuracy": float(subject.right(ids, edits).mean()), "n": len(ids)}
        for region, ids in subject.regions().items()
    ]


def smooth_basis(n: int, waves: int) -> np.ndarray:
    """The constant and the first cosines of half-integer period over n numbers: any curve without sharp turns."""
    return np.cos(np.pi * np.arange(waves + 1) * (np.arange(n)[:, None] + 0.5) / n)


def _embeddings(subject: Subject, config: Geometry) -> pd.DataFrame:
    """Accuracy with the operands' embeddings replaced by a fit, beside PCA of equal rank and a random smooth curve."""
    import pandas as pd

    table = subject.embedding()
    helix = fit_helix(table, config.helix_periods)
    fits = {"helix": helix, "random curve": random_curve(table, config.helix_periods, 0)}
    fits["PCA of the helix's rank"] = fit_pca(table, min(helix.rank, *table.shape))
    for waves in config.smooth:
        fits[f"smooth {waves}"] = fit_columns(table, smooth_basis(len(table), waves))
        fits[f"PCA {waves}"] = fit_pca(table, min(waves, *table.shape))
    rows: list[dict[str, object]] = []
    for name, fit in fits.items():
        rows += _effects(subject, [replace_operands(fit.fitted)], replaced=name, rank=fit.rank, r2=fit.r2)
    return pd.DataFrame(rows)


def _components(
    subject: Subject, acts: dict[str, np.ndarray], readouts: pd.DataFrame, config: Geometry
) -> pd.DataFrame:
    """Periodic components moved to where the right answer's training cases lie, or set to their mean, where the site
    has such a code; random subspaces of equal rank beside them."""
    import pandas as pd

    outside = readouts[readouts["region"] == "outside"].set_index(["site", "target"])["r2"]
    known = np.flatnonzero(subject.train & ~subject.square)
    rows: list[dict[str, object]] = []
    for hook in acts:
        there = tuple(p for p in config.periods if outside.get((hook, f"phase {p}"), 0.0) >= CODE_THERE)
        groups = {str(p): (p,) for p in there} | ({"all": there} if len(there) > 1 else {})
        x = acts[hook]
        for name, periods in groups.items():
            basis = periodic_subspace(x[known], subject.sums[known], periods)
            chance = random_subspace(x.shape[1], basis.shape[1], 0)
            mean = x[known].mean(0)
            for what, columns in (("moved", basis), ("random moved", chance)):
                goal = where_answers_lie(subject, x, columns, subject.sums)
                rows += _effects(subject, [set_component(hook, columns, goal)], site=hook, period=name, edit=what)
            for what, columns in (("projected out", basis), ("random projected out", chance)):
                edit = project_out(hook, columns, mean, len(x))
                rows += _effects(subject, [edit], site=hook, period=name, edit=what)
    return pd.DataFrame(rows, columns=["site", "period", "edit", "region", "accuracy", "n"])


def _patches(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    """The prompt's end taken from the nearest training case outside the square that has the same answer (and one more,
    as a control: then the answer should be one more), site by site."""
    import pandas as pd

    outputs = [f"blocks.{i}.hook_{kind}_out" for i in range(subject.n_layers) for kind in ("attn", "mlp")]
    everything = {**{k: v for k, v in acts.items() if k != "blocks.0.hook_resid_pre"}, **subject.collect(outputs)}
    same, next_one = same_answer_sources(subject), same_answer_sources(subject, 1)
    rows = []
    for hook, x in everything.items():
        for region, ids in subject.regions().items():
            given = {
                name: subject.given(ids, [from_cases(hook, x, sources)])
                for name, sources in (("same", same), ("next", next_one))
            }
            rows.append({
                "site": hook, "region": region, "accuracy": float((given["same"] == subject.sums[ids]).mean()),
                "next_followed": float((given["next"] == subject.sums[ids] + 1).mean()), "n": len(ids),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _moves(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    """The prompt's end moved along the fitted direction of the sum: by how much does the answer change?"""
    import pandas as pd

    fitted = np.flatnonzero(subject.train)
    rng = np.random.default_rng(0)
    rows = []
    for hook in (f"blocks.{i}.hook_resid_{w}" for i in range(subject.n_layers) for w in ("mid", "post")):
        direction = fit_ridge(acts[hook][fitted], subject.sums[fitted][:, None].astype(float)).direction[:, 0]
        other = rng.standard_normal(len(direction))
        # as long a move as the true one: the length of a move by δ is δ / |direction|
        other *= np.linalg.norm(direction) / np.linalg.norm(other)
        for region, ids in subject.regions().items():
            plain = subject.given(ids)
            for kind, vector in (("sum", direction), ("random", other)):
                for amount in MOVES:
                    moved = subject.given(ids, [move_along(hook, vector, amount)]) - plain
                    rows.append({
                        "site": hook, "region": region, "direction": kind, "amount": amount,
                        "median_change": float(np.median(moved)), "as_told": float((moved == amount).mean()),
                        "n": len(ids),
                    })  # fmt: skip
    return pd.DataFrame(rows)


@functools.lru_cache(maxsize=4)  # a subject is hashed by identity; three tables ask for each layer of the same one
def _tuned(subject: Subject, layer: int) -> tuple[np.ndarray, pd.DataFrame]:
    """A layer's neurons over the grid, and what each is tuned to."""
    acts = subject.collect([neuron_hook(layer)])[neuron_hook(layer)]
    return acts, tuning(acts, subject.cases)


def _neurons(subject: Subject) -> pd.DataFrame:
    import pandas as pd

    tables = []
    for layer in range(subject.n_layers):
        acts, table = _tuned(subject, layer)
        tables.append(table.assign(layer=layer, gap=_gaps(subject, acts)))
    return pd.concat(tables, ignore_index=True)


def _gaps(subject: Subject, acts: np.ndarray) -> np.ndarray:
    """Of every neuron: the root mean square difference between its mean inside and outside at equal sums, over its
    standard deviation outside."""
    inside, outside = subject.inside, subject.outside
    sums = [s for s in np.unique(subject.sums[inside]) if (subject.sums[outside] == s).any()]
    means = [
        np.stack([acts[ids[subject.sums[ids] == s]].mean(0) for s in sums]).astype(np.float64)
        for ids in (inside, outside)
    ]
    spread = acts[outside].std(0).astype(np.float64)
    return np.sqrt(((means[0] - means[1]) ** 2).mean(0)) / np.where(spread > 1e-6, spread, np.nan)


def _units(subject: Subject) -> pd.DataFrame:
    """Mean ablation of single heads, and of the neurons of each layer that fire for sums of the square, beside as many
    random ones."""
    import pandas as pd

    low, high = np.percentile(subject.sums[subject.inside], [0, 100])
    known = np.flatnonzero(subject.train)
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for layer in range(subject.n_layers):
        z = subject.collect([head_hook(layer)])[head_hook(layer)]
        for head in range(int(subject.bridge.cfg.n_heads)):
            units = head_coordinates(subject, head)
            edit = set_units(head_hook(layer), units, z[known][:, units].mean(0))
            rows += _effects(subject, [edit], unit="head", layer=layer, which=str(head), n_units=1)
        acts, table = _tuned(subject, layer)
        alive = np.flatnonzero((table["tuned"] != "silent").to_numpy())
        matching = np.flatnonzero(((table["tuned"] == "a+b") & table["centre"].between(low, high)).to_numpy())
        others = np.setdiff1d(alive, matching)
        chosen = {"band of the square's sums": matching}
        chosen["random"] = rng.choice(others, min(len(matching), len(others)), replace=False)
        for name, neurons in chosen.items():
            edit = set_units(neuron_hook(layer), neurons, acts[known][:, neurons].mean(0))
            rows += _effects(subject, [edit], unit="neurons", layer=layer, which=name, n_units=len(neurons))
    return pd.DataFrame(rows)


def _lens(subject: Subject, acts: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for hook, x in acts.items():
        for region, ids in subject.regions().items():
            logits = logit_lens(subject, x, ids)
            shown = logits.argmax(1)
            rows.append({
                "site": hook, "region": region, "right": float((shown == subject.sums[ids]).mean()),
                "given": float((shown == subject.given(ids)).mean()),
                "median_rank": float(np.median(lens_ranks(logits, subject.sums[ids]))), "n": len(ids),
            })  # fmt: skip
    return pd.DataFrame(rows)
