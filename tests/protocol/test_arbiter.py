"""Two nodes that dial each other end with one connection, whatever the latencies."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.model.ids import DeviceId
from p2psync.protocol.arbiter import PATIENCE, TWIN_QUIET, Arbiter, Decision, Path, Verdict

SMALL, LARGE = DeviceId(b"\x01" * 32), DeviceId(b"\x02" * 32)
WELCOME, PING, DUPLICATE, TWIN = Verdict.WELCOME, Verdict.PING, Verdict.DUPLICATE, Verdict.TWIN


def decisions(result: list[Decision[str]]) -> list[tuple[str, Verdict]]:
    return [(d.connection, d.verdict) for d in result]


def test_second_connection_is_refused_when_the_first_answers() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    assert decisions(arbiter.greeted("first", b"i", 0.0)) == [("first", WELCOME)]
    assert decisions(arbiter.greeted("second", b"i", 1.0)) == [("first", PING)]
    assert arbiter.next_deadline() == 1.0 + PATIENCE
    assert decisions(arbiter.answered("first")) == [("second", DUPLICATE)]
    assert arbiter.next_deadline() is None
    assert arbiter.active == "first"


def test_processes_that_take_turns_are_both_refused_until_one_is_quiet() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("a1", b"a", 0.0)
    assert decisions(arbiter.greeted("b1", b"b", 1.0)) == [("a1", DUPLICATE), ("b1", WELCOME)]
    assert decisions(arbiter.greeted("a2", b"a", 2.0)) == [("b1", DUPLICATE), ("a2", WELCOME)], "was it only late?"
    assert decisions(arbiter.greeted("b2", b"b", 3.0)) == [("a2", TWIN), ("b2", TWIN)]
    assert decisions(arbiter.greeted("b3", b"b", 4.0)) == [("b3", TWIN)]
    assert decisions(arbiter.greeted("b4", b"b", 3.0 + TWIN_QUIET)) == [("b4", WELCOME)]
    assert decisions(arbiter.greeted("a3", b"a", 500.0)) == [("b4", TWIN), ("a3", TWIN)]


def test_a_process_that_starts_again_and_again_is_no_twin() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    for number in range(50):
        assert arbiter.greeted(f"c{number}", bytes([number]), number)[-1].verdict is WELCOME


def test_the_side_that_does_not_choose_notices_twins_too() -> None:
    arbiter = Arbiter[str](LARGE, SMALL)
    for number, instance in enumerate((b"a", b"b", b"a")):
        assert not arbiter.greeted(f"c{number}", instance, number)
        arbiter.welcomed(f"c{number}")
    assert decisions(arbiter.greeted("c3", b"b", 4.0)) == [("c2", TWIN), ("c3", TWIN)]


def test_second_connection_takes_over_when_the_first_is_silent() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("first", b"i", 0.0)
    arbiter.greeted("second", b"i", 1.0)
    assert arbiter.handle_timer(3.9) == []
    assert decisions(arbiter.handle_timer(4.0)) == [("first", DUPLICATE), ("second", WELCOME)]
    assert arbiter.closed("first") == []
    assert arbiter.active == "second"


def test_a_third_takes_the_place_of_the_second() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("first", b"i", 0.0)
    arbiter.greeted("second", b"i", 1.0)
    assert decisions(arbiter.greeted("third", b"i", 2.0)) == [("second", DUPLICATE)]
    assert decisions(arbiter.closed("first")) == [("third", WELCOME)]


def test_after_the_end_of_the_first_the_next_is_welcome_at_once() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("first", b"i", 0.0)
    arbiter.closed("first")
    assert decisions(arbiter.greeted("second", b"i", 1.0)) == [("second", WELCOME)]


def test_a_restarted_peer_is_welcome_at_once() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("first", b"i", 0.0)
    arbiter.greeted("second", b"i", 0.0)
    assert decisions(arbiter.greeted("new", b"j", 1.0)) == [
        ("first", DUPLICATE),
        ("second", DUPLICATE),
        ("new", WELCOME),
    ]


def test_a_better_path_takes_over_once_the_first_has_answered() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("relayed", b"i", 0.0, Path.RELAYED)
    assert decisions(arbiter.greeted("direct", b"i", 1.0)) == [("relayed", PING)]
    assert decisions(arbiter.answered("relayed")) == [("direct", WELCOME), ("relayed", DUPLICATE)]
    assert decisions(arbiter.greeted("relayed again", b"i", 2.0, Path.RELAYED)) == [("direct", PING)]
    assert decisions(arbiter.answered("direct")) == [("relayed again", DUPLICATE)]
    assert arbiter.next_deadline() is None


def test_a_worse_path_takes_over_when_the_first_is_silent() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("direct", b"i", 0.0)
    arbiter.greeted("relayed", b"i", 1.0, Path.RELAYED)
    assert decisions(arbiter.handle_timer(1.0 + PATIENCE)) == [("direct", DUPLICATE), ("relayed", WELCOME)]
    assert decisions(arbiter.greeted("direct again", b"i", 9.0)) == [("relayed", PING)]
    assert decisions(arbiter.answered("relayed")) == [("direct again", WELCOME), ("relayed", DUPLICATE)]


def test_a_worse_path_does_not_take_the_place_of_one_that_waits() -> None:
    arbiter = Arbiter[str](SMALL, LARGE)
    arbiter.greeted("first", b"i", 0.0, Path.RELAYED)
    arbiter.greeted("direct", b"i", 1.0)
    assert decisions(arbiter.greeted("relayed", b"i", 2.0, Path.RELAYED)) == [("relayed", DUPLICATE)]
    assert decisions(arbiter.closed("first")) == [("direct", WELCOME)]


def test_the_other_side_obeys() -> None:
    follower = Arbiter[str](LARGE, SMALL)
    assert follower.greeted("first", b"i", 0.0) == []
    assert follower.welcomed("first") == []
    assert decisions(follower.welcomed("second")) == [("first", DUPLICATE)]
    assert follower.closed("first") == []
    assert follower.active == "second"
    assert follower.closed("second") == []
    assert follower.active is None


# ── the model: two nodes, links of any latency, losses ──────────────────────────────────────────────────────────────
@dataclass
class Node:
    name: str
    arbiter: Arbiter[int]
    instance: bytes
    open: set[int] = field(default_factory=set)
    dialling: set[int] = field(default_factory=set)


class World:
    """Two nodes that dial while they have no connection; every frame takes its connection's latency."""

    REDIAL = 5.0
    DEAD = 90.0

    def __init__(self, latencies: list[float], lost: list[bool], first_dials: tuple[float, float]) -> None:
        self.now = 0.0
        self.queue: list[tuple[float, int, object]] = []
        self.order = itertools.count()
        self.ids = itertools.count()
        self.latencies, self.lost = latencies, lost
        self.a = Node("a", Arbiter(SMALL, LARGE), b"a" * 16)
        self.b = Node("b", Arbiter(LARGE, SMALL), b"b" * 16)
        self.cut: set[int] = set()
        for node, at in zip((self.a, self.b), first_dials, strict=True):
            self.at(at, lambda n=node: self.dial(n))

    def other(self, node: Node) -> Node:
        return self.b if node is self.a else self.a

    def at(self, delay: float, action: object) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.order), action))

    def path(self, link: int) -> Path:
        """How a link goes."""
        return Path.DIRECT

    def latency(self, link: int) -> float:
        return self.latencies[link % len(self.latencies)]

    def frame(self, sender: Node, link: int, action: object) -> None:
        """Deliver in order after the latency, unless the link was cut."""
        self.at(self.latency(link), lambda: None if link in self.cut else action())  # type: ignore[operator]

    def dial(self, node: Node) -> None:
        """Dial unless connected or just dialling; look again later."""
        if node.arbiter.active is None and not node.dialling:
            link = next(self.ids)
            node.dialling.add(link)
            peer = self.other(node)
            self.frame(node, link, lambda: self.accept(peer, link))
            self.at(30.0, lambda: node.dialling.discard(link))
        self.at(self.REDIAL, lambda: self.dial(node))

    def accept(self, node: Node, link: int) -> None:
        """The dialled side answers with its Hello before anything else."""
        dialler = self.other(node)
        self.frame(node, link, lambda: self.greet(dialler, link))
        self.greet(node, link)

    def greet(self, node: Node, link: int) -> None:
        node.open.add(link)
        self.carry(node, node.arbiter.greeted(link, self.other(node).instance, self.now, self.path(link)))
        self.arm(node)

    def arm(self, node: Node) -> None:
        deadline = node.arbiter.next_deadline()
        if deadline is not None:
            self.at(deadline - self.now, lambda: self.carry(node, node.arbiter.handle_timer(self.now)))

    def carry(self, node: Node, result: list[Decision[int]]) -> None:
        peer = self.other(node)
        for decision in result:
            link = decision.connection
            match decision.verdict:
                case Verdict.WELCOME:
                    self.frame(node, link, lambda link=link: self.welcome(peer, link))
                    if link < len(self.lost) and self.lost[link]:
                        self.lost[link] = False
                        self.at(self.latency(link) * 1.5, lambda link=link: self.break_link(link))
                case Verdict.PING:
                    self.frame(node, link, lambda link=link: self.answer(peer, link))
                case Verdict.DUPLICATE:
                    self.frame(node, link, lambda link=link: self.close(peer, link))
                    self.close(node, link)

    def welcome(self, node: Node, link: int) -> None:
        if link in node.open:
            self.carry(node, node.arbiter.welcomed(link))

    def answer(self, node: Node, link: int) -> None:
        if link in node.open:
            peer = self.other(node)
            self.frame(node, link, lambda: self.carry(peer, peer.arbiter.answered(link)))

    def close(self, node: Node, link: int) -> None:
        node.dialling.discard(link)
        if link in node.open:
            node.open.discard(link)
            self.carry(node, node.arbiter.closed(link))
            self.frame(node, link, lambda: self.close(self.other(node), link))

    def break_link(self, link: int) -> None:
        """The link loses everything from now on; one side notices soon, the other after its keepalive."""
        self.cut.add(link)
        self.at(1.0, lambda: self.close(self.b, link))
        self.at(self.DEAD, lambda: self.close(self.a, link))

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self.queue)
            action()  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0001, 0.05, 0.2, 1.0, 4.0]), min_size=1, max_size=6),
    st.lists(st.booleans(), max_size=4),
    st.tuples(st.sampled_from([0.0, 0.01, 0.05, 0.1, 3.0]), st.sampled_from([0.0, 0.01, 0.05, 0.1, 3.0])),
)
def test_two_nodes_end_with_one_connection(
    latencies: list[float], lost: list[bool], first_dials: tuple[float, float]
) -> None:
    world = World(latencies, lost, first_dials)
    world.run(600.0)
    active = world.a.arbiter.active
    assert active is not None
    assert active == world.b.arbiter.active
    assert world.a.open == world.b.open == {active}
    dialled = next(world.ids)
    world.run(700.0)
    assert world.a.arbiter.active == world.b.arbiter.active == active, "it stays"
    assert next(world.ids) == dialled + 1, "and nobody dials any more"


