"""Record signatures: who may have written what, and that nothing signed can be changed."""

from __future__ import annotations

import msgspec
import pytest

from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership import Role, open_batch, sign_batch
from p2psync.model.ids import replica, short_id
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot, VersionVector
from p2psync.ports import Kind

from .helpers import act, demote, device, team


def record(number: int, counter: int, path: bytes = b"a") -> bytes:
    dot = Dot(counter, replica(device(number).device_id, 0))
    version = VersionVector(((dot.replica, counter),))
    return FileRecord(path, Kind.DIRECTORY, False, 0, 0, 0o755, b"", b"", b"", dot, version).encode()  # type: ignore[arg-type]


TEAM = team(Role.EDITOR, Role.VIEWER)


def test_opens_what_was_signed_in_any_part() -> None:
    encoded = [record(1, c, b"dir%d" % c) for c in range(1, 6)]
    batch = sign_batch(device(1), TEAM.folder, 0, encoded)
    opened = open_batch(batch, TEAM, {4: encoded[4], 1: encoded[1]})
    assert [(r.path, data) for r, data in opened] == [(b"dir2", encoded[1]), (b"dir5", encoded[4])]
    assert open_batch(batch, TEAM, {}) == []


def test_viewer_is_refused_by_name() -> None:
    encoded = record(2, 1)
    batch = sign_batch(device(2), TEAM.folder, 0, [encoded])
    with pytest.raises(PermissionDenied, match=short_id(device(2).device_id)):
        open_batch(batch, TEAM, {0: encoded})


def test_records_above_the_cut_are_refused() -> None:
    after = act(TEAM, 0, demote(1, Role.VIEWER, (0, 3)))
    for counter, fine in ((3, True), (4, False)):
        encoded = record(1, counter)
        batch = sign_batch(device(1), TEAM.folder, 0, [encoded])
        if fine:
            assert open_batch(batch, after, {0: encoded})
        else:
            with pytest.raises(PermissionDenied):
                open_batch(batch, after, {0: encoded})


@pytest.mark.parametrize("field", ["folder", "epoch", "ids", "signature", "signer"])
def test_a_changed_batch_is_refused(field: str) -> None:
    encoded = record(1, 1)
    batch = sign_batch(device(1), TEAM.folder, 0, [encoded])
    value = getattr(batch, field)
    changed = value + 1 if field == "epoch" else bytes([value[0] ^ 1]) + value[1:]
    if field == "signer":
        changed = device(0).card.signing_key
    with pytest.raises(AuthenticationError):
        open_batch(msgspec.structs.replace(batch, **{field: changed}), TEAM, {0: encoded})


def test_records_that_were_not_signed_or_are_of_another_device_are_refused() -> None:
    encoded = record(1, 1)
    batch = sign_batch(device(1), TEAM.folder, 0, [encoded])
    for index, data in ((0, record(1, 2)), (1, encoded), (-1, encoded)):
        with pytest.raises(AuthenticationError):
            open_batch(batch, TEAM, {index: data})
    foreign = record(0, 1)
    with pytest.raises(AuthenticationError):
        open_batch(sign_batch(device(1), TEAM.folder, 0, [foreign]), TEAM, {0: foreign})


def test_strangers_and_shapes() -> None:
    encoded = record(5, 1)
    with pytest.raises(PermissionDenied):
        open_batch(sign_batch(device(5), TEAM.folder, 0, [encoded]), TEAM, {0: encoded})
    with pytest.raises(InputError):
        sign_batch(device(1), TEAM.folder, 0, [])
    with pytest.raises(InputError):
        sign_batch(device(1), TEAM.folder, 0, [encoded] * 129)
    batch = sign_batch(device(1), TEAM.folder, 0, [encoded])
    with pytest.raises(PermissionDenied):
        open_batch(msgspec.structs.replace(batch, signer=b"k" * 32), TEAM, {0: encoded})
    for changes in ({"ids": b""}, {"ids": b"x" * 33}, {"signature": b""}, {"signer": b"x"}, {"epoch": -1}):
        with pytest.raises(InputError):
            open_batch(msgspec.structs.replace(batch, **changes), TEAM, {})
