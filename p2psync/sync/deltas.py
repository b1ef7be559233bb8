"""Deltas: brings a chunk that has changed a little by asking for what is new in it, where an older version is here.

One round trip more: the holder names the chunk's leaves, `transfer.delta` finds those that the older version has, and
only the ranges between them come. Whatever goes wrong with that (a leaf that lies, a file that changes under the
copying), the chunk's hash shows, and the chunk is asked for as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from p2psync.errors import EscapeError, InputError
from p2psync.model.cutting import Leaf, decode_leaves, has_leaves, leaves, leaves_bound
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import Manifest
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord
from p2psync.protocol.bulk import Absent
from p2psync.sync.context import FolderContext
from p2psync.sync.link import DeltaLink, Link
from p2psync.transfer import delta
from p2psync.transfer.delta import Plan, Span, Spot
from p2psync.transfer.pieces import Piece

_log = structlog.get_logger(__name__)

TRIAL = 8
"""Chunks after which a content of which too little could be copied is fetched whole: finding leaves costs both sides
more than sending them does on a fast line."""
LEAVES_KEPT = 32
"""Chunks of the older version whose leaves are remembered: those of neighbours are used again."""


@dataclass(slots=True)
class Base:
    """The older version of a file and what of it may be in each chunk that is lacking now. Used by one job."""

    context: FolderContext
    path: RelPath
    algorithm: Algorithm
    spans: Mapping[bytes, Sequence[Span]]
    """By the hash of the chunk that is lacking."""
    _leaves: dict[Span, list[Leaf]]
    _tried: int = 0
    _copied: int = 0
    _wanted: int = 0

    def helps(self, piece: Piece) -> bool:
        """Whether it is worth asking for leaves."""
        return bool(self.spans.get(piece.hash)) and (self._tried < TRIAL or 4 * self._copied > self._wanted)

    def plan(self, piece: Piece, offered: memoryview) -> Plan:
        """Which parts of a chunk with these leaves are here; all is asked for when they make no sense. Blocks."""
        try:
            wanted = decode_leaves(offered, piece.length)
        except InputError as error:
            _log.debug("no leaves", folder=self.context.name, code=str(error))
            return delta.whole(piece.length)
        known: dict[Leaf, Spot] = {}
        for span in self.spans[piece.hash]:
            at = span.offset
            for leaf in self._leaves_of(span):
                known.setdefault(leaf, Spot(0, at))
                at += leaf.length
        plan = delta.plan(wanted, known)
        self._tried += 1
        self._copied += plan.copied
        self._wanted += plan.length
        return plan

    def assemble(self, piece: Piece, plan: Plan, fetched: bytes | memoryview) -> memoryview | None:
        """The chunk, verified; None when it has not become what it should. Blocks."""
        try:
            chunk = delta.assemble(plan, self._read, fetched)
        except InputError:
            return None
        return memoryview(chunk) if digest(self.algorithm, chunk) == piece.hash else None

    def _leaves_of(self, span: Span) -> list[Leaf]:
        found = self._leaves.get(span)
        if found is None:
            data = memoryview(bytearray(span.length))
            found = leaves(data, self.context.world.longest_chunk) if self._read(Spot(0, span.offset), data) else []
            if len(self._leaves) >= LEAVES_KEPT:
                del self._leaves[next(iter(self._leaves))]
            self._leaves[span] = found
        return found

    def _read(self, spot: Spot, view: memoryview) -> bool:
        try:
            file = self.context.root.open(self.path)
            try:
                return file.pread_into(view, spot.offset) == len(view)
            finally:
                file.close()
        except (OSError, EscapeError):
            return False


def find_base(context: FolderContext, record: FileRecord, manifest: Manifest, lacking: Sequence[int]) -> Base | None:
    """What is here of an older version for these chunks (by index) of a newer one. Blocks."""
    longest = context.world.longest_chunk
    if not any(has_leaves(manifest.lengths[index], longest) for index in lacking):
        return None
    with context.index.read() as reader:
        entry = reader.synced(record.path)
    old = None if entry is None or entry.absent else context.manifest_of(entry)
    if old is None or not old.count:
        return None
    spans = delta.neighbourhoods(old, manifest, lacking, longest)
    return Base(context, record.path, manifest.algorithm, spans, {}) if spans else None


async def fetch(
    context: FolderContext,
    link: Link,
    pieces: Sequence[Piece],
    bases: Mapping[bytes, Base],
    progress: Callable[[int], None],
) -> list[memoryview | Absent]:
    """As `Link.fetch` of these pieces, verified no more than there; where a base helps, only what it lacks comes."""
    at = [i for i, p in enumerate(pieces) if not p.manifest and (b := bases.get(p.hash)) is not None and b.helps(p)]
    asked = [(piece.hash, piece.length) for piece in pieces]
    if link.deltas is None or not at:
        return await link.fetch(context.folder, asked, manifests=pieces[0].manifest, progress=progress)
    return await _Fetch(context, link, link.deltas, pieces, bases, progress).run(at)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request of the swarm, carried out by way of leaves and ranges, one after the other."""

    context: FolderContext
    link: Link
    deltas: DeltaLink
    pieces: Sequence[Piece]
    bases: Mapping[bytes, Base]
    progress: Callable[[int], None]

    async def run(self, at: Sequence[int]) -> list[memoryview | Absent]:
        """`at` are the indices of the pieces that a base helps with."""
        offload, folder = self.context.world.offload, self.context.folder
        asked = [(piece.hash, piece.length) for piece in self.pieces]
        longest = self.context.world.longest_chunk
        bounds = [leaves_bound(self.pieces[i].length, longest) for i in at]
        offered = dict(zip(at, await self.deltas.leaves(folder, [asked[i] for i in at], bounds), strict=True))
        plans = await offload.run(lambda: self._plan(offered))
        wanted = [i for i, plan in enumerate(plans) if plan is not None and plan.ranges]
        came = dict.fromkeys(range(len(plans)), memoryview(b""))
        result = [offered[i] if plan is None else None for i, plan in enumerate(plans)]
        if wanted:
            ranges = [plan.ranges for i in wanted if (plan := plans[i]) is not None]
            items = await self.deltas.ranges(folder, [asked[i] for i in wanted], ranges, self.progress)
            for i, item in zip(wanted, items, strict=True):
                if isinstance(item, Absent):
                    result[i] = item
                else:
                    came[i] = item
        result = await offload.run(lambda: self._assemble(plans, came, result))
        failed = [i for i, item in enumerate(result) if item is None]
        saved = sum(plan.copied for i, plan in enumerate(plans) if plan is not None and i not in failed)
        if saved:
            _log.debug("chunks were fetched in part", folder=self.context.name, saved=saved)
        if failed:
            _log.debug("a delta did not make the chunk", folder=self.context.name, count=len(failed))
            whole = await self.link.fetch(folder, [asked[i] for i in failed], progress=self.progress)
            result = [whole[failed.index(i)] if item is None else item for i, item in enumerate(result)]
        return [item for item in result if item is not None]

    def _plan(self, offered: Mapping[int, memoryview | Absent]) -> list[Plan | None]:
        """A plan for each piece; None where the device has not got it."""
        plans: list[Plan | None] = []
        for i, piece in enumerate(self.pieces):
            named = offered.get(i)
            if named is None:
                plans.append(delta.whole(piece.length))
            else:
                plans.append(None if isinstance(named, Absent) else self.bases[piece.hash].plan(piece, named))
        return plans

    def _assemble(
        self, plans: Sequence[Plan | None], came: Mapping[int, memoryview], known: Sequence[memoryview | Absent | None]
    ) -> list[memoryview | Absent | None]:
        """What was asked for; None where it has not become what its hash says."""
        result = list(known)
        for i, (piece, plan) in enumerate(zip(self.pieces, plans, strict=True)):
            if plan is None or known[i] is not None:
                continue
            if not plan.copies:
                result[i] = came[i]
            elif (chunk := self.bases[piece.hash].assemble(piece, plan, came[i])) is not None:
                result[i] = chunk
                self.context.progress.reused += plan.copied
        return result
