"""Figures of `cri.studies.representation_geometry`, from its tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.plots.style import MODEL_COLORS, figure, save_figure, style
from cri.statistics.seeds import over_seeds
from cri.storage.compression import read_table, tables_in
from cri.studies.representation_geometry.config import ARMS, NAME

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEWEST = 5
"""Groups of fewer cases a model are not drawn."""
REGION_MARKERS = {"inside": "s", "outside": "o"}
SPLITS = ("square", "random")


def draw(folder: Path, out: Path) -> list[Path]:
    """Draws every figure whose tables are there; returns the files."""
    tables = {name: read_table(path) for name, path in tables_in(folder).items()}
    figures: dict[str, Any] = {
        "number_line": _number_line, "readouts": _readouts, "phase": _phase, "interventions": _interventions,
        "arms": _arms, "shapes": _shapes, "neurons": _neurons, "direct": _direct,
    }  # fmt: skip
    if "digits" in tables:  # of few seeds: the others would repeat those of the models with a token a number
        figures = {"digits": _digits}
    made: list[Path] = []
    with style():
        for name, make in figures.items():
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
    if "spectra" not in tables:
        return None
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
    if "readouts" not in tables:
        return None
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
    if "phases" not in tables:
        return None
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
    if "embeddings" not in tables:
        return None
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
    # a site where only some seeds have such a code says little of the others
    parts = parts[parts.groupby("key")["run"].transform("nunique") >= embeddings["run"].nunique()]
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
    order = [a for a in ARMS if a in set(table["arm"])]
    words = {"default": "as they\ncome", "start": "started on\na curve", "untied": "apart from\nunembedding",
             "noise": "apart,\nwith noise", "smooth": "apart, on\na curve",
             "bent": "apart, on\na bent curve"}  # fmt: skip
    fig, axes = figure(1, 1, (4.6, 2.5))
    _dots(axes[0, 0], table, "square_accuracy", order, "arm", 0.0, color=MODEL_COLORS["square"])
    axes[0, 0].set_xticks(range(len(order)), [words[a] for a in order])
    axes[0, 0].set(ylabel="accuracy in the held-out square", ylim=(0, 1), xlim=(-0.5, len(order) - 0.5))
    axes[0, 0].set_title("operands' embeddings while training")
    return fig


def _shapes(tables: dict[str, pd.DataFrame]) -> Any:
    """The last layer on a plane, PCA and UMAP side by side, for the first seed of either split."""
    if "shapes" not in tables:
        return None
    from cri.plots.maps import embedding_map

    table = _trained(tables["shapes"])
    fig, axes = figure(2, 2, (3.1, 2.9))
    for row, split in enumerate(SPLITS):
        part = table[table["split"] == split]
        shown = part["square"] & ~part["train"]
        mark = np.where(shown, np.where(part["right"], "right", "wrong"), "")
        for column, kind in enumerate(("pca", "umap")):
            flat = part.assign(x=part[f"{kind}_x"], y=part[f"{kind}_y"], value=part["sum"], mark=mark)
            embedding_map(flat, axes[row, column], label="a + b", colorbar=column == 1)
            share = f", {part['pca_share'].iloc[0]:.0%} of the variance" if kind == "pca" and len(part) else ""
            axes[row, column].set_title(f"{split} split: {kind.upper()}{share}")
    return fig


def _neurons(tables: dict[str, pd.DataFrame]) -> Any:
    """Single neurons over the grid: of either split, the most clearly tuned one a variable and layer."""
    if "neuron_maps" not in tables or not len(tables["neuron_maps"]):
        return None
    table = _trained(tables["neuron_maps"])
    table = table[table["tuned"].isin(["a", "b", "a+b"])]
    keys = sorted({(layer, tuned) for layer, tuned in zip(table["layer"], table["tuned"], strict=True)})
    if not keys:
        return None
    fig, axes = figure(2, len(keys), (1.55, 1.75))
    for row, split in enumerate(SPLITS):
        for ax, (layer, tuned) in zip(axes[row], keys, strict=True):
            part = table[(table["split"] == split) & (table["layer"] == layer) & (table["tuned"] == tuned)]
            ax.set_xticks([])
            ax.set_yticks([])
            if not len(part):
                ax.set_axis_off()
                continue
            size = int(np.sqrt(len(part)))
            grid = part.sort_values("id")["activation"].to_numpy().reshape(size, size)
            ax.imshow(grid, cmap="viridis", vmin=0, vmax=max(grid.max(), 1e-6), interpolation="nearest")
            ax.set_title(f"{split}, layer {layer}\nneuron {part['neuron'].iloc[0]} ({tuned})", fontsize=6.5)
    axes[0, 0].set_ylabel("a")
    axes[-1, 0].set_ylabel("a")
    for ax in axes[-1]:
        ax.set_xlabel("b")
    return fig


def _direct(tables: dict[str, pd.DataFrame]) -> Any:
    """What each layer's attention and MLP write towards the right answer and towards the given one."""
    if "direct" not in tables:
        return None
    table = _trained(tables["direct"])
    heads = table["component"].str.match(r"L\d+H\d+$")
    name = table["component"].where(~heads, table["component"].str.replace(r"H\d+$", " attention", regex=True))
    table = table.assign(part=name.str.replace(r"^L(\d+)mlp$", r"L\1 MLP", regex=True))
    keys = [k for k in dict.fromkeys(table["part"]) if "attention" in k or "MLP" in k]
    group = ["run", "split", "region", "correct", "part"]
    table = table.groupby(group, sort=False).agg({"true": "sum", "given": "sum", "n": "first"}).reset_index()
    fig, axes = figure(1, 3, (2.6, 2.6), sharey=True)
    panels = (("outside", True, "right, outside the square"), ("inside", True, "right, inside"),
              ("inside", False, "wrong, inside"))  # fmt: skip
    for ax, (region, correct, title) in zip(axes[0], panels, strict=True):
        part = table[(table["region"] == region) & (table["correct"] == correct)]
        for i, split in enumerate(SPLITS):
            if part.loc[part["split"] == split, "n"].mean() < FEWEST:
                continue  # the random split is hardly ever wrong there
            for j, (value, fill) in enumerate((("true", True), ("given", False))):
                if correct and value == "given":
                    continue  # the same answer
                color = MODEL_COLORS[split]
                shift = (i - 0.5) * 0.3 + (j - 0.5) * 0.12
                label = f"{split} split: {'right' if value == 'true' else 'given'} answer"
                _dots(ax, part[part["split"] == split], value, keys, "part", shift, color=color,
                      mfc=color if fill else "white", label=label)  # fmt: skip
        ax.set_xticks(range(len(keys)), [f"layer {k[1]}\n{k[3:]}" for k in keys])
        ax.axhline(0, color="#999999", lw=0.7)
        ax.set_title(title)
    axes[0, 0].set_ylabel("direct contribution to\nthe answer's logit (centred)")
    axes[0, 0].legend(fontsize=6, loc="upper right")
    axes[0, 2].legend(fontsize=6, loc="upper left")
    return fig


