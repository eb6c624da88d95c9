"""Spectra: how much of a table of vectors, one a number, varies at each frequency."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from cri.errors import out_of_range


def power_by_frequency(table: Float[np.ndarray, "number d"]) -> Float[np.ndarray, " frequency"]:
    """Share of the variance of a table's rows at each frequency k = 1 .. n // 2 (k periods over the table's length).

    P_k is proportional to Σ_d |Σ_n W[n, d] e^(-2πikn/N)|², both signs of k together; the mean (k = 0) is left out.
    """
    n = len(table)
    if n < 2:
        raise out_of_range("table", n, "at least two numbers")
    spectrum = np.fft.rfft(np.asarray(table, dtype=np.float64), axis=0)
    power = (np.abs(spectrum) ** 2).sum(1)
    power[1 : (n + 1) // 2] *= 2  # the frequency N / 2 of an even N has no other sign
    total = power[1:].sum()
    return power[1:] / total if total > 0 else np.zeros_like(power[1:])


def means_by_value(
    acts: Float[np.ndarray, "case d"], values: Int[np.ndarray, " case"]
) -> tuple[Int[np.ndarray, " value"], Float[np.ndarray, "value d"]]:
    """The values that occur, in order, and the mean activation of the cases of each."""
    found, index = np.unique(values, return_inverse=True)
    sums = np.zeros((len(found), acts.shape[1]))
    np.add.at(sums, index, acts)
    return found, sums / np.bincount(index)[:, None]


def variance_explained(acts: Float[np.ndarray, "case d"], values: Int[np.ndarray, " case"]) -> float:
    """Share of the variance of activations that lies between the means of the values' cases (0 to 1)."""
    between, total = _variances(acts, values)
    return float(between.sum() / total.sum()) if total.sum() > 0 else 0.0


def variances_explained(acts: Float[np.ndarray, "case d"], values: Int[np.ndarray, " case"]) -> Float[np.ndarray, " d"]:
    """`variance_explained` of every coordinate alone; 0 where it does not vary."""
    between, total = _variances(acts, values)
    return np.divide(between, total, out=np.zeros(len(total)), where=total > 0)


def _variances(
    acts: Float[np.ndarray, "case d"], values: Int[np.ndarray, " case"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Sums of squares between the means of the values' cases, and of all, by coordinate."""
    _, means = means_by_value(acts, values)
    counts = np.unique(values, return_counts=True)[1]
    mean = acts.mean(0)
    return counts @ (means - mean) ** 2, ((acts - mean) ** 2).sum(0)


def modular_spectrum(logits: Float[np.ndarray, "a b answer"]) -> Float[np.ndarray, " frequency"]:
    """Share of the variance of a modular adder's logits that cos w(a + b - c) explains, w = 2πk/p, k = 1 .. p // 2.

    Logits are centred over the answers of each case first, since a constant added to all of them changes nothing
    (Nanda et al. 2023, *Progress measures for grokking via mechanistic interpretability*). The functions are
    orthogonal, so that shares add up.
    """
    p = logits.shape[2]
    if logits.shape != (p, p, p):
        raise out_of_range("logits", logits.shape, "[p, p, p]: every a, b and answer")
    centred = np.asarray(logits, dtype=np.float64)
    centred = centred - centred.mean(2, keepdims=True)
    total = (centred**2).sum()
    # the mean over all (a, b, c) of equal a + b - c, summed into one function of that residue
    residue = (np.arange(p)[:, None, None] + np.arange(p)[None, :, None] - np.arange(p)[None, None, :]) % p
    profile = np.bincount(residue.ravel(), weights=centred.ravel(), minlength=p)
    shares = []
    for k in range(1, p // 2 + 1):
        wave = np.cos(2 * np.pi * k * np.arange(p) / p)
        shares.append((profile @ wave) ** 2 / (p * p * (wave @ wave)) / total if total > 0 else 0.0)
    return np.array(shares)
