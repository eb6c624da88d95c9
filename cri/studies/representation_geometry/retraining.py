"""Does a straighter number line shrink the hole, and a bent one widen it?  Models trained again with embeddings held on
a curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cri.studies.representation_geometry.config import Arm, Geometry
from cri.studies.representation_geometry.measures import smooth_basis

if TYPE_CHECKING:
    import pandas as pd

BEND = 4.0
"""Length of the fixed bend at its middle, in root mean squares of a curve's initial rows."""


NOISE = 0.25
"""Standard deviation of the arm `noise`, in root mean squares of the operands' initial rows: enough to blur a number
with its neighbours on a smooth number line, and not with far ones."""
START_WAVES = 4
"""Waves of the smooth curve that the arm `start` starts on."""


class Noisy(nn.Module):
    """A parametrization of an embedding table: in training the operands' rows carry fresh Gaussian noise in every
    pass, so that neighbouring numbers cannot be told apart sharply."""

    def __init__(self, rows: Tensor, scale: float, seed: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.scale = scale
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight
        rows: Any = self.rows
        noise = torch.randn((len(rows), weight.shape[1]), generator=self.generator) * self.scale
        return weight.index_add(0, rows, noise.to(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class OnCurve(nn.Module):
    """A parametrization of an embedding table: the rows of the operands are projected on smooth curves, and a fixed
    bend is added; other rows are free."""

    def __init__(self, rows: Tensor, basis: Tensor, bend: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("basis", basis)  # orthonormal columns [number, wave]
        self.register_buffer("bend", bend)

    def forward(self, weight: Tensor) -> Tensor:
        rows: Any = self.rows
        basis: Any = self.basis
        curve = basis @ (basis.T @ weight[rows]) + self.bend
        return weight.index_copy(0, rows, curve)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def hold(model: Any, rows: list[int], arm: Arm, waves: int, square: tuple[int, int], seed: int) -> None:
    """Holds the operands' embeddings (token ids `rows`) in the way of `arm`, in place.

    `start` only starts on a smooth curve; all others but `default` let the unembedding go its own way: it starts as a
    copy of the embedding. `square` is the centre and half side of the operands over which `bent` bends the curve.
    """
    n, weight = len(rows), model.get_input_embeddings().weight
    if arm == "default":
        return
    if arm == "start":
        with torch.no_grad():
            weight[rows] = start_on_curve(weight.detach()[rows], seed)
        return
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = nn.Parameter(weight.detach().clone())
    if arm == "untied":
        return
    size = float(weight.detach()[rows].square().mean().sqrt())
    if arm == "noise":
        held: nn.Module = Noisy(torch.tensor(rows), NOISE * size, seed)
        nn.utils.parametrize.register_parametrization(model.get_input_embeddings(), "weight", held)
        return
    basis = np.linalg.qr(smooth_basis(n, waves))[0]
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(weight.shape[1])
    place = (np.arange(n) - square[0]) / (square[1] + 1)
    bump = np.where(np.abs(place) < 1, np.cos(np.pi * place / 2) ** 2, 0.0) if arm == "bent" else np.zeros(n)
    length = BEND * size * weight.shape[1] ** 0.5
    bend = np.outer(bump, direction / np.linalg.norm(direction)) * length
    held = OnCurve(torch.tensor(rows), torch.from_numpy(basis).float(), torch.from_numpy(bend).float())
    nn.utils.parametrize.register_parametrization(model.get_input_embeddings(), "weight", held)


def start_on_curve(rows: Tensor, seed: int) -> Tensor:
    """Rows of the same root mean square [number, d] on the slowest waves, mixed at random into the dimensions."""
    basis = smooth_basis(len(rows), START_WAVES)[:, 1:]
    mixing = np.random.default_rng(seed).standard_normal((basis.shape[1], rows.shape[1]))
    curve = torch.from_numpy(basis @ mixing).to(rows)
    return curve * (rows.square().mean() / curve.square().mean()).sqrt()


def train_arm(config: Geometry, arm: Arm, seed: int, device: str) -> dict[str, object]:
    """One model of an arm, trained by the recipe and decoded over the whole grid."""
    from cri.data.tokenization import encode_texts
    from cri.evaluation.decoding import predictions
    from cri.training.setup import prepare
    from cri.training.trainer import Trainer

    run = config.run_config("square", seed)
    made = prepare(run)
    model: Any = made.model
    size = int(made.task.coords.max()) + 1
    tokens = [ids[0] for ids in encode_texts(made.tokenizer, [str(n) for n in range(size)])]
    row, _, half = made.split.squares[0]
    hold(model, tokens, arm, config.arm_waves, (row, half), seed)
    trainer = Trainer(model, made.tokens, made.split.train_ids, run.train, device)
    trainer.run(run.train.steps)
    trainer.release()
    model = model.to("cpu").eval()
    table = predictions(model, made.tokenizer, made.tokens, made.task, made.format, made.split)
    test = table[table["part"] == "test"]
    error = np.abs(_numbers(test["prediction"]) - made.task.values[test["id"]])
    return {
        "arm": arm, "seed": seed, "train_accuracy": float(table[table["part"] == "train"]["correct"].mean()),
        "square_accuracy": float(test["correct"].mean()), "median_error": float(np.nanmedian(error)), "n": len(test),
    }  # fmt: skip


def _numbers(texts: pd.Series) -> np.ndarray:
    import pandas as pd

    return pd.to_numeric(texts, errors="coerce").to_numpy(dtype=float)


def retrain(config: Geometry, folder: Path) -> pd.DataFrame:
    """Every arm and seed, one row each; a finished one is read back from `folder`."""
    import pandas as pd
    from tqdm import tqdm

    from cri.models.device import resolve_device
    from cri.storage import config_hash, read_json, write_json

    device = resolve_device(config.device)
    wanted: list[tuple[Arm, int]] = [(arm, seed) for arm in config.arms for seed in config.seeds]
    rows = []
    for arm, seed in tqdm(wanted, desc="embeddings held", disable=not wanted):
        key = {**config.run_config("square", seed).to_dict(), "arm": arm, "waves": config.arm_waves, "bend": BEND}
        path = folder / f"{arm}-s{seed}-{config_hash(key)}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, train_arm(config, arm, seed, device))
        rows.append(read_json(path))
    return pd.DataFrame(rows)
