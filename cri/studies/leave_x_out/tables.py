"""Tables and figures of `leave_x_out`, from recorded retrainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cri import plots
from cri.data.case_relations import grid_distance, mirror_images
from cri.data.splits import Split, in_square
from cri.data.step_coverage import step_coverage
from cri.options import FamilyName
from cri.plots.retraining import design_accuracy, sliding_map
from cri.retraining.records import Retrainings, family_records, load_retrainings
from cri.statistics import wilson
from cri.statistics.datamodels import rank, rank_correlation, resamples
from cri.statistics.errors import differences, error_shares, paired_t
from cri.statistics.readings import holm
from cri.storage import is_complete, read_json
from cri.storage.compression import read_table, stored
from cri.studies.common.spans import span
from cri.tasks import Task, make_task
from cri.training.setup import Materials, prepare

FAMILY = ["task", "format", "tokenizer"]


def _names(record: Retrainings) -> dict[str, str]:
    return {name: getattr(record.config, name) for name in FAMILY}


def held_out_cases(record: Retrainings, task: Task) -> pd.DataFrame:
    """One row a held-out case of every model: `correct`, `unseen` (it has a rule step that no training case executes),
    `distance` to the nearest training case on the grid, `same_answer` (training cases with its answer), `image` (its
    mirror image is trained), and the columns of the record's table."""
    notes = [c for c in ("design", "place", "center_row", "center_col", "seed", "train_acc") if c in record.table]
    parts, image = [], mirror_images(task)
    for i, row in enumerate(record.table[notes].to_dict("records")):
        held = np.flatnonzero(~record.train[i])
        coverage = step_coverage(task, Split(record.train[i], {}))
        train = np.flatnonzero(record.train[i])
        distance = grid_distance(task, train, held).min(axis=0)
        answers = np.array(task.answers)
        found, counts = np.unique(answers[train], return_counts=True)
        known = dict(zip(found.tolist(), counts.tolist(), strict=True))
        cells = {
            "case_id": held,
            "correct": record.correct[i, held],
            "unseen": coverage["n_unseen"].to_numpy()[held] > 0,
            "distance": distance,
            "image": (image[held] >= 0) & record.train[i][image[held]],
            "same_answer": [known.get(answer, 0) for answer in answers[held].tolist()],
        }
        parts.append(pd.DataFrame(cells).assign(**row))
    return pd.concat(parts, ignore_index=True).assign(**_names(record))


