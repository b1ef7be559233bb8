"""Decisions about single entries and lists of heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol.chains import (
    MAX_AHEAD_S,
    STALE_AFTER_S,
    Behind,
    Chains,
    Duplicate,
    Finding,
    Fork,
    ForkProof,
    Fresh,
    Frozen,
    Gap,
    OwnRollback,
    Regressed,
    RolledBack,
    Statement,
    Withheld,
    decode_fork_proof,
)
from p2psync.protocol.mailbox import MAX_HEADS, ChainKey, Entry, Head, Header, next_slot, sorted_heads

ALICE, BOB, ME = (DeviceKeys(bytes([n]) * 64) for n in (1, 2, 3))
OWN = ChainKey(ME.card.signing_key, b"c" * 8)
FOLDER = b"f" * 16
WEEK = STALE_AFTER_S


def history(keys: DeviceKeys, texts: str, chain: bytes = b"c" * 8, folder: bytes = FOLDER) -> list[Header]:
    """A chain with one entry per letter: equal beginnings make equal entries."""
    entries: list[Entry] = []
    for letter in texts:
        last = entries[-1].header if entries else None
        slot = next_slot(folder, ChainKey(keys.card.signing_key, chain), last, 1, b"k" * 16)
        entries.append(slot.sign(keys, letter.encode()))
    return [entry.header for entry in entries]


def view(*tips: Header, unsent: Iterable[Header] = ()) -> Chains:
    return Chains(FOLDER, OWN, tips=tips, unsent=unsent)


def test_a_chain_is_taken_in_order() -> None:
    chains = view()
    for header in history(ALICE, "abc"):
        assert chains.judge(header) == Fresh(header)
        chains.apply(Fresh(header))
        assert chains.judge(header) == Duplicate(header)


def test_what_was_left_out_is_seen() -> None:
    one, two, three = history(ALICE, "abc")
    assert view().judge(two) == Gap(0, two)
    assert view(one).judge(three) == Gap(1, three)
    assert view(three).judge(one) == Duplicate(one)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("ab", "ax"), ("ab", "axy"), ("aby", "ax"), ("a", "x")], ids=lambda value: value
)
def test_two_histories_are_a_fork(ours: str, theirs: str) -> None:
    tip, other = history(ALICE, ours)[-1], history(ALICE, theirs)[-1]
    chains = view(tip)
    decision = chains.judge(other)
    assert isinstance(decision, Fork)
    assert decode_fork_proof(decision.proof.encoded) == decision.proof
    chains.apply(decision)
    third = history(ALICE, ours + "z")[-1]
    assert chains.judge(third) == Frozen(decision.proof)
    assert chains.judge(history(ALICE, "q", chain=b"d" * 8)[0]) == Frozen(decision.proof)
    assert chains.judge(history(BOB, "a")[0]) == Fresh(history(BOB, "a")[0])
    assert chains.judge_heads(third.key, Head(1, 0, (third, *history(BOB, "a"))), caught_up=True) == [
        Withheld(0, history(BOB, "a")[0])
    ]


def test_what_proves_no_fork() -> None:
    one, two, three = history(ALICE, "abc")
    pairs = [(one, one), (one, two), (one, three), (one, *history(BOB, "x")), (one, *history(ALICE, "x", b"d" * 8))]
    pairs.append((one, *history(ALICE, "x", folder=b"g" * 16)))
    pairs.append((one, replace(history(ALICE, "x")[0], signature=one.signature)))
    for first, second in pairs:
        with pytest.raises(AuthenticationError):
            decode_fork_proof(ForkProof(first, second).encoded)
    with pytest.raises(InputError):
        decode_fork_proof(b"\x92\xc4\x00\xc4\x00")
    with pytest.raises(InputError):
        decode_fork_proof(b"\x01")


def test_what_no_author_signed_is_refused() -> None:
    one, two = history(ALICE, "ab")
    forged = replace(two, body_hash=b"x" * 32)
    for header in (forged, *history(ALICE, "a", folder=b"g" * 16)):
        with pytest.raises(AuthenticationError):
            view(one).judge(header)
        with pytest.raises(AuthenticationError):
            view(one).judge_relay([header], asked_with={}, caught_up=False)
        with pytest.raises(AuthenticationError):
            view(one).judge_heads(one.key, Head(1, 0, (header,)), caught_up=True)


def test_the_number_of_chains_is_bounded() -> None:
    one = history(ALICE, "a")[0]
    chains = view(*(replace(one, chain=n.to_bytes(8, "big")) for n in range(MAX_HEADS)))
    with pytest.raises(InputError):
        chains.judge(one)


def test_own_entries_that_an_earlier_life_signed() -> None:
    one, two, three = history(ME, "abc")
    assert view().judge(one) == OwnRollback(one)
    chains = view(one, unsent=[two])
    assert chains.judge(two) == Fresh(two)  # the answer was lost, the entry was not
    assert chains.judge(three) == OwnRollback(three)
    assert chains.judge(history(ME, "ax")[1]) == OwnRollback(history(ME, "ax")[1])
    assert chains.judge(history(ME, "x")[0]) == OwnRollback(history(ME, "x")[0])
    assert chains.judge_relay([three], asked_with={}, caught_up=False) == [OwnRollback(three)]
    assert chains.judge_heads(three.key, Head(1, 0, (three,)), caught_up=False) == [OwnRollback(three)]
    assert view(unsent=history(ME, "xyz")).judge(one) == OwnRollback(one)
    assert view(two).judge(one) == Duplicate(one)
    chains.apply(Fresh(two))
    assert chains.unsent == []
    another = history(ME, "a", chain=b"d" * 8)[0]
    assert chains.judge(another) == Fresh(another)


def test_a_statement_proves_what_is_missing() -> None:
    one, two, three = history(ALICE, "abc")
    key = history(BOB, "a")[0].key
    chains = view(two)
    assert chains.judge_heads(key, Head(1, 0, (one,)), caught_up=True) == []
    assert chains.judge_heads(key, Head(1, 0, (two,)), caught_up=True) == []
    assert chains.judge_heads(key, Head(1, 0, (three,)), caught_up=False) == [Behind(2, three)]
    assert chains.judge_heads(key, Head(1, 0, (three,)), caught_up=True) == [Withheld(2, three)]
    fork = history(ALICE, "ax")[1]
    assert chains.judge_heads(key, Head(1, 0, (fork,)), caught_up=False) == [Fork(ForkProof(two, fork))]


def test_a_relay_that_goes_back_is_seen() -> None:
    one, two = history(ALICE, "ab")
    key = one.key

    def judged(tip: Header, *shown: Header, then: Header, caught_up: bool = True) -> list[Finding]:
        return view(tip).judge_relay(shown, asked_with={key: then}, caught_up=caught_up)

    assert judged(two, two, then=two) == []
    assert judged(two, one, then=two) == [RolledBack(1, two)]
    assert judged(two, then=two) == [RolledBack(0, two)]
    assert judged(two, one, then=one) == []
    assert judged(one, two, then=one, caught_up=False) == [Behind(1, two)]
    assert judged(one, two, then=one) == [Withheld(1, two)]


def test_an_old_statement_is_no_news() -> None:
    key = history(BOB, "a")[0].key
    chains = view()
    assert chains.heard(key, Head(4, 100, ())) == Statement(key, 4, 100)
    assert chains.heard(key, Head(3, 900, ())) == Statement(key, 4, 100)
    assert chains.judge_heads(key, Head(3, 900, ()), caught_up=True, newest=True) == [Regressed(key, 3, 4)]
    assert chains.judge_heads(key, Head(3, 900, ()), caught_up=True) == []
    assert chains.judge_heads(key, Head(4, 100, ()), caught_up=True, newest=True) == []


def test_staleness() -> None:
    bob = history(BOB, "a")[0].key
    chains = view()
    assert chains.stale_since(1000 + WEEK, 1000) is None
    assert chains.stale_since(1001 + WEEK, 1000) == 1000
    chains.heard(OWN, Head(1, 5000, ()))
    assert chains.stale_since(1001 + WEEK, 1000) == 1000
    chains.heard(bob, Head(1, 2000, ()))
    assert chains.stale_since(2000 + WEEK, 1000) is None
    assert chains.stale_since(2001 + WEEK, 1000) == 2000
    chains.heard(bob, Head(2, 2001 + WEEK + MAX_AHEAD_S + 1, ()))
    assert chains.stale_since(2001 + WEEK, 1000) == 1000


def test_a_snapshot_that_was_taken_in() -> None:
    alice, bob = history(ALICE, "abc"), history(BOB, "ab")
    chains = view(alice[0], bob[1])
    for decision in chains.adopt(sorted_heads([alice[2], bob[0]])):
        chains.apply(decision)
    assert chains.tips == {alice[0].key: alice[2], bob[0].key: bob[1]}
    following = history(ALICE, "abcd")[3]
    assert chains.judge(following) == Fresh(following)
    assert list(view(alice[1]).adopt([history(ALICE, "ax")[1]])) == [Fork(ForkProof(alice[1], history(ALICE, "ax")[1]))]
    with pytest.raises(AuthenticationError):
        list(view().adopt([replace(alice[2], body_hash=b"x" * 32)]))
