"""Which chunk from whom: spreads what one folder needs over the peers that hold it.

Each want of a content is a queue of missing pieces, and has received those alone that were stored for it: what came
for one is of no use to another that began later. A peer is offered wants in order; among peers, the next request goes
to the one that will be through with its present ones first. So equal peers share alike, a fast one gets more, and one
big file comes from all who hold it. Towards the end, pieces stuck at a slow peer are asked of a second one.

What a peer did not deliver it is not asked for again until a back-off has passed, and longer each time. Nothing is ever
given up: whoever wants less says so with `drop`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from heapq import heappop, heappush
from typing import Generic

from p2psync.protocol.limits import MAX_REQUEST_CHUNKS
from p2psync.transfer.pieces import Open, P, Peer, Piece, Refusal, Request, Task, Want
from p2psync.transfer.window import Window

PACK_BYTES = 1024 * 1024
"""Small pieces are packed into one request up to this many bytes; a bigger piece is a request of its own."""
MAX_IN_FLIGHT = 64 * 1024 * 1024
"""Bytes under way from all peers together: they are held in memory until verified."""
STALL = 60.0
"""Seconds without a byte from a busy peer after which its requests have failed: a frame at 5 KB/s."""
BACK_OFF = 2.0
MAX_BACK_OFF = 300.0
ENDGAME = 2.0
"""Seconds a piece must be under way before a second peer is asked for it."""
_GUESSED_RATE = 1e6


class Swarm(Generic[P]):
    """What one folder fetches. Peers are named by any hashable of the caller's; deterministic.

    After every call that changes something, and when `next_deadline` has passed, call `next_requests` and send them,
    then send a ChunkCancel for everything in `take_cancelled`.
    """

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._next_id = 1
        self._sequence = 0
        self._bytes_left = 0
        self._clock = 0.0
        self._wants: dict[int, Want] = {}
        self._wants_of: dict[bytes, list[int]] = {}
        """Ids of the wants of each content."""
        self._tasks: dict[tuple[bytes, bool], Task] = {}
        self._peers: dict[P, Peer[P]] = {}
        self._open: dict[int, Open[P]] = {}
        self._cancelled: list[tuple[P, int]] = []
        self._wake: list[tuple[float, int]] = []
        self._wake_of: dict[int, tuple[P, bytes]] = {}

    # ── what is wanted ──────────────────────────────────────────────────────────────────────────────────────────────
    def want(self, root: bytes, pieces: Iterable[Piece], order: int = 0) -> int:
        """Fetch the missing pieces of the content named `root`; lower orders first. The id of this want.

        The same content may be wanted more than once at a time, each time with the pieces that are missing there.
        """
        self._sequence += 1
        want = Want(self._sequence, root, order, dict.fromkeys(pieces), OrderedDict())
        if not want.lacking:
            return want.id
        self._wants[want.id] = want
        self._wants_of.setdefault(root, []).append(want.id)
        for piece in want.lacking:
            task = self._task(piece)
            if task is None:
                task = self._tasks[piece.hash, piece.manifest] = Task(piece)
                self._bytes_left += piece.length
            task.wants.append(want.id)
            want.queue[piece] = None
        self._offer(want)
        return want.id

    def drop(self, want_id: int) -> None:
        """It is no longer wanted."""
        want = self._wants.get(want_id)
        if want is None:
            return
        for piece in want.lacking:
            self._release(piece, want_id)
        self._forget(want)

    def wants(self, want_id: int) -> bool:
        """Whether pieces are still missing."""
        return want_id in self._wants

    def wanted(self, root: bytes) -> bool:
        """Whether pieces of a content are still missing somewhere."""
        return root in self._wants_of

    def lacking(self, piece: Piece) -> tuple[int, ...]:
        """Ids of the wants that lack a piece: who it is to be stored for when it comes."""
        task = self._task(piece)
        return () if task is None else tuple(task.wants)

    @property
    def in_flight(self) -> int:
        """Bytes under way."""
        return self._in_flight

    @property
    def bytes_left(self) -> int:
        """Bytes that are wanted and have not been stored."""
        return self._bytes_left

    # ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def add_peer(self, peer: P, window: Window) -> None:
        """A peer can be asked from now on."""
        self.remove_peer(peer)
        self._peers[peer] = Peer(peer, window)
        for want in self._wants.values():
            self._offer(want)

    def remove_peer(self, peer: P) -> None:
        """A peer is gone; what it was asked for is asked of others."""
        gone = self._peers.get(peer)
        if gone is None:
            return
        for request_id in list(gone.requests):
            self._abandon(self._open[request_id])
        del self._peers[peer]
        # Peers that were passed over because this one held a content may be asked for it now.
        for want in self._wants.values():
            self._offer(want)

    def set_holds(self, peer: P, root: bytes, holds: bool | None) -> None:
        """Whether the peer says it holds a content; None when it has not said. Peers known to hold go first."""
        entry = self._peers.get(peer)
        if entry is None:
            return
        if holds is None:
            entry.holds.pop(root, None)
        else:
            entry.holds[root] = holds
            if holds:
                entry.denied.pop(root, None)
        self._offer_root(root)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────
    def next_requests(self, now: float) -> list[Request[P]]:
        """What to ask now, in the order of sending."""
        self._clock = now
        self._expire(now)
        requests: list[Request[P]] = []
        idle = {peer.name: peer for peer in self._peers.values() if peer.paused_until <= now}
        while idle:
            peer = min(idle.values(), key=lambda p: self._load(p, now))
            request = self._build(peer, now) or self._build_endgame(peer, now)
            if request is None:
                del idle[peer.name]
            else:
                requests.append(request)
        return requests

    def take_cancelled(self) -> list[tuple[P, int]]:
        """(peer, request id) of requests whose answers are no longer of use, since the last call."""
        cancelled, self._cancelled = self._cancelled, []
        return cancelled

    def next_deadline(self) -> float | None:
        """When `next_requests` is due even if nothing else happens."""
        times = [peer.heard + STALL for peer in self._peers.values() if peer.requests]
        times += [peer.paused_until for peer in self._peers.values()]
        times += [open_request.sent + ENDGAME for open_request in self._open.values()]
        times += [until for until, _ in self._wake[:1]]
        return min((time for time in times if time > self._clock), default=None)

    # ── what became of them ─────────────────────────────────────────────────────────────────────────────────────────
    def progress(self, request_id: int, amount: int, now: float) -> None:
        """`amount` bytes of a reply have come."""
        open_request = self._open.get(request_id)
        if open_request is None:
            return
        peer = self._peers[open_request.request.peer]
        if not open_request.started:
            peer.window.first_byte(now - open_request.sent)
        open_request.started = True
        peer.heard = now
        peer.window.arrived(amount, now)
        peer.stalls = 0

    def delivered(self, request_id: int, piece: Piece, stored_for: Iterable[int]) -> bool:
        """A piece came, its hash is right and it was stored for these of the wants that lacked it (see `lacking`).

        False when none of them lacks it any more. For a want that joined meanwhile it is fetched again.
        """
        open_request = self._open.get(request_id)
        if open_request is not None:
            self._settle(open_request, piece)
        received = [self._wants[want_id] for want_id in stored_for if piece in self._lacking_of(want_id)]
        for want in received:
            del want.lacking[piece]
            want.queue.pop(piece, None)
            self._release(piece, want.id)
            if not want.lacking:
                self._forget(want)
        self._requeue(piece)
        return bool(received)

    def refused(self, request_id: int, piece: Piece, why: Refusal, now: float) -> None:
        """A piece was not delivered, or was not what its hash says."""
        open_request = self._open.get(request_id)
        if open_request is None or piece not in open_request.left:
            return
        peer = self._peers[open_request.request.peer]
        root = open_request.roots[piece]
        if why is Refusal.GONE:
            peer.holds.pop(root, None)
        self._deny(peer, root, now, worst=why is Refusal.CORRUPT)
        self._settle(open_request, piece)
        self._requeue(piece)

    def failed(self, request_id: int, now: float) -> None:
        """A whole request came to nothing; the peer is given no new ones for a while."""
        open_request = self._open.get(request_id)
        if open_request is None:
            return
        peer = self._peers[open_request.request.peer]
        self._abandon(open_request)
        self._pause(peer, now)

    # ── choosing ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _load(self, peer: Peer[P], now: float) -> float:
        """Seconds until the peer is through with what it was asked for."""
        return peer.window.in_flight / (peer.window.rate(now) or _GUESSED_RATE)

    def _eligible(self, peer: Peer[P], root: bytes, now: float) -> bool:
        """A peer that has not said whether it holds a content is asked only while none can be asked that says so."""
        if peer.denied.get(root, (0.0, 0))[0] > now:
            return False
        holds = peer.holds.get(root)
        if holds is not None:
            return holds
        return not any(
            other.holds.get(root) and other.paused_until <= now and other.denied.get(root, (0.0, 0))[0] <= now
            for other in self._peers.values()
        )

    def _build(self, peer: Peer[P], now: float) -> Request[P] | None:
        chosen: dict[Piece, bytes] = {}
        size = 0
        put_back: list[Want] = []
        full = False
        while peer.offers and not full:
            offer = heappop(peer.offers)
            peer.offered.discard(offer[1])
            want = self._wants.get(offer[1])
            if want is None or not self._eligible(peer, want.root, now):
                continue
            while want.queue:
                piece = next(iter(want.queue))
                task = self._task(piece)
                if task is None or task.requests or piece in chosen:
                    del want.queue[piece]
                    continue
                if not self._fits(peer, chosen, size, piece, now):
                    full = True
                    break
                del want.queue[piece]
                chosen[piece] = want.root
                size += piece.length
            if want.queue:
                put_back.append(want)
        for want in put_back:
            peer.offer(want)
        return self._send(peer, chosen, now) if chosen else None

    def _fits(self, peer: Peer[P], chosen: dict[Piece, bytes], size: int, piece: Piece, now: float) -> bool:
        grown = size + piece.length
        if self._in_flight and self._in_flight + grown > self._max_in_flight:
            return False
        if not peer.window.admits(grown, now):
            return False
        if not chosen:
            return True
        same_kind = next(iter(chosen)).manifest == piece.manifest
        return same_kind and grown <= PACK_BYTES and len(chosen) < MAX_REQUEST_CHUNKS

    def _build_endgame(self, peer: Peer[P], now: float) -> Request[P] | None:
        """Ask an idle peer for the piece that has been under way elsewhere the longest."""
        if peer.requests:
            return None
        for other in self._open.values():
            if other.request.peer == peer.name or now < other.sent + ENDGAME:  # as `next_deadline` says
                continue
            for piece in other.left:
                task = self._task(piece)
                if task is None or len(task.requests) > 1:
                    continue
                roots = (self._wants[want_id].root for want_id in task.wants)
                root = next((r for r in roots if self._eligible(peer, r, now)), None)
                if root is not None and self._fits(peer, {}, 0, piece, now):
                    return self._send(peer, {piece: root}, now)
        return None

    def _send(self, peer: Peer[P], chosen: dict[Piece, bytes], now: float) -> Request[P]:
        request = Request(self._next_id, peer.name, tuple(chosen))
        self._next_id += 1
        self._open[request.id] = Open(request, chosen, dict.fromkeys(chosen), now)
        if not peer.requests:
            peer.heard = now
        peer.requests[request.id] = None
        peer.window.sent(request.size, now)
        self._in_flight += request.size
        for piece in chosen:
            task = self._task(piece)
            assert task is not None
            task.requests.append(request.id)
        return request

    # ── book-keeping ────────────────────────────────────────────────────────────────────────────────────────────────
    def _task(self, piece: Piece) -> Task | None:
        return self._tasks.get((piece.hash, piece.manifest))

    def _lacking_of(self, want_id: int) -> Container[Piece]:
        want = self._wants.get(want_id)
        return () if want is None else want.lacking

    def _offer(self, want: Want) -> None:
        if want.queue:
            for peer in self._peers.values():
                if peer.holds.get(want.root) is not False:
                    peer.offer(want)

    def _offer_root(self, root: bytes) -> None:
        for want_id in self._wants_of.get(root, ()):
            self._offer(self._wants[want_id])

    def _requeue(self, piece: Piece) -> None:
        """A piece came back: it is next for who lacks it, unless another request still carries it."""
        task = self._task(piece)
        if task is None or task.requests:
            return
        for want_id in task.wants:
            want = self._wants[want_id]
            want.queue[piece] = None
            want.queue.move_to_end(piece, last=False)
            self._offer(want)

    def _release(self, piece: Piece, want_id: int) -> None:
        """One want lacks a piece no longer. Once none does, requests that carry nothing else are of no use."""
        task = self._tasks[piece.hash, piece.manifest]
        task.wants.remove(want_id)
        if task.wants:
            return
        self._bytes_left -= task.piece.length
        del self._tasks[piece.hash, piece.manifest]
        for request_id in task.requests:
            carrier = self._open[request_id]
            self._settle(carrier, piece)
            if request_id not in self._open:
                self._cancelled.append((carrier.request.peer, request_id))

    def _settle(self, open_request: Open[P], piece: Piece) -> None:
        """One piece of a request is dealt with; after the last the request is over."""
        if piece in open_request.left:
            self._detach(open_request, piece)
            if not open_request.left:
                self._close(open_request)

    def _detach(self, open_request: Open[P], piece: Piece) -> None:
        del open_request.left[piece]
        task = self._task(piece)
        # A piece that was dropped and wanted again has a new task, which knows nothing of this request.
        if task is not None and open_request.request.id in task.requests:
            task.requests.remove(open_request.request.id)

    def _close(self, open_request: Open[P]) -> None:
        request = open_request.request
        del self._open[request.id]
        self._in_flight -= request.size
        peer = self._peers[request.peer]
        del peer.requests[request.id]
        peer.window.finished(request.size)

    def _abandon(self, open_request: Open[P]) -> None:
        """Give up a request; what it lacked is asked again, in the same order."""
        pieces = list(open_request.left)
        for piece in pieces:
            self._detach(open_request, piece)
        self._close(open_request)
        for piece in reversed(pieces):
            self._requeue(piece)

    def _forget(self, want: Want) -> None:
        del self._wants[want.id]
        self._wants_of[want.root].remove(want.id)
        if not self._wants_of[want.root]:
            del self._wants_of[want.root]
            for peer in self._peers.values():
                peer.denied.pop(want.root, None)

    def _pause(self, peer: Peer[P], now: float) -> None:
        peer.stalls += 1
        peer.paused_until = now + _back_off(peer.stalls)
        # Peers that were passed over because this one held a content may be asked for it now.
        for root, holds in peer.holds.items():
            if holds:
                self._offer_root(root)

    def _deny(self, peer: Peer[P], root: bytes, now: float, *, worst: bool) -> None:
        strikes = peer.denied.get(root, (0.0, 0))[1] + 1
        until = now + (MAX_BACK_OFF if worst else _back_off(strikes))
        peer.denied[root] = (until, strikes)
        self._sequence += 1
        heappush(self._wake, (until, self._sequence))
        self._wake_of[self._sequence] = (peer.name, root)

    def _expire(self, now: float) -> None:
        while self._wake and self._wake[0][0] <= now:
            _, token = heappop(self._wake)
            _, root = self._wake_of.pop(token)
            self._offer_root(root)
        for peer in self._peers.values():
            if peer.requests and peer.heard + STALL <= now:
                for request_id in list(peer.requests):
                    self._cancelled.append((peer.name, request_id))
                    self._abandon(self._open[request_id])
                self._pause(peer, now)


def _back_off(strikes: int) -> float:
    return min(BACK_OFF * 2.0 ** min(strikes - 1, 16), MAX_BACK_OFF)
