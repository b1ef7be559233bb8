"""Contents: gathers what files are made of, from local files first and then from every peer that holds it.

The pure `Swarm` says which piece to ask of whom; this module sends the requests, verifies what comes where it is
stored, and keeps memory within the swarm's window. What is verified on disk is never fetched again, even after a
restart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog
import trio

from p2psync.errors import ConnectionLost, InputError, IntegrityError, P2PSyncError, ProtocolError, StateError
from p2psync.model.hashing import DIGEST_SIZE, digest
from p2psync.model.manifest import MAX_MANIFEST, Manifest, content_root, decode_manifest
from p2psync.model.paths import PathKey
from p2psync.model.records import FileRecord
from p2psync.protocol.bulk import Absent
from p2psync.protocol.limits import MAX_REQUEST_BYTES, MAX_REQUEST_CHUNKS
from p2psync.reconcile.denials import Denials
from p2psync.reconcile.guards import room_for
from p2psync.sync.context import FolderContext
from p2psync.sync.deltas import Base, fetch, find_base
from p2psync.sync.link import Link
from p2psync.sync.local_chunks import copy_chunks, find_chunk, located
from p2psync.sync.pulse import Pulse
from p2psync.transfer.pieces import Piece, Refusal, Request
from p2psync.transfer.swarm import Swarm
from p2psync.transfer.window import Window
from p2psync.workspace.staging import Small, Stage, dress, file_mode, stage_small

_log = structlog.get_logger(__name__)

PATIENCE = 2.0
"""Seconds with nothing under way after which a job gives its place to others: nobody who is connected has it.

What is under way may take as long as bytes come at all: one piece over a slow line takes minutes.
"""
_OF_MANIFEST = b"m"
"""Added to a content's root where it stands for its manifest, which others hold than its chunks."""

Sink = Callable[[memoryview], None]
"""Verifies and stores one piece; runs in a worker thread. IntegrityError when the bytes are not what was asked for."""

Staged = dict[PathKey, tuple[bytes, bytes]]
"""Path key → (staged path, encoded manifest)."""


class UnavailableError(Exception):
    """No connected peer has delivered anything for a while: come back when something has changed."""


class DiskFullError(OSError):
    """Fetching would use up the reserve that is left free on purpose."""


