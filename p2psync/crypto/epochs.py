"""The key of a folder's epoch: what names it, the subkeys for each use, and the way from a later key to earlier ones.

An epoch's key is 32 random bytes that every reader of the folder has and nobody else. It is never used itself: each use
has a subkey of its own. Earlier keys are sealed under later ones (a *ladder*), never the other way round, so a new
reader can read what is old and a former one cannot read what is new.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2psync.crypto.kdf import derive
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.hashing import labelled

EPOCH_KEY_SIZE = 32
KEY_ID_SIZE = 16
RUNG_SIZE = EPOCH_KEY_SIZE + 16
SUITE = 1
"""HKDF-SHA256, keyed BLAKE3, AES-256-GCM. Any other suite is refused: there is no negotiation downwards."""
NONCE = bytes(12)
"""Of every sealing here: each key is used for one plaintext only."""
FAILED = "sealed bytes could not be opened"
"""The one thing that is said of anything that does not open, whatever the reason."""

_RUNG_LABEL = b"p2psync/1 epoch rung"

Rungs = Mapping[bytes, Iterable[tuple[bytes, bytes]]]
"""Key id of an epoch → (key id of an earlier one, its key sealed under the epoch's)."""


class EpochKey:
    """The key of one epoch of one folder."""

    def __init__(self, folder: bytes, secret: bytes) -> None:
        if len(secret) != EPOCH_KEY_SIZE:
            raise InputError(f"the key of an epoch has {EPOCH_KEY_SIZE} bytes, not {len(secret)}")
        self.folder = folder
        self.secret = secret
        self.id = labelled(b"p2psync epoch key", folder, secret)[:KEY_ID_SIZE]
        """16 bytes that commit to folder and key and give neither away."""

    def __repr__(self) -> str:
        return f"EpochKey({self.id.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EpochKey) and hmac.compare_digest(self.id, other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def subkey(self, use: bytes) -> bytes:
        """The 32-byte key for one use, which the label names."""
        return derive(self.secret, b"p2psync/1 epoch " + use, self.folder)

    @cached_property
    def chunk_id_key(self) -> bytes:
        """Keys the names of chunks at a store."""
        return self.subkey(b"chunk id")

    @cached_property
    def chunk_key(self) -> bytes:
        """The keys of chunks are derived from it."""
        return self.subkey(b"chunk")

    @cached_property
    def ref_id_key(self) -> bytes:
        """Keys the names of references."""
        return self.subkey(b"ref id")

    @cached_property
    def body_key(self) -> bytes:
        """The keys of mailbox entries are derived from it."""
        return self.subkey(b"body")

    @cached_property
    def ladder_key(self) -> bytes:
        """The keys of rungs are derived from it."""
        return self.subkey(b"ladder")

    # ── the ladder ──────────────────────────────────────────────────────────────────────────────────────────────────
    def seal_rung(self, older: EpochKey) -> tuple[bytes, bytes]:
        """(id of an earlier key, that key sealed under this one): a rung of this epoch's ladder."""
        cipher = AESGCM(self._rung_key(older.id))
        return older.id, cipher.encrypt(NONCE, older.secret, self._rung_context(older.id))

    def open_rung(self, older_id: bytes, sealed: bytes) -> EpochKey:
        """The earlier key in a rung. AuthenticationError unless it is the one of that id."""
        try:
            secret = AESGCM(self._rung_key(older_id)).decrypt(NONCE, sealed, self._rung_context(older_id))
        except (InvalidTag, ValueError):
            raise AuthenticationError(FAILED) from None
        older = EpochKey(self.folder, secret)
        if not hmac.compare_digest(older.id, older_id):
            raise AuthenticationError(FAILED)
        return older

    def _rung_key(self, older_id: bytes) -> bytes:
        return derive(self.ladder_key, _RUNG_LABEL, older_id)

    def _rung_context(self, older_id: bytes) -> bytes:
        return b"%b\0%c%b%b%b" % (_RUNG_LABEL, SUITE, self.folder, self.id, older_id)


class KeyRing:
    """The epoch keys of one folder that a device holds: an immutable value."""

    def __init__(self, folder: bytes, keys: Iterable[EpochKey] = ()) -> None:
        self.folder = folder
        self._keys = {key.id: key for key in keys}
        if any(key.folder != folder for key in self._keys.values()):
            raise InputError("a key ring holds the keys of one folder")

    def __iter__(self) -> Iterator[EpochKey]:
        """The keys in the order of their ids."""
        return iter(sorted(self._keys.values(), key=lambda key: key.id))

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key_id: bytes) -> bool:
        return key_id in self._keys

    def get(self, key_id: bytes) -> EpochKey | None:
        """The key of that id, None when this ring has not got it."""
        return self._keys.get(key_id)

    def climb(self, rungs: Rungs, *keys: EpochKey) -> KeyRing:
        """This ring with `keys`, and with every earlier key that its keys open. Rungs that do not open are skipped."""
        found = {key.id: key for key in (*self, *keys)}
        ready = list(found.values())
        for key in ready:
            for older_id, sealed in rungs.get(key.id, ()):
                if older_id in found:
                    continue
                try:
                    found[older_id] = key.open_rung(older_id, sealed)
                except AuthenticationError:
                    continue
                ready.append(found[older_id])
        return KeyRing(self.folder, found.values())
