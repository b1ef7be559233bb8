"""Finds the folder or device a person means by a name, an ID or the beginning of an ID."""

from __future__ import annotations

from collections.abc import Iterable

from p2psync.errors import InputError

_SHORTEST_PREFIX = 4


def find(what: str, text: str, known: Iterable[tuple[str, str]]) -> str:
    """The ID among `known` (id, name) pairs that `text` means: an exact name or ID, else a prefix of one ID.

    IDs compare without case, '-' and spaces. InputError when nothing or more than one thing is meant; `what` is the
    noun of the message ("folder", "device").
    """
    pairs = list(known)
    listing = f"see `p2psync {what} list`"
    folded = _fold(text)
    named = [id_ for id_, name in pairs if name and name == text]
    matches = (
        [id_ for id_, _ in pairs if folded and _fold(id_) == folded]
        or named
        or [id_ for id_, _ in pairs if len(folded) >= _SHORTEST_PREFIX and _fold(id_).startswith(folded)]
    )
    if not matches:
        raise InputError(f"no {what} is called {text!r}; {listing}")
    if len(matches) > 1:
        raise InputError(f"{text!r} means {len(matches)} {what}s; use an ID, {listing}")
    return matches[0]


def _fold(text: str) -> str:
    return text.upper().translate({ord("-"): None, ord(" "): None})
