"""Serving: reads what a peer asks for, verified on the way out, and only what belongs to the folder it may read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import structlog

from p2psync.model.cutting import encode_leaves, leaves
from p2psync.model.paths import RelPath
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.messages import ChunkRequest, ContentRequest, LeavesRequest, RangesRequest
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.local_chunks import find_chunk
from p2psync.sync.observer import Observer

_log = structlog.get_logger(__name__)

MAX_LEAVES_KEPT = 64
"""Lists of leaves that are kept for the next who asks, at 22 KiB the longest."""


class Server:
    """Answers requests for one folder's content."""

    def __init__(self, context: FolderContext, observer: Observer, contents: ContentJobs) -> None:
        self._context = context
        self._observer = observer
        self._contents = contents
        self._leaves: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()

    async def serve(self, device: bytes, request: ContentRequest) -> list[Item]:
        """One item per hash asked for, or why there is none. A device that may not read gets nothing."""
        context = self._context
        if not context.membership.may_read(device):
            return [Absent.GONE] * len(request.lengths)
        suspects: list[RelPath] = []

        def read() -> list[Item]:
            match request:
                case ChunkRequest(manifests=True):
                    return [self._manifest(root) for root, _ in request.items()]
                case ChunkRequest():
                    return [self._chunk(chunk, length, suspects) for chunk, length in request.items()]
                case LeavesRequest():
                    return [self._leaves_of(chunk, length, suspects) for chunk, length in request.items()]
                case RangesRequest(ranges=ranges):
                    asked = zip(request.items(), ranges, strict=True)
                    return [self._parts(chunk, length, parts, suspects) for (chunk, length), parts in asked]

        items = await context.world.offload.run(read)
        if suspects:
            _log.debug("files do not hold what was asked for", folder=context.name, count=len(suspects))
            self._observer.distrust(suspects)
        if not isinstance(request, ChunkRequest) or not request.manifests:
            context.progress.sent += sum(len(item) for item in items if not isinstance(item, Absent))
        return items

    def _manifest(self, root: bytes) -> Item:
        with self._context.index.read() as reader:
            return reader.manifest(root) or Absent.GONE

    def _chunk(self, chunk: bytes, length: int, suspects: list[RelPath]) -> Item:
        """A chunk from a file that still holds it (I14), or from one being assembled.

        What a file should hold and does not is not gone for good: it may be healed, or be readable again.
        """
        before = len(suspects)
        data = find_chunk(self._context, chunk, length, suspects)
        return (
            data or self._contents.staged_chunk(chunk, length) or (Absent.LATER if suspects[before:] else Absent.GONE)
        )

    def _leaves_of(self, chunk: bytes, length: int, suspects: list[RelPath]) -> Item:
        if (kept := self._leaves.get((chunk, length))) is not None:
            return kept
        data = self._chunk(chunk, length, suspects)
        if isinstance(data, Absent):
            return data
        encoded = encode_leaves(leaves(memoryview(data), self._context.world.longest_chunk))
        self._leaves[chunk, length] = encoded
        if len(self._leaves) > MAX_LEAVES_KEPT:
            self._leaves.popitem(last=False)
        return encoded

    def _parts(self, chunk: bytes, length: int, parts: Sequence[tuple[int, int]], suspects: list[RelPath]) -> Item:
        data = self._chunk(chunk, length, suspects)
        return data if isinstance(data, Absent) else b"".join(data[at : at + count] for at, count in parts)