def _digits(tables: dict[str, pd.DataFrame]) -> Any:
    """Digit by digit: accuracy, read-outs of the carry, and what the activation of a case of equal sum fills."""
    if "digits" not in tables:
        return None
    formats = list(dict.fromkeys(tables["digits"]["format"]))
    fig, axes = figure(len(formats), 3, (2.5, 2.3))
    for row, fmt in zip(axes, formats, strict=True):
        digits, reads, patches = (
            _trained(tables[name][tables[name]["format"] == fmt]) for name in ("digits", "digit_reads", "digit_patches")
        )
        columns = list(dict.fromkeys(digits["column"]))
        _by_model(row[0], digits, "accuracy", columns, "column")
        row[0].set_xticks(range(len(columns)), columns)
        row[0].set(ylim=(-0.03, 1.03), ylabel=f"{fmt}\ndigit right")
        row[0].legend(fontsize=5.5, loc="lower left")
        tens = reads[(reads["column"] == "tens") & (reads["target"] == "carry in")]
        sites = list(dict.fromkeys(tens["site"]))
        _by_model(row[1], tens, "kappa", sites, "site")
        row[1].set(ylim=(-0.2, 1.03), ylabel="carry into the tens, read off\n(Cohen's kappa)")
        same = patches[(patches["column"] == "tens") & (patches["source"] == "same sum")]
        _by_model(row[2], same, "accuracy", sites, "site")
        row[2].set(ylim=(-0.03, 1.03), ylabel="tens right, activation of the\nnearest case of equal sum")
        for ax in row[1:]:
            ax.set_xticks(range(len(sites)), [_site(s) for s in sites], rotation=25, ha="right")
    return fig
