"""What the machine itself needs for a first sync: the least work, in two plain processes, hashed, sealed and synced.

The sender reads and hashes (BLAKE3), seals (AES-256-GCM) and sends; the receiver opens, hashes, writes and syncs once
at the end. No index, no negotiation, no temporary names, no threads.

    python -m benchmarks.floor receive FOLDER ADDRESS PORT
    python -m benchmarks.floor send FOLDER ADDRESS PORT
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FRAME = 4 << 20
_TAG = 16
_LENGTH = struct.Struct("!I")
_ENTRY = struct.Struct("!HQ32s")
_KEY = bytes(32)


def send(folder: Path, address: str, port: int) -> None:
    """Send every file of the folder in frames of at most 4 MiB; small files share a frame."""
    with socket.create_connection((address, port)) as wire:
        print("ready", flush=True)
        sys.stdin.readline()
        cipher, sealed = AESGCM(_KEY), bytearray(_LENGTH.size + FRAME + _TAG)
        for number, frame in enumerate(frames(folder)):
            view = memoryview(sealed)[: _LENGTH.size + len(frame) + _TAG]
            _LENGTH.pack_into(view, 0, len(frame) + _TAG)
            cipher.encrypt_into(number.to_bytes(12, "big"), frame, None, view[_LENGTH.size :])
            wire.sendall(view)
        wire.shutdown(socket.SHUT_WR)
        if wire.recv(1) != b"\1":
            raise SystemExit("the receiver failed")
    print("synced", flush=True)
    sys.stdin.readline()


def frames(folder: Path) -> Iterator[memoryview]:
    """Headers and contents; a file is one or several (header, part) pairs, each with the part's hash."""
    buffer = bytearray(FRAME)
    view, used = memoryview(buffer), 0
    for directory, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, os.fsencode(folder))
            descriptor = os.open(path, os.O_RDONLY)
            remaining, begun = os.fstat(descriptor).st_size, False
            while remaining or not begun:
                head = _ENTRY.size + len(relative) + 4
                room = FRAME - used - head
                if room < min(remaining, FRAME // 4):
                    yield view[:used]
                    used = 0
                    continue
                start = used + head
                size = os.readv(descriptor, [view[start : start + min(room, remaining)]])
                digest = blake3.blake3(view[start : start + size]).digest()
                _ENTRY.pack_into(buffer, used, len(relative), remaining, digest)
                buffer[used + _ENTRY.size : start - 4] = relative
                _LENGTH.pack_into(buffer, start - 4, size)
                used = start + size
                remaining, begun = remaining - size, True
            os.close(descriptor)
    yield view[:used]


def receive(folder: Path, address: str, port: int) -> None:
    """Write what comes; one syncfs(2) at the end, then say so."""
    with socket.create_server((address, port)) as server:
        print("ready", flush=True)
        wire = server.accept()[0]
    cipher, sealed, plain = AESGCM(_KEY), bytearray(FRAME + _TAG), bytearray(FRAME)
    header, number, writer = bytearray(_LENGTH.size), 0, Writer(os.fsencode(folder))
    with wire:
        while _fill(wire, memoryview(header)):
            view = memoryview(sealed)[: _LENGTH.unpack(header)[0]]
            _fill(wire, view)
            opened = memoryview(plain)[: len(view) - _TAG]
            cipher.decrypt_into(number.to_bytes(12, "big"), view, None, opened)
            number += 1
            writer.write(opened)
        root = os.open(folder, os.O_RDONLY)
        if ctypes.CDLL(None).syncfs(root) != 0:
            raise SystemExit("syncfs failed")
        wire.sendall(b"\1")
    sys.stdin.readline()


class Writer:
    """The receiver's files."""

    def __init__(self, root: bytes) -> None:
        self._root, self._known, self._descriptor = root, {b""}, -1

    def write(self, frame: memoryview) -> None:
        """Write the parts of one frame. SystemExit when one is damaged."""
        used = 0
        while used < len(frame):
            length, remaining, digest = _ENTRY.unpack_from(frame, used)
            start = used + _ENTRY.size + length + 4
            relative = bytes(frame[start - 4 - length : start - 4])
            size = _LENGTH.unpack_from(frame, start - 4)[0]
            part = frame[start : start + size]
            if blake3.blake3(part).digest() != digest:
                raise SystemExit(f"{relative!r} arrived damaged")
            if self._descriptor < 0:
                self._descriptor = self._create(relative)
            if os.write(self._descriptor, part) != size:
                raise SystemExit(f"{relative!r}: short write")
            if remaining == size:
                os.close(self._descriptor)
                self._descriptor = -1
            used = start + size

    def _create(self, relative: bytes) -> int:
        parent = os.path.dirname(relative)
        if parent not in self._known:
            os.makedirs(os.path.join(self._root, parent), exist_ok=True)
            self._known.add(parent)
        return os.open(os.path.join(self._root, relative), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)


def _fill(wire: socket.socket, view: memoryview) -> bool:
    while view:
        count = wire.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
