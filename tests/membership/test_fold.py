"""Membership: the same state whatever the order of links, and removal wins."""

from __future__ import annotations

import importlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership import Action, Membership, Rename, Role, Unknown, decode_link, fold, make_link
from p2psync.membership import graph as graph_module
from p2psync.membership.links import sign_link
from p2psync.membership.pool import LinkPool
from p2psync.model.ids import replica

from .helpers import act, add, cuts, demote, device, found, merged, promote, remove, roles, team

fold_module = importlib.import_module("p2psync.membership.fold")  # the function of that name hides it

EDITOR, OWNER, VIEWER, VAULT = Role.EDITOR, Role.OWNER, Role.VIEWER, Role.VAULT


def state(membership: Membership) -> object:
    probes = [
        membership.may_write(device(n).device_id, replica(device(n).device_id, 0), counter)
        for n in range(8)
        for counter in range(0, 60, 5)
    ]
    return (
        list(membership.members.items()),
        list(membership.former.items()),
        membership.heads,
        membership.label,
        membership.epoch,
        membership.encoded_links(),
        probes,
    )


# ── rights ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_founder_owns_the_folder_whose_id_names_its_genesis() -> None:
    membership = found()
    assert roles(membership) == {0: "owner"}
    assert membership.folder == decode_link(membership.encoded_links()[0]).hash[:16]
    assert membership.label == "photos"


@pytest.mark.parametrize("author", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "action",
    [
        add(5, OWNER),
        add(5, VAULT),
        add(5, EDITOR),
        add(5, VIEWER),
        remove(0),
        remove(2),
        promote(2, EDITOR),
        demote(0, VIEWER),
        Rename("x"),
        Unknown(77, b"\x91\x4d"),
    ],
    ids=lambda a: type(a).__name__,
)
def test_only_owners_manage_and_editors_invite(author: int, action: Action) -> None:
    membership = team(EDITOR, VIEWER, VAULT)
    allowed = author == 1 and action in (add(5, EDITOR), add(5, VIEWER))
    assert membership.can(device(author).device_id, action) == allowed
    if allowed:
        assert 5 in roles(act(membership, author, action))
        return
    with pytest.raises(PermissionDenied):
        make_link(device(author), membership, action)
    # Somebody who ignores that gains nothing: the link is refused, or kept without effect.
    forged = sign_link(device(author), membership.folder, membership.heads, action).encoded
    if author != 1:
        with pytest.raises(AuthenticationError):
            membership.extend([forged])
    else:
        after = membership.extend([forged])
        assert roles(after) == roles(membership)
        assert after.label == membership.label


def test_owner_cannot_change_own_role_so_the_last_one_stays() -> None:
    membership = team(EDITOR)
    for action in (remove(0), demote(0, EDITOR)):
        with pytest.raises(PermissionDenied, match="own role"):
            make_link(device(0), membership, action)
        forged = sign_link(device(0), membership.folder, membership.heads, action).encoded
        assert roles(membership.extend([forged]))[0] == "owner"


def test_a_promotion_must_raise_and_a_demotion_must_lower() -> None:
    membership = team(EDITOR)
    for action in (promote(1, VIEWER), promote(1, EDITOR), demote(1, EDITOR), demote(1, OWNER), promote(5, OWNER)):
        assert not membership.can(device(0).device_id, action)


def test_removed_then_added_again() -> None:
    membership = act(act(team(EDITOR), 0, remove(1, (0, 4))), 0, add(1, VIEWER))
    assert roles(membership) == {0: "owner", 1: "viewer"}
    assert not membership.former


def test_device_that_looks_like_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    same = device(0).device_id[:8]
    for module in (graph_module, fold_module):
        monkeypatch.setattr(module, "replica_device_prefix", lambda _: same)
    membership = found()
    assert not membership.can(device(0).device_id, add(1, EDITOR))
    forged = sign_link(device(0), membership.folder, membership.heads, add(1, EDITOR)).encoded
    assert roles(membership.extend([forged])) == {0: "owner"}


