"""The damping of EK-FAC: one value for every study, figure and default (free of torch: help texts print it)."""

DAMPING = 1e-5
"""Relative damping: this multiple of a block's mean eigenvalue is added to each of its eigenvalues (`EKFAC.dampings`).

Chosen on 20 random halves of the 30 x 30 grid that are in no bank and support no claim: of 0.1, 0.001 and 1e-5,
smaller values were better for each of five base models (`studies/log.md`, 2026-11-22)."""
