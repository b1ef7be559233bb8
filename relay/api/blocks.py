"""Sealed chunks over HTTP: upload, download, what is missing, references, and links for one chunk."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.responses import Response

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.errors import InputError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import FolderId, parse_folder_id
from p2psync.protocol.relay_api import (
    MAX_LIST,
    MAX_REFS_CHUNKS,
    ChunkList,
    ChunkQuestion,
    FullRef,
    LinkWish,
    NewRef,
    NewRefs,
    PresignedLink,
    RefLine,
    RefPage,
    StoredChunk,
)
from relay.api.route import KIB, OCTETS, RAW, Auth, Call, Rate, Route, decode_id
from relay.blocks import chunks
from relay.blocks.chunks import Chunk
from relay.blocks.presign import MAX_LINK, Link
from relay.blocks.refs import Ref
from relay.blocks.service import Blocks, Body
from relay.errors import ApiError, not_found
from relay.mailbox.folders import Rights, require

BODY_DEADLINE_S: Final = 300.0
"""For a chunk on a slow line."""
_PRESIGNED = "/api/v1/presigned"
_RANGE = re.compile(r"bytes=([0-9]{0,9})-([0-9]{0,9})")
_ID_TEXT = (DIGEST_SIZE * 4 + 2) // 3


class InFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which folder the chunk is."""

    folder: Annotated[str, Meta(min_length=26, max_length=26, description="A folder ID.")]


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
async def put_chunk(call: Call) -> StoredChunk:
    """Store a chunk under its name; the digest of the bytes is part of what the device signs."""
    assert call.signed is not None
    digest = call.signed.body_digest
    if digest is None:
        raise ApiError(400, "bad-request", "a chunk has at least one byte")
    size = _length(call)
    folder, chunk_id = _folder(call), call.hex_id("chunk_id", DIGEST_SIZE)
    new = await _blocks(call).put(call.caller.account_id, folder, chunk_id, Body(size, digest, call.source.fill))
    return StoredChunk(size, new)


async def get_chunk(call: Call) -> Response:
    """The sealed bytes, or one range of them."""
    chunk = await _find(call)
    return ChunkAnswer(call, _blocks(call), call.caller.account_id, chunk)


async def head_chunk(call: Call) -> Response:
    """As `get_chunk`, without the bytes."""
    chunk = await _find(call)
    return Response(headers={**_chunk_headers(chunk), "content-length": str(chunk.size)}, media_type=OCTETS)


class ChunkAnswer(Response):
    """A chunk's bytes, which are in memory only while they are sent."""

    def __init__(self, call: Call, blocks: Blocks, account_id: bytes, chunk: Chunk) -> None:
        super().__init__(media_type=OCTETS)
        self._blocks = blocks
        self._account_id = account_id
        self._chunk = chunk
        self._fields = _chunk_headers(chunk)
        self._start, self._stop = _range(call, self._fields["etag"], chunk.size)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        start, stop, size = self._start, self._stop, self._chunk.size
        async with self._blocks.memory(self._account_id, stop - start):
            data = await self._blocks.read(self._chunk, start, stop)
            partial = stop - start < size
            if partial:
                self._fields["content-range"] = f"bytes {start}-{stop - 1}/{size}"
            answer = Response(data, 206 if partial else 200, self._fields, OCTETS)
            await answer(scope, receive, send)


def _range(call: Call, etag: str, size: int) -> tuple[int, int]:
    """The bytes asked for (RFC 9110, section 14); what is no single range is ignored, as it may be."""
    match = _RANGE.fullmatch(call.header(b"range") or "")
    if match is None or match[0] == "bytes=-" or call.header(b"if-range") not in (None, etag):
        return 0, size
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < int(first):
        return 0, size
    if start >= stop:
        raise ApiError(416, "range-not-satisfiable", headers={"Content-Range": f"bytes */{size}"}, size=size)
    return start, stop


def _chunk_headers(chunk: Chunk) -> dict[str, str]:
    return {"etag": f'"{chunk.digest.hex()}"', "accept-ranges": "bytes"}


async def _find(call: Call) -> Chunk:
    chunk_id = call.hex_id("chunk_id", DIGEST_SIZE)
    return await _blocks(call).find(call.caller.account_id, _folder(call), chunk_id)


