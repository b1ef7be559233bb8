"""Grants: the key of an epoch reaches the readers it was given to, and nothing else gets through."""

from __future__ import annotations

from dataclasses import replace as replaced

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.crypto import hpke
from p2psync.crypto.epochs import FAILED, EpochKey, KeyRing
from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership import Grant, Membership, Role, decode_grant, make_epoch, make_grant, open_grant
from p2psync.membership.grants import GRANT_LABEL, MAX_GRANT

from .helpers import act, demote, device, found, remove, team

EDITOR, OWNER, VIEWER, VAULT = Role.EDITOR, Role.OWNER, Role.VIEWER, Role.VAULT
SEED = bytes(range(32))


def epoch(membership: Membership, secret: bytes = b"k" * 32) -> tuple[Membership, EpochKey]:
    link, key = make_epoch(device(0), membership, KeyRing(membership.folder), secret)
    return membership.extend([link]), key


TEAM, KEY = epoch(team(EDITOR, VIEWER, VAULT))
GRANT = make_grant(device(1), TEAM, KEY, device(2).card, SEED)


def signed(keys: DeviceKeys, grant: Grant) -> Grant:
    unsigned = msgspec.structs.replace(grant, signer=keys.card.signing_key)
    return msgspec.structs.replace(unsigned, signature=keys.sign(GRANT_LABEL, unsigned.signed_bytes()))


def refused(grant: Grant, membership: Membership = TEAM, keys: DeviceKeys = device(2)) -> None:  # noqa: B008
    with pytest.raises(AuthenticationError) as error:
        open_grant(keys, membership, grant)
    assert str(error.value) == FAILED
    assert error.value.__cause__ is None


def test_a_reader_gets_the_key() -> None:
    for granter in (0, 1):
        for reader in (0, 1, 2):
            grant = make_grant(device(granter), TEAM, KEY, device(reader).card, SEED)
            opened = open_grant(device(reader), TEAM, decode_grant(grant.encode()))
            assert (opened.id, opened.secret) == (KEY.id, KEY.secret)
    assert len(GRANT.encode()) == 254


def test_who_may_not_read_is_given_none_and_who_may_not_write_gives_none() -> None:
    for reader in (3, 4):
        with pytest.raises(PermissionDenied, match="may not read"):
            make_grant(device(0), TEAM, KEY, device(reader).card, SEED)
    for granter in (2, 3, 4):
        with pytest.raises(PermissionDenied, match="owners and editors"):
            make_grant(device(granter), TEAM, KEY, device(1).card, SEED)
        refused(signed(device(granter), GRANT))


def test_a_removed_member_is_given_none() -> None:
    with pytest.raises(PermissionDenied):
        make_grant(device(0), act(TEAM, 0, remove(2)), KEY, device(2).card, SEED)


def test_what_an_editor_granted_counts_after_it_lost_that_right() -> None:
    for loss in (remove(1), demote(1, VIEWER)):
        assert open_grant(device(2), act(TEAM, 0, loss), GRANT) == KEY


def test_keys_are_of_an_epoch_of_the_folder() -> None:
    for key in (EpochKey(TEAM.folder, b"x" * 32), EpochKey(b"f" * 16, KEY.secret)):
        with pytest.raises(InputError, match="no epoch"):
            make_grant(device(0), TEAM, key, device(2).card, SEED)


def test_a_forged_card_gets_no_key() -> None:
    """The sealing key somebody puts into a member's card is not taken for that member's."""
    forged = replaced(device(2).card, sealing_key=device(4).card.sealing_key)
    with pytest.raises(AuthenticationError):
        make_grant(device(0), TEAM, KEY, forged, SEED)


def test_a_grant_with_another_key_than_the_link_commits_to_is_refused() -> None:
    info = b"p2psync/1 grant\0" + TEAM.folder + KEY.id + device(2).device_id
    sealed = hpke.seal_to(device(2).card.sealing_key, info, b"x" * 32, SEED)
    refused(signed(device(1), msgspec.structs.replace(GRANT, sealed=sealed)))
    short = hpke.seal_to(device(2).card.sealing_key, info, b"x" * 31, SEED)
    refused(signed(device(1), msgspec.structs.replace(GRANT, sealed=short)))


def test_a_grant_for_an_epoch_nobody_has_signed_is_refused() -> None:
    other = epoch(team(EDITOR, VIEWER, VAULT), b"y" * 32)[0]
    refused(GRANT, other)
    refused(GRANT, found())


def test_a_grant_is_for_one_device_folder_and_epoch() -> None:
    refused(GRANT, keys=device(0))
    later, key = epoch(TEAM, b"z" * 32)
    for changed in (
        {"recipient": device(0).device_id},
        {"folder": b"f" * 16},
        {"key_id": key.id},
        {"sealed": bytes(80)},
    ):
        grant = msgspec.structs.replace(GRANT, **changed)
        for keys in (device(0), device(2)):
            refused(grant, later, keys)
            refused(signed(device(1), grant), later, keys)
    refused(msgspec.structs.replace(GRANT, signer=device(0).card.signing_key))
    refused(msgspec.structs.replace(GRANT, signature=bytes(64)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_flipped_bit_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(GRANT.encode())
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises((InputError, AuthenticationError)):
        open_grant(device(2), TEAM, decode_grant(bytes(encoded)))


def test_cut_and_lengthened_grants_are_refused() -> None:
    encoded = GRANT.encode()
    for data in (*(encoded[:i] for i in range(len(encoded))), encoded + b"\0", b"\xc0" * (MAX_GRANT + 1)):
        with pytest.raises(InputError):
            decode_grant(data)
    for changed in ({"format": 2}, {"folder": b"f" * 15}, {"key_id": b"k" * 17}, {"sealed": b"s" * 79}):
        with pytest.raises(InputError):
            decode_grant(msgspec.structs.replace(GRANT, **changed).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: b"\x97\x01" + tail))
def test_only_our_errors_leave_the_decoder(data: bytes) -> None:
    with pytest.raises(InputError):
        decode_grant(data)
