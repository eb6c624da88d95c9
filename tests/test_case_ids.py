"""Case ids: masks, fractions and ids outside the grid are refused, never read as something else."""

from __future__ import annotations

import numpy as np
import pytest

from cri.data.case_ids import check_case_ids
from cri.errors import CriError


def test_good_ids_are_kept_in_their_order():
    assert check_case_ids([3, 0, 2], 4).tolist() == [3, 0, 2]
    assert check_case_ids([], 4).dtype == np.int64


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        (np.array([True, False, True]), "a mask is not a list"),
        (np.array([-1]), "must be in 0"),
        (np.array([1.9]), "whole numbers"),
        (np.array([10**6]), "must be in 0"),
        (np.array([[1]]), "one id a case"),
    ],
)
def test_case_ids_are_checked(cases, said):
    """Not through `collect`, whose annotated shapes the tests check first."""
    with pytest.raises(CriError, match=f"case_ids: .*{said}"):
        check_case_ids(cases, 100)
