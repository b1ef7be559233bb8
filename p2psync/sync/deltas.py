"""Deltas: brings a chunk that has changed a little by asking for what is new in it, where an older version is here.

One round trip more: the holder names the chunk's leaves, `transfer.delta` finds those that the older version has, and
only the ranges between them come. Whatever goes wrong with that (a leaf that lies, a file that changes under the
copying), the chunk's hash shows, and the chunk is asked for as a whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from p2psync.errors import EscapeError, InputError, StateError
from p2psync.model.cutting import Leaf, decode_leaves, has_leaves, leaves, leaves_bound
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.manifest import Manifest
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord
from p2psync.protocol.bulk import Absent
from p2psync.protocol.limits import MAX_RANGES
from p2psync.sync.context import FolderContext
from p2psync.sync.link import DeltaLink, Link
from p2psync.transfer import delta
from p2psync.transfer.delta import Plan, Spot
from p2psync.transfer.pieces import Piece

_log = structlog.get_logger(__name__)

TRIAL = 8
"""Chunks after which a content of which too little could be copied is fetched whole: finding leaves costs both sides
more than sending them does on a fast line."""
LEAVES_KEPT = 32
"""Chunks of the older version whose leaves are remembered: those of neighbours are used again."""


@dataclass(slots=True)
class Base:
    """The older version of a file and what of it may be in each chunk that is lacking now.

    Used by one job, whose requests to several devices plan and assemble in several threads at once.
    """

    context: FolderContext
    path: RelPath
    algorithm: Algorithm
    chunks: Sequence[tuple[bytes, int, int]]
    """(hash, offset, length) of all that the older version has."""
    near: Mapping[bytes, range]
    """Which of them may share leaves with a chunk that is lacking, by its hash."""
    _leaves: OrderedDict[int, list[Leaf]] = field(default_factory=OrderedDict)
    _tried: int = 0
    _copied: int = 0
    _wanted: int = 0

    def helps(self, piece: Piece) -> bool:
        """Whether it is worth asking for leaves."""
        return piece.hash in self.near and (self._tried < TRIAL or 4 * self._copied > self._wanted)

    def plan(self, piece: Piece, offered: memoryview, most: int) -> Plan:
        """Which parts of a chunk with these leaves are here; all is asked for when they make no sense. Blocks.

        At most `most` ranges.
        """
        try:
            wanted = decode_leaves(offered, piece.length)
        except InputError as error:
            _log.debug("no leaves", folder=self.context.name, code=str(error))
            return delta.whole(piece.length)
        known: dict[Leaf, Spot] = {}
        for index in self.near[piece.hash]:
            at = self.chunks[index][1]
            for leaf in self._leaves_of(index):
                known.setdefault(leaf, Spot(0, at))
                at += leaf.length
        plan = delta.plan(wanted, known, most)
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

    def _leaves_of(self, index: int) -> list[Leaf]:
        found = self._leaves.get(index)
        if found is None:
            _, offset, length = self.chunks[index]
            data = memoryview(bytearray(length))
            found = leaves(data, self.context.world.longest_chunk) if self._read(Spot(0, offset), data) else []
            self._leaves[index] = found
            if len(self._leaves) > LEAVES_KEPT:
                self._leaves.popitem(last=False)
        return found

    def _read(self, spot: Spot, view: memoryview) -> bool:
        try:
            file = self.context.root.open(self.path)
            try:
                return file.pread_into(view, spot.offset) == len(view)
            finally:
                file.close()
        except (OSError, EscapeError, StateError):
            return False


def find_base(context: FolderContext, record: FileRecord, manifest: Manifest, lacking: Sequence[int]) -> Base | None:
    """What is here of an older version for these chunks (by index) of a newer one. Blocks."""
    longest = context.world.longest_chunk
    worthwhile = [index for index in lacking if has_leaves(manifest.lengths[index], longest)]
    if not worthwhile:
        return None
    with context.index.read() as reader:
        entry = reader.synced(record.path)
    old = None if entry is None or entry.absent else context.manifest_of(entry)
    if old is None or not old.count:
        return None
    near = delta.neighbourhoods(old, manifest, worthwhile, longest)
    return Base(context, record.path, manifest.algorithm, old.chunks(), near) if near else None


async def fetch(
    context: FolderContext,
    link: Link,
    pieces: Sequence[Piece],
    bases: Mapping[bytes, Base],
    progress: Callable[[int], None],
) -> list[memoryview | Absent]:
    """As `Link.fetch` of these pieces, verified no more than there; where a base helps, only what it lacks comes."""
    helping = {
        i: base
        for i, piece in enumerate(pieces)
        if not piece.manifest and (base := bases.get(piece.hash)) is not None and base.helps(piece)
    }
    if link.deltas is None or not helping:
        asked = [(piece.hash, piece.length) for piece in pieces]
        return await link.fetch(context.folder, asked, manifests=pieces[0].manifest, progress=progress)
    return await _Fetch(context, link, link.deltas, pieces, helping, progress).run()


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request of the swarm, carried out by way of leaves and ranges, one after the other."""

    context: FolderContext
    link: Link
    deltas: DeltaLink
    pieces: Sequence[Piece]
    bases: Mapping[int, Base]
    """By the index of the piece that they help with."""
    progress: Callable[[int], None]

    async def run(self) -> list[memoryview | Absent]:
        """What came or was put together for each piece."""
        offload, folder, at = self.context.world.offload, self.context.folder, list(self.bases)
        asked = [(piece.hash, piece.length) for piece in self.pieces]
        longest = self.context.world.longest_chunk
        bounds = [leaves_bound(self.pieces[i].length, longest) for i in at]
        named = await self.deltas.leaves(folder, [asked[i] for i in at], bounds, self.progress)
        offered = dict(zip(at, named, strict=True))
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
        left = MAX_RANGES - len(self.pieces)  # Each may need one of its own.
        for i, piece in enumerate(self.pieces):
            named = offered.get(i)
            if isinstance(named, Absent):
                plans.append(None)
                continue
            plan = delta.whole(piece.length) if named is None else self.bases[i].plan(piece, named, left + 1)
            left -= max(0, len(plan.ranges) - 1)
            plans.append(plan)
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
            elif (chunk := self.bases[i].assemble(piece, plan, came[i])) is not None:
                result[i] = chunk
                self.context.progress.reused += plan.copied
        return result
