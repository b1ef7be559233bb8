"""Serving: reads what a peer asks for, verified on the way out, and only what belongs to the folder it may read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from p2psync.index.reader import Reader
from p2psync.index.values import Location
from p2psync.model.cutting import encode_leaves, leaves
from p2psync.model.paths import RelPath
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.messages import ChunkRequest, ContentRequest, LeavesRequest, RangesRequest
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.local_chunks import kept_open, read_located
from p2psync.sync.observer import Observer

_log = structlog.get_logger(__name__)

MAX_LEAVES_KEPT = 64
"""Lists of leaves that are kept for the next who asks, at 22 KiB the longest."""


class _Wanted(NamedTuple):
    """A chunk that was asked for, and the files that should hold it."""

    chunk: bytes
    length: int
    places: Sequence[Location]


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
            asked = request.items()
            with context.index.read() as reader:
                if isinstance(request, ChunkRequest) and request.manifests:
                    return [self._manifest(reader, root) for root, _ in asked]
                wanted = [_Wanted(chunk, length, reader.locate(chunk)) for chunk, length in asked]
            with kept_open(context):
                match request:
                    case ChunkRequest():
                        return [self._chunk(one, suspects) for one in wanted]
                    case LeavesRequest():
                        return [self._leaves_of(one, suspects) for one in wanted]
                    case RangesRequest(ranges=ranges):
                        return [self._parts(one, parts, suspects) for one, parts in zip(wanted, ranges, strict=True)]

        items = await context.world.offload.run(read)
        if suspects:
            _log.debug("files do not hold what was asked for", folder=context.name, count=len(suspects))
            self._observer.distrust(suspects)
        if not isinstance(request, ChunkRequest) or not request.manifests:
            context.progress.sent += sum(len(item) for item in items if not isinstance(item, Absent))
        return items

    def _manifest(self, reader: Reader, root: bytes) -> Item:
        return reader.manifest(root) or Absent.GONE

    def _chunk(self, wanted: _Wanted, suspects: list[RelPath]) -> Item:
        """A chunk from a file that still holds it (I14), or from one being assembled.

        What a file should hold and does not is not gone for good: it may be healed, or be readable again.
        """
        before = len(suspects)
        data = read_located(self._context, wanted.places, wanted.chunk, wanted.length, suspects)
        if data is None and (staged := self._contents.staged_chunk(wanted.chunk, wanted.length)) is not None:
            return staged
        return data or (Absent.LATER if suspects[before:] else Absent.GONE)

    def _leaves_of(self, wanted: _Wanted, suspects: list[RelPath]) -> Item:
        if (kept := self._leaves.get((wanted.chunk, wanted.length))) is not None:
            return kept
        data = self._chunk(wanted, suspects)
        if isinstance(data, Absent):
            return data
        encoded = encode_leaves(leaves(memoryview(data), self._context.world.longest_chunk))
        self._leaves[wanted.chunk, wanted.length] = encoded
        if len(self._leaves) > MAX_LEAVES_KEPT:
            self._leaves.popitem(last=False)
        return encoded

    def _parts(self, wanted: _Wanted, parts: Sequence[tuple[int, int]], suspects: list[RelPath]) -> Item:
        data = self._chunk(wanted, suspects)
        return data if isinstance(data, Absent) else b"".join(data[at : at + count] for at, count in parts)