def design_table(cells: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Accuracy on the held-out cases of each model and what they have in common."""
    table = cells.groupby([*FAMILY, *by, "seed"], sort=False).agg(
        accuracy=("correct", "mean"), unseen=("unseen", "mean"), distance=("distance", "mean"),
        same_answer=("same_answer", "mean"), image=("image", "mean"), train_accuracy=("train_acc", "first"),
        n_held_out=("correct", "size"),
    )  # fmt: skip
    return table.reset_index()


def coverage_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by design, by whether a step was never trained, and by distance to the nearest training case: locality
    and step coverage held apart. Wilson intervals take the cases as independent, so they are too narrow."""
    bins = [0, 1, 3, 6, np.inf]
    near = pd.cut(cells["distance"], bins, labels=["1", "2-3", "4-6", "7+"])
    rows = []
    for key, part in cells.assign(distance=near).groupby(
        [*FAMILY, "design", "unseen", "distance"], observed=True, sort=False
    ):
        low, high = wilson(int(part["correct"].sum()), len(part))
        names = dict(zip([*FAMILY, "design", "unseen", "distance"], key, strict=True))
        rows.append({**names, "accuracy": part["correct"].mean(), "low": low, "high": high, "n": len(part)})
    return pd.DataFrame(rows)


def symmetry_table(base: Retrainings, task: Task) -> pd.DataFrame:
    """Does a model that is wrong say the same of a + b and of b + a? Of pairs of held-out cases with the same right
    answer of which it answers one wrongly or both, the share with equal completions: of mirror images, and of others.

    One row a base model of the square split and kind of pair: `seed`, `pairs`, `equal`, `n`.
    """
    image = mirror_images(task)
    answers = np.array(task.answers)
    rows = []
    for i, row in base.table[base.table["split"] == "square"].iterrows():
        held = np.flatnonzero(
            ~base.train[i][base.queries] & in_square(task, task.center, _half_side(base))[base.queries]
        )
        ids = base.queries[held]
        assert base.completions is not None  # base models have them
        assert base.completion_lengths is not None
        place = np.arange(base.completions.shape[2])
        texts = np.where(place < base.completion_lengths[i, held, None], base.completions[i, held], -1)
        first, second = np.triu_indices(len(ids), 1)
        right = base.correct[i, ids]
        chosen = (answers[ids[first]] == answers[ids[second]]) & ~(right[first] & right[second])
        first, second = first[chosen], second[chosen]
        equal = (texts[first] == texts[second]).all(axis=1)
        mirrored = image[ids[first]] == ids[second]
        for name, mask in (("mirror images", mirrored), ("others", ~mirrored)):
            if mask.any():
                found = {"pairs": name, "equal": float(equal[mask].mean()), "n": int(mask.sum())}
                rows.append({**_names(base), "seed": int(row["seed"]), **found})
    return pd.DataFrame(rows)


def error_table(base: Retrainings) -> pd.DataFrame:
    """How the wrong answers of the base models are wrong (`statistics.errors.error_shares`): one row a base model and
    part of the held-out queries (`square`, `outside`; `random` of the random split)."""
    materials = prepare(base.config)
    task = materials.task
    inside = materials.split.test[base.queries]
    rows = []
    for i, row in base.table.iterrows():
        held = ~base.train[i][base.queries]
        parts = {"random": held} if row["split"] == "random" else {"square": held & inside, "outside": held & ~inside}
        said = base_answers(base, int(i), materials)  # pyright: ignore[reportArgumentType]
        for part, mask in parts.items():
            ids = base.queries[mask]
            difference = differences([said[j] for j in np.flatnonzero(mask)], [task.answers[c] for c in ids])
            names = {**_names(base), "split": row["split"], "seed": int(row["seed"]), "part": part}
            accuracy = float(base.correct[i, ids].mean()) if len(ids) else np.nan
            rows.append({**names, "n": len(ids), "accuracy": accuracy, **error_shares(difference)})
    return pd.DataFrame(rows)


def base_answers(base: Retrainings, model: int, materials: Materials) -> list[str]:
    """What a base model answers to every query, read back ("" where that fails)."""
    tokens, texts = base.predicted(model, materials.tokens), []
    for i, case in enumerate(base.queries.tolist()):
        start, stop = int(tokens.prompt_lengths[i]), int(tokens.lengths[i]) - 1
        text = str(materials.tokenizer.decode(tokens.ids[i, start:stop].tolist()))
        a, b = materials.task.operands[case]
        texts.append(materials.format.read(materials.task, a, b, text, finished=True).answer or "")
    return texts


def image_table(slides: pd.DataFrame) -> pd.DataFrame:
    """Of squares slid off the diagonal that hold some of their own mirror images: accuracy of the cells whose image is
    trained and of those whose image is not, among all cells and among those at the same distance from the training
    cases (`matched`: means over distances that have both, weighted by the cells without an image).

    One row a place and seed with both kinds: `center_row`, `center_col`, `seed`, `without`, `with`, `difference`,
    `matched_without`, `matched_with`, `n_without`, `n_with`.
    """
    off = slides[slides["center_row"] != slides["center_col"]]
    rows = []
    for key, part in off.groupby([*FAMILY, *_CENTER, "seed"], sort=False):
        cells = part.groupby(["distance", "image"])["correct"].agg(["mean", "size"]).unstack()
        if part["image"].nunique() < 2:
            continue
        both = cells.dropna()
        weight = both["size"][False]
        mean = {image: float(part.loc[part["image"] == image, "correct"].mean()) for image in (False, True)}
        at_one_distance = {
            i: float(np.average(both["mean"][i], weights=weight)) if len(both) else np.nan for i in (False, True)
        }
        rows.append({
            **dict(zip([*FAMILY, *_CENTER, "seed"], key, strict=True)), "without": mean[False], "with": mean[True],
            "difference": mean[False] - mean[True], "matched_without": at_one_distance[False],
            "matched_with": at_one_distance[True], "n_without": int((~part["image"]).sum()),
            "n_with": int(part["image"].sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


CONTRASTS = (("mirrored", "one_sided"), ("diagonal", "apart"), ("square", "apart"), ("mirrored", "apart"))


def contrast_table(designs: pd.DataFrame) -> pd.DataFrame:
    """Differences in accuracy between two designs trained with the same seeds: mean, t interval over seeds and p-value
    (`statistics.errors.paired_t`), corrected by Holm over the contrasts of a family; `values` has them seed by seed."""
    table = designs.assign(place=designs["place"].fillna(1)) if "place" in designs else designs.assign(place=1)
    rows = []
    for key, part in table.groupby([*FAMILY, "place"], sort=False):
        wide = part.pivot_table(index="seed", columns="design", values="accuracy")
        for one, other in CONTRASTS:
            if not {one, other} <= set(wide.columns):
                continue
            found = (wide[one] - wide[other]).dropna()
            if len(found) == 0:
                continue
            names = dict(zip([*FAMILY, "place"], key, strict=True))
            values = " ".join(f"{v:.2f}" for v in found)
            rows.append({**names, "design": one, "minus": other, **paired_t(found.tolist()), "values": values})
    out = pd.DataFrame(rows)
    if len(out):
        passes = out.groupby(FAMILY, sort=False)["p"].transform(lambda p: holm(p.fillna(1.0).tolist()))
        out["significant"] = passes.astype(bool)
    return out


def _half_side(record: Retrainings) -> int:
    return int(record.config.split_params["half_side"])


_CENTER = ["center_row", "center_col"]
_BESIDE = ("same_answer", "distance", "image")


def sliding_summary(slides: pd.DataFrame, n_boot: int = 2000) -> pd.DataFrame:
    """What the accuracy of a place correlates with: Spearman's correlation over places (mean over seeds) with the
    number of training cases that share an answer with its cases, with their distance from the training cases, and with
    the share of them whose mirror image is trained. Intervals: bootstrap over places. And the mean accuracy of the
    places on the diagonal, where a square is its own mirror image, and off it; without the outermost ones, where
    answers are rare."""
    rows = []
    for key, part in slides.groupby(FAMILY, sort=False):
        places = part.groupby(_CENTER)[["accuracy", *_BESIDE]].mean()
        draws = resamples(len(places), np.arange(len(places)), n_boot)
        row = {**dict(zip(FAMILY, key, strict=True)), "accuracy": part["accuracy"].mean()}
        ranks = {name: rank(places[[name]].to_numpy()) for name in places}
        for other in _BESIDE:
            found = rank_correlation(ranks["accuracy"], ranks[other], draws.subsets)[:, 0]
            row[f"rho_{other}"] = found[0]
            row[f"rho_{other}_low"], row[f"rho_{other}_high"] = np.quantile(found[1:], [0.025, 0.975])
        at = places.reset_index()
        inside = np.logical_and.reduce([at[c].between(at[c].min(), at[c].max(), "neither") for c in _CENTER])
        own_image = (at[_CENTER[0]] == at[_CENTER[1]]).to_numpy()
        for name, mask in (("diagonal", own_image), ("off_diagonal", ~own_image)):
            chosen = at.loc[inside & mask, "accuracy"]
            row |= {name: chosen.mean(), f"n_{name}": len(chosen)}
        rows.append({**row, "n_places": len(places), "n_seeds": part["seed"].nunique()})
    return pd.DataFrame(rows)


def _place(cells: pd.DataFrame) -> pd.Series:
    """The place of a design off the diagonal or on it; those of older records are place 1."""
    return cells["place"].fillna(1).astype(int) if "place" in cells else pd.Series(1, index=cells.index)


def compute(folder: Path) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]]]:
    """All tables of a bank's folder, and the names of each task's axes."""
    designs, slides, placed, symmetry = [], [], [], {}
    axis_names = {}
    errors = [error_table(load_retrainings(path)) for path in sorted(folder.glob("*/base")) if is_complete(path)]
    for pattern, into in (("leave-out", designs), ("sliding", slides), ("image-", placed), ("diagonal-", placed)):
        for base_path, path in family_records(folder, pattern):
            record = load_retrainings(path)
            task = make_task(record.config.task, **record.config.task_params)
            axis_names[task.name] = list(task.axis_names)
            if base_path not in symmetry:
                symmetry[base_path] = symmetry_table(load_retrainings(base_path), task)
            row, col = task.center
            into.append(held_out_cases(record, task).assign(default_row=row, default_col=col))
    cells = pd.concat(designs, ignore_index=True)
    table = design_table(cells, ["design"])
    summary = table.groupby([*FAMILY, "design"], sort=False).agg(
        accuracy=("accuracy", "mean"), lowest=("accuracy", "min"), highest=("accuracy", "max"),
        unseen=("unseen", "mean"),
        distance=("distance", "mean"), same_answer=("same_answer", "mean"), image=("image", "mean"),
        n_held_out=("n_held_out", "mean"),
        train_accuracy=("train_accuracy", "mean"), n_seeds=("seed", "nunique"),
    )  # fmt: skip
    tables = {"designs": table, "summary": summary.reset_index(), "coverage": coverage_table(cells)}
    tables["symmetry"] = pd.concat(symmetry.values(), ignore_index=True)
    tables["errors"] = pd.concat(errors, ignore_index=True)
    every = [cells, *placed]
    seeds = design_table(pd.concat(every, ignore_index=True).assign(place=lambda t: _place(t)), ["design", "place"])
    if placed:
        tables["places"] = seeds[seeds["design"].isin({name for pair in CONTRASTS for name in pair})]
    tables["contrasts"] = contrast_table(seeds)
    if slides:
        places = ["center_row", "center_col", "default_row", "default_col"]
        tables["sliding"] = design_table(pd.concat(slides, ignore_index=True), places)
        tables["sliding_summary"] = sliding_summary(tables["sliding"])
        tables["images"] = image_table(pd.concat(slides, ignore_index=True))
    return {name: table for name, table in tables.items() if len(table)}, axis_names


def draw(tables: Path, figures: Path) -> list[Path]:
    """Draws the figures from the tables in a folder; returns the files written."""
    prefix = f"leave_x_out_{tables.name}"
    with plots.style():
        drawn = {"designs": _designs(read_table(tables / "designs.csv"))}
        if stored(tables / "sliding.csv").exists():
            axis_names = read_json(tables / "manifest.json")["axis_names"]
            drawn["sliding"] = _sliding(read_table(tables / "sliding.csv"), axis_names)
        return [path for name, fig in drawn.items() for path in plots.save_figure(fig, figures / f"{prefix}_{name}")]


def _panels(
    table: pd.DataFrame, size: tuple[float, float], **options: Any
) -> tuple[Any, Any, list[tuple[dict[str, str], pd.DataFrame]]]:
    """Figure and axes, three panels a row, and the families to draw in them."""
    found = [(dict(zip(FAMILY, key, strict=True)), part) for key, part in table.groupby(FAMILY, sort=False)]
    found.sort(key=lambda item: FamilyName.of(item[0]).order)
    n_cols = min(3, len(found))
    fig, axes = plots.figure(-(-len(found) // n_cols), n_cols, size, **options)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    return fig, axes, found


def _legend(fig: Any, axes: Any) -> None:
    """Of all panels, each name once: one whose panel shows nothing of it (no cross) is left out."""
    shown = {name: h for ax in axes.flat for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown) if len(axes.flat) > 1 else 1)


def _designs(table: pd.DataFrame) -> Any:
    fig, axes, families = _panels(table, (2.7, 2.9) if table.groupby(FAMILY).ngroups > 1 else (3.5, 2.8))
    for ax, (family, part) in zip(axes.flat, families, strict=False):
        design_accuracy(part, ax)
        ax.set_title(
            f"{FamilyName.of(family).title}\n{span(part['n_held_out'])} cases held out, {_seeds(part)}", pad=26
        )
    _legend(fig, axes)
    return fig


def _sliding(table: pd.DataFrame, axis_names: dict[str, list[str]]) -> Any:
    fig, axes, families = _panels(table, (2.7, 2.7))
    for ax, (family, part) in zip(axes.flat, families, strict=False):
        row_name, col_name = axis_names[family["task"]]
        sliding_map(part, ax, axis_names=(row_name, col_name), colorbar=False)
        ax.set_title(f"{FamilyName.of(family).title}\n{_seeds(part)}")
    bar = fig.colorbar(axes[0, 0].images[0], ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("mean accuracy in the square")
    bar.outline.set_linewidth(0.5)
    _legend(fig, axes)
    return fig


def _seeds(part: pd.DataFrame) -> str:
    n = part["seed"].nunique()
    return f"{n} seed{'s' * (n > 1)}"
