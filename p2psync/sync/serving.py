"""Serving: reads what a peer asks for, verified on the way out, and only what belongs to the folder it may read."""

from __future__ import annotations

import structlog

from p2psync.model.paths import RelPath
from p2psync.protocol.bulk import Absent, Item
from p2psync.protocol.messages import ChunkRequest
from p2psync.sync.contents import ContentJobs
from p2psync.sync.context import FolderContext
from p2psync.sync.local_chunks import find_chunk
from p2psync.sync.observer import Observer

_log = structlog.get_logger(__name__)


class Server:
    """Answers chunk requests for one folder."""

    def __init__(self, context: FolderContext, observer: Observer, contents: ContentJobs) -> None:
        self._context = context
        self._observer = observer
        self._contents = contents

    async def serve(self, device: bytes, request: ChunkRequest) -> list[Item]:
        """One item per hash asked for, or why there is none. A device that may not read gets nothing."""
        context = self._context
        if not context.membership.may_read(device):
            return [Absent.GONE] * len(request.lengths)
        if request.manifests:
            return await context.world.offload.run(lambda: [self._manifest(root) for root, _ in request.items()])
        suspects: list[RelPath] = []

        def read() -> list[Item]:
            return [self._chunk(chunk, length, suspects) for chunk, length in request.items()]

        items = await context.world.offload.run(read)
        if suspects:
            _log.debug("files do not hold what was asked for", folder=context.name, count=len(suspects))
            self._observer.distrust(suspects)
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
        return data or self._contents.staged_chunk(chunk) or (Absent.LATER if suspects[before:] else Absent.GONE)