class ContentJobs:
    """Fetches contents for one folder."""

    def __init__(self, context: FolderContext, others: Callable[[], Iterable[FolderContext]]) -> None:
        """`others` are the other folders of this device, whose files may hold what this one needs."""
        self._context = context
        self._others = others
        self._swarm: Swarm[bytes] = Swarm(context.settings.fetch_window)
        self._links: dict[bytes, Link] = {}
        self._bases: dict[bytes, Base] = {}
        """Older versions here of contents that are wanted, by the hash of a chunk that may share leaves with them."""
        self._sinks: dict[int, Mapping[Piece, Sink]] = {}
        """Where what comes for each want of the swarm is stored."""
        self._failures: dict[int, OSError] = {}
        """What went wrong when something was to be stored for a want."""
        self._scopes: dict[int, trio.CancelScope] = {}
        self._arrived = Pulse()
        self._changed = Pulse()
        self._stages: dict[Stage, Mapping[bytes, Sequence[int]]] = {}
        """What is being assembled, and where in it each chunk belongs."""
        self._creating = threading.Lock()
        """A directory takes one new entry at a time, and threads that wait for it in the kernel keep a core busy."""
        self.denials = Denials[Piece]()

    # ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def attach(self, link: Link) -> None:
        """A peer can be asked from now on."""
        self._links[link.device] = link
        self._swarm.add_peer(link.device, Window(trio.current_time(), least_delay=link.least_delay))
        self.denials.connected(link.device)
        self._changed.fire()

    def detach(self, link: Link) -> None:
        """A peer is gone."""
        if self._links.get(link.device) is link:
            del self._links[link.device]
            self._swarm.remove_peer(link.device)
            self._changed.fire()

    def possesses(self, device: bytes, roots: Sequence[bytes]) -> None:
        """A peer says that it holds these contents, or some that are not named."""
        for root in roots:
            self.denials.holds(device, root)
            if self._swarm.wanted(root):
                self._swarm.set_holds(device, root, True)
        self._changed.fire()

    def staged_chunk(self, chunk: bytes, length: int) -> bytes | None:
        """A verified chunk of a file still being assembled, to serve to others and for other files here. Blocks.

        None as well where `length` is not its length, whatever a manifest says.
        """
        for stage, places in list(self._stages.items()):
            for index in places.get(chunk, ()):
                if stage.manifest.lengths[index] == length and (data := stage.read(index)) is not None:
                    return data
        return None

    @property
    def asked(self) -> list[bytes]:
        """Who can be asked: connected devices, and mailboxes by the names that they have here."""
        return list(self._links)

    async def run(self) -> None:
        """Send requests as the swarm decides. Never returns."""
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._changed.count
                for request in self._swarm.next_requests(trio.current_time()):
                    nursery.start_soon(self._ask, request)
                for _, request_id in self._swarm.take_cancelled():
                    if (scope := self._scopes.get(request_id)) is not None:
                        scope.cancel()
                deadline = self._swarm.next_deadline()
                with trio.move_on_at(deadline if deadline is not None else trio.current_time() + 3600):
                    await self._changed.wait_beyond(seen)

    # ── jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def obtain(self, records: Sequence[FileRecord], started: trio.Event) -> tuple[Staged, set[PathKey]]:
        """Stage the contents of these records durably: (what is staged, what could not be had).

        `started` is set once everything that local files can give has been read. One large file, or many small ones.
        Raises UnavailableError when nothing could be had, OSError as the disk has it.
        """
        await self._check_room(sum(record.size for record in records))
        manifests = await self._manifests(records)
        if len(records) == 1 and manifests and len(manifests[records[0].key].lengths) > 1:
            return await self._obtain_large(records[0], manifests[records[0].key], started), set()
        return await self._obtain_small([r for r in records if r.key in manifests], manifests, started, records)

    async def _check_room(self, needed: int) -> None:
        context = self._context
        settings = context.settings
        free, total = await context.world.offload.run(context.root.free_space)
        if not room_for(
            free, total, needed, reserve_percent=settings.reserve_percent, reserve_bytes=settings.reserve_bytes
        ):
            raise DiskFullError(28, "the disk would be left with less than its reserve")

    async def _manifests(self, records: Sequence[FileRecord]) -> dict[PathKey, Manifest]:
        """The manifest of each record, fetched where it is too long to be part of the record."""
        context = self._context

        def known() -> dict[PathKey, Manifest]:
            found = {}
            with context.index.read() as reader:
                for record in records:
                    encoded = record.manifest or reader.manifest(record.content)
                    if encoded is not None:
                        found[record.key] = decode_manifest(encoded)
            return found

        found = await context.world.offload.run(known)
        if len(found) == len(records):
            return found
        lacking = {record.content: record for record in records if record.key not in found}
        fetched: dict[bytes, bytes] = {}

        def sink_for(root: bytes) -> Sink:
            def sink(data: memoryview) -> None:
                encoded = bytes(data)
                if content_root(encoded) != root:
                    raise IntegrityError("a manifest does not match its root")
                fetched[root] = encoded

            return sink

        pieces = {Piece(root, MAX_MANIFEST, manifest=True): sink_for(root) for root in lacking}
        # Of what is lacking much may have to come from elsewhere first; the rest must not wait for it.
        with suppress(UnavailableError):
            await self._gather({piece.hash + _OF_MANIFEST: {piece: sink} for piece, sink in pieces.items()})
        _log.debug("manifests fetched", folder=context.name, wanted=len(pieces), count=len(fetched))
        for record in records:
            if record.content in fetched:
                try:
                    manifest = decode_manifest(fetched[record.content])
                except InputError:
                    continue
                if manifest.size == record.size:
                    found[record.key] = manifest
        if not found:
            raise UnavailableError
        return found

    async def _obtain_small(
        self,
        records: Sequence[FileRecord],
        manifests: dict[PathKey, Manifest],
        started: trio.Event,
        asked: Sequence[FileRecord],
    ) -> tuple[Staged, set[PathKey]]:
        context, folders = self._context, (self._context, *self._others())
        data: dict[bytes, bytes | memoryview] = {}
        parts = {record.key: manifests[record.key].chunks() for record in records}
        algorithms = {chunk: manifests[key].algorithm for key, chunks in parts.items() for chunk, _, _ in chunks}
        bases: dict[bytes, Base] = {}

        def reuse() -> None:
            here = located(folders, algorithms)
            for record in records:
                for chunk, _, length in parts[record.key]:
                    found = self._local(folders if chunk in here else (), chunk, length) if chunk not in data else None
                    if found is not None:
                        data[chunk] = found
                        context.progress.reused += length
                lacking = [index for index, (chunk, _, _) in enumerate(parts[record.key]) if chunk not in data]
                if lacking and (base := find_base(context, record, manifests[record.key], lacking)) is not None:
                    bases[record.content] = base

        await context.world.offload.run(reuse)
        started.set()

        def keep(chunk: bytes, content: memoryview) -> None:
            if digest(algorithms[chunk], content) != chunk:
                raise IntegrityError("a chunk does not match its hash")
            data[chunk] = content

        groups: dict[bytes, dict[Piece, Sink]] = {}
        for record in records:
            lacking: dict[Piece, Sink] = {
                Piece(c, n): partial(keep, c) for c, _, n in parts[record.key] if c not in data
            }
            if lacking:
                groups.setdefault(record.content, lacking)
        with suppress(UnavailableError):
            await self._gather(groups, bases)
        complete = [record for record in records if all(chunk in data for chunk, _, _ in parts[record.key])]
        if not complete:
            raise UnavailableError

        def stage() -> Staged:
            items = (
                Small(
                    _stage_name(record),
                    b"".join(data[chunk] for chunk, _, _ in parts[record.key]),
                    file_mode(record.mode, context.settings.umask),
                    record.mtime_ns,
                )
                for record in complete
            )
            with self._creating:
                paths = stage_small(context.root, items)
            context.root.sync_all()
            return {
                record.key: (path, record.manifest or manifests[record.key].encode())
                for record, path in zip(complete, paths, strict=True)
            }

        staged = await context.world.offload.run(stage)
        return staged, {record.key for record in asked} - set(staged)

    async def _obtain_large(self, record: FileRecord, manifest: Manifest, started: trio.Event) -> Staged:
        context, offload = self._context, self._context.world.offload
        stage = await offload.run(lambda: Stage.open(context.root, manifest, _stage_name(record)))
        chunks = manifest.chunks()
        places: dict[bytes, list[int]] = {}
        for index, (chunk, _, _) in enumerate(chunks):
            places.setdefault(chunk, []).append(index)
        try:
            missing = stage.missing()
            if len(missing) < len(chunks):
                _log.debug("a partial content is resumed", folder=context.name, missing=len(missing), of=len(chunks))
            self._stages[stage] = places
            await self._copy_local(stage, missing)
            started.set()

            def sink_for(indices: list[int]) -> Sink:
                def sink(content: memoryview) -> None:
                    for index in indices:
                        stage.put(index, content)

                return sink

            missing = stage.missing()
            base = await offload.run(lambda: find_base(context, record, manifest, missing))
            lacking = dict.fromkeys(chunks[index][0] for index in missing)
            pieces = {Piece(c, chunks[places[c][0]][2]): sink_for(places[c]) for c in lacking}
            await self._gather({record.content: pieces}, {} if base is None else {record.content: base})
            mode = file_mode(record.mode, context.settings.umask)
            # Metadata before the sync: what comes after it, a power cut may take back.
            await offload.run(lambda: dress(context.root, stage.path, mode, record.mtime_ns))
            await offload.run(stage.sync)
        except StateError as error:
            _log.exception("content is not whole", folder=context.name)
            raise UnavailableError from error
        finally:
            self._stages.pop(stage, None)
            with trio.CancelScope(shield=True):
                # Not here: it waits for a chunk that is just being written.
                await offload.run(stage.close)
        return {record.key: (stage.path, manifest.encode())}

    async def _copy_local(self, stage: Stage, missing: Sequence[int]) -> None:
        """Copy what other local files hold, in two tasks: while one writes, the other reads and hashes."""
        contexts = (self._context, *self._others())
        errors: list[OSError | P2PSyncError] = []

        async def copy(left: Sequence[int]) -> None:
            while left and not errors:
                try:
                    copied, left = await self._context.world.offload.run(
                        partial(copy_chunks, contexts, self.staged_chunk, stage, left)
                    )
                except (OSError, P2PSyncError) as error:
                    errors.append(error)
                else:
                    self._context.progress.reused += copied

        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, missing[: len(missing) // 2])
            nursery.start_soon(copy, missing[len(missing) // 2 :])
        if errors:
            raise errors[0]

    def _local(self, folders: Iterable[FolderContext], chunk: bytes, length: int) -> bytes | memoryview | None:
        """A chunk from any file of these folders, or one still being assembled in this folder, verified."""
        for context in folders:
            if context.has_root and (data := find_chunk(context, chunk, length)) is not None:
                return data
        return self.staged_chunk(chunk, length)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _gather(
        self, groups: Mapping[bytes, Mapping[Piece, Sink]], bases: Mapping[bytes, Base] | None = None
    ) -> None:
        """Have every piece of each content delivered to its sink; `bases` are older versions of the contents.

        UnavailableError when nothing is under way for `PATIENCE` seconds, OSError when it could not be stored.
        """
        if not groups:
            return
        if not self._links:
            raise UnavailableError
        wants: dict[int, bytes] = {}
        for root, sinks in groups.items():
            want = self._swarm.want(root, sinks)
            wants[want], self._sinks[want] = root, sinks
            if bases is not None and root in bases:
                self._bases.update(dict.fromkeys(bases[root].near, bases[root]))
        self._changed.fire()
        try:
            while any(self._swarm.wants(want) for want in wants):
                seen = self._arrived.count
                while self._arrived.count == seen:
                    with trio.move_on_after(PATIENCE):
                        await self._arrived.wait_beyond(seen)
                    for want in wants:
                        if want in self._failures:
                            raise self._failures[want]
                    if self._arrived.count == seen and not (self._swarm.in_flight and self._links):
                        self._count_denials(wants)
                        raise UnavailableError
            self._count_denials(wants)
        finally:
            for want in wants:
                self._swarm.drop(want)
                del self._sinks[want]
                self._failures.pop(want, None)
            for base in (bases or {}).values():
                for chunk in base.near:
                    if self._bases.get(chunk) is base:
                        del self._bases[chunk]
            self._changed.fire()

    def _count_denials(self, wants: Mapping[int, bytes]) -> None:
        for want, root in wants.items():
            content = root.removesuffix(_OF_MANIFEST) if len(root) > DIGEST_SIZE else root
            if self._swarm.wants(want):
                if self._links:
                    self.denials.deny(content, self._sinks[want])
            elif root == content:
                self.denials.obtained(content)

    async def lacks(self, device: bytes, pieces: Sequence[Piece]) -> set[Piece]:
        """Ask a device once more for each of these pieces; those of which it says that it has not got them.

        ConnectionLost and ProtocolError as of its link; the caller sets the time limit.
        """
        gone: set[Piece] = set()
        if (link := self._links.get(device)) is None:
            raise ConnectionLost("the device is not connected")
        for group in _requests(pieces):
            asked = [(piece.hash, piece.length) for piece in group]
            items = await link.fetch(self._context.folder, asked, manifests=group[0].manifest)
            for piece, item in zip(group, items, strict=True):
                if not isinstance(item, Absent):
                    self.denials.answered(piece, device, gone=False)
                elif item is Absent.GONE:
                    gone.add(piece)
        return gone

    async def _ask(self, request: Request[bytes]) -> None:
        """Send one request and store what comes."""
        link = self._links.get(request.peer)
        if link is None:
            return
        now = trio.current_time

        def arrived(amount: int) -> None:
            self._context.progress.received += amount
            self._swarm.progress(request.id, amount, now())

        try:
            with trio.CancelScope() as scope:
                self._scopes[request.id] = scope
                items = await fetch(self._context, link, request.pieces, self._bases, arrived)
                await self._store(request, items)
        except (ConnectionLost, ProtocolError):
            self._swarm.failed(request.id, now())
        finally:
            self._scopes.pop(request.id, None)
            self._changed.fire()

    async def _store(self, request: Request[bytes], items: Sequence[memoryview | Absent]) -> None:
        """Give each piece to those who lack it now; who begins to want it meanwhile has not received it."""
        takers = [{want: self._sinks[want][piece] for want in self._swarm.lacking(piece)} for piece in request.pieces]
        stored: list[list[int]] = [[] for _ in items]
        failures: dict[int, OSError] = {}

        def put(item: memoryview, sinks: Mapping[int, Sink], done: list[int]) -> None:
            for want, sink in sinks.items():
                try:
                    sink(item)
                except OSError as error:
                    failures[want] = error
                else:
                    done.append(want)

        def store() -> list[Refusal | None]:
            verdicts: list[Refusal | None] = []
            for item, sinks, done in zip(items, takers, stored, strict=True):
                if isinstance(item, Absent):
                    verdicts.append(Refusal.GONE if item is Absent.GONE else Refusal.LATER)
                    continue
                try:
                    put(item, sinks, done)
                except IntegrityError:
                    verdicts.append(Refusal.CORRUPT)
                else:
                    verdicts.append(None)
            return verdicts

        verdicts = await self._context.world.offload.run(store)
        progress = self._context.progress
        self._failures.update({want: error for want, error in failures.items() if want in self._sinks})
        if failures:
            self._arrived.fire()
        for piece, item, verdict, done in zip(request.pieces, items, verdicts, stored, strict=True):
            if verdict in {None, Refusal.GONE}:
                self.denials.answered(piece, request.peer, gone=verdict is not None)
            if verdict is not None:
                _log.debug("no content", code=verdict.name, folder=self._context.name, device=request.peer.hex()[:8])
                self._swarm.refused(request.id, piece, verdict, trio.current_time())
            elif self._swarm.delivered(request.id, piece, done) and not isinstance(item, Absent):
                progress.completed(len(item), trio.current_time())
                self._arrived.fire()


def _requests(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that may be asked for together."""
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.manifest):
        size = sum(other.length for other in group) + piece.length
        same = not group or group[0].manifest == piece.manifest
        if group and (not same or len(group) == MAX_REQUEST_CHUNKS or size > MAX_REQUEST_BYTES):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _stage_name(record: FileRecord) -> bytes:
    """Names a stage by content and path: found again after a restart, and never shared by two paths."""
    return record.content.hex().encode() + b"-" + record.key[:4].hex().encode()
