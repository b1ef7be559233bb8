"""Records, batches and links that are validly signed, and a world in which every signature is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import cast
from unittest import mock

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership import Role, Unknown, open_batch, sign_batch
from p2psync.membership.links import Epoch, Rename, sign_link
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import replica
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot
from tests.index.factories import directory_record, file_record, symlink_record, tombstone
from tests.membership.helpers import act, add, demote, device, found, promote, remove

AUTHOR = device(0)


@contextmanager
def believing() -> Iterator[None]:
    """Every signature is valid, so that what stands behind the check is reached by what was never signed.

    The check itself is attacked without this, by the same bytes.
    """

    def believe(*_: bytes) -> None:
        pass

    with (
        mock.patch("p2psync.crypto.identity.verify_signature", believe),
        mock.patch("p2psync.membership.links.verify_signature", believe),
        mock.patch("p2psync.membership.batches.verify_signature", believe),
        mock.patch("p2psync.membership.grants.verify_signature", believe),
        mock.patch("p2psync.protocol.mailbox.verify_signature", believe),
    ):
        yield


# ── arithmetic that was done before ─────────────────────────────────────────────────────────────────────────────────
_REMEMBERED = 1 << 12


class _Agreement:
    """An X25519 key that computes each of its secrets once."""

    def __init__(self, private: X25519PrivateKey) -> None:
        public = private.public_key()
        self.public_key = lambda: public
        secret = lru_cache(_REMEMBERED)(lambda other: private.exchange(X25519PublicKey.from_public_bytes(other)))
        self.exchange = lambda other: secret(other.public_bytes_raw())


class _Verifier:
    """An Ed25519 key that checks each signature once."""

    def __init__(self, public_key: bytes) -> None:
        self._public = Ed25519PublicKey.from_public_bytes(public_key)
        self._holds = lru_cache(_REMEMBERED)(self._check)

    def verify(self, signature: bytes, message: bytes) -> None:
        if not self._holds(signature, message):
            raise InvalidSignature

    def _check(self, signature: bytes, message: bytes) -> bool:
        try:
            self._public.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def remembering_keys(seed: bytes) -> DeviceKeys:
    """A device's keys whose agreement key remembers."""
    keys = DeviceKeys(seed)
    keys.agreement = cast("X25519PrivateKey", _Agreement(keys.agreement))
    return keys


@contextmanager
def remembering() -> Iterator[None]:
    """Nothing is signed or agreed differently, but the arithmetic is done once for the same numbers.

    Most of an input is what it was in others, so that this is nearly all of it.
    """
    agreement = lru_cache(64)(lambda seed: _Agreement(X25519PrivateKey.from_private_bytes(seed)))
    with (
        mock.patch("p2psync.crypto.noise.X25519PrivateKey", SimpleNamespace(from_private_bytes=agreement)),
        mock.patch(
            "p2psync.crypto.identity.Ed25519PublicKey", SimpleNamespace(from_public_bytes=lru_cache(64)(_Verifier))
        ),
    ):
        yield


@contextmanager
def believing_and_remembering() -> Iterator[None]:
    """Both."""
    with believing(), remembering():
        yield


def _dot(counter: int) -> Dot:
    return Dot(counter, replica(AUTHOR.device_id, 1))


def _records() -> list[FileRecord]:
    file = file_record(b"a/file", [b"one", b"two"], _dot(1))
    return [
        file,
        directory_record(b"a", _dot(2)),
        symlink_record("a/link é".encode(), b"../target", _dot(3)),
        tombstone(file, _dot(4)),
        file_record(b"large", [bytes([n]) for n in range(9)], _dot(5)),
        file_record(b"empty", [], _dot(6)),
    ]


RECORDS = [record.encode() for record in _records()]
TEAM = act(act(act(found(), 0, add(1, Role.EDITOR)), 0, add(2, Role.VIEWER, 5)), 1, add(3, Role.EDITOR))
FOLDER = TEAM.folder
BATCH = sign_batch(AUTHOR, FOLDER, 0, RECORDS)
assert len(open_batch(BATCH, TEAM, dict(enumerate(RECORDS)))) == len(RECORDS)

HISTORY = act(act(act(TEAM, 0, demote(1, Role.VIEWER, (1, 9))), 0, promote(1, Role.OWNER, 10)), 1, remove(3, (0, 3)))
LINKS = [
    *act(act(HISTORY, 0, Rename("pictures")), 0, Epoch(1, b"k" * 16, [(b"o" * 16, b"s" * 48)])).encoded_links(),
    sign_link(AUTHOR, FOLDER, HISTORY.heads, Unknown(9, b"\x92\x09\xa5later")).encoded,
]
LONG_MANIFEST = Manifest(
    Algorithm.BLAKE3,
    Chunker.FIXED,
    9 * 100 + 7,
    b"".join(digest(Algorithm.BLAKE3, bytes([n])) for n in range(10)),
    (*[100] * 9, 7),
)
