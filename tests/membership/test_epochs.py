"""Key epochs: one current epoch whatever the order of links, stale once somebody lost rights, and a ladder back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership import Epoch, Membership, Role, decode_link, fold, make_epoch, make_link
from p2psync.membership.links import MAX_LADDER, Action, sign_link
from p2psync.model.hashing import labelled

from .helpers import act, add, demote, device, found, merged, promote, remove, team

EDITOR, OWNER, VIEWER, VAULT = Role.EDITOR, Role.OWNER, Role.VIEWER, Role.VAULT


def start(membership: Membership, author: int, seed: bytes, ring: KeyRing | None = None) -> tuple[Membership, EpochKey]:
    """The membership with a new epoch by a device."""
    secret = labelled(b"test epoch", seed)
    link, key = make_epoch(device(author), membership, ring or KeyRing(membership.folder), secret)
    return membership.extend([link]), key


def forge(membership: Membership, author: int, action: Action) -> Membership:
    """The membership with a link by somebody who does not ask whether it would count."""
    return membership.extend([sign_link(device(author), membership.folder, membership.heads, action).encoded])


def current(membership: Membership) -> bytes | None:
    return membership.current_epoch.key_id if membership.current_epoch else None


# ── who and which ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_epochs_are_numbered_in_turn_and_the_newest_is_current() -> None:
    membership = team(EDITOR)
    assert (membership.epoch, membership.current_epoch, membership.epoch_stale) == (0, None, True)
    first, key = start(membership, 0, b"1")
    assert (first.epoch, current(first), first.epoch_stale) == (1, key.id, False)
    second, later = start(first, 1, b"2")
    assert (second.epoch, current(second), second.epoch_stale) == (2, later.id, False)
    assert [epoch.number for epoch in second.epochs.values()] == [2, 1]
    assert first.epochs[key.id] == second.epochs[key.id]


@pytest.mark.parametrize("author", [2, 3])
def test_who_may_not_write_cannot_start_one(author: int) -> None:
    membership = team(EDITOR, VIEWER, VAULT)
    action = Epoch(1, b"k" * 16, [])
    with pytest.raises(PermissionDenied):
        make_link(device(author), membership, action)
    with pytest.raises(AuthenticationError):
        forge(membership, author, action)


@pytest.mark.parametrize("role", [VIEWER, VAULT])
def test_somebody_who_was_an_editor_cannot_start_one(role: Role) -> None:
    membership = act(start(team(EDITOR), 0, b"1")[0], 0, demote(1, role))
    after = forge(membership, 1, Epoch(2, b"\xff" * 16, []))
    assert (after.epoch, current(after), after.epoch_stale) == (1, current(membership), True)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 2**40])
@pytest.mark.parametrize("author", [0, 1])
def test_numbers_cannot_be_jumped_or_repeated(author: int, number: int) -> None:
    membership, _ = start(team(EDITOR), 0, b"1")
    action = Epoch(number, b"\xff" * 16, [])
    with pytest.raises(PermissionDenied):
        make_link(device(author), membership, action)
    after = forge(membership, author, action)
    assert (after.epochs, after.epoch) == (membership.epochs, 1)
    assert start(after, 1, b"2")[0].epoch == 2, "a jump changes no later number"


def test_of_concurrent_epochs_all_choose_the_same() -> None:
    base = team(EDITOR, EDITOR)
    views = [start(base, author, bytes((author,))) for author in range(3)]
    both = merged(*(view for view, _ in views))
    assert len(both.epochs) == 3
    assert current(both) == max(key.id for _, key in views)
    assert both.epoch == 1
    assert start(both, 2, b"next")[0].epoch == 2


def test_a_greater_number_wins_over_a_greater_id() -> None:
    base = team(EDITOR)
    left = start(start(base, 0, b"1")[0], 0, b"2")[0]
    for seed in range(8):
        right = start(base, 1, bytes((seed,)))[0]
        assert current(merged(left, right)) == current(left)


# ── stale ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("loss", [remove(1), remove(2), remove(3), demote(1, VIEWER), demote(2, VAULT)])
def test_who_loses_rights_makes_it_stale_until_the_next(loss: Action) -> None:
    membership, _ = start(team(EDITOR, VIEWER, VAULT), 0, b"1")
    after = act(membership, 0, loss)
    assert after.epoch_stale
    assert after.epochs == {k: e for k, e in after.epochs.items() if e.stale}
    renewed, key = start(after, 0, b"2")
    assert not renewed.epoch_stale
    assert current(renewed) == key.id


@pytest.mark.parametrize("gain", [add(4, VIEWER), add(4, OWNER), promote(2, OWNER), promote(3, VIEWER)])
def test_who_gains_rights_does_not(gain: Action) -> None:
    membership, _ = start(team(EDITOR, VIEWER, VAULT), 0, b"1")
    assert not act(membership, 0, gain).epoch_stale


def test_who_was_invited_and_is_void_again_makes_it_stale() -> None:
    """A demotion takes no reading away, but voids the invitation of a reader who may have been granted the key."""
    base, _ = start(team(OWNER), 0, b"1")
    both = merged(act(base, 0, demote(1, EDITOR)), act(base, 1, add(3, VIEWER)))
    assert both.may_read(device(1).device_id)
    assert not both.may_read(device(3).device_id)
    assert both.epoch_stale


def test_an_epoch_concurrent_with_a_removal_is_stale() -> None:
    base, _ = start(team(EDITOR, VIEWER), 0, b"1")
    both = merged(start(base, 1, b"2")[0], act(base, 0, remove(2)))
    assert both.epoch == 2
    assert both.epoch_stale
    assert not start(both, 1, b"3")[0].epoch_stale


def test_one_epoch_after_each_of_two_removals_is_stale() -> None:
    base = team(OWNER, VIEWER, VIEWER)
    left = start(act(base, 0, remove(2)), 0, b"left")[0]
    right = start(act(base, 1, remove(3)), 1, b"right")[0]
    assert not left.epoch_stale
    assert not right.epoch_stale
    assert merged(left, right).epoch_stale


def test_the_epoch_of_somebody_removed_at_the_same_time_does_not_count_but_is_known() -> None:
    base, first = start(team(EDITOR, EDITOR), 0, b"1")
    theirs, key = start(base, 1, b"2")
    both = merged(theirs, act(base, 0, remove(1)))
    assert current(both) == first.id
    assert both.epoch_stale
    assert not both.epochs[key.id].counts
    renewed, _ = start(both, 2, b"3")
    assert renewed.epoch == 3, "numbers go on from what is in the past, whether it counts or not"
    assert not renewed.epoch_stale


def test_a_removal_that_is_void_makes_nothing_stale() -> None:
    base, _ = start(team(OWNER, VIEWER), 0, b"1")
    both = merged(act(base, 1, remove(2)), start(act(base, 0, remove(1)), 0, b"2")[0])
    assert both.role(device(2).device_id) is VIEWER
    assert not both.epoch_stale


def test_an_old_key_under_a_new_number_stays_stale() -> None:
    """Whoever names the key again that the removed one knows has not renewed anything."""
    membership, key = start(team(EDITOR, VIEWER), 0, b"1")
    after = act(act(membership, 0, remove(2)), 1, Epoch(2, key.id, []))
    assert (after.epoch, current(after)) == (2, key.id)
    assert after.epoch_stale


def test_a_former_editor_cannot_make_an_epoch_stale_by_naming_it_again() -> None:
    base = act(team(EDITOR), 0, demote(1, VIEWER))
    membership, key = start(base, 0, b"1")
    before = fold(team(EDITOR).encoded_links())
    backdated = sign_link(device(1), before.folder, before.heads, Epoch(1, key.id, [])).encoded
    assert not membership.extend([backdated]).epoch_stale


# ── any order ───────────────────────────────────────────────────────────────────────────────────────────────────────
@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Links of a folder whose members start epochs, lose and gain rights on three partly merged views."""
    base = team(OWNER, EDITOR, EDITOR, VIEWER)
    views = [base, base, base]
    for step in range(draw(st.integers(1, 9))):
        at = draw(st.integers(0, 2))
        if draw(st.integers(0, 3)) == 0:
            views[at] = merged(views[at], views[draw(st.integers(0, 2))])
            continue
        author, target = draw(st.integers(0, 4)), draw(st.integers(0, 5))
        wanted = views[at].next_epoch + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 2**30]))
        epoch = Epoch(wanted, bytes((draw(st.integers(0, 3)), step)) * 8, [])
        choices: list[Action] = [epoch, epoch, remove(target), demote(target, VAULT), promote(target, OWNER)]
        action = draw(st.sampled_from(choices))
        if action is epoch and draw(st.booleans()) and wanted >= 0 and views[at].has_edited(device(author).device_id):
            views[at] = forge(views[at], author, action)
        elif views[at].can(device(author).device_id, action):
            views[at] = act(views[at], author, action)
    return merged(*views).encoded_links()


