"""Content on the wire: a reply to a chunk request, cut into bounded frames and put together again.

    frame   = kind u8 (1) | request u64 | flags u8 (1: last) | offset u32 | payload
    reply   = item length u32 × items asked for | items one after the other
    length  = 0xFFFFFFFF: gone, the peer does not hold it; 0xFFFFFFFE: not now, ask again later

Integers are big-endian; `offset` counts from the start of the reply. Frames of one reply come in order; those of
different replies may alternate.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from p2psync.errors import ProtocolError
from p2psync.protocol.limits import BULK_PAYLOAD, MAX_BULK_PAYLOAD, MAX_REQUEST_BYTES

KIND_CONTROL = 0
KIND_BULK = 1

_HEADER = struct.Struct(">BQBI")
BULK_HEADER_SIZE = _HEADER.size
_LENGTH = struct.Struct(">I")
_LAST = 1
_GONE = 0xFFFFFFFF
_LATER = 0xFFFFFFFE


class Absent(Enum):
    """Why an item of a reply has no bytes."""

    GONE = _GONE
    LATER = _LATER


Item = bytes | memoryview | Absent


@dataclass(frozen=True, slots=True)
class BulkFrame:
    """One frame of a reply. `payload` may be a view into a receive buffer: use it before the next frame is read."""

    request: int
    offset: int
    last: bool
    payload: bytes | memoryview


def decode_bulk(frame: bytes | memoryview) -> BulkFrame:
    """Split a frame of kind bulk; ProtocolError when it is none."""
    if not BULK_HEADER_SIZE < len(frame) <= BULK_HEADER_SIZE + MAX_BULK_PAYLOAD:
        raise ProtocolError("a bulk frame has an impossible length")
    kind, request, flags, offset = _HEADER.unpack_from(frame)
    if kind != KIND_BULK:
        raise ProtocolError("not a bulk frame")
    return BulkFrame(request, offset, bool(flags & _LAST), memoryview(frame)[BULK_HEADER_SIZE:])


def reply_frames(
    request: int, items: Sequence[Item], payload: Callable[[], int] = lambda: BULK_PAYLOAD
) -> Iterator[list[bytes | memoryview]]:
    """The frames of a reply, each as parts to be sealed together; no content is copied.

    `payload` is asked before each how many bytes of content it should carry.
    """
    prologue = b"".join(_LENGTH.pack(i.value if isinstance(i, Absent) else len(i)) for i in items)
    sources = [memoryview(prologue), *(memoryview(i) for i in items if not isinstance(i, Absent))]
    left = sum(len(source) for source in sources)
    offset = 0
    parts: list[bytes | memoryview] = []
    room = most = payload()
    for whole in sources:
        source = whole
        while len(source):
            piece, source = source[:room], source[room:]
            parts.append(piece)
            room -= len(piece)
            if not room or offset + most - room == left:
                size = most - room
                yield [_HEADER.pack(KIND_BULK, request, _LAST * (offset + size == left), offset), *parts]
                offset, parts = offset + size, []
                room = most = payload()


class Reply:
    """Puts one reply together. Memory is what the request asked for and no more.

    `lengths` are those of the items asked for: exact, or with `at_most` upper bounds.
    """

    def __init__(self, lengths: Sequence[int], *, at_most: bool = False) -> None:
        if sum(lengths) > MAX_REQUEST_BYTES:
            raise ValueError("a request asks for too much")
        self._asked = lengths
        self._at_most = at_most
        self._prologue = len(lengths) * _LENGTH.size
        self._size = self._prologue
        self._buffer = bytearray(self._prologue + sum(lengths))
        self._filled = 0
        self._lengths: list[int] | None = None
        self.done = False

    @property
    def received(self) -> int:
        """Bytes of content received so far."""
        return max(0, self._filled - self._prologue)

    def feed(self, frame: BulkFrame) -> bool:
        """Take in the next frame; True once the reply is complete. ProtocolError when it does not fit the request."""
        end = frame.offset + len(frame.payload)
        if self.done or frame.offset != self._filled or end > len(self._buffer):
            raise ProtocolError("content arrived that was not asked for")
        self._buffer[self._filled : end] = frame.payload
        self._filled = end
        if self._lengths is None and end >= self._prologue:
            self._lengths = self._read_lengths()
            self._size = self._prologue + sum(n for n in self._lengths if n < _LATER)
        if (self._lengths is not None and end > self._size) or frame.last != self._complete():
            raise ProtocolError("a reply is longer or shorter than it says")
        self.done = frame.last
        return self.done

    def items(self) -> list[memoryview | Absent]:
        """The items of a complete reply; content is not verified yet."""
        if not self.done or self._lengths is None:
            raise ValueError("the reply is not complete")
        view = memoryview(self._buffer)
        position, items = self._prologue, list[memoryview | Absent]()
        for length in self._lengths:
            if length >= _LATER:
                items.append(Absent(length))
            else:
                items.append(view[position : position + length])
                position += length
        return items

    def _complete(self) -> bool:
        return self._lengths is not None and self._filled == self._size

    def _read_lengths(self) -> list[int]:
        lengths = [_LENGTH.unpack_from(self._buffer, i * _LENGTH.size)[0] for i in range(len(self._asked))]
        for length, asked in zip(lengths, self._asked, strict=True):
            if length < _LATER and (length > asked or (length != asked and not self._at_most)):
                raise ProtocolError("a peer sent content of another length than asked for")
        return lengths