def test_simultaneous_dials_over_50_ms_settle_at_once() -> None:
    world = World([0.05], [], (0.0, 0.0))
    world.run(1.0)
    assert world.a.open == world.b.open == {world.a.arbiter.active}
    assert world.a.arbiter.active == world.b.arbiter.active
    assert next(world.ids) == 2


# ── two paths: one through a relay, and a direct one that is not always there ───────────────────────────────────────
class Roads(World):
    """Both dial through a relay while they have nothing, and try the direct way while they have nothing better."""

    def __init__(
        self, latencies: tuple[float, float], open_from: float, lost: list[bool], first_dials: tuple[float, float]
    ) -> None:
        self.relayed, self.direct = latencies
        self.open_from = open_from
        self.paths: dict[int, Path] = {}
        super().__init__([0.0], lost, first_dials)

    def path(self, link: int) -> Path:
        return self.paths[link]

    def latency(self, link: int) -> float:
        return self.direct if self.paths[link] is Path.DIRECT else self.relayed

    def dial(self, node: Node) -> None:
        active = node.arbiter.active
        if not node.dialling:
            if self.now >= self.open_from and (active is None or self.paths[active] is Path.RELAYED):
                self.begin(node, Path.DIRECT)
            elif active is None:
                self.begin(node, Path.RELAYED)
        self.at(self.REDIAL, lambda: self.dial(node))

    def begin(self, node: Node, path: Path) -> None:
        link = next(self.ids)
        self.paths[link] = path
        node.dialling.add(link)
        peer = self.other(node)
        self.frame(node, link, lambda: self.accept(peer, link))
        self.at(30.0, lambda: node.dialling.discard(link))


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(*[st.sampled_from([0.0, 0.0001, 0.05, 0.2, 1.0, 2.0])] * 2),
    st.sampled_from([0.0, 0.02, 5.0, 5.3, 12.0, 40.0, 1e9]),
    st.lists(st.booleans(), max_size=5),
    st.tuples(*[st.sampled_from([0.0, 0.01, 0.05, 0.1, 3.0])] * 2),
)
def test_two_nodes_end_with_one_connection_on_the_best_path(
    latencies: tuple[float, float], open_from: float, lost: list[bool], first_dials: tuple[float, float]
) -> None:
    world = Roads(latencies, open_from, lost, first_dials)
    world.run(900.0)
    active = world.a.arbiter.active
    assert active is not None
    assert active == world.b.arbiter.active
    assert world.a.open == world.b.open == {active}
    assert world.paths[active] is (Path.RELAYED if open_from > 900 else Path.DIRECT)
    dialled = next(world.ids)
    world.run(1000.0)
    assert world.a.arbiter.active == world.b.arbiter.active == active, "it stays"
    assert next(world.ids) == dialled + 1, "and nobody dials any more"


def test_the_change_to_a_better_path_leaves_no_moment_without_one() -> None:
    world = Roads((0.2, 0.01), 7.0, [], (0.0, 0.1))
    while world.now < 30.0:
        world.run(world.now + 0.01)
        world.now += 0.01
        if world.now > 1.0:
            for node in (world.a, world.b):
                assert node.arbiter.active in node.open
    assert world.a.arbiter.active == world.b.arbiter.active
