"""Case ids as a caller gives them, checked in one place before anything is indexed with them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from cri.checks import checked
from cri.errors import CriError


@checked
def check_case_ids(ids: ArrayLike, n_cases: int, field: str = "case_ids") -> Int[np.ndarray, " case"]:
    """`ids` as whole numbers, each in 0 .. `n_cases` - 1.

    A boolean mask is refused rather than read as the ids 0 and 1, and so is a fraction or a negative id, which
    numpy would cut off or count from the end. Raises `CriError` naming `field`.
    """
    try:
        found = np.asarray(ids)
    except (ValueError, TypeError):  # rows of unequal length
        raise CriError(f"{field}: not one id a case") from None
    if found.ndim != 1:
        raise CriError(f"{field}: shape {found.shape} is not one id a case")
    if found.dtype == np.bool_:
        raise CriError(f"{field}: a mask is not a list of case ids; give np.flatnonzero(mask)")
    if found.size == 0:
        return found.astype(np.int64)
    if not np.issubdtype(found.dtype, np.integer):
        raise CriError(f"{field}: {found.dtype} values are not allowed; must be whole numbers")
    stray = found[(found < 0) | (found >= n_cases)]
    if stray.size:
        raise CriError(f"{field}: {stray[:5].tolist()} is not allowed; must be in 0..{n_cases - 1}")
    return found.astype(np.int64)
