"""Counting connections, and who makes room for whom."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from relay.gate import Gate, Guest

A, B = "192.0.2.1", "192.0.2.2"


async def test_networks_of_ipv6_and_mapped_addresses_count_as_they_should() -> None:
    gate = Gate(3, 2, 100)
    with contextlib.ExitStack() as stack:

        def enters(address: str) -> bool:
            guest = stack.enter_context(gate.admit(address))
            if guest is not None:
                gate.settle(guest)
            return guest is not None

        assert [enters(f"2001:db8::{host}") for host in (1, 2, 3)] == [True, True, False]
        assert [enters(f"::ffff:{A}"), enters(B)] == [True, False]
        assert gate.open == 3
    assert gate.open == 0


async def test_the_longest_waiting_newcomer_makes_room_and_who_has_asked_stays() -> None:
    gate = Gate(3, 2, 100)
    with gate.admit(A) as settled, gate.admit(A) as waiting:
        assert settled is not None
        assert waiting is not None
        gate.settle(settled)
        with gate.admit(A) as third:  # the address is full
            assert third is not None
            assert (settled.scope.cancel_called, waiting.scope.cancel_called) == (False, True)
            with gate.admit(B), gate.admit(B) as other:  # then all is full
                assert third.scope.cancel_called
                assert other is not None
                assert gate.open == 3
    assert gate.open == 0


async def test_an_address_may_come_so_often_and_then_evenly(mock_clock: MockClock) -> None:
    gate = Gate(100, 100, 60)
    assert [gate.is_open_to(A) for _ in range(61)] == [True] * 60 + [False]
    assert gate.is_open_to(B)
    mock_clock.jump(2)
    assert [gate.is_open_to(A) for _ in range(3)] == [True, True, False]
    assert gate.refused == 2
    assert [gate.is_open_to(f"2001:db8::{host:x}") for host in range(61)] == [True] * 60 + [False]


async def test_a_closed_gate_lets_nobody_in() -> None:
    gate = Gate(3, 2, 100)
    with gate.admit(A) as guest, gate.admit(B) as settled:
        assert guest is not None
        assert settled is not None
        gate.settle(settled)
        gate.close()
        assert (guest.scope.cancel_called, settled.scope.cancel_called) == (True, False)
        with gate.admit(A) as late:
            assert late is None


@given(st.lists(st.tuples(st.sampled_from(["enter", "settle", "leave"]), st.sampled_from((A, B)), st.integers(0, 5))))
async def test_never_more_than_the_bounds_and_nothing_is_left_behind(steps: list[tuple[str, str, int]]) -> None:
    gate = Gate(5, 3, 1000)
    inside: dict[str, list[tuple[contextlib.ExitStack, Guest]]] = {A: [], B: []}
    for step, address, number in steps:
        here = inside[address]
        if step == "enter":
            stack = contextlib.ExitStack()
            guest = stack.enter_context(gate.admit(address))
            if guest is not None:
                here.append((stack, guest))
        elif number < len(here):
            if step == "settle":
                gate.settle(here[number][1])
            else:
                here.pop(number)[0].close()
        open_here = {name: [g for _, g in guests if not g.scope.cancel_called] for name, guests in inside.items()}
        assert all(len(guests) <= 3 for guests in open_here.values())
        assert gate.open == sum(map(len, open_here.values())) <= 5
    for guests in inside.values():
        for stack, _ in guests:
            stack.close()
    assert (gate.open, gate._networks, gate._all.newcomers, gate._let_in) == (0, {}, {}, set())
