"""The chain of an account: nothing in it can be changed, left out, reordered or forked unseen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, InputError
from p2psync.membership import sigchain
from p2psync.membership.sigchain import (
    MAX_CHAIN_LINK,
    AccountChain,
    Add,
    ChainLink,
    DeviceKind,
    Equivocation,
    ForkedChain,
    Genesis,
    HeadVerdict,
    Remove,
    begin_account,
    decode_chain_link,
    fold_chain,
)

from .helpers import device

REFUSED = (InputError, AuthenticationError)


def add(number: int, kind: DeviceKind = DeviceKind.DEVICE) -> Add:
    return Add(device(number).card.encode(), kind)


def remove(number: int) -> Remove:
    return Remove(device(number).device_id)


def act(chain: AccountChain, author: int, action: Add | Remove) -> AccountChain:
    return chain.extend([chain.sign(device(author), action).encoded])


def begun() -> AccountChain:
    return begin_account(device(0), b"r" * 16)


def numbers(chain: AccountChain) -> list[int]:
    known = {device(n).device_id: n for n in range(12)}
    return [known[d] for d in chain.devices]


CHAIN = act(act(act(act(begun(), 0, add(1)), 1, add(2, DeviceKind.RECOVERY)), 2, remove(0)), 2, add(3))


def test_round_trip() -> None:
    folded = fold_chain(CHAIN.encoded_links())
    assert folded == CHAIN
    assert numbers(folded) == [1, 2, 3]
    assert folded.devices[device(2).device_id].kind is DeviceKind.RECOVERY
    assert folded.devices[device(3).device_id].since == folded.head.seq == 4
    assert folded.account_id == begun().head.hash[:16]
    assert fold_chain(folded.encoded_links()[:2]).extend(folded.encoded_links()) == CHAIN


def test_golden_links() -> None:
    alice, bob = DeviceKeys(bytes(range(64))), DeviceKeys(bytes(range(64, 128)))
    first = begin_account(alice, bytes(range(16)))
    second = first.sign(alice, Add(bob.card.encode(), DeviceKind.DEVICE))
    third = first.extend([second.encoded]).sign(bob, Remove(alice.device_id))
    assert [link.hash.hex() for link in (first.head, second, third)] == [
        "13253e500b3670a681315a156a4f35e256e89884f28521ca27042dff34cae88a",
        "9d6ddacc2631ca7c1a3638884ed9e34bd4c46c4ade2c8c2943bd842f8bc80554",
        "5dfe1985804f6e997293e6f07d869363b86b9a1c9ac2a681a9d53a8dc0b3171f",
    ]
    assert third.encoded.hex() == (
        "9701c41013253e500b3670a681315a156a4f35e202c4209d6ddacc2631ca7c1a3638884ed9e34bd4c46c4ade2c8c2943bd84"
        "2f8bc80554c4202543b92ff1095511476adc8369db6ddc933665a11978dda1404ee1066ca9559d9202c42056475aa7546347"
        "4c0285df5dbf2bcab73da651358839e9b77481b2eab107708cc4407904d324212399c0c68fcdf8b697eb2dde34701b8984bf"
        "9f684bdfc572801390f7771d33568cc17ddc79d03d3ba28a33efa32d246f34f25c81b5c46e82ae9f08"
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused(data: st.DataObject) -> None:
    links = CHAIN.encoded_links()
    at = data.draw(st.integers(0, len(links) - 1))
    link = bytearray(links[at])
    bit = data.draw(st.integers(0, len(link) * 8 - 1))
    link[bit // 8] ^= 1 << bit % 8
    with pytest.raises(REFUSED):
        fold_chain([*links[:at], bytes(link), *links[at + 1 :]])


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 5))
def test_links_cannot_be_reordered_or_left_out(order: list[int], count: int) -> None:
    links = CHAIN.encoded_links()
    chosen = order[:count]
    if chosen == list(range(count)):
        assert fold_chain(links[:count]).head.seq == count - 1
        return
    with pytest.raises(REFUSED):
        fold_chain([links[at] for at in chosen])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=80).map(lambda tail: b"\x97\x01" + tail))
def test_only_our_errors_leave_the_decoder(data: bytes) -> None:
    with pytest.raises(REFUSED):
        decode_chain_link(data)


def test_size_and_nesting_are_bounded() -> None:
    with pytest.raises(InputError):
        decode_chain_link(b"\x91" * MAX_CHAIN_LINK)
    with pytest.raises(InputError, match="512"):
        decode_chain_link(b"\x91" * (MAX_CHAIN_LINK + 1))
    with pytest.raises(InputError):
        fold_chain([])


def test_only_devices_in_the_account_sign() -> None:
    for author in (0, 4):
        with pytest.raises(AuthenticationError):
            CHAIN.sign(device(author), add(5))
        forged = sigchain._sign(device(author), CHAIN.account_id, 5, CHAIN.head.hash, add(5))
        with pytest.raises(AuthenticationError):
            CHAIN.extend([forged.encoded])


def test_a_signature_in_somebody_elses_name_is_refused() -> None:
    link = CHAIN.sign(device(1), add(5))
    signature = device(4).sign(sigchain.CHAIN_LABEL, sigchain._signed_bytes(link))
    with pytest.raises(AuthenticationError):
        CHAIN.extend([replace(link, signature=signature).encoded])


def test_the_first_link_is_signed_too() -> None:
    """Its hash names the account, so no later link would show it."""
    with pytest.raises(AuthenticationError):
        fold_chain([replace(begun().head, signature=bytes(64)).encoded])


def test_what_would_have_no_effect_is_refused() -> None:
    for action in (add(1), remove(0), remove(7)):
        with pytest.raises(InputError):
            CHAIN.sign(device(1), action)
    with pytest.raises(InputError, match="last device"):
        begun().sign(device(0), remove(0))
    again = sigchain._sign(device(1), b"", 0, b"", Genesis(device(1).card.encode(), b"r" * 16))
    with pytest.raises(InputError, match="another account"):
        CHAIN.extend([again.encoded])


def test_a_device_leaves_and_comes_back() -> None:
    chain = act(act(CHAIN, 3, remove(3)), 1, add(3))
    assert numbers(chain) == [1, 2, 3]
    assert chain.devices[device(3).device_id].since == 6


def test_a_card_is_proved() -> None:
    mixed = replace(device(5).card, binding=device(6).card.binding)
    for author, action in (
        (1, Add(mixed.encode(), DeviceKind.DEVICE)),
        (1, Genesis(device(2).card.encode(), b"r" * 16)),
    ):
        with pytest.raises(AuthenticationError):
            sigchain._sign(
                device(author), b"" if isinstance(action, Genesis) else CHAIN.account_id, *place(action), action
            )


def place(action: Add | Genesis) -> tuple[int, bytes]:
    return (0, b"") if isinstance(action, Genesis) else (5, CHAIN.head.hash)


def test_devices_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigchain, "MAX_DEVICES", 3)
    with pytest.raises(InputError, match="3 devices"):
        CHAIN.sign(device(1), add(5))


def test_a_chain_that_was_rolled_back_lacks_the_head_that_others_know() -> None:
    older = fold_chain(CHAIN.encoded_links()[:3])
    assert judge(CHAIN, older) is HeadVerdict.KNOWN
    assert judge(older, CHAIN) is HeadVerdict.AHEAD


def judge(chain: AccountChain, other: AccountChain) -> HeadVerdict:
    """What the other one's head says about a chain."""
    return chain.judge_head(other.head.seq, other.head.hash)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_two_that_tell_each_other_their_heads_notice_every_difference(common: int, left: int, right: int) -> None:
    """Whoever is shown less hears that there is more; where two were shown different links, one of them proves it."""
    base = fold_chain(CHAIN.encoded_links()[:common])
    author = 0 if common < 4 else 2
    one, other = base, base
    for number in range(left):
        one = act(one, author, add(4 + number))
    for number in range(right):
        other = act(other, author, add(8 + number))
    verdicts = judge(one, other), judge(other, one)
    if left and right:
        assert HeadVerdict.FORKED in verdicts
        assert HeadVerdict.KNOWN not in verdicts
    else:
        lesser, greater = sorted((one, other), key=lambda chain: len(chain.links))
        assert judge(greater, lesser) is HeadVerdict.KNOWN
        assert judge(lesser, greater) is (HeadVerdict.AHEAD if left or right else HeadVerdict.KNOWN)


