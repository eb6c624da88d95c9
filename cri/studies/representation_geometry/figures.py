"""Figures of `cri.studies.representation_geometry`, from its tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.plots.style import MODEL_COLORS, figure, save_figure, style
from cri.statistics.seeds import over_seeds
from cri.storage.compression import read_table, tables_in
from cri.studies.representation_geometry.config import NAME

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

REGION_MARKERS = {"inside": "s", "outside": "o"}
SPLITS = ("square", "random")


def draw(folder: Path, out: Path) -> list[Path]:
    """Draws every figure whose tables are there; returns the files."""
    tables = {name: read_table(path) for name, path in tables_in(folder).items()}
    made: list[Path] = []
    with style():
        for name, make in (
            ("number_line", _number_line), ("readouts", _readouts), ("phase", _phase),
            ("interventions", _interventions), ("arms", _arms),
        ):  # fmt: skip
            fig = make(tables)
            if fig is not None:
                made += save_figure(fig, out / f"{NAME}_{folder.name}_{name}")
    return made


def _site(hook: str) -> str:
    """`after attention 0`, `after MLP 1`, `attention 0 alone`."""
    layer, kind = hook.split(".")[1], hook.rpartition("hook_")[2]
    names = {"resid_mid": "after attention", "resid_post": "after MLP", "attn_out": "attention", "mlp_out": "MLP"}
    return f"{names.get(kind, kind)} {layer}"


def _trained(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["role"] == "trained"]


def _dots(ax: Axes, table: pd.DataFrame, value: str, keys: list[Any], key: str, shift: float, **look: Any) -> None:
    """Mean over seeds with its interval for each key, small dots for single seeds."""
    means = over_seeds(table, value, [key]).set_index(key)
    for i, name in enumerate(keys):
        part = table[table[key] == name][value].to_numpy(dtype=float)
        ax.plot(np.full(len(part), i + shift), part, ".", ms=2.5, alpha=0.5, color=look.get("color"), zorder=1)
        if name in means.index:
            row = means.loc[name]
            ends = [[row["estimate"] - row["low"]], [row["high"] - row["estimate"]]]
            label = look.get("label") if i == 0 else None
            ax.errorbar(
                i + shift, row["estimate"], yerr=ends, fmt=look.get("marker", "o"), color=look.get("color"), ms=4,
                mfc=look.get("mfc", look.get("color")), capsize=2, lw=1, label=label, zorder=2,
            )  # fmt: skip


def _by_model(ax: Axes, table: pd.DataFrame, value: str, keys: list[Any], key: str) -> None:
    """Splits in colours, inside filled and outside hollow."""
    looks = [(split, region) for split in SPLITS for region in ("inside", "outside")]
    for i, (split, region) in enumerate(looks):
        part = table[(table["split"] == split) & (table["region"] == region)]
        if not len(part):
            continue
        _dots(
            ax, part, value, keys, key, (i - 1.5) * 0.17, color=MODEL_COLORS[split], marker=REGION_MARKERS[region],
            mfc=MODEL_COLORS[split] if region == "inside" else "white", label=f"{split} split, {region}",
        )  # fmt: skip
    ax.set_xticks(range(len(keys)))
    ax.set_xlim(-0.6, len(keys) - 0.4)


def _number_line(tables: dict[str, pd.DataFrame]) -> Any:
    """Power of the operands' embeddings by frequency; bends of iso-answer lines."""
    fig, axes = figure(1, 2, (3.3, 2.7))
    spectra = tables["spectra"]
    spectra = spectra[spectra["site"] == "embedding"]
    for split in SPLITS:
        part = spectra[(spectra["split"] == split) & (spectra["role"] == "trained")]
        for _, run in part.groupby("run"):
            axes[0, 0].plot(run["k"], run["share"], color=MODEL_COLORS[split], lw=0.8, alpha=0.7)
        axes[0, 0].plot([], [], color=MODEL_COLORS[split], label=f"{split} split")
    start = spectra[spectra["role"] == "untrained"]
    axes[0, 0].plot(start["k"], start["share"], color=MODEL_COLORS["untrained"], lw=0.8, label="untrained")
    axes[0, 0].set(xscale="log", yscale="log", xlabel="periods over the numbers (k)", ylabel="share of variance")
    axes[0, 0].set_title("embeddings of 0 to 99: a smooth curve")
    axes[0, 0].legend()
    bends = _trained(tables["bends"])
    sites = list(dict.fromkeys(bends["site"]))
    for i, split in enumerate(SPLITS):
        _dots(axes[0, 1], bends[bends["split"] == split], "bend", sites, "site", (i - 0.5) * 0.2,
              color=MODEL_COLORS[split], label=f"{split} split")  # fmt: skip
    axes[0, 1].set_xticks(range(len(sites)), [_site(s) for s in sites], rotation=20, ha="right")
    axes[0, 1].set_ylabel("distance from the chord\n(steps of one in the sum)")
    axes[0, 1].set_title("cases of equal sum, across the square")
    axes[0, 1].set_ylim(bottom=0)
    axes[0, 1].legend()
    return fig


