"""The error tree: what happened, to what, and what to do next, with the exit code a command ends in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class P2PSyncError(Exception):
    """Base of every error this project raises on purpose. Its text is meant for the person at the keyboard."""

    exit_code = 1


class UsageError(P2PSyncError):
    """The command or API call was given something it cannot mean."""

    exit_code = 2


class InputError(P2PSyncError):
    """A value is malformed or names nothing that exists (an ID, a path, a code)."""


class ConfigError(P2PSyncError):
    """The configuration file holds something it must not; the text names the line and what is allowed."""


class StateError(P2PSyncError):
    """The node or folder is not in the state this needs (already running, not initialised, paused…)."""


class ProtocolError(P2PSyncError):
    """The other side broke the protocol; the connection ends."""


class AuthenticationError(ProtocolError):
    """Proof of identity or integrity failed. Deliberately says no more than that to the other side."""


class ConnectionLost(P2PSyncError):  # noqa: N818  (the term people know)
    """The connection ended or broke; nothing more can be sent or received on it."""


class Unreachable(ConnectionLost):
    """No connection could be made; nothing was sent."""


class RelayRefusal(P2PSyncError):  # noqa: N818  (what it is, more than what went wrong)
    """A relay said no. `code` is one of its problem codes, `figures` the numbers and names it gave."""

    def __init__(
        self, text: str, code: str = "", status: int = 0, figures: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.figures = figures


class PermissionDenied(P2PSyncError):  # noqa: N818  (the term people know)
    """A role does not allow this."""


class EscapeError(P2PSyncError):
    """A path would leave its folder, or passes through a symlink."""


class IntegrityError(P2PSyncError):
    """Stored bytes are not what they must be; `p2psync check` says more."""


class StoreFailedError(IntegrityError):
    """The store of the index failed in use: nothing more can be read or written until it has been opened again."""


class StoreFullError(P2PSyncError):
    """The index cannot grow: its disk is full or its map limit is reached."""


def cause(error: Exception) -> Exception:
    """The error itself, or out of a group (of groups) the first that was raised on purpose, else the first.

    Nurseries raise groups; people act on one cause.
    """
    if not isinstance(error, ExceptionGroup):
        return error
    expected = error.subgroup(P2PSyncError)
    return cause((expected or error).exceptions[0])
