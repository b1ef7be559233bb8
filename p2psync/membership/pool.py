"""Where links wait that came before their predecessors: bounded, whatever a peer sends."""

from __future__ import annotations

from collections.abc import Iterable

from p2psync.errors import InputError
from p2psync.membership.fold import Membership, connected
from p2psync.membership.links import Link, decode_link

MAX_PARKED = 1_000
"""Links parked per folder: at most 16 MiB; the oldest is dropped first and can be asked for again."""


class LinkPool:
    """Parked links of one folder."""

    def __init__(self, limit: int = MAX_PARKED) -> None:
        self._limit = limit
        self._parked: dict[bytes, Link] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def add(self, membership: Membership, encoded_links: Iterable[bytes]) -> Membership:
        """Take in links in any order: those that connect extend the membership, the others wait here.

        Errors as in `Membership.extend`, and then nothing is taken in; signatures of parked links are checked when they
        connect, and a parked link that turns out forged is dropped without a word.
        """
        offered = {link.hash: link for link in map(decode_link, encoded_links)}
        if any(link.folder_id != membership.folder for link in offered.values()):
            raise InputError("membership link of another folder")
        grown = membership.absorb(connected(offered, membership.has))
        self._parked.update((h, link) for h, link in offered.items() if not grown.has(h))
        grown = grown.absorb(connected(self._parked, grown.has), skip_refused=True)
        parked = {h: link for h, link in self._parked.items() if grown.missing(link.prevs)}
        self._parked = dict(list(parked.items())[-self._limit :])
        return grown

    def wanted(self, membership: Membership) -> list[bytes]:
        """Hashes of the predecessors that are neither known nor parked: what to ask for."""
        missing = {prev for link in self._parked.values() for prev in membership.missing(link.prevs)}
        return sorted(missing - self._parked.keys())
