"""Membership links: what is forged, cut or malformed is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import AuthenticationError, InputError
from p2psync.membership import Add, Epoch, Genesis, Rename, Role, create_folder, decode_link, fold, make_link
from p2psync.membership.links import MAX_LINK, sign_link
from p2psync.model.hashing import Algorithm
from p2psync.model.manifest import Chunker

from .helpers import act, add, device, found, remove, team

REFUSED = (InputError, AuthenticationError)
CHAIN = act(act(team(Role.EDITOR, Role.VIEWER), 0, remove(1, (0, 3))), 0, Epoch(1, b"k" * 16, [(b"o" * 16, b"s" * 48)]))


def test_round_trip() -> None:
    for encoded in CHAIN.encoded_links():
        assert decode_link(encoded).encoded == encoded
    assert CHAIN.epoch == 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused(data: st.DataObject) -> None:
    links = CHAIN.encoded_links()
    at = data.draw(st.integers(0, len(links) - 1))
    link = bytearray(links[at])
    bit = data.draw(st.integers(0, len(link) * 8 - 1))
    link[bit // 8] ^= 1 << bit % 8
    with pytest.raises(REFUSED):
        fold([*links[:at], bytes(link), *links[at + 1 :]])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_truncated_and_extended_links_are_refused(data: st.DataObject) -> None:
    link = data.draw(st.sampled_from(CHAIN.encoded_links()))
    with pytest.raises(REFUSED):
        decode_link(link[: data.draw(st.integers(0, len(link) - 1))])
    with pytest.raises(REFUSED):
        decode_link(link + data.draw(st.binary(min_size=1, max_size=4)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=80).map(lambda tail: b"\x96\x01" + tail))
def test_only_our_errors_leave_the_decoder(data: bytes) -> None:
    with pytest.raises(REFUSED):
        decode_link(data)


def test_nesting_and_size_are_bounded() -> None:
    with pytest.raises(InputError):
        decode_link(b"\x91" * MAX_LINK)
    with pytest.raises(InputError, match="16384"):
        decode_link(b"\x91" * (MAX_LINK + 1))


def test_links_of_another_folder_are_refused() -> None:
    other = create_folder(device(0), "other", Algorithm.SHA256, b"s" * 16)
    link = sign_link(device(0), other.folder, other.heads, Rename("x")).encoded
    with pytest.raises(InputError, match="another folder"):
        found().extend([link])


def test_a_second_genesis_is_refused() -> None:
    genesis = sign_link(device(0), b"", (), decode_link(CHAIN.encoded_links()[0]).action)
    assert genesis.encoded == CHAIN.encoded_links()[0]
    other = create_folder(device(0), "other", Algorithm.SHA256, b"s" * 16).encoded_links()
    with pytest.raises(InputError, match="one genesis"):
        CHAIN.extend(other)


def test_a_folder_is_founded_by_its_signer() -> None:
    genesis = Genesis(device(1).device_id, "", "stolen", Algorithm.BLAKE3, Chunker.FIXED, b"r" * 16)
    with pytest.raises(AuthenticationError):
        sign_link(device(0), b"", (), genesis)


def test_a_card_is_optional_and_kept_from_whichever_link_brings_it() -> None:
    folder, card = found(), device(1).card
    assert folder.members[device(0).device_id].card == device(0).card
    without = act(folder, 0, add(1, Role.VIEWER))
    assert without.members[device(1).device_id].card is None
    other = make_link(device(0), folder, Add(device(1).device_id, Role.VIEWER, card=card.encode()))
    assert without.extend([other]).members[device(1).device_id].card == card
    assert folder.extend([other]).extend(without.encoded_links()).members[device(1).device_id].card == card


@pytest.mark.parametrize("at", [0, 1, 40, 100])
def test_a_damaged_card_is_refused(at: int) -> None:
    card = bytearray(device(1).card.encode())
    card[at] ^= 1
    with pytest.raises(AuthenticationError):
        sign_link(device(0), found().folder, found().heads, Add(device(1).device_id, Role.VIEWER, "", card=bytes(card)))


def test_another_devices_card_is_refused() -> None:
    action = Add(device(1).device_id, Role.VIEWER, card=device(2).card.encode())
    with pytest.raises(AuthenticationError, match="another device's card"):
        sign_link(device(0), found().folder, found().heads, action)


@pytest.mark.parametrize("named", [b"", b"d" * 31, device(1).card.encode()])
def test_members_are_named_by_a_whole_device_id(named: bytes) -> None:
    with pytest.raises(InputError, match="malformed device"):
        sign_link(device(0), found().folder, found().heads, Add(named, Role.VIEWER))


def test_a_link_by_somebody_else_in_a_members_name_is_refused() -> None:
    """The key in a link decides who signed: a thief's key makes a stranger, a member's key needs its signature."""
    forged = sign_link(device(7), CHAIN.folder, CHAIN.heads, Rename("x"))
    for signer in (device(0).card.signing_key, b"k" * 32, bytes(32)):
        with pytest.raises(AuthenticationError):
            CHAIN.extend([replace(forged, signer=signer).encoded])
    with pytest.raises(InputError, match="malformed signer"):
        decode_link(replace(forged, signer=device(0).card.encode()).encoded)


@pytest.mark.parametrize("text", ["", "a" * 256, "ä" * 128, "line\nbreak", "\x1b[31m", "\udcff"])
def test_labels_are_short_printable_text(text: str) -> None:
    with pytest.raises(InputError):
        create_folder(device(0), text, Algorithm.BLAKE3, b"r" * 16)


def test_missing_predecessors_are_refused() -> None:
    links = CHAIN.encoded_links()
    with pytest.raises(InputError, match="unknown predecessor"):
        fold([*links[:1], *links[2:]])
    with pytest.raises(InputError, match="genesis"):
        fold([])


def test_a_stranger_cannot_sign() -> None:
    link = sign_link(device(7), CHAIN.folder, CHAIN.heads, Rename("x")).encoded
    with pytest.raises(AuthenticationError):
        CHAIN.extend([link])
