"""Flat pictures of activations: PCA, which keeps distances as far as two axes can, and UMAP, which keeps neighbours."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
from jaxtyping import Float

from cri.attribution.neighbors import nearest
from cri.models.device import same_threads

N_NEIGHBORS = 15


def umap_xy(x: Float[np.ndarray, "case d"], seed: int) -> Float[np.ndarray, "case 2"]:
    """UMAP of the rows of `x`: 15 exact Euclidean neighbours, 200 epochs."""
    import umap

    # exact neighbours, and without the seconds that umap's own search takes to compile
    ids, scores = nearest(x, x, min(N_NEIGHBORS, len(x)), "euclidean")
    xy = np.empty(0)
    with warnings.catch_warnings(), same_threads():
        warnings.filterwarnings("ignore", message="precomputed_knn")  # only says that new cases cannot be added
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # answers are islands here
        warnings.filterwarnings("error", message="Spectral initialisation failed")
        for init in ("spectral", "pca"):  # the second where the eigenvalues of the first lie too close together
            reducer = umap.UMAP(
                n_neighbors=ids.shape[1], n_epochs=200, init=init, random_state=seed, n_jobs=1,
                precomputed_knn=(ids, -scores),
            )  # fmt: skip
            with contextlib.suppress(UserWarning):
                xy = np.asarray(reducer.fit_transform(x))
                break
    return xy


def pca_xy(x: Float[np.ndarray, "case d"]) -> tuple[Float[np.ndarray, "case 2"], float]:
    """The rows of `x` on their first two principal axes, and the share of the variance that these hold."""
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    xy = pca.fit_transform(x)
    return xy, float(pca.explained_variance_ratio_.sum())
