"""Which error of a group a person should hear: nurseries raise groups, people act on one cause."""

from __future__ import annotations

from p2psync.errors import P2PSyncError


def cause(error: Exception) -> Exception:
    """The error itself, or out of a group (of groups) the first that was raised on purpose, else the first."""
    if not isinstance(error, ExceptionGroup):
        return error
    expected = error.subgroup(P2PSyncError)
    return cause((expected or error).exceptions[0])
