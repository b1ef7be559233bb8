"""The test vectors in the protocol's description are what the code does, byte for byte."""

import re
from pathlib import Path

from p2psync.crypto import hpke
from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.handshake import SecureHandshake
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.keyfile import encode_keys
from p2psync.crypto.noise import Pattern
from p2psync.crypto.pairing import PairingMachine, PairingSide, new_code
from p2psync.crypto.seal import ChunkKind, ChunkName, chunk_id, ref_id, seal_body, seal_chunk, snapshot_hash
from p2psync.crypto.transport import OVERHEAD, SealingCipher
from p2psync.model.hashing import Algorithm, digest, labelled
from p2psync.model.ids import device_tag, format_device_id, format_folder_id, replica
from p2psync.model.manifest import content_root

DOCS = Path(__file__).parents[2] / "docs"


def vectors() -> dict[str, str]:
    """Everything the description promises, from seeds it names; bytes as hex."""
    alice, bob = DeviceKeys(bytes(range(64))), DeviceKeys(bytes(range(64, 128)))
    found: dict[str, bytes | str] = {
        "alice.signing_key": alice.card.signing_key,
        "alice.agreement_key": alice.card.agreement_key,
        "alice.sealing_key": alice.card.sealing_key,
        "alice.device_id": alice.device_id,
        "alice.device_id.text": format_device_id(alice.device_id),
        "alice.card": alice.card.encode(),
        "alice.signature": alice.sign(b"label", b"message"),
        "alice.replica": replica(alice.device_id, 3),
        "alice.tag": device_tag(alice.device_id, bytes(range(8))),
        "alice.keyfile": encode_keys(alice),
        "bob.device_id": bob.device_id,
        "folder_id.text": format_folder_id(bytes(range(16))),
        "labelled": labelled(b"label", b"one", b"two"),
    }
    for pattern in Pattern:
        known = bob.card if pattern is Pattern.IK else None
        left = SecureHandshake.initiate(alice, bytes([1] * 32), b"hello, bob", card=known)
        right = SecureHandshake.respond(
            bob, bytes([2] * 32), b"hello, alice", known=lambda _key: (alice.card, b"hello, alice")
        )
        sender, receiver = left, right
        for number in range(1, 4):
            flight = sender.take_output()
            found[f"{pattern.name}.flight{number}"] = flight
            receiver.feed(flight)
            sender, receiver = receiver, sender
        assert left.result is not None
        found[f"{pattern.name}.handshake_hash"] = left.result.handshake_hash
        found[f"{pattern.name}.initiator_key"] = left.result.send_key
        found[f"{pattern.name}.responder_key"] = left.result.receive_key
    found |= _frames() | _pairing(alice.device_id, bob.device_id) | _sealing(bob)
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in found.items()}


def _frames() -> dict[str, bytes | str]:
    cipher, out = SealingCipher(bytes(range(32))), bytearray(5 + OVERHEAD)
    found: dict[str, bytes | str] = {}
    for name in ("frame0", "frame1"):
        cipher.seal_into((b"hello",), memoryview(out))
        found[name] = bytes(out)
    cipher._count(2**30)
    cipher.seal_into((b"hello",), memoryview(out))
    found["frame.after_rekey"] = bytes(out)
    return found


def _sealing(bob: DeviceKeys) -> dict[str, bytes | str]:
    folder, content = bytes(range(16)), b"hello, relay"
    older, key = EpochKey(folder, bytes([6] * 32)), EpochKey(folder, bytes([7] * 32))
    found: dict[str, bytes | str] = {
        "epoch.key_id": key.id,
        "epoch.chunk_id_key": key.chunk_id_key,
        "epoch.chunk_key": key.chunk_key,
        "epoch.ref_id_key": key.ref_id_key,
        "epoch.body_key": key.body_key,
        "epoch.ladder_key": key.ladder_key,
        "epoch.older_key_id": older.id,
        "epoch.rung": key.seal_rung(older)[1],
        "hpke.sealed": hpke.seal_to(bob.card.sealing_key, b"info", b"plaintext", bytes([8] * 32)),
    }
    hashes = {
        ChunkKind.CONTENT: digest(Algorithm.BLAKE3, content),
        ChunkKind.MANIFEST: content_root(content),
        ChunkKind.SNAPSHOT: snapshot_hash(content),
    }
    for kind, content_hash in hashes.items():
        name = ChunkName(kind, content_hash)
        found[f"{kind.name.lower()}.hash"] = content_hash
        found[f"{kind.name.lower()}.chunk_id"] = chunk_id(key, name)
        found[f"{kind.name.lower()}.sealed"] = bytes(seal_chunk(key, name, content))
    found["ref_id"] = ref_id(key, hashes[ChunkKind.MANIFEST])
    found["body.sealed"] = seal_body(key, b"context", content, bytes([10] * 32))
    return found


def _pairing(alice: bytes, bob: bytes) -> dict[str, bytes | str]:
    code, channel = new_code(bytes(range(16))), bytes([9] * 32)
    host = PairingMachine(
        PairingSide.HOST,
        code,
        handshake_hash=channel,
        my_device_id=alice,
        their_device_id=bob,
        entropy=bytes([3] * 32),
    )
    guest = PairingMachine(
        PairingSide.GUEST,
        code,
        handshake_hash=channel,
        my_device_id=bob,
        their_device_id=alice,
        entropy=bytes([4] * 32),
    )
    found: dict[str, bytes | str] = {"pairing.code": str(code)}
    message, receiver, other = guest.start(), host, guest
    for number in range(1, 5):
        assert message is not None
        found[f"pairing.message{number}"] = message
        message = receiver.receive(message)
        receiver, other = other, receiver
    assert host.outcome is not None
    found["pairing.comparison"] = host.outcome.comparison
    return found


def test_the_description_and_the_code_agree() -> None:
    described: dict[str, str] = {}
    for page in sorted(DOCS.glob("protocol*.md")):
        for block in re.findall(r"```vectors\n(.*?)```", page.read_text(), re.DOTALL):
            for name, value in re.findall(r"^(\S+) =(.*\n(?:  .*\n)*)", block, re.MULTILINE):
                described[name] = value.strip().replace("\n  ", "")
    assert described, "no page of docs/protocol*.md holds the vectors"
    assert described == vectors()
