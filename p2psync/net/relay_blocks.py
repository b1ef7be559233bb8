"""A relay's store of sealed chunks, as calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.errors import ProtocolError
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import FolderId, format_folder_id
from p2psync.net.relay_call import OCTETS, RelayCaller, Request
from p2psync.net.relay_mailbox import encode_id
from p2psync.protocol import relay_api as api

CHUNK_TIMEOUT_S: Final = 300.0
_LIST: Final = api.MAX_LIST * 128 + 4096
_FULL_REF: Final = api.MAX_REF_CHUNKS * (DIGEST_SIZE + 2) + 4096


class BlockCalls:
    """Chunks and the references that keep them. Every call raises as `RelayCaller.call`."""

    def __init__(self, caller: RelayCaller) -> None:
        self._caller = caller

    # ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────
    async def put(self, folder: FolderId, chunk_id: bytes, sealed: bytes | memoryview) -> api.StoredChunk:
        """Store a chunk; durable when this returns. RelayRefusal `over-quota`, `conflict` for other bytes."""
        request = Request(
            "PUT", _chunk(chunk_id), _in(folder), sealed, media_type=OCTETS, timeout_s=CHUNK_TIMEOUT_S, bulk=True
        )
        return await self._caller.fetch(request, api.StoredChunk)

    async def get(self, folder: FolderId, chunk_id: bytes, start: int = 0) -> bytes | bytearray:
        """The sealed bytes of a chunk, from `start` on. RelayRefusal `not-found`, `unavailable`.

        Nothing in them is proven before they are opened.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        request = Request(
            "GET",
            _chunk(chunk_id),
            _in(folder),
            headers=headers,
            max_body=MAX_SEALED_CHUNK,
            timeout_s=CHUNK_TIMEOUT_S,
            bulk=True,
        )
        response = await self._caller.call(request)
        if response.status != (206 if start else 200):
            raise ProtocolError("a relay sent another part of a chunk than was asked for")
        return response.body

    async def missing(self, folder: FolderId, chunk_ids: Sequence[bytes]) -> list[bytes]:
        """Those that are not stored, in the same order; at most `MAX_ASKED` at once."""
        question = api.ChunkQuestion(folder, list(chunk_ids))
        request = Request("POST", "/api/v1/chunks/missing", max_body=_LIST)
        return (await self._caller.fetch(request, api.ChunkList, question)).chunk_ids

    async def lost(self, folder: FolderId, after: bytes = b"") -> list[bytes]:
        """Chunks whose bytes the relay has lost, by name after `after`: whoever has the content uploads them again."""
        request = Request("GET", f"{_folder(folder)}/lost-chunks", _after(after), max_body=_LIST)
        return (await self._caller.fetch(request, api.ChunkList)).chunk_ids

    # ── references ──────────────────────────────────────────────────────────────────────────────────────────────────
    async def put_ref(self, folder: FolderId, ref_id: bytes, chunk_ids: Sequence[bytes]) -> None:
        """Keep these chunks from now on, all or none. RelayRefusal `conflict` names those that are missing."""
        await self._caller.call(Request("PUT", _ref(folder, ref_id), bulk=True), api.NewRef(list(chunk_ids)))

    async def put_refs(self, folder: FolderId, refs: Mapping[bytes, Sequence[bytes]]) -> None:
        """As `put_ref` for up to `MAX_REFS`, which name `MAX_REFS_CHUNKS` chunks at most, all or none."""
        named = [api.NamedRef(ref_id, list(chunk_ids)) for ref_id, chunk_ids in refs.items()]
        await self._caller.call(Request("POST", f"{_folder(folder)}/refs", bulk=True), api.NewRefs(named))

    async def ref(self, folder: FolderId, ref_id: bytes) -> api.FullRef:
        """What a reference keeps. RelayRefusal `not-found`."""
        return await self._caller.fetch(Request("GET", _ref(folder, ref_id), max_body=_FULL_REF), api.FullRef)

    async def delete_ref(self, folder: FolderId, ref_id: bytes, modified: int | None = None) -> None:
        """Keep its chunks no longer; harmless when there is no such reference.

        RelayRefusal `conflict` when it was put anew since `modified`, where that is given.
        """
        await self._caller.call(
            Request("DELETE", _ref(folder, ref_id), {} if modified is None else {"modified": modified})
        )

    async def refs(self, folder: FolderId, after: bytes = b"") -> list[api.RefLine]:
        """The references of a folder by name after `after`; fewer than `MAX_LIST` are the last."""
        request = Request("GET", f"{_folder(folder)}/refs", _after(after), max_body=_LIST)
        return (await self._caller.fetch(request, api.RefPage)).refs


def _folder(folder: FolderId) -> str:
    return f"/api/v1/folders/{format_folder_id(folder)}"


def _in(folder: FolderId) -> dict[str, object]:
    return {"folder": format_folder_id(folder)}


def _chunk(chunk_id: bytes) -> str:
    return f"/api/v1/chunks/{chunk_id.hex()}"


def _ref(folder: FolderId, ref_id: bytes) -> str:
    return f"{_folder(folder)}/refs/{encode_id(ref_id)}"


def _after(after: bytes) -> dict[str, object]:
    return {"after": encode_id(after)} if after else {}
