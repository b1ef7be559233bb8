"""Control messages to bytes and back; nothing a peer sends gets past `decode` unbounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import msgspec

from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.paths import KEY_SIZE
from p2psync.protocol.limits import MAX_CONTROL, MAX_RANGES, MAX_REQUEST_BYTES
from p2psync.protocol.messages import (
    ChunkRequest,
    ContentRequest,
    LeavesRequest,
    Message,
    Possession,
    RangesRequest,
    RecordsRequest,
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)
_TAGS = frozenset(cast("int", kind.__struct_config__.tag) for kind in Message.__args__)


class _Head(msgspec.Struct, array_like=True):
    """What every message begins with; the rest is skipped unread, whatever its length."""

    tag: int


_head_decoder = msgspec.msgpack.Decoder(_Head)


@dataclass(frozen=True, slots=True)
class Unrecognised:
    """A message of a later version: to be ignored."""

    tag: int


def encode(message: Message) -> bytes:
    """Bytes of a message. InputError when it is longer than a peer would accept: the caller has to split it."""
    data = _encoder.encode(message)
    if len(data) > MAX_CONTROL:
        raise InputError(f"a control message may have {MAX_CONTROL} bytes, this one has {len(data)}")
    return data


def decode(data: bytes | memoryview) -> Message | Unrecognised:
    """Decode and validate; InputError for anything malformed or beyond its bounds.

    msgspec checks types and lengths while it reads and takes no memory on the word of a length field; what types cannot
    say is checked here.
    """
    if len(data) > MAX_CONTROL:
        raise InputError(f"a control message may have {MAX_CONTROL} bytes, this one has {len(data)}")
    try:
        message: Message = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        tag = _tag(data)
        if tag is not None and tag not in _TAGS:
            return Unrecognised(tag)
        raise InputError(f"malformed message: {error}") from None
    _check(message)
    return message


def _tag(data: bytes | memoryview) -> int | None:
    """The tag of a well-formed array, else None."""
    try:
        return _head_decoder.decode(data).tag
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _check(message: Message) -> None:
    match message:
        case ChunkRequest() | LeavesRequest() | RangesRequest():
            _check_request(message)
        case Possession(keys=keys) | RecordsRequest(keys=keys):
            if len(keys) % KEY_SIZE:
                raise InputError("malformed list of path keys")
        case _:
            pass


def _check_request(request: ContentRequest) -> None:
    lengths = request.lengths
    if not lengths or len(request.hashes) != DIGEST_SIZE * len(lengths) or sum(lengths) > MAX_REQUEST_BYTES:
        raise InputError("malformed request for chunks")
    if isinstance(request, RangesRequest):
        if len(request.ranges) != len(lengths) or sum(map(len, request.ranges)) > MAX_RANGES:
            raise InputError("malformed request for parts of chunks")
        for parts, chunk in zip(request.ranges, lengths, strict=True):
            end = 0
            for offset, length in parts:
                if offset < end or not length or offset + length > chunk:
                    raise InputError("malformed part of a chunk")
                end = offset + length
