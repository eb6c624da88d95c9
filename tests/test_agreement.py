"""Agreement of yes/no columns against scikit-learn and known cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import matthews_corrcoef

from cri.errors import CriError
from cri.statistics.agreement import agreement


def table(predicted, observed):
    n = len(predicted)
    return pd.DataFrame({"p": predicted, "o": observed, "run": np.arange(n) % 3, "block": np.arange(n) // 9})


def test_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    o = rng.random(300) < 0.4
    p = np.where(rng.random(300) < 0.8, o, ~o)
    found = agreement(table(p, o), "p", "o")
    assert found["mcc"] == pytest.approx(matthews_corrcoef(o, p))
    assert found["accuracy"] == pytest.approx((p == o).mean())
    assert found["mcc_low"] < found["mcc"] < found["mcc_high"]
    assert (found["n"], found["n_runs"], found["n_observed"]) == (300, 3, int(o.sum()))


def test_perfect_and_opposite():
    o = np.arange(200) % 3 == 0
    assert agreement(table(o, o), "p", "o")["mcc_low"] == 1
    assert agreement(table(~o, o), "p", "o")["mcc_high"] == -1


def test_unrelated_columns_hold_zero():
    rng = np.random.default_rng(1)
    found = agreement(table(rng.random(900) < 0.5, rng.random(900) < 0.5), "p", "o")
    assert found["mcc_low"] < 0 < found["mcc_high"]


def test_a_constant_column_correlates_with_nothing():
    found = agreement(table(np.zeros(50, bool), np.arange(50) % 2 == 0), "p", "o")
    assert np.isnan(found["mcc"])
    assert found["accuracy"] == 0.5
    with pytest.raises(CriError, match="no cases"):
        agreement(table([], []), "p", "o")
