"""Verdicts of the graph: those of the rules taken literally, and cheap however many links somebody sends."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import AuthenticationError
from p2psync.membership import Action, Epoch, Link, Rename, Role, decode_link
from p2psync.membership import graph as graph_module
from p2psync.membership.graph import LinkGraph
from p2psync.membership.links import sign_link

from .helpers import add, demote, device, promote, remove, team
from .verdicts import Verdicts

EDITOR, OWNER, VIEWER, VAULT = Role.EDITOR, Role.OWNER, Role.VIEWER, Role.VAULT


class History:
    """A folder whose devices sign whatever they like, on any part of it that they may have seen."""

    def __init__(self, *given: Role) -> None:
        self.graph = LinkGraph()
        for encoded in team(*given).encoded_links():
            self._take(decode_link(encoded))

    def _take(self, link: Link) -> bytes:
        self.graph.insert(link)
        return link.hash

    def sign(self, author: int, seen: set[bytes], action: Action) -> bytes | None:
        """A link after those that were `seen`; None when the graph refuses its author."""
        seen_too = {prev for link in self.links if link.hash in seen for prev in link.prevs}
        link = sign_link(device(author), self.links[0].folder_id, tuple(seen - seen_too), action)
        try:
            return self._take(link)
        except AuthenticationError:
            return None

    def chain(self, author: int, seen: set[bytes], actions: list[Action]) -> set[bytes]:
        """Links one after the other; the last one stands for all of them."""
        for action in actions:
            made = self.sign(author, seen, action)
            assert made is not None
            seen = {made}
        return seen

    @property
    def links(self) -> list[Link]:
        return [node.link for node in self.graph.nodes]

    @property
    def all(self) -> set[bytes]:
        return {link.hash for link in self.links}


# ── equality with the rules ─────────────────────────────────────────────────────────────────────────────────────────
def random_history(rng: random.Random) -> list[Link]:
    """Links on four views that are merged now and then: owners remove and demote each other, others do as they like."""
    history = History(*rng.choice([(OWNER, OWNER, EDITOR), (OWNER, OWNER, OWNER), (OWNER, EDITOR, EDITOR)]))
    views = [history.all] * 4
    for _ in range(rng.randint(6, 26)):
        at = rng.randrange(4)
        if rng.random() < 0.1:
            views[at] = views[at] | rng.choice(views)
        target, role = rng.randrange(7), rng.choice([VAULT, VIEWER, EDITOR, OWNER])
        actions: list[Action] = [
            add(target, role),
            add(target, EDITOR),
            promote(target, role),
            demote(target, role),
            demote(rng.randrange(3), EDITOR),
            remove(target),
            remove(rng.randrange(3)),
            Rename("photos"),
            Epoch(rng.randint(1, 2), b"k" * 16, []),
        ]
        made = history.sign(rng.randrange(rng.choice([2, 3, 7])), views[at], rng.choice(actions))
        if made is not None:
            views[at] = views[at] | {made}
    return history.links


def shuffled(links: list[Link], rng: random.Random) -> list[Link]:
    """The links in another order that has predecessors first."""
    waiting, order = rng.sample(links, len(links)), list[Link]()
    while waiting:
        done = {link.hash for link in order}
        link = next(link for link in waiting if done.issuperset(link.prevs))
        order.append(link)
        waiting.remove(link)
    return order


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1).map(random.Random))
def test_verdicts_are_those_of_the_rules(rng: random.Random) -> None:
    links, graph, known = random_history(rng), LinkGraph(), list[Link]()
    for link in shuffled(links, rng):
        graph.insert(link)
        known.append(link)
        if rng.random() < 0.3 or len(known) == len(links):
            graph.judge()
            assert {node.link.hash: node.valid for node in graph.nodes} == Verdicts(known).valid()
            graph = graph.copy()


def test_two_invited_editors_who_attack_each_others_invitation_make_a_circle() -> None:
    history = History(EDITOR, EDITOR)
    circle(history, history.all, 0)
    rules = Verdicts(history.links)
    assert rules.circles == 1
    history.graph.judge()
    assert {node.link.hash: node.valid for node in history.graph.nodes} == rules.valid()


# ── work ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def work(history: Callable[[int], list[Link]], count: int) -> int:
    """Bytecode instructions that the module of the graph runs to insert and judge a history."""
    links, steps = history(count), 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if event == "call":
            if frame.f_code.co_filename != graph_module.__file__:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    graph, before = LinkGraph(), sys.gettrace()
    sys.settrace(trace)
    try:
        for link in links:
            graph.insert(link)
        graph.judge()
    finally:
        sys.settrace(before)
    assert len(graph.nodes) >= count
    return steps


def circle(history: History, seen: set[bytes], at: int) -> None:
    """Editors 1 and 2 let in one device each, and each of these removes the other."""
    left, right = 3 + 2 * at, 4 + 2 * at
    for editor, invited, other in ((1, left, right), (2, right, left)):
        history.chain(invited, history.chain(editor, seen, [add(invited, EDITOR)]), [remove(other)])


def removed(history: History, number: int) -> None:
    """An owner takes all rights from a device, and has seen nothing of what that one sends."""
    history.chain(0, {history.links[3].hash}, [remove(number)])


def one_after_the_other(count: int) -> list[Link]:
    history = History(EDITOR, VIEWER, VIEWER)
    history.chain(1, history.all, [remove(2, (0, i)) for i in range(count)])
    removed(history, 1)
    return history.links


def all_at_once(count: int) -> list[Link]:
    history = History(EDITOR, VIEWER, VIEWER)
    base = history.all
    for i in range(count):
        history.chain(1, base, [remove(2, (0, i))])
    removed(history, 1)
    return history.links


def invited_all_at_once(count: int) -> list[Link]:
    """All of them count: nobody has removed who sent them."""
    history = History(EDITOR, VIEWER, VIEWER)
    base = history.all
    for i in range(count):
        history.chain(1, base, [add(4, EDITOR, i)])
    return history.links


def on_two_branches(count: int) -> list[Link]:
    """What the last links have seen of one device ends at all places of one branch."""
    history = History(EDITOR, VIEWER, VIEWER)
    base, third = history.all, count // 3
    left = history.chain(1, base, [add(2, EDITOR, i) for i in range(third)])
    right = base
    for i in range(third):
        right = history.chain(1, right, [remove(2, (0, i))])
        history.chain(1, left | right, [add(2, OWNER, i)])
    removed(history, 1)
    return history.links


def in_and_out(count: int) -> list[Link]:
    """An owner lets a device in and out again, and says that it had not seen most of it."""
    history = History(OWNER, VIEWER, VIEWER)
    base, half = history.all, count // 2
    seen, marks = base, []
    for i in range(half // 2):
        seen = history.chain(1, seen, [remove(2, (0, i)), add(2, EDITOR, i)])
        marks.append(seen)
    for mark in marks:
        history.chain(1, mark, [demote(2, VIEWER), Rename("photos")])
    removed(history, 1)
    return history.links


each_shape = pytest.mark.parametrize(
    "history", [one_after_the_other, all_at_once, invited_all_at_once, on_two_branches, in_and_out]
)


@each_shape
def test_work_grows_as_the_links_about_one_device(history: Callable[[int], list[Link]]) -> None:
    assert work(history, 240) < 2.2 * work(history, 120)


@each_shape
def test_verdicts_of_many_links_are_those_of_the_rules(history: Callable[[int], list[Link]]) -> None:
    links = history(24)
    graph = LinkGraph()
    for link in links:
        graph.insert(link)
    graph.judge()
    assert {node.link.hash: node.valid for node in graph.nodes} == Verdicts(links).valid()
