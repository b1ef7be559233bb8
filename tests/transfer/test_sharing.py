"""Contents that share pieces, begun and given up in any order: each has received what was stored for it, no more."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2psync.transfer.pieces import Piece, Refusal, Request
from p2psync.transfer.swarm import STALL, Swarm
from p2psync.transfer.window import Window

PIECES = [Piece(bytes([n]) * 32, 1000 * n + 1) for n in range(6)]
CONTENTS = [bytes([n]) * 32 for n in range(3)]
PEERS = ["a", "b", "c"]


@dataclass
class Stage:
    """Where one content is put together; `stored` outlives the job, as a file does."""

    needed: frozenset[Piece]
    stored: set[Piece] = field(default_factory=set)
    want: int | None = None


@dataclass(frozen=True)
class Storing:
    """A piece that is being written in another thread, for those who lacked it when that began."""

    request: Request[str]
    piece: Piece
    wants: tuple[int, ...]


class Sharing(RuleBasedStateMachine):
    """A swarm beside the model: a set of stages, each with the pieces that were written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.swarm = Swarm[str]()
        self.peers: set[str] = set()
        self.stages: list[Stage] = []
        self.open: list[tuple[Request[str], Piece]] = []
        self.storing: list[Storing] = []
        self.useless: set[tuple[int, Piece]] = set()
        """What is under way although nobody lacked it any more: whoever wants it later has it asked for anew."""

    @property
    def jobs(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.want is not None]

    @rule(content=st.sampled_from(CONTENTS), needed=st.sets(st.sampled_from(PIECES), min_size=1))
    def begin(self, content: bytes, needed: set[Piece]) -> None:
        stage = Stage(frozenset(needed))
        self.stages.append(stage)
        stage.want = self.swarm.want(content, sorted(needed))

    @precondition(lambda self: len(self.jobs) < len(self.stages))
    @rule(content=st.sampled_from(CONTENTS), data=st.data())
    def resume(self, content: bytes, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from([stage for stage in self.stages if stage.want is None]))
        stage.want = self.swarm.want(content, sorted(stage.needed - stage.stored))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from(self.jobs))
        assert stage.want is not None
        self.swarm.drop(stage.want)
        stage.want = None
        self.tidy()

    @rule(peer=st.sampled_from(PEERS))
    def meet(self, peer: str) -> None:
        if peer not in self.peers:
            self.peers.add(peer)
            self.swarm.add_peer(peer, Window(self.now))

    @rule(peer=st.sampled_from(PEERS))
    def part(self, peer: str) -> None:
        self.peers.discard(peer)
        self.swarm.remove_peer(peer)
        self.open = [(request, piece) for request, piece in self.open if request.peer != peer]

    @rule(peer=st.sampled_from(PEERS), content=st.sampled_from(CONTENTS), holds=st.sampled_from([True, False, None]))
    def tell(self, peer: str, content: bytes, holds: bool | None) -> None:
        self.swarm.set_holds(peer, content, holds)

    @rule(seconds=st.sampled_from([0.0, 0.1, 3.0, STALL + 1]))
    def ask(self, seconds: float) -> None:
        self.now += seconds
        carried = {piece for request, piece in self.open if (request.id, piece) not in self.useless}
        for request in self.swarm.next_requests(self.now):
            for piece in request.pieces:
                assert self.swarm.lacking(piece), "what nobody lacks is not asked for"
                assert seconds or piece not in carried, "asked for twice"
                self.open.append((request, piece))
        self.tidy()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        request, piece = data.draw(st.sampled_from(self.open))
        self.open.remove((request, piece))
        self.swarm.progress(request.id, piece.length, self.now)
        self.storing.append(Storing(request, piece, self.swarm.lacking(piece)))

    @precondition(lambda self: self.storing)
    @rule(data=st.data())
    def stored(self, data: st.DataObject) -> None:
        storing = data.draw(st.sampled_from(self.storing))
        failed = data.draw(st.sets(st.sampled_from(storing.wants))) if storing.wants else set()
        self.finish(storing, tuple(want for want in storing.wants if want not in failed))

    def finish(self, storing: Storing, wants: tuple[int, ...]) -> None:
        self.storing.remove(storing)
        fresh = [s for s in self.jobs if s.want in wants and storing.piece in s.needed - s.stored]
        for stage in fresh:
            stage.stored.add(storing.piece)
        assert self.swarm.delivered(storing.request.id, storing.piece, wants) == bool(fresh)
        self.tidy()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), why=st.sampled_from(Refusal))
    def refuse(self, data: st.DataObject, why: Refusal) -> None:
        request, piece = data.draw(st.sampled_from(self.open))
        self.open.remove((request, piece))
        self.swarm.refused(request.id, piece, why, self.now)

    def tidy(self) -> None:
        cancelled = {request_id for _, request_id in self.swarm.take_cancelled()}
        self.open = [(request, piece) for request, piece in self.open if request.id not in cancelled]
        self.useless |= {(request.id, piece) for request, piece in self.open if not self.swarm.lacking(piece)}

    @invariant()
    def a_want_ends_when_its_own_stage_has_everything(self) -> None:
        for stage in self.jobs:
            assert stage.want is not None
            assert self.swarm.wants(stage.want) == (stage.stored != stage.needed)

    @invariant()
    def the_books_are_right(self) -> None:
        lacking = {piece for stage in self.jobs for piece in stage.needed - stage.stored}
        assert self.swarm.bytes_left == sum(piece.length for piece in lacking)
        for piece in PIECES:
            assert set(self.swarm.lacking(piece)) == {s.want for s in self.jobs if piece in s.needed - s.stored}

    def teardown(self) -> None:
        """From any state, a peer that has everything is enough for all that is wanted."""
        for peer in sorted(self.peers):
            self.swarm.remove_peer(peer)
        self.open = []
        while self.storing:
            self.finish(self.storing[0], self.storing[0].wants)
        self.swarm.add_peer("d", Window(self.now))
        for _ in range(2 * len(PIECES) + 2):
            self.ask(0.0)
            while self.open:
                request, piece = self.open.pop()
                self.storing.append(Storing(request, piece, self.swarm.lacking(piece)))
                self.finish(self.storing[0], self.storing[0].wants)
        assert self.swarm.bytes_left == self.swarm.in_flight == 0
        assert all(stage.stored == stage.needed for stage in self.jobs)


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_what_came_for_one_content_is_fetched_again_for_one_that_began_later() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    first = swarm.want(CONTENTS[0], PIECES[:2])
    (request,) = swarm.next_requests(0.0)
    assert swarm.delivered(request.id, PIECES[0], [first])
    second = swarm.want(CONTENTS[1], PIECES[:1])
    assert swarm.wants(second)
    (again,) = swarm.next_requests(0.0)
    assert again.pieces == (PIECES[0],)
    assert swarm.delivered(again.id, PIECES[0], [second])
    assert swarm.wants(first)
    assert not swarm.wants(second)


def test_who_joins_while_a_piece_is_being_stored_has_not_received_it() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    first = swarm.want(CONTENTS[0], PIECES[:1])
    (request,) = swarm.next_requests(0.0)
    takers = swarm.lacking(PIECES[0])
    second = swarm.want(CONTENTS[0], PIECES[:1])
    assert swarm.next_requests(0.0) == []
    assert swarm.delivered(request.id, PIECES[0], takers)
    assert (swarm.wants(first), swarm.wants(second)) == (False, True)
    (again,) = swarm.next_requests(0.0)
    assert again.pieces == (PIECES[0],)


def test_the_same_content_in_two_places_is_fetched_once_for_both() -> None:
    swarm = Swarm[str]()
    swarm.add_peer("a", Window(0.0))
    first, second = (swarm.want(CONTENTS[0], PIECES[:2]) for _ in range(2))
    (request,) = swarm.next_requests(0.0)
    assert request.pieces == tuple(PIECES[:2])
    swarm.drop(first)
    for piece in PIECES[:2]:
        assert swarm.wants(second)
        assert swarm.delivered(request.id, piece, swarm.lacking(piece))
    assert not swarm.wants(second)
    assert swarm.in_flight == swarm.bytes_left == 0
