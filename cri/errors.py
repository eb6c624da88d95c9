"""Errors a user can cause, each one line that names the field and the valid choices.

Command lines print the message on stderr and exit with code 2; library callers catch a
`ValueError` (or the narrower classes) as usual.
"""

from __future__ import annotations

from collections.abc import Iterable


class CriError(ValueError):
    """Bad input or an unusable file: the message is complete, no traceback is needed."""


class UnknownNameError(CriError, KeyError):
    """A name that is not in a registry; the message lists the valid ones."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class MissingDependencyError(CriError, ImportError):
    """An optional package or model that is absent; the message says what provides it."""


class CorruptRunError(CriError):
    """A run folder whose files do not match its manifest."""


def shown(value: object) -> str:
    """A value as messages show it: on one line, and not at any length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:200] + "..."


def unknown_name(field: str, value: object, valid: Iterable[object]) -> UnknownNameError:
    """The error for an unknown `value` of `field`, listing the `valid` ones."""
    return UnknownNameError(f"{field}: unknown {shown(value)}; choose from {', '.join(map(str, valid))}")


def out_of_range(field: str, value: object, allowed: str) -> CriError:
    """The error for a `value` of `field` outside the `allowed` range (described in words)."""
    return CriError(f"{field}: {shown(value)} is not allowed; must be {allowed}")