async def missing_chunks(call: Call) -> ChunkList:
    """Those that are not stored in that folder."""
    question: ChunkQuestion = call.body
    account_id = call.caller.account_id

    def work(c: Any) -> list[bytes]:
        require(c, question.folder_id, account_id, Rights.READ)
        return chunks.missing(c, question.folder_id, question.chunk_ids)

    return ChunkList(await call.services.database.read(work))


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a list goes on: behind `after`, the last name of the page before."""

    after: Annotated[str, Meta(max_length=_ID_TEXT)] = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIST)] = MAX_LIST


async def lost_chunks(call: Call) -> ChunkList:
    """Those that references name and whose bytes the relay has lost: who has the content uploads them again."""
    folder_id, account_id, after, limit = call.folder_id(), call.caller.account_id, _after(call), call.query.limit

    def work(c: Any) -> list[bytes]:
        require(c, folder_id, account_id, Rights.READ)
        return chunks.lost(c, folder_id, after, limit)

    return ChunkList(await call.services.database.read(work))


# ── references ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def put_ref(call: Call) -> None:
    """Keep these chunks from now on, all or none."""
    folder_id, ref_id, account_id = call.folder_id(), call.id("ref_id", DIGEST_SIZE), call.caller.account_id
    new: NewRef = call.body
    refs, now = _blocks(call).refs, call.now

    def work(c: Any) -> None:
        refs.put(c, require(c, folder_id, account_id, Rights.APPEND, lock=True), {ref_id: new.chunk_ids}, now)

    await call.services.database.write(work)


async def put_refs(call: Call) -> None:
    """As `put_ref` for several references at once, all or none."""
    folder_id, account_id, refs, now = call.folder_id(), call.caller.account_id, _blocks(call).refs, call.now
    new: NewRefs = call.body
    wanted = {ref.ref_id: ref.chunk_ids for ref in new.refs}
    if len(wanted) != len(new.refs) or sum(map(len, wanted.values())) > MAX_REFS_CHUNKS:
        raise ApiError(400, "bad-request", f"name each reference once, and at most {MAX_REFS_CHUNKS} chunks")

    def work(c: Any) -> None:
        refs.put(c, require(c, folder_id, account_id, Rights.APPEND, lock=True), wanted, now)

    await call.services.database.write(work)


async def get_ref(call: Call) -> FullRef:
    """What a reference keeps."""
    folder_id, ref_id, account_id = call.folder_id(), call.id("ref_id", DIGEST_SIZE), call.caller.account_id
    refs = _blocks(call).refs

    def work(c: Any) -> tuple[Ref, list[bytes]]:
        require(c, folder_id, account_id, Rights.READ)
        return refs.find(c, folder_id, ref_id)

    ref, chunk_ids = await call.services.database.read(work)
    return FullRef(ref.modified, chunk_ids)


class Unchanged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the reference was last put, as a list or `get_ref` told; put anew since, it stays."""

    modified: Annotated[int, Meta(ge=0, le=1 << 53)] | None = None


async def delete_ref(call: Call) -> None:
    """Keep its chunks no longer; that there is no such reference is no error."""
    folder_id, ref_id, account_id = call.folder_id(), call.id("ref_id", DIGEST_SIZE), call.caller.account_id
    refs, now, unchanged = _blocks(call).refs, call.now, call.query.modified

    def work(c: Any) -> None:
        refs.delete(c, require(c, folder_id, account_id, Rights.APPEND, lock=True), ref_id, now, unchanged)

    await call.services.database.write(work)


