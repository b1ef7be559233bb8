"""What the swarm keeps books of: pieces, who lacks them, the requests that carry them, and the peers that are asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappush
from typing import Generic, NamedTuple, TypeVar

from p2psync.transfer.window import Window

P = TypeVar("P", bound=Hashable)


class Piece(NamedTuple):
    """What can be asked for: a chunk by its hash and exact length, or a manifest by its root and a length bound."""

    hash: bytes
    length: int
    manifest: bool = False


class Refusal(Enum):
    """Why a piece was not delivered."""

    GONE = "gone"
    LATER = "later"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Request(Generic[P]):
    """Ask `peer` for these pieces, all chunks or all manifests."""

    id: int
    peer: P
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes asked for."""
        return sum(piece.length for piece in self.pieces)


@dataclass(slots=True)
class Task:
    """A piece that somebody lacks."""

    piece: Piece
    wants: list[int] = field(default_factory=list)
    """Ids of the wants that lack it."""
    requests: list[int] = field(default_factory=list)
    """Ids of the requests it is part of."""


@dataclass(slots=True)
class Want:
    """A content, as far as one place lacks it."""

    id: int
    root: bytes
    order: int
    lacking: dict[Piece, None]
    """Pieces that have not been stored for it."""
    queue: OrderedDict[Piece, None]
    """Pieces not under way. Some may be by now, through another want that shares them."""


@dataclass(slots=True)
class Open(Generic[P]):
    """A request under way."""

    request: Request[P]
    roots: dict[Piece, bytes]
    left: dict[Piece, None]
    sent: float
    started: bool = False


@dataclass(slots=True)
class Peer(Generic[P]):
    """Who can be asked."""

    name: P
    window: Window
    holds: dict[bytes, bool] = field(default_factory=dict)
    offers: list[tuple[int, int]] = field(default_factory=list)
    """Heap of wants that may be asked of this peer, as (order, id); entries can be stale."""
    offered: set[int] = field(default_factory=set)
    """What is in that heap, by id."""
    denied: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    """Content → (not to be asked before, how often refused)."""
    requests: dict[int, None] = field(default_factory=dict)
    heard: float = 0.0
    """When it last sent something, or became busy."""
    paused_until: float = 0.0
    stalls: int = 0

    def offer(self, want: Want) -> None:
        """It may be asked for this."""
        if want.id not in self.offered:
            self.offered.add(want.id)
            heappush(self.offers, (want.order, want.id))
