"""The test vectors in the protocol's description are what the code does, byte for byte."""

import re
from pathlib import Path

from p2psync.crypto.handshake import SecureHandshake
from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.keyfile import encode_keys
from p2psync.crypto.noise import Pattern
from p2psync.crypto.pairing import PairingMachine, PairingSide, new_code
from p2psync.crypto.transport import OVERHEAD, SealingCipher
from p2psync.model.hashing import labelled
from p2psync.model.ids import device_tag, format_device_id, format_folder_id, replica

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
        known = bob.card.agreement_key if pattern is Pattern.IK else None
        left = SecureHandshake.initiate(alice, bytes([1] * 32), b"hello, bob", agreement_key=known)
        right = SecureHandshake.respond(bob, bytes([2] * 32), b"hello, alice")
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
    found |= _frames() | _pairing(alice.device_id, bob.device_id)
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