@settings(max_examples=60, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_every_order_of_arrival_gives_the_same_current_epoch(links: list[bytes], rng: random.Random) -> None:
    expected = fold(links)
    shuffled = fold(rng.sample(links, len(links)))
    grown = fold(links[:1])
    for link in links[1:]:
        grown = grown.extend([link])
    for other in (shuffled, grown):
        assert list(other.epochs.items()) == list(expected.epochs.items())
        assert other.current_epoch == expected.current_epoch
        assert (other.epoch_stale, other.next_epoch) == (expected.epoch_stale, expected.next_epoch)


@settings(max_examples=30, deadline=None)
@given(histories())
def test_a_new_epoch_by_an_owner_is_always_current_and_fresh(links: list[bytes]) -> None:
    membership = fold(links)
    author = next(n for n in range(6) if membership.role(device(n).device_id) is OWNER)
    renewed, key = start(membership, author, b"fresh")
    assert current(renewed) == key.id
    assert not renewed.epoch_stale
    assert renewed.epoch <= renewed.link_count


# ── the ladder ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_newest_key_reaches_all_before_it_and_no_other_way() -> None:
    membership, keys = team(EDITOR), []
    ring = KeyRing(membership.folder)
    for number in range(6):
        membership, key = start(membership, 0, bytes((number,)), ring)
        ring = ring.climb(membership.rungs, key)
        keys.append(key)
    assert [len(epoch.ladder) for epoch in membership.epochs.values()] == [1, 1, 1, 1, 1, 0]
    for have, key in enumerate(keys):
        reached = KeyRing(membership.folder, [key]).climb(membership.rungs)
        assert [k.id in reached for k in keys] == [number <= have for number in range(6)]
        assert all(reached.get(k.id) == k and reached.get(k.id).secret == k.secret for k in keys[: have + 1])  # type: ignore[union-attr]


def test_an_epoch_passes_on_all_that_no_other_does() -> None:
    base, first = start(team(EDITOR, EDITOR), 0, b"1")
    ring = KeyRing(base.folder, [first])
    views = [start(base, author, bytes((author, author)), ring) for author in range(3)]
    both = merged(*(view for view, _ in views))
    whole = KeyRing(base.folder, [first, *(key for _, key in views)])
    joined, key = start(both, 0, b"joined", whole)
    assert [older for older, _ in joined.epochs[key.id].ladder] == sorted(k.id for _, k in views)
    assert len(KeyRing(base.folder, [key]).climb(joined.rungs)) == 5
    alone, key = start(both, 0, b"alone", KeyRing(base.folder, [first]))
    assert [older for older, _ in alone.epochs[key.id].ladder] == [first.id]


def test_a_void_epochs_key_is_passed_on() -> None:
    base, first = start(team(EDITOR, EDITOR), 0, b"1")
    theirs, key = start(base, 1, b"2", KeyRing(base.folder, [first]))
    both = merged(theirs, act(base, 0, remove(1)))
    renewed, newest = start(both, 2, b"3", KeyRing(base.folder, [first, key]))
    assert {key.id, first.id} <= {k.id for k in KeyRing(base.folder, [newest]).climb(renewed.rungs)}


def test_rungs_that_lead_nowhere_are_passed_over() -> None:
    membership, first = start(team(EDITOR), 0, b"1")
    newest = EpochKey(membership.folder, b"n" * 32)
    liar = EpochKey(membership.folder, b"l" * 32)
    ladder = sorted([(b"\0" * 16, b"s" * 48), (first.id, liar.seal_rung(first)[1])])
    poisoned = act(membership, 1, Epoch(2, newest.id, ladder))
    assert list(KeyRing(membership.folder, [newest]).climb(poisoned.rungs)) == [newest]
    with pytest.raises(AuthenticationError):
        newest.open_rung(first.id, newest.seal_rung(liar)[1])


def test_a_ladder_is_bounded_and_well_formed() -> None:
    rung = (b"o" * 16, b"s" * 48)
    many = [(number.to_bytes(16, "big"), b"s" * 48) for number in range(MAX_LADDER + 1)]
    assert len(sign_link(device(0), b"f" * 16, (b"p" * 32,), Epoch(1, b"k" * 16, many[:-1])).encoded) < 16 * 1024
    malformed = [
        Epoch(1, b"k" * 16, many),
        Epoch(1, b"k" * 15, []),
        Epoch(1, b"k" * 17, [rung]),
        Epoch(1, b"k" * 16, [(b"o" * 15, b"s" * 48)]),
        Epoch(1, b"k" * 16, [(b"o" * 16, b"s" * 47)]),
        Epoch(1, b"k" * 16, [(b"o" * 16, b"s" * 49)]),
        Epoch(1, b"k" * 16, [rung, rung]),
        Epoch(1, b"k" * 16, [rung, (b"a" * 16, b"s" * 48)]),
        Epoch(1, b"o" * 16, [rung]),
        Epoch(-1, b"k" * 16, []),
        Epoch(2**62 + 1, b"k" * 16, []),
    ]
    for action in malformed:
        with pytest.raises(InputError):
            sign_link(device(0), b"f" * 16, (b"p" * 32,), action)


def test_more_epochs_than_a_ladder_holds_are_passed_on_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2psync.membership.grants.MAX_LADDER", 2)
    base = team(EDITOR, EDITOR)
    views = [start(base, author, bytes((author,))) for author in range(3)]
    both = merged(*(view for view, _ in views))
    ring = KeyRing(base.folder, [key for _, key in views])
    joined, key = start(both, 0, b"joined", ring)
    assert [older for older, _ in joined.epochs[key.id].ladder] == sorted(k.id for k in ring)[1:]


def test_keys_are_of_one_folder_and_say_nothing() -> None:
    key = EpochKey(b"f" * 16, bytes(range(32)))
    assert key.id != EpochKey(b"g" * 16, bytes(range(32))).id
    assert bytes(range(32)).hex() not in repr(key)
    with pytest.raises(InputError):
        EpochKey(b"f" * 16, bytes(31))
    with pytest.raises(InputError):
        KeyRing(b"g" * 16, [key])
    subkeys = {key.chunk_id_key, key.chunk_key, key.ref_id_key, key.body_key, key.ladder_key, key.secret}
    assert len(subkeys) == 6


def test_the_action_survives_the_wire() -> None:
    membership, key = start(found(), 0, b"1")
    link = decode_link(membership.encoded_links()[-1])
    assert link.action == Epoch(1, key.id, [])
    assert link.target is None
    assert not link.revokes
