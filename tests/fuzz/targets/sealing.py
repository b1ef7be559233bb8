"""What a relay hands out: grants, ladders, sealed chunks and bodies, by who lacks the key and by who has it."""

from __future__ import annotations

import msgspec

from p2psync.crypto import hpke, seal
from p2psync.crypto.epochs import NONCE, SUITE, EpochKey, KeyRing
from p2psync.crypto.seal import ChunkKind, ChunkName
from p2psync.errors import AuthenticationError, InputError
from p2psync.membership import decode_grant, make_epoch, make_grant, open_grant
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import content_root
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import AUTHOR, FOLDER, LONG_MANIFEST, TEAM, believing
from tests.membership.helpers import device

READER = device(2)
OLDER, KEY = EpochKey(FOLDER, b"o" * 32), EpochKey(FOLDER, b"k" * 32)
MEMBERSHIP = TEAM.extend([make_epoch(AUTHOR, TEAM, KeyRing(FOLDER), KEY.secret)[0]])
GRANT = make_grant(AUTHOR, MEMBERSHIP, KEY, READER.card, b"e" * 32)
CONTEXT = b"header"
_RUNGS = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_grant(data: bytes) -> None:
    """A grant from anywhere: it brings the epoch's key or none."""
    grant = decode_grant(data)
    assert grant.encode() == data
    assert open_grant(READER, MEMBERSHIP, grant).secret == KEY.secret


def feed_granted(data: bytes) -> None:
    """What an editor has signed and sealed in due form to a reader in place of the key."""
    info = b"p2psync/1 grant\0" + FOLDER + KEY.id + READER.device_id
    sealed = hpke.seal_to(READER.card.sealing_key, info, data, b"e" * 32)
    assert open_grant(READER, MEMBERSHIP, msgspec.structs.replace(GRANT, sealed=sealed)).secret == data == KEY.secret


def feed_ladder(data: bytes) -> None:
    """The rungs of an epoch, and one that is sealed in due form over another key."""
    try:
        rungs = _RUNGS.decode(data)
    except (msgspec.MsgspecError, ValueError):
        rungs = [(OLDER.id, data)]
    liar = EpochKey(FOLDER, data[:32].ljust(32, b"\0"))
    liar.id = OLDER.id
    forged = KEY.seal_rung(liar)
    ring = KeyRing(FOLDER, [KEY]).climb({KEY.id: [*rungs, forged], OLDER.id: rungs})
    assert set(ring) <= {KEY, OLDER}
    assert all(key.secret in (KEY.secret, OLDER.secret) for key in ring)


# ── chunks and bodies ───────────────────────────────────────────────────────────────────────────────────────────────
_MANIFEST = LONG_MANIFEST.encode()
CONTENTS = [
    (ChunkName(ChunkKind.CONTENT, digest(Algorithm.SHA256, b"content" * 20), Algorithm.SHA256), b"content" * 20),
    (ChunkName(ChunkKind.MANIFEST, content_root(_MANIFEST)), _MANIFEST),
    (ChunkName(ChunkKind.SNAPSHOT, seal.snapshot_hash(b"")), b""),
]


def _chosen(data: bytes) -> tuple[ChunkName, bytes]:
    return CONTENTS[data[0] % len(CONTENTS) if data else 0]


def feed_sealed_chunk(data: bytes) -> None:
    """A chunk as a store returns it; the first byte chooses what was asked for."""
    name, content = _chosen(data)
    assert seal.open_chunk(KEY, name, data[1:]) == content
    assert data[1:] == seal.seal_chunk(KEY, name, content)


def feed_chunk_inside(data: bytes) -> None:
    """A chunk by somebody who has the key: the seal is right, content, padding and length are anything."""
    name, content = _chosen(data)
    identity = seal.chunk_id(KEY, name)
    cipher, context = seal._chunk_cipher(KEY, identity), seal._chunk_context(KEY, name, identity)
    assert seal.open_chunk(KEY, name, bytes((SUITE,)) + cipher.encrypt(NONCE, data[1:], context)) == content


def feed_sealed_body(data: bytes) -> None:
    """A body as a relay returns it."""
    assert seal.open_body(KEY, CONTEXT, data) == b"body" * 30
    assert data == _BODY


def feed_body_inside(data: bytes) -> None:
    """A body by somebody who has the key: content, padding and length are anything."""
    salt = bytes(seal.SALT_SIZE)
    sealed = seal._body_cipher(KEY, salt).encrypt(NONCE, data, seal._body_context(KEY, CONTEXT))
    content = seal.open_body(KEY, CONTEXT, bytes((SUITE,)) + salt + sealed)
    assert seal.seal_body(KEY, CONTEXT, content, salt)[1 + len(salt) :] == sealed


_BODY = seal.seal_body(KEY, CONTEXT, b"body" * 30, b"s" * 32)


def _inside(content: bytes) -> bytes:
    return content.ljust(seal.padded(len(content)), b"\0") + len(content).to_bytes(4, "big")


def _chunk_seeds() -> list[bytes]:
    return [bytes((i,)) + seal.seal_chunk(KEY, name, content) for i, (name, content) in enumerate(CONTENTS)]


_DUE = (AuthenticationError,)

TARGETS = (
    Target("grant", feed_grant, (*_DUE, InputError), lambda: [GRANT.encode()], "msgpack"),
    Target("grant-believed", feed_grant, (*_DUE, InputError), lambda: [GRANT.encode()], "msgpack", believing, 0.5),
    Target("granted-believed", feed_granted, _DUE, lambda: [KEY.secret, OLDER.secret], "bytes", believing, 0.5),
    Target("ladder", feed_ladder, (), lambda: [msgspec.msgpack.encode([KEY.seal_rung(OLDER)])], "msgpack"),
    Target("sealed-chunk", feed_sealed_chunk, _DUE, _chunk_seeds, "case"),
    Target(
        "sealed-chunk-inside",
        feed_chunk_inside,
        _DUE,
        lambda: [bytes((i,)) + _inside(content) for i, (_, content) in enumerate(CONTENTS)],
        "case",
    ),
    Target("sealed-body", feed_sealed_body, _DUE, lambda: [_BODY], "bytes"),
    Target("sealed-body-inside", feed_body_inside, _DUE, lambda: [_inside(b"body" * 30), _inside(b"")], "bytes"),
)