async def list_refs(call: Call) -> RefPage:
    """The references of a folder, by name."""
    folder_id, account_id, after, limit = call.folder_id(), call.caller.account_id, _after(call), call.query.limit
    refs = _blocks(call).refs

    def work(c: Any) -> list[Ref]:
        require(c, folder_id, account_id, Rights.READ)
        return refs.page(c, folder_id, after, limit)

    found = await call.services.database.read(work)
    return RefPage([RefLine(ref.ref_id, ref.modified, ref.count) for ref in found])


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class LinkQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link itself."""

    link: Annotated[str, Meta(min_length=1, max_length=MAX_LINK)]


async def make_link(call: Call) -> PresignedLink:
    """A link for one chunk."""
    wish: LinkWish = call.body
    caller, blocks, expires = call.caller, _blocks(call), call.now + wish.lifetime_s
    size, digest = wish.size, wish.digest
    if wish.operation == "get":
        chunk = await blocks.find(caller.account_id, wish.folder_id, wish.chunk_id)
        url = await blocks.direct_url(chunk, wish.lifetime_s)
        if url is not None:
            return PresignedLink(url, expires)
        size, digest = chunk.size, chunk.digest
    else:
        if not size or len(digest) != DIGEST_SIZE:
            raise ApiError(400, "bad-request", "a link for an upload names size and digest of the sealed chunk")
        account_id, folder_id = caller.account_id, wish.folder_id
        await call.services.database.look_up(lambda c: require(c, folder_id, account_id, Rights.APPEND))
    link = Link(
        wish.operation, caller.account_id, caller.device_id, wish.folder_id, wish.chunk_id, digest, size, expires
    )
    return PresignedLink(f"{_PRESIGNED}?link={blocks.links.make(link)}", expires)


async def get_by_link(call: Call) -> Response:
    """As `get_chunk`."""
    blocks = _blocks(call)
    link = blocks.links.read(call.query.link, "get", call.now)
    chunk = await blocks.find(link.account_id, link.folder_id, link.chunk_id)
    if chunk.digest != link.digest:
        raise not_found()
    return ChunkAnswer(call, blocks, link.account_id, chunk)


async def put_by_link(call: Call) -> StoredChunk:
    """As `put_chunk`."""
    blocks = _blocks(call)
    link = blocks.links.read(call.query.link, "put", call.now)
    if _length(call) != link.size:
        raise ApiError(400, "bad-request", f"this link is for {link.size} bytes")

    new = await blocks.put(
        link.account_id, link.folder_id, link.chunk_id, Body(link.size, link.digest, call.source.fill)
    )
    return StoredChunk(link.size, new)


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def _blocks(call: Call) -> Blocks:
    return call.services.blocks


def _folder(call: Call) -> FolderId:
    try:
        return parse_folder_id(call.query.folder)
    except InputError:
        raise not_found() from None


def _after(call: Call) -> bytes:
    return decode_id(call.query.after, DIGEST_SIZE) if call.query.after else b""


def _length(call: Call) -> int:
    length = call.header(b"content-length")
    if length is None:
        raise ApiError(411, "length-required")
    return int(length)


_CHUNK: Final = "/api/v1/chunks/{chunk_id}"
_REFS: Final = "/api/v1/folders/{folder_id}/refs"
_REF: Final = f"{_REFS}/{{ref_id}}"
_SEEN: Final = ("not-found", "forbidden")
_UPLOAD: Final = (
    *_SEEN,
    "bad-request",
    "conflict",
    "over-quota",
    "length-required",
    "digest-mismatch",
    "timeout",
    "unavailable",
)
_DOWNLOAD: Final = (*_SEEN, "bad-request", "range-not-satisfiable", "unavailable")

_put = Route(
    "PUT", _CHUNK, put_chunk, "Store a sealed chunk",
    body=RAW, answer=StoredChunk, query=InFolder, limit=MAX_SEALED_CHUNK, rate=Rate.BULK, problems=_UPLOAD,
    deadline_s=BODY_DEADLINE_S,
)  # fmt: skip
_get = Route(
    "GET", _CHUNK, get_chunk, "Fetch a sealed chunk, or a range of it",
    answer=RAW, query=InFolder, rate=Rate.BULK, problems=_DOWNLOAD, also=(206,), deadline_s=BODY_DEADLINE_S,
)  # fmt: skip

ROUTES = (
    _put,
    _get,
    Route(
        "HEAD", _CHUNK, head_chunk, "Size and digest of a sealed chunk",
        answer=RAW, query=InFolder, rate=Rate.BULK, problems=_SEEN,
    ),
    Route(
        "POST", "/api/v1/chunks/missing", missing_chunks, "Which of these chunks are missing",
        body=ChunkQuestion, answer=ChunkList, limit=128 * KIB, rate=Rate.BULK, problems=_SEEN,
    ),
    Route(
        "GET", "/api/v1/folders/{folder_id}/lost-chunks", lost_chunks, "Chunks to be uploaded again",
        answer=ChunkList, query=Page, problems=_SEEN,
    ),
    Route(
        "PUT", _REF, put_ref, "Let a reference keep chunks",
        body=NewRef, limit=8 << 20, rate=Rate.BULK, problems=(*_SEEN, "conflict", "over-quota"),
    ),
    Route("GET", _REF, get_ref, "What a reference keeps", answer=FullRef, problems=_SEEN),
    Route(
        "DELETE", _REF, delete_ref, "Drop a reference, if it is unchanged",
        query=Unchanged, rate=Rate.BULK, problems=(*_SEEN, "conflict"),
    ),
    Route(
        "POST", _REFS, put_refs, "Let several references keep chunks",
        body=NewRefs, limit=1 << 20, rate=Rate.BULK, problems=(*_SEEN, "bad-request", "conflict", "over-quota"),
    ),
    Route(
        "GET", _REFS, list_refs, "The references of a folder",
        answer=RefPage, query=Page, problems=_SEEN,
    ),
    Route(
        "POST", _PRESIGNED, make_link, "A link for one chunk, good without token or key",
        body=LinkWish, answer=PresignedLink, rate=Rate.BULK, problems=(*_SEEN, "bad-request", "unavailable"),
    ),
    replace(
        _get, path=_PRESIGNED, handler=get_by_link, summary="Fetch by a link", auth=Auth.NONE, query=LinkQuery,
        problems=(*_DOWNLOAD, "unauthorized"),
    ),
    replace(
        _put, path=_PRESIGNED, handler=put_by_link, summary="Store by a link", auth=Auth.NONE, query=LinkQuery,
        problems=(*_UPLOAD, "unauthorized"),
    ),
)  # fmt: skip
