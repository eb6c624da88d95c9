"""The geometry package, asked about models whose answer is known: hand-built ones, and a published one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cri.errors import CriError
from cri.geometry.bends import bends
from cri.geometry.lens import lens_ranks, logit_lens
from cri.geometry.number_line import fit_columns, fit_helix, fit_pca, helix_basis, random_curve, replace_operands
from cri.geometry.one_layer import NAMES, pair_logits, read_weights
from cri.geometry.phase import local_phase, phase_table
from cri.geometry.planted import PERIODS, SHIFT, planted_subject
from cri.geometry.readouts import fit_ridge, ridge_table
from cri.geometry.spectra import modular_spectrum, power_by_frequency, variance_explained
from cri.geometry.steering import (
    from_cases,
    move_along,
    periodic_subspace,
    random_subspace,
    same_answer_sources,
    set_component,
    where_answers_lie,
)
from cri.geometry.subject import Subject, open_subject, residual_hooks
from cri.geometry.units import head_coordinates, head_hook, neuron_hook, set_units, tuning

EXTERNAL = Path(os.environ.get("CRI_EXTERNAL_MODELS", "../shared/external")) / "grokking_mod_addition_no_wd.safetensors"
LAST = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def planted() -> Subject:
    return planted_subject()


@pytest.fixture(scope="module")
def acts(planted: Subject) -> dict[str, np.ndarray]:
    return planted.collect(residual_hooks(2))


def test_the_planted_model_is_wrong_by_its_shift_in_the_square_and_right_elsewhere(planted: Subject) -> None:
    every = np.arange(len(planted.cases))
    error = planted.given(every) - planted.sums
    assert (error[planted.square] == SHIFT).all()
    assert (error[~planted.square] == 0).all()
    assert planted_subject(gap=False).right(every).all()


def test_power_is_found_at_the_frequencies_that_a_table_was_made_of() -> None:
    n = np.arange(100)
    table = np.stack([3 * np.cos(2 * np.pi * 5 * n / 100), 2 * np.sin(2 * np.pi * 20 * n / 100)], axis=1) + 7
    power = power_by_frequency(table)
    assert power[4] == pytest.approx(9 / 13)
    assert power[19] == pytest.approx(4 / 13)
    assert power.sum() == pytest.approx(1)
    # the frequency N / 2 has one sign only, and counts once
    assert power_by_frequency((-1.0) ** n[:, None])[49] == pytest.approx(1)


@pytest.mark.parametrize("p", [29, 30])
def test_the_spectrum_of_a_modular_adder_that_was_written_down(p: int) -> None:
    a, b, c = np.ogrid[:p, :p, :p]
    angle = 2 * np.pi * (a + b - c) / p
    noise = np.random.default_rng(0).standard_normal((p, p, p))
    shares = modular_spectrum(3 * np.cos(4 * angle) + np.cos(9 * angle) + 100 * (a + 0 * b + 0 * c))
    assert shares[3] == pytest.approx(0.9)
    assert shares[8] == pytest.approx(0.1)
    assert modular_spectrum(noise).sum() < 0.02


@pytest.mark.skipif(not EXTERNAL.exists(), reason=f"no {EXTERNAL}; name its folder in CRI_EXTERNAL_MODELS")
def test_a_published_model_has_the_published_spectrum() -> None:
    """Saved run `mod_addition_no_wd` of Nanda et al. (2023): 0.949 of the variance at w = 36 (0.783) and 52 (0.165)."""
    logits = pair_logits(read_weights(EXTERNAL), 113)
    a = np.arange(113)
    assert (logits.argmax(2) == (a[:, None] + a) % 113).all()
    shares = modular_spectrum(logits)
    assert shares.sum() == pytest.approx(0.949, abs=0.005)
    assert shares[35] == pytest.approx(0.783, abs=0.005)
    assert shares[51] == pytest.approx(0.165, abs=0.005)
    assert np.sort(shares)[-3] < 0.001


def test_one_layer_weights_are_named_where_they_lack(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({f"blocks.0.{NAMES[2]}": torch.zeros(1)}, path)
    with pytest.raises(CriError, match=r"lacks embed\.W_E"):
        read_weights(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CriError, match="as safetensors"):
        read_weights(path)


def test_a_helix_is_fitted_and_a_period_too_long_is_refused(planted: Subject) -> None:
    table = planted.embedding()
    fit = fit_helix(table, PERIODS)
    assert 0.99 < fit.r2 < 1  # all but the mark
    assert fit_pca(table, fit.rank).r2 >= fit.r2
    assert random_curve(table, PERIODS, 0).r2 < 0.5
    with pytest.raises(CriError, match=r"periods: 121 .*2\.\.120"):
        helix_basis(60, (121,))
    with pytest.raises(CriError, match="rank"):
        fit_pca(table, 0)


def test_only_the_embeddings_without_the_mark_fill_the_planted_hole(planted: Subject) -> None:
    table = planted.embedding()
    inside, outside = planted.inside, planted.outside
    line = replace_operands(fit_columns(table, helix_basis(60, ())).fitted)
    assert planted.right(inside, [line]).all()
    assert planted.right(outside, [line]).all()
    same = replace_operands(table)
    assert not planted.right(inside, [same]).any()
    for control in (fit_pca(table, 9), random_curve(table, PERIODS, 0)):
        assert planted.right(inside, [replace_operands(control.fitted)]).mean() < 0.1


def test_moving_the_code_fills_the_planted_hole_and_moving_anything_else_does_not(
    planted: Subject, acts: dict[str, np.ndarray]
) -> None:
    x, known = acts[LAST], np.flatnonzero(~planted.square)
    fills = {}
    for name, basis in {
        "all": periodic_subspace(x[known], planted.sums[known], PERIODS),
        "one": periodic_subspace(x[known], planted.sums[known], PERIODS[:1]),
        "random": random_subspace(x.shape[1], 6, 0),
    }.items():
        edit = set_component(LAST, basis, where_answers_lie(planted, x, basis, planted.sums))
        fills[name] = planted.right(planted.inside, [edit]).mean()
        assert planted.right(planted.outside, [edit]).mean() > 0.99
    assert fills == {"all": 1, "one": 0, "random": 0}


def test_the_phase_gives_the_planted_shift(planted: Subject) -> None:
    logits = planted.logits(np.arange(len(planted.cases)))
    found = phase_table(logits, planted.sums, planted.regions(), (40, 20)).set_index(["period", "region"])
    assert (found.loc[[(40, "outside"), (20, "outside")], "cos_true"] > 0.999).all()
    assert (found.loc[[(40, "inside"), (20, "inside")], "cos_true"] < 0.8).all()
    assert (found.loc[[(40, "inside"), (20, "inside")], "cos_given"] > 0.999).all()


def test_a_bump_above_its_centre_has_the_phase_of_its_distance() -> None:
    c = np.arange(200)
    logits = np.exp(-((c - 103) ** 2) / 8.0)[None]
    alpha = local_phase(logits, np.array([100]), 20)
    assert np.angle(alpha[0]) * 20 / (2 * np.pi) == pytest.approx(3, abs=0.2)  # the window pulls towards its centre
    assert np.isnan(local_phase(logits, np.array([10]), 20)[0])  # the window leaves the numbers
    with pytest.raises(CriError, match="period"):
        local_phase(logits, np.array([100]), 60)


def test_readouts_find_the_sum_its_shift_and_no_control(planted: Subject, acts: dict[str, np.ndarray]) -> None:
    fitted = np.flatnonzero(planted.train)
    tables = {
        hook: ridge_table(acts[hook], planted.cases, fitted, planted.regions(), (20,)).set_index(["target", "region"])
        for hook in ("blocks.0.hook_resid_mid", LAST)
    }
    early, late = tables.values()
    assert (early.loc["a+b", "r2"] > 0.99).all()
    assert early.loc[("phase 20", "outside"), "r2"] < 0.2  # not written yet
    assert late.loc[("phase 20", "outside"), "r2"] > 0.99
    assert late.loc[("phase 20", "inside"), "r2"] < 0.5
    assert late.loc[("a+b", "inside"), "bias"] == pytest.approx(SHIFT / 2, abs=0.3)  # the unmoved sum is there as well
    assert (late["control_r2"] < 0.3).all()


def test_the_planted_neuron_is_found_and_its_removal_fills_the_hole(planted: Subject) -> None:
    acts = planted.collect([neuron_hook(0)])[neuron_hook(0)]
    table = tuning(acts, planted.cases)
    assert table["tuned"].tolist()[:2] == ["a+b", "mixed"]
    assert (table["tuned"][2:] == "silent").all()
    mark = np.array([1])
    without = set_units(neuron_hook(0), mark, acts[~planted.square][:, mark].mean(0))
    assert planted.right(planted.inside, [without]).all()
    assert not planted.right(planted.inside, [set_units(neuron_hook(0), np.array([7]), np.zeros(1))]).any()
    head = head_coordinates(planted, 0)
    nothing = set_units(head_hook(0), head, np.zeros(len(head)))
    assert planted.right(planted.outside, [nothing]).mean() < 0.05


def test_patches_moves_and_lens(planted: Subject, acts: dict[str, np.ndarray]) -> None:
    inside, outside = planted.inside, planted.outside
    same, more = same_answer_sources(planted), same_answer_sources(planted, 1)
    assert (planted.sums[same] == planted.sums)[inside].all()
    assert (same != np.arange(len(same)))[outside].all()
    middle = "blocks.0.hook_resid_post"
    assert planted.right(inside, [from_cases(middle, acts[middle], same)]).all()
    assert (planted.given(inside, [from_cases(middle, acts[middle], more)]) == planted.sums[inside] + 1).all()
    ridge = fit_ridge(acts[middle][planted.train], planted.sums[planted.train][:, None].astype(float))
    moved = planted.given(outside, [move_along(middle, ridge.direction[:, 0], 5)])
    assert np.median(moved - planted.sums[outside]) == 5
    shown = logit_lens(planted, acts[LAST], inside)
    assert np.allclose(shown, planted.logits(inside), atol=1e-3)
    assert (lens_ranks(shown, planted.given(inside)) == 0).all()


def test_iso_answer_lines_bend_in_the_planted_square_and_not_without_a_gap(
    planted: Subject, acts: dict[str, np.ndarray]
) -> None:
    straight = planted_subject(gap=False)
    bent, plain = (
        np.nanmedian(bends(subject, x))
        for subject, x in ((planted, acts[LAST]), (straight, straight.collect([LAST])[LAST]))
    )
    assert plain < 0.05
    assert bent > 1


def test_variance_between_values() -> None:
    values = np.repeat([0, 1], 50)
    x = values[:, None] * 2.0 + np.random.default_rng(0).standard_normal((100, 1)) * 1e-3
    assert variance_explained(x, values) == pytest.approx(1, abs=1e-4)
    assert variance_explained(x, np.tile([0, 1], 50)) < 0.05
    assert variance_explained(np.ones((4, 2)), np.arange(4)) == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [({"task": "mod_addition"}, "task"), ({"format": "scratchpad"}, "format"), ({"tokenizer": "digit"}, "tokenizer")],
)
def test_models_without_a_geometry_of_sums_are_refused(options: dict[str, str], field: str) -> None:
    from cri.config import RunConfig
    from cri.training.setup import prepare

    config = RunConfig().replace(split="random", task_params={} if "task" in options else {"size": 12}, **options)
    with pytest.raises(CriError, match=f"^{field}: "):
        open_subject(prepare(config), half_side=2)