# ── forks ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def fork(author: int, number: int) -> ChainLink:
    return fold_chain(CHAIN.encoded_links()[:4]).sign(device(author), add(number))


@pytest.mark.parametrize("author", [1, 2])
def test_a_fork_is_proved_to_anybody(author: int) -> None:
    other = fork(author, 7)
    with pytest.raises(ForkedChain) as caught:
        CHAIN.extend([other.encoded])
    proof = caught.value.proof
    assert {proof.first, proof.second} == {CHAIN.links[4], other}
    proof.verify(CHAIN)
    proof.verify(fold_chain(CHAIN.encoded_links()[:4]))
    with pytest.raises(ForkedChain):
        fold_chain([*CHAIN.encoded_links()[:4], other.encoded, CHAIN.encoded_links()[4]])


def test_what_a_stranger_signs_is_no_proof() -> None:
    """A relay cannot accuse the account's devices of what it made up."""
    for author in (0, 7):
        other = sigchain._sign(device(author), CHAIN.account_id, 4, CHAIN.links[3].hash, add(7))
        with pytest.raises(AuthenticationError) as caught:
            CHAIN.extend([other.encoded])
        assert not isinstance(caught.value, ForkedChain)
        with pytest.raises(AuthenticationError):
            Equivocation(CHAIN.links[4], other).verify(CHAIN)


def test_a_proof_is_about_one_place_of_one_chain() -> None:
    elsewhere = begin_account(device(0), b"s" * 16)
    for first, second, chain in (
        (CHAIN.links[4], CHAIN.links[4], CHAIN),
        (CHAIN.links[4], CHAIN.links[3], CHAIN),
        (CHAIN.links[4], fork(1, 7), elsewhere),
        (CHAIN.links[4], fork(1, 7), fold_chain(CHAIN.encoded_links()[:3])),
        (CHAIN.links[0], elsewhere.links[0], CHAIN),
        (CHAIN.links[4], replace(fork(1, 7), signature=bytes(64)), CHAIN),
    ):
        with pytest.raises(AuthenticationError):
            Equivocation(first, second).verify(chain)


def test_a_chain_that_left_ours_earlier_is_refused_without_a_proof() -> None:
    branch = fold_chain(CHAIN.encoded_links()[:3])
    branch = act(act(act(branch, 1, add(7)), 1, add(8)), 1, add(9))
    for link in branch.links[4:]:
        with pytest.raises(AuthenticationError, match="another chain") as caught:
            CHAIN.extend([link.encoded])
        assert not isinstance(caught.value, ForkedChain)
    with pytest.raises(ForkedChain):
        CHAIN.extend(branch.encoded_links())