def test_what_looks_like_a_device_that_was_never_added_is_judged_alike_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The twin is named before it is added: whether it is added later must not change a verdict of before."""
    twins = {device(number).device_id for number in (1, 2)}
    for module in (graph_module, fold_module):
        monkeypatch.setattr(module, "replica_device_prefix", lambda d: bytes(8) if d in twins else d[:8])
    membership = found()
    for action in (remove(2), add(1, OWNER), add(2, EDITOR)):
        link = sign_link(device(0), membership.folder, membership.heads, action)
        membership = membership.extend([link.encoded])
    assert roles(membership) == {0: "owner", 1: "owner"}
    assert roles(fold(membership.encoded_links())) == roles(membership)


def test_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MAX_MEMBERS", 3)
    base = team(EDITOR)
    both = merged(act(base, 0, add(2, VIEWER)), act(base, 1, add(3, VIEWER)))
    assert len(both.members) == 3
    with pytest.raises(PermissionDenied):
        make_link(device(0), both, add(4, VIEWER))


@pytest.mark.parametrize(("owner", "other"), [(1, 2), (2, 1)])
def test_owners_are_members_whatever_was_added_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, owner: int, other: int
) -> None:
    """An owner who is none in the list of members could remove those who are, and leave nobody who manages."""
    twins = {device(number).device_id for number in (1, 2)}
    monkeypatch.setattr(fold_module, "replica_device_prefix", lambda d: bytes(8) if d in twins else d[:8])
    base = found()
    crowded = merged(act(base, 0, add(owner, OWNER)), act(base, 0, add(other, EDITOR)))
    assert roles(crowded)[owner] == "owner"
    assert roles(act(crowded, owner, remove(0)))[owner] == "owner"


def test_owners_are_members_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MAX_MEMBERS", 3)
    base = team(VIEWER)
    both = merged(act(act(base, 0, Rename("later")), 0, add(3, OWNER)), act(base, 0, add(2, VIEWER)))
    assert roles(both)[3] == "owner"


def test_links_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MAX_LINKS", 3)
    with pytest.raises(InputError, match="3 membership links"):
        team(VIEWER, VIEWER, VIEWER)


def test_unknown_actions_are_kept_and_passed_on() -> None:
    membership = act(found(), 0, Unknown(77, b"\x92\x4d\xa5later"))
    assert membership.link_count == 2
    assert roles(fold(membership.encoded_links())) == {0: "owner"}
    assert decode_link(membership.encoded_links()[1]).action == Unknown(77, b"\x92\x4d\xa5later")


# ── concurrency ─────────────────────────────────────────────────────────────────────────────────────────────────────
def test_removal_wins_over_what_its_target_did_at_the_same_time() -> None:
    base = team(OWNER, EDITOR)
    both = merged(act(base, 0, remove(1)), act(act(base, 1, add(3, OWNER)), 1, Rename("mine")))
    assert roles(both) == {0: "owner", 2: "editor"}
    assert both.label == "photos"


def test_what_a_voided_member_did_is_void_too() -> None:
    base = team(OWNER)
    branch = act(act(base, 1, add(3, OWNER)), 3, add(4, EDITOR))
    assert roles(branch) == {0: "owner", 1: "owner", 3: "owner", 4: "editor"}
    assert roles(merged(branch, act(base, 0, remove(1)))) == {0: "owner"}


def test_what_the_removed_did_before_stands() -> None:
    base = act(team(OWNER), 1, add(3, EDITOR))
    assert roles(act(base, 0, remove(1))) == {0: "owner", 3: "editor"}


def test_removal_wins_over_a_promotion_at_the_same_time() -> None:
    base = team(OWNER, VIEWER)
    both = merged(act(base, 0, remove(2)), act(base, 1, promote(2, OWNER)))
    assert roles(both) == {0: "owner", 1: "owner"}


def test_demotions_at_the_same_time_leave_the_lesser_role_and_promotions_the_greater() -> None:
    base = team(OWNER, EDITOR, VIEWER)
    assert roles(merged(act(base, 0, demote(2, VIEWER)), act(base, 1, demote(2, VAULT))))[2] == "vault"
    assert roles(merged(act(base, 0, promote(3, EDITOR)), act(base, 1, promote(3, OWNER))))[3] == "owner"


@pytest.mark.parametrize("counter", range(6))
def test_the_lesser_role_decides_what_comes_after(counter: int) -> None:
    base = team(OWNER, OWNER)
    both = merged(act(base, 0, demote(2, VIEWER, (0, counter))), act(base, 1, demote(2, EDITOR, (0, counter))))
    assert not both.may_edit(device(2).device_id)
    forged = sign_link(device(2), both.folder, both.heads, add(5, VIEWER)).encoded
    assert 5 not in roles(both.extend([forged]))


def test_mutual_removal_leaves_the_senior() -> None:
    base = team(OWNER)
    both = merged(act(base, 1, remove(0)), act(base, 0, remove(1)))
    assert roles(both) == {0: "owner"}


def test_mutual_removal_through_new_owners_leaves_one_side() -> None:
    base = team(OWNER)
    left = act(act(base, 0, add(3, OWNER)), 3, remove(1))
    right = act(act(base, 1, add(4, OWNER)), 4, remove(0))
    assert roles(merged(left, right)) == roles(merged(right, left)) == {0: "owner", 3: "owner"}


def test_circle_of_three_leaves_an_owner() -> None:
    base = team(OWNER, OWNER)
    views = [act(base, a, remove(b)) for a, b in ((0, 1), (1, 2), (2, 0))]
    assert roles(merged(*views)) == {0: "owner", 2: "owner"}


# ── who may have written what ───────────────────────────────────────────────────────────────────────────────────────
def allowed(membership: Membership, number: int, incarnation: int = 0) -> list[int]:
    who = device(number).device_id
    return [c for c in range(1, 40) if membership.may_write(who, replica(who, incarnation), c)]


def test_cuts_and_floors() -> None:
    membership = team(EDITOR, VIEWER)
    assert allowed(membership, 1) == list(range(1, 40))
    assert allowed(membership, 2) == []
    demoted = act(membership, 0, demote(1, VIEWER, (0, 5), (1, 7)))
    assert allowed(demoted, 1) == [1, 2, 3, 4, 5]
    assert allowed(demoted, 1, 1) == [1, 2, 3, 4, 5, 6, 7]
    assert allowed(demoted, 1, 2) == []
    again = act(demoted, 0, promote(1, EDITOR, floor=20))
    assert again.floor(device(1).device_id) == 20
    assert allowed(again, 1) == [*range(1, 6), *range(21, 40)]
    gone = act(again, 0, remove(1, (0, 30)))
    assert allowed(gone, 1) == [*range(1, 6), *range(21, 31)]
    assert gone.role(device(1).device_id) is None
    assert gone.was_member(device(1).device_id)
    assert not again.was_member(device(1).device_id)
    assert not gone.may_read(device(1).device_id)


def test_whoever_a_record_belongs_to_decides_whether_it_stands() -> None:
    membership = act(team(EDITOR, VIEWER), 0, remove(1, (0, 5)))
    dots = [(number, counter) for number in range(4) for counter in (5, 6)]
    standing = [dot for dot in dots if membership.admits(replica(device(dot[0]).device_id, 0), dot[1])]
    assert standing == [(0, 5), (0, 6), (1, 5)]


def test_a_farewell_proves_the_removal_and_says_nothing_of_what_came_after() -> None:
    base = team(EDITOR, VIEWER)
    gone = act(base, 0, remove(1))
    later = act(act(gone, 0, add(3, EDITOR)), 0, Rename("elsewhere"))
    told = base.extend(later.farewell(device(1).device_id))
    assert told.was_member(device(1).device_id)
    assert told.heads == gone.heads
    assert later.farewell(device(2).device_id) == []


def test_a_later_removal_does_not_widen_an_earlier_cut_but_a_concurrent_one_does() -> None:
    base = team(OWNER, EDITOR)
    narrow = act(base, 0, demote(2, VIEWER, (0, 5)))
    assert allowed(act(narrow, 0, remove(2, (0, 30))), 2) == [1, 2, 3, 4, 5]
    wide = act(base, 1, remove(2, (0, 9)))
    assert allowed(merged(narrow, wide), 2) == list(range(1, 10))


def test_a_device_answers_only_for_its_own_replicas() -> None:
    membership = team(EDITOR)
    assert not membership.may_write(device(1).device_id, replica(device(0).device_id, 0), 1)


def test_vault_stores_and_does_not_read() -> None:
    membership = team(VAULT)
    assert membership.role(device(1).device_id) is VAULT
    assert not membership.may_read(device(1).device_id)
    assert not membership.may_edit(device(1).device_id)


# ── any order, any subset ───────────────────────────────────────────────────────────────────────────────────────────
@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """Links of a folder whose members act on three partly merged views."""
    base = team(OWNER, OWNER, EDITOR)
    views = [base, base, base]
    for _ in range(draw(st.integers(1, 9))):
        at = draw(st.integers(0, 2))
        if draw(st.integers(0, 3)) == 0:
            views[at] = merged(views[at], views[draw(st.integers(0, 2))])
            continue
        author, target = draw(st.integers(0, 5)), draw(st.integers(0, 6))
        role = draw(st.sampled_from([VAULT, VIEWER, EDITOR, OWNER]))
        counter = draw(st.integers(0, 50))
        choices: list[Action] = [
            add(target, role, counter),
            remove(target, (0, counter)),
            demote(target, role, (0, counter)),
            promote(target, role, counter),
            Rename(f"label {counter}"),
        ]
        action = draw(st.sampled_from(choices))
        if views[at].can(device(author).device_id, action):
            views[at] = act(views[at], author, action)
    return merged(*views).encoded_links()


@settings(max_examples=120, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_every_order_of_arrival_gives_the_same_membership(links: list[bytes], rng: random.Random) -> None:
    expected = fold(links)
    assert expected.owners, "an owner always remains"
    shuffled = rng.sample(links, len(links))
    assert state(fold(shuffled)) == state(expected)
    pool, grown = LinkPool(), fold(links[:1])
    while shuffled:
        size = rng.randint(1, 4)
        grown = pool.add(grown, shuffled[:size])
        del shuffled[:size]
    assert len(pool) == 0
    assert state(grown) == state(expected)


@settings(max_examples=60, deadline=None)
@given(histories())
def test_one_by_one_and_all_at_once_agree(links: list[bytes]) -> None:
    grown = fold(links[:1])
    for i, link in enumerate(links[1:], 2):
        grown = grown.extend([link])
        if i % 3 == 0:
            assert state(grown) == state(fold(links[:i]))
    assert state(grown) == state(fold(links))
    again = grown.extend(links)
    assert again is grown


@settings(max_examples=40, deadline=None)
@given(histories(), st.data())
def test_links_after_is_what_somebody_lacks(links: list[bytes], data: st.DataObject) -> None:
    full = fold(links)
    part = fold(links[: data.draw(st.integers(1, len(links)))])
    assert part.extend(full.links_after(part.heads)).heads == full.heads
    assert set(full.links_after(part.heads)).isdisjoint(part.encoded_links())
    assert part.missing(full.heads) == [h for h in full.heads if not part.has(h)]


def test_a_long_chain_grows_cheaply() -> None:
    membership = found()
    for i in range(200):
        membership = act(membership, 0, Rename(f"label {i}"))
    assert membership.label == "label 199"
    assert fold(membership.encoded_links()).label == "label 199"


# ── parked links ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_pool_asks_for_what_is_missing_and_is_bounded() -> None:
    membership = team(VIEWER, VIEWER, VIEWER)
    links = membership.encoded_links()
    pool, known = LinkPool(limit=2), fold(links[:1])
    assert pool.add(known, links[2:]) is known
    assert len(pool) == 2
    assert pool.wanted(known)
    grown = pool.add(known, links[1:])
    assert len(pool) == 0
    assert grown.heads == membership.heads


def test_pool_refuses_other_folders_and_forgets_forged_links() -> None:
    ours, theirs = team(VIEWER, VIEWER), found(1)
    pool = LinkPool()
    with pytest.raises(InputError):
        pool.add(ours, theirs.encoded_links())
    forged = sign_link(device(1), ours.folder, ours.heads, add(5, OWNER)).encoded
    early = fold(ours.encoded_links()[:1])
    assert pool.add(early, [forged]) is early
    assert pool.add(early, ours.encoded_links()).heads == ours.heads
    assert len(pool) == 0


def test_cuts_are_of_the_target() -> None:
    with pytest.raises(InputError):
        make_link(device(0), team(EDITOR), type(remove(1))(device(1).device_id, cuts(0, (0, 1))))