def _readouts(tables: dict[str, pd.DataFrame]) -> Any:
    """R² of the sum and of its phases, by site."""
    table = _trained(tables["readouts"])
    sites = list(dict.fromkeys(table["site"]))
    targets = ["a+b", *[t for t in dict.fromkeys(table["target"]) if t.startswith("phase")]][:4]
    fig, axes = figure(1, len(targets), (2.15, 2.6), sharey=True)
    for ax, target in zip(axes[0], targets, strict=True):
        part = table[table["target"] == target].assign(r2=lambda t: t["r2"].clip(lower=-1))
        _by_model(ax, part, "r2", sites, "site")
        ax.set_xticks(range(len(sites)), [_site(s) for s in sites], rotation=35, ha="right")
        ax.axhline(0, color="#999999", lw=0.7)
        ax.set_title("a + b" if target == "a+b" else f"a + b on a circle of {target.split()[1]}")
    axes[0, 0].set_ylabel("R² on cells not fitted (cut at −1)")
    axes[0, 0].legend(loc="lower left", fontsize=6)
    return fig


def _phase(tables: dict[str, pd.DataFrame]) -> Any:
    """Where the bump of the logits stands, and whether its shift is the error."""
    table = _trained(tables["phases"])
    periods = sorted(table["period"].unique(), reverse=True)
    fig, axes = figure(1, 2, (3.0, 2.5))
    _by_model(axes[0, 0], table, "cos_true", periods, "period")
    axes[0, 0].set_xticks(range(len(periods)), [f"period {p}" for p in periods])
    axes[0, 0].set_ylabel("mean cos of the phase\n(1: the bump is at the true sum)")
    axes[0, 0].legend(fontsize=6)
    wrong = table[(table["region"] == "inside") & (table["split"] == "square")]
    for value, look, shift in (
        ("shift_right", {"color": "#000000", "label": "its own phase"}, -0.1),
        ("shift_chance", {"color": "#999999", "label": "another wrong case's phase"}, 0.1),
    ):
        _dots(axes[0, 1], wrong, value, periods, "period", shift, **look)
    axes[0, 1].set_xticks(range(len(periods)), [f"period {p}" for p in periods])
    axes[0, 1].set_ylabel("wrong answers in the square\nwhose error the phase gives")
    axes[0, 1].set_ylim(0, 1)
    axes[0, 1].legend()
    return fig


def _interventions(tables: dict[str, pd.DataFrame]) -> Any:
    """Accuracy after each edit, inside and outside."""
    fig, axes = figure(1, 3, (2.9, 3.1), sharey=True)
    embeddings = _trained(tables["embeddings"])
    names = list(dict.fromkeys(embeddings["replaced"]))
    _by_model(axes[0, 0], embeddings, "accuracy", names, "replaced")
    axes[0, 0].set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes[0, 0].set_title("operands' embeddings replaced by")
    patches = _trained(tables["patches"])
    sites = list(dict.fromkeys(patches["site"]))
    _by_model(axes[0, 1], patches, "accuracy", sites, "site")
    axes[0, 1].set_xticks(range(len(sites)), [_site(s) for s in sites], rotation=45, ha="right")
    axes[0, 1].set_title("prompt's end taken from the nearest\ntraining case with the same answer")
    parts = _trained(tables["components"])
    parts = parts[(parts["period"] == "all") & parts["edit"].isin(["moved", "random moved"])]
    parts = parts.assign(key=parts["site"].map(_site) + parts["edit"].map({"moved": "", "random moved": ", random"}))
    keys = list(dict.fromkeys(parts["key"]))
    if keys:
        _by_model(axes[0, 2], parts, "accuracy", keys, "key")
        axes[0, 2].set_xticks(range(len(keys)), keys, rotation=45, ha="right")
    axes[0, 2].set_title("periodic components moved to\nwhere the right answer's cases lie")
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].set_ylim(-0.03, 1.03)
    axes[0, 0].legend(fontsize=6, loc="upper left")
    return fig


def _arms(tables: dict[str, pd.DataFrame]) -> Any:
    """Accuracy in the square of models whose embeddings were held on a curve while they were trained."""
    if "arms" not in tables:
        return None
    import pandas as pd

    own = _trained(tables["accuracy"])
    own = own[(own["split"] == "square") & (own["region"] == "inside")]
    default = own[["accuracy"]].rename(columns={"accuracy": "square_accuracy"}).assign(arm="default")
    table = pd.concat([default, tables["arms"]], ignore_index=True)
    order = [a for a in ("default", "untied", "smooth", "bent") if a in set(table["arm"])]
    words = {"default": "as they come", "untied": "untied from\nthe unembedding", "smooth": "held on a\nsmooth curve",
             "bent": "smooth, with\na fixed bend"}  # fmt: skip
    fig, axes = figure(1, 1, (3.6, 2.5))
    _dots(axes[0, 0], table, "square_accuracy", order, "arm", 0.0, color=MODEL_COLORS["square"])
    axes[0, 0].set_xticks(range(len(order)), [words[a] for a in order])
    axes[0, 0].set(ylabel="accuracy in the held-out square", ylim=(0, 1), xlim=(-0.5, len(order) - 0.5))
    axes[0, 0].set_title("operands' embeddings while training")
    return fig
