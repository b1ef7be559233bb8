"""The swarm against simulated peers: everything arrives once, from whoever has it."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.protocol.limits import MAX_REQUEST_BYTES, MAX_REQUEST_CHUNKS
from p2psync.transfer.pieces import Piece, Refusal, Request
from p2psync.transfer.swarm import MAX_IN_FLIGHT, PACK_BYTES, STALL, Swarm
from p2psync.transfer.window import MAX_WINDOW, MIN_WINDOW, PIPELINE, Window

MIB = 1024 * 1024
FRAME = 256 * 1024


def piece(number: int, length: int = MIB) -> Piece:
    return Piece(number.to_bytes(32, "big"), length)


def root(number: int) -> bytes:
    return b"root" + number.to_bytes(28, "big")


def store(swarm: Swarm[str], request_id: int, wanted: Piece) -> bool:
    """What a node does with a piece that came: it is stored for all who lack it."""
    return swarm.delivered(request_id, wanted, swarm.lacking(wanted))


class SlowPeer:
    """Serves requests one after the other at `rate` bytes/s after `delay` seconds; may lack pieces or be silent."""

    def __init__(self, rate: float, delay: float = 0.01, lacks: frozenset[bytes] = frozenset(), silent: bool = False):
        self.rate, self.delay, self.lacks, self.silent = rate, delay, lacks, silent
        self.free_at = 0.0
        self.delivered = 0


class Simulation:
    def __init__(self, peers: dict[str, SlowPeer]) -> None:
        self.now = 0.0
        self.swarm = Swarm[str]()
        self.peers = peers
        self.windows = {name: Window(0.0) for name in peers}
        self.queue: list[tuple[float, int, object]] = []
        self.order = itertools.count()
        self.verified: Counter[bytes] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.alive = dict(peers)
        for name, window in self.windows.items():
            self.swarm.add_peer(name, window)

    def at(self, when: float, action: object) -> None:
        heapq.heappush(self.queue, (when, next(self.order), action))

    def pump(self) -> None:
        for request in self.swarm.next_requests(self.now):
            assert request.size <= MAX_REQUEST_BYTES
            assert len(request.pieces) <= MAX_REQUEST_CHUNKS
            assert len(request.pieces) == 1 or request.size <= PACK_BYTES
            for wanted in request.pieces:
                assert not self.verified[wanted.hash], "never asks for a verified chunk"
                self.asked[wanted.hash] += 1
            self.serve(request)
        self.swarm.take_cancelled()
        for window in self.windows.values():
            assert window.in_flight <= max(MAX_WINDOW, PIPELINE * MAX_REQUEST_BYTES)
        assert self.swarm.in_flight == sum(w.in_flight for w in self.windows.values()) <= MAX_IN_FLIGHT

    def serve(self, request: Request[str]) -> None:
        peer = self.peers[request.peer]
        if peer.silent:
            return
        at = max(self.now + peer.delay, peer.free_at)
        for wanted in request.pieces:
            if wanted.hash in peer.lacks:
                self.at(at, lambda w=wanted, t=at: self.swarm.refused(request.id, w, Refusal.GONE, t))
                continue
            left = wanted.length
            while left:
                step = min(left, FRAME)
                left -= step
                at += step / peer.rate
                self.at(at, lambda n=step, t=at: self.swarm.progress(request.id, n, t))
            self.at(at, lambda w=wanted: self.arrive(request, w))
        peer.free_at = at

    def arrive(self, request: Request[str], wanted: Piece) -> None:
        if request.peer not in self.alive:
            return
        if store(self.swarm, request.id, wanted):
            self.verified[wanted.hash] += 1
            self.peers[request.peer].delivered += wanted.length

    def want(self, content: bytes, pieces: list[Piece]) -> None:
        """As a node does: what is on the disk already is not wanted."""
        self.swarm.want(content, [p for p in pieces if not self.verified[p.hash]])

    def lose(self, name: str) -> None:
        if self.alive.pop(name, None):
            self.swarm.remove_peer(name)
            assert self.windows[name].in_flight == self.windows[name].requests == 0

    def run(self, until: float = 100_000.0) -> float:
        """Until nothing is wanted; returns the time."""
        self.pump()
        while self.swarm.bytes_left:
            deadline = self.swarm.next_deadline()
            if self.queue and (deadline is None or self.queue[0][0] <= deadline):
                self.now, _, action = heapq.heappop(self.queue)
                action()  # type: ignore[operator]
            else:
                assert deadline is not None, "nothing will ever happen again"
                assert deadline > self.now
                self.now = deadline
            assert self.now < until, "takes for ever"
            self.pump()
        return self.now


@pytest.mark.parametrize("sizes", [[4 * MIB] * 50, [10_000] * 3000, [4 * MIB, 1, 300_000] * 20])
def test_two_equal_peers_share_the_work(sizes: list[int]) -> None:
    sim = Simulation({"a": SlowPeer(5e6), "b": SlowPeer(5e6)})
    sim.swarm.want(root(1), [piece(i, n) for i, n in enumerate(sizes)])
    duration = sim.run()
    share = sim.peers["a"].delivered / sum(sizes)
    assert 0.4 <= share <= 0.6
    assert duration < 1.3 * sum(sizes) / 10e6 + 1.5


def test_a_fast_peer_gets_more_and_a_slow_one_does_not_hold_up_the_end() -> None:
    sim = Simulation({"fast": SlowPeer(20e6), "slow": SlowPeer(0.2e6)})
    sim.swarm.want(root(1), [piece(i, 4 * MIB) for i in range(50)])
    assert sim.run() < 20
    assert sim.peers["slow"].delivered < sim.peers["fast"].delivered / 5


def test_small_pieces_of_many_files_travel_together_in_order() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    for i in range(1000):
        swarm.want(root(i), [piece(i, 2000)], order=-i)
    first = swarm.next_requests(0.0)[0]
    assert [p.hash for p in first.pieces] == [piece(999 - i).hash for i in range(256)]


def test_manifests_and_chunks_do_not_mix() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    swarm.want(root(1), [Piece(root(1), 1000, manifest=True)])
    swarm.want(root(2), [piece(1, 1000)])
    assert [r.pieces[0].manifest for r in swarm.next_requests(0.0)] == [True, False]


def test_one_peer_is_known_to_hold_so_the_others_are_not_asked() -> None:
    swarm = Swarm[str]()
    for name in "abc":
        swarm.add_peer(name, Window(0.0))
    swarm.want(root(1), [piece(1)])
    swarm.set_holds("a", root(1), False)
    swarm.set_holds("c", root(1), True)
    assert [r.peer for r in swarm.next_requests(0.0)] == ["c"]
    swarm.remove_peer("c")
    assert [r.peer for r in swarm.next_requests(0.0)] == ["b"]


def test_gone_tries_another_at_once_and_the_same_one_later() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    swarm.want(root(1), [piece(1)])
    waits = []
    now = 0.0
    for _ in range(4):
        (request,) = swarm.next_requests(now)
        swarm.refused(request.id, piece(1), Refusal.GONE, now)
        assert swarm.next_requests(now) == []
        deadline = swarm.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
    assert waits == [2.0, 4.0, 8.0, 16.0]
    swarm.next_requests(now)
    swarm.add_peer("b", Window(0.0))


def test_a_peer_that_sent_a_corrupt_chunk_waits_long() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    swarm.add_peer("b", Window(0.0))
    swarm.want(root(1), [piece(1)])
    (request,) = swarm.next_requests(0.0)
    swarm.refused(request.id, piece(1), Refusal.CORRUPT, 0.0)
    (again,) = swarm.next_requests(0.0)
    assert again.peer != request.peer
    assert store(swarm, again.id, piece(1))
    assert not swarm.wanted(root(1))


def test_a_silent_peer_is_cancelled_and_left_alone() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    swarm.want(root(1), [piece(1)])
    (request,) = swarm.next_requests(0.0)
    assert swarm.next_requests(STALL) == []
    assert swarm.take_cancelled() == [("a", request.id)]
    assert swarm.next_deadline() == STALL + 2.0
    assert len(swarm.next_requests(STALL + 2.0)) == 1
    assert not store(swarm, 999, piece(7))


def test_shared_pieces_are_fetched_once() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    swarm.want(root(1), [piece(1), piece(2)])
    swarm.want(root(2), [piece(2), piece(3), piece(3)])
    requests = swarm.next_requests(0.0)
    pending = deque(requests)
    seen = []
    while pending:
        request = pending.popleft()
        for wanted in request.pieces:
            seen.append(wanted)
            assert store(swarm, request.id, wanted)
        pending.extend(swarm.next_requests(0.0))
    assert sorted(seen) == [piece(1), piece(2), piece(3)]
    assert swarm.bytes_left == 0
    assert not swarm.wanted(root(1))


def test_drop_cancels_and_wanting_again_asks_again() -> None:
    swarm = Swarm[str]()
    window = Window(0.0)
    swarm.add_peer("a", window)
    want = swarm.want(root(1), [piece(1)])
    (request,) = swarm.next_requests(0.0)
    swarm.drop(want)
    swarm.drop(want)
    assert swarm.take_cancelled() == [("a", request.id)]
    assert swarm.bytes_left == swarm.in_flight == window.in_flight == 0
    swarm.want(root(1), [piece(1)])
    assert len(swarm.next_requests(0.0)) == 1


def test_dropped_and_wanted_again_while_a_shared_request_is_open() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    want = swarm.want(root(1), [piece(1, 10)])
    swarm.want(root(2), [piece(2, 10)])
    (request,) = swarm.next_requests(0.0)
    swarm.drop(want)
    swarm.want(root(1), [piece(1, 10)])
    assert store(swarm, request.id, piece(1, 10))
    assert store(swarm, request.id, piece(2, 10))
    assert swarm.in_flight == 0 or swarm.next_deadline()


def test_endgame_asks_a_second_peer_and_cancels_the_loser() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("slow", Window(0.0))
    swarm.want(root(1), [piece(1)])
    (first,) = swarm.next_requests(0.0)
    swarm.add_peer("fast", Window(0.0))
    assert swarm.next_requests(1.0) == []
    assert swarm.next_deadline() == 2.0
    (second,) = swarm.next_requests(2.0)
    assert (second.peer, second.pieces) == ("fast", first.pieces)
    assert store(swarm, second.id, piece(1))
    assert swarm.take_cancelled() == [("slow", first.id)]
    assert not store(swarm, first.id, piece(1))
    assert swarm.in_flight == 0


@pytest.mark.parametrize("sent", [0.276, 0.3, 1e9 / 3])
def test_endgame_begins_when_it_is_due_however_times_are_rounded(sent: float) -> None:
    swarm = Swarm[str]()
    swarm.add_peer("slow", Window(sent))
    swarm.want(root(1), [piece(1)])
    assert swarm.next_requests(sent)
    swarm.add_peer("fast", Window(sent))
    assert swarm.next_requests(sent + 1) == []
    due = swarm.next_deadline()
    assert due is not None
    assert [request.peer for request in swarm.next_requests(due)] == ["fast"]


def test_the_same_calls_give_the_same_requests() -> None:
    def trace() -> list[Request[str]]:
        sim = Simulation({"a": SlowPeer(3e6), "b": SlowPeer(7e6)})
        sim.swarm.want(root(1), [piece(i, 700_000) for i in range(40)])
        seen: list[Request[str]] = []
        serve = sim.serve

        def watched(request: Request[str]) -> None:
            seen.append(request)
            serve(request)

        sim.serve = watched  # type: ignore[method-assign]
        sim.run()
        return seen

    assert trace() == trace()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_want_is_satisfied_if_some_live_peer_holds_it(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    contents = {
        root(c): [piece(data.draw(st.integers(0, 40)), 0) for _ in range(data.draw(st.integers(1, 5)))]
        for c in range(count)
    }
    lengths = {n: data.draw(st.sampled_from([1, 5_000, 600_000, 4 * MIB])) for n in range(41)}
    hashes = sorted({p.hash for pieces in contents.values() for p in pieces})
    names = ["a", "b", "c", "d"][: data.draw(st.integers(1, 4))]
    keeper = data.draw(st.sampled_from(names))
    peers = {
        name: SlowPeer(
            data.draw(st.sampled_from([1e5, 1e6, 50e6])),
            data.draw(st.sampled_from([0.0, 0.05, 0.5])),
            frozenset() if name == keeper else frozenset(data.draw(st.sets(st.sampled_from(hashes)))),
            silent=name != keeper and data.draw(st.booleans()),
        )
        for name in names
    }
    sim = Simulation(peers)
    for content, pieces in contents.items():
        fixed = [Piece(p.hash, lengths[int.from_bytes(p.hash, "big")]) for p in pieces]
        sim.at(data.draw(st.sampled_from([0.0, 0.3, 5.0])), lambda c=content, f=fixed: sim.want(c, f))
        for name in names:
            claim = data.draw(st.sampled_from([None, True, False]))
            sim.swarm.set_holds(name, content, True if name == keeper and claim is False else claim)
    for name in names:
        if name != keeper and data.draw(st.booleans()):
            sim.at(data.draw(st.sampled_from([0.1, 1.0, 30.0])), lambda n=name: sim.lose(n))
    while any(when <= 5.0 for when, _, _ in sim.queue):
        sim.now, _, action = heapq.heappop(sim.queue)
        action()  # type: ignore[operator]
        sim.pump()
    sim.run()
    assert set(sim.verified) == set(hashes)
    assert set(sim.verified.values()) == {1}
    assert not any(sim.swarm.wanted(content) for content in contents)


def test_fifty_thousand_small_files_are_scheduled_quickly() -> None:
    swarm = Swarm[str]()
    for name in "ab":
        swarm.add_peer(name, Window(0.0))
    for i in range(50_000):
        swarm.want(root(i), [piece(i, 1000)])
    served = 0
    now = 0.0
    while swarm.bytes_left:
        now += 0.01
        for request in swarm.next_requests(now):
            swarm.progress(request.id, request.size, now + 0.005)
            for wanted in request.pieces:
                served += store(swarm, request.id, wanted)
    assert served == 50_000


# ── the window ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_window_grows_to_twice_the_product_and_no_further() -> None:
    window = Window(0.0)
    assert window.limit(0.0) == MIN_WINDOW
    window.first_byte(0.1)
    for i in range(1000):
        window.arrived(100_000, i * 0.01)
    assert 1.8e6 < window.limit(10.0) < 2.2e6
    window.first_byte(10.0)
    assert window.limit(10.0) < 2.2e6, "the least delay counts"
    for i in range(1000):
        window.arrived(100_000_000, 10 + i * 0.01)
    assert window.limit(20.0) == MAX_WINDOW


def test_window_always_admits_two_requests() -> None:
    window = Window(0.0)
    for _ in range(PIPELINE):
        assert window.admits(MAX_REQUEST_BYTES, 0.0)
        window.sent(MAX_REQUEST_BYTES, 0.0)
    assert not window.admits(1, 0.0)
    window.finished(MAX_REQUEST_BYTES)
    assert window.admits(MAX_REQUEST_BYTES, 0.0)
